"""Memory of long-lived large arrays in large pages.

A step goes through all parameters, gradients and moments. In pages of 4 KiB each of these pages is looked up anew,
which costs Adam a quarter of its time; Linux gives pages of 2 MiB, whose first use also costs a fourth of that of as
much memory in small ones, where it is asked to (``madvise(2)``).
"""

from __future__ import annotations

import contextlib
import math
import mmap
from typing import Any

import numpy

from disttrain.kernels.arrays import Array, address, get_array_module

SIZE = 2 << 20
"""Bytes of a large page."""


def zeros(size: int, dtype: Any, like: Array) -> Array:
    """Return ``size`` zeros, flat, on the device of ``like``; on the CPU in pages of 2 MiB if they fill any.

    Where the system has no such pages, or none left, they are in pages as any.
    """
    xp, dtype = get_array_module(like), numpy.dtype(dtype)
    nbytes = size * dtype.itemsize
    if xp is not numpy or nbytes < SIZE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return xp.zeros(size, dtype)
    whole = math.ceil(nbytes / SIZE) * SIZE
    memory = mmap.mmap(-1, whole + SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -address(numpy.frombuffer(memory, numpy.uint8)) % SIZE
    with contextlib.suppress(OSError):  # the kernel was built without them
        memory.madvise(mmap.MADV_HUGEPAGE, start, whole)
    return numpy.ndarray(size, dtype, memory, start)
