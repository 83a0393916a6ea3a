"""Memory that tensors are copied into, and read from and written to a disk through."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import sys
from collections.abc import Callable
from typing import Final

import numpy as np

from disttrain.kernels.arrays import Array, address

_PAGE: Final = mmap.PAGESIZE
_LARGE: Final = 4 << 20
_MADV_POPULATE_WRITE: Final = 23


def new_memory(nbytes: int) -> Array:
    """Return new memory for bytes by the hundred millions.

    NumPy asks for large pages. A virtual machine that gives free ones back to its host has to fetch each anew, which
    takes several times as long as filling it; small ones cost the same everywhere.
    """
    return np.empty(nbytes, np.uint8) if nbytes < _LARGE else _mapped(nbytes)


def new_block(nbytes: int) -> Array:
    """Return new memory for bytes that are read from a disk, or written to it, past the page cache.

    It begins where a page does, as disks want it, and is of large pages where there are any: of small ones a request
    can name so few that it takes up to twice as long.
    """
    return _mapped(nbytes, hasattr(mmap, "MADV_HUGEPAGE"))


def _mapped(nbytes: int, large_pages: bool = False) -> Array:
    memory = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if large_pages:
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def copy(out: Array, data: Array) -> None:
    """Copy bytes to memory that may be new: all at once it costs the kernel two thirds of what it costs page by page.

    Other threads run meanwhile.
    """
    begin = address(out)
    first = -(-begin // _PAGE) * _PAGE
    last = (begin + out.nbytes) // _PAGE * _PAGE
    if first < last:
        _advise()(
            first, last - first, _MADV_POPULATE_WRITE
        )  # a kernel before 5.14 says no, and takes page by page
    np.copyto(out, data)


@functools.cache
def _advise() -> Callable[[int, int, int], int]:
    """Return ``madvise(2)``; that of Python's mmap keeps other threads from running."""
    if sys.platform != "linux":
        return lambda *_: -1
    found = ctypes.CDLL(None).madvise
    found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return found
