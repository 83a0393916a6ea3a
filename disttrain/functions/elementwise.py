"""Functions of each element of one tensor, with PyTorch's names and promotion.

Where a function has no meaning for integers they become the default floating point type.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import ml_dtypes

from disttrain import dtypes, engine
from disttrain.functions.common import floating, need_floats, need_tensors, refuse_bool, unary_float
from disttrain.ops import activation, elementwise, special
from disttrain.ops.types import Op
from disttrain.precision import autocasts

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

# ------------------------------------------------------------------------------------------ arithmetic


def neg(input: Tensor) -> Tensor:
    """``-input``.

    Raises:
        RuntimeError: the tensor holds booleans.
    """
    refuse_bool("neg", input)
    return engine.apply(elementwise.neg, input)  # type: ignore[no-any-return]


def positive(input: Tensor) -> Tensor:
    """``input`` itself, as ``torch.positive``.

    Raises:
        RuntimeError: the tensor holds booleans.
    """
    refuse_bool("positive", input)
    return input


def abs(input: Tensor) -> Tensor:
    """``|input|``.

    Raises:
        RuntimeError: the tensor holds booleans.
    """
    refuse_bool("abs", input)
    return engine.apply(elementwise.abs, input)  # type: ignore[no-any-return]


@autocasts
def reciprocal(input: Tensor) -> Tensor:
    """``1 / input``."""
    return unary_float(elementwise.reciprocal, input)


def square(input: Tensor) -> Tensor:
    """``input * input``; booleans give int64."""
    need_tensors("square", input)
    if input.dtype is dtypes.bool_:
        input = input.to(dtypes.int64)
    return engine.apply(elementwise.square, input)  # type: ignore[no-any-return]


def deg2rad(input: Tensor) -> Tensor:
    """Radians for degrees."""
    return floating(input) * (math.pi / 180)


def rad2deg(input: Tensor) -> Tensor:
    """Degrees for radians."""
    return floating(input) * (180 / math.pi)


# ------------------------------------------------------------------------------------------ powers and logarithms


@autocasts
def exp(input: Tensor) -> Tensor:
    """``e ** input``."""
    return unary_float(elementwise.exp, input)


def exp2(input: Tensor) -> Tensor:
    """``2 ** input``."""
    return unary_float(elementwise.exp2, input)


@autocasts
def expm1(input: Tensor) -> Tensor:
    """``e ** input - 1``, exact near zero."""
    return unary_float(elementwise.expm1, input)


@autocasts
def log(input: Tensor) -> Tensor:
    """Natural logarithm; ``-inf`` at zero, nan below."""
    return unary_float(elementwise.log, input)


@autocasts
def log2(input: Tensor) -> Tensor:
    """Logarithm to base 2."""
    return unary_float(elementwise.log2, input)


@autocasts
def log10(input: Tensor) -> Tensor:
    """Logarithm to base 10."""
    return unary_float(elementwise.log10, input)


@autocasts
def log1p(input: Tensor) -> Tensor:
    """``log(1 + input)``, exact near zero."""
    return unary_float(elementwise.log1p, input)


def sqrt(input: Tensor) -> Tensor:
    """Square root; nan below zero."""
    return unary_float(elementwise.sqrt, input)


@autocasts
def rsqrt(input: Tensor) -> Tensor:
    """``1 / sqrt(input)``."""
    return unary_float(elementwise.rsqrt, input)


def sigmoid(input: Tensor) -> Tensor:
    """``1 / (1 + exp(-input))``."""
    return unary_float(activation.sigmoid, input)


def logit(input: Tensor, eps: float | None = None) -> Tensor:
    """``log(input / (1 - input))``: where :func:`sigmoid` is ``input``. With ``eps`` limited to ``[eps, 1 - eps]``."""
    return unary_float(special.logit, input, limit=eps)


# ------------------------------------------------------------------------------------------ angles


def sin(input: Tensor) -> Tensor:
    """Sine of ``input`` radians."""
    return unary_float(elementwise.sin, input)


def cos(input: Tensor) -> Tensor:
    """Cosine of ``input`` radians."""
    return unary_float(elementwise.cos, input)


@autocasts
def tan(input: Tensor) -> Tensor:
    """Tangent of ``input`` radians."""
    return unary_float(elementwise.tan, input)


@autocasts
def asin(input: Tensor) -> Tensor:
    """Arc sine, in radians; nan outside [-1, 1]."""
    return unary_float(special.asin, input)


@autocasts
def acos(input: Tensor) -> Tensor:
    """Arc cosine, in radians; nan outside [-1, 1]."""
    return unary_float(special.acos, input)


def atan(input: Tensor) -> Tensor:
    """Arc tangent, in radians."""
    return unary_float(elementwise.atan, input)


@autocasts
def sinh(input: Tensor) -> Tensor:
    """Hyperbolic sine."""
    return unary_float(elementwise.sinh, input)


@autocasts
def cosh(input: Tensor) -> Tensor:
    """Hyperbolic cosine."""
    return unary_float(elementwise.cosh, input)


def tanh(input: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return unary_float(activation.tanh, input)


def asinh(input: Tensor) -> Tensor:
    """Inverse hyperbolic sine."""
    return unary_float(special.asinh, input)


def acosh(input: Tensor) -> Tensor:
    """Inverse hyperbolic cosine; nan below 1."""
    return unary_float(special.acosh, input)


def atanh(input: Tensor) -> Tensor:
    """Inverse hyperbolic tangent; infinite at -1 and 1, nan beyond."""
    return unary_float(special.atanh, input)


def sinc(input: Tensor) -> Tensor:
    """``sin(pi * input) / (pi * input)``; 1 at 0."""
    return unary_float(special.sinc, input)


# ------------------------------------------------------------------------------------------ special functions


def erf(input: Tensor) -> Tensor:
    """The error function."""
    return unary_float(activation.erf, input)


def erfc(input: Tensor) -> Tensor:
    """``1 - erf(input)``, exact where it is tiny."""
    return unary_float(special.erfc, input)


@autocasts
def erfinv(input: Tensor) -> Tensor:
    """Where :func:`erf` is ``input``; nan outside [-1, 1]."""
    return unary_float(special.erfinv, input)


def lgamma(input: Tensor) -> Tensor:
    """The logarithm of the magnitude of the gamma function."""
    return unary_float(special.lgamma, input)


def digamma(input: Tensor) -> Tensor:
    """The derivative of :func:`lgamma`."""
    return unary_float(special.digamma, input)


def polygamma(n: int, input: Tensor) -> Tensor:
    """The ``n``-th derivative of :func:`digamma`.

    Raises:
        RuntimeError: ``n`` is negative.
    """
    if n < 0:
        raise RuntimeError(f"polygamma() needs n of at least 0, got {n}")
    return unary_float(special.polygamma, input, n=n) if n else digamma(input)


def mvlgamma(input: Tensor, p: int) -> Tensor:
    """The logarithm of the gamma function of ``p`` dimensions.

    Raises:
        RuntimeError: ``p`` is not positive.
    """
    if p < 1:
        raise RuntimeError(f"mvlgamma() needs p of at least 1, got {p}")
    x = floating(input)
    total = lgamma(x)
    for i in range(1, p):
        total = total + lgamma(x - i / 2)
    return total + p * (p - 1) / 4 * math.log(math.pi)


# ------------------------------------------------------------------------------------------ steps and signs


def relu(input: Tensor) -> Tensor:
    """``max(input, 0)``.

    Raises:
        RuntimeError: the tensor holds booleans.
    """
    refuse_bool("relu", input)
    return engine.apply(activation.relu, input)  # type: ignore[no-any-return]


def _step(op: Op, input: Tensor) -> Tensor:
    refuse_bool(op.__name__, input)
    return engine.apply(op, input) if input.dtype.is_floating_point else input.clone()


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
    """The nearest number of ``decimals`` decimals, halves to even; the gradient is zero.

    Raises:
        RuntimeError: integers are to be rounded to decimals.
    """
    refuse_bool("round", input)
    if not input.dtype.is_floating_point:
        if decimals:
            raise RuntimeError(
                f"round() of integers to {decimals} decimals; convert the tensor with .float()"
            )
        return input.clone()
    return engine.apply(elementwise.round, input, decimals=decimals)  # type: ignore[no-any-return]


def frac(input: Tensor) -> Tensor:
    """``input - trunc(input)``.

    Raises:
        RuntimeError: the tensor holds integers.
    """
    need_floats("frac", input)
    return engine.apply(elementwise.frac, input)  # type: ignore[no-any-return]


def sign(input: Tensor) -> Tensor:
    """-1, 0 or 1; the gradient is zero."""
    need_tensors("sign", input)
    if input.dtype is dtypes.bool_:
        return input.clone()
    return engine.apply(elementwise.sign, input)  # type: ignore[no-any-return]


sgn = sign
"""As :func:`sign`; PyTorch's differs for complex numbers alone."""


def signbit(input: Tensor) -> Tensor:
    """Whether the sign is a minus; true for -0 and for nan with a sign too."""
    need_tensors("signbit", input)
    if input.dtype is dtypes.bool_:
        return input & False
    return engine.apply(special.signbit, input)  # type: ignore[no-any-return]


def nan_to_num(
    input: Tensor, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Tensor:
    """``input`` with numbers for nan (0 by default) and the infinities (by default the type's largest and lowest)."""
    need_tensors("nan_to_num", input)
    if not input.dtype.is_floating_point:
        return input.clone()
    largest = float(ml_dtypes.finfo(input._array.dtype).max)  # type: ignore[no-untyped-call]
    return engine.apply(  # type: ignore[no-any-return]
        special.nan_to_num,
        input,
        nan=0.0 if nan is None else nan,
        posinf=largest if posinf is None else posinf,
        neginf=-largest if neginf is None else neginf,
    )


# ------------------------------------------------------------------------------------------ truth


def logical_not(input: Tensor) -> Tensor:
    """Whether ``input`` is zero."""
    need_tensors("logical_not", input)
    return engine.apply(elementwise.logical_not, input)  # type: ignore[no-any-return]


def bitwise_not(input: Tensor) -> Tensor:
    """``~input`` on integers or booleans.

    Raises:
        RuntimeError: the tensor holds floating point numbers.
    """
    need_tensors("bitwise_not", input)
    if input.dtype.is_floating_point:
        raise RuntimeError(f"bitwise_not() needs integers or booleans, got {input.dtype}")
    return engine.apply(elementwise.bitwise_not, input)  # type: ignore[no-any-return]


def isnan(input: Tensor) -> Tensor:
    """Whether each element is not a number."""
    need_tensors("isnan", input)
    return engine.apply(elementwise.isnan, input)  # type: ignore[no-any-return]


def isinf(input: Tensor) -> Tensor:
    """Whether each element is an infinity."""
    need_tensors("isinf", input)
    return engine.apply(elementwise.isinf, input)  # type: ignore[no-any-return]


def isfinite(input: Tensor) -> Tensor:
    """Whether each element is neither nan nor an infinity."""
    need_tensors("isfinite", input)
    return engine.apply(elementwise.isfinite, input)  # type: ignore[no-any-return]


def isposinf(input: Tensor) -> Tensor:
    """Whether each element is positive infinity."""
    return isinf(input).logical_and(input > 0)


def isneginf(input: Tensor) -> Tensor:
    """Whether each element is negative infinity."""
    return isinf(input).logical_and(input < 0)


def isreal(input: Tensor) -> Tensor:
    """True for each element: no tensor holds complex numbers."""
    need_tensors("isreal", input)
    return engine.apply(elementwise.fill, input.detach().bool(), value=True)  # type: ignore[no-any-return]


def real(input: Tensor) -> Tensor:
    """``input`` itself: no tensor holds complex numbers."""
    need_tensors("real", input)
    return input


absolute, negative, fix = abs, neg, trunc
arcsin, arccos, arctan = asin, acos, atan
arcsinh, arccosh, arctanh = asinh, acosh, atanh
conj, conj_physical, resolve_conj, resolve_neg = real, real, real, real
