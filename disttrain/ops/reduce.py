"""Operations that reduce axes. ``axes`` is a sorted tuple of axes that are not negative.

Half-precision sums accumulate in float32.
"""

import math
from typing import Any

import numpy as np

from disttrain.ops import elementwise, shape
from disttrain.ops.types import Array, Result, call, get_array_module, no_vjp

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]
Axes = tuple[int, ...]


def _spread(g: Any, size: tuple[int, ...], axes: Axes, keepdims: bool) -> Any:
    """Return ``g``, the gradient of a reduction, repeated over the axes that were reduced."""
    if not keepdims:
        g = call(shape.reshape, g, shape=_kept(size, axes))
    return call(shape.broadcast_to, g, shape=size)


def _kept(size: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    return tuple(1 if i in axes else n for i, n in enumerate(size))


def sum(x: Array, *, axes: Axes, keepdims: bool) -> Result:
    """The sum over ``axes``."""
    wide = np.float32 if x.dtype.kind in "fV" and x.dtype.itemsize == 2 else x.dtype
    out = get_array_module(x).sum(x, axis=axes, keepdims=keepdims, dtype=wide)
    return out.astype(x.dtype, copy=False), (x.shape, axes, keepdims), sum_vjp


def sum_vjp(g: Any, needs: Needs, size: tuple[int, ...], axes: Axes, keepdims: bool) -> Grads:
    return (_spread(g, size, axes, keepdims),)


def mean(x: Array, *, axes: Axes, keepdims: bool) -> Result:
    """The mean over ``axes``; nan if they hold nothing."""
    n = math.prod(x.shape[a] for a in axes)
    wide = np.float32 if x.dtype.itemsize == 2 else x.dtype
    total = get_array_module(x).sum(x, axis=axes, keepdims=keepdims, dtype=wide)
    with np.errstate(invalid="ignore"):
        out = total / wide(n) if wide is np.float32 else total / x.dtype.type(n)
    return out.astype(x.dtype, copy=False), (x.shape, axes, keepdims, n), mean_vjp


def mean_vjp(g: Any, needs: Needs, size: tuple[int, ...], axes: Axes, keepdims: bool, n: int) -> Grads:
    return (_spread(g * (1 / n) if n else g, size, axes, keepdims),)


def var(x: Array, *, axes: Axes, keepdims: bool, correction: float) -> Result:
    """The variance over ``axes``: squared distances from the mean, divided by their number less ``correction``."""
    n = math.prod(x.shape[a] for a in axes)
    wide = x.astype(np.float32) if x.dtype.itemsize == 2 else x
    xp = get_array_module(x)
    divisor = max(n - correction, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = wide - wide.sum(axis=axes, keepdims=True) / wide.dtype.type(n)
        out = xp.sum(centre * centre, axis=axes, keepdims=keepdims) / wide.dtype.type(divisor)
    return out.astype(x.dtype, copy=False), (x, axes, keepdims, n, divisor), var_vjp


def var_vjp(g: Any, needs: Needs, x: Any, axes: Axes, keepdims: bool, n: int, divisor: float) -> Grads:
    centre = x - call(mean, x, axes=axes, keepdims=True)
    return (_spread(g, x.shape, axes, keepdims) * centre * (2 / divisor if divisor else math.nan),)


def prod(x: Array, *, axes: Axes, keepdims: bool) -> Result:
    """The product over ``axes``."""
    out = get_array_module(x).prod(x, axis=axes, keepdims=keepdims, dtype=x.dtype)
    return out, (x, axes, keepdims), prod_vjp


def prod_vjp(g: Any, needs: Needs, x: Any, axes: Axes, keepdims: bool) -> Grads:
    # The product of all others, so that zeros have a gradient too: products from the left times from the right.
    spread = _spread(g, x.shape, axes, keepdims)
    kept = tuple(a for a in range(x.ndim) if a not in axes)
    order = (*kept, *axes)
    moved = call(shape.transpose, x, axes=order)
    n = math.prod(x.shape[a] for a in axes)
    flat = call(shape.reshape, moved, shape=(*[x.shape[a] for a in kept], n))
    last = flat.ndim - 1
    others = []
    for i in range(n):
        rest = [
            call(shape.index, flat, key=(..., slice(0, i))),
            call(shape.index, flat, key=(..., slice(i + 1, n))),
        ]
        joined = call(shape.concatenate, *rest, axis=last)
        others.append(call(prod, joined, axes=(last,), keepdims=False))
    if not others:
        return (spread,)
    stacked = call(shape.reshape, call(shape.stack, *others, axis=last), shape=moved.shape)
    back = tuple(int(i) for i in np.argsort(order))
    return (spread * call(shape.transpose, stacked, axes=back),)


def amax(x: Array, *, axes: Axes, keepdims: bool) -> Result:
    """The largest over ``axes``. Equal ones share the gradient."""
    out = get_array_module(x).max(x, axis=axes, keepdims=keepdims)
    return out, (x, np.asarray(out) if not hasattr(out, "ndim") else out, axes, keepdims), extreme_vjp


def amin(x: Array, *, axes: Axes, keepdims: bool) -> Result:
    """The smallest over ``axes``. Equal ones share the gradient."""
    out = get_array_module(x).min(x, axis=axes, keepdims=keepdims)
    return out, (x, np.asarray(out) if not hasattr(out, "ndim") else out, axes, keepdims), extreme_vjp


def extreme_vjp(g: Any, needs: Needs, x: Any, out: Any, axes: Axes, keepdims: bool) -> Grads:
    out = _spread(out, x.shape, axes, keepdims)
    both_nan = call(elementwise.logical_and, call(elementwise.isnan, x), call(elementwise.isnan, out))
    hit = call(elementwise.logical_or, call(elementwise.eq, x, out), both_nan)
    share = call(shape.astype, hit, dtype=np.dtype(np.float64))
    share = share / call(sum, share, axes=axes, keepdims=True)
    return (_spread(g, x.shape, axes, keepdims) * call(shape.astype, share, dtype=_dtype(x)),)


def _dtype(x: Any) -> np.dtype[Any]:
    return x.dtype if isinstance(x.dtype, np.dtype) else x.dtype.numpy  # of an array, or of a Tensor


def max_along(x: Array, *, axis: int, keepdims: bool) -> Result:
    """The largest along one axis, and the index of the first that is."""
    return _extreme_along(x, get_array_module(x).argmax(x, axis), axis, keepdims)


def min_along(x: Array, *, axis: int, keepdims: bool) -> Result:
    """The smallest along one axis, and the index of the first that is."""
    return _extreme_along(x, get_array_module(x).argmin(x, axis), axis, keepdims)


def _extreme_along(x: Array, where: Array, axis: int, keepdims: bool) -> Result:
    xp = get_array_module(x)
    where = xp.expand_dims(xp.asarray(where), axis)
    out = xp.take_along_axis(x, where, axis)
    size = x.shape
    if not keepdims:
        out, flat = out.squeeze(axis), where.squeeze(axis)
    else:
        flat = where
    return (out, flat.copy()), (where, size, axis, keepdims), along_vjp


def along_vjp(g: Any, needs: Needs, where: Any, size: tuple[int, ...], axis: int, keepdims: bool) -> Grads:
    from disttrain.ops.scatter import scatter_add_zeros

    top = g[0]
    if not keepdims:
        top = call(shape.reshape, top, shape=_kept(size, (axis,)))
    return (call(scatter_add_zeros, top, where, axis=axis, shape=size),)


def argmax(x: Array, *, axis: int | None, keepdims: bool) -> Result:
    """The index of the first largest, of all elements or along one axis."""
    return get_array_module(x).argmax(x, axis, keepdims=keepdims), (), no_vjp


def argmin(x: Array, *, axis: int | None, keepdims: bool) -> Result:
    """The index of the first smallest, of all elements or along one axis."""
    return get_array_module(x).argmin(x, axis, keepdims=keepdims), (), no_vjp


def all(x: Array, *, axes: Axes, keepdims: bool) -> Result:
    """Whether none is zero."""
    return get_array_module(x).all(x, axis=axes, keepdims=keepdims), (), no_vjp


def any(x: Array, *, axes: Axes, keepdims: bool) -> Result:
    """Whether one is not zero."""
    return get_array_module(x).any(x, axis=axes, keepdims=keepdims), (), no_vjp


def logsumexp(x: Array, *, axes: Axes, keepdims: bool) -> Result:
    """``log(sum(exp(x)))`` over ``axes``, without overflow."""
    xp = get_array_module(x)
    wide = x.astype(np.float32) if x.dtype.itemsize == 2 else x
    top = xp.max(wide, axis=axes, keepdims=True) if x.size else xp.zeros(_kept(x.shape, axes), wide.dtype)
    top = xp.where(xp.isfinite(top), top, wide.dtype.type(0))
    with np.errstate(divide="ignore"):
        out = xp.log(xp.sum(xp.exp(wide - top), axis=axes, keepdims=True)) + top
    if not keepdims:
        out = out.squeeze(axes)
    out = out.astype(x.dtype, copy=False)
    return out, (x, out, axes, keepdims), logsumexp_vjp


def logsumexp_vjp(g: Any, needs: Needs, x: Any, out: Any, axes: Axes, keepdims: bool) -> Grads:
    share = call(elementwise.exp, x - _spread(out, x.shape, axes, keepdims))
    return (_spread(g, x.shape, axes, keepdims) * share,)


def cumsum(x: Array, *, axis: int) -> Result:
    """The sums of the first 1, 2, 3 … elements along ``axis``."""
    wide = np.float32 if x.dtype.kind in "fV" and x.dtype.itemsize == 2 else x.dtype
    return get_array_module(x).cumsum(x, axis, dtype=wide).astype(x.dtype, copy=False), (axis,), cumsum_vjp


def cumsum_vjp(g: Any, needs: Needs, axis: int) -> Grads:
    return (call(shape.flip, call(cumsum, call(shape.flip, g, axes=(axis,)), axis=axis), axes=(axis,)),)
