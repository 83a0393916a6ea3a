"""Views that speak of memory: windows that overlap, strides of one's own, the bytes as another type."""

from typing import Any

import numpy as np

from disttrain.ops.types import Array, Result, call, get_array_module, no_vjp

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]
Ints = tuple[int, ...]


def unfold(x: Array, *, axis: int, size: int, step: int) -> Result:
    """A view of all windows of ``size`` elements along ``axis``, ``step`` apart; the last axis runs in a window."""
    count = (x.shape[axis] - size) // step + 1
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :], size)
    along = x.strides[axis]
    strides = (*x.strides[:axis], along * step, *x.strides[axis + 1 :], along)
    view = _strided(x, shape, strides, writeable=step >= size)
    return view, (x.shape, axis, size, step), unfold_vjp


def unfold_vjp(g: Any, needs: Needs, shape: Ints, axis: int, size: int, step: int) -> Grads:
    return (call(fold, g, shape=shape, axis=axis, size=size, step=step),)


def fold(value: Array, *, shape: Ints, axis: int, size: int, step: int) -> Result:
    """Zeros of ``shape`` to which each window of ``value`` is added where :func:`unfold` took it."""
    half = value.dtype.kind in "fV" and value.dtype.itemsize == 2
    out = get_array_module(value).zeros(shape, np.float32 if half else value.dtype)
    count, before = value.shape[axis], (slice(None),) * axis
    if size <= count:
        for k in range(size):
            out[(*before, slice(k, k + step * (count - 1) + 1, step))] += value[..., k]
    else:
        windows = np.moveaxis(value, -1, axis + 1)
        for i in range(count):
            out[(*before, slice(i * step, i * step + size))] += windows[(*before, i)]
    return out.astype(value.dtype, copy=False), (axis, size, step), fold_vjp


def fold_vjp(g: Any, needs: Needs, axis: int, size: int, step: int) -> Grads:
    return (call(unfold, g, axis=axis, size=size, step=step),)


def as_strided(x: Array, *, shape: Ints, strides: Ints, offset: int, layout: Ints) -> Result:
    """A view of the memory of ``x`` with a shape, strides and a beginning of one's own, in elements.

    Args:
        x: whose first element lies at offset 0.
        shape: of the view.
        strides: of the view.
        offset: of the view's first element.
        layout: the strides of ``x`` that are meant. An ``x`` that lies otherwise (the gradient of the one that was
            viewed, say) is laid out so first, and the result is a view of that copy.
    """
    flat = _memory(x, layout)
    view = _strided(
        flat[offset:], shape, tuple(s * x.itemsize for s in strides), writeable=not _overlaps(shape, strides)
    )
    return view, (x.shape, shape, strides, offset, layout), as_strided_vjp


def as_strided_vjp(
    g: Any, needs: Needs, size: Ints, shape: Ints, strides: Ints, offset: int, layout: Ints
) -> Grads:
    return (call(add_strided, g, size=size, shape=shape, strides=strides, offset=offset, layout=layout),)


def add_strided(value: Array, *, size: Ints, shape: Ints, strides: Ints, offset: int, layout: Ints) -> Result:
    """Zeros of ``size`` to which each element of ``value`` is added where :func:`as_strided` took it."""
    xp = get_array_module(value)
    flat = xp.zeros(extent(size, layout), value.dtype)
    at = np.full((), offset, np.int64)
    for n, s in zip(shape, strides, strict=True):
        at = at[..., None] + np.arange(n) * s
    xp.add.at(flat, at.reshape(-1), value.reshape(-1))
    out = _strided(flat, size, tuple(s * value.itemsize for s in layout), writeable=True).copy()
    return out, (shape, strides, offset, layout), add_strided_vjp


def add_strided_vjp(g: Any, needs: Needs, shape: Ints, strides: Ints, offset: int, layout: Ints) -> Grads:
    return (call(as_strided, g, shape=shape, strides=strides, offset=offset, layout=layout),)


def reinterpret(x: Array, *, dtype: np.dtype[Any]) -> Result:
    """The same bytes as another type: a view; the last axis shrinks or grows with the width of the type."""
    return x.view(dtype), (), no_vjp


def extent(shape: Ints, strides: Ints) -> int:
    """Return how many elements of memory an array of this shape and these strides spans."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))


def _memory(x: Array, layout: Ints) -> Array:
    """Return the memory of ``x``, laid out so, as a vector."""
    span = extent(x.shape, layout)
    steps = tuple(s * x.itemsize for s in layout)
    if x.strides == steps or all(n < 2 or a == b for n, a, b in zip(x.shape, x.strides, steps, strict=True)):
        return _strided(x, (span,), (x.itemsize,), writeable=True)
    flat = get_array_module(x).zeros(span, x.dtype)
    _strided(flat, x.shape, steps, writeable=True)[...] = x
    return flat


def _overlaps(shape: Ints, strides: Ints) -> bool:
    """Return whether some element of memory may have two places in a view."""
    end = 1
    for s, n in sorted((s, n) for s, n in zip(strides, shape, strict=True) if n > 1):
        if s < end:
            return True
        end += (n - 1) * s
    return False


def _strided(x: Array, shape: Ints, strides: Ints, *, writeable: bool) -> Array:
    if not isinstance(x, np.ndarray):
        from cupy.lib import stride_tricks

        return stride_tricks.as_strided(x, shape, strides)
    return np.lib.stride_tricks.as_strided(x, shape, strides, writeable=writeable and x.flags.writeable)
