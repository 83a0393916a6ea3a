"""Arrays in another floating point type, rounded to the nearest number or at random."""

from __future__ import annotations

from typing import Any

import numpy

from disttrain.kernels import cuda, random
from disttrain.kernels.arrays import Array, get_array_module


def cast(x: Array, dtype: Any, key: Array | None = None) -> Array:
    """Return a copy of ``x`` in another floating point type; float64 becomes half precision by way of float32.

    Args:
        x: C-contiguous.
        dtype: a floating point type.
        key: seed, stream, draw and purpose (4 uint64), where ``x`` is: what becomes half precision is rounded up or
            down with a probability by the distance (:func:`disttrain.kernels.random.round_randomly`). None: to the
            nearest.
    """
    if get_array_module(x) is not numpy:
        return _cast_cuda(x, dtype, key)
    return cast_reference(x, dtype, key)


def cast_reference(x: Array, dtype: Any, key: Array | None = None) -> Array:
    """What :func:`cast` must equal, to the bit."""
    wide = x.astype(cuda.wide(dtype))
    if key is None or numpy.dtype(dtype).itemsize != 2:
        return wide.astype(dtype)
    return random.round_randomly(wide.reshape(-1), dtype, key).reshape(x.shape)


_program = cuda.Program(__file__, T=cuda.FLOATS, U=cuda.FLOATS, VECTOR=(0, 1))


def _cast_cuda(x: Array, dtype: Any, key: Array | None) -> Array:
    out = cuda.empty(x.shape, dtype)
    T, U = cuda.c_type(x.dtype), cuda.c_type(dtype)
    grid, vector = (cuda.blocks(x.size, 4096),), cuda.aligned(x, out)
    _program.launch("cast", grid, (256,), x, out, key, x.size, T=T, U=U, VECTOR=vector)
    return out
