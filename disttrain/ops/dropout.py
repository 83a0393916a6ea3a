"""Dropout. The random bits, or the key that they are drawn by, are an argument: whoever calls decides about them."""

from typing import Any

import numpy as np

from disttrain.kernels import buffers
from disttrain.kernels import dropout as kernels
from disttrain.ops.types import Array, Result, call, get_array_module, is_array


def dropout(x: Array, keep: Array, *, p: float) -> Result:
    """``x / (1 - p)`` where kept, else 0 (Srivastava et al. 2014).

    Args:
        x: any floating point array.
        keep: of the shape of ``x``, or one that broadcasts to it (one number for a channel): booleans (kept or not),
            or uint32 random bits: kept are those that are at least ``p * 2**32``.
        p: probability that an element is dropped, in [0, 1].

    Raises:
        ValueError: ``p`` is outside, or ``keep`` does not fit to ``x``.
        TypeError: ``keep`` is neither boolean nor uint32.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p must be in [0, 1], got {p}")
    if keep.shape != x.shape and np.broadcast_shapes(keep.shape, x.shape) != x.shape:
        raise ValueError(f"dropout: keep must have the shape of x, {x.shape}, got {keep.shape}")
    if keep.dtype == np.uint32:
        threshold = round(p * 2**32)
        bits, keep = keep, buffers.zeros(keep.shape, np.bool_, keep)
        if threshold < 2**32:
            get_array_module(bits).greater_equal(bits, np.uint32(threshold), out=keep)
    elif keep.dtype != np.bool_:
        raise TypeError(f"dropout: keep must be bool or uint32, got {keep.dtype}")
    scale = 1 / (1 - p) if p < 1 else 0.0
    return _masked(x, keep, scale), (keep, scale), dropout_vjp


def dropout_vjp(g: Any, needs: tuple[bool, ...], keep: Any, scale: float) -> tuple[Any, ...]:
    if is_array(g):
        return _masked(g, keep, scale), None
    return g * keep * scale, None


def _masked(x: Array, keep: Array, scale: float) -> Array:
    xp = get_array_module(x)
    out = xp.multiply(x, keep, out=buffers.spare(x, keep))
    return xp.multiply(out, x.dtype.type(scale), out=out if out.ndim else None)


def dropout_by_key(x: Array, key: Array, *, p: float) -> Result:
    """:func:`dropout` by 32 bits for each element of ``x``, those of a draw: no mask is kept, it is drawn again.

    Args:
        x: any floating point array, taken in row-major order.
        key: seed, stream, draw and purpose of the draw, (4,) uint64, or their bits as int64.
        p: probability that an element is dropped, in [0, 1].
    """
    out = kernels.dropout(buffers.contiguous(x), key.view(np.uint64), p)
    return out, (key.view(np.int64), p), dropout_by_key_vjp  # a type that Tensors have


def dropout_by_key_vjp(g: Any, needs: tuple[bool, ...], key: Any, p: float) -> tuple[Any, ...]:
    return call(dropout_by_key, g, key, p=p), None
