"""Functions of each element of two tensors or more, with PyTorch's names, broadcasting and promotion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import dtypes, engine
from disttrain.defaults import result_type
from disttrain.functions.common import (
    Number,
    Operand,
    as_operand,
    binary,
    cast,
    fitting,
    floating,
    is_zero,
    need_tensors,
    promote,
    refuse_bool,
)
from disttrain.functions.elementwise import reciprocal
from disttrain.ops import elementwise, special
from disttrain.ops.types import Op
from disttrain.precision import autocasts

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


def scaled(name: str, input: Operand, other: Operand, alpha: float) -> Operand:
    """Return ``alpha * other``, the second operand of a sum or difference, after the checks that both need."""
    if name == "sub":
        for x in (input, other):
            if isinstance(x, bool) or (isinstance(x, engine.Tensor_) and x.dtype is dtypes.bool_):
                raise RuntimeError("sub() is not defined for booleans; use logical_xor() or bitwise_not()")
    if type(alpha) is int and alpha == 1:
        return other
    if isinstance(alpha, bool) and result_type(as_operand(input), as_operand(other)) is not dtypes.bool_:
        raise RuntimeError(f"{name}() of numbers needs a number for alpha, got {alpha}")
    whole = not any(
        isinstance(x, float) or (isinstance(x, engine.Tensor_) and x.dtype.is_floating_point)
        for x in (input, other)
    )
    if whole and isinstance(alpha, float):
        raise RuntimeError(f"{name}() of integers needs an integer alpha, got {alpha}")
    if isinstance(other, engine.Tensor_):  # in the type of the result, which may hold more
        other = cast(other, result_type(as_operand(input), other).numpy)
    return other * alpha


def add(input: Operand, other: Operand, *, alpha: float = 1) -> Tensor:
    """``input + alpha * other``."""
    if type(alpha) is int and alpha == 1:
        return binary(elementwise.add, input, other)
    return binary(elementwise.add, input, scaled("add", input, other, alpha))


def sub(input: Operand, other: Operand, *, alpha: float = 1) -> Tensor:
    """``input - alpha * other``."""
    return binary(elementwise.sub, input, scaled("sub", input, other, alpha))


def rsub(input: Tensor, other: Operand, *, alpha: float = 1) -> Tensor:
    """``other - alpha * input``."""
    need_tensors("rsub", input)
    return sub(other, input, alpha=alpha)


def mul(input: Operand, other: Operand) -> Tensor:
    """``input * other``."""
    return binary(elementwise.mul, input, other)


def div(input: Operand, other: Operand, *, rounding_mode: str | None = None) -> Tensor:
    """``input / other``; integers give the default floating point type unless ``rounding_mode`` is set.

    Raises:
        RuntimeError: ``rounding_mode`` is neither ``None``, ``"trunc"`` nor ``"floor"``.
    """
    if rounding_mode == "floor":
        return floor_divide(input, other)
    if rounding_mode not in (None, "trunc"):
        raise RuntimeError(f"rounding_mode must be None, 'trunc' or 'floor', got {rounding_mode!r}")
    input, other = as_operand(input), as_operand(other)
    if not isinstance(input, engine.Tensor_) and not isinstance(other, engine.Tensor_):
        input = engine.Tensor_.full_(input)
    if not result_type(input, other).is_floating_point:
        if rounding_mode == "trunc":
            kind = result_type(input, other).numpy
            if not isinstance(input, engine.Tensor_):
                input = engine.Tensor_._of(_as_array(cast(input, kind), kind))
            input, other = promote(input, other)
            return floor_divide(sub(input, fmod(input, other)), other)
        input, other = (floating(t) if isinstance(t, engine.Tensor_) else float(t) for t in (input, other))
    return binary(elementwise.div if rounding_mode is None else elementwise.trunc_divide, input, other)


def true_divide(input: Operand, other: Operand) -> Tensor:
    """``input / other``; integers give the default floating point type."""
    return div(input, other)


def number_over(input: Any, number: Number) -> Tensor:
    """``number / input``, as ``1 / x`` is in PyTorch: backward needs the quotient, so that ``x`` may change."""
    with np.errstate(over="ignore", invalid="ignore"):
        return mul(reciprocal(input), number)


def _whole_division(op: Op, input: Operand, other: Operand) -> Tensor:
    """Return ``op``, a quotient or remainder of whole numbers, after the checks that integers need."""
    input, other = as_operand(input), as_operand(other)
    kind = result_type(input, other)
    if kind is dtypes.bool_:
        raise RuntimeError(
            f"{op.__name__}() is not defined for booleans; convert a tensor, for example with .int()"
        )
    nothing = isinstance(input, engine.Tensor_) and not input.numel()
    if not kind.is_floating_point and is_zero(other) and not nothing:
        raise RuntimeError(f"{op.__name__}(): ZeroDivisionError: an integer is divided by zero")
    return binary(op, input, other)


def floor_divide(input: Operand, other: Operand) -> Tensor:
    """``floor(input / other)``."""
    return _whole_division(elementwise.floor_divide, input, other)


def remainder(input: Operand, other: Operand) -> Tensor:
    """The remainder with the sign of ``other``, as Python's ``%``."""
    return _whole_division(elementwise.remainder, input, other)


def fmod(input: Operand, other: Operand) -> Tensor:
    """The remainder with the sign of ``input``, as C's ``fmod``."""
    need_tensors("fmod", input)
    return _whole_division(elementwise.fmod, input, other)


@autocasts
def pow(input: Operand, exponent: Operand) -> Tensor:
    """``input ** exponent``.

    Raises:
        RuntimeError: an integer to a negative integer power, or two tensors of booleans.
    """
    input, exponent = as_operand(input), as_operand(exponent)
    _check_power(input, exponent)
    if isinstance(exponent, int | float):
        kind = result_type(input, exponent)
        if kind.category == 1:
            fitting("pow", exponent, kind.numpy)
    if result_type(input, exponent) is dtypes.bool_:
        if isinstance(exponent, engine.Tensor_):
            raise RuntimeError("pow() is not defined for booleans; convert a tensor, for example with .int()")
        return binary(elementwise.pow, input, exponent).to(dtypes.bool_)
    return binary(elementwise.pow, input, exponent)


def _check_power(input: Operand, exponent: Operand) -> None:
    if type(exponent) is int and exponent < 0 and not result_type(input, exponent).is_floating_point:
        raise RuntimeError(
            f"pow(): integers have no power of {exponent}, which is negative; "
            f"convert the tensor to a floating point type"
        )


def float_power(input: Operand, exponent: Operand) -> Tensor:
    """``input ** exponent`` in float64."""
    wide = [x.to(dtypes.float64) if isinstance(x, engine.Tensor_) else float(x) for x in (input, exponent)]
    return binary(elementwise.pow, *wide)


@autocasts
def atan2(input: Tensor, other: Tensor) -> Tensor:
    """The angle of the point ``(other, input)``, in radians."""
    need_tensors("atan2", input, other)
    return _of_floats("atan2", special.atan2, input, other)


def hypot(input: Tensor, other: Tensor) -> Tensor:
    """``sqrt(input ** 2 + other ** 2)`` without overflow."""
    return _floats_only("hypot", special.hypot, input, other)


def logaddexp(input: Tensor, other: Tensor) -> Tensor:
    """``log(exp(input) + exp(other))`` without overflow."""
    return _floats_only("logaddexp", special.logaddexp, input, other)


def logaddexp2(input: Tensor, other: Tensor) -> Tensor:
    """``log2(2 ** input + 2 ** other)`` without overflow."""
    return _floats_only("logaddexp2", special.logaddexp2, input, other)


def _floats_only(name: str, op: Op, input: Tensor, other: Tensor) -> Tensor:
    need_tensors(name, input, other)
    kind = result_type(input, other)
    if not kind.is_floating_point:
        raise RuntimeError(f"{name}() needs floating point tensors, got {kind}; convert one with .float()")
    return binary(op, input, other)


def xlogy(input: Operand, other: Operand) -> Tensor:
    """``input * log(other)``; 0 where ``input`` is 0, unless ``other`` is nan."""
    return _of_floats("xlogy", special.xlogy, input, other)


def copysign(input: Tensor, other: Operand) -> Tensor:
    """``|input|`` with the sign of ``other``."""
    need_tensors("copysign", input)
    return _of_floats("copysign", special.copysign, input, other)


def _of_floats(name: str, op: Op, input: Operand, other: Operand) -> Tensor:
    """Return ``op`` of two operands, in the default floating point type where both hold integers."""
    input, other = as_operand(input), as_operand(other)
    if not isinstance(input, engine.Tensor_) and not isinstance(other, engine.Tensor_):
        raise TypeError(f"{name}() needs a Tensor among its arguments, got {input!r} and {other!r}")
    if not result_type(input, other).is_floating_point:
        input, other = (floating(x) if isinstance(x, engine.Tensor_) else float(x) for x in (input, other))
    kind = result_type(input, other).numpy
    input, other = (_as_array(cast(x, kind), kind) for x in (input, other))
    return engine.apply(op, input, other)  # type: ignore[no-any-return]


def _as_array(x: Operand, kind: np.dtype[Any]) -> Any:
    with np.errstate(all="ignore"):
        return x if isinstance(x, engine.Tensor_) else np.asarray(x, kind)


def _fitting(name: str, x: Operand, kind: np.dtype[Any]) -> Any:
    """Return a tensor converted to ``kind``, or a number that fits into it."""
    return cast(x, kind) if isinstance(x, engine.Tensor_) else fitting(name, x, kind)


def maximum(input: Tensor, other: Tensor) -> Tensor:
    """The larger of two tensors, element by element; nan where one is."""
    need_tensors("maximum", input, other)
    return binary(elementwise.maximum, input, other)


def minimum(input: Tensor, other: Tensor) -> Tensor:
    """The smaller of two tensors, element by element; nan where one is."""
    need_tensors("minimum", input, other)
    return binary(elementwise.minimum, input, other)


def fmax(input: Tensor, other: Tensor) -> Tensor:
    """The larger of two tensors, element by element; of a number and nan the number."""
    need_tensors("fmax", input, other)
    return binary(special.fmax, input, other)


def fmin(input: Tensor, other: Tensor) -> Tensor:
    """The smaller of two tensors, element by element; of a number and nan the number."""
    need_tensors("fmin", input, other)
    return binary(special.fmin, input, other)


def heaviside(input: Tensor, values: Tensor) -> Tensor:
    """0 where ``input`` is negative, 1 where it is positive, ``values`` where it is zero.

    Raises:
        RuntimeError: the types differ.
    """
    need_tensors("heaviside", input, values)
    if input.dtype is not values.dtype:
        raise RuntimeError(f"heaviside() needs tensors of one type, got {input.dtype} and {values.dtype}")
    return engine.apply(special.heaviside, input, values)  # type: ignore[no-any-return]


def clamp(input: Tensor, min: Operand | None = None, max: Operand | None = None) -> Tensor:
    """``input`` limited to ``[min, max]``; a limit is a number, a tensor or ``None``.

    Raises:
        RuntimeError: both limits are ``None``, or a number is out of range.
        TypeError: one limit is a number, the other a tensor.
    """
    if min is None and max is None:
        raise RuntimeError("clamp() needs min or max, got None for both")
    known = [as_operand(t) for t in (input, min, max) if t is not None]
    limiting = [t.ndim > 0 if isinstance(t, engine.Tensor_) else None for t in known[1:]]
    if True in limiting and None in limiting:
        raise TypeError(f"clamp() needs two numbers or two tensors, got min={min!r:.80} and max={max!r:.80}")
    kind = promote(*known)[0]._array.dtype
    if kind.kind == "b" and (None in limiting or len(limiting) == 2):
        raise NotImplementedError("clamp() of booleans is not defined; convert the tensor with .int()")
    limits = [
        # A number of the type: NumPy would make float32 of a bfloat16 array and a Python number.
        kind.type(fitting("clamp", t, kind))
        if isinstance(t, int | float)
        else t
        if t is None
        else cast(t, kind)
        for t in (min, max)
    ]
    return engine.apply(elementwise.clamp, cast(input, kind), *limits)  # type: ignore[no-any-return]


def clamp_min(input: Tensor, min: Operand) -> Tensor:
    """``input``, but at least ``min``."""
    if min is None:
        raise TypeError("clamp_min() needs min, a number or a tensor, got None")
    return clamp(input, min)


def clamp_max(input: Tensor, max: Operand) -> Tensor:
    """``input``, but at most ``max``."""
    if max is None:
        raise TypeError("clamp_max() needs max, a number or a tensor, got None")
    return clamp(input, None, max)


def where(condition: Tensor, input: Operand = None, other: Operand = None) -> Any:
    """``input`` where ``condition`` holds, else ``other``; with one argument, ``nonzero(as_tuple=True)``."""
    if input is None and other is None:
        return condition.nonzero(as_tuple=True)
    need_tensors("where", condition)
    if condition.dtype is dtypes.uint8:  # from before PyTorch had booleans
        condition = condition.bool()
    if condition.dtype.category:
        raise RuntimeError(
            f"where() needs a boolean condition, got {condition.dtype}; compare it with something first"
        )
    a, b = as_operand(input), as_operand(other)
    kind = result_type(a, b).numpy  # NumPy's own choice for numbers is another
    if kind.kind in "fV":
        a, b = (_as_array(cast(x, kind), kind) for x in (a, b))
    else:
        a, b = (_as_array(_fitting("where", x, kind), kind) for x in (a, b))
    return engine.apply(elementwise.where, condition, a, b)


def ldexp(input: Tensor, other: Tensor) -> Tensor:
    """``input * 2 ** other``."""
    need_tensors("ldexp", input, other)
    return mul(input, pow(2.0, other))


def gcd(input: Tensor, other: Tensor) -> Tensor:
    """The greatest common divisor of two tensors of integers."""
    return _of_integers("gcd", special.gcd, input, other)


def lcm(input: Tensor, other: Tensor) -> Tensor:
    """The least common multiple of two tensors of integers."""
    return _of_integers("lcm", special.lcm, input, other)


def _of_integers(name: str, op: Op, input: Tensor, other: Tensor) -> Tensor:
    need_tensors(name, input, other)
    if result_type(input, other).category != 1:
        raise NotImplementedError(f"{name}() needs integers, got {input.dtype} and {other.dtype}")
    return binary(op, input, other)


def angle(input: Tensor) -> Tensor:
    """Pi where ``input`` is negative, else 0; nan where it is."""
    return engine.apply(special.angle, floating(input))  # type: ignore[no-any-return]


def masked_fill(input: Tensor, mask: Tensor, value: Operand) -> Tensor:
    """``input`` with ``value`` (a number or a tensor without dimensions) where ``mask`` (boolean) holds."""
    return engine.apply(elementwise.masked_fill, input, mask, filling(input, mask, value))  # type: ignore[no-any-return]


def filling(input: Tensor, mask: Tensor, value: Operand) -> Any:
    """Return ``value`` in the type of ``input``, after the checks of masked_fill."""
    need_tensors("masked_fill", input, mask)
    if mask.dtype.category:
        raise RuntimeError(f"masked_fill needs a boolean mask, got {mask.dtype}; use mask.bool()")
    if isinstance(value, engine.Tensor_) and value.ndim:
        raise RuntimeError(
            f"masked_fill needs a number or a tensor without dimensions, got shape {list(value.shape)}"
        )
    if isinstance(value, engine.Tensor_) and input.dtype.category == 1:
        fitting("masked_fill", value.item(), input._array.dtype)
    return _fitting("masked_fill", as_operand(value), input._array.dtype)


def fill(input: Tensor, value: Operand) -> Tensor:
    """A tensor like ``input`` with ``value``, a number or a tensor without dimensions, everywhere."""
    from disttrain.functions.in_place import fill_

    need_tensors("fill", input)
    return fill_(input.clone(), value)


def lerp(input: Tensor, end: Tensor, weight: Operand) -> Tensor:
    """``input + weight * (end - input)``.

    Raises:
        RuntimeError: the tensors are of different types, or of integers.
    """
    weight = check_lerp(input, end, weight)
    return engine.apply(special.lerp, input, end, weight)  # type: ignore[no-any-return]


def check_lerp(input: Tensor, end: Tensor, weight: Operand) -> Operand:
    """Return the weight as an operand of lerp, whose tensors must be of one floating point type."""
    need_tensors("lerp", input, end)
    weight = as_operand(weight)
    if isinstance(weight, engine.Tensor_) and not weight.ndim:
        weight = cast(weight, input._array.dtype)
    for x in (input, end, weight):
        if isinstance(x, engine.Tensor_) and (x.dtype is not input.dtype or not x.dtype.is_floating_point):
            raise RuntimeError(
                f"lerp() needs tensors of one floating point type, got {input.dtype} and {x.dtype}"
            )
    return weight


@autocasts
def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """``input + value * tensor1 * tensor2``."""
    return _add_scaled("addcmul", special.addcmul, input, tensor1, tensor2, value)


@autocasts
def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """``input + value * tensor1 / tensor2``.

    Raises:
        RuntimeError: both parts of the quotient are of integers.
    """
    need_tensors("addcdiv", input, tensor1, tensor2)
    if not tensor1.dtype.is_floating_point and not tensor2.dtype.is_floating_point:
        raise RuntimeError("addcdiv() of integers; convert a tensor with .float()")
    return _add_scaled("addcdiv", special.addcdiv, input, tensor1, tensor2, value)


def _add_scaled(name: str, op: Op, input: Tensor, tensor1: Tensor, tensor2: Tensor, value: float) -> Tensor:
    need_tensors(name, input, tensor1, tensor2)
    operands = promote(input, tensor1, tensor2)
    refuse_bool(name, operands[0])
    value = fitting(name, value, operands[0]._array.dtype)
    return engine.apply(op, *operands, value=value)  # type: ignore[no-any-return]


clip = clamp
arctan2 = atan2
multiply, subtract, divide = mul, sub, div
