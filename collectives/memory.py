"""Memory that the processes of one node share: a part for each, which all of them map.

The parts are anonymous files (``memfd_create``), which every process opens through ``/proc``: they have no name that a
killed job could leave behind, no limit but the machine's memory, and they live as long as an array in them, also after
MPI has ended. (Windows of ``MPI_Win_allocate_shared`` do not: Open MPI unmaps them in ``MPI_Finalize``.)
"""

import mmap
import os
import platform
import threading
import weakref
from bisect import insort
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy

from disttrain.kernels.arrays import Array

_PAGE = mmap.PAGESIZE
_TOKEN_BYTES = 16
_GIVE_BACK_BYTES = 1 << 20
"""Free memory of this size goes back to the system at once."""


class Unshared(RuntimeError):
    """Why processes cannot share memory."""


class NodeMemory:
    """The parts of all processes of a group on one node, as this process maps them.

    Args:
        comm: an MPI communicator over the processes; all of them make this together.
        nbytes: the size of a part. It takes no memory before it is written.

    Raises:
        Unshared: on all processes alike, if one of them cannot reach the part of another.
    """

    def __init__(self, comm: Any, nbytes: int) -> None:
        self._process = os.getpid()
        self.index: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self._nbytes = -(-nbytes // _PAGE) * _PAGE
        self._freed: deque[tuple[int, int]] = deque()
        self._free = [(_PAGE, self._nbytes - _PAGE)]  # the first page holds the token
        self._kept: dict[int, Array] = {}
        self._lock = threading.Lock()
        self._maps: list[mmap.mmap] = []
        reason = ""
        descriptor = -1
        told = numpy.zeros(2 + _TOKEN_BYTES // 8, numpy.int64)
        try:
            descriptor = _anonymous_file(self._nbytes)
            told[:] = [os.getpid(), descriptor, *numpy.frombuffer(os.urandom(_TOKEN_BYTES), numpy.int64)]
            os.pwrite(descriptor, told[2:].tobytes(), 0)
        except (OSError, Unshared) as error:
            reason = str(error)
        everyone = numpy.empty((self.size, told.size), numpy.int64)
        comm.Allgather(told, everyone)
        for pid, theirs, *token in everyone.tolist():
            try:
                self._maps.append(_map(pid, theirs, self._nbytes, numpy.array(token, numpy.int64).tobytes()))
            except (OSError, ValueError, Unshared) as error:
                reason = reason or str(error)
        reached = numpy.array([not reason], numpy.int64)
        by_all = numpy.empty(self.size, numpy.int64)
        comm.Allgather(reached, by_all)  # also: nobody closes what another has still to open
        if descriptor >= 0:
            os.close(descriptor)
        if not by_all.all():
            raise Unshared(reason or f"process {int(by_all.argmin())} could not map the others' memory")
        self._parts = [numpy.frombuffer(m, numpy.uint8) for m in self._maps]
        self._base = self._parts[self.index].__array_interface__["data"][0]

    def part(self, process: int, offset: int, nbytes: int) -> Array:
        """Return the bytes of the part of ``process`` from ``offset`` on."""
        return self._parts[process][offset : offset + nbytes]

    def offset_of(self, x: Array) -> int:
        """Return where the C-contiguous array ``x`` begins in this process's part, or -1 if it is elsewhere."""
        offset: int = x.__array_interface__["data"][0] - self._base
        return offset if offset >= 0 and offset + x.nbytes <= self._nbytes else -1

    def empty(self, shape: int | Sequence[int], dtype: Any) -> Array | None:
        """Return a new array in this process's part, or ``None`` if there is no room. Its contents are arbitrary."""
        if os.getpid() != self._process:
            return None  # a forked child: its parent hands out this memory
        dtype = numpy.dtype(dtype)
        count = int(numpy.prod(shape, dtype=numpy.int64))
        size = max(1, -(-count * dtype.itemsize // _PAGE)) * _PAGE
        with self._lock:
            self._collect()
            for i, (offset, free) in enumerate(self._free):
                if free >= size:
                    self._free[i : i + 1] = [(offset + size, free - size)] * (free > size)
                    break
            else:
                return None
        memory = numpy.frombuffer(memoryview(self._maps[self.index])[offset : offset + size], numpy.uint8)
        # Views of an array keep the array, so this is called when the last of them has gone.
        weakref.finalize(memory, self._freed.append, (offset, size)).atexit = False
        return memory[: count * dtype.itemsize].view(dtype).reshape(shape)

    def keep(self, x: Array) -> None:
        """Do not free ``x``, whatever becomes of it here, before :meth:`release`."""
        self._kept[id(x)] = x

    def release(self, x: Array) -> None:
        """Free ``x`` once nothing here refers to it."""
        del self._kept[id(x)]

    def _collect(self) -> None:
        """Take back what has been freed (by finalizers, which may run anywhere and must not wait for a lock)."""
        while self._freed:
            offset, size = self._freed.popleft()
            if size >= _GIVE_BACK_BYTES:
                self._maps[self.index].madvise(mmap.MADV_REMOVE, offset, size)
            insort(self._free, (offset, size))
        joined: list[tuple[int, int]] = []
        for offset, size in self._free:
            if joined and sum(joined[-1]) == offset:
                joined[-1] = (joined[-1][0], joined[-1][1] + size)
            else:
                joined.append((offset, size))
        self._free = joined


def _anonymous_file(nbytes: int) -> int:
    if platform.machine() not in ("x86_64", "AMD64"):
        raise Unshared(
            f"shared memory relies on the order of stores of x86-64, and this is {platform.machine()}"
        )
    if not hasattr(os, "memfd_create"):
        raise Unshared("this system has no memfd_create()")
    descriptor = os.memfd_create("disttrain")
    os.ftruncate(descriptor, nbytes)
    return descriptor


def _map(pid: int, descriptor: int, nbytes: int, token: bytes) -> mmap.mmap:
    path = f"/proc/{pid}/fd/{descriptor}"
    opened = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.pread(opened, _TOKEN_BYTES, 0) != token:
            raise Unshared(
                f"{path} is not the memory of a process of this job: the processes see other /proc"
            )
        return mmap.mmap(opened, nbytes)
    finally:
        os.close(opened)
