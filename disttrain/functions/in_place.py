"""Functions in place: ``x.add_(y)`` writes ``x + y`` into the memory of ``x`` and returns ``x``, recorded.

All raise ``GradientError`` where ``x`` is a leaf that requires a gradient (or a view of one), and ``RuntimeError``
where the result has a shape or a type that ``x`` cannot hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import dtypes, engine
from disttrain.functions import arithmetic as a
from disttrain.functions import compare as c
from disttrain.functions import elementwise as e
from disttrain.functions import scan
from disttrain.functions.common import (
    Operand,
    as_operand,
    copy_,
    fitting,
    in_place,
    need_tensors,
    overwrite,
    refuse_bool,
)
from disttrain.ops import activation, elementwise, special
from disttrain.ops.types import Op

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


def _named(function: Callable[..., Tensor], call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``call`` under the name of ``function`` with an underscore."""
    call.__name__ = call.__qualname__ = f"{function.__name__}_"
    call.__doc__ = f":func:`{function.__name__}` in place."
    return call


def _unary(function: Callable[..., Tensor], op: Op) -> Callable[[Tensor], Tensor]:
    """Return the in-place form of a function of floating point numbers that is one op."""

    def call(input: Tensor) -> Tensor:
        if not input.dtype.is_floating_point:
            raise RuntimeError(
                f"the result of {function.__name__}() cannot be written into a tensor of {input.dtype}"
            )
        return engine.write_in_place(input, op)

    return _named(function, call)


def _overwriting(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the in-place form of any function: its result is written over its first argument."""

    def call(input: Tensor, *args: Any, **options: Any) -> Tensor:
        return overwrite(input, function, *args, **options)

    return _named(function, call)


def _overwritings(*functions: Callable[..., Tensor]) -> list[Callable[..., Tensor]]:
    return [_overwriting(f) for f in functions]


def _truth(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the in-place form of a function without a gradient: what is written forgets the history of the tensor."""

    def call(input: Tensor, *args: Any, **options: Any) -> Tensor:
        return copy_(input, function(input, *args, **options))

    return _named(function, call)


def _truths(*functions: Callable[..., Tensor]) -> list[Callable[..., Tensor]]:
    return [_truth(f) for f in functions]


# ------------------------------------------------------------------------------------------ arithmetic


def add_(input: Tensor, other: Operand, *, alpha: float = 1) -> Tensor:
    """:func:`add` in place."""
    return in_place(input, elementwise.add, a.scaled("add", input, other, alpha))


def sub_(input: Tensor, other: Operand, *, alpha: float = 1) -> Tensor:
    """:func:`sub` in place."""
    return in_place(input, elementwise.sub, a.scaled("sub", input, other, alpha))


def mul_(input: Tensor, other: Operand) -> Tensor:
    """:func:`mul` in place."""
    return in_place(input, elementwise.mul, other)


def div_(input: Tensor, other: Operand, *, rounding_mode: str | None = None) -> Tensor:
    """:func:`div` in place.

    Raises:
        RuntimeError: the tensor holds integers, which a quotient does not fit.
    """
    if rounding_mode is not None:
        return overwrite(input, a.div, other, rounding_mode=rounding_mode)
    if input.dtype.category < 2:
        raise RuntimeError(
            f"result type Float cannot be written into a tensor of {input.dtype}; use floor_divide_()"
        )
    return in_place(input, elementwise.div, other)


def true_divide_(input: Tensor, other: Operand) -> Tensor:
    """:func:`true_divide` in place."""
    return div_(input, other)


def pow_(input: Tensor, exponent: Operand) -> Tensor:
    """:func:`pow` in place."""
    if input.dtype.category < 2:
        return overwrite(input, a.pow, exponent)
    return in_place(input, elementwise.pow, exponent)


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
    number = fitting("fill_", as_operand(value), input._array.dtype)
    return engine.write_in_place(input, elementwise.fill, value=number)


def zero_(input: Tensor) -> Tensor:
    """Write zero everywhere."""
    return fill_(input, 0)


def masked_fill_(input: Tensor, mask: Tensor, value: Operand) -> Tensor:
    """:func:`masked_fill` in place."""
    return engine.write_in_place(input, elementwise.masked_fill, mask, a.filling(input, mask, value))


def lerp_(input: Tensor, end: Tensor, weight: Operand) -> Tensor:
    """:func:`lerp` in place."""
    return engine.write_in_place(input, special.lerp, end, a.check_lerp(input, end, weight))


def relu_(input: Tensor) -> Tensor:
    """:func:`relu` in place."""
    refuse_bool("relu_", input)
    return engine.write_in_place(input, activation.relu)


def float_power_(input: Tensor, exponent: Operand) -> Tensor:
    """:func:`float_power` in place.

    Raises:
        RuntimeError: the tensor is not float64.
    """
    if input.dtype is not dtypes.float64:
        raise RuntimeError(
            f"the result of float_power_() is float64, which a tensor of {input.dtype} cannot hold"
        )
    return in_place(input, elementwise.pow, exponent)


floor_divide_, remainder_, fmod_ = _overwritings(a.floor_divide, a.remainder, a.fmod)
atan2_, hypot_ = _overwritings(a.atan2, a.hypot)
xlogy_, copysign_, heaviside_ = _overwritings(a.xlogy, a.copysign, a.heaviside)
clamp_, clamp_min_, clamp_max_ = _overwritings(a.clamp, a.clamp_min, a.clamp_max)
addcmul_, addcdiv_ = _overwritings(a.addcmul, a.addcdiv)
ldexp_, gcd_, lcm_ = _overwritings(a.ldexp, a.gcd, a.lcm)


def apply_(input: Tensor, callable: Callable[[Any], Any]) -> Tensor:
    """Write what a Python function makes of each element, one by one.

    Raises:
        RuntimeError: the tensor requires a gradient.
        TypeError: what is given is no function.
    """
    return _each("apply_", input, callable, input)


def map_(input: Tensor, tensor: Tensor, callable: Callable[[Any, Any], Any]) -> Tensor:
    """Write what a Python function makes of each element and that of another tensor, one by one.

    Raises:
        RuntimeError: a tensor requires a gradient, or the shapes do not fit.
        TypeError: what is given is no function.
    """
    need_tensors("map_", tensor)
    return _each("map_", input, callable, input, tensor.expand(input.shape))


def _each(name: str, input: Tensor, function: Any, *sources: Tensor) -> Tensor:
    if not isinstance(function, Callable):  # type: ignore[arg-type]
        raise TypeError(f"{name}() needs a function, got {type(function).__name__}: {function!r:.80}")
    if any(x.requires_grad for x in sources):
        raise RuntimeError(f"{name}() is not recorded; detach() the tensors that require gradients")
    made = [function(*numbers) for numbers in zip(*(x.reshape(-1).tolist() for x in sources), strict=True)]
    return copy_(input, engine.Tensor_._of(np.array(made).astype(input._array.dtype).reshape(input.shape)))


# ------------------------------------------------------------------------------------------ of one tensor

exp_, exp2_, expm1_ = (
    _unary(e.exp, elementwise.exp),
    _unary(e.exp2, elementwise.exp2),
    _unary(e.expm1, elementwise.expm1),
)
log_, log2_ = _unary(e.log, elementwise.log), _unary(e.log2, elementwise.log2)
log10_, log1p_ = _unary(e.log10, elementwise.log10), _unary(e.log1p, elementwise.log1p)
sqrt_, rsqrt_ = _unary(e.sqrt, elementwise.sqrt), _unary(e.rsqrt, elementwise.rsqrt)
reciprocal_, sigmoid_ = _unary(e.reciprocal, elementwise.reciprocal), _unary(e.sigmoid, activation.sigmoid)
sin_, cos_, tan_ = (
    _unary(e.sin, elementwise.sin),
    _unary(e.cos, elementwise.cos),
    _unary(e.tan, elementwise.tan),
)
sinh_, cosh_, tanh_ = (
    _unary(e.sinh, elementwise.sinh),
    _unary(e.cosh, elementwise.cosh),
    _unary(e.tanh, activation.tanh),
)
asin_, acos_, atan_ = (
    _unary(e.asin, special.asin),
    _unary(e.acos, special.acos),
    _unary(e.atan, elementwise.atan),
)
asinh_, acosh_ = _unary(e.asinh, special.asinh), _unary(e.acosh, special.acosh)
atanh_, sinc_ = _unary(e.atanh, special.atanh), _unary(e.sinc, special.sinc)
erf_, erfc_ = _unary(e.erf, activation.erf), _unary(e.erfc, special.erfc)
erfinv_, lgamma_ = _unary(e.erfinv, special.erfinv), _unary(e.lgamma, special.lgamma)
digamma_ = _unary(e.digamma, special.digamma)
neg_, abs_, square_, sign_, sgn_ = _overwritings(e.neg, e.abs, e.square, e.sign, e.sgn)
floor_, ceil_, trunc_ = _overwritings(e.floor, e.ceil, e.trunc)
round_, frac_ = _overwritings(e.round, e.frac)
logit_, nan_to_num_ = _overwritings(e.logit, e.nan_to_num)
mvlgamma_ = _overwriting(e.mvlgamma)
deg2rad_, rad2deg_ = _overwritings(e.deg2rad, e.rad2deg)
cumsum_, cumprod_ = _overwritings(scan.cumsum, scan.cumprod)

# ------------------------------------------------------------------------------------------ truth and bits

eq_, ne_, lt_, le_, gt_, ge_ = _truths(c.eq, c.ne, c.lt, c.le, c.gt, c.ge)
logical_and_, logical_or_ = _truths(c.logical_and, c.logical_or)
logical_xor_, logical_not_ = _truths(c.logical_xor, e.logical_not)
bitwise_and_, bitwise_or_ = _overwritings(c.bitwise_and, c.bitwise_or)
bitwise_xor_, bitwise_not_ = _overwritings(c.bitwise_xor, e.bitwise_not)
conj_physical_ = _overwriting(e.real)
bitwise_left_shift_, bitwise_right_shift_ = _overwritings(c.bitwise_left_shift, c.bitwise_right_shift)

absolute_, negative_, fix_, clip_ = abs_, neg_, trunc_, clamp_
arcsin_, arccos_, arctan_, arctan2_ = asin_, acos_, atan_, atan2_
arcsinh_, arccosh_, arctanh_ = asinh_, acosh_, atanh_
multiply_, subtract_, divide_ = mul_, sub_, div_
greater_, greater_equal_, less_, less_equal_, not_equal_ = gt_, ge_, lt_, le_, ne_
