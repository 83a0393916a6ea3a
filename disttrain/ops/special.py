"""Special functions of each element, and the inverses of the trigonometric and hyperbolic ones.

Arguments have equal types and broadcast together. Half-precision arguments are computed in float32 and come back in
their own type.
"""

import math
from typing import Any

import numpy as np

from disttrain.kernels import buffers
from disttrain.kernels import special as kernels
from disttrain.ops import elementwise
from disttrain.ops.activation import widen
from disttrain.ops.types import Array, Result, call, get_array_module, no_vjp, saved_for

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]


def _each(kernel: Any, x: Array, *options: Any) -> Array:
    """Run a kernel of a flat array."""
    flat = buffers.contiguous(widen(x)).reshape(-1)
    return buffers.convert(kernel(flat, *options).reshape(x.shape), x.dtype)


# ------------------------------------------------------------------------------------------ inverses


def asin(x: Array) -> Result:
    """Arc sine, in radians; nan outside [-1, 1]."""
    with np.errstate(all="ignore"):
        return get_array_module(x).arcsin(x), (x,), asin_vjp


def asin_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (g * call(elementwise.rsqrt, 1 - x * x),)


def acos(x: Array) -> Result:
    """Arc cosine, in radians; nan outside [-1, 1]."""
    with np.errstate(all="ignore"):
        return get_array_module(x).arccos(x), (x,), acos_vjp


def acos_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (-g * call(elementwise.rsqrt, 1 - x * x),)


def asinh(x: Array) -> Result:
    """Inverse hyperbolic sine."""
    return get_array_module(x).arcsinh(x), (x,), asinh_vjp


def asinh_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (g * call(elementwise.rsqrt, x * x + 1),)


def acosh(x: Array) -> Result:
    """Inverse hyperbolic cosine; nan below 1."""
    with np.errstate(all="ignore"):
        return get_array_module(x).arccosh(x), (x,), acosh_vjp


def acosh_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (g * call(elementwise.rsqrt, x * x - 1),)


def atanh(x: Array) -> Result:
    """Inverse hyperbolic tangent; infinite at -1 and 1, nan beyond."""
    with np.errstate(all="ignore"):
        return get_array_module(x).arctanh(x), (x,), atanh_vjp


def atanh_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (call(elementwise.div, g, 1 - x * x),)


def atan2(y: Array, x: Array) -> Result:
    """The angle of the point ``(x, y)``, in radians."""
    out = get_array_module(x, y).arctan2(widen(y), widen(x))
    return buffers.convert(out, y.dtype), (y, x), atan2_vjp


def atan2_vjp(g: Any, needs: Needs, y: Any, x: Any) -> Grads:
    square = y * y + x * x
    nowhere = call(elementwise.eq, square, square * 0)  # at the origin PyTorch gives zero
    share = call(elementwise.where, nowhere, elementwise.zeros_like(g), call(elementwise.div, g, square))
    return share * x if needs[0] else None, -share * y if needs[1] else None


def hypot(x: Array, y: Array) -> Result:
    """``sqrt(x * x + y * y)`` without overflow."""
    out = buffers.convert(get_array_module(x, y).hypot(widen(x), widen(y)), x.dtype)
    return out, (x, y, out), hypot_vjp


@saved_for((0,), (1,), (0, 1))
def hypot_vjp(g: Any, needs: Needs, x: Any, y: Any, out: Any) -> Grads:
    return (
        g * call(elementwise.div, x, out) if needs[0] else None,
        g * call(elementwise.div, y, out) if needs[1] else None,
    )


# ------------------------------------------------------------------------------------------ logarithms


def logaddexp(x: Array, y: Array) -> Result:
    """``log(exp(x) + exp(y))`` without overflow."""
    with np.errstate(all="ignore"):
        out = get_array_module(x, y).logaddexp(widen(x), widen(y))
    return buffers.convert(out, x.dtype), (x, y), logaddexp_vjp


def logaddexp_vjp(g: Any, needs: Needs, x: Any, y: Any) -> Grads:
    return _shares(g, needs, x, y, elementwise.exp)


def logaddexp2(x: Array, y: Array) -> Result:
    """``log2(exp2(x) + exp2(y))`` without overflow."""
    with np.errstate(all="ignore"):
        out = get_array_module(x, y).logaddexp2(widen(x), widen(y))
    return buffers.convert(out, x.dtype), (x, y), logaddexp2_vjp


def logaddexp2_vjp(g: Any, needs: Needs, x: Any, y: Any) -> Grads:
    return _shares(g, needs, x, y, elementwise.exp2)


def _shares(g: Any, needs: Needs, x: Any, y: Any, power: Any) -> Grads:
    """Return the gradients of a logarithm of a sum of two powers: each power's share of the sum."""
    with np.errstate(all="ignore"):
        gap = y - x
    return (
        call(elementwise.div, g, 1 + call(power, gap)) if needs[0] else None,
        call(elementwise.div, g, 1 + call(power, -gap)) if needs[1] else None,
    )


def xlogy(x: Array, y: Array) -> Result:
    """``x * log(y)``; 0 where ``x`` is 0, unless ``y`` is nan."""
    xp = get_array_module(x, y)
    a, b = widen(x), widen(y)
    with np.errstate(all="ignore"):
        out = xp.where((a == 0) & (b == b), a.dtype.type(0), a * xp.log(b))
    return buffers.convert(out, x.dtype), (x, y), xlogy_vjp


def xlogy_vjp(g: Any, needs: Needs, x: Any, y: Any) -> Grads:
    gx = None
    if needs[0]:
        nothing = call(
            elementwise.logical_and, call(elementwise.eq, x, x * 0), call(elementwise.le, y, y * 0)
        )
        gx = call(elementwise.where, nothing, elementwise.zeros_like(g), g * call(elementwise.log, y))
    return gx, call(elementwise.div, g * x, y) if needs[1] else None


def logit(x: Array, *, limit: float | None) -> Result:
    """``log(x / (1 - x))``, with ``x`` limited to ``[limit, 1 - limit]``."""
    xp = get_array_module(x)
    p = widen(x)
    if limit is not None:
        p = xp.minimum(xp.maximum(p, p.dtype.type(limit)), p.dtype.type(1 - limit))
    with np.errstate(all="ignore"):
        out = xp.log(p / (1 - p))
    return buffers.convert(out, x.dtype), (x, limit), logit_vjp


def logit_vjp(g: Any, needs: Needs, x: Any, limit: float | None) -> Grads:
    low, high = (0.0, 1.0) if limit is None else (limit, 1.0 - limit)
    inside = call(elementwise.logical_and, call(elementwise.ge, x, low), call(elementwise.le, x, high))
    slope = call(elementwise.div, g, x * (1 - x))
    outside = call(elementwise.fill, g, value=math.nan if limit is None else 0)
    return (call(elementwise.where, inside, slope, outside),)


# ------------------------------------------------------------------------------------------ error and gamma functions


def erfc(x: Array) -> Result:
    """``1 - erf(x)``, exact where it is tiny."""
    return _each(kernels.erfc, x), (x,), erfc_vjp


def erfc_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (g * (call(elementwise.exp, -(x * x)) * (-2 / math.sqrt(math.pi))),)


def erfinv(x: Array) -> Result:
    """Where ``erf`` is ``x``: infinite at -1 and 1, nan beyond."""
    y = _each(kernels.erfinv, x)
    return y, (y,), erfinv_vjp


def erfinv_vjp(g: Any, needs: Needs, y: Any) -> Grads:
    return (g * (call(elementwise.exp, y * y) * (math.sqrt(math.pi) / 2)),)


def lgamma(x: Array) -> Result:
    """``log(|gamma(x)|)``; infinite at 0, -1, -2 …"""
    return _each(kernels.lgamma, x), (x,), lgamma_vjp


def lgamma_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (g * call(digamma, x),)


def digamma(x: Array) -> Result:
    """The derivative of :func:`lgamma`; nan at -1, -2 …"""
    return _each(kernels.digamma, x), (x,), digamma_vjp


def digamma_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (g * call(polygamma, x, n=1),)


def polygamma(x: Array, *, n: int) -> Result:
    """The ``n``-th derivative of :func:`digamma`, ``n >= 1``."""
    return _each(kernels.polygamma, x, n), (x, n), polygamma_vjp


def polygamma_vjp(g: Any, needs: Needs, x: Any, n: int) -> Grads:
    return (g * call(polygamma, x, n=n + 1),)


def sinc(x: Array) -> Result:
    """``sin(pi x) / (pi x)``; 1 at 0."""
    xp = get_array_module(x)
    with np.errstate(all="ignore"):
        a = widen(x) * math.pi
        zero = a == 0
        out = xp.where(zero, a.dtype.type(1), xp.sin(a) / xp.where(zero, a.dtype.type(1), a))
    return buffers.convert(out, x.dtype), (x,), sinc_vjp


def sinc_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    zero = call(elementwise.eq, x, x * 0)
    a = call(elementwise.where, zero, x * 0 + 1, x) * math.pi
    slope = (call(elementwise.cos, a) - call(elementwise.sin, a) / a) / a * math.pi
    return (call(elementwise.where, zero, elementwise.zeros_like(g), g * slope),)


# ------------------------------------------------------------------------------------------ signs and odd numbers


def copysign(x: Array, y: Array) -> Result:
    """``|x|`` with the sign of ``y``."""
    out = buffers.convert(get_array_module(x, y).copysign(widen(x), widen(y)), x.dtype)
    return out, (x, out), copysign_vjp


@saved_for((0,), (0,))
def copysign_vjp(g: Any, needs: Needs, x: Any, out: Any) -> Grads:
    turned = call(elementwise.sign, x) * call(elementwise.sign, out) if needs[0] else None
    return None if turned is None else g * turned, elementwise.zeros_like(g) if needs[1] else None


def nan_to_num(x: Array, *, nan: float, posinf: float, neginf: float) -> Result:
    """``x`` with numbers in place of nan and the infinities."""
    xp = get_array_module(x)
    kind = x.dtype.type
    with np.errstate(all="ignore"):
        out = xp.where(xp.isnan(x), kind(nan), x)
        out = xp.where(x == kind(np.inf), kind(posinf), xp.where(x == kind(-np.inf), kind(neginf), out))
    return out, (x,), nan_to_num_vjp


def nan_to_num_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (call(elementwise.where, call(elementwise.isfinite, x), g, elementwise.zeros_like(g)),)


def fmax(x: Array, y: Array) -> Result:
    """The larger of ``x`` and ``y``; of a number and nan the number."""
    return get_array_module(x, y).fmax(x, y), (x, y), fmax_vjp


def fmax_vjp(g: Any, needs: Needs, x: Any, y: Any) -> Grads:
    return _one_of(g, needs, call(elementwise.ge, x, y), y)


def fmin(x: Array, y: Array) -> Result:
    """The smaller of ``x`` and ``y``; of a number and nan the number."""
    return get_array_module(x, y).fmin(x, y), (x, y), fmin_vjp


def fmin_vjp(g: Any, needs: Needs, x: Any, y: Any) -> Grads:
    return _one_of(g, needs, call(elementwise.le, x, y), y)


def _one_of(g: Any, needs: Needs, first: Any, y: Any) -> Grads:
    first = call(elementwise.logical_or, first, call(elementwise.isnan, y))
    return (
        call(elementwise.where, first, g, elementwise.zeros_like(g)) if needs[0] else None,
        call(elementwise.where, first, elementwise.zeros_like(g), g) if needs[1] else None,
    )


def heaviside(x: Array, values: Array) -> Result:
    """0 where ``x`` is negative, 1 where positive, ``values`` where it is zero; 0 for nan, as in PyTorch."""
    xp = get_array_module(x, values)
    return xp.where(x == 0, values, (x > 0).astype(x.dtype)), (), no_vjp


def signbit(x: Array) -> Result:
    """Whether the sign is a minus, of zeros and nans too."""
    xp = get_array_module(x)
    return (xp.signbit(widen(x)) if x.dtype.kind in "fV" else x < x.dtype.type(0)), (), no_vjp


def left_shift(x: Array, y: Array) -> Result:
    """``x << y`` of integers; 0 for shifts by as many bits as there are, or by fewer than 0."""
    bits = 8 * x.dtype.itemsize
    xp = get_array_module(x, y)
    inside = (y >= 0) & (y < bits)
    return xp.where(inside, x << xp.where(inside, y, y.dtype.type(0)), x.dtype.type(0)), (), no_vjp


def right_shift(x: Array, y: Array) -> Result:
    """``x >> y`` of integers, with copies of the sign; as by all bits for shifts by more, or by fewer than 0."""
    bits = 8 * x.dtype.itemsize
    xp = get_array_module(x, y)
    most = y.dtype.type(bits - 1)
    inside = (y >= 0) & (y < bits)
    shifted = x >> xp.where(inside, y, most)
    return shifted if x.dtype.kind == "i" else xp.where(inside, shifted, x.dtype.type(0)), (), no_vjp


# ------------------------------------------------------------------------------------------ of three arrays


def lerp(x: Array, end: Array, weight: Array) -> Result:
    """``x + weight * (end - x)``, exact at either end."""
    xp = get_array_module(x, end, weight)
    a, b = widen(x), widen(end)
    w = weight if isinstance(weight, int | float) else widen(weight)
    with np.errstate(all="ignore"):
        gap = b - a
        if isinstance(w, int | float):
            out = a + w * gap if -0.5 < w < 0.5 else b - gap * (1 - w)
        else:
            out = xp.where(xp.abs(w) < 0.5, a + w * gap, b - gap * (1 - w))
        return buffers.convert(out, x.dtype), (x, end, weight), lerp_vjp


@saved_for((2,), (2,), (0, 1))
def lerp_vjp(g: Any, needs: Needs, x: Any, end: Any, weight: Any) -> Grads:
    return (
        g * (1 - weight) if needs[0] else None,
        g * weight if needs[1] else None,
        g * (end - x) if needs[2] else None,
    )


def addcmul(x: Array, y: Array, z: Array, *, value: float) -> Result:
    """``x + value * y * z``."""
    a, b, c = widen(x), widen(y), widen(z)
    with np.errstate(all="ignore"):
        out = a + (b if value == 1 else value * b) * c
        return buffers.convert(out, x.dtype), (y, z, value), addcmul_vjp


@saved_for((2,), (1,), (1, 2))
def addcmul_vjp(g: Any, needs: Needs, y: Any, z: Any, value: float | None) -> Grads:
    return (
        g,
        g * (z * value) if needs[1] else None,
        g * (y * value) if needs[2] else None,
    )


def addcdiv(x: Array, y: Array, z: Array, *, value: float) -> Result:
    """``x + value * y / z``."""
    a, b, c = widen(x), widen(y), widen(z)
    with np.errstate(all="ignore"):
        out = a + (b if value == 1 else value * b) / c
        return buffers.convert(out, x.dtype), (y, z, value), addcdiv_vjp


@saved_for((2,), (1, 2), (1, 2))
def addcdiv_vjp(g: Any, needs: Needs, y: Any, z: Any, value: float | None) -> Grads:
    if not (needs[1] or needs[2]):
        return g, None, None
    share = call(elementwise.div, g * value, z)
    return g, share if needs[1] else None, -share * call(elementwise.div, y, z) if needs[2] else None


def gcd(x: Array, y: Array) -> Result:
    """The greatest common divisor of integers."""
    return get_array_module(x, y).gcd(x, y), (), no_vjp


def lcm(x: Array, y: Array) -> Result:
    """The least common multiple of integers."""
    return get_array_module(x, y).lcm(x, y), (), no_vjp


def angle(x: Array) -> Result:
    """Pi where ``x`` is negative, else 0; nan where it is."""
    xp, kind = get_array_module(x), x.dtype.type
    return xp.where(x != x, x, xp.where(x < 0, kind(math.pi), kind(0))), (), elementwise.zero_vjp
