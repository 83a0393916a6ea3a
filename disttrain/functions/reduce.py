"""Functions that reduce dimensions, with PyTorch's names and results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from disttrain import context, dtypes, engine
from disttrain.functions import elementwise as elementwise_functions
from disttrain.functions.common import binary, normalize_dim, normalize_dims
from disttrain.ops import elementwise, reduce
from disttrain.ops.types import Op

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

Dims = int | Sequence[int] | None


class Extremes(NamedTuple):
    """What ``max(dim)`` and ``min(dim)`` return: the values, and the index of the first that has it."""

    values: Tensor
    indices: Tensor


def _reduce(op: Op, input: Tensor, dim: Dims, keepdim: bool, **options: Any) -> Tensor:
    axes = normalize_dims(dim, input.ndim)
    return engine.apply(op, input, axes=axes, keepdims=keepdim, **options)  # type: ignore[no-any-return]


def sum(input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The sum over ``dim`` (all dimensions by default). Integers and booleans add up in int64.

    Raises:
        IndexError: there is no such dimension.
    """
    if dtype is not None:
        input = input.to(dtypes.as_dtype(dtype))
    elif input.dtype.category < 2:
        input = input.to(dtypes.int64)
    return _reduce(reduce.sum, input, dim, keepdim)


def mean(input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The mean over ``dim`` (all dimensions by default).

    Raises:
        RuntimeError: the tensor holds integers and no floating point ``dtype`` is given.
    """
    if dtype is not None:
        input = input.to(dtypes.as_dtype(dtype))
    _need_float("mean", input)
    return _reduce(reduce.mean, input, dim, keepdim)


def _need_float(name: str, input: Tensor) -> None:
    if not input.dtype.is_floating_point:
        raise RuntimeError(
            f"{name}() needs a floating point tensor, got {input.dtype}; convert it with .float()"
        )


def var(
    input: Tensor,
    dim: Dims = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Tensor:
    """The variance over ``dim``, by default divided by one less than the number of elements.

    Raises:
        RuntimeError: the tensor holds integers.
    """
    if isinstance(dim, bool):  # var(input, unbiased)
        dim, unbiased = None, dim
    _need_float("var", input)
    if correction is None:
        correction = 1 if unbiased is None or unbiased else 0
    return _reduce(reduce.var, input, dim, keepdim, correction=correction)


def std(
    input: Tensor,
    dim: Dims = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Tensor:
    """The square root of :func:`var`."""
    return _root(var(input, dim, unbiased, keepdim, correction=correction), 0.5)


def prod(input: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """The product over ``dim`` (all dimensions by default). Integers multiply in int64."""
    if dtype is not None:
        input = input.to(dtypes.as_dtype(dtype))
    elif input.dtype.category < 2:
        input = input.to(dtypes.int64)
    return _reduce(reduce.prod, input, dim, keepdim)


def amax(input: Tensor, dim: Dims = (), keepdim: bool = False) -> Tensor:
    """The largest over ``dim``; equal ones share the gradient."""
    _need_elements("amax", input, dim)
    return _reduce(reduce.amax, input, dim, keepdim)


def amin(input: Tensor, dim: Dims = (), keepdim: bool = False) -> Tensor:
    """The smallest over ``dim``; equal ones share the gradient."""
    _need_elements("amin", input, dim)
    return _reduce(reduce.amin, input, dim, keepdim)


def _need_elements(name: str, input: Tensor, dim: Dims) -> None:
    if dim in (None, ()) and not input.numel():
        raise RuntimeError(f"{name}(): a tensor of shape {list(input.shape)} holds no element to choose from")
    for d in normalize_dims(dim, input.ndim):
        if input.shape[d] == 0:
            raise IndexError(
                f"{name}(): dimension {d} of shape {tuple(input.shape)} holds no element to choose from"
            )


def max(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """The largest element; with ``dim``, ``(values, indices)`` along it; with a tensor, the larger of each pair."""
    if isinstance(dim, engine.Tensor_):
        return binary(elementwise.maximum, input, dim)
    if dim is None:
        return amax(input)
    return Extremes(*_along(reduce.max_along, "max", input, dim, keepdim))


def min(input: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """The smallest element; with ``dim``, ``(values, indices)`` along it; with a tensor, the smaller of each pair."""
    if isinstance(dim, engine.Tensor_):
        return binary(elementwise.minimum, input, dim)
    if dim is None:
        return amin(input)
    return Extremes(*_along(reduce.min_along, "min", input, dim, keepdim))


def _along(op: Op, name: str, input: Tensor, dim: int, keepdim: bool) -> tuple[Tensor, Tensor]:
    axis = normalize_dim(dim, input.ndim)
    if not input.ndim:
        return input.clone(), engine.Tensor_.full_(0)
    _need_elements(name, input, axis)
    return engine.apply(op, input, axis=axis, keepdims=keepdim)  # type: ignore[no-any-return]


def argmax(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The index of the first largest element, in the flattened tensor or along ``dim``."""
    return _arg(reduce.argmax, "argmax", input, dim, keepdim)


def argmin(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The index of the first smallest element, in the flattened tensor or along ``dim``."""
    return _arg(reduce.argmin, "argmin", input, dim, keepdim)


def _arg(op: Op, name: str, input: Tensor, dim: int | None, keepdim: bool) -> Tensor:
    axis = None if dim is None else normalize_dim(dim, input.ndim)
    _need_elements(name, input, tuple(range(input.ndim)) if axis is None else axis)
    if not input.ndim:
        axis = None
    return engine.apply(op, input, axis=axis, keepdims=keepdim)  # type: ignore[no-any-return]


def all(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Whether no element is zero."""
    return _truth(input, _reduce(reduce.all, input, dim, keepdim))


def any(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Whether some element is not zero."""
    return _truth(input, _reduce(reduce.any, input, dim, keepdim))


def _truth(input: Tensor, out: Tensor) -> Tensor:
    return out.to(dtypes.uint8) if input.dtype is dtypes.uint8 else out  # as PyTorch does for this type alone


def logsumexp(input: Tensor, dim: Dims, keepdim: bool = False) -> Tensor:
    """``log(sum(exp(input)))`` over ``dim``, without overflow."""
    if not input.dtype.is_floating_point:
        input = input.to(context.current().default_dtype)
    return _reduce(reduce.logsumexp, input, dim, keepdim)


def cumsum(input: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    """The sums of the first 1, 2, 3 … elements along ``dim``. Integers add up in int64."""
    if dtype is not None:
        input = input.to(dtypes.as_dtype(dtype))
    elif input.dtype.category < 2:
        input = input.to(dtypes.int64)
    axis = normalize_dim(dim, input.ndim)
    if not input.ndim:
        return input.clone()
    return engine.apply(reduce.cumsum, input, axis=axis)  # type: ignore[no-any-return]


def norm(input: Tensor, p: float | str = "fro", dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The ``p``-norm of the elements over ``dim``: ``sum(|x| ** p) ** (1 / p)``, as ``torch.norm``.

    Raises:
        RuntimeError: ``p`` is a name other than ``"fro"``.
    """
    _need_float("norm", input)
    if p == "fro":
        p = 2.0
    if isinstance(p, str):
        raise RuntimeError(f"norm() knows p as a number or 'fro', got {p!r}")
    if p == float("inf"):
        return amax(input.abs(), () if dim is None else dim, keepdim)
    if p == -float("inf"):
        return amin(input.abs(), () if dim is None else dim, keepdim)
    if p == 0:
        return sum(elementwise_functions.where(input == 0, input * 0, 1.0), dim, keepdim)
    if p == 1:
        return sum(input.abs(), dim, keepdim)
    if p == 2:
        return _root(sum(input * input, dim, keepdim), 0.5)
    return _root(sum(input.abs() ** p, dim, keepdim), 1 / p)


def _root(powers: Tensor, exponent: float) -> Tensor:
    """``powers ** exponent`` with a gradient of zero at zero, PyTorch's choice for norms."""
    nothing = powers == 0
    root = elementwise_functions.where(nothing, 1.0, powers) ** exponent
    result: Tensor = elementwise_functions.where(nothing, powers * 0, root)
    return result
