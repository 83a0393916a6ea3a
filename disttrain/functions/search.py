"""Finding and counting values, with PyTorch's names. The results have no gradients, but for unique's values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import dtypes, engine
from disttrain.defaults import result_type
from disttrain.functions.common import (
    as_operand,
    need_floats,
    need_tensors,
    normalize_dim,
    numpy_names,
    sizes,
)
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.modes import reads_values, replayed

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


def _several(*results: Array | None) -> Any:
    """Return the arrays that are there as Tensors: one, or a tuple."""
    tensors = tuple([engine.Tensor_._of(r) for r in results if r is not None])
    return tensors if len(tensors) > 1 else tensors[0]


def _comparable(x: Array) -> Array:
    return x.astype(np.float32) if x.dtype.kind == "V" else x


@numpy_names
def unique(
    input: Tensor,
    sorted: bool = True,
    return_inverse: bool = False,
    return_counts: bool = False,
    dim: int | None = None,
) -> Any:
    """The different elements in order; with ``dim``, the different slices along it. Each nan is one of its own.

    Returns:
        The values, and if asked for where each element is among them, and how often each occurs (int64).

    Raises:
        IndexError: there is no such dimension.
        RuntimeError: another dimension than ``dim`` is empty.
    """
    need_tensors("unique", input)
    reads_values("unique(), whose result has a shape that depends on values,")
    x = input._array
    if dim is None:
        flat = x.reshape(-1)
        order = get_array_module(x).argsort(_comparable(flat), kind="stable")
        return _unique(flat, order, return_inverse, return_counts, x.shape)
    axis = _slices("unique", input, dim)
    rows = np.moveaxis(x, axis, 0)
    n = rows.shape[0]
    keys = _comparable(rows.reshape(n, rows.size // max(n, 1)))
    order = np.lexsort(keys.T[::-1]) if keys.size else np.arange(n)
    return _unique(rows, order, return_inverse, return_counts, (rows.shape[0],), axis)


@numpy_names
def unique_consecutive(
    input: Tensor, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None
) -> Any:
    """The elements (or slices along ``dim``) without those that equal the one before; as :func:`unique` but unsorted.

    Raises:
        IndexError: there is no such dimension.
        RuntimeError: another dimension than ``dim`` is empty.
    """
    need_tensors("unique_consecutive", input)
    reads_values("unique_consecutive(), whose result has a shape that depends on values,")
    x = input._array
    if dim is None:
        flat = x.reshape(-1)
        return _unique(flat, np.arange(flat.shape[0]), return_inverse, return_counts, x.shape)
    axis = _slices("unique_consecutive", input, dim)
    rows = np.moveaxis(x, axis, 0)
    return _unique(rows, np.arange(rows.shape[0]), return_inverse, return_counts, (rows.shape[0],), axis)


def _slices(name: str, input: Tensor, dim: int) -> int:
    axis = normalize_dim(dim, input.ndim)
    if not input.ndim:
        raise RuntimeError(f"{name}() along a dimension needs a tensor that has one")
    if input.shape[axis] and not input.numel():
        raise RuntimeError(f"{name}(): a dimension other than {axis} of shape {list(input.shape)} is empty")
    return axis


def _unique(
    rows: Array,
    order: Array,
    return_inverse: bool,
    return_counts: bool,
    size: tuple[int, ...],
    axis: int = 0,
) -> Any:
    """Return the first of each run of equal rows in the given order, where each row's run is, and the runs' lengths."""
    ordered = rows[order]
    n = ordered.shape[0]
    first = np.ones(n, bool)
    if n:
        first[1:] = (ordered[1:] != ordered[:-1]).any(tuple(range(1, ordered.ndim)))
    starts = np.flatnonzero(first)
    values = np.moveaxis(ordered[starts], 0, axis)
    inverse = counts = None
    if return_inverse:
        inverse = np.empty(n, np.int64)
        inverse[order] = np.cumsum(first) - 1
        inverse = inverse.reshape(size)
    if return_counts:
        counts = np.diff(np.append(starts, n)).astype(np.int64)
    return _several(np.ascontiguousarray(values), inverse, counts)


def isin(elements: Any, test_elements: Any, *, assume_unique: bool = False, invert: bool = False) -> Tensor:
    """Whether each of ``elements`` is (with ``invert``, is not) among ``test_elements``; either may be a number.

    Raises:
        TypeError: both are numbers.
    """
    elements, test_elements = as_operand(elements), as_operand(test_elements)
    if not isinstance(elements, engine.Tensor_) and not isinstance(test_elements, engine.Tensor_):
        raise TypeError(f"isin() needs a Tensor among its arguments, got {elements!r} and {test_elements!r}")
    for t in (elements, test_elements):
        if isinstance(t, bool) or (isinstance(t, engine.Tensor_) and t.dtype is dtypes.bool_):
            raise RuntimeError("isin() is not defined for booleans; convert them, for example with .int()")
    kind = result_type(elements, test_elements).numpy
    with np.errstate(all="ignore"):
        x, y = (
            _comparable((t._array if isinstance(t, engine.Tensor_) else np.asarray(t)).astype(kind))
            for t in (elements, test_elements)
        )
    return engine.Tensor_._of(np.isin(x, y, assume_unique=False, invert=invert))  # type: ignore[no-any-return]


def searchsorted(
    sorted_sequence: Tensor,
    input: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """Where ``input`` belongs in the last dimension of ``sorted_sequence``, so that it stays in order.

    Args:
        sorted_sequence: a vector for all of ``input``, or one for each of its rows: equal in all other dimensions.
        input: a tensor, or a number if the sequence is a vector.
        out_int32: give int32 instead of int64.
        right: behind those that are equal, instead of before.
        side: ``"left"`` or ``"right"``: the same in a word.
        sorter: int64, of the sequence's shape: the order of a sequence that is not sorted.

    Raises:
        RuntimeError: shapes that do not fit, ``right`` against ``side``, a sorter of another type or out of range.
    """
    need_tensors("searchsorted", sorted_sequence)
    if side not in (None, "left", "right"):
        raise RuntimeError(f"searchsorted(): side must be 'left' or 'right', got {side!r}")
    if side == "left" and right:
        raise RuntimeError("searchsorted(): side='left' contradicts right=True")
    if sorted_sequence.dtype is dtypes.bool_:
        raise NotImplementedError(
            "searchsorted() is not defined for booleans; convert the sequence, for example with .int()"
        )
    input = as_operand(input)
    number = not isinstance(input, engine.Tensor_)
    sequence = sorted_sequence._array
    if number:
        if sequence.ndim != 1:
            raise RuntimeError(
                f"searchsorted() of a number needs a vector to search, got shape {list(sequence.shape)}"
            )
        values = np.asarray(input)  # in its own type, which may hold more than that of the sequence
    else:
        values = input._array
    if not sequence.ndim:
        raise RuntimeError("searchsorted() needs a sequence of one dimension or more")
    if sequence.ndim != 1 and (values.ndim != sequence.ndim or values.shape[:-1] != sequence.shape[:-1]):
        raise RuntimeError(
            f"searchsorted() needs a vector to search, or one for each row: equal in all dimensions but the last, "
            f"got shapes {list(sequence.shape)} and {list(values.shape)}"
        )
    if out_int32 and sequence.shape[-1] >= 2**31:
        raise RuntimeError("searchsorted(): the sequence is too long for out_int32=True")
    if sorter is not None:
        sequence = _in_order(sorted_sequence, sorter)
    values, sequence = _comparable(values), _comparable(sequence)
    found: Any = "right" if right or side == "right" else "left"
    if sequence.ndim == 1:
        places: Any = np.searchsorted(sequence, values, side=found)
    else:
        places = np.empty(values.shape, np.int64)
        for row in np.ndindex(values.shape[:-1]):
            places[row] = np.searchsorted(sequence[row], values[row], side=found)
    return engine.Tensor_._of(np.asarray(places).astype(np.int32 if out_int32 else np.int64))  # type: ignore[no-any-return]


def _in_order(sorted_sequence: Tensor, sorter: Tensor) -> Array:
    need_tensors("searchsorted", sorter)
    sequence, order = sorted_sequence._array, sorter._array
    if sorter.dtype is not dtypes.int64:
        raise RuntimeError(f"searchsorted(): sorter must be int64, got {sorter.dtype}")
    if order.shape != sequence.shape:
        raise RuntimeError(
            f"searchsorted(): sorter must have the sequence's shape {list(sequence.shape)}, got {list(order.shape)}"
        )
    if order.size and not (order.min() >= 0 and order.max() < sequence.shape[-1]):
        raise RuntimeError(f"searchsorted(): sorter holds an index outside [0, {sequence.shape[-1]})")
    return get_array_module(sequence).take_along_axis(sequence, order, -1)


def bucketize(input: Any, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """The number of the bucket, between ``boundaries`` (a vector in order), of each element of ``input``.

    Raises:
        RuntimeError: the boundaries are no vector.
    """
    need_tensors("bucketize", boundaries)
    if boundaries.ndim != 1:
        raise RuntimeError(f"bucketize() needs a vector of boundaries, got shape {list(boundaries.shape)}")
    return searchsorted(boundaries, input, out_int32=out_int32, right=right)


@replayed
def bincount(input: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """How often each of 0, 1, 2 … occurs in a vector; with ``weights``, the sum of theirs.

    Raises:
        RuntimeError: no vector of integers of at least 0, weights of another length, or a negative ``minlength``.
    """
    need_tensors("bincount", input, *([] if weights is None else [weights]))
    x = input._array
    if input.dtype.category != 1:
        raise RuntimeError(f"bincount() needs integers, got {input.dtype}")
    if minlength < 0:
        raise RuntimeError(f"bincount(): minlength must be at least 0, got {minlength}")
    if x.ndim != 1 or (x.size and x.min() < 0):
        raise RuntimeError("bincount() needs a vector of integers of at least 0")
    if weights is None or not x.size:
        return engine.Tensor_._of(np.bincount(x, minlength=minlength).astype(np.int64))  # type: ignore[no-any-return]
    if weights.shape != input.shape:
        raise RuntimeError(
            f"bincount(): weights must have the shape {list(input.shape)} of input, got {list(weights.shape)}"
        )
    kind = np.float32 if weights.dtype is dtypes.float32 else np.float64
    totals = np.bincount(x, weights._array.astype(np.float64), minlength)
    return engine.Tensor_._of(totals.astype(kind))  # type: ignore[no-any-return]


@replayed
def histc(input: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    """How many elements lie in each of ``bins`` equal parts of [``min``, ``max``], by default of what they span.

    Elements outside, and nans, are not counted; the type is that of ``input``.

    Raises:
        RuntimeError: ``bins`` is not positive, or the range is not finite or ends before it begins.
    """
    need_floats("histc", input)
    x = input._array.reshape(-1)
    if bins <= 0:
        raise RuntimeError(f"histc(): bins must be positive, got {bins}")
    low, high = float(min), float(max)
    if low == high and x.size:
        with np.errstate(all="ignore"):  # bfloat16's comparison with nan warns
            low, high = float(x.min()), float(x.max())
    if low == high:
        low, high = low - 1, high + 1
    if not (np.isfinite(low) and np.isfinite(high)):
        raise RuntimeError(f"histc(): the range [{low}, {high}] is not finite")
    if low > high:
        raise RuntimeError(f"histc(): max must not be less than min, got [{low}, {high}]")
    x = x[(x >= low) & (x <= high)]
    with np.errstate(all="ignore"):
        places = (x - low) * bins / (high - low)
    places = np.clip(np.nan_to_num(places), 0, bins - 1).astype(np.int64)
    counts = np.bincount(places, minlength=bins)
    return engine.Tensor_._of(counts.astype(input._array.dtype))  # type: ignore[no-any-return]


def unravel_index(indices: Tensor, shape: Any) -> tuple[Tensor, ...]:
    """The index along each dimension of a tensor of ``shape``, for indices into its elements in a row.

    Raises:
        TypeError: the indices are no integers.
        ValueError: a size is negative.
    """
    need_tensors("unravel_index", indices)
    if indices.dtype.category != 1:
        raise TypeError(f"unravel_index() needs integers, got {indices.dtype}")
    wanted = sizes((shape,))
    if min(wanted, default=0) < 0:
        raise ValueError(f"unravel_index(): sizes must not be negative, got {list(wanted)}")
    steps = [math.prod(wanted[i + 1 :]) for i in range(len(wanted))]
    return tuple([(indices // step) % n for step, n in zip(steps, wanted, strict=True)])
