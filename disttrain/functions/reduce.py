"""Functions that reduce dimensions, with PyTorch's names and results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from disttrain import dtypes, engine
from disttrain.functions.arithmetic import where
from disttrain.functions.common import (
    binary,
    floating,
    need_floats,
    need_tensors,
    normalize_dim,
    normalize_dims,
    numpy_names,
)
from disttrain.ops import elementwise, reduce
from disttrain.ops.types import Op
from disttrain.precision import autocasts

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

Dims = int | Sequence[int] | None


class Extremes(NamedTuple):
    """What ``max(dim)`` and ``min(dim)`` return: the values, and the index of the first that has it."""

    values: Tensor
    indices: Tensor


class MinMax(NamedTuple):
    """What ``aminmax`` returns."""

    min: Tensor
    max: Tensor


def _reduce(op: Op, input: Tensor, dim: Dims, keepdim: bool, **options: Any) -> Tensor:
    axes = normalize_dims(dim, input.ndim)
    return engine.apply(op, input, axes=axes, keepdims=bool(keepdim), **options)  # type: ignore[no-any-return]


def _summand(name: str, input: Tensor, dtype: Any) -> Tensor:
    """Return what is added up or multiplied: ``input`` in ``dtype``; in int64 if it holds integers or booleans."""
    need_tensors(name, input)
    if dtype is not None:
        return input.to(dtypes.as_dtype(dtype))
    return input if input.dtype.is_floating_point else input.to(dtypes.int64)


def _one_dim(name: str, dim: Any) -> None:
    if dim is not None and (isinstance(dim, bool) or not hasattr(dim, "__index__")):
        raise TypeError(f"{name}(): dim must be an integer, got {type(dim).__name__}: {dim!r:.80}")


@numpy_names
@autocasts
def sum(input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The sum over ``dim`` (all dimensions by default). Integers and booleans add up in int64.

    Raises:
        IndexError: there is no such dimension.
    """
    return _reduce(reduce.sum, _summand("sum", input, dtype), dim, keepdim)


@numpy_names
def nansum(input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """:func:`sum` with 0 for nan."""
    need_tensors("nansum", input)
    if input.dtype.is_floating_point:
        input = where(input.isnan(), 0, input)
    return sum(input, dim, keepdim, dtype=dtype)


@numpy_names
def mean(input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The mean over ``dim`` (all dimensions by default).

    Raises:
        IndexError: there is no such dimension.
        RuntimeError: the tensor holds integers and no floating point ``dtype`` is given.
    """
    if dtype is not None:
        need_tensors("mean", input)
        input = input.to(dtypes.as_dtype(dtype))
    need_floats("mean", input)
    return _reduce(reduce.mean, input, dim, keepdim)


@numpy_names
def nanmean(input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The mean of what is not nan.

    Raises:
        IndexError: there is no such dimension.
        RuntimeError: the tensor holds integers.
    """
    need_floats("nanmean", input)
    if dtype is not None and not dtypes.as_dtype(dtype).is_floating_point:
        raise RuntimeError(f"nanmean() needs a floating point dtype, got {dtype!r}")
    return nansum(input, dim, keepdim, dtype=dtype) / sum(~input.isnan(), dim, keepdim)


def _variance(
    name: str, op: Op, input: Tensor, dim: Any, unbiased: Any, keepdim: bool, correction: float | None
) -> tuple[Tensor, Dims]:
    if isinstance(dim, bool):  # var(input, unbiased)
        dim, unbiased = None, dim
    if unbiased is not None and correction is not None:
        raise TypeError(f"{name}() takes unbiased or correction, not both")
    need_floats(name, input)
    if correction is None:
        correction = 1 if unbiased is None or unbiased else 0
    return _reduce(op, input, dim, keepdim, correction=correction), dim


@numpy_names
def var(
    input: Tensor,
    dim: Dims = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Tensor:
    """The variance over ``dim``: squared distances from the mean, divided by their number less ``correction`` (1).

    ``unbiased=False`` is a correction of 0. Also ``var(input, unbiased)``.

    Raises:
        IndexError: there is no such dimension.
        RuntimeError: the tensor holds integers.
    """
    return _variance("var", reduce.var, input, dim, unbiased, keepdim, correction)[0]


@numpy_names
def std(
    input: Tensor,
    dim: Dims = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Tensor:
    """The square root of :func:`var`; its gradient is zero where it is zero."""
    return _root(_variance("std", reduce.var, input, dim, unbiased, keepdim, correction)[0])


def _root(variance: Tensor) -> Tensor:
    return engine.apply(reduce.root, variance)  # type: ignore[no-any-return]


@numpy_names
def var_mean(
    input: Tensor,
    dim: Dims = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`var` and :func:`mean`."""
    variance, dim = _variance("var_mean", reduce.var, input, dim, unbiased, keepdim, correction)
    return variance, mean(input, dim, keepdim)


@numpy_names
def std_mean(
    input: Tensor,
    dim: Dims = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`std` and :func:`mean`."""
    variance, dim = _variance("std_mean", reduce.var, input, dim, unbiased, keepdim, correction)
    return _root(variance), mean(input, dim, keepdim)


@numpy_names
@autocasts
def prod(input: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The product over ``dim`` (all dimensions by default). Integers multiply in int64.

    Raises:
        IndexError: there is no such dimension.
    """
    _one_dim("prod", dim)
    return _reduce(reduce.prod, _summand("prod", input, dtype), dim, keepdim)


@numpy_names
def count_nonzero(input: Tensor, dim: Dims = None) -> Tensor:
    """How many elements over ``dim`` are not zero."""
    need_tensors("count_nonzero", input)
    return sum(input != 0, dim)


@numpy_names
@autocasts
def logsumexp(input: Tensor, dim: Dims, keepdim: bool = False) -> Tensor:
    """``log(sum(exp(input)))`` over ``dim``, without overflow.

    Raises:
        IndexError: there is no such dimension.
        TypeError: ``dim`` is ``None``.
    """
    if dim is None:
        raise TypeError("logsumexp() needs dim, an integer or several, got None")
    return _reduce(reduce.logsumexp, floating(input), dim, keepdim)


# ------------------------------------------------------------------------------------------ extremes


@numpy_names
def amax(input: Tensor, dim: Dims = (), keepdim: bool = False) -> Tensor:
    """The largest over ``dim``; equal ones share the gradient.

    Raises:
        IndexError: there is no such dimension, or it is empty.
    """
    _need_elements("amax", input, dim)
    return _reduce(reduce.amax, input, dim, keepdim)


@numpy_names
def amin(input: Tensor, dim: Dims = (), keepdim: bool = False) -> Tensor:
    """The smallest over ``dim``; equal ones share the gradient.

    Raises:
        IndexError: there is no such dimension, or it is empty.
    """
    _need_elements("amin", input, dim)
    return _reduce(reduce.amin, input, dim, keepdim)


@numpy_names
def aminmax(input: Tensor, *, dim: int | None = None, keepdim: bool = False) -> MinMax:
    """The smallest and the largest, of all elements or along ``dim``.

    Raises:
        IndexError: there is no such dimension, or it is empty.
    """
    _one_dim("aminmax", dim)
    return MinMax(amin(input, dim, keepdim), amax(input, dim, keepdim))


def _need_elements(name: str, input: Tensor, dim: Dims) -> None:
    need_tensors(name, input)
    if dim in (None, ()) and not input.numel():
        raise RuntimeError(f"{name}(): a tensor of shape {list(input.shape)} holds no element to choose from")
    for d in normalize_dims(dim, input.ndim):
        if input.shape[d] == 0:
            raise IndexError(
                f"{name}(): dimension {d} of shape {tuple(input.shape)} holds no element to choose from"
            )


@numpy_names
def max(input: Tensor, dim: Any = None, keepdim: bool = False, *, other: Tensor | None = None) -> Any:
    """The largest element; with ``dim``, ``(values, indices)`` along it; with a tensor, the larger of each pair."""
    return _extreme("max", elementwise.maximum, amax, reduce.max_along, input, dim, keepdim, other)


@numpy_names
def min(input: Tensor, dim: Any = None, keepdim: bool = False, *, other: Tensor | None = None) -> Any:
    """The smallest element; with ``dim``, ``(values, indices)`` along it; with a tensor, the smaller of each pair."""
    return _extreme("min", elementwise.minimum, amin, reduce.min_along, input, dim, keepdim, other)


def _extreme(
    name: str, of_two: Op, of_all: Any, along: Op, input: Tensor, dim: Any, keepdim: bool, other: Any
) -> Any:
    need_tensors(name, input)
    other = dim if isinstance(dim, engine.Tensor_) else other
    if other is not None:
        need_tensors(name, other)
        return binary(of_two, input, other)
    if dim is None:
        return of_all(input)
    _one_dim(name, dim)
    axis = normalize_dim(dim, input.ndim)
    if not input.ndim:
        return Extremes(input.clone(), engine.Tensor_.full_(0))
    _need_elements(name, input, axis)
    return Extremes(*engine.apply(along, input, axis=axis, keepdims=bool(keepdim)))


@numpy_names
def argmax(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The index of the first largest element, in the flattened tensor or along ``dim``.

    Raises:
        IndexError: there is no such dimension, or it is empty.
        RuntimeError: the tensor holds booleans.
    """
    return _arg(reduce.argmax, "argmax", input, dim, keepdim)


@numpy_names
def argmin(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The index of the first smallest element, in the flattened tensor or along ``dim``.

    Raises:
        IndexError: there is no such dimension, or it is empty.
        RuntimeError: the tensor holds booleans.
    """
    return _arg(reduce.argmin, "argmin", input, dim, keepdim)


def _arg(op: Op, name: str, input: Tensor, dim: int | None, keepdim: bool) -> Tensor:
    need_tensors(name, input)
    if input.dtype is dtypes.bool_:
        raise RuntimeError(
            f"{name}() is not defined for booleans; convert the tensor, for example with .int()"
        )
    _one_dim(name, dim)
    axis = None if dim is None else normalize_dim(dim, input.ndim)
    _need_elements(name, input, tuple(range(input.ndim)) if axis is None else axis)
    if not input.ndim:
        axis = None
    return engine.apply(op, input, axis=axis, keepdims=bool(keepdim))  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------ truth


@numpy_names
def all(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Whether no element is zero. Of no dimensions (``dim=()``), whether each element is."""
    return _truth("all", reduce.all, input, dim, keepdim)


@numpy_names
def any(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Whether some element is not zero. Of no dimensions (``dim=()``), whether each element is."""
    return _truth("any", reduce.any, input, dim, keepdim)


def _truth(name: str, op: Op, input: Tensor, dim: Dims, keepdim: bool) -> Tensor:
    need_tensors(name, input)
    none = dim is not None and not isinstance(dim, int) and not len(dim)
    out = input != 0 if none else _reduce(op, input, dim, keepdim)
    return out.to(dtypes.uint8) if input.dtype is dtypes.uint8 else out  # as PyTorch does for this type alone
