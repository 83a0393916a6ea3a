"""Sorting, and what is chosen by order, with PyTorch's names. NaN is larger than all numbers."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from disttrain import dtypes, engine
from disttrain.functions.arithmetic import lerp
from disttrain.functions.common import need_floats, need_tensors, normalize_dim, numpy_names, refuse_bool
from disttrain.ops import sort as ops
from disttrain.ops.types import Op
from disttrain.precision import autocasts

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


class Sorted(NamedTuple):
    """What ``sort``, ``topk`` and the functions that choose one return: the values, and where each came from."""

    values: Tensor
    indices: Tensor


@numpy_names
def sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Sorted:
    """The elements in order along ``dim``, and where each came from. Equal ones always keep their order.

    Raises:
        IndexError: there is no such dimension.
    """
    need_tensors("sort", input)
    axis = normalize_dim(dim, input.ndim)
    if not input.ndim:
        return Sorted(input.clone(), engine.Tensor_.full_(0))
    return Sorted(*engine.apply(ops.sort, input, axis=axis, descending=bool(descending)))


@numpy_names
def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    """Where the elements in order along ``dim`` come from."""
    return sort(input, dim, descending).indices


def msort(input: Tensor) -> Tensor:
    """The elements in order along the first dimension."""
    return sort(input, 0).values


@numpy_names
def topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Sorted:
    """The ``k`` largest (or smallest) elements along ``dim`` in order, and where each came from.

    Raises:
        IndexError: there is no such dimension.
        RuntimeError: ``k`` is larger than the dimension.
    """
    refuse_bool("topk", input)
    k = operator.index(k)
    d = normalize_dim(dim, input.ndim)
    n = input.shape[d] if input.ndim else 1
    if not 0 <= k <= n:
        raise RuntimeError(f"topk(): k must be in [0, {n}], got {k}")
    if not input.ndim:
        return sort(input)
    return Sorted(*engine.apply(ops.topk, input, k=k, axis=d, largest=bool(largest)))


def _choose(name: str, op: Op, input: Tensor, dim: int, keepdim: bool, **options: Any) -> Sorted:
    need_tensors(name, input)
    axis = normalize_dim(dim, input.ndim)
    if not input.ndim:
        return Sorted(input.clone(), engine.Tensor_.full_(0))
    if not input.shape[axis]:
        raise IndexError(
            f"{name}(): dimension {axis} of shape {list(input.shape)} holds no element to choose from"
        )
    return Sorted(*engine.apply(op, input, axis=axis, keepdims=bool(keepdim), **options))


@numpy_names
def kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Sorted:
    """The ``k``-th smallest along ``dim``, ``k`` from 1, and where it is.

    Raises:
        IndexError: there is no such dimension, or it is empty.
        RuntimeError: ``k`` is not in it, or the tensor holds booleans.
    """
    need_tensors("kthvalue", input)
    if input.dtype is dtypes.bool_:
        raise RuntimeError(
            "kthvalue() is not defined for booleans; convert the tensor, for example with .int()"
        )
    d = normalize_dim(dim, input.ndim)
    n = input.shape[d] if input.ndim else 1
    k = operator.index(k)
    if n and not 1 <= k <= n:
        raise RuntimeError(f"kthvalue(): k must be in [1, {n}], got {k}")
    return _choose("kthvalue", ops.kth_along, input, dim, keepdim, k=k)


@numpy_names
def median(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The lower median of all elements; with ``dim``, ``(values, indices)`` along it. nan where one is.

    Raises:
        IndexError: there is no such dimension, or it is empty.
        RuntimeError: the tensor holds booleans.
    """
    return _median("median", input, dim, keepdim, skip_nan=False)


@numpy_names
def nanmedian(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """:func:`median` of what is not nan."""
    return _median("nanmedian", input, dim, keepdim, skip_nan=True)


def _median(name: str, input: Tensor, dim: int | None, keepdim: bool, *, skip_nan: bool) -> Any:
    need_tensors(name, input)
    if input.dtype is dtypes.bool_:
        raise RuntimeError(
            f"{name}() is not defined for booleans; convert the tensor, for example with .int()"
        )
    if dim is not None:
        return _choose(name, ops.median_along, input, dim, keepdim, skip_nan=skip_nan)
    if not input.numel():
        return (
            engine.Tensor_.full_(float("nan")).to(input.dtype)
            if input.dtype.is_floating_point
            else _least(input)
        )
    return engine.apply(ops.median, input, skip_nan=skip_nan)


def _least(input: Tensor) -> Tensor:
    """Return the lowest number of the type, which PyTorch gives for the median of no integers."""
    kind = input._array.dtype
    return engine.Tensor_._of(np.asarray(np.iinfo(kind).min, kind))  # type: ignore[no-any-return]


@numpy_names
def mode(input: Tensor, dim: int = -1, keepdim: bool = False) -> Sorted:
    """The most frequent along ``dim``, the smallest of those that are, and where its last is.

    Raises:
        IndexError: there is no such dimension, or it is empty.
    """
    return _choose("mode", ops.mode_along, input, dim, keepdim)


@numpy_names
@autocasts
def quantile(
    input: Tensor,
    q: float | Sequence[float] | Tensor,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: str = "linear",
) -> Tensor:
    """The ``q``-quantiles along ``dim`` (of all elements by default); nan where one is.

    Args:
        input: float32 or float64.
        q: in [0, 1], a number or a vector, whose dimension then comes first in the result.
        dim: the dimension to reduce.
        keepdim: keep it, with size 1.
        interpolation: between neighbours: ``linear``, ``lower``, ``higher``, ``midpoint`` or ``nearest``.

    Raises:
        IndexError: there is no such dimension.
        RuntimeError: another type, a ``q`` outside [0, 1] or of another type, no elements.
        ValueError: no such interpolation.
    """
    return _quantile("quantile", input, q, dim, keepdim, interpolation, skip_nan=False)


@numpy_names
@autocasts
def nanquantile(
    input: Tensor,
    q: float | Sequence[float] | Tensor,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: str = "linear",
) -> Tensor:
    """:func:`quantile` of what is not nan."""
    return _quantile("nanquantile", input, q, dim, keepdim, interpolation, skip_nan=True)


def _quantile(
    name: str, input: Tensor, q: Any, dim: int | None, keepdim: bool, interpolation: str, *, skip_nan: bool
) -> Tensor:
    need_floats(name, input)
    if input.dtype not in (dtypes.float32, dtypes.float64):
        raise RuntimeError(f"{name}() needs float32 or float64, got {input.dtype}; convert it with .float()")
    if interpolation not in ("linear", "lower", "higher", "midpoint", "nearest"):
        raise RuntimeError(
            f"{name}(): interpolation must be linear, lower, higher, midpoint or nearest, got {interpolation!r}"
        )
    if isinstance(q, engine.Tensor_):
        if q.dtype is not input.dtype:
            raise RuntimeError(f"{name}(): q must be of {input.dtype} as input is, got {q.dtype}")
    else:
        q = engine.Tensor_._of(np.asarray(q, input._array.dtype))
    if q.ndim > 1:
        raise RuntimeError(f"{name}(): q must be a number or a vector, got shape {list(q.shape)}")
    if ((q < 0) | (q > 1)).any():
        raise RuntimeError(f"{name}(): q must be in [0, 1], got {q.tolist()}")
    axis = None if dim is None else normalize_dim(dim, input.ndim)
    if not input.numel():
        raise RuntimeError(f"{name}() of a tensor of shape {list(input.shape)}, which holds no element")
    size = [1] * input.ndim if axis is None else [1 if i == axis else n for i, n in enumerate(input.shape)]
    rows = input.reshape(-1) if axis is None else input.movedim(axis, -1) if input.ndim else input.reshape(1)
    ordered = sort(rows).values  # (..., n): nans last
    n = ordered.shape[-1]
    nans = ordered.isnan()
    if skip_nan:
        last = (n - 1 - nans.sum(-1, keepdim=True)).clamp(min=0).to(q.dtype)
    else:
        last = engine.Tensor_._of(np.full((), n - 1, q._array.dtype))
    ranks = q.reshape(-1) * last  # (..., number of q)
    ranks = ranks.expand(*ordered.shape[:-1], q.numel())
    if not skip_nan:
        ranks = ranks.masked_fill(nans.any(-1, keepdim=True), n - 1)
    if interpolation in ("lower", "higher", "nearest"):
        ranks = {"lower": ranks.floor, "higher": ranks.ceil, "nearest": ranks.round}[interpolation]()
    below = ranks.detach().floor()
    out = ordered.gather(-1, below.long())
    if interpolation in ("linear", "midpoint"):
        weights = ranks - below if interpolation == "linear" else (ranks.detach() * 0 + 0.5)
        above = ordered.gather(-1, ranks.detach().ceil().long())
        out = lerp(out, above, weights)
    out = out.movedim(-1, 0)  # (number of q, ...)
    kept = size if keepdim else [m for i, m in enumerate(size) if axis is not None and i != axis]
    return out.reshape([q.numel(), *kept] if q.ndim else kept)
