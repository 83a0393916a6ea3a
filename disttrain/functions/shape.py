"""Functions that move elements, with PyTorch's names. Where PyTorch gives a view, so does this."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import engine
from disttrain.functions.common import cast, normalize_dim, normalize_dims, promote, sizes
from disttrain.ops import shape as ops

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


def _resolve(shape: tuple[int, ...], numel: int, name: str, old: tuple[int, ...]) -> tuple[int, ...]:
    """Return ``shape`` with its one -1 replaced.

    Raises:
        RuntimeError: the shape does not hold ``numel`` elements.
    """
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


def reshape(input: Tensor, *shape: Any) -> Tensor:
    """The same elements in another shape, a view where the memory allows it; one size may be -1.

    Raises:
        RuntimeError: the shape holds another number of elements.
    """
    size = _resolve(sizes(shape), input.numel(), "reshape", input.shape)
    return engine.apply_view(ops.reshape, input, shape=size)


def view(input: Tensor, *shape: Any) -> Any:
    """The same memory in another shape; with a dtype of the same width, the same bytes as that type.

    Raises:
        RuntimeError: the memory cannot be seen in that shape, or the shape holds another number of elements.
    """
    size = _resolve(sizes(shape), input.numel(), "view", input.shape)
    t = engine.apply_view(ops.reshape, input, shape=size)
    if t._array.size and not np.may_share_memory(t._array, input._array):
        raise RuntimeError(
            f"view(): a tensor of shape {list(input.shape)} and strides {list(input.stride())} cannot be "
            f"seen as {list(size)} without a copy; use reshape()"
        )
    return t


def view_as(input: Tensor, other: Tensor) -> Tensor:
    """``input.view(other.shape)``."""
    return view(input, other.shape)  # type: ignore[no-any-return]


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
    shape = input.shape
    if first == last:
        return input
    return reshape(input, *shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :])


def ravel(input: Tensor) -> Tensor:
    """All elements in one dimension."""
    return reshape(input, -1) if input.numel() else reshape(input, 0)


def unflatten(input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """Dimension ``dim`` as several of ``sizes``; one may be -1."""
    d = normalize_dim(dim, input.ndim)
    part = _resolve(tuple(sizes), input.shape[d], "unflatten", (input.shape[d],))
    return view(input, *input.shape[:d], *part, *input.shape[d + 1 :])  # type: ignore[no-any-return]


def permute(input: Tensor, *dims: Any) -> Tensor:
    """A view with the dimensions in the order ``dims``.

    Raises:
        RuntimeError: ``dims`` is not an order of all dimensions.
    """
    order = tuple(normalize_dim(d, input.ndim) for d in sizes(dims))
    if sorted(order) != list(range(input.ndim)):
        raise RuntimeError(
            f"permute(): dims must name each of {input.ndim} dimensions once, got {list(sizes(dims))}"
        )
    return engine.apply_view(ops.transpose, input, axes=order)


def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """A view with two dimensions exchanged."""
    order = list(range(input.ndim))
    a, b = normalize_dim(dim0, input.ndim), normalize_dim(dim1, input.ndim)
    if input.ndim:
        order[a], order[b] = order[b], order[a]
    return engine.apply_view(ops.transpose, input, axes=tuple(order))


swapaxes = transpose


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
    order = [d for d in range(input.ndim) if d not in src]
    for d, s in sorted(zip(dst, src, strict=True)):
        order.insert(d, s)
    return permute(input, order)


def squeeze(input: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """A view without the dimensions of size 1 (among ``dim``, if given)."""
    drop = normalize_dims(dim, input.ndim) if dim is not None else range(input.ndim)
    return engine.apply_view(
        ops.reshape, input, shape=tuple(n for i, n in enumerate(input.shape) if n != 1 or i not in drop)
    )


def unsqueeze(input: Tensor, dim: int) -> Tensor:
    """A view with a new dimension of size 1 at ``dim``."""
    d = normalize_dim(dim, input.ndim + 1)
    return engine.apply_view(ops.reshape, input, shape=(*input.shape[:d], 1, *input.shape[d:]))


def expand(input: Tensor, *size: Any) -> Tensor:
    """A view with dimensions of size 1 repeated without a copy; -1 keeps a size.

    Raises:
        RuntimeError: a size other than 1 would have to change.
    """
    wanted = sizes(size)
    extra = len(wanted) - input.ndim
    if extra < 0:
        raise RuntimeError(f"expand(): {len(wanted)} sizes for a tensor of shape {list(input.shape)}")
    full = [input.shape[i - extra] if n == -1 and i >= extra else n for i, n in enumerate(wanted)]
    for i, n in enumerate(full):
        if n < 0 or (i >= extra and input.shape[i - extra] not in (1, n)):
            raise RuntimeError(
                f"expand(): shape {list(input.shape)} cannot be expanded to {list(wanted)}: "
                f"dimension {i} has size {input.shape[i - extra] if i >= extra else 'none'}"
            )
    return engine.apply_view(ops.broadcast_to, input, shape=tuple(full))


broadcast_to = expand


def expand_as(input: Tensor, other: Tensor) -> Tensor:
    """``input.expand(other.shape)``."""
    return expand(input, other.shape)


def broadcast_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors expanded to their common shape."""
    try:
        common = np.broadcast_shapes(*(x.shape for x in tensors))
    except ValueError:
        shapes = ", ".join(str(list(x.shape)) for x in tensors)
        raise RuntimeError(f"shapes {shapes} do not broadcast to one shape") from None
    return tuple(expand(x, common) for x in tensors)


def repeat(input: Tensor, *repeats: Any) -> Tensor:
    """A copy repeated ``repeats`` times along its dimensions; more numbers than dimensions add new ones in front.

    Raises:
        RuntimeError: there are fewer numbers than dimensions.
    """
    times = sizes(repeats)
    if min(times, default=0) < 0:
        raise RuntimeError(f"repeat(): the numbers of times must not be negative, got {list(times)}")
    if len(times) < input.ndim:
        raise RuntimeError(f"repeat(): {len(times)} numbers for a tensor of shape {list(input.shape)}")
    grown = reshape(input, (1,) * (len(times) - input.ndim) + tuple(input.shape))
    return engine.apply(ops.tile, grown, repeats=times)  # type: ignore[no-any-return]


def tile(input: Tensor, *dims: Any) -> Tensor:
    """As :func:`repeat`; missing numbers in front are 1."""
    times = sizes(dims)
    return repeat(input, (1,) * (input.ndim - len(times)) + times)


def narrow(input: Tensor, dim: int, start: int, length: int) -> Tensor:
    """A view of ``length`` elements from ``start`` along ``dim``.

    Raises:
        RuntimeError: the range goes beyond the tensor.
    """
    d = normalize_dim(dim, input.ndim)
    if not input.ndim:
        raise RuntimeError("narrow(): a tensor without dimensions cannot be cut")
    n = input.shape[d]
    if not -n <= start <= n:
        raise IndexError(f"narrow(): start {start} is out of range for dimension {d} of size {n}")
    start = start + n if start < 0 else start
    if length < 0 or start + length > n:
        raise RuntimeError(f"narrow(): start {start} and length {length} go beyond dimension {d} of size {n}")
    return _index(input, d, slice(start, start + length))


def select(input: Tensor, dim: int, index: int) -> Tensor:
    """A view of element ``index`` of dimension ``dim``.

    Raises:
        IndexError: there is no such element.
    """
    d = normalize_dim(dim, input.ndim)
    if not input.ndim or not -input.shape[d] <= index < input.shape[d]:
        raise IndexError(
            f"select(): index {index} out of range for dimension {d} of shape {list(input.shape)}"
        )
    return _index(input, d, index)


def _index(input: Tensor, dim: int, where: Any) -> Tensor:
    return engine.apply_view(ops.index, input, key=(*[slice(None)] * dim, where, ...))


def split(input: Tensor, split_size_or_sections: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Views of pieces along ``dim``: of one size (the last may be smaller), or of the sizes given.

    Raises:
        RuntimeError: the sizes do not add up to the dimension's.
    """
    if not input.ndim:
        raise RuntimeError("split(): a tensor without dimensions cannot be split")
    d = normalize_dim(dim, input.ndim)
    n = input.shape[d]
    if isinstance(split_size_or_sections, int):
        size = split_size_or_sections
        if size < 0 or (size == 0 and n):
            raise RuntimeError(f"split(): the size of a piece must be positive, got {size}")
        parts = [min(size, n - i) for i in range(0, n, size)] if n else [0]
    else:
        parts = list(split_size_or_sections)
        if sum(parts) != n or min(parts, default=0) < 0:
            raise RuntimeError(f"split(): sizes {parts} must add up to {n}, the size of dimension {d}")
    begins = np.cumsum([0, *parts])
    return tuple(_index(input, d, slice(int(b), int(b) + p)) for b, p in zip(begins, parts, strict=False))


def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of at most ``chunks`` pieces of equal size (the last may be smaller) along ``dim``."""
    if chunks < 1:
        raise RuntimeError(f"chunk(): the number of chunks must be positive, got {chunks}")
    if not input.ndim:
        raise RuntimeError("chunk(): a tensor without dimensions cannot be split")
    n = input.shape[normalize_dim(dim, input.ndim)]
    return split(input, -(-n // chunks) if n else [0] * chunks, dim)


def unbind(input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of all elements of dimension ``dim``."""
    d = normalize_dim(dim, input.ndim)
    if not input.ndim:
        raise IndexError("unbind(): a tensor without dimensions cannot be taken apart")
    return tuple(select(input, d, i) for i in range(input.shape[d]))


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors one after the other along ``dim``, in their common type.

    Raises:
        ValueError: there are none.
        RuntimeError: their shapes differ in another dimension.
    """
    if not len(tensors):
        raise ValueError("cat() needs at least one tensor, got none")
    some = [x for x in tensors if x.shape != (0,)] or list(tensors[:1])
    d = normalize_dim(dim, some[0].ndim)
    for i, x in enumerate(some):
        if not x.ndim:
            raise RuntimeError(f"cat(): tensor {i} has no dimensions; use stack()")
        same = x.ndim == some[0].ndim and all(
            a == b for j, (a, b) in enumerate(zip(x.shape, some[0].shape, strict=True)) if j != d
        )
        if not same:
            raise RuntimeError(
                f"cat(): tensors must have the same shape except in dimension {d}; tensor 0 has "
                f"{list(some[0].shape)}, tensor {i} has {list(x.shape)}"
            )
    return engine.apply(ops.concatenate, *_common(some), axis=d)  # type: ignore[no-any-return]


concat = concatenate = cat


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors along a new dimension ``dim``, in their common type.

    Raises:
        RuntimeError: there are none, or their shapes differ.
    """
    if not len(tensors):
        raise RuntimeError("stack() needs at least one tensor, got none")
    for i, x in enumerate(tensors):
        if x.shape != tensors[0].shape:
            raise RuntimeError(
                f"stack(): tensors must have one shape; tensor 0 has {list(tensors[0].shape)}, "
                f"tensor {i} has {list(x.shape)}"
            )
    return engine.apply(  # type: ignore[no-any-return]
        ops.stack, *_common(tensors), axis=normalize_dim(dim, tensors[0].ndim + 1)
    )


def _common(tensors: Sequence[Tensor]) -> list[Tensor]:
    if all(x.dtype is tensors[0].dtype for x in tensors):
        return list(tensors)
    kind = promote(*[x.reshape(-1) for x in tensors])[0]._array.dtype
    return [cast(x, kind) for x in tensors]


def flip(input: Tensor, *dims: Any) -> Tensor:
    """A copy with the order along ``dims`` reversed."""
    axes = tuple(normalize_dim(d, input.ndim) for d in sizes(dims))
    if len(set(axes)) < len(axes):
        raise RuntimeError(f"flip(): a dimension appears twice in dims={list(sizes(dims))}")
    if not input.ndim:
        return clone(input)
    return engine.apply(ops.flip, input, axes=axes)  # type: ignore[no-any-return]


def roll(input: Tensor, shifts: int | Sequence[int], dims: int | Sequence[int] | None = None) -> Tensor:
    """A copy shifted along ``dims``; what leaves at one end comes in at the other. Flattened without ``dims``."""
    by = (shifts,) if isinstance(shifts, int) else tuple(shifts)
    if dims is None:
        flat: Tensor = engine.apply(ops.roll, ravel(input), shifts=by, axes=(0,))
        return reshape(flat, input.shape)
    axes = (dims,) if isinstance(dims, int) else tuple(dims)
    if len(by) != len(axes):
        raise RuntimeError(f"roll(): {len(by)} shifts, but {len(axes)} dims")
    axes = tuple(normalize_dim(d, input.ndim) for d in axes)
    return engine.apply(ops.roll, input, shifts=by, axes=axes)  # type: ignore[no-any-return]


def diagonal(input: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """A view of the diagonal of two dimensions, as the last dimension."""
    a, b = normalize_dim(dim1, input.ndim), normalize_dim(dim2, input.ndim)
    if a == b:
        raise RuntimeError(f"diagonal(): dim1 and dim2 are the same, {dim1} and {dim2}")
    return engine.apply_view(ops.diagonal, input, offset=offset, axis1=a, axis2=b)


def clone(input: Tensor) -> Tensor:
    """A copy in memory of its own; the gradient passes through."""
    return engine.apply(ops.copy, input)  # type: ignore[no-any-return]


def contiguous(input: Tensor) -> Tensor:
    """``input`` itself if its memory is row-major, else a copy that is."""
    return input if input._array.flags.c_contiguous else engine.apply(ops.copy, input, order="C")
