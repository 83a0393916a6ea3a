"""Memory in which a worker hands batches to its rank: large arrays are not copied through a pipe.

A worker makes *segments*, anonymous files of about the size of a batch, and sends their descriptors. The rank maps each
once, and the arrays of a batch are views of it. When the last of them has gone, the rank says so with the next task,
and the worker uses the segment again: its pages are there already, which saves more than the copies. No segment has a
name, so nothing is left behind, however the processes end.

What is not a large array travels through the pipe, pickled; where the system has no anonymous files, all of it does.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import io
import itertools
import mmap
import os
import pickle
import resource
import socket
import struct
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from sys import getrefcount
from typing import Any

import numpy as np

from disttrain.kernels.arrays import Array
from disttrain.tensors import Tensor

_LARGE = 4096
"""From so many bytes on an array goes into a segment."""
_ALIGN = 64
_HEAD = struct.Struct("=4q")
"""Number of the run and of the segment (-1: none), the segment's size if it is new (else 0), number of arrays."""
_UNHELD = 2
"""References to the memory of a segment without arrays: the table's, and that of the argument."""
_PLACE = struct.Struct("=2q")
"""Where in the segment an array begins, and how many bytes it has."""


class Segments:
    """The segments of a worker, on the worker's side."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._memory: dict[int, _Map] = {}
        self._free: list[int] = []
        self._current = -1
        """The segment in which the batch is made that is being read; -1 for none."""
        self._used = 0

    def release(self, numbers: Iterable[int]) -> None:
        """Take back segments in which the rank has no array any more."""
        self._free += numbers

    def begin(self) -> None:
        """Begin a batch."""
        self._used = 0
        while self._free:
            self._current = self._free[-1]
            if getrefcount(self._memory[self._current]) <= _UNHELD:
                return
            del self._memory[self._free.pop()]  # the data set keeps an array that was made there
        self._current = -1

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return a new array of arbitrary contents, in the segment if there is room, else in memory of its own."""
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if self._current >= 0 and nbytes >= _LARGE:
            memory = self._memory[self._current]
            begin, end = self._used, self._used + nbytes
            if end <= len(memory):
                self._used = _aligned(end)
                return np.frombuffer(memory, np.uint8, nbytes, begin).view(dtype).reshape(shape)
        return np.empty(shape, dtype)

    def pack(self, run: int, message: Any) -> tuple[int, bytes]:
        """Return the message for the pipe, and before it the descriptor of a new segment to be sent, or -1.

        The caller closes the descriptor.
        """
        arrays: list[memoryview] = []

        def keep(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes < _LARGE or not hasattr(os, "memfd_create"):
                return True  # in the pickle
            arrays.append(raw)
            return False

        file = io.BytesIO()
        _Pickler(file, keep).dump(message)
        if not arrays:
            return -1, _HEAD.pack(run, -1, 0, 0) + file.getvalue()
        descriptor, size, places = self._place(arrays)
        head = _HEAD.pack(run, self._current, size, len(places))
        self._free = [number for number in self._free if number != self._current]
        return descriptor, head + b"".join(_PLACE.pack(*place) for place in places) + file.getvalue()

    def _place(self, arrays: list[memoryview]) -> tuple[int, int, list[tuple[int, int]]]:
        """Let all arrays be in the current segment; return its descriptor and size if it is new, and where they are."""
        views = [np.frombuffer(array, np.uint8) for array in arrays]
        if self._current >= 0:
            memory = self._memory[self._current]
            base = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
            begins = [view.__array_interface__["data"][0] - base for view in views]
            outside = [i for i, begin in enumerate(begins) if not 0 <= begin < len(memory)]
            end = self._used
            for i in outside:
                begins[i], end = end, _aligned(end + views[i].size)
            if end <= len(memory):
                for i in outside:
                    np.frombuffer(memory, np.uint8, views[i].size, begins[i])[...] = views[i]
                return -1, 0, [(begin, view.size) for begin, view in zip(begins, views, strict=True)]
            self._free.remove(self._current)  # too small: another one takes its place
            del self._memory[self._current], memory
        begins = list(itertools.accumulate((_aligned(view.size) for view in views), initial=0))
        size = -(-begins.pop() // mmap.PAGESIZE) * mmap.PAGESIZE
        descriptor = os.memfd_create("disttrain batch")
        try:
            os.ftruncate(descriptor, size)
            new = _map(descriptor, size)
        except BaseException:
            os.close(descriptor)
            raise
        for begin, view in zip(begins, views, strict=True):
            np.frombuffer(new, np.uint8, view.size, begin)[...] = view
        self._current = next(self._numbers)
        self._memory[self._current] = new
        return descriptor, size, [(begin, view.size) for begin, view in zip(begins, views, strict=True)]


class Mappings:
    """The segments of a worker, on the rank's side."""

    def __init__(self) -> None:
        self._maps: dict[int, _Map] = {}
        self._freed: deque[int] = deque()

    def freed(self) -> list[int]:
        """Return the segments in which there is no array any more, each once."""
        return [self._freed.popleft() for _ in range(len(self._freed))]

    def unpack(self, data: bytes, descriptors: socket.socket, wanted: int) -> Any:
        """Return the message of the run ``wanted``; None of another run, whose segment is free again."""
        run, number, size, count = _HEAD.unpack_from(data)
        if size:
            told, received, _, _ = socket.recv_fds(descriptors, 1, 1)
            if not told:
                raise EOFError
            if not received:
                limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
                raise OSError(
                    errno.EMFILE,
                    f"no file descriptor is left for a batch of a worker (limit {limit}): close files, or raise the "
                    f"limit with `ulimit -n`",
                )
            (descriptor,) = received
            try:
                self._maps[number] = _map(descriptor, size)
            finally:
                os.close(descriptor)
        if run != wanted:
            if number >= 0:
                self._freed.append(number)
            return None
        body = _HEAD.size + count * _PLACE.size
        buffers = []
        if number >= 0:
            memory = np.frombuffer(self._maps[number], np.uint8)
            # The arrays keep it, so this is called when the last of them has gone.
            weakref.finalize(memory, self._freed.append, number).atexit = False
            places = _PLACE.iter_unpack(memoryview(data)[_HEAD.size : body])
            buffers = [memory[begin : begin + nbytes].data for begin, nbytes in places]
        return pickle.loads(memoryview(data)[body:], buffers=buffers)


_Map = Any
"""Memory of a segment, an array of ctypes: it is mapped as long as it, or an array in it, is held."""


def _map(descriptor: int, size: int) -> _Map:
    """Return the memory of an anonymous file. Unlike Python's ``mmap`` it keeps no descriptor, of which there are few.

    Raises:
        OSError: there is no memory, or too much is mapped.
    """
    address = _libc().mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, 0)
    if address == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    memory = (ctypes.c_char * size).from_address(address)
    weakref.finalize(memory, _libc().munmap, address, size).atexit = False
    return memory


@functools.cache
def _libc() -> ctypes.CDLL:
    found = ctypes.CDLL(None, use_errno=True)
    found.mmap.restype = ctypes.c_void_p
    found.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    found.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return found


def send(pipe: Connection[Any, Any], descriptors: socket.socket, descriptor: int, data: bytes) -> None:
    """Send what :meth:`Segments.pack` has made."""
    if descriptor >= 0:
        try:
            socket.send_fds(descriptors, [b"\0"], [descriptor])
        finally:
            os.close(descriptor)
    pipe.send_bytes(data)


class _Pickler(ForkingPickler):
    """Tensors travel as their arrays, and the memory of arrays out of band."""

    def __init__(self, file: io.BytesIO, keep: Callable[[pickle.PickleBuffer], bool]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL, True, keep)

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not Tensor:
            return NotImplemented
        if obj.requires_grad and not obj.is_leaf:
            raise RuntimeError("a worker cannot send a tensor with history; detach() it in the data set")
        return _rebuild_tensor, (obj._array, bool(obj.requires_grad))


def _rebuild_tensor(array: Any, requires_grad: bool) -> Tensor:
    return Tensor._of(array).requires_grad_(requires_grad)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGN) * _ALIGN
