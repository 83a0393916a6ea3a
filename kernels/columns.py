"""Sums over the rows of a matrix: the gradient of a bias."""

from __future__ import annotations

import numpy

from disttrain.kernels import buffers, cuda
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import jit

_SMALL = 4096
"""Below this many elements NumPy's sum is quicker than a call of the kernel; the results are equal."""


def column_sums(x: Array) -> Array:
    """Return the sum of the rows of ``x`` (M, C), of its type.

    On the CPU row by row. On a GPU in an order that depends on the shape alone: in float32 (float64 for float64) within
    parts of the rows, in float64 from part to part, rounded once.
    """
    if get_array_module(x) is not numpy:
        return _column_sums_cuda(x)
    if x.size < _SMALL or x.dtype not in (numpy.float32, numpy.float64) or not x.flags.c_contiguous:
        return column_sums_reference(x)
    out = buffers.copy(x[0])
    _column_sums(x, out)
    return out


def column_sums_reference(x: Array) -> Array:
    """What :func:`column_sums` must equal up to rounding."""
    kind = cuda.wide(x.dtype)
    return buffers.convert(x.sum(0, dtype=kind, out=buffers.empty(x.shape[1], kind, x)), x.dtype)


@jit
def _column_sums(x, out):  # type: ignore[no-untyped-def]
    M, C = x.shape
    m = 1
    while m + 4 <= M:
        for c in range(C):
            out[c] = (((out[c] + x[m, c]) + x[m + 1, c]) + x[m + 2, c]) + x[m + 3, c]
        m += 4
    while m < M:
        for c in range(C):
            out[c] = out[c] + x[m, c]
        m += 1


_program = cuda.Program(__file__, T=cuda.FLOATS)


def _column_sums_cuda(x: Array) -> Array:
    M, C = x.shape
    each = cuda.part(M)
    parts, T = cuda.blocks(M, each), cuda.c_type(x.dtype)
    part, out = cuda.empty((parts, C), cuda.wide(x.dtype)), cuda.empty(C, x.dtype)
    _program.launch("part_sums", (cuda.blocks(C, 32), parts), (32, 8), x, part, each, M, C, T=T)
    _program.launch("merge", (cuda.blocks(C, 256),), (256,), part, out, parts, C, T=T)
    return out
