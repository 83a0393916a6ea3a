"""Functions of each element, with PyTorch's names, broadcasting and promotion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import dtypes, engine
from disttrain.defaults import result_type
from disttrain.functions.common import (
    Operand,
    as_operand,
    binary,
    cast,
    copy_,
    floating,
    in_place,
    is_zero,
    need_tensors,
    overwrite,
    promote,
    unary_float,
)
from disttrain.ops import activation, elementwise
from disttrain.ops.types import Op

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


def _scaled(name: str, input: Operand, other: Operand, alpha: float) -> Operand:
    """Return ``alpha * other``, the second operand of a sum or difference, after the checks that both need."""
    if name == "sub":
        for x in (input, other):
            if isinstance(x, bool) or (isinstance(x, engine.Tensor_) and x.dtype is dtypes.bool_):
                raise RuntimeError("sub() is not defined for booleans; use logical_xor() or bitwise_not()")
    if type(alpha) is int and alpha == 1:
        return other
    whole = not any(
        isinstance(x, float) or (isinstance(x, engine.Tensor_) and x.dtype.is_floating_point)
        for x in (input, other)
    )
    if whole and isinstance(alpha, float):
        raise RuntimeError(f"{name}() of integers needs an integer alpha, got {alpha}")
    return other * alpha


def _refuse_bool(name: str, input: Tensor) -> None:
    if input.dtype is dtypes.bool_:
        raise RuntimeError(
            f"{name}() is not defined for booleans; convert the tensor, for example with .int()"
        )


def add(input: Operand, other: Operand, *, alpha: float = 1) -> Tensor:
    """``input + alpha * other``."""
    if type(alpha) is int and alpha == 1:
        return binary(elementwise.add, input, other)
    return binary(elementwise.add, input, _scaled("add", input, other, alpha))


def sub(input: Operand, other: Operand, *, alpha: float = 1) -> Tensor:
    """``input - alpha * other``."""
    return binary(elementwise.sub, input, _scaled("sub", input, other, alpha))


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
    if not result_type(input, other).is_floating_point:
        if rounding_mode == "trunc":
            return floor_divide(sub(input, fmod(input, other)), other)
        input, other = (floating(t) if isinstance(t, engine.Tensor_) else float(t) for t in (input, other))
    out = binary(elementwise.div, input, other)
    return out if rounding_mode is None else trunc(out)


def _whole_division(op: Op, input: Operand, other: Operand) -> Tensor:
    """Return ``op``, a quotient or remainder of whole numbers, after the checks that integers need."""
    input, other = as_operand(input), as_operand(other)
    kind = result_type(input, other)
    if kind is dtypes.bool_:
        raise RuntimeError(
            f"{op.__name__}() is not defined for booleans; convert a tensor, for example with .int()"
        )
    if not kind.is_floating_point and is_zero(other):
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
    return _whole_division(elementwise.fmod, input, other)


def pow(input: Operand, exponent: Operand) -> Tensor:
    """``input ** exponent``.

    Raises:
        RuntimeError: an integer to a negative integer power, or two tensors of booleans.
    """
    input, exponent = as_operand(input), as_operand(exponent)
    _check_power(input, exponent)
    if result_type(input, exponent) is dtypes.bool_:
        if isinstance(exponent, engine.Tensor_):
            raise RuntimeError("pow() is not defined for booleans; convert a tensor, for example with .int()")
        return binary(elementwise.pow, input, exponent).to(dtypes.bool_)
    return binary(elementwise.pow, input, exponent)


def _check_power(input: Operand, exponent: Operand) -> None:
    if type(exponent) is int and exponent < 0 and not result_type(input, exponent).is_floating_point:
        raise RuntimeError(
            f"integers to negative integer powers are not allowed, got exponent {exponent}; "
            f"convert the tensor to a floating point type"
        )


def neg(input: Tensor) -> Tensor:
    """``-input``."""
    _refuse_bool("neg", input)
    return engine.apply(elementwise.neg, input)  # type: ignore[no-any-return]


def abs(input: Tensor) -> Tensor:
    """``|input|``."""
    _refuse_bool("abs", input)
    return engine.apply(elementwise.abs, input)  # type: ignore[no-any-return]


def reciprocal(input: Tensor) -> Tensor:
    """``1 / input``."""
    return unary_float(elementwise.reciprocal, input)


def square(input: Tensor) -> Tensor:
    """``input * input``."""
    if input.dtype is dtypes.bool_:
        input = input.to(dtypes.int64)
    return engine.apply(elementwise.square, input)  # type: ignore[no-any-return]


def exp(input: Tensor) -> Tensor:
    """``e ** input``."""
    return unary_float(elementwise.exp, input)


def exp2(input: Tensor) -> Tensor:
    """``2 ** input``."""
    return unary_float(elementwise.exp2, input)


def expm1(input: Tensor) -> Tensor:
    """``e ** input - 1``, exact near zero."""
    return unary_float(elementwise.expm1, input)


def log(input: Tensor) -> Tensor:
    """Natural logarithm."""
    return unary_float(elementwise.log, input)


def log2(input: Tensor) -> Tensor:
    """Logarithm to base 2."""
    return unary_float(elementwise.log2, input)


def log10(input: Tensor) -> Tensor:
    """Logarithm to base 10."""
    return unary_float(elementwise.log10, input)


def log1p(input: Tensor) -> Tensor:
    """``log(1 + input)``, exact near zero."""
    return unary_float(elementwise.log1p, input)


def sqrt(input: Tensor) -> Tensor:
    """Square root."""
    return unary_float(elementwise.sqrt, input)


def rsqrt(input: Tensor) -> Tensor:
    """``1 / sqrt(input)``."""
    return unary_float(elementwise.rsqrt, input)


def sin(input: Tensor) -> Tensor:
    """Sine of ``input`` radians."""
    return unary_float(elementwise.sin, input)


def cos(input: Tensor) -> Tensor:
    """Cosine of ``input`` radians."""
    return unary_float(elementwise.cos, input)


def tan(input: Tensor) -> Tensor:
    """Tangent of ``input`` radians."""
    return unary_float(elementwise.tan, input)


def atan(input: Tensor) -> Tensor:
    """Arc tangent, in radians."""
    return unary_float(elementwise.atan, input)


def sinh(input: Tensor) -> Tensor:
    """Hyperbolic sine."""
    return unary_float(elementwise.sinh, input)


def cosh(input: Tensor) -> Tensor:
    """Hyperbolic cosine."""
    return unary_float(elementwise.cosh, input)


def tanh(input: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return unary_float(activation.tanh, input)


def sigmoid(input: Tensor) -> Tensor:
    """``1 / (1 + exp(-input))``."""
    return unary_float(activation.sigmoid, input)


def relu(input: Tensor) -> Tensor:
    """``max(input, 0)``."""
    _refuse_bool("relu", input)
    return engine.apply(activation.relu, input)  # type: ignore[no-any-return]


def _step(op: Op, input: Tensor, **options: Any) -> Tensor:
    _refuse_bool(op.__name__, input)
    if input.dtype.category < 2:
        if options.get("decimals"):
            raise RuntimeError(f"{op.__name__}() of integers to decimals; convert the tensor with .float()")
        return input.clone()
    return engine.apply(op, input, **options)  # type: ignore[no-any-return]


def sign(input: Tensor) -> Tensor:
    """-1, 0 or 1; the gradient is zero."""
    if input.dtype is dtypes.bool_:
        return input.clone()
    return engine.apply(elementwise.sign, input)  # type: ignore[no-any-return]


def floor(input: Tensor) -> Tensor:
    """The integer below; the gradient is zero."""
    return _step(elementwise.floor, input)


def ceil(input: Tensor) -> Tensor:
    """The integer above; the gradient is zero."""
    return _step(elementwise.ceil, input)


def trunc(input: Tensor) -> Tensor:
    """The integer towards zero; the gradient is zero."""
    return _step(elementwise.trunc, input)


def round(input: Tensor, *, decimals: int = 0) -> Tensor:
    """The nearest number of ``decimals`` decimals, halves to even; the gradient is zero."""
    return _step(elementwise.round, input, decimals=decimals)


def maximum(input: Tensor, other: Tensor) -> Tensor:
    """The larger of two tensors, element by element."""
    need_tensors("maximum", input, other)
    return binary(elementwise.maximum, input, other)


def minimum(input: Tensor, other: Tensor) -> Tensor:
    """The smaller of two tensors, element by element."""
    need_tensors("minimum", input, other)
    return binary(elementwise.minimum, input, other)


def clamp(input: Tensor, min: Operand | None = None, max: Operand | None = None) -> Tensor:
    """``input`` limited to ``[min, max]``; a limit is a number, a tensor or ``None``.

    Raises:
        RuntimeError: both limits are ``None``.
    """
    if min is None and max is None:
        raise RuntimeError("clamp() needs min or max, got None for both")
    known = [t for t in (input, min, max) if t is not None]
    kind = promote(*known)[0]._array.dtype
    return engine.apply(  # type: ignore[no-any-return]
        elementwise.clamp, cast(input, kind), cast(min, kind), cast(max, kind)
    )


def where(condition: Tensor, input: Operand = None, other: Operand = None) -> Any:
    """``input`` where ``condition`` holds, else ``other``; with one argument, ``nonzero(as_tuple=True)``."""
    if input is None and other is None:
        return condition.nonzero(as_tuple=True)
    need_tensors("where", condition)
    if condition.dtype.category:
        raise RuntimeError(
            f"where() needs a boolean condition, got {condition.dtype}; compare it with something first"
        )
    a, b = promote(input, other)
    kind = result_type(a, b).numpy  # NumPy's own choice for numbers is another
    a, b = (x if isinstance(x, engine.Tensor_) else np.asarray(x, kind) for x in (a, b))
    return engine.apply(elementwise.where, condition, a, b)


def masked_fill(input: Tensor, mask: Tensor, value: Operand) -> Tensor:
    """``input`` with ``value`` (a number or a tensor without dimensions) where ``mask`` (boolean) holds."""
    return engine.apply(elementwise.masked_fill, input, mask, _filling(input, mask, value))  # type: ignore[no-any-return]


def _filling(input: Tensor, mask: Tensor, value: Operand) -> Any:
    """Return ``value`` in the type of ``input``, after the checks of masked_fill."""
    need_tensors("masked_fill", input, mask)
    if mask.dtype.category:
        raise RuntimeError(f"masked_fill needs a boolean mask, got {mask.dtype}; use mask.bool()")
    if isinstance(value, engine.Tensor_) and value.ndim:
        raise RuntimeError(
            f"masked_fill needs a number or a tensor without dimensions, got shape {list(value.shape)}"
        )
    return cast(as_operand(value), input._array.dtype)


def lerp(input: Tensor, end: Tensor, weight: Operand) -> Tensor:
    """``input + weight * (end - input)``."""
    _check_lerp(input, end, weight)
    return add(input, mul(weight, sub(end, input)))


def _check_lerp(input: Tensor, end: Tensor, weight: Operand) -> None:
    for x in (input, end, weight):
        if isinstance(x, engine.Tensor_) and (x.dtype is not input.dtype or not x.dtype.is_floating_point):
            raise RuntimeError(
                f"lerp() needs tensors of one floating point type, got {input.dtype}, {end.dtype}"
            )


def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """``input + value * tensor1 * tensor2``."""
    return input + value * tensor1 * tensor2


def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """``input + value * tensor1 / tensor2``."""
    return input + _quotient(tensor1, tensor2, value)


def _quotient(tensor1: Tensor, tensor2: Tensor, value: float) -> Tensor:
    if not tensor1.dtype.is_floating_point and not tensor2.dtype.is_floating_point:
        raise RuntimeError("addcdiv() of integers; convert a tensor with .float()")
    return value * (tensor1 / tensor2)


def eq(input: Tensor, other: Operand) -> Tensor:
    """``input == other``, element by element."""
    return binary(elementwise.eq, input, other)


def ne(input: Tensor, other: Operand) -> Tensor:
    """``input != other``, element by element."""
    return binary(elementwise.ne, input, other)


def lt(input: Tensor, other: Operand) -> Tensor:
    """``input < other``, element by element."""
    return binary(elementwise.lt, input, other)


def le(input: Tensor, other: Operand) -> Tensor:
    """``input <= other``, element by element."""
    return binary(elementwise.le, input, other)


def gt(input: Tensor, other: Operand) -> Tensor:
    """``input > other``, element by element."""
    return binary(elementwise.gt, input, other)


def ge(input: Tensor, other: Operand) -> Tensor:
    """``input >= other``, element by element."""
    return binary(elementwise.ge, input, other)


def logical_and(input: Tensor, other: Tensor) -> Tensor:
    """Whether both are not zero."""
    need_tensors("logical_and", input, other)
    return engine.apply(elementwise.logical_and, input, other)  # type: ignore[no-any-return]


def logical_or(input: Tensor, other: Tensor) -> Tensor:
    """Whether one is not zero."""
    need_tensors("logical_or", input, other)
    return engine.apply(elementwise.logical_or, input, other)  # type: ignore[no-any-return]


def logical_xor(input: Tensor, other: Tensor) -> Tensor:
    """Whether exactly one is not zero."""
    need_tensors("logical_xor", input, other)
    return engine.apply(elementwise.logical_xor, input, other)  # type: ignore[no-any-return]


def logical_not(input: Tensor) -> Tensor:
    """Whether ``input`` is zero."""
    return engine.apply(elementwise.logical_not, input)  # type: ignore[no-any-return]


def bitwise_and(input: Operand, other: Operand) -> Tensor:
    """``input & other`` on integers or booleans."""
    return binary(elementwise.bitwise_and, input, other)


def bitwise_or(input: Operand, other: Operand) -> Tensor:
    """``input | other`` on integers or booleans."""
    return binary(elementwise.bitwise_or, input, other)


def bitwise_xor(input: Operand, other: Operand) -> Tensor:
    """``input ^ other`` on integers or booleans."""
    return binary(elementwise.bitwise_xor, input, other)


def bitwise_not(input: Tensor) -> Tensor:
    """``~input`` on integers or booleans."""
    return engine.apply(elementwise.bitwise_not, input)  # type: ignore[no-any-return]


def isnan(input: Tensor) -> Tensor:
    """Whether each element is not a number."""
    return engine.apply(elementwise.isnan, input)  # type: ignore[no-any-return]


def isinf(input: Tensor) -> Tensor:
    """Whether each element is an infinity."""
    return engine.apply(elementwise.isinf, input)  # type: ignore[no-any-return]


def isfinite(input: Tensor) -> Tensor:
    """Whether each element is neither nan nor an infinity."""
    return engine.apply(elementwise.isfinite, input)  # type: ignore[no-any-return]


# In place: `x.add_(y)` writes `x + y` into the memory of `x`.


def add_(input: Tensor, other: Operand, *, alpha: float = 1) -> Tensor:
    """:func:`add` in place."""
    return in_place(input, elementwise.add, _scaled("add", input, other, alpha))


def sub_(input: Tensor, other: Operand, *, alpha: float = 1) -> Tensor:
    """:func:`sub` in place."""
    return in_place(input, elementwise.sub, _scaled("sub", input, other, alpha))


def mul_(input: Tensor, other: Operand) -> Tensor:
    """:func:`mul` in place."""
    return in_place(input, elementwise.mul, other)


def div_(input: Tensor, other: Operand, *, rounding_mode: str | None = None) -> Tensor:
    """:func:`div` in place.

    Raises:
        RuntimeError: the tensor holds integers, which a quotient does not fit.
    """
    if rounding_mode is not None:
        return overwrite(input, div, other, rounding_mode=rounding_mode)
    if input.dtype.category < 2:
        raise RuntimeError(
            f"result type Float cannot be written into a tensor of {input.dtype}; use floor_divide_()"
        )
    return in_place(input, elementwise.div, other)


def pow_(input: Tensor, exponent: Operand) -> Tensor:
    """:func:`pow` in place."""
    if input.dtype.category < 2:
        return overwrite(input, pow, exponent)
    return in_place(input, elementwise.pow, exponent)


def _unary_in_place(op: Op, input: Tensor) -> Tensor:
    if input.dtype.category < 2:
        raise RuntimeError(f"the result of {op.__name__}() cannot be written into a tensor of {input.dtype}")
    return engine.write_in_place(input, op)


def neg_(input: Tensor) -> Tensor:
    """:func:`neg` in place."""
    return overwrite(input, neg)


def abs_(input: Tensor) -> Tensor:
    """:func:`abs` in place."""
    return overwrite(input, abs)


def relu_(input: Tensor) -> Tensor:
    """:func:`relu` in place."""
    _refuse_bool("relu_", input)
    return engine.write_in_place(input, activation.relu)


def exp_(input: Tensor) -> Tensor:
    """:func:`exp` in place.

    Raises:
        RuntimeError: the tensor holds integers.
    """
    return _unary_in_place(elementwise.exp, input)


def log_(input: Tensor) -> Tensor:
    """:func:`log` in place.

    Raises:
        RuntimeError: the tensor holds integers.
    """
    return _unary_in_place(elementwise.log, input)


def sqrt_(input: Tensor) -> Tensor:
    """:func:`sqrt` in place.

    Raises:
        RuntimeError: the tensor holds integers.
    """
    return _unary_in_place(elementwise.sqrt, input)


def sigmoid_(input: Tensor) -> Tensor:
    """:func:`sigmoid` in place.

    Raises:
        RuntimeError: the tensor holds integers.
    """
    return _unary_in_place(activation.sigmoid, input)


def tanh_(input: Tensor) -> Tensor:
    """:func:`tanh` in place.

    Raises:
        RuntimeError: the tensor holds integers.
    """
    return _unary_in_place(activation.tanh, input)


def clamp_(input: Tensor, min: Operand | None = None, max: Operand | None = None) -> Tensor:
    """:func:`clamp` in place."""
    return overwrite(input, clamp, min, max)


def fill_(input: Tensor, value: Operand) -> Tensor:
    """Write ``value``, a number or a tensor without dimensions, everywhere.

    Raises:
        RuntimeError: ``value`` is a tensor with dimensions.
    """
    if isinstance(value, engine.Tensor_):
        if value.ndim:
            raise RuntimeError(
                f"fill_() needs a number or a tensor without dimensions, got shape {list(value.shape)}"
            )
        return copy_(input, value)
    return engine.write_in_place(input, elementwise.fill, value=cast(as_operand(value), input._array.dtype))


def zero_(input: Tensor) -> Tensor:
    """Write zero everywhere."""
    return fill_(input, 0)


def masked_fill_(input: Tensor, mask: Tensor, value: Operand) -> Tensor:
    """:func:`masked_fill` in place."""
    return engine.write_in_place(input, elementwise.masked_fill, mask, _filling(input, mask, value))


def addcmul_(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """:func:`addcmul` in place."""
    return add_(input, value * tensor1 * tensor2)


def addcdiv_(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """:func:`addcdiv` in place."""
    return add_(input, _quotient(tensor1, tensor2, value))


def lerp_(input: Tensor, end: Tensor, weight: Operand) -> Tensor:
    """:func:`lerp` in place."""
    return overwrite(input, lerp, end, weight)
