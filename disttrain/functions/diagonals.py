"""Diagonals and triangles of matrices, and slices written into copies, with PyTorch's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import dtypes, engine
from disttrain.functions.common import (
    as_operand,
    cast,
    fitting,
    need_tensors,
    normalize_dim,
    numpy_names,
    overwrite,
)
from disttrain.functions.shape import broadcast_to, clone
from disttrain.layouts import need_strided
from disttrain.ops import index as index_ops
from disttrain.ops import shape as ops
from disttrain.precision import autocasts

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


def diagonal(input: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """A view of the diagonal of two dimensions, as the last dimension."""
    return engine.apply_view(ops.diagonal, input, **_diagonal_options(input, offset, dim1, dim2))


def _diagonal_options(input: Tensor, offset: int, dim1: int, dim2: int) -> dict[str, int]:
    a, b = normalize_dim(dim1, input.ndim), normalize_dim(dim2, input.ndim)
    if a == b:
        raise RuntimeError(f"diagonal(): dim1 and dim2 are the same, {dim1} and {dim2}")
    return {"offset": offset, "axis1": a, "axis2": b}


def diag(input: Tensor, diagonal: int = 0) -> Tensor:
    """A copy of a diagonal of a matrix, or the matrix with a vector on a diagonal.

    Raises:
        RuntimeError: neither a vector nor a matrix.
    """
    if input.ndim == 1:
        return diag_embed(input, diagonal)
    if input.ndim != 2:
        raise RuntimeError(f"diag() takes a vector or a matrix, got shape {list(input.shape)}")
    return clone(_diagonal(input, diagonal))


_diagonal = diagonal


def diag_embed(input: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """Zeros with the last dimension of ``input`` on the diagonal of two new dimensions.

    Raises:
        RuntimeError: the dimensions are the same.
    """
    n = input.ndim + 1
    a, b = normalize_dim(dim1, n), normalize_dim(dim2, n)
    if a == b:
        raise RuntimeError(f"diag_embed(): dim1 and dim2 are the same, {dim1} and {dim2}")
    if not input.ndim:
        raise IndexError("diag_embed() needs at least 1 dimension, got a tensor without")
    size = input._array.shape[-1] + abs(offset)
    shape = list(input._array.shape[:-1])
    for d in sorted((a, b)):
        shape.insert(d, size)
    chain = ((ops.diagonal, {"offset": offset, "axis1": a, "axis2": b}),)
    return engine.apply(ops.scatter_view, input, shape=tuple(shape), chain=chain)  # type: ignore[no-any-return]


def diagflat(input: Tensor, offset: int = 0) -> Tensor:
    """The matrix with all elements of ``input`` on a diagonal."""
    return diag_embed(input.reshape(-1), offset)


@autocasts
def trace(input: Tensor) -> Tensor:
    """The sum of the diagonal of a matrix.

    Raises:
        RuntimeError: no matrix, or one of booleans.
    """
    if input.ndim != 2:
        raise RuntimeError(f"trace() takes a matrix, got shape {list(input.shape)}")
    if input.dtype.category == 0:
        raise RuntimeError("trace() takes numbers, got booleans; convert them with .to()")
    return _diagonal(input).sum()


def tril(input: Tensor, diagonal: int = 0) -> Tensor:
    """Zeros above a diagonal of the last two dimensions."""
    return _triangle("tril", input, diagonal, upper=False)


def triu(input: Tensor, diagonal: int = 0) -> Tensor:
    """Zeros below a diagonal of the last two dimensions."""
    return _triangle("triu", input, diagonal, upper=True)


def _triangle(name: str, input: Tensor, diagonal: int, *, upper: bool) -> Tensor:
    if input.ndim < 2:
        raise RuntimeError(f"{name}() needs at least 2 dimensions, got shape {list(input.shape)}")
    return engine.apply(index_ops.triangle, input, diagonal=diagonal, upper=upper)  # type: ignore[no-any-return]


def tril_(input: Tensor, diagonal: int = 0) -> Tensor:
    """:func:`tril` in place."""
    return overwrite(input, tril, diagonal)


def triu_(input: Tensor, diagonal: int = 0) -> Tensor:
    """:func:`triu` in place."""
    return overwrite(input, triu, diagonal)


def _triangle_indices(
    name: str, row: int, col: int, offset: int, dtype: Any, device: Any, layout: Any, upper: bool
) -> Tensor:
    need_strided(layout)
    kind = dtypes.int64 if dtype is None else dtypes.as_dtype(dtype)
    if row < 0 or col < 0:
        raise RuntimeError(f"{name}(): row and col must not be negative, got {row} and {col}")
    if kind.name not in ("int64", "int32"):
        raise RuntimeError(f"{name}(): dtype must be int64 or int32, got {kind}")
    mask = np.tri(row, col, offset - 1 if upper else offset, dtype=bool)
    places = np.stack(np.nonzero(~mask if upper else mask)).astype(kind.numpy)
    t: Tensor = engine.Tensor_._of(places)
    return t if device is None else t.to(device)


def tril_indices(
    row: int, col: int, offset: int = 0, *, dtype: Any = None, device: Any = None, layout: Any = None
) -> Tensor:
    """Rows and columns of the elements on and below a diagonal, ``(2, count)`` int64."""
    return _triangle_indices("tril_indices", row, col, offset, dtype, device, layout, False)


def triu_indices(
    row: int, col: int, offset: int = 0, *, dtype: Any = None, device: Any = None, layout: Any = None
) -> Tensor:
    """Rows and columns of the elements on and above a diagonal, ``(2, count)`` int64."""
    return _triangle_indices("triu_indices", row, col, offset, dtype, device, layout, True)


# ------------------------------------------------------------------------------------------------ into copies


def _into(name: str, input: Tensor, src: Tensor, op: Any, options: dict[str, Any]) -> Tensor:
    """Return a copy of ``input`` with ``src``, of the same shape, in the view that ``op`` takes of it."""
    part = op(input._array, **options)[0]
    if src._array.shape != part.shape:
        raise RuntimeError(
            f"{name}(): src must have the shape of what it replaces, {list(part.shape)}, got {list(src.shape)}"
        )
    value = cast(src, input._array.dtype)
    return engine.apply(ops.view_scatter, input, value, chain=((op, options),))  # type: ignore[no-any-return]


def diagonal_scatter(input: Tensor, src: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """A copy of ``input`` with ``src`` on the diagonal of two dimensions."""
    return _into("diagonal_scatter", input, src, ops.diagonal, _diagonal_options(input, offset, dim1, dim2))


@numpy_names
def select_scatter(input: Tensor, src: Tensor, dim: int, index: int) -> Tensor:
    """A copy of ``input`` with ``src`` as element ``index`` of dimension ``dim``.

    Raises:
        IndexError: there is no such element.
    """
    d = normalize_dim(dim, input.ndim)
    if not input.ndim or not -input.shape[d] <= index < input.shape[d]:
        raise IndexError(
            f"select_scatter(): there is no index {index} in dimension {d} of shape {list(input.shape)}"
        )
    return _into("select_scatter", input, src, ops.index, {"key": (*[slice(None)] * d, index, ...)})


@numpy_names
def slice_scatter(
    input: Tensor, src: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    """A copy of ``input`` with ``src`` in a slice of dimension ``dim``.

    Raises:
        RuntimeError: ``step`` is not positive, or ``src`` has another shape than the slice.
    """
    d = normalize_dim(dim, input.ndim)
    if step < 1:
        raise RuntimeError(f"slice_scatter(): step must be positive, got {step}")
    key = (*[slice(None)] * d, slice(start, end, step), ...)
    part = ops.index(input._array, key=key)[0]
    return _into("slice_scatter", input, broadcast_to(src, part.shape), ops.index, {"key": key})


def fill_diagonal_(input: Tensor, fill_value: Any, wrap: bool = False) -> Tensor:
    """Write a number at the elements whose indices are all equal.

    Args:
        input: a matrix, or of more dimensions of one size.
        fill_value: a number.
        wrap: of a tall matrix, begin again one row below where the diagonal ended.

    Raises:
        RuntimeError: the tensor has fewer than two dimensions, or more of different sizes.
    """
    need_tensors("fill_diagonal_", input)
    sizes = input.shape
    if len(sizes) < 2 or (len(sizes) > 2 and len(set(sizes)) > 1):
        raise RuntimeError(f"fill_diagonal_() needs a matrix or equal sizes, got shape {list(sizes)}")
    number = fitting("fill_diagonal_", as_operand(fill_value), input._array.dtype)
    columns = sizes[1]
    indices: tuple[Any, ...]
    if wrap and len(sizes) == 2 and columns:
        flat = np.arange(0, sizes[0] * columns, columns + 1)
        indices = (flat // columns, flat % columns)
    else:
        indices = (np.arange(min(sizes)),) * len(sizes)
    key = tuple(engine.Tensor_._of(i) for i in indices)
    return input.index_put_(key, engine.Tensor_._of(np.asarray(number, input._array.dtype)))
