"""Dropout whose mask is made where it is used, from a key, and made again for the gradient: it is never stored."""

from __future__ import annotations

import numpy

from disttrain.kernels import cuda, random
from disttrain.kernels.arrays import Array, get_array_module


def dropout(x: Array, key: Array, p: float) -> Array:
    """Return ``x / (1 - p)`` where kept, else 0; also the gradient of ``x``, given that of the result.

    Args:
        x: C-contiguous array of floating point numbers.
        key: seed, stream, draw and purpose (4 uint64), where ``x`` is. Element ``i`` is kept if word ``i`` of 32 bits
            of that draw is at least ``p * 2**32``.
        p: probability that an element is dropped, in [0, 1].
    """
    if get_array_module(x) is not numpy:
        return _dropout_cuda(x, key, p)
    return dropout_reference(x, key, p)


def dropout_reference(x: Array, key: Array, p: float) -> Array:
    """What :func:`dropout` must equal, to the bit."""
    bits = random.words(key, -(-x.size // 2)).view(numpy.uint32)[: x.size].reshape(x.shape)
    return (x * (bits >= _threshold(p))) * x.dtype.type(_scale(p))


def _threshold(p: float) -> int:
    return round(p * 2**32)


def _scale(p: float) -> float:
    return 1 / (1 - p) if p < 1 else 0.0


_program = cuda.Program(__file__, T=cuda.FLOATS, VECTOR=(0, 1))


def _dropout_cuda(x: Array, key: Array, p: float) -> Array:
    out = cuda.empty(x.shape, x.dtype)
    args = (x, out, key, _threshold(p), _scale(p), x.size)
    vector = cuda.vector(8, x, out)
    _program.launch(
        *("dropout", (cuda.blocks(x.size, 8 * 256),), (256,), *args), T=cuda.c_type(x.dtype), VECTOR=vector
    )
    return out
