"""Operations that gather and scatter elements by index arrays."""

from typing import Any

import numpy as np

from disttrain.ops import shape
from disttrain.ops.types import Array, Result, call, get_array_module, no_vjp

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]


def take(x: Array, *, key: Any) -> Result:
    """``x[key]`` where the key holds index or mask arrays (NumPy's rules): a copy."""
    return x[key], (x.shape, key), take_vjp


def take_vjp(g: Any, needs: Needs, size: tuple[int, ...], key: Any) -> Grads:
    return (call(put_zeros, g, shape=size, key=key),)


def put_zeros(value: Array, *, shape: tuple[int, ...], key: Any) -> Result:
    """Zeros of ``shape`` with ``value`` added at ``[key]``; indices that repeat add up, in their order."""
    xp = get_array_module(value)
    out = xp.zeros(shape, value.dtype)
    if _is_mask(key):
        out[key] = value
    else:
        xp.add.at(out, key, value)
    return out, (key,), put_zeros_vjp


def put_zeros_vjp(g: Any, needs: Needs, key: Any) -> Grads:
    return (call(take, g, key=key),)


def _is_mask(key: Any) -> bool:
    return all(
        getattr(k, "dtype", None) == np.bool_ for k in key if not isinstance(k, slice) and k is not Ellipsis
    )


def put(x: Array, value: Array, *, key: Any, accumulate: bool) -> Result:
    """A copy of ``x`` with ``value`` written (or added) at ``[key]``."""
    out = x.copy()
    if accumulate:
        get_array_module(x).add.at(out, key, value)
    else:
        out[key] = value
    return out, (key, accumulate), put_vjp


def put_vjp(g: Any, needs: Needs, key: Any, accumulate: bool) -> Grads:
    value = call(take, g, key=key) if needs[1] else None
    if not needs[0] or accumulate:
        return g, value
    return call(put, g, 0 * call(take, g, key=key), key=key, accumulate=False), value


def gather(x: Array, index: Array, *, axis: int) -> Result:
    """``out[i][j] = x[index[i][j]][j]`` for ``axis`` 0, as ``torch.gather``."""
    corner = tuple(slice(None) if a == axis else slice(n) for a, n in enumerate(index.shape))
    out = get_array_module(x).take_along_axis(x[corner], index, axis)
    return out, (index, axis, x.shape), gather_vjp


def gather_vjp(g: Any, needs: Needs, index: Any, axis: int, size: tuple[int, ...]) -> Grads:
    return call(scatter_add_zeros, g, index, axis=axis, shape=size), None


def scatter_add_zeros(value: Array, index: Array, *, axis: int, shape: tuple[int, ...]) -> Result:
    """Zeros of ``shape`` with ``value`` added at ``index`` along ``axis``: the gradient of :func:`gather`."""
    xp = get_array_module(value)
    out = xp.zeros(shape, value.dtype)
    xp.add.at(out, _grid(index, axis), value)
    return out, (index, axis), scatter_add_zeros_vjp


def scatter_add_zeros_vjp(g: Any, needs: Needs, index: Any, axis: int) -> Grads:
    return call(gather, g, index, axis=axis), None


def scatter_add(x: Array, index: Array, value: Array, *, axis: int) -> Result:
    """A copy of ``x`` with ``value`` added at ``index`` along ``axis``, as ``torch.scatter_add``."""
    out = x.copy()
    get_array_module(x).add.at(out, _grid(index, axis), value[tuple(map(slice, index.shape))])
    return out, (index, value.shape, axis), scatter_add_vjp


def scatter_add_vjp(g: Any, needs: Needs, index: Any, size: tuple[int, ...], axis: int) -> Grads:
    return g, None, _fit(call(gather, g, index, axis=axis), size) if needs[2] else None


def scatter(x: Array, index: Array, value: Array, *, axis: int) -> Result:
    """A copy of ``x`` with ``value`` written at ``index`` along ``axis``, as ``torch.scatter``."""
    out = x.copy()
    out[_grid(index, axis)] = value[tuple(map(slice, index.shape))] if value.ndim else value
    return out, (index, value.shape, axis), scatter_vjp


def scatter_vjp(g: Any, needs: Needs, index: Any, size: tuple[int, ...], axis: int) -> Grads:
    there = call(gather, g, index, axis=axis)
    gx = call(scatter, g, index, there * 0, axis=axis) if needs[0] else None
    if not needs[2]:
        return gx, None, None
    return gx, None, _fit(there, size) if size else there  # the engine sums it to a value without dimensions


def _fit(g: Any, size: tuple[int, ...]) -> Any:
    """Return ``g`` with zeros behind it up to ``size``: an index may be smaller than what it scatters."""
    if tuple(g.shape) == tuple(size):
        return g
    return call(shape.pad, g, widths=tuple((0, n - m) for n, m in zip(size, g.shape, strict=True)), value=0)


def _grid(index: Any, axis: int) -> tuple[Any, ...]:
    key: list[Any] = list(np.ogrid[tuple(map(slice, index.shape))])
    key[axis] = index
    return tuple(key)


def triangle(x: Array, *, diagonal: int, upper: bool) -> Result:
    """``x`` with zeros below (``upper``) or above a diagonal of its last two axes."""
    xp = get_array_module(x)
    return (xp.triu if upper else xp.tril)(x, diagonal), (diagonal, upper), triangle_vjp


def triangle_vjp(g: Any, needs: Needs, diagonal: int, upper: bool) -> Grads:
    return (call(triangle, g, diagonal=diagonal, upper=upper),)


def nonzero(x: Array) -> Result:
    """The indices of the elements that are not zero, one row each."""
    xp = get_array_module(x)
    if not x.ndim:
        return xp.empty((int(bool(x)), 0), np.int64), (), no_vjp
    return xp.stack(xp.nonzero(x), axis=1), (), no_vjp
