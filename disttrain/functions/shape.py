"""Other shapes of the same elements, with PyTorch's names. Where PyTorch gives a view, so does this."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import dtypes, engine, layouts
from disttrain.functions.common import normalize_dim, normalize_dims, numpy_names, sizes
from disttrain.ops import shape as ops
from disttrain.ops import strided
from disttrain.ops.types import get_array_module

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


def given(name: str, keyword: str, args: Sequence[Any], value: Any) -> tuple[int, ...]:
    """Return integers given as ``f(2, 3)``, as ``f((2, 3))``, or by keyword.

    Raises:
        TypeError: they are given twice or not at all, or are no integers.
    """
    if value is not None:
        if args:
            raise TypeError(f"{name}() got {keyword} twice: {args!r} and {value!r}")
        args = (value,)
    elif not args:
        raise TypeError(f"{name}() needs {keyword}")
    return sizes(args)


def _resolve(shape: tuple[int, ...], numel: int, name: str, old: tuple[int, ...]) -> tuple[int, ...]:
    """Return ``shape`` with its one -1 replaced.

    Raises:
        RuntimeError: the shape does not hold ``numel`` elements.
    """
    if math.prod(shape) == numel and min(shape, default=0) >= 0:
        return shape
    known = math.prod(n for n in shape if n != -1)
    if shape.count(-1) > 1 or any(n < -1 for n in shape):
        raise RuntimeError(f"{name}(): sizes must be >= 0 and at most one may be -1, got {list(shape)}")
    if -1 in shape and known and numel % known == 0:
        return tuple(numel // known if n == -1 else n for n in shape)
    if -1 in shape or known != numel:
        raise RuntimeError(
            f"{name}(): shape {list(shape)} is invalid for a tensor of shape {list(old)} ({numel} elements)"
        )
    return shape


def reshape(input: Tensor, *sizes: Any, shape: Any = None) -> Tensor:
    """The same elements in another shape, a view where the memory allows it; one size may be -1.

    Raises:
        RuntimeError: the shape holds another number of elements.
    """
    wanted = given("reshape", "shape", sizes, shape)
    wanted = _resolve(wanted, input._array.size, "reshape", input._array.shape)
    return engine.apply_view(ops.reshape, input, shape=wanted)


def view(input: Tensor, *sizes: Any, size: Any = None, dtype: Any = None) -> Tensor:
    """The same memory in another shape; or, given a dtype, the same bytes as that type.

    With a narrower or wider type the last dimension grows or shrinks. What convolution and its like left in
    channels-last memory is laid out row-major first, for good; views that were taken of it before stay as they are.

    Raises:
        RuntimeError: the memory cannot be seen so, or the shape holds another number of elements.
    """
    if dtype is None and len(sizes) == 1 and isinstance(sizes[0], dtypes.dtype):
        dtype, sizes = sizes[0], ()
    if dtype is not None:
        return _view_as_type(input, dtypes.as_dtype(dtype))
    wanted = given("view", "size", sizes, size)
    wanted = _resolve(wanted, input._array.size, "view", input._array.shape)
    if not input._array.flags.c_contiguous:
        _settle(input)
    t = engine.apply_view(ops.reshape, input, shape=wanted)
    if t._base is None and t._array.size:
        raise RuntimeError(
            f"view(): a tensor of shape {list(input.shape)} and strides {list(input.stride())} cannot be "
            f"seen as {list(wanted)} without a copy; use reshape()"
        )
    return t


def _settle(input: Tensor) -> None:
    """Lay the memory that ``input`` is a view of out row-major if it is channels-last, of a batch or of one element.

    PyTorch's images are row-major unless someone asks for another order; here convolution chooses.
    """
    base = input if input._base is None else input._base
    array = base._array
    if array.flags.c_contiguous or array.ndim < 3 or base._layout or (base.is_leaf and base.requires_grad):
        return
    xp = get_array_module(array)
    if not any(xp.moveaxis(array, channels, -1).flags.c_contiguous for channels in (0, 1)):
        return
    base._array = array = xp.ascontiguousarray(array)
    if base is not input:
        for op, options in input._chain:
            array = op(array, **options)[0]
        input._array = array


def _view_as_type(input: Tensor, dtype: dtypes.dtype) -> Tensor:
    old = input._array.itemsize
    if dtype.itemsize != old:
        if not input.ndim:
            raise RuntimeError(
                f"view(): a tensor without dimensions cannot be seen as {dtype}, whose elements have another width"
            )
        if input.shape[-1] > 1 and input.stride(-1) != 1:
            raise RuntimeError(
                f"view(): the last stride must be 1 to see {input.dtype} as {dtype}, got {input.stride(-1)}"
            )
        if input.shape[-1] * old % dtype.itemsize:
            raise RuntimeError(
                f"view(): the last size must be a multiple of {dtype.itemsize // old} to see {input.dtype} as "
                f"{dtype}, got {input.shape[-1]}"
            )
        if any(s * old % dtype.itemsize for s in input.stride()[:-1]):
            raise RuntimeError(
                f"view(): strides {list(input.stride())} of {input.dtype} are no whole elements of {dtype}"
            )
    bits = input.detach() if input.requires_grad else input  # which have no gradient
    if dtype is input.dtype:
        return engine.apply_view(ops.reshape, bits, shape=input._array.shape)
    return engine.apply_view(strided.reinterpret, bits, dtype=dtype.numpy)


def view_as(input: Tensor, other: Tensor) -> Tensor:
    """``input.view(other.shape)``."""
    return view(input, other.shape)


def reshape_as(input: Tensor, other: Tensor) -> Tensor:
    """``input.reshape(other.shape)``."""
    return reshape(input, other.shape)


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Dimensions ``start_dim`` to ``end_dim`` as one.

    Raises:
        RuntimeError: ``start_dim`` comes after ``end_dim``.
    """
    first, last = normalize_dim(start_dim, input.ndim), normalize_dim(end_dim, input.ndim)
    if first > last:
        raise RuntimeError(f"flatten(): start_dim {start_dim} comes after end_dim {end_dim}")
    if not input.ndim:
        return reshape(input, 1)
    shape = input._array.shape
    if first == last:
        return input
    return reshape(input, (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]))


def ravel(input: Tensor) -> Tensor:
    """All elements in one dimension."""
    return reshape(contiguous(input), input._array.size)


@numpy_names
def unflatten(input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Dimension ``dim`` as several of ``sizes``; one may be -1.

    Raises:
        RuntimeError: ``sizes`` are none, or do not make up the dimension.
    """
    d = normalize_dim(dim, input.ndim)
    if not input.ndim:
        raise IndexError("unflatten(): a tensor without dimensions has none to take apart")
    if not len(sizes):
        raise RuntimeError("unflatten(): sizes must not be empty")
    shape = input._array.shape
    part = _resolve(tuple(map(operator.index, sizes)), shape[d], "unflatten", (shape[d],))
    return view(input, (*shape[:d], *part, *shape[d + 1 :]))


def permute(input: Tensor, *order: Any, dims: Any = None) -> Tensor:
    """A view with the dimensions in the order ``dims``.

    Raises:
        RuntimeError: ``dims`` is not an order of all dimensions.
    """
    wanted = given("permute", "dims", order, dims)
    axes = tuple(normalize_dim(d, input.ndim) for d in wanted)
    if sorted(axes) != list(range(input.ndim)):
        raise RuntimeError(
            f"permute(): dims must name each of {input.ndim} dimensions once, got {list(wanted)}"
        )
    return engine.apply_view(ops.transpose, input, axes=axes)


def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """A view with two dimensions exchanged."""
    n = input._array.ndim
    order = list(range(n))
    a, b = normalize_dim(dim0, n), normalize_dim(dim1, n)
    if n:
        order[a], order[b] = order[b], order[a]
    return engine.apply_view(ops.transpose, input, axes=tuple(order))


def swapaxes(input: Tensor, axis0: int, axis1: int) -> Tensor:
    """:func:`transpose`."""
    return transpose(input, axis0, axis1)


def swapdims(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """:func:`transpose`."""
    return transpose(input, dim0, dim1)


def t(input: Tensor) -> Tensor:
    """A view of a matrix transposed.

    Raises:
        RuntimeError: the tensor has more than two dimensions.
    """
    if input.ndim > 2:
        raise RuntimeError(
            f"t() expects at most 2 dimensions, got shape {list(input.shape)}; use transpose()"
        )
    return engine.apply_view(ops.transpose, input, axes=tuple(range(input.ndim))[::-1])


def adjoint(input: Tensor) -> Tensor:
    """A view with the last two dimensions exchanged.

    Raises:
        RuntimeError: the tensor has one dimension.
    """
    if input.ndim == 1:
        raise RuntimeError("adjoint() needs matrices, got a tensor of one dimension")
    return transpose(input, -2, -1) if input.ndim else input


def movedim(input: Tensor, source: int | Sequence[int], destination: int | Sequence[int]) -> Tensor:
    """A view with dimensions ``source`` moved to ``destination``."""
    src = [normalize_dim(d, input.ndim) for d in ([source] if isinstance(source, int) else source)]
    dst = [
        normalize_dim(d, input.ndim) for d in ([destination] if isinstance(destination, int) else destination)
    ]
    if len(src) != len(dst):
        raise RuntimeError(f"movedim(): {len(src)} source dimensions, but {len(dst)} destinations")
    if len(set(src)) < len(src) or len(set(dst)) < len(dst):
        raise RuntimeError(f"movedim(): a dimension appears twice in source {src} or destination {dst}")
    if not input.ndim:
        return permute(input, ())
    order = [d for d in range(input.ndim) if d not in src]
    for d, s in sorted(zip(dst, src, strict=True)):
        order.insert(d, s)
    return permute(input, order)


moveaxis = movedim


@numpy_names
def squeeze(input: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """A view without the dimensions of size 1 (among ``dim``, if given)."""
    drop: Any = range(input.ndim)
    if dim is not None:
        drop = () if not isinstance(dim, int) and not len(dim) else normalize_dims(dim, input.ndim)
    return engine.apply_view(
        ops.reshape,
        input,
        shape=tuple([n for i, n in enumerate(input._array.shape) if n != 1 or i not in drop]),
    )


@numpy_names
def unsqueeze(input: Tensor, dim: int) -> Tensor:
    """A view with a new dimension of size 1 at ``dim``."""
    shape = input._array.shape
    d = normalize_dim(dim, len(shape) + 1)
    return engine.apply_view(ops.reshape, input, shape=(*shape[:d], 1, *shape[d:]))


def expand(input: Tensor, *sizes: Any, size: Any = None, implicit: bool = False) -> Tensor:
    """A view with dimensions of size 1 repeated without a copy; -1 keeps a size.

    Raises:
        RuntimeError: a size other than 1 would have to change.
    """
    wanted = given("expand", "size", sizes, size)
    shape = input._array.shape
    extra = len(wanted) - len(shape)
    if extra < 0:
        raise RuntimeError(f"expand(): {len(wanted)} sizes for a tensor of shape {list(shape)}")
    full = [shape[i - extra] if n == -1 and i >= extra else n for i, n in enumerate(wanted)]
    for i, n in enumerate(full):
        if n < 0 or (i >= extra and shape[i - extra] not in (1, n)):
            raise RuntimeError(
                f"expand(): shape {list(shape)} cannot be expanded to {list(wanted)}: "
                f"dimension {i} has size {shape[i - extra] if i >= extra else 'none'}"
            )
    return engine.apply_view(ops.broadcast_to, input, shape=tuple(full))


def broadcast_to(input: Tensor, size: Sequence[int]) -> Tensor:
    """A view with dimensions of size 1 repeated without a copy; -1 keeps a size."""
    return expand(input, size)


def expand_as(input: Tensor, other: Tensor) -> Tensor:
    """``input.expand(other.shape)``."""
    return expand(input, other.shape)


def broadcast_shapes(*shapes: Any) -> Any:
    """The shape that tensors of these shapes broadcast to.

    Raises:
        RuntimeError: there is none.
    """
    from disttrain.tensors import Size

    full = [(s,) if isinstance(s, int) else tuple(map(operator.index, s)) for s in shapes]
    if any(n < 0 for s in full for n in s):
        raise ValueError(f"broadcast_shapes(): sizes must not be negative, got {[list(s) for s in full]}")
    try:
        return Size(np.broadcast_shapes(*full))
    except ValueError:
        shown = ", ".join(str(list(s)) for s in full)
        raise RuntimeError(f"shapes {shown} do not broadcast to one shape") from None


def broadcast_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors expanded to their common shape.

    Raises:
        RuntimeError: there is none.
    """
    if len(tensors) == 1 and isinstance(tensors[0], list | tuple):
        tensors = tuple(tensors[0])
    common = broadcast_shapes(*(x._array.shape for x in tensors))
    return tuple(x if x.shape == common else expand(x, common) for x in tensors)


def numel(input: Tensor) -> int:
    """The number of elements."""
    return int(input._array.size)


@numpy_names
def narrow(input: Tensor, dim: int, start: Any, length: int) -> Tensor:
    """A view of ``length`` elements from ``start`` along ``dim``.

    Raises:
        RuntimeError: the range goes beyond the tensor, or ``start`` is a tensor that holds no integer.
    """
    if isinstance(start, engine.Tensor_):
        if start.ndim or start.dtype.category != 1:
            raise RuntimeError(
                f"narrow(): start must be an integer, got a tensor of {start.dtype} and shape {list(start.shape)}"
            )
        start = start.item()
    d = normalize_dim(dim, input.ndim)
    if not input.ndim:
        raise RuntimeError("narrow(): a tensor without dimensions cannot be cut")
    if length < 0:
        raise RuntimeError(f"narrow(): length must not be negative, got {length}")
    n = input._array.shape[d]
    if not -n <= start <= n:
        raise IndexError(f"narrow(): start {start} does not lie in dimension {d} of size {n}")
    start = start + n if start < 0 else start
    if start + length > n:
        raise RuntimeError(f"narrow(): start {start} and length {length} go beyond dimension {d} of size {n}")
    return along(input, d, slice(start, start + length))


@numpy_names
def narrow_copy(input: Tensor, dim: int, start: Any, length: int) -> Tensor:
    """:func:`narrow` in memory of its own."""
    return clone(narrow(input, dim, start, length), memory_format=layouts.contiguous_format)


@numpy_names
def select(input: Tensor, dim: int, index: int) -> Tensor:
    """A view of element ``index`` of dimension ``dim``.

    Raises:
        IndexError: there is no such element.
    """
    d = normalize_dim(dim, input.ndim)
    index = operator.index(index)
    if not input.ndim or not -input._array.shape[d] <= index < input._array.shape[d]:
        raise IndexError(f"select(): there is no index {index} in dimension {d} of shape {list(input.shape)}")
    return along(input, d, index)


def along(input: Tensor, dim: int, where: Any) -> Tensor:
    """Return a view of one element or a slice of a dimension."""
    return engine.apply_view(ops.index, input, key=(*[slice(None)] * dim, where, ...))


def unfold(input: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """A view of all windows of ``size`` elements along a dimension, ``step`` apart, each in a new last dimension.

    Raises:
        RuntimeError: ``size`` is negative or larger than the dimension, or ``step`` is not positive.
    """
    d = normalize_dim(dimension, input.ndim)
    n = input._array.shape[d] if input.ndim else 1
    if not 0 <= size <= n:
        raise RuntimeError(f"unfold(): size must be in [0, {n}], the size of dimension {d}, got {size}")
    if step < 1:
        raise RuntimeError(f"unfold(): step must be positive, got {step}")
    if not input.ndim:
        return reshape(input, 1)[:size]
    return engine.apply_view(strided.unfold, input, axis=d, size=size, step=step)


def as_strided(
    input: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Tensor:
    """A view of the memory with a shape, strides and a beginning (by default that of ``input``) of one's own.

    Raises:
        RuntimeError: the numbers of sizes and strides differ, or the view would reach beyond the memory.
    """
    shape, steps = tuple(map(operator.index, size)), tuple(map(operator.index, stride))
    if len(shape) != len(steps):
        raise RuntimeError(f"as_strided(): {len(shape)} sizes, but {len(steps)} strides")
    if min(steps, default=0) < 0 or min(shape, default=0) < 0:
        raise RuntimeError(
            f"as_strided(): sizes and strides must not be negative, got {list(shape)} and {list(steps)}"
        )
    base = input if input._base is None else input._base
    offset = input.storage_offset() if storage_offset is None else operator.index(storage_offset)
    layout = base.stride()
    room, need = strided.extent(base._array.shape, layout), strided.extent(shape, steps)
    if offset < 0 or (need and offset + need > room):
        raise RuntimeError(
            f"as_strided(): sizes {list(shape)}, strides {list(steps)} and storage offset {offset} reach element "
            f"{offset + need}, beyond the memory of {room}"
        )
    if base is input or base._array.dtype == input._array.dtype:
        return engine.apply_view(
            strided.as_strided, base, shape=shape, strides=steps, offset=offset, layout=layout
        )
    raise RuntimeError("as_strided() of a tensor that is a view as another type; clone() it first")


def clone(input: Tensor, *, memory_format: Any = None) -> Tensor:
    """A copy in memory of its own; the gradient passes through."""
    if memory_format is None or memory_format is layouts.preserve_format:
        return engine.apply(ops.copy, input)  # type: ignore[no-any-return]
    return _laid_out(input, memory_format)


def contiguous(input: Tensor, memory_format: Any = layouts.contiguous_format) -> Tensor:
    """``input`` itself if its memory is row-major (or in the order asked for), else a copy that is.

    Raises:
        TypeError: ``memory_format`` is none.
        RuntimeError: the format needs another number of dimensions.
    """
    if is_contiguous(input, memory_format):
        return input
    return _laid_out(input, memory_format)


def is_contiguous(input: Tensor, memory_format: Any = layouts.contiguous_format) -> bool:
    """Return whether the memory is row-major (or in the order asked for)."""
    if memory_format is layouts.contiguous_format:
        return bool(input._array.flags.c_contiguous)
    if not isinstance(memory_format, layouts.memory_format):
        raise TypeError(
            f"memory_format must be a memory format such as disttrain.channels_last, got {memory_format!r}"
        )
    axes = memory_format.axes
    if axes is None:
        raise RuntimeError(f"is_contiguous() does not take {memory_format!r}")
    return len(axes) == input.ndim and bool(input._array.transpose(axes).flags.c_contiguous)


def _laid_out(input: Tensor, memory_format: Any) -> Tensor:
    axes = memory_format.axes
    if axes is None:
        return engine.apply(ops.copy, input, order="C")  # type: ignore[no-any-return]
    if len(axes) != input.ndim:
        raise RuntimeError(
            f"{memory_format!r} is for tensors of {len(axes)} dimensions, got shape {list(input.shape)}"
        )
    inner = engine.apply(ops.copy, permute(input, axes), order="C")
    back = tuple(int(a) for a in np.argsort(axes))
    return engine.apply(ops.transpose, inner, axes=back)  # type: ignore[no-any-return]


def _become(input: Tensor, changed: Tensor) -> Tensor:
    """Make ``input`` the view ``changed`` of itself: another shape, the same memory, the history one step longer."""
    if changed is input:
        return input
    engine.check_in_place(input)
    edge = changed._edge()
    input._array = changed._array
    if input._base is not None:
        input._chain, input._seen, input._layout = changed._chain, changed._seen, changed._layout
    else:
        input._layout += 1
    if edge is not None and edge[0] is not input:
        input._node, input._index = edge
    return input


@numpy_names
def squeeze_(input: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """:func:`squeeze` in place."""
    return _become(input, squeeze(input, dim))


@numpy_names
def unsqueeze_(input: Tensor, dim: int) -> Tensor:
    """:func:`unsqueeze` in place."""
    return _become(input, unsqueeze(input, dim))


def transpose_(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """:func:`transpose` in place."""
    return _become(input, transpose(input, dim0, dim1))


def swapaxes_(input: Tensor, axis0: int, axis1: int) -> Tensor:
    """:func:`transpose` in place."""
    return transpose_(input, axis0, axis1)


def swapdims_(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """:func:`transpose` in place."""
    return transpose_(input, dim0, dim1)


def t_(input: Tensor) -> Tensor:
    """:func:`t` in place."""
    return _become(input, t(input))


def as_strided_(
    input: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Tensor:
    """:func:`as_strided` in place."""
    return _become(input, as_strided(input, size, stride, storage_offset))


def resize_(input: Tensor, *sizes: Any, memory_format: Any = None) -> Tensor:
    """Give a tensor another shape and number of elements in place; those that are new are not set.

    Raises:
        RuntimeError: the tensor requires a gradient, or a size is negative.
    """
    shape = given("resize_", "size", sizes, None)
    if input.requires_grad:
        raise RuntimeError("resize_() of a tensor that requires grad; detach() it first")
    if min(shape, default=0) < 0:
        raise RuntimeError(f"resize_(): sizes must not be negative, got {list(shape)}")
    if shape == input._array.shape:
        return input
    count, old = math.prod(shape), input._array
    base = old if input._base is None else input._base._array
    flat: Any = base.reshape(-1) if base.flags.c_contiguous else old.reshape(-1)
    begin = input.storage_offset() if base.flags.c_contiguous else 0
    if begin + count > flat.size:
        grown = np.empty(count, old.dtype)
        grown[: flat.size - begin] = flat[begin:]
        flat, begin = grown, 0
    input._array = flat[begin : begin + count].reshape(shape)
    input._version_counter[0] += 1
    return input


def resize_as_(input: Tensor, the_template: Tensor, *, memory_format: Any = None) -> Tensor:
    """``input.resize_(the_template.shape)``."""
    return resize_(input, the_template.shape, memory_format=memory_format)


def sum_to_size(input: Tensor, *size: Any) -> Tensor:
    """``input`` summed to ``size``, which broadcasts to its shape.

    Raises:
        RuntimeError: it does not.
    """
    wanted, shape = given("sum_to_size", "size", size, None), input._array.shape
    fits = len(wanted) <= len(shape) and all(
        n in (1, m) for n, m in zip(wanted[::-1], shape[::-1], strict=False)
    )
    if not fits:
        raise RuntimeError(f"sum_to_size(): shape {list(shape)} cannot be summed to {list(wanted)}")
    return input if wanted == shape else engine.apply(ops.sum_to_shape, input, shape=wanted)
