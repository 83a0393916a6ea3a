"""Operations that run along one axis and give a result for each beginning of it.

Half-precision sums and products accumulate in float32.
"""

from typing import Any

import numpy as np

from disttrain.kernels import buffers
from disttrain.ops import elementwise, shape
from disttrain.ops.types import Array, Result, call, get_array_module, is_array

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]


def _accumulator(x: Array) -> Any:
    return np.float32 if x.dtype.kind in "fV" and x.dtype.itemsize == 2 else x.dtype


def _backwards(g: Any, axis: int) -> Any:
    return call(shape.flip, g, axes=(axis,))


def cumsum(x: Array, *, axis: int) -> Result:
    """The sums of the first 1, 2, 3 … elements along ``axis``."""
    with np.errstate(all="ignore"):
        out = buffers.convert(get_array_module(x).cumsum(x, axis, dtype=_accumulator(x)), x.dtype)
    return shape.row_major(out), (axis,), cumsum_vjp


def cumsum_vjp(g: Any, needs: Needs, axis: int) -> Grads:
    return (_backwards(call(cumsum, _backwards(g, axis), axis=axis), axis),)


def cumprod(x: Array, *, axis: int) -> Result:
    """The products of the first 1, 2, 3 … elements along ``axis``."""
    with np.errstate(all="ignore"):
        out = buffers.convert(get_array_module(x).cumprod(x, axis, dtype=_accumulator(x)), x.dtype)
    out = shape.row_major(out)
    return out, (x, out, axis), cumprod_vjp


def cumprod_vjp(g: Any, needs: Needs, x: Any, out: Any, axis: int) -> Grads:
    if not bool((x == 0).any()):
        (total,) = cumsum_vjp(g * out, needs, axis)
        return (total / x,)
    # A zero has a gradient too, and hides those behind it: the products of all others, one element after the other.
    n = x.shape[axis]

    def part(a: Any, start: int, stop: int) -> Any:
        return call(shape.index, a, key=(slice(None),) * axis + (slice(start, stop), ...))

    grads = []
    for k in range(n):
        there = part(g, k, k + 1)
        if k + 1 < n:
            rest = part(g, k + 1, n) * call(cumprod, part(x, k + 1, n), axis=axis)
            total = call(cumsum, rest, axis=axis)
            there = there + part(total, n - k - 2, n - k - 1)
        grads.append(there if k == 0 else there * part(out, k - 1, k))
    return (call(shape.concatenate, *grads, axis=axis),)


def logcumsumexp(x: Array, *, axis: int) -> Result:
    """``log(cumsum(exp(x)))`` along ``axis``, without overflow."""
    wide = buffers.convert(x, _accumulator(x))
    with np.errstate(all="ignore"):
        out = buffers.convert(get_array_module(x).logaddexp.accumulate(wide, axis), x.dtype)
    out = shape.row_major(out)
    return out, (x, out, axis), logcumsumexp_vjp


def logcumsumexp_vjp(g: Any, needs: Needs, x: Any, out: Any, axis: int) -> Grads:
    def share(positive: Any) -> Any:  # of the positive numbers in it, by their logarithms
        held = call(elementwise.gt, positive, positive * 0)
        log = call(elementwise.log, call(elementwise.where, held, positive, positive * 0 + 1))
        low = call(elementwise.where, held, log, positive * 0 - 1e30)
        sums = call(logcumsumexp, _backwards(low - out, axis), axis=axis)
        return call(elementwise.exp, _backwards(sums, axis) + x)

    if not is_array(g):
        return (share(g) - share(-g),)
    kind = g.dtype  # a logarithm in half as many digits would be a number in few: a thousand is right to 1e-4
    g, x = g.astype(np.float64), x.astype(np.float64)
    with np.errstate(all="ignore"):
        out = get_array_module(x).logaddexp.accumulate(x, axis)
        return ((share(g) - share(-g)).astype(kind),)


def cummax(x: Array, *, axis: int) -> Result:
    """The largest of the first 1, 2, 3 … elements along ``axis``, and where the last such is; nan is largest."""
    with np.errstate(all="ignore"):  # bfloat16's comparison with nan warns
        return _running(x, get_array_module(x).maximum.accumulate(x, axis), axis)


def cummin(x: Array, *, axis: int) -> Result:
    """The smallest of the first 1, 2, 3 … elements along ``axis``, and where the last such is; nan is smallest."""
    with np.errstate(all="ignore"):  # bfloat16's comparison with nan warns
        return _running(x, get_array_module(x).minimum.accumulate(x, axis), axis)


def _running(x: Array, out: Array, axis: int) -> Result:
    xp = get_array_module(x)
    hit = (x == out) | (x != x)
    places = xp.arange(x.shape[axis]).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    where = xp.maximum.accumulate(xp.where(hit, places, 0), axis)
    out, where = shape.row_major(out), shape.row_major(where)
    return (out, where), (where, axis, x.shape), running_vjp


def running_vjp(g: Any, needs: Needs, where: Any, axis: int, size: tuple[int, ...]) -> Grads:
    from disttrain.ops.scatter import scatter_add_zeros

    return (call(scatter_add_zeros, g[0], where, axis=axis, shape=size),)
