"""Operations that put elements in order, and that choose by order. NaN is larger than all numbers."""

from typing import Any

import numpy as np

from disttrain.ops import reduce
from disttrain.ops.scatter import scatter_add_zeros
from disttrain.ops.types import Array, Result, call, get_array_module

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]


def _comparable(x: Array) -> Array:
    """Return ``x`` in a type that the array library sorts: bfloat16 as float32, which loses nothing."""
    return x.astype(np.float32) if x.dtype.kind == "V" else x


def sort(x: Array, *, axis: int, descending: bool) -> Result:
    """The elements in order along ``axis``, and where each came from; equal ones keep their order."""
    xp = get_array_module(x)
    keys = _comparable(x)
    if descending:
        order = xp.flip(x.shape[axis] - 1 - xp.argsort(xp.flip(keys, axis), axis, kind="stable"), axis)
    else:
        order = xp.argsort(keys, axis, kind="stable")
    return (xp.take_along_axis(x, order, axis), order), (order, axis, x.shape), sort_vjp


def sort_vjp(g: Any, needs: Needs, order: Any, axis: int, size: tuple[int, ...]) -> Grads:
    return (call(scatter_add_zeros, g[0], order, axis=axis, shape=size),)


def topk(x: Array, *, k: int, axis: int, largest: bool) -> Result:
    """The ``k`` largest or smallest along ``axis`` in order, and where each came from."""
    xp = get_array_module(x)
    keys = _comparable(x)
    n = x.shape[axis]
    head = (slice(None),) * axis
    if 0 < k < n // 4:  # find them before they are put in order: linear instead of n log n
        chosen = xp.argpartition(keys, n - k if largest else k - 1, axis)
        chosen = chosen[(*head, slice(n - k, n) if largest else slice(0, k))]
        (_, order), _, _ = sort(xp.take_along_axis(x, chosen, axis), axis=axis, descending=largest)
        order = xp.take_along_axis(chosen, order, axis)
    else:
        (_, order), _, _ = sort(x, axis=axis, descending=largest)
        order = order[(*head, slice(0, k))]
    return (xp.take_along_axis(x, order, axis), order), (order, axis, x.shape), sort_vjp


def kth_along(x: Array, *, k: int, axis: int, keepdims: bool) -> Result:
    """The ``k``-th smallest along one axis, ``k`` from 1, and where it is."""
    xp = get_array_module(x)
    where = xp.take(xp.argsort(_comparable(x), axis, kind="stable"), k - 1, axis)
    return reduce.chosen_along(x, where, axis, keepdims)


def median_along(x: Array, *, axis: int, keepdims: bool, skip_nan: bool) -> Result:
    """The lower median along one axis and where it is; nan where one is, unless ``skip_nan``."""
    return reduce.chosen_along(x, _median_place(x, axis, skip_nan), axis, keepdims)


def _median_place(x: Array, axis: int, skip_nan: bool) -> Array:
    xp = get_array_module(x)
    n = x.shape[axis]
    order = xp.argsort(_comparable(x), axis, kind="stable")
    middle = xp.full([1 if a == axis else m for a, m in enumerate(x.shape)], (n - 1) // 2)
    if x.dtype.kind in "fV":
        numbers = n - xp.isnan(x).sum(axis=axis, keepdims=True)  # they are before the nans
        last = xp.maximum(numbers - 1, 0) // 2 if skip_nan else xp.minimum(numbers, n - 1)
        middle = xp.where(numbers < n, last, middle)
    return xp.take_along_axis(order, middle, axis).squeeze(axis)


def median(x: Array, *, skip_nan: bool) -> Result:
    """The lower median of all elements; nan if one is, unless ``skip_nan``. Equal ones share the gradient."""
    flat = x.reshape(-1)
    out = np.asarray(flat[int(_median_place(flat, 0, skip_nan))])
    return out, (x, out, tuple(range(x.ndim)), False), reduce.extreme_vjp


def mode_along(x: Array, *, axis: int, keepdims: bool) -> Result:
    """The most frequent along one axis, the smallest of those that are, and where its last is."""
    xp = get_array_module(x)
    n = x.shape[axis]
    keys = _comparable(x)
    order = xp.argsort(keys, axis, kind="stable")
    ordered = xp.take_along_axis(keys, order, axis)
    head = (slice(None),) * axis
    places = xp.arange(n).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    first = xp.ones(x.shape, bool)  # of a run of equal ones
    first[(*head, slice(1, n))] = ordered[(*head, slice(1, n))] != ordered[(*head, slice(0, n - 1))]
    start = xp.maximum.accumulate(xp.where(first, places, 0), axis)
    end = xp.argmax(places - start, axis)
    where = xp.take_along_axis(order, xp.expand_dims(end, axis), axis).squeeze(axis)
    return reduce.chosen_along(x, where, axis, keepdims)
