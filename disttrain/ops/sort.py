"""Operations that put elements in order."""

from typing import Any

from disttrain.ops.scatter import scatter_add_zeros
from disttrain.ops.types import Array, Result, call, get_array_module

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]


def sort(x: Array, *, axis: int, descending: bool) -> Result:
    """The elements in order along ``axis``, and where each came from; equal ones keep their order."""
    xp = get_array_module(x)
    if descending:
        order = xp.flip(x.shape[axis] - 1 - xp.argsort(xp.flip(x, axis), axis, kind="stable"), axis)
    else:
        order = xp.argsort(x, axis, kind="stable")
    return (xp.take_along_axis(x, order, axis), order), (order, axis, x.shape), sort_vjp


def sort_vjp(g: Any, needs: Needs, order: Any, axis: int, size: tuple[int, ...]) -> Grads:
    return (call(scatter_add_zeros, g[0], order, axis=axis, shape=size),)
