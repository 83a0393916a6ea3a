"""Where kernels get the memory of what they make: from the system, or, in a replayed step, from its fixed buffers.

Results are the same arrays in shape, type and layout as NumPy's function of the same name would make. Arrays on a GPU
come from their own library.

Who hands out fixed buffers relies on one rule: how many arrays an operation asks for, and which, depends on the shapes
and types of its arguments, never on their values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import numpy

from disttrain.kernels.arrays import Array, get_array_module

Shape = tuple[int, ...]
Source = Callable[[Shape | int, Any], Array]
"""Returns C-contiguous memory for an array of a shape and type; what it holds is undefined."""

_source: ContextVar[Source | None] = ContextVar("buffers", default=None)
"""By thread: where a replay's memory comes from."""


class taken_from:
    """Let this thread's kernels get their memory from ``source`` within a ``with``."""

    __slots__ = ("_source", "_token")

    def __init__(self, source: Source) -> None:
        self._source = source

    def __enter__(self) -> None:
        self._token = _source.set(self._source)

    def __exit__(self, *error: object) -> None:
        _source.reset(self._token)


def apart(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` with memory from the system for all that it makes."""
    set_source, reset = _source.set, _source.reset

    def call(*args: Any, **options: Any) -> Any:
        token = set_source(None)
        try:
            return function(*args, **options)
        finally:
            reset(token)

    return call


def empty(shape: Shape | int, dtype: Any = numpy.float64, like: Array | None = None) -> Array:
    """Return an array that holds anything, C-contiguous; of the library of ``like``, if that is given."""
    if like is not None and type(like) is not numpy.ndarray:
        return get_array_module(like).empty(shape, dtype)
    source = _source.get()
    return numpy.empty(shape, dtype) if source is None else source(shape, dtype)


def laid_out(shape: Shape, dtype: Any, axes: Sequence[int]) -> Array:
    """Return an array that holds anything, whose axes lie in memory in an order, the outermost first."""
    out = empty(tuple([shape[a] for a in axes]), dtype)
    return out.transpose([axes.index(a) for a in range(len(axes))])


def order_of(x: Array) -> tuple[int, ...] | None:
    """Return the axes of ``x`` as they lie in memory, the outermost first; ``None`` where there are gaps or repeats."""
    axes = tuple(sorted(range(x.ndim), key=lambda a: -x.strides[a]))
    return axes if x.transpose(axes).flags.c_contiguous else None


def zeros(shape: Shape | int, dtype: Any = numpy.float64, like: Array | None = None) -> Array:
    """Return an array of zeros, C-contiguous; of the library of ``like``, if that is given."""
    if like is not None and type(like) is not numpy.ndarray:
        return get_array_module(like).zeros(shape, dtype)
    source = _source.get()
    if source is None:
        return numpy.zeros(shape, dtype)
    out = source(shape, dtype)
    out.fill(0)
    return out


def empty_like(x: Array, dtype: Any = None) -> Array:
    """Return an array of the shape of ``x``, and of its type unless another is given, laid out in memory as ``x``."""
    kind = x.dtype if dtype is None else dtype
    source = _source.get()
    if source is None or type(x) is not numpy.ndarray:
        return get_array_module(x).empty_like(x, kind)
    if x.flags.c_contiguous:
        return source(x.shape, kind)
    axes = order_of(x)
    return numpy.empty_like(x, kind) if axes is None else laid_out(x.shape, kind, axes)


def copy(x: Array) -> Array:
    """Return a copy of ``x``, C-contiguous."""
    out = empty(x.shape, x.dtype, x)
    out[...] = x
    return out


def reshape(x: Array, shape: Shape) -> Array:
    """Return ``x`` in another shape: a view if the memory allows it, else a copy."""
    if _source.get() is None or type(x) is not numpy.ndarray or x.flags.c_contiguous:
        return x.reshape(shape)
    try:
        return x.reshape(shape, copy=False)
    except ValueError:  # it has to be copied
        return copy(x).reshape(shape)


def sum_over(x: Array, axes: Shape, dtype: Any, keepdims: bool = False) -> Array:
    """Return the sum of ``x`` over ``axes``, added up in a type and returned in it."""
    if _source.get() is None or type(x) is not numpy.ndarray or not x.flags.c_contiguous:
        return x.sum(axis=axes, dtype=dtype, keepdims=keepdims)
    shape = tuple([1 if a in axes else n for a, n in enumerate(x.shape) if keepdims or a not in axes])
    return x.sum(axis=axes, dtype=dtype, keepdims=keepdims, out=empty(shape, dtype))


def full_like(x: Array, value: Any) -> Array:
    """Return an array like ``x`` that holds ``value`` everywhere."""
    if _source.get() is None or type(x) is not numpy.ndarray:
        return get_array_module(x).full_like(x, value)
    out = empty_like(x)
    numpy.copyto(out, value, casting="unsafe")
    return out


def where(condition: Array, x: Array, y: Array) -> Array:
    """Return ``x`` where ``condition`` holds, else ``y``, as ``numpy.where``."""
    arrays = [a for a in (condition, x, y) if getattr(a, "ndim", 0)]
    if _source.get() is None or any(type(a) is not numpy.ndarray or not a.flags.c_contiguous for a in arrays):
        return get_array_module(condition).where(condition, x, y)
    out = empty(numpy.broadcast_shapes(*[a.shape for a in arrays]), numpy.result_type(x, y))
    out[...] = y
    numpy.copyto(out, x, where=condition)
    return out


def spare(x: Array, *others: Any) -> Array | None:
    """Return what to give as ``out`` to a function of NumPy, element by element; ``None`` lets it make one itself.

    The result is of the type of ``x``, and laid out as NumPy would where all arguments but numbers lie alike in memory.
    """
    if _source.get() is None or type(x) is not numpy.ndarray:
        return None
    return empty_like(x) if all(not getattr(o, "ndim", 0) or _lie_alike(x, o) for o in others) else None


def _lie_alike(x: Array, y: Array) -> bool:
    if x.shape != y.shape:
        return False
    return bool((x.flags.c_contiguous and y.flags.c_contiguous) or order_of(x) == order_of(y) is not None)


def contiguous(x: Array, dtype: Any = None) -> Array:
    """Return ``x`` C-contiguous, of one axis or more, and of a type: itself if it is so, else a copy."""
    if _source.get() is None:
        return (numpy if type(x) is numpy.ndarray else get_array_module(x)).ascontiguousarray(x, dtype)
    if type(x) is not numpy.ndarray or not x.ndim:
        return get_array_module(x).ascontiguousarray(x, dtype)
    kind = x.dtype if dtype is None else dtype
    if x.flags.c_contiguous and x.dtype == kind:
        return x
    out = empty(x.shape, kind)
    out[...] = x
    return out


def convert(x: Array, dtype: Any) -> Array:
    """Return ``x`` in a type: itself if it is of it, else a copy, laid out as ``x``."""
    if x.dtype == dtype:
        return x
    if _source.get() is None or type(x) is not numpy.ndarray:
        return x.astype(dtype)
    out = empty_like(x, dtype)
    numpy.copyto(out, x, casting="unsafe")
    return out
