"""Memory that the processes of one node share: a part for each, which all of them map.

The parts are anonymous files (``memfd_create``), which every process opens through ``/proc``: they have no name that a
killed job could leave behind, no limit but the machine's memory, and they live as long as an array in them, also after
MPI has ended. (Windows of ``MPI_Win_allocate_shared`` do not: Open MPI unmaps them in ``MPI_Finalize``.)
"""

import logging
import mmap
import os
import platform
import threading
import weakref
from bisect import insort
from collections import deque
from collections.abc import Sequence
from ctypes import addressof, c_char
from struct import Struct
from typing import Any

import numpy

from disttrain.collectives.direct import read_process
from disttrain.collectives.errors import PeerFailed
from disttrain.collectives.transport import Gather
from disttrain.kernels.arrays import Array, address

SPARE_BYTES = 1 << 30
"""What of a part is not for arrays: channels need places when arrays have taken all else. It costs no memory unused."""
_PAGE = mmap.PAGESIZE
_TOKEN_BYTES = 16
_PLACE = Struct(f"=qqq{_TOKEN_BYTES}s")
"""Where the others find a part: pid, descriptor, and what its first bytes are then, which also are at an address."""
_READABLE, _MAPPED, _NEITHER = b"r", b"m", b"n"
"""How a process reaches the others' memory: all of it, their parts of what is shared, or not at all."""
_GIVE_BACK_BYTES = 1 << 20
"""Free memory of this size goes back to the system at once."""
_logger = logging.getLogger("disttrain")
USED_UP = "the memory that the processes of this node share is used up"


class Unshared(RuntimeError):
    """Why processes cannot share memory."""


class NodeMemory:
    """The parts of all processes of a group on one node, as this process maps them.

    All of them make this together.

    Args:
        index: which of the processes this is.
        gather: tells bytes to all of them, and returns those of all.
        nbytes: the size of a part. It takes no memory before it is written.
        spare: so much of it :meth:`empty` leaves for :meth:`take`.

    Raises:
        Unshared: on all processes alike, if one of them cannot reach the part of another.
    """

    def __init__(self, index: int, gather: Gather, nbytes: int, spare: int = 0) -> None:
        self._process = os.getpid()
        self.index = index
        self._spare = spare
        self._nbytes = -(-nbytes // _PAGE) * _PAGE
        self._freed: deque[tuple[int, int]] = deque()
        self._free = [(_PAGE, self._nbytes - _PAGE)]  # the first page holds the token
        self._kept: dict[int, Array] = {}
        self._lock = threading.Lock()
        self._maps: list[mmap.mmap] = []
        reason = ""
        descriptor = -1
        first_bytes = os.urandom(_TOKEN_BYTES)
        seen = numpy.frombuffer(first_bytes, numpy.uint8)  # by the others, as long as this goes on
        try:
            descriptor = _anonymous_file(self._nbytes)
            os.pwrite(descriptor, first_bytes, 0)
        except (OSError, Unshared) as error:
            reason = str(error)
        places = gather(_PLACE.pack(os.getpid(), descriptor, address(seen), first_bytes))
        told = [_PLACE.unpack(place) for place in places]
        self._pids = [pid for pid, *_ in told]
        for pid, theirs, _, token in told:
            try:
                self._maps.append(_map(pid, theirs, self._nbytes, token))
            except (OSError, ValueError, Unshared) as error:
                reason = reason or str(error)
        mine = _NEITHER if reason else _READABLE if all(_can_read(*place) for place in told) else _MAPPED
        reached = gather(mine)  # also: nobody closes what another has still to open
        if descriptor >= 0:
            os.close(descriptor)
        if _NEITHER in reached:
            raise Unshared(reason or f"process {reached.index(_NEITHER)} could not map the others' memory")
        self.readable = _MAPPED not in reached
        """Whether each process can read all memory of all others (:meth:`read`)."""
        if not self.readable and index == 0:
            _logger.info(
                "large messages between processes of a node are copied twice: the system lets no process read "
                "another's memory (see kernel.yama.ptrace_scope, or what the container forbids)"
            )
        self._parts = [numpy.frombuffer(m, numpy.uint8) for m in self._maps]
        self._base = address(self._parts[self.index])

    def part(self, process: int, offset: int, nbytes: int) -> Array:
        """Return the bytes of the part of ``process`` from ``offset`` on."""
        return self._parts[process][offset : offset + nbytes]

    def read(self, process: int, place: int, out: Array) -> None:
        """Fill ``out`` with what is at an address of another process, shared or not.

        Raises:
            PeerFailed: the process has ended.
        """
        try:
            read_process(self._pids[process], place, out)
        except OSError as error:
            raise PeerFailed(f"another process went away in the middle of a transfer ({error})") from error

    def offset_of(self, x: Array) -> int:
        """Return where the C-contiguous array ``x`` begins in this process's part, or -1 if it is elsewhere."""
        if x.base is None:
            return -1  # it has memory of its own
        try:  # a quarter of the time that NumPy takes to tell
            offset = addressof(c_char.from_buffer(x)) - self._base
        except (
            TypeError,
            ValueError,
            BufferError,
        ):  # read-only or empty, or buffers have no word for its dtype
            offset = address(x) - self._base
        return offset if offset >= 0 and offset + x.nbytes <= self._nbytes else -1

    def empty(self, shape: int | Sequence[int], dtype: Any) -> Array | None:
        """Return a new array in this process's part, or ``None`` if there is no room. Its contents are arbitrary."""
        if os.getpid() != self._process:
            return None  # a forked child: its parent hands out this memory
        dtype = numpy.dtype(dtype)
        nbytes = int(numpy.prod(shape, dtype=numpy.int64)) * dtype.itemsize
        memory = self._take(nbytes, self._spare)
        return None if memory is None else memory[:nbytes].view(dtype).reshape(shape)

    def take(self, nbytes: int) -> Array:
        """Return bytes of this process's part, of which :meth:`empty` has left some.

        Raises:
            MemoryError: none are left.
        """
        memory = self._take(nbytes, 0)
        if memory is None:
            raise MemoryError(USED_UP)
        return memory[:nbytes]

    def _take(self, nbytes: int, spare: int) -> Array | None:
        """Return so many bytes, in whole pages, if as many as ``spare`` are left then."""
        size = max(1, -(-nbytes // _PAGE)) * _PAGE
        with self._lock:
            self._collect()
            if spare and sum(free for _, free in self._free) < size + spare:
                return None
            for i, (offset, free) in enumerate(self._free):
                if free >= size:
                    self._free[i : i + 1] = [(offset + size, free - size)] * (free > size)
                    break
            else:
                return None
        memory = numpy.frombuffer(memoryview(self._maps[self.index])[offset : offset + size], numpy.uint8)
        # Views of an array keep the array, so this is called when the last of them has gone.
        weakref.finalize(memory, self._freed.append, (offset, size)).atexit = False
        return memory

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
    os.fchmod(descriptor, 0o600)
    os.ftruncate(descriptor, nbytes)
    return descriptor


def _can_read(pid: int, _: int, place: int, token: bytes) -> bool:
    found = numpy.empty(_TOKEN_BYTES, numpy.uint8)
    try:
        read_process(pid, place, found)
    except OSError:
        return False
    return found.tobytes() == token


def part_bytes(processes: int) -> int:
    """Return the size of a process's part where so many share a machine: its share of what the machine has, and more
    for channels.
    """
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // processes + SPARE_BYTES


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
