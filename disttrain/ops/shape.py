"""Operations that move elements and compute nothing. Options are normalised: axes not negative, sizes explicit."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from disttrain.kernels import buffers
from disttrain.ops.types import Array, Op, Result, call, get_array_module, is_array

Chain = tuple[tuple[Op, dict[str, Any]], ...]
"""How a view was taken from its base: view ops and their options, one after the other."""


def reshape(x: Array, *, shape: tuple[int, ...]) -> Result:
    """``x`` with another shape; a view where the memory allows it."""
    return buffers.reshape(x, shape), (x.shape,), reshape_vjp


def reshape_vjp(g: Any, needs: tuple[bool, ...], shape: tuple[int, ...]) -> tuple[Any, ...]:
    return (call(reshape, g, shape=shape),)


def transpose(x: Array, *, axes: tuple[int, ...]) -> Result:
    """A view of ``x`` with its axes in another order."""
    return x.transpose(axes), (axes,), transpose_vjp


def transpose_vjp(g: Any, needs: tuple[bool, ...], axes: tuple[int, ...]) -> tuple[Any, ...]:
    back = [0] * len(axes)
    for i, a in enumerate(axes):
        back[a] = i
    return (call(transpose, g, axes=tuple(back)),)


def broadcast_to(x: Array, *, shape: tuple[int, ...]) -> Result:
    """A view of ``x`` repeated along new axes and along those of size 1."""
    out = x[(None,) * (len(shape) - x.ndim) + (...,)]
    if out.shape != shape:
        out = get_array_module(x).broadcast_to(x, shape)  # which NumPy makes read-only
    return out, (), broadcast_to_vjp


def broadcast_to_vjp(g: Any, needs: tuple[bool, ...]) -> tuple[Any, ...]:
    return (g,)  # the engine sums it down to the shape of x


def sum_to_shape(x: Array, *, shape: tuple[int, ...]) -> Result:
    """``x`` summed over the axes along which an array of ``shape`` would be repeated: broadcasting backwards."""
    extra = x.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(
        i + extra for i, n in enumerate(shape) if n == 1 and x.shape[i + extra] != 1
    )
    out = x
    if axes:
        with np.errstate(all="ignore"):
            out = buffers.sum_over(x, axes, np.dtype(np.float32) if x.dtype.itemsize == 2 else x.dtype)
    if out.shape != shape or not shape:  # an array without dimensions where the sum is a scalar of NumPy's
        out = np.reshape(out, shape)
    return buffers.convert(out, x.dtype), (x.shape,), sum_to_shape_vjp


def sum_to_shape_vjp(g: Any, needs: tuple[bool, ...], shape: tuple[int, ...]) -> tuple[Any, ...]:
    return (call(broadcast_to, g, shape=shape),)


def index(x: Array, *, key: Any) -> Result:
    """``x[key]`` for a basic key, a tuple of integers, slices, ``None`` and one ``...``: a view of ``x``."""
    return x[key], (x.shape, key), index_vjp


def index_vjp(g: Any, needs: tuple[bool, ...], shape: tuple[int, ...], key: Any) -> tuple[Any, ...]:
    return (call(scatter_basic, g, shape=shape, key=key),)


def scatter_basic(value: Array, *, shape: tuple[int, ...], key: Any) -> Result:
    """Zeros of ``shape`` with ``value`` at ``[key]``: the gradient of :func:`index`."""
    out = buffers.zeros(shape, value.dtype, value)
    out[key] = value
    return out, (key,), scatter_basic_vjp


def scatter_basic_vjp(g: Any, needs: tuple[bool, ...], key: Any) -> tuple[Any, ...]:
    return (call(index, g, key=key),)


def unbind(x: Array, *, axis: int) -> Result:
    """A view of each element along an axis."""
    keys = [(*[slice(None)] * axis, i, ...) for i in range(x.shape[axis])]
    return tuple([x[key] for key in keys]), (axis, x.shape, _memory_order(x)), unbind_vjp


def unbind_vjp(
    g: Any, needs: tuple[bool, ...], axis: int, shape: tuple[int, ...], order: tuple[int, ...]
) -> tuple[Any, ...]:
    parts = _all_parts(g, [(*shape[:axis], *shape[axis + 1 :])] * shape[axis])
    if not all(map(is_array, parts)):
        return (call(stack, *parts, axis=axis),)
    out = _empty_of(parts[0], shape, order)
    for i, part in enumerate(parts):
        out[(*[slice(None)] * axis, i)] = part
    return (out,)


def split(x: Array, *, axis: int, sizes: tuple[int, ...]) -> Result:
    """Views of pieces of these sizes along an axis, one after the other; together they are all of it."""
    return (
        tuple([x[key] for key in _pieces(axis, sizes)]),
        (axis, sizes, x.shape, _memory_order(x)),
        split_vjp,
    )


def split_vjp(
    g: Any,
    needs: tuple[bool, ...],
    axis: int,
    sizes: tuple[int, ...],
    shape: tuple[int, ...],
    order: tuple[int, ...],
) -> tuple[Any, ...]:
    parts = _all_parts(g, [(*shape[:axis], n, *shape[axis + 1 :]) for n in sizes])
    if not all(map(is_array, parts)):
        return (call(concatenate, *parts, axis=axis),)
    out = _empty_of(parts[0], shape, order)
    for key, part in zip(_pieces(axis, sizes), parts, strict=True):
        out[key] = part
    return (out,)


def _pieces(axis: int, sizes: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Return the keys of consecutive pieces along an axis."""
    ends = list(itertools.accumulate(sizes, initial=0))
    return [(*[slice(None)] * axis, slice(end - n, end)) for end, n in zip(ends[1:], sizes, strict=True)]


def _all_parts(g: Any, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
    """Return the gradients of several outputs (Tensors where backward is recorded), with zeros for the unused."""
    parts = list(g) if isinstance(g, tuple | list) else [g]
    some = next(part for part in parts if part is not None)
    xp, dtype = (get_array_module(some), some.dtype) if is_array(some) else (np, some.dtype.numpy)
    return [xp.zeros(size, dtype) if part is None else part for part, size in zip(parts, shapes, strict=True)]


def _memory_order(x: Array) -> tuple[int, ...]:
    return tuple(sorted(range(x.ndim), key=lambda a: -x.strides[a]))


def _empty_of(like: Array, shape: tuple[int, ...], order: tuple[int, ...]) -> Array:
    """Return an array whose axes lie in memory in an order, from the outermost to the innermost."""
    out = buffers.empty(tuple([shape[a] for a in order]), like.dtype, like)
    return out.transpose([order.index(a) for a in range(len(order))])


def diagonal(x: Array, *, offset: int, axis1: int, axis2: int) -> Result:
    """A view of the diagonal of two axes, which becomes the last axis."""
    view = x.diagonal(offset, axis1, axis2)
    if isinstance(view, np.ndarray):  # NumPy hands it out read-only
        first = [slice(None)] * x.ndim
        first[axis1], first[axis2] = slice(max(-offset, 0), None), slice(max(offset, 0), None)
        part = x[tuple(first)] if view.size else x
        view = np.lib.stride_tricks.as_strided(part, view.shape, view.strides)
    return view, (x.shape, offset, axis1, axis2), diagonal_vjp


def diagonal_vjp(
    g: Any, needs: tuple[bool, ...], shape: tuple[int, ...], offset: int, axis1: int, axis2: int
) -> tuple[Any, ...]:
    chain = ((diagonal, {"offset": offset, "axis1": axis1, "axis2": axis2}),)
    return (call(scatter_view, g, shape=shape, chain=chain),)


def scatter_view(value: Array, *, shape: tuple[int, ...], chain: Chain) -> Result:
    """Zeros of ``shape`` with ``value`` in the view that ``chain`` takes of them."""
    out = buffers.zeros(shape, value.dtype, value)
    _replay(out, chain)[...] = value
    return out, (chain,), scatter_view_vjp


def scatter_view_vjp(g: Any, needs: tuple[bool, ...], chain: Chain) -> tuple[Any, ...]:
    return (_replay(g, chain),)


def view_scatter(base: Array, value: Array, *, chain: Chain) -> Result:
    """A copy of ``base`` with ``value`` in the view that ``chain`` takes of it."""
    out = buffers.copy(base)
    view = _replay(out, chain)
    if not view.size or get_array_module(out).may_share_memory(view, out):
        view[...] = value
    else:  # in the memory of this copy the chain is no view: write by number of element
        numbers = _replay(np.arange(out.size).reshape(out.shape), chain)
        out.reshape(-1)[numbers] = value
    return out, (chain,), view_scatter_vjp


def view_scatter_vjp(g: Any, needs: tuple[bool, ...], chain: Chain) -> tuple[Any, ...]:
    old, value = call(view_scatter, g, 0, chain=chain) if needs[0] else None, None
    if needs[1]:
        value = _replay(g, chain)
        if is_array(value):
            value = value.copy()  # beside g, which the engine may add to
    return old, value


def _replay(x: Any, chain: Chain) -> Any:
    for op, options in chain:
        x = call(op, x, **options)
    return x


def copy(x: Array, *, order: str = "K") -> Result:
    """A copy of ``x`` in memory of its own; ``order`` as in NumPy (``K`` keeps the layout, ``C`` is row-major)."""
    return x.copy(kept_order(x) if order == "K" else order), (), copy_vjp


def kept_order(x: Array) -> Literal["C", "K"]:
    """Return the order, in NumPy's letters, of what is made like ``x``: row-major if ``x`` repeats elements."""
    return "C" if 0 in x.strides else "K"


def row_major(x: Array) -> Array:
    """Return a result in row-major memory: NumPy gives some in the order of their arguments, PyTorch does not."""
    return x if x.flags.c_contiguous else buffers.contiguous(x)


def copy_vjp(g: Any, needs: tuple[bool, ...]) -> tuple[Any, ...]:
    return (g,)


def astype(x: Array, *, dtype: np.dtype[Any]) -> Result:
    """``x`` converted to another type."""
    with np.errstate(all="ignore"):
        return x.astype(dtype, kept_order(x)), (x.dtype,), astype_vjp


def astype_vjp(g: Any, needs: tuple[bool, ...], dtype: np.dtype[Any]) -> tuple[Any, ...]:
    return (call(astype, g, dtype=dtype),)


def concatenate(*xs: Array, axis: int) -> Result:
    """``xs`` one after the other along ``axis``, row-major unless all of them are channels-last."""
    sizes = tuple(x.shape[axis] for x in xs)
    out = None
    if _is_mixed(xs):
        shape = xs[0].shape
        out = buffers.empty((*shape[:axis], sum(sizes), *shape[axis + 1 :]), xs[0].dtype, xs[0])
    return get_array_module(*xs).concatenate(xs, axis, out=out), (axis, sizes), concatenate_vjp


def _is_mixed(xs: tuple[Array, ...]) -> bool:
    """Return whether NumPy may join arrays in an order of axes that is neither row-major nor channels-last."""
    if all(x.flags.c_contiguous for x in xs):
        return False
    return not all(x.ndim in (4, 5) and np.moveaxis(x, 1, -1).flags.c_contiguous for x in xs)


def concatenate_vjp(g: Any, needs: tuple[bool, ...], axis: int, sizes: tuple[int, ...]) -> tuple[Any, ...]:
    grads, begin = [], 0
    for need, n in zip(needs, sizes, strict=True):
        key = (*[slice(None)] * axis, slice(begin, begin + n), ...)
        grads.append(call(index, g, key=key) if need else None)
        begin += n
    return tuple(grads)


def stack(*xs: Array, axis: int) -> Result:
    """``xs`` along a new axis, row-major."""
    xp, shape = get_array_module(*xs), xs[0].shape
    out = buffers.empty((*shape[:axis], len(xs), *shape[axis:]), xs[0].dtype, xs[0])
    if axis or xp is not np or any(x.shape != shape for x in xs):
        out = xp.stack(xs, axis, out=out)
    else:  # a third of the time of numpy.stack, for the few small states that a step stacks
        for i, x in enumerate(xs):
            out[i] = x
    return out, (axis,), stack_vjp


def stack_vjp(g: Any, needs: tuple[bool, ...], axis: int) -> tuple[Any, ...]:
    return tuple(
        call(index, g, key=(*[slice(None)] * axis, i, ...)) if need else None for i, need in enumerate(needs)
    )


def flip(x: Array, *, axes: tuple[int, ...]) -> Result:
    """``x`` with the order of its elements along ``axes`` reversed."""
    return get_array_module(x).flip(x, axes).copy(kept_order(x)), (axes,), flip_vjp


def flip_vjp(g: Any, needs: tuple[bool, ...], axes: tuple[int, ...]) -> tuple[Any, ...]:
    return (call(flip, g, axes=axes),)


def roll(x: Array, *, shifts: tuple[int, ...], axes: tuple[int, ...]) -> Result:
    """``x`` shifted along ``axes``, row-major; what leaves at one end comes in at the other."""
    xp = get_array_module(x)
    return xp.roll(buffers.contiguous(x), shifts, axes), (shifts, axes), roll_vjp


def roll_vjp(
    g: Any, needs: tuple[bool, ...], shifts: tuple[int, ...], axes: tuple[int, ...]
) -> tuple[Any, ...]:
    return (call(roll, g, shifts=tuple(-s for s in shifts), axes=axes),)


def tile(x: Array, *, repeats: tuple[int, ...]) -> Result:
    """``x`` repeated ``repeats`` times along its axes, of which there are as many."""
    return row_major(get_array_module(x).tile(x, repeats)), (x.shape, repeats), tile_vjp


def tile_vjp(
    g: Any, needs: tuple[bool, ...], shape: tuple[int, ...], repeats: tuple[int, ...]
) -> tuple[Any, ...]:
    apart = call(reshape, g, shape=tuple(m for pair in zip(repeats, shape, strict=True) for m in pair))
    summed = call(sum_to_shape, apart, shape=tuple(m for n in shape for m in (1, n)))
    return (call(reshape, summed, shape=shape),)


def pad(x: Array, *, widths: tuple[tuple[int, int], ...], value: float) -> Result:
    """``x`` with ``widths`` elements of ``value`` before and after it along each axis; negative widths cut."""
    cut = tuple(slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(widths, x.shape, strict=True))
    grown = tuple((max(a, 0), max(b, 0)) for a, b in widths)
    xp = get_array_module(x)
    out = xp.pad(buffers.contiguous(x[cut]) if x.flags.fnc else x[cut], grown, constant_values=value)
    return out, (x.shape, widths), pad_vjp


def pad_vjp(g: Any, needs: tuple[bool, ...], shape: tuple[int, ...], widths: Any) -> tuple[Any, ...]:
    return (call(pad, g, widths=tuple((-a, -b) for a, b in widths), value=0),)
