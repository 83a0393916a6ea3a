"""Operations that reduce axes. ``axes`` is a sorted tuple of axes that are not negative.

Half-precision sums accumulate in float32.
"""

import math
from typing import Any

import numpy as np

from disttrain.kernels import buffers
from disttrain.ops import elementwise, scan, shape
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
    with np.errstate(all="ignore"):
        out = buffers.convert(buffers.sum_over(x, axes, wide, keepdims), x.dtype)
    return shape.row_major(out), (x.shape, axes, keepdims), sum_vjp


def sum_vjp(g: Any, needs: Needs, size: tuple[int, ...], axes: Axes, keepdims: bool) -> Grads:
    return (_spread(g, size, axes, keepdims),)


def mean(x: Array, *, axes: Axes, keepdims: bool) -> Result:
    """The mean over ``axes``; nan if they hold nothing."""
    n = math.prod(x.shape[a] for a in axes)
    wide = np.float32 if x.dtype.itemsize == 2 else x.dtype
    with np.errstate(all="ignore"):
        total = buffers.sum_over(x, axes, wide, keepdims)
        out = total / wide(n) if wide is np.float32 else total / x.dtype.type(n)
    return shape.row_major(buffers.convert(out, x.dtype)), (x.shape, axes, keepdims, n), mean_vjp


def mean_vjp(g: Any, needs: Needs, size: tuple[int, ...], axes: Axes, keepdims: bool, n: int) -> Grads:
    return (_spread(g * (1 / n) if n else g, size, axes, keepdims),)


def var(x: Array, *, axes: Axes, keepdims: bool, correction: float) -> Result:
    """The variance over ``axes``: squared distances from the mean, divided by their number less ``correction``."""
    n = math.prod(x.shape[a] for a in axes)
    wide = x.astype(np.float32) if x.dtype.itemsize == 2 else x
    xp = get_array_module(x)
    divisor = max(n - correction, 0)
    with np.errstate(all="ignore"):
        centre = wide - wide.sum(axis=axes, keepdims=True) / wide.dtype.type(n)
        out = xp.sum(centre * centre, axis=axes, keepdims=keepdims) / wide.dtype.type(divisor)
        out = shape.row_major(buffers.convert(out, x.dtype))
    return out, (x, axes, keepdims, n, divisor), var_vjp


def var_vjp(g: Any, needs: Needs, x: Any, axes: Axes, keepdims: bool, n: int, divisor: float) -> Grads:
    centre = x - call(mean, x, axes=axes, keepdims=True)
    return (_spread(g, x.shape, axes, keepdims) * centre * (2 / divisor if divisor else math.nan),)


def prod(x: Array, *, axes: Axes, keepdims: bool) -> Result:
    """The product over ``axes``."""
    with np.errstate(all="ignore"):
        out = get_array_module(x).prod(x, axis=axes, keepdims=keepdims, dtype=x.dtype)
    return shape.row_major(out), (x, axes, keepdims), prod_vjp


def prod_vjp(g: Any, needs: Needs, x: Any, axes: Axes, keepdims: bool) -> Grads:
    # The product of all others, so that zeros have a gradient too: products from the left times from the right.
    kept = tuple(a for a in range(x.ndim) if a not in axes)
    order = (*kept, *axes)
    moved = call(shape.transpose, x, axes=order)
    n = math.prod(x.shape[a] for a in axes)
    if not n or not math.prod(x.shape):
        return (_spread(g, x.shape, axes, keepdims),)
    last = len(kept)
    flat = call(shape.reshape, moved, shape=(*[x.shape[a] for a in kept], n))
    others = _before(flat, last) * call(
        shape.flip, _before(call(shape.flip, flat, axes=(last,)), last), axes=(last,)
    )
    back = tuple(int(i) for i in np.argsort(order))
    others = call(shape.transpose, call(shape.reshape, others, shape=moved.shape), axes=back)
    return (_spread(g, x.shape, axes, keepdims) * others,)


def _before(x: Any, axis: int) -> Any:
    """Return the products of all elements along the last axis before each."""
    head = (slice(None),) * axis
    one = call(shape.index, x, key=(*head, slice(0, 1))) * 0 + 1
    rest = call(shape.index, x, key=(*head, slice(0, x.shape[axis] - 1)))
    return call(shape.concatenate, one, call(scan.cumprod, rest, axis=axis), axis=axis)


def amax(x: Array, *, axes: Axes, keepdims: bool) -> Result:
    """The largest over ``axes``. Equal ones share the gradient."""
    with np.errstate(all="ignore"):  # bfloat16's comparison with nan warns
        out = shape.row_major(get_array_module(x).max(x, axis=axes, keepdims=keepdims))
    return out, (x, np.asarray(out) if not hasattr(out, "ndim") else out, axes, keepdims), extreme_vjp


def amin(x: Array, *, axes: Axes, keepdims: bool) -> Result:
    """The smallest over ``axes``. Equal ones share the gradient."""
    with np.errstate(all="ignore"):
        out = shape.row_major(get_array_module(x).min(x, axis=axes, keepdims=keepdims))
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
    return chosen_along(x, get_array_module(x).argmax(x, axis), axis, keepdims)


def min_along(x: Array, *, axis: int, keepdims: bool) -> Result:
    """The smallest along one axis, and the index of the first that is."""
    return chosen_along(x, get_array_module(x).argmin(x, axis), axis, keepdims)


def chosen_along(x: Array, where: Array, axis: int, keepdims: bool) -> tuple[Any, tuple[Any, ...], Any]:
    """Return what an op does that chooses one element along an axis: the elements at ``where``, and ``where``."""
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
    return shape.row_major(get_array_module(x).all(x, axis=axes, keepdims=keepdims)), (), no_vjp


def any(x: Array, *, axes: Axes, keepdims: bool) -> Result:
    """Whether one is not zero."""
    return shape.row_major(get_array_module(x).any(x, axis=axes, keepdims=keepdims)), (), no_vjp


def logsumexp(x: Array, *, axes: Axes, keepdims: bool) -> Result:
    """``log(sum(exp(x)))`` over ``axes``, without overflow."""
    xp = get_array_module(x)
    wide = x.astype(np.float32) if x.dtype.itemsize == 2 else x
    top = (
        xp.max(wide, axis=axes, keepdims=True)
        if x.size
        else buffers.zeros(_kept(x.shape, axes), wide.dtype, x)
    )
    with np.errstate(all="ignore"):
        top = xp.where(xp.isfinite(top), top, wide.dtype.type(0))
        out = xp.log(xp.sum(xp.exp(wide - top), axis=axes, keepdims=True)) + top
        out = shape.row_major(buffers.convert(out if keepdims else out.squeeze(axes), x.dtype))
    return out, (x, out, axes, keepdims), logsumexp_vjp


def logsumexp_vjp(g: Any, needs: Needs, x: Any, out: Any, axes: Axes, keepdims: bool) -> Grads:
    share = call(elementwise.exp, x - _spread(out, x.shape, axes, keepdims))
    return (_spread(g, x.shape, axes, keepdims) * share,)


def root(x: Array) -> Result:
    """The square root, of a variance: the gradient at zero is zero, PyTorch's choice."""
    y = get_array_module(x).sqrt(x)
    return y, (y,), root_vjp


def root_vjp(g: Any, needs: Needs, y: Any) -> Grads:
    zero = call(elementwise.eq, y, y * 0)
    return (call(elementwise.where, zero, g * 0, call(elementwise.div, g, y + y)),)


def vector_norm(x: Array, *, order: float, axes: Axes, keepdims: bool) -> Result:
    """``sum(|x| ** order) ** (1 / order)`` over ``axes``; the number of elements that are not zero for order 0.

    The gradient at zero is zero, PyTorch's choice; the largest share that of an infinite order.
    """
    xp = get_array_module(x)
    wide = x.astype(np.float32) if x.dtype.itemsize == 2 else x
    over: dict[str, Any] = {"axis": axes, "keepdims": keepdims}
    with np.errstate(all="ignore"):
        if order == 2:
            out = xp.sqrt(xp.sum(wide * wide, **over))
        elif order == math.inf:
            out = xp.max(xp.abs(wide), **over)
        elif order == -math.inf:
            out = xp.min(xp.abs(wide), **over)
        elif order == 1:
            out = xp.sum(xp.abs(wide), **over)
        elif order == 0:
            out = xp.sum(wide != 0, **over)
        else:
            out = xp.sum(xp.abs(wide) ** order, **over) ** (1 / order)
    with np.errstate(all="ignore"):
        out = buffers.convert(np.asarray(out), x.dtype) if xp is np else buffers.convert(out, x.dtype)
    out = shape.row_major(out)
    return out, (x, out, order, axes, keepdims), vector_norm_vjp


def vector_norm_vjp(
    g: Any, needs: Needs, x: Any, out: Any, order: float, axes: Axes, keepdims: bool
) -> Grads:
    if order == 0:
        return (_spread(g, x.shape, axes, keepdims) * 0,)
    signs = call(elementwise.sign, x)
    if order == 1:
        return (_spread(g, x.shape, axes, keepdims) * signs,)
    if math.isinf(order):
        (share,) = extreme_vjp(g, needs, call(elementwise.abs, x), out, axes, keepdims)
        return (share * signs,)
    g, out = (_spread(t, x.shape, axes, keepdims) for t in (g, out))
    if order == 2:
        return (g * _quotient(x, out),)
    powers = call(elementwise.abs, x)
    if order < 2:  # |x| ** (order - 1) is steep or infinite at zero
        nothing = call(elementwise.eq, powers, powers * 0)
        powers = call(elementwise.where, nothing, powers * 0 + 1, powers)
        powers = call(elementwise.where, nothing, powers * 0, powers ** (order - 1))
        return (g * signs * _quotient(powers, out ** (order - 1)),)
    powers = powers ** (order - 1)
    nowhere = call(elementwise.eq, out, out * 0)
    out = call(elementwise.where, nowhere, out * 0 + 1, out)
    return (g * signs * powers / out ** (order - 1),)


def _quotient(x: Any, y: Any) -> Any:
    """Return ``x / y``; 0 where ``y`` is 0."""
    zero = call(elementwise.eq, y, y * 0)
    return call(elementwise.where, zero, x * 0, call(elementwise.div, x, y))
