"""Functions of each element, with PyTorch's names, broadcasting and promotion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain import engine
from disttrain.functions.common import Operand, binary, cast, floating, in_place, promote, unary_float
from disttrain.ops import activation, elementwise
from disttrain.ops.types import Op

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


def add(input: Operand, other: Operand, *, alpha: float = 1) -> Tensor:
    """``input + alpha * other``."""
    return binary(elementwise.add, input, other if alpha == 1 else other * alpha)


def sub(input: Operand, other: Operand, *, alpha: float = 1) -> Tensor:
    """``input - alpha * other``."""
    return binary(elementwise.sub, input, other if alpha == 1 else other * alpha)


def mul(input: Operand, other: Operand) -> Tensor:
    """``input * other``."""
    return binary(elementwise.mul, input, other)


def div(input: Operand, other: Operand, *, rounding_mode: str | None = None) -> Tensor:
    """``input / other``; integers give the default floating point type unless ``rounding_mode`` is set.

    Raises:
        ValueError: ``rounding_mode`` is neither ``None``, ``"trunc"`` nor ``"floor"``.
    """
    if rounding_mode == "floor":
        return floor_divide(input, other)
    if rounding_mode not in (None, "trunc"):
        raise ValueError(f"rounding_mode must be None, 'trunc' or 'floor', got {rounding_mode!r}")
    a, b = promote(input, other)
    whole = not any(isinstance(t, engine.Tensor_) and t.dtype.is_floating_point for t in (a, b))
    kind = a.dtype if isinstance(a, engine.Tensor_) else b.dtype
    if whole:
        a, b = (floating(t) if isinstance(t, engine.Tensor_) else float(t) for t in (a, b))
    out = binary(elementwise.div, a, b)
    if rounding_mode is None:
        return out
    out = engine.apply(elementwise.trunc, out)
    return out.to(kind) if whole else out


def floor_divide(input: Operand, other: Operand) -> Tensor:
    """``floor(input / other)``."""
    return binary(elementwise.floor_divide, input, other)


def remainder(input: Operand, other: Operand) -> Tensor:
    """The remainder with the sign of ``other``, as Python's ``%``."""
    return binary(elementwise.remainder, input, other)


def fmod(input: Operand, other: Operand) -> Tensor:
    """The remainder with the sign of ``input``, as C's ``fmod``."""
    return binary(elementwise.fmod, input, other)


def pow(input: Operand, exponent: Operand) -> Tensor:
    """``input ** exponent``.

    Raises:
        RuntimeError: an integer to a negative integer power.
    """
    if (
        type(exponent) is int
        and exponent < 0
        and isinstance(input, engine.Tensor_)
        and input.dtype.category < 2
    ):
        raise RuntimeError(
            f"integers to negative integer powers are not allowed, got exponent {exponent}; "
            f"convert the tensor to a floating point type"
        )
    return binary(elementwise.pow, input, exponent)


def neg(input: Tensor) -> Tensor:
    """``-input``."""
    return engine.apply(elementwise.neg, input)  # type: ignore[no-any-return]


def abs(input: Tensor) -> Tensor:
    """``|input|``."""
    return engine.apply(elementwise.abs, input)  # type: ignore[no-any-return]


def reciprocal(input: Tensor) -> Tensor:
    """``1 / input``."""
    return unary_float(elementwise.reciprocal, input)


def square(input: Tensor) -> Tensor:
    """``input * input``."""
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
    return engine.apply(activation.relu, input)  # type: ignore[no-any-return]


def _step(op: Op, input: Tensor, **options: Any) -> Tensor:
    if input.dtype.category < 2:
        return input.clone()
    return engine.apply(op, input, **options)  # type: ignore[no-any-return]


def sign(input: Tensor) -> Tensor:
    """-1, 0 or 1; the gradient is zero."""
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
    return binary(elementwise.maximum, input, other)


def minimum(input: Tensor, other: Tensor) -> Tensor:
    """The smaller of two tensors, element by element."""
    return binary(elementwise.minimum, input, other)


def clamp(input: Tensor, min: Operand | None = None, max: Operand | None = None) -> Tensor:
    """``input`` limited to ``[min, max]``; a limit is a number, a tensor or ``None``.

    Raises:
        ValueError: both limits are ``None``.
    """
    if min is None and max is None:
        raise ValueError("clamp() needs min or max, got None for both")
    known = [t for t in (input, min, max) if t is not None]
    kind = promote(*known)[0]._array.dtype
    return engine.apply(  # type: ignore[no-any-return]
        elementwise.clamp, cast(input, kind), cast(min, kind), cast(max, kind)
    )


def where(condition: Tensor, input: Operand = None, other: Operand = None) -> Any:
    """``input`` where ``condition`` holds, else ``other``; with one argument, ``nonzero(as_tuple=True)``."""
    if input is None and other is None:
        return condition.nonzero(as_tuple=True)
    if condition.dtype.category:
        raise TypeError(
            f"where() needs a boolean condition, got {condition.dtype}; compare it with something first"
        )
    a, b = promote(input, other)
    if not isinstance(a, engine.Tensor_) and not isinstance(b, engine.Tensor_):
        a = engine.Tensor_.full_(a)
    return engine.apply(elementwise.where, condition, a, b)


def masked_fill(input: Tensor, mask: Tensor, value: Operand) -> Tensor:
    """``input`` with ``value`` (a number or a tensor without dimensions) where ``mask`` (boolean) holds."""
    _check_mask(mask)
    return engine.apply(elementwise.masked_fill, input, mask, value)  # type: ignore[no-any-return]


def _check_mask(mask: Tensor) -> None:
    if mask.dtype.category:
        raise RuntimeError(f"masked_fill needs a boolean mask, got {mask.dtype}; use mask.bool()")


def lerp(input: Tensor, end: Tensor, weight: Operand) -> Tensor:
    """``input + weight * (end - input)``."""
    return input + weight * (end - input)


def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """``input + value * tensor1 * tensor2``."""
    return input + value * tensor1 * tensor2


def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """``input + value * tensor1 / tensor2``."""
    return input + value * tensor1 / tensor2


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
    return engine.apply(elementwise.logical_and, input, other)  # type: ignore[no-any-return]


def logical_or(input: Tensor, other: Tensor) -> Tensor:
    """Whether one is not zero."""
    return engine.apply(elementwise.logical_or, input, other)  # type: ignore[no-any-return]


def logical_xor(input: Tensor, other: Tensor) -> Tensor:
    """Whether exactly one is not zero."""
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
    return in_place(input, elementwise.add, other if alpha == 1 else other * alpha)


def sub_(input: Tensor, other: Operand, *, alpha: float = 1) -> Tensor:
    """:func:`sub` in place."""
    return in_place(input, elementwise.sub, other if alpha == 1 else other * alpha)


def mul_(input: Tensor, other: Operand) -> Tensor:
    """:func:`mul` in place."""
    return in_place(input, elementwise.mul, other)


def div_(input: Tensor, other: Operand) -> Tensor:
    """:func:`div` in place.

    Raises:
        RuntimeError: the tensor holds integers, which a quotient does not fit.
    """
    if input.dtype.category < 2:
        raise RuntimeError(
            f"result type Float cannot be written into a tensor of {input.dtype}; use floor_divide_()"
        )
    return in_place(input, elementwise.div, other)


def pow_(input: Tensor, exponent: Operand) -> Tensor:
    """:func:`pow` in place."""
    return in_place(input, elementwise.pow, exponent)


def _unary_in_place(op: Op, input: Tensor) -> Tensor:
    return engine.write_in_place(input, op)


def neg_(input: Tensor) -> Tensor:
    """:func:`neg` in place."""
    return _unary_in_place(elementwise.neg, input)


def abs_(input: Tensor) -> Tensor:
    """:func:`abs` in place."""
    return _unary_in_place(elementwise.abs, input)


def exp_(input: Tensor) -> Tensor:
    """:func:`exp` in place."""
    return _unary_in_place(elementwise.exp, input)


def log_(input: Tensor) -> Tensor:
    """:func:`log` in place."""
    return _unary_in_place(elementwise.log, input)


def sqrt_(input: Tensor) -> Tensor:
    """:func:`sqrt` in place."""
    return _unary_in_place(elementwise.sqrt, input)


def relu_(input: Tensor) -> Tensor:
    """:func:`relu` in place."""
    return _unary_in_place(activation.relu, input)


def sigmoid_(input: Tensor) -> Tensor:
    """:func:`sigmoid` in place."""
    return _unary_in_place(activation.sigmoid, input)


def tanh_(input: Tensor) -> Tensor:
    """:func:`tanh` in place."""
    return _unary_in_place(activation.tanh, input)


def clamp_(input: Tensor, min: Operand | None = None, max: Operand | None = None) -> Tensor:
    """:func:`clamp` in place."""
    return engine.write_in_place(input, elementwise.clamp, min, max)


def fill_(input: Tensor, value: Operand) -> Tensor:
    """Write ``value`` everywhere."""
    number = value.item() if isinstance(value, engine.Tensor_) else value
    return engine.write_in_place(input, elementwise.fill, value=number)


def zero_(input: Tensor) -> Tensor:
    """Write zero everywhere."""
    return fill_(input, 0)


def masked_fill_(input: Tensor, mask: Tensor, value: Operand) -> Tensor:
    """:func:`masked_fill` in place."""
    _check_mask(mask)
    return engine.write_in_place(input, elementwise.masked_fill, mask, value)


def addcmul_(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """:func:`addcmul` in place."""
    return add_(input, value * tensor1 * tensor2)


def addcdiv_(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """:func:`addcdiv` in place."""
    return add_(input, value * tensor1 / tensor2)


def lerp_(input: Tensor, end: Tensor, weight: Operand) -> Tensor:
    """:func:`lerp` in place."""
    return add_(input, weight * (end - input))
