"""Sums over the rows of a matrix: the gradient of a bias."""

from __future__ import annotations

import numpy

from disttrain.kernels import cuda
from disttrain.kernels.arrays import Array, get_array_module


def column_sums(x: Array) -> Array:
    """Return the sum of the rows of ``x`` (M, C), of its type.

    On a GPU in an order that depends on the shape alone: in float32 (float64 for float64) within parts of the rows, in
    float64 from part to part, rounded once.
    """
    if get_array_module(x) is not numpy:
        return _column_sums_cuda(x)
    return column_sums_reference(x)


def column_sums_reference(x: Array) -> Array:
    """What :func:`column_sums` must equal up to rounding."""
    return x.sum(0, dtype=cuda.wide(x.dtype)).astype(x.dtype, copy=False)


_program = cuda.Program(__file__, T=cuda.FLOATS)


def _column_sums_cuda(x: Array) -> Array:
    M, C = x.shape
    each = cuda.part(M)
    parts, T = cuda.blocks(M, each), cuda.c_type(x.dtype)
    part, out = cuda.empty((parts, C), cuda.wide(x.dtype)), cuda.empty(C, x.dtype)
    _program.launch("part_sums", (cuda.blocks(C, 32), parts), (32, 8), x, part, each, M, C, T=T)
    _program.launch("merge", (cuda.blocks(C, 256),), (256,), part, out, parts, C, T=T)
    return out
