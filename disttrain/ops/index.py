"""Operations that take and put elements by keys of index and mask arrays."""

from typing import Any

import numpy as np

from disttrain.kernels import buffers
from disttrain.ops.shape import row_major
from disttrain.ops.types import Array, Result, call, get_array_module, is_array, no_vjp

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]


def take(x: Array, *, key: Any) -> Result:
    """``x[key]`` where the key holds index or mask arrays (NumPy's rules): a copy, row-major."""
    axis = _one_axis(key)
    if axis is not None and (axis or key[axis].size > _MANY):
        return x.take(key[axis], axis), (x.shape, key), take_vjp  # several times as fast
    return row_major(x[key]), (x.shape, key), take_vjp


_MANY = 256


def _one_axis(key: Any) -> int | None:
    """Return the axis that a key indexes by an array of integers, if it takes all of the others."""
    axis = len(key) - 1
    last = key[axis]
    if not is_array(last) or last.dtype.kind == "b":
        return None
    return axis if all(type(k) is slice and k == slice(None) for k in key[:axis]) else None


def take_vjp(g: Any, needs: Needs, size: tuple[int, ...], key: Any) -> Grads:
    return (call(put_zeros, g, shape=size, key=key),)


def put_zeros(value: Array, *, shape: tuple[int, ...], key: Any) -> Result:
    """Zeros of ``shape`` with ``value`` added at ``[key]``; indices that repeat add up, in their order."""
    out = buffers.zeros(shape, value.dtype, value)
    if _is_mask(key):
        out[key] = value
    else:
        _add(out, key, value)
    return out, (key,), put_zeros_vjp


def put_zeros_vjp(g: Any, needs: Needs, key: Any) -> Grads:
    return (call(take, g, key=key),)


def _is_mask(key: Any) -> bool:
    return all(
        getattr(k, "dtype", None) == np.bool_ for k in key if not isinstance(k, slice) and k is not Ellipsis
    )


def _add(out: Array, key: Any, value: Array) -> None:
    """Add ``value`` at ``out[key]``, where ``out`` is row-major, by number of element: NumPy's fast way."""
    xp = get_array_module(out)
    where = xp.arange(out.size).reshape(out.shape)[key]
    add_at(out, where, xp.broadcast_to(value, where.shape))


def add_at(out: Array, where: Array, value: Array) -> None:
    """Add each element of ``value`` to the element of ``out``, row-major, whose number is in ``where``."""
    xp = get_array_module(out)
    if out.dtype.kind == "b":
        xp.logical_or.at(out.reshape(-1), where.reshape(-1), value.reshape(-1))
    else:
        xp.add.at(out.reshape(-1), where.reshape(-1), value.reshape(-1))


def put(x: Array, value: Array, *, key: Any, accumulate: bool) -> Result:
    """A copy of ``x`` with ``value`` written (or added) at ``[key]``."""
    out = x.copy()
    if accumulate:
        _add(out, key, value)
    else:
        out[key] = value
    return out, (key, accumulate), put_vjp


def put_vjp(g: Any, needs: Needs, key: Any, accumulate: bool) -> Grads:
    value = call(take, g, key=key) if needs[1] else None
    if not needs[0] or accumulate:
        return g if needs[0] else None, value
    return call(put, g, 0, key=key, accumulate=False), value


def triangle(x: Array, *, diagonal: int, upper: bool) -> Result:
    """``x`` with zeros below (``upper``) or above a diagonal of its last two axes."""
    xp = get_array_module(x)
    half = (xp.triu if upper else xp.tril)(buffers.contiguous(x), diagonal)
    return half, (diagonal, upper), triangle_vjp


def triangle_vjp(g: Any, needs: Needs, diagonal: int, upper: bool) -> Grads:
    return (call(triangle, g, diagonal=diagonal, upper=upper),)


def nonzero(x: Array) -> Result:
    """The indices of the elements that are not zero, one row each."""
    xp = get_array_module(x)
    if not x.ndim:
        return xp.empty((int(bool(x)), 0), np.int64), (), no_vjp
    return xp.stack(xp.nonzero(x)).T, (), no_vjp  # one dimension after the other, as PyTorch lays them out
