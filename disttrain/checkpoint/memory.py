"""Memory that tensors are copied into, and read from and written to a disk through."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable
from typing import Final

import numpy as np

from disttrain.kernels import pages
from disttrain.kernels.arrays import Array, address

_LARGE: Final = 4 << 20
_ALIGN: Final = 64
_HOST: Final = np.empty(0, np.uint8)
_MADV_WIPEONFORK: Final = 18
_MADV_POPULATE_WRITE: Final = 23


def new_memory(nbytes: int) -> Array:
    """Return new memory for bytes by the hundred millions; its pages are there. Other threads run meanwhile.

    The kernel gives them all at once in two thirds of the time that they cost one by one. They are small: NumPy asks
    for large ones, and a virtual machine that gives free ones back to its host has to fetch each anew, which takes
    several times as long as filling it.
    """
    if nbytes < _LARGE:
        return np.empty(nbytes, np.uint8)
    memory = _mapped(nbytes)
    # Kernels before 5.14 refuse, and give them one by one.
    _advise()(address(memory), nbytes, _MADV_POPULATE_WRITE)
    return memory


def new_block(nbytes: int) -> Array:
    """Return new memory for bytes that are read from a disk, or written to it, past the page cache.

    It begins where a page does, as disks want it, and is of large pages if it fills any: of small ones a request can
    name so few that it takes up to twice as long.
    """
    return _mapped(nbytes) if nbytes < pages.SIZE else pages.zeros(nbytes, np.uint8, _HOST)


def _mapped(nbytes: int) -> Array:
    return np.frombuffer(mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)


class Arena:
    """Memory that is used again and again: pages that were used before are copied to at full speed."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)
        self._used = 0

    @property
    def room(self) -> int:
        """How many bytes can still be taken."""
        return len(self._memory) - self._used

    def make_room(self, nbytes: int) -> None:
        """Have all of it free, and at least so many bytes."""
        self._used = 0
        if len(self._memory) >= nbytes:
            return
        self._memory = np.empty(0, np.uint8)  # first: the old memory may be needed for the new
        self._memory = new_memory(nbytes)
        if nbytes >= _LARGE:
            # Workers of a loader, which are forked, do not need it: no page of it is copied when it is written to here.
            _advise()(address(self._memory), nbytes, _MADV_WIPEONFORK)

    def take(self, nbytes: int) -> Array:
        """Return the next bytes, of which there are as many as are :func:`padded`."""
        begin, self._used = self._used, self._used + padded(nbytes)
        return self._memory[begin : begin + nbytes]


def padded(nbytes: int) -> int:
    """Return how many bytes of an arena are taken for so many, so that the next ones are aligned."""
    return -(-nbytes // _ALIGN) * _ALIGN


@functools.cache
def _advise() -> Callable[[int, int, int], int]:
    """Return ``madvise(2)``; that of Python's mmap keeps other threads from running."""
    if sys.platform != "linux":
        return lambda *_: -1
    found = ctypes.CDLL(None).madvise
    found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return found
