"""Functions that run along one dimension, with PyTorch's names: running sums and their like, differences, integrals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from disttrain import dtypes, engine
from disttrain.functions.common import Operand, need_tensors, normalize_dim, numpy_names
from disttrain.functions.join import cat
from disttrain.ops import scan
from disttrain.ops.types import Op
from disttrain.precision import autocasts

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


class Running(NamedTuple):
    """What ``cummax`` and ``cummin`` return: the values, and the index of the last that has it."""

    values: Tensor
    indices: Tensor


def _accumulate(op: Op, input: Tensor, dim: int, dtype: Any) -> Tensor:
    need_tensors(op.__name__, input)
    if dtype is not None:
        input = input.to(dtypes.as_dtype(dtype))
        if input.dtype is dtypes.bool_:
            raise NotImplementedError(f"{op.__name__}() is not defined for booleans; give another dtype")
    elif not input.dtype.is_floating_point:
        input = input.to(dtypes.int64)
    axis = normalize_dim(dim, input.ndim)
    if not input.ndim:
        return input.clone()
    return engine.apply(op, input, axis=axis)  # type: ignore[no-any-return]


@numpy_names
@autocasts
def cumsum(input: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    """The sums of the first 1, 2, 3 … elements along ``dim``. Integers add up in int64.

    Raises:
        IndexError: there is no such dimension.
    """
    return _accumulate(scan.cumsum, input, dim, dtype)


@numpy_names
@autocasts
def cumprod(input: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    """The products of the first 1, 2, 3 … elements along ``dim``. Integers multiply in int64.

    Raises:
        IndexError: there is no such dimension.
    """
    return _accumulate(scan.cumprod, input, dim, dtype)


@numpy_names
def logcumsumexp(input: Tensor, dim: int) -> Tensor:
    """``log(cumsum(exp(input)))`` along ``dim``, without overflow.

    Raises:
        IndexError: there is no such dimension.
        RuntimeError: the tensor holds integers.
    """
    need_tensors("logcumsumexp", input)
    if not input.dtype.is_floating_point:
        raise RuntimeError(f"logcumsumexp() needs a floating point tensor, got {input.dtype}; use .float()")
    return _accumulate(scan.logcumsumexp, input, dim, None)


@numpy_names
def cummax(input: Tensor, dim: int) -> Running:
    """The largest of the first 1, 2, 3 … elements along ``dim``, and where the last such is.

    Raises:
        IndexError: there is no such dimension.
    """
    return _running(scan.cummax, input, dim)


@numpy_names
def cummin(input: Tensor, dim: int) -> Running:
    """The smallest of the first 1, 2, 3 … elements along ``dim``, and where the last such is.

    Raises:
        IndexError: there is no such dimension.
    """
    return _running(scan.cummin, input, dim)


def _running(op: Op, input: Tensor, dim: int) -> Running:
    need_tensors(op.__name__, input)
    axis = normalize_dim(dim, input.ndim)
    if not input.ndim:
        return Running(input.clone(), engine.Tensor_.full_(0))
    return Running(*engine.apply(op, input, axis=axis))


@numpy_names
def diff(
    input: Tensor, n: int = 1, dim: int = -1, prepend: Tensor | None = None, append: Tensor | None = None
) -> Tensor:
    """The differences of neighbours along ``dim``, ``n`` times; of booleans, where they differ.

    Raises:
        RuntimeError: ``n`` is negative, or the tensor has no dimensions.
    """
    need_tensors("diff", input, *(x for x in (prepend, append) if x is not None))
    if not input.ndim:
        raise RuntimeError("diff() needs a tensor of one dimension or more")
    if n < 0:
        raise RuntimeError(f"diff() needs n of at least 0, got {n}")
    if n == 0:
        return input.clone()
    axis = normalize_dim(dim, input.ndim)
    parts = [x for x in (prepend, input, append) if x is not None]
    for x in parts:
        if x.ndim != input.ndim or any(
            a != b for i, (a, b) in enumerate(zip(x.shape, input.shape, strict=True)) if i != axis
        ):
            raise RuntimeError(
                f"diff(): prepend and append must have the shape of input {list(input.shape)} but for "
                f"dimension {axis}, got {list(x.shape)}"
            )
    out = cat(parts, axis) if len(parts) > 1 else input
    for _ in range(min(n, out.shape[axis])):
        size = max(out.shape[axis] - 1, 0)
        later, earlier = out.narrow(axis, out.shape[axis] - size, size), out.narrow(axis, 0, size)
        out = later.logical_xor(earlier) if out.dtype is dtypes.bool_ else later - earlier
    return out


@numpy_names
def trapezoid(y: Tensor, x: Tensor | None = None, *, dx: Operand = None, dim: int = -1) -> Tensor:
    """The integral of ``y`` along ``dim`` by the trapezoidal rule, at points ``x``, or ``dx`` (1 by default) apart.

    Raises:
        RuntimeError: ``x`` does not fit.
        TypeError: both ``x`` and ``dx`` are given.
    """
    areas = _trapezoids("trapezoid", y, x, dx, dim)
    axis = normalize_dim(dim, y.ndim)
    if not y.shape[axis]:
        return areas.detach().sum(axis, dtype=y.dtype)  # of no points: 0 whatever they are
    if x is not None:
        return areas.sum(axis) / 2
    ends = y.select(axis, 0) + y.select(axis, -1)
    return (y.sum(axis) - ends * 0.5) * (1.0 if dx is None else dx)


@numpy_names
def cumulative_trapezoid(y: Tensor, x: Tensor | None = None, *, dx: Operand = None, dim: int = -1) -> Tensor:
    """The integrals of :func:`trapezoid` up to each point but the first.

    Raises:
        RuntimeError: ``x`` does not fit.
        TypeError: both ``x`` and ``dx`` are given.
    """
    areas, axis = _trapezoids("cumulative_trapezoid", y, x, dx, dim), normalize_dim(dim, y.ndim)
    if x is None:
        return cumsum(areas * ((1 if dx is None else dx) / 2), axis)
    return cumsum(areas, axis) / 2


def _trapezoids(name: str, y: Tensor, x: Tensor | None, dx: Operand, dim: int) -> Tensor:
    """Return twice the areas between neighbours, which are 1 apart without ``x``."""
    need_tensors(name, y, *([] if x is None else [x]))
    if x is not None and dx is not None:
        raise TypeError(f"{name}() takes x or dx, not both")
    for t in (y, x):
        if t is not None and t.dtype is dtypes.bool_:
            raise RuntimeError(f"{name}() is not defined for booleans; convert the tensor with .float()")
    axis = normalize_dim(dim, y.ndim)
    if not y.ndim:
        raise IndexError(f"{name}() needs a tensor of one dimension or more")
    n = y.shape[axis]
    if n == 0:
        return y
    heights = y.narrow(axis, 1, n - 1) + y.narrow(axis, 0, n - 1)
    if x is None:
        return heights
    if x.ndim == 1 and y.ndim > 1:
        if x.shape[0] != n:
            raise RuntimeError(
                f"{name}(): there are {n} values along dimension {axis}, but {x.shape[0]} points"
            )
        x = x.reshape([-1 if i == axis else 1 for i in range(y.ndim)])
    while x.ndim < y.ndim:
        x = x.unsqueeze(0)
    steps = diff(x, dim=axis)
    return heights * steps


trapz = trapezoid
