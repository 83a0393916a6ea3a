"""What the functions share: promotion of operands and checks of dimensions."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial, wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar
from typing import cast as cast_type

import ml_dtypes
import numpy as np

from disttrain import context, dtypes, engine
from disttrain.kernels.arrays import on_gpu
from disttrain.ops import elementwise, shape
from disttrain.ops.types import Op
from disttrain.precision import suspended

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

Number = bool | int | float
Function = TypeVar("Function", bound=Callable[..., Any])
Operand = Any  # Tensor | Number | ndarray; PyTorch's stubs call it so too


def as_operand(x: Operand) -> Any:
    """Return ``x`` if it is a Tensor or a Python number, else the Tensor or number that it holds."""
    if isinstance(x, np.generic):  # first of all: a float64 of NumPy is a Python float too
        return x.item()
    if isinstance(x, engine.Tensor_ | bool | int | float):
        return x
    if isinstance(x, np.ndarray):
        return engine.Tensor_._of(x)
    raise TypeError(f"expected a Tensor or a number, got {type(x).__name__}: {x!r}")


def need_tensors(name: str, *operands: Operand) -> None:
    """Raise ``TypeError`` unless all operands are Tensors, where PyTorch takes no numbers."""
    for x in operands:
        if not isinstance(x, engine.Tensor_):
            raise TypeError(f"{name}() needs Tensors, got {type(x).__name__}: {x!r:.80}")


def refuse_bool(name: str, input: Operand) -> None:
    """Raise unless ``input`` is a Tensor of numbers, where PyTorch has no meaning for booleans."""
    need_tensors(name, input)
    if input.dtype is dtypes.bool_:
        raise RuntimeError(
            f"{name}() is not defined for booleans; convert the tensor, for example with .int()"
        )


def need_floats(name: str, input: Tensor) -> None:
    """Raise unless ``input`` is a Tensor of floating point numbers, where PyTorch converts no integers."""
    need_tensors(name, input)
    if not input.dtype.is_floating_point:
        raise RuntimeError(
            f"{name}() needs a floating point tensor, got {input.dtype}; convert it with .float()"
        )


def promote(*operands: Operand) -> list[Any]:
    """Return the operands converted to the type in which PyTorch would combine them; numbers stay numbers."""
    operands = tuple(map(as_operand, operands))
    arrays = tuple(x._array if isinstance(x, engine.Tensor_) else x for x in operands)
    kind = dtypes.result_type(arrays, context.current().default_dtype)
    return [cast(x, kind) for x in operands]


def cast(x: Any, kind: np.dtype[Any]) -> Any:
    """Return ``x`` as an operand of ``kind``, recorded."""
    if isinstance(x, engine.Tensor_):
        return x if x._array.dtype == kind else engine.apply(shape.astype, x, dtype=kind)
    if x is None or kind.kind in "fV":
        return x
    if kind.kind == "b":
        return bool(x)
    bits = 8 * kind.itemsize  # a number beyond the type's range wraps around, as PyTorch's do
    whole = int(x) & ((1 << bits) - 1)
    return whole - (1 << bits) if kind.kind == "i" and whole >> (bits - 1) else whole


def fitting(name: str, value: Number, kind: np.dtype[Any]) -> Number:
    """Return a Python number as one that an array of ``kind`` holds: whole, or a boolean, where it must be.

    Raises:
        RuntimeError: it is out of the type's range. A negative integer down to -255 wraps around in uint8.
    """
    if kind.kind == "b":
        return bool(value)
    if kind.kind in "fV":
        if -65504 <= value <= 65504 or not math.isfinite(value):  # which all types hold
            return value
        if abs(value) <= float(ml_dtypes.finfo(kind).max):  # type: ignore[no-untyped-call]
            return value
    else:
        limits = np.iinfo(kind)
        if limits.min <= value <= limits.max:
            return int(value)
        if kind.kind == "u" and isinstance(value, int) and -limits.max <= value < 0:
            return value + limits.max + 1
    raise RuntimeError(f"{name}(): {value!r} cannot be converted to {kind}: it is out of range")


def is_zero(x: Operand) -> bool:
    """Return whether ``x`` is, or holds, an integer zero."""
    return bool((x._array == 0).any()) if isinstance(x, engine.Tensor_) else x == 0


def binary(op: Op, x: Operand, y: Operand) -> Tensor:
    """Return ``op`` of two operands after promotion."""
    result: Tensor
    if isinstance(x, engine.Tensor_):
        if isinstance(y, engine.Tensor_):
            kind = x._array.dtype
            if kind is y._array.dtype or kind == y._array.dtype:
                result = engine.apply(op, x, y)
                return result
        elif type(y) in _NUMBERS and x._array.dtype in _PLAIN:
            result = engine.apply(op, x, y)
            return result
    x, y = promote(x, y)
    kinds = [t._array.dtype for t in (x, y) if isinstance(t, engine.Tensor_)]
    if not kinds and op in _OF_NUMBERS:
        return binary(op, engine.Tensor_.full_(x), y)
    if not kinds:
        raise TypeError(f"{op.__name__}() needs a Tensor among its arguments, got {x!r} and {y!r}")
    if len(kinds) == 1 and kinds[0].itemsize == 2 and kinds[0].kind in "fV":
        # A half with a number: in float32 and rounded once, as PyTorch does it.
        wide = np.dtype(np.float32)
        result = engine.apply(op, cast(x, wide), cast(y, wide))
        return result if result._array.dtype.kind == "b" else cast(result, kinds[0])
    result = engine.apply(op, x, y)
    return result


_NUMBERS = (float, int, bool)
_OF_NUMBERS = (
    elementwise.add,
    elementwise.sub,
    elementwise.mul,
    elementwise.div,
    elementwise.floor_divide,
    elementwise.trunc_divide,
)
"""Of two numbers too, as in PyTorch: the result is a tensor without dimensions."""
_PLAIN = (np.dtype(np.float32), np.dtype(np.float64))


def unary_float(op: Op, x: Tensor, **options: Any) -> Tensor:
    """Return ``op`` of ``x``, in the default floating point type if ``x`` holds integers or booleans."""
    result: Tensor = engine.apply(op, floating(x), **options)
    return result


def floating(x: Tensor) -> Tensor:
    """Return ``x``, converted to the default floating point type if it holds integers or booleans."""
    if not isinstance(x, engine.Tensor_):
        raise TypeError(f"expected a Tensor, got {type(x).__name__}: {x!r}")
    result: Tensor = x if x._array.dtype.kind in "fV" else x.to(context.current().default_dtype)
    return result


def normalize_dim(dim: int, ndim: int) -> int:
    """Return ``dim`` counted from the front.

    Raises:
        IndexError: there is no such dimension.
        TypeError: it is no integer.
    """
    if type(dim) is not int:
        dim = _as_dim(dim)
    n = max(ndim, 1)
    if not -n <= dim < n:
        raise IndexError(
            f"Dimension out of range: {dim} is not in [{-n}, {n - 1}] for a tensor of {ndim} dimensions"
        )
    return dim + n if dim < 0 else dim


def _as_dim(dim: Any) -> int:
    if isinstance(dim, bool) or not hasattr(type(dim), "__index__"):
        raise TypeError(f"a dimension must be an integer, got {type(dim).__name__}: {dim!r:.80}")
    return operator.index(dim)


def normalize_dims(dim: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Return ``dim`` as a sorted tuple of dimensions counted from the front; all of them for ``None`` and ``()``.

    Raises:
        IndexError: there is no such dimension.
        RuntimeError: a dimension is named twice.
        TypeError: one is no integer.
    """
    if dim is None:
        return tuple(range(ndim))
    if not isinstance(dim, Sequence):
        return (normalize_dim(dim, ndim),) if ndim else (normalize_dim(dim, ndim),)[:0]
    dims = sorted(normalize_dim(d, ndim) for d in dim)
    if len(set(dims)) < len(dims):
        raise RuntimeError(f"a dimension appears twice in dim={tuple(dim)}")
    return tuple(dims) if dims and ndim else tuple(range(ndim))


_NUMPY_NAMES = {
    "axis": "dim",
    "keepdims": "keepdim",
    "x": "input",
    "a": "input",
    "x1": "input",
    "x2": "other",
}


def numpy_names(function: Function) -> Function:
    """Return ``function`` with NumPy's words for some keywords, which PyTorch takes too: ``axis``, ``keepdims``."""
    known = signature(function).parameters
    names = {n: ours for n, ours in _NUMPY_NAMES.items() if ours in known and n not in known}

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if options:
            for name in options.keys() & names.keys():
                options[names[name]] = options.pop(name)
        return function(*args, **options)

    return cast_type(Function, call)


def sizes(args: Sequence[Any]) -> tuple[int, ...]:
    """Return sizes given as ``f(2, 3)`` or as ``f((2, 3))``."""
    if len(args) == 1 and isinstance(args[0], list | tuple):
        args = args[0]
    return tuple(map(operator.index, args))


def in_place(x: Tensor, op: Op, *others: Operand) -> Tensor:
    """Run ``op`` in place on ``x`` after promotion.

    Raises:
        RuntimeError: the result has a type or shape that ``x`` cannot hold.
    """
    if x._array.dtype in _PLAIN:
        if all(type(o) in _NUMBERS for o in others):
            return engine.write_in_place(x, op, *others)
        first, *rest = promote(x, *others)
        if first is x:
            return engine.write_in_place(x, op, *rest)
    return overwrite(x, partial(binary, op), *others)


def overwrite(x: Tensor, function: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    """Write ``function(x, *args)`` into ``x``, recorded; autocast, as in PyTorch, has no part in it.

    Raises:
        GradientError: ``x`` is a leaf that requires a gradient, or a view of one.
        RuntimeError: the result has a type or shape that ``x`` cannot hold.
    """
    result = suspended(function, engine.apply(shape.copy, x), *args, **options)
    engine.check_in_place(x)
    return engine.adopt(x, result)


def copy_(x: Tensor, other: Tensor, non_blocking: bool = False) -> Tensor:
    """Write ``other`` into ``x``, broadcast and converted, as ``torch.Tensor.copy_``."""
    source = other if isinstance(other, engine.Tensor_) else engine.Tensor_._of(np.asarray(other))
    engine.check_in_place(x)
    if on_gpu(x._array) != on_gpu(source._array):
        source = source.to(x.device)
    old = x if x._base is None else x._array  # a view's old value is cut out of its base's history elsewhere
    result: Tensor = engine.apply(elementwise.copy_from, old, source)
    return engine.adopt(x, result)
