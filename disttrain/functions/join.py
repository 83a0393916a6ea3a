"""Tensors put together and taken apart, with PyTorch's names. Pieces are views, as in PyTorch."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import engine
from disttrain.functions.common import cast, normalize_dim, numpy_names, promote
from disttrain.functions.shape import (
    along,
    expand,
    flatten,
    reshape,
    unsqueeze,
    view,
)
from disttrain.ops import shape as ops
from disttrain.precision import autocasts

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

# ------------------------------------------------------------------------------------------------ taken apart


def _cut(input: Tensor, dim: int, parts: Sequence[int]) -> tuple[Tensor, ...]:
    """Return views of consecutive pieces of the sizes ``parts``."""
    if not parts:
        return ()
    ends = list(itertools.accumulate(parts, initial=0))
    slices = [slice(b, b + n) for b, n in zip(ends, parts, strict=False)]
    if ends[-1] != input._array.shape[dim]:
        return tuple([along(input, dim, part) for part in slices])
    keys = [{"key": (*[slice(None)] * dim, part, ...)} for part in slices]
    each = [(ops.index, key) for key in keys]
    return engine.apply_views(ops.split, input, each, axis=dim, sizes=tuple(parts))


@numpy_names
def split(tensor: Tensor, split_size_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of pieces along ``dim``: of one size (the last may be smaller), or of the sizes given.

    Raises:
        RuntimeError: the sizes do not add up to the dimension's.
    """
    if isinstance(split_size_or_sections, list | tuple):
        return split_with_sizes(tensor, split_size_or_sections, dim)
    size = operator.index(split_size_or_sections)
    if not tensor.ndim:
        raise RuntimeError("split(): a tensor without dimensions cannot be split")
    d = normalize_dim(dim, tensor.ndim)
    n = tensor._array.shape[d]
    if size < 0 or (size == 0 and n):
        raise RuntimeError(f"split(): the size of a piece must be positive, got {size}")
    return _cut(tensor, d, [min(size, n - i) for i in range(0, n, size)] if n else [0])


def split_with_sizes(input: Tensor, split_sizes: Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Views of pieces of the sizes given along ``dim``.

    Raises:
        RuntimeError: the sizes do not add up to the dimension's.
    """
    if not input.ndim:
        raise RuntimeError("split_with_sizes(): a tensor without dimensions cannot be split")
    d = normalize_dim(dim, input.ndim)
    n, parts = input._array.shape[d], [operator.index(p) for p in split_sizes]
    if sum(parts) != n or min(parts, default=0) < 0:
        raise RuntimeError(f"split(): sizes {parts} must add up to {n}, the size of dimension {d}")
    return _cut(input, d, parts)


@numpy_names
def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of at most ``chunks`` pieces of equal size (the last may be smaller) along ``dim``."""
    if chunks < 1:
        raise RuntimeError(f"chunk(): the number of chunks must be positive, got {chunks}")
    if not input.ndim:
        raise RuntimeError("chunk(): a tensor without dimensions cannot be split")
    n = input._array.shape[normalize_dim(dim, input.ndim)]
    return split(input, -(-n // chunks) if n else [0] * chunks, dim)


@numpy_names
def tensor_split(
    input: Tensor, indices_or_sections: Any = None, dim: int = 0, *, indices: Any = None, sections: Any = None
) -> tuple[Tensor, ...]:
    """Views of pieces along ``dim``: of as many, or between the indices given; sizes differ by at most one.

    Raises:
        RuntimeError: the number is not positive, or the tensor has no dimensions.
    """
    where = next((w for w in (indices_or_sections, indices, sections) if w is not None), None)
    if where is None:
        raise TypeError("tensor_split() needs indices_or_sections")
    if not input.ndim:
        raise RuntimeError("tensor_split(): a tensor without dimensions cannot be split")
    d = normalize_dim(dim, input.ndim)
    n = input._array.shape[d]
    if isinstance(where, engine.Tensor_):
        if where.ndim > 1 or where.dtype.name != "int64":
            raise RuntimeError(
                f"tensor_split(): indices must be int64 in at most one dimension, got {where.dtype} of shape "
                f"{list(where.shape)}"
            )
        where = where.tolist()
    if isinstance(where, list | tuple):
        bounds = [
            slice(*b).indices(n)[:2] for b in itertools.pairwise([None, *map(operator.index, where), None])
        ]
        return tuple(along(input, d, slice(b, max(b, e))) for b, e in bounds)
    count = operator.index(where)
    if count < 1:
        raise RuntimeError(f"tensor_split(): the number of sections must be positive, got {count}")
    return _cut(input, d, [n // count + (i < n % count) for i in range(count)])


def _split_along(name: str, input: Tensor, where: Any, least: int, dim: int) -> tuple[Tensor, ...]:
    if input.ndim < least:
        raise RuntimeError(f"{name}() needs at least {least} dimensions, got shape {list(input.shape)}")
    if isinstance(where, int) and (where < 1 or input._array.shape[dim] % where):
        raise RuntimeError(
            f"{name}(): dimension {dim} of size {input._array.shape[dim]} cannot be split into {where} equal pieces"
        )
    return tensor_split(input, where, dim)


def hsplit(
    input: Tensor, indices_or_sections: Any = None, *, indices: Any = None, sections: Any = None
) -> Any:
    """:func:`tensor_split` along dimension 1 (0 of a vector), into equal pieces if a number is given."""
    where = next((w for w in (indices_or_sections, indices, sections) if w is not None), None)
    return _split_along("hsplit", input, where, 1, 0 if input.ndim == 1 else 1)


def vsplit(
    input: Tensor, indices_or_sections: Any = None, *, indices: Any = None, sections: Any = None
) -> Any:
    """:func:`tensor_split` along dimension 0, into equal pieces if a number is given."""
    where = next((w for w in (indices_or_sections, indices, sections) if w is not None), None)
    return _split_along("vsplit", input, where, 2, 0)


def dsplit(
    input: Tensor, indices_or_sections: Any = None, *, indices: Any = None, sections: Any = None
) -> Any:
    """:func:`tensor_split` along dimension 2, into equal pieces if a number is given."""
    where = next((w for w in (indices_or_sections, indices, sections) if w is not None), None)
    return _split_along("dsplit", input, where, 3, 2)


@numpy_names
def unbind(input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of all elements of dimension ``dim``."""
    d = normalize_dim(dim, input.ndim)
    if not input.ndim:
        raise IndexError("unbind(): a tensor without dimensions cannot be taken apart")
    if not input._array.shape[d]:
        return ()
    keys = [{"key": (*[slice(None)] * d, i, ...)} for i in range(input._array.shape[d])]
    return engine.apply_views(ops.unbind, input, [(ops.index, key) for key in keys], axis=d)


# ------------------------------------------------------------------------------------------------ put together


@autocasts
def cat(tensors: Sequence[Tensor], dim: int = 0, *, axis: int | None = None) -> Tensor:
    """The tensors one after the other along ``dim``, in their common type.

    Raises:
        ValueError: there are none.
        RuntimeError: their shapes differ in another dimension.
    """
    tensors = _sequence("cat", tensors)
    if not tensors:
        raise ValueError("cat() needs at least one tensor, got none")
    some = [x for x in tensors if x._array.shape != (0,)] or list(tensors[:1])
    first = some[0]._array.shape
    d = normalize_dim(dim if axis is None else axis, len(first))
    for i, x in enumerate(some):
        shape = x._array.shape
        if not shape:
            raise RuntimeError(f"cat(): tensor {i} has no dimensions; use stack()")
        if len(shape) != len(first) or shape[:d] != first[:d] or shape[d + 1 :] != first[d + 1 :]:
            raise RuntimeError(
                f"cat(): shapes may differ in dimension {d} only; tensor 0 has "
                f"{list(first)}, tensor {i} has {list(shape)}"
            )
    return engine.apply(ops.concatenate, *_common(some, tensors), axis=d)  # type: ignore[no-any-return]


concat = concatenate = cat


@numpy_names
@autocasts
def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors along a new dimension ``dim``, in their common type.

    Raises:
        RuntimeError: there are none, or their shapes differ.
    """
    tensors = _sequence("stack", tensors)
    if not tensors:
        raise RuntimeError("stack() needs at least one tensor, got none")
    first = tensors[0]._array.shape
    d = normalize_dim(dim, len(first) + 1)
    for i, x in enumerate(tensors):
        if x._array.shape != first:
            raise RuntimeError(
                f"stack(): tensors must have one shape; tensor 0 has {list(first)}, tensor {i} has {list(x.shape)}"
            )
    return engine.apply(ops.stack, *_common(tensors, tensors), axis=d)  # type: ignore[no-any-return]


def _sequence(name: str, tensors: Any) -> list[Tensor]:
    if not isinstance(tensors, list | tuple):
        if isinstance(tensors, engine.Tensor_):
            raise TypeError(f"{name}() needs a sequence of Tensors, got one Tensor")
        tensors = list(tensors)
    for i, x in enumerate(tensors):
        if not isinstance(x, engine.Tensor_):
            raise TypeError(f"{name}() needs Tensors, element {i} is {type(x).__name__}: {x!r:.80}")
    return list(tensors)


def _common(tensors: Sequence[Tensor], deciding: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors in the type that those ``deciding`` have in common; the number of dimensions is no matter."""
    kind = deciding[0]._array.dtype
    if any(x._array.dtype != kind for x in deciding):
        kind = promote(*[engine.Tensor_._of(np.empty(1, x._array.dtype)) for x in deciding])[0]._array.dtype
    return [cast(x, kind) for x in tensors]


def hstack(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors one after the other along dimension 1 (0 for vectors and numbers)."""
    grown = atleast_1d(_some("hstack", tensors))
    return cat(grown, 0 if grown[0].ndim == 1 else 1)


def vstack(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors, vectors as rows, one below the other."""
    return cat(atleast_2d(_some("vstack", tensors)), 0)


def row_stack(tensors: Sequence[Tensor]) -> Tensor:
    """:func:`vstack`."""
    return vstack(tensors)


def dstack(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors, with at least three dimensions, along dimension 2."""
    return cat(atleast_3d(_some("dstack", tensors)), 2)


def column_stack(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors, vectors as columns, side by side."""
    return hstack([x if x.ndim > 1 else reshape(x, (x.numel(), 1)) for x in _some("column_stack", tensors)])


def _some(name: str, tensors: Any) -> list[Tensor]:
    found = _sequence(name, tensors)
    if not found:
        raise RuntimeError(f"{name}() needs at least one tensor, got none")
    return found


def _at_least(name: str, n: int, tensors: tuple[Any, ...]) -> Any:
    if len(tensors) == 1 and isinstance(tensors[0], engine.Tensor_):
        return _grown(tensors[0], n)
    if len(tensors) == 1:
        tensors = tuple(_sequence(name, tensors[0]))
    return tuple(_grown(x, n) for x in _sequence(name, tensors))


def _grown(x: Tensor, n: int) -> Tensor:
    if x.ndim >= n:
        return x
    if not x.ndim:
        return reshape(x, (1,) * n)
    if x.ndim == 1:
        return unsqueeze(x, 0) if n == 2 else unsqueeze(unsqueeze(x, 0), -1)
    return unsqueeze(x, -1)


def atleast_1d(*tensors: Any) -> Any:
    """The tensor, or each of several, as a view with at least one dimension."""
    return _at_least("atleast_1d", 1, tensors)


def atleast_2d(*tensors: Any) -> Any:
    """The tensor, or each of several, as a view with at least two dimensions; vectors are rows."""
    return _at_least("atleast_2d", 2, tensors)


def atleast_3d(*tensors: Any) -> Any:
    """The tensor, or each of several, as a view with at least three dimensions."""
    return _at_least("atleast_3d", 3, tensors)


def block_diag(*tensors: Tensor) -> Tensor:
    """A matrix with the matrices (vectors are rows) along its diagonal, and zeros elsewhere.

    Raises:
        RuntimeError: a tensor has more than two dimensions.
    """
    for i, x in enumerate(_sequence("block_diag", tensors)):
        if x.ndim > 2:
            raise RuntimeError(
                f"block_diag() takes tensors of at most 2 dimensions, tensor {i} has shape {list(x.shape)}"
            )
    if not tensors:
        return engine.Tensor_._of(np.zeros((1, 0), np.float32))  # type: ignore[no-any-return]
    blocks = [atleast_2d(x) for x in tensors]
    blocks = _common(blocks, blocks)
    width = sum(b.shape[1] for b in blocks)
    rows, before = [], 0
    for b in blocks:
        behind = width - before - b.shape[1]
        rows.append(engine.apply(ops.pad, b, widths=((0, 0), (before, behind)), value=0))
        before += b.shape[1]
    return cat(rows)


# ------------------------------------------------------------------------------------------------ products of sets


def meshgrid(*tensors: Any, indexing: str | None = None) -> tuple[Tensor, ...]:
    """One tensor for each vector: views with its elements along its dimension of a grid.

    Args:
        tensors: vectors and numbers of one type, or one sequence of them.
        indexing: ``"ij"`` (by default) for dimensions in the order of the vectors; ``"xy"`` exchanges the first two.

    Raises:
        RuntimeError: there are none, one has several dimensions, or their types differ.
    """
    vectors = _sequence("meshgrid", tensors[0] if len(tensors) == 1 and _is_list(tensors[0]) else tensors)
    if not vectors:
        raise RuntimeError("meshgrid() needs at least one tensor, got none")
    if indexing not in (None, "ij", "xy"):
        raise RuntimeError(f"meshgrid(): indexing must be 'ij' or 'xy', got {indexing!r}")
    for i, v in enumerate(vectors):
        if v.ndim > 1:
            raise RuntimeError(f"meshgrid() takes vectors and numbers, tensor {i} has shape {list(v.shape)}")
        if v.dtype is not vectors[0].dtype:
            raise RuntimeError(
                f"meshgrid() takes tensors of one type, got {vectors[0].dtype} and {v.dtype}; convert with .to()"
            )
    swap = indexing == "xy" and len(vectors) > 1
    if swap:
        vectors[:2] = vectors[1::-1]
    shape = tuple(v.numel() for v in vectors)
    grids = []
    for i, v in enumerate(vectors):
        line = view(v, (1,) * i + (v.numel(),) + (1,) * (len(vectors) - i - 1))
        grids.append(expand(line, shape))
    if swap:
        grids[:2] = grids[1::-1]
    return tuple(grids)


def _is_list(x: Any) -> bool:
    return isinstance(x, list | tuple)


def cartesian_prod(*tensors: Tensor) -> Tensor:
    """All combinations of one element of each vector, as rows; of one vector, itself."""
    vectors = _sequence(
        "cartesian_prod", tensors[0] if len(tensors) == 1 and _is_list(tensors[0]) else tensors
    )
    for i, v in enumerate(vectors):
        if v.ndim != 1:
            raise RuntimeError(f"cartesian_prod() takes vectors, tensor {i} has shape {list(v.shape)}")
    if not vectors:
        raise RuntimeError("cartesian_prod() needs at least one vector, got none")
    if len(vectors) == 1:
        return vectors[0]
    return stack([flatten(g) for g in meshgrid(*vectors)], 1)


def combinations(input: Tensor, r: int = 2, with_replacement: bool = False) -> Tensor:
    """All choices of ``r`` elements of a vector in their order, as rows, as Python's ``itertools``.

    Raises:
        RuntimeError: ``input`` is no vector, or ``r`` is negative.
    """
    if input.ndim != 1:
        raise RuntimeError(f"combinations() takes a vector, got shape {list(input.shape)}")
    if r < 0:
        raise RuntimeError(f"combinations(): r must not be negative, got {r}")
    if r == 0:
        return engine.Tensor_._of(np.empty(0, input._array.dtype))  # type: ignore[no-any-return]
    n = input.numel()
    choose = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    count = math.comb(n + r - 1, r) if with_replacement and n else math.comb(n, r)
    flat = itertools.chain.from_iterable(choose(range(n), r))
    rows = np.fromiter(flat, np.int64, count * r).reshape(count, r)
    return input[engine.Tensor_._of(rows)]


unsafe_split, unsafe_chunk, unsafe_split_with_sizes = split, chunk, split_with_sizes
"""As those without the prefix, which PyTorch's forget that their results are views."""
