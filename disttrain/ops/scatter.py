"""Operations that gather and scatter elements along one axis, by an index as large as what they move."""

from typing import Any

import numpy as np

from disttrain.kernels import buffers
from disttrain.ops import elementwise, shape
from disttrain.ops.index import add_at
from disttrain.ops.types import Array, Result, call, get_array_module

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]


def gather(x: Array, index: Array, *, axis: int) -> Result:
    """``out[i][j] = x[index[i][j]][j]`` for ``axis`` 0, as ``torch.gather``."""
    out = x.reshape(-1).take(_numbers(index, axis, x.shape))
    return out, (index, axis, x.shape), gather_vjp


def gather_vjp(g: Any, needs: Needs, index: Any, axis: int, size: tuple[int, ...]) -> Grads:
    return call(scatter_add_zeros, g, index, axis=axis, shape=size), None


def scatter_add_zeros(value: Array, index: Array, *, axis: int, shape: tuple[int, ...]) -> Result:
    """Zeros of ``shape`` with ``value`` added at ``index`` along ``axis``: the gradient of :func:`gather`."""
    out = buffers.zeros(shape, value.dtype, value)
    add_at(out, _numbers(index, axis, shape), value)
    return out, (index, axis), scatter_add_zeros_vjp


def scatter_add_zeros_vjp(g: Any, needs: Needs, index: Any, axis: int) -> Grads:
    return call(gather, g, index, axis=axis), None


def scatter_add(x: Array, index: Array, value: Array, *, axis: int) -> Result:
    """A copy of ``x`` with ``value`` added at ``index`` along ``axis``, as ``torch.scatter_add``."""
    out = x.copy()
    add_at(out, _numbers(index, axis, x.shape), _part(value, index))
    return out, (index, value.shape, axis), scatter_add_vjp


def scatter_add_vjp(g: Any, needs: Needs, index: Any, size: tuple[int, ...], axis: int) -> Grads:
    gv = _fit(call(gather, g, index, axis=axis), size) if needs[2] else None
    return g if needs[0] else None, None, gv


def scatter(x: Array, index: Array, value: Array, *, axis: int) -> Result:
    """A copy of ``x`` with ``value`` written at ``index`` along ``axis``, as ``torch.scatter``."""
    out = x.copy()
    size = np.shape(value)
    out.reshape(-1)[_numbers(index, axis, x.shape)] = _part(value, index) if size else value
    return out, (index, size, axis), scatter_vjp


def scatter_vjp(g: Any, needs: Needs, index: Any, size: tuple[int, ...], axis: int) -> Grads:
    gx = call(scatter, g, index, 0, axis=axis) if needs[0] else None
    if not needs[2]:
        return gx, None, None
    there = call(gather, g, index, axis=axis)
    return gx, None, _fit(there, size) if size else there  # the engine sums it to a value without dimensions


def scatter_reduce(
    x: Array, index: Array, value: Array, *, axis: int, reduce: str, include_self: bool
) -> Result:
    """``x`` with the elements of ``value`` that go to one place reduced, as ``torch.scatter_reduce``.

    Args:
        x: what is written into; takes part if ``include_self``, and elsewhere stays.
        index: where along ``axis``.
        value: at least as large as ``index``.
        axis: the axis.
        reduce: ``prod``, ``mean``, ``amax`` or ``amin``.
        include_self: see ``x``.
    """
    xp = get_array_module(x)
    out = x.copy()
    flat, numbers = out.reshape(-1), _numbers(index, axis, x.shape).reshape(-1)
    src = _part(value, index).reshape(-1)
    if not include_self:
        flat[numbers] = _start(reduce, x.dtype)
    if reduce == "mean":
        counts = xp.full(x.shape, int(include_self), np.int64)
        xp.add.at(counts.reshape(-1), numbers, 1)
        xp.add.at(flat, numbers, src)
        _divide(out, xp.maximum(counts, 1))
    else:
        {"prod": xp.multiply, "amax": xp.maximum, "amin": xp.minimum}[reduce].at(flat, numbers, src)
    return out, (x, index, value, out, axis, reduce, include_self), scatter_reduce_vjp


def _start(reduce: str, dtype: np.dtype[Any]) -> Any:
    """Return the number that changes no reduction."""
    if reduce in ("prod", "mean"):
        return int(reduce == "prod")
    if dtype.kind == "b":
        return reduce == "amin"
    if dtype.kind in "iu":
        return np.iinfo(dtype).min if reduce == "amax" else np.iinfo(dtype).max
    return -np.inf if reduce == "amax" else np.inf


def _divide(out: Array, counts: Array) -> None:
    if out.dtype.kind in "iub":
        out[...] = out // counts.astype(out.dtype)
    else:
        out[...] = out / counts.astype(out.dtype)


def scatter_reduce_vjp(
    g: Any,
    needs: Needs,
    x: Any,
    index: Any,
    value: Any,
    out: Any,
    axis: int,
    reduce: str,
    include_self: bool,
) -> Grads:
    size = tuple(value.shape)
    src = call(shape.index, value, key=tuple(map(slice, index.shape)))
    there = {"index": index, "axis": axis}
    gx, gv = {"prod": _prod_grads, "mean": _mean_grads}.get(reduce, _extreme_grads)(
        g, x, src, out, include_self, **there
    )
    if not include_self:
        gx = call(scatter, gx, index, 0, axis=axis)
    return gx if needs[0] else None, None, _fit(gv, size) if needs[2] else None


def _prod_grads(g: Any, x: Any, src: Any, out: Any, include_self: bool, index: Any, axis: int) -> Any:
    options = {"axis": axis, "reduce": "prod", "include_self": include_self}
    zero = _plain(x) == 0
    masked = call(elementwise.where, zero, x * 0 + 1, x)
    gx = g * call(scatter_reduce, masked, index, src, **options) / masked
    # A place that a single zero of src goes to: the product of all the others is its derivative.
    src_zero = _plain(src) == 0
    zeros = scatter_add_zeros(src_zero.astype(np.int64), _plain(index), axis=axis, shape=tuple(x.shape))[0]
    single = src_zero & (gather(zeros, _plain(index), axis=axis)[0] == 1)
    rest = call(scatter_reduce, x, index, call(elementwise.where, single, src * 0 + 1, src), **options)
    safe = call(elementwise.where, src_zero, src * 0 + 1, src)
    usual = call(gather, g * out, index, axis=axis) / safe
    return gx, call(elementwise.where, single, call(gather, g * rest, index, axis=axis), usual)


def _mean_grads(g: Any, x: Any, src: Any, out: Any, include_self: bool, index: Any, axis: int) -> Any:
    ones = np.ones(index.shape, np.int64)
    counts = scatter_add_zeros(ones, _plain(index), axis=axis, shape=tuple(x.shape))[0] + int(include_self)
    g = g / np.maximum(counts, 1).astype(_plain(g).dtype)
    return g, call(gather, g, index, axis=axis)


def _extreme_grads(g: Any, x: Any, src: Any, out: Any, include_self: bool, index: Any, axis: int) -> Any:
    kind, where, result = _plain(g).dtype, _plain(index), _plain(out)
    from_x = (_plain(x) == result).astype(kind)
    from_src = (_plain(src) == gather(result, where, axis=axis)[0]).astype(kind)
    counts = scatter_add(from_x, where, from_src, axis=axis)[0]
    g = g / counts  # shared between equal elements
    return from_x * g, from_src * call(gather, g, index, axis=axis)


def _plain(x: Any) -> Any:
    """Return the array of a Tensor, which a recorded gradient has in place of one."""
    return getattr(x, "_array", x)


def _part(value: Array, index: Array) -> Array:
    return value if value.shape == index.shape else value[tuple(map(slice, index.shape))]


def _fit(g: Any, size: tuple[int, ...]) -> Any:
    """Return ``g`` with zeros behind it up to ``size``: an index may be smaller than what it scatters."""
    if tuple(g.shape) == tuple(size):
        return g
    return call(shape.pad, g, widths=tuple((0, n - m) for n, m in zip(size, g.shape, strict=True)), value=0)


def _numbers(index: Array, axis: int, size: tuple[int, ...]) -> Array:
    """Return the numbers, row-major, of the elements of an array of shape ``size`` that an index speaks of."""
    xp = get_array_module(index)
    if not index.size:
        return index
    numbers, stride = 0, 1
    for a in range(len(size) - 1, -1, -1):
        if a == axis:
            numbers = numbers + index * stride
        elif index.shape[a] > 1:
            line = xp.arange(0, index.shape[a] * stride, stride)
            numbers = numbers + line.reshape(-1, *[1] * (len(size) - 1 - a))
        stride *= size[a]
    return numbers
