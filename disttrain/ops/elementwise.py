"""Operations on each element. Arguments have equal types (or are Python numbers) and broadcast together.

Gradients may keep the broadcast shape: the engine sums them down to the argument's.
"""

import math
from typing import Any

import numpy as np

from disttrain.kernels import buffers
from disttrain.ops.shape import row_major
from disttrain.ops.types import Array, Op, Result, call, get_array_module, no_vjp, saved_for

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]

# ------------------------------------------------------------------------------------------ arithmetic


def add(x: Array, y: Array) -> Result:
    """``x + y``."""
    return x + y, (), add_vjp


def add_vjp(g: Any, needs: Needs) -> Grads:
    return g, g


def sub(x: Array, y: Array) -> Result:
    """``x - y``."""
    return x - y, (), sub_vjp


def sub_vjp(g: Any, needs: Needs) -> Grads:
    return g, -g if needs[1] else None


def mul(x: Array, y: Array) -> Result:
    """``x * y``."""
    return x * y, (x, y), mul_vjp


@saved_for((1,), (0,))
def mul_vjp(g: Any, needs: Needs, x: Any, y: Any) -> Grads:
    return g * y if needs[0] else None, g * x if needs[1] else None


def div(x: Array, y: Array) -> Result:
    """``x / y``; a division by zero gives an infinity or nan without a warning, as in PyTorch."""
    with np.errstate(all="ignore"):
        return x / y, (x, y), div_vjp


@saved_for((1,), (0, 1))
def div_vjp(g: Any, needs: Needs, x: Any, y: Any) -> Grads:
    with np.errstate(all="ignore"):
        gx = g / y
        return gx if needs[0] else None, -gx * (x / y) if needs[1] else None


def floor_divide(x: Array, y: Array) -> Result:
    """``floor(x / y)``."""
    with np.errstate(all="ignore"):
        return get_array_module(x, y).floor_divide(x, y), (), zeros_vjp


def trunc_divide(x: Array, y: Array) -> Result:
    """``trunc(x / y)``."""
    with np.errstate(all="ignore"):
        return get_array_module(x, y).trunc(x / y), (), zeros_vjp


def zeros_like(g: Any) -> Any:
    """Return zeros for a gradient, also where it is infinite or nan."""
    return call(fill, g, value=0)


def zeros_vjp(g: Any, needs: Needs) -> Grads:
    """The vjp of a step function of two arguments."""
    return zeros_like(g) if needs[0] else None, zeros_like(g) if needs[1] else None


def remainder(x: Array, y: Array) -> Result:
    """``x - y * floor(x / y)``: the sign is that of ``y``."""
    with np.errstate(all="ignore"):
        return get_array_module(x, y).remainder(x, y), (x, y), remainder_vjp


@saved_for((1,), (1,))
def remainder_vjp(g: Any, needs: Needs, x: Any, y: Any) -> Grads:
    return g, -g * call(floor_divide, x, y) if needs[1] else None


def fmod(x: Array, y: Array) -> Result:
    """``x - y * trunc(x / y)``: the sign is that of ``x``."""
    with np.errstate(all="ignore"):
        return get_array_module(x, y).fmod(x, y), (x, y), fmod_vjp


@saved_for((1,), (1,))
def fmod_vjp(g: Any, needs: Needs, x: Any, y: Any) -> Grads:
    return g, -g * call(trunc_divide, x, y) if needs[1] else None


def pow(x: Array, y: Array) -> Result:
    """``x ** y``."""
    xp = get_array_module(x, y)
    with np.errstate(all="ignore"):
        if not isinstance(y, int | float) and y.dtype.kind == "i":  # 1 / x ** -y is whole for 1 and -1 alone
            out = xp.power(x, xp.where(y < 0, y & 1, y))
            out = xp.where((y < 0) & (xp.abs(x) != 1), out.dtype.type(0), out)
        else:
            out = xp.power(x, y)
    return out, (x, y, out), pow_vjp


@saved_for((0, 1), (0, 1), (1,))
def pow_vjp(g: Any, needs: Needs, x: Any, y: Any, out: Any) -> Grads:
    with np.errstate(all="ignore"):
        gx = gy = None
        if needs[0]:
            if isinstance(y, int | float):
                gx = g * (y * x ** (y - 1)) if y != 0 else zeros_like(g)
            else:
                gx = g * (y * x ** (y - 1))
                gx = call(where, call(eq, y, 0), zeros_like(gx), gx)
        if needs[1]:
            log_x = math.log(x) if isinstance(x, int | float) and x > 0 else call(log, x)
            if isinstance(x, int | float):
                gy = g * (out * log_x)
                gy = gy if x != 0 else call(where, call(ge, y, 0), zeros_like(gy), gy)
            else:
                flat = call(logical_and, call(eq, x, 0), call(ge, y, 0))  # 0 ** y does not change with y >= 0
                gy = g * (out * log_x)
                gy = call(where, flat, zeros_like(gy), gy)
        return gx, gy


def neg(x: Array) -> Result:
    """``-x``."""
    return -x, (), neg_vjp


def neg_vjp(g: Any, needs: Needs) -> Grads:
    return (-g,)


def abs(x: Array) -> Result:
    """``|x|``."""
    return get_array_module(x).abs(x), (x,), abs_vjp


def abs_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (g * call(sign, x),)


def reciprocal(x: Array) -> Result:
    """``1 / x``."""
    with np.errstate(all="ignore"):
        y = get_array_module(x).reciprocal(x)
    return y, (y,), reciprocal_vjp


def reciprocal_vjp(g: Any, needs: Needs, y: Any) -> Grads:
    return (-g * y * y,)


def square(x: Array) -> Result:
    """``x * x``."""
    with np.errstate(all="ignore"):
        return x * x, (x,), square_vjp


def square_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (g * (x + x),)


# ------------------------------------------------------------------------------------------ powers, waves


def exp(x: Array) -> Result:
    """``e ** x``."""
    with np.errstate(all="ignore"):
        y = get_array_module(x).exp(x)
    return y, (y,), exp_vjp


def exp_vjp(g: Any, needs: Needs, y: Any) -> Grads:
    return (g * y,)


def exp2(x: Array) -> Result:
    """``2 ** x``."""
    with np.errstate(all="ignore"):
        y = get_array_module(x).exp2(x)
    return y, (y,), exp2_vjp


def exp2_vjp(g: Any, needs: Needs, y: Any) -> Grads:
    return (g * (y * math.log(2)),)


def expm1(x: Array) -> Result:
    """``e ** x - 1``, exact near zero."""
    with np.errstate(all="ignore"):
        y = get_array_module(x).expm1(x)
    return y, (y,), expm1_vjp


def expm1_vjp(g: Any, needs: Needs, y: Any) -> Grads:
    return (g * (y + 1),)


def log(x: Array) -> Result:
    """Natural logarithm; ``-inf`` at zero and nan below, without a warning, as in PyTorch."""
    with np.errstate(all="ignore"):
        return get_array_module(x).log(x), (x,), log_vjp


def log_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (call(div, g, x),)


def log2(x: Array) -> Result:
    """Logarithm to base 2."""
    with np.errstate(all="ignore"):
        return get_array_module(x).log2(x), (x,), log2_vjp


def log2_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (call(div, g, x * math.log(2)),)


def log10(x: Array) -> Result:
    """Logarithm to base 10."""
    with np.errstate(all="ignore"):
        return get_array_module(x).log10(x), (x,), log10_vjp


def log10_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (call(div, g, x * math.log(10)),)


def log1p(x: Array) -> Result:
    """``log(1 + x)``, exact near zero."""
    with np.errstate(all="ignore"):
        return get_array_module(x).log1p(x), (x,), log1p_vjp


def log1p_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (call(div, g, x + 1),)


def sqrt(x: Array) -> Result:
    """Square root; nan below zero."""
    with np.errstate(all="ignore"):
        y = get_array_module(x).sqrt(x)
    return y, (y,), sqrt_vjp


def sqrt_vjp(g: Any, needs: Needs, y: Any) -> Grads:
    return (call(div, g, y + y),)


def rsqrt(x: Array) -> Result:
    """``1 / sqrt(x)``."""
    with np.errstate(all="ignore"):
        y = get_array_module(x).reciprocal(get_array_module(x).sqrt(x))
    return y, (y,), rsqrt_vjp


def rsqrt_vjp(g: Any, needs: Needs, y: Any) -> Grads:
    return (g * (-0.5 * (y * y * y)),)


def sin(x: Array) -> Result:
    """Sine of ``x`` radians."""
    with np.errstate(all="ignore"):
        return get_array_module(x).sin(x), (x,), sin_vjp


def sin_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (g * call(cos, x),)


def cos(x: Array) -> Result:
    """Cosine of ``x`` radians."""
    with np.errstate(all="ignore"):
        return get_array_module(x).cos(x), (x,), cos_vjp


def cos_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (-g * call(sin, x),)


def tan(x: Array) -> Result:
    """Tangent of ``x`` radians."""
    with np.errstate(all="ignore"):
        y = get_array_module(x).tan(x)
    return y, (y,), tan_vjp


def tan_vjp(g: Any, needs: Needs, y: Any) -> Grads:
    return (g * (y * y + 1),)


def atan(x: Array) -> Result:
    """Arc tangent, in radians."""
    return get_array_module(x).arctan(x), (x,), atan_vjp


def atan_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (call(div, g, x * x + 1),)


def sinh(x: Array) -> Result:
    """Hyperbolic sine."""
    with np.errstate(all="ignore"):
        return get_array_module(x).sinh(x), (x,), sinh_vjp


def sinh_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (g * call(cosh, x),)


def cosh(x: Array) -> Result:
    """Hyperbolic cosine."""
    with np.errstate(all="ignore"):
        return get_array_module(x).cosh(x), (x,), cosh_vjp


def cosh_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (g * call(sinh, x),)


# ------------------------------------------------------------------------------------------ steps


def zero_vjp(g: Any, needs: Needs) -> Grads:
    """The vjp of a step function: a gradient of zeros, as PyTorch gives."""
    return (zeros_like(g),)


def sign(x: Array) -> Result:
    """-1, 0 or 1; 0 for nan, as in PyTorch."""
    xp = get_array_module(x)
    out = xp.sign(x, out=buffers.spare(x))
    if x.dtype.kind in "fV":
        nan = xp.not_equal(x, x, out=buffers.empty_like(x, np.bool_))
        out = buffers.where(nan, out.dtype.type(0), out)
    return out, (), zero_vjp


def floor(x: Array) -> Result:
    """The integer below."""
    return get_array_module(x).floor(x), (), zero_vjp


def ceil(x: Array) -> Result:
    """The integer above."""
    return get_array_module(x).ceil(x), (), zero_vjp


def trunc(x: Array) -> Result:
    """The integer towards zero."""
    return get_array_module(x).trunc(x), (), zero_vjp


def frac(x: Array) -> Result:
    """``x - trunc(x)``; nan for infinities."""
    with np.errstate(all="ignore"):
        return x - get_array_module(x).trunc(x), (), frac_vjp


def frac_vjp(g: Any, needs: Needs) -> Grads:
    return (g,)


def round(x: Array, *, decimals: int) -> Result:
    """The nearest number of ``decimals`` decimals, halves to even."""
    wide = x.astype(np.float32) if decimals and x.dtype.itemsize == 2 else x
    with np.errstate(all="ignore"):
        return buffers.convert(get_array_module(x).round(wide, decimals), x.dtype), (), zero_vjp


# ------------------------------------------------------------------------------------------ choice


def maximum(x: Array, y: Array) -> Result:
    """The larger of ``x`` and ``y``; nan if one is. Equal ones share the gradient."""
    return get_array_module(x, y).maximum(x, y), (x, y), maximum_vjp


def maximum_vjp(g: Any, needs: Needs, x: Any, y: Any) -> Grads:
    return _share(g, needs, x, y, lt, gt)


def minimum(x: Array, y: Array) -> Result:
    """The smaller of ``x`` and ``y``; nan if one is. Equal ones share the gradient."""
    return get_array_module(x, y).minimum(x, y), (x, y), minimum_vjp


def minimum_vjp(g: Any, needs: Needs, x: Any, y: Any) -> Grads:
    return _share(g, needs, x, y, gt, lt)


def _share(g: Any, needs: Needs, x: Any, y: Any, x_loses: Op, y_loses: Op) -> Grads:
    each = call(
        where, call(eq, x, y), g * 0.5, g
    )  # nan loses against nothing, and so gets all, as in PyTorch
    return (
        call(where, call(x_loses, x, y), zeros_like(g), each) if needs[0] else None,
        call(where, call(y_loses, x, y), zeros_like(g), each) if needs[1] else None,
    )


def clamp(x: Array, low: Array | None, high: Array | None) -> Result:
    """``x`` limited to ``[low, high]``; ``None`` is no limit. At a limit the gradient is still that of ``x``."""
    xp = get_array_module(x)
    out = x if low is None else xp.maximum(x, low, out=buffers.spare(x, low))
    out = out if high is None else xp.minimum(out, high, out=buffers.spare(out, high))
    return (out.copy() if out is x else out), (x, low, high), clamp_vjp


def clamp_vjp(g: Any, needs: Needs, x: Any, low: Any, high: Any) -> Grads:
    gx = glow = ghigh = None
    zero = zeros_like(g)
    if needs[0]:
        gx = g if low is None else call(where, call(ge, x, low), g, zero)
        gx = gx if high is None else call(where, call(le, x, high), gx, zero)
    if needs[1]:  # where the limits are crossed, the upper one is the result
        below = call(lt, x, low)
        glow = call(where, below if high is None else call(logical_and, below, call(lt, low, high)), g, zero)
    if needs[2]:
        above = call(gt, x, high)
        ghigh = call(where, above if low is None else call(logical_or, above, call(lt, high, low)), g, zero)
    return gx, glow, ghigh


def where(condition: Array, x: Array, y: Array) -> Result:
    """``x`` where ``condition`` (boolean) holds, else ``y``."""
    return buffers.where(condition, x, y), (condition,), where_vjp


def where_vjp(g: Any, needs: Needs, condition: Any) -> Grads:
    zero = zeros_like(g)
    return (
        None,
        call(where, condition, g, zero) if needs[1] else None,
        call(where, condition, zero, g) if needs[2] else None,
    )


def fill(x: Array, *, value: Any) -> Result:
    """``value`` in the shape and type of ``x``."""
    with np.errstate(all="ignore"):
        return buffers.full_like(x, value), (), zero_vjp


def copy_from(x: Array, y: Array) -> Result:
    """``y`` in the shape and type of ``x``: what ``x.copy_(y)`` writes. It shares memory with ``y`` if it can."""
    with np.errstate(all="ignore"):
        return buffers.convert(get_array_module(x).broadcast_to(y, x.shape), x.dtype), (), copy_from_vjp


def copy_from_vjp(g: Any, needs: Needs) -> Grads:
    return zeros_like(g) if needs[0] else None, g


def masked_fill(x: Array, mask: Array, value: Any) -> Result:
    """``x`` with ``value`` (a number or an array without dimensions) where ``mask`` holds."""
    with np.errstate(all="ignore"):
        out = buffers.convert(buffers.where(mask, value, x), x.dtype)
    return row_major(out), (mask,), masked_fill_vjp


def masked_fill_vjp(g: Any, needs: Needs, mask: Any) -> Grads:
    zero = zeros_like(g)
    return call(where, mask, zero, g), None, call(where, mask, g, zero) if needs[2] else None


# ------------------------------------------------------------------------------------------ no gradient


def eq(x: Array, y: Array) -> Result:
    """``x == y``."""
    return x == y, (), no_vjp


def ne(x: Array, y: Array) -> Result:
    """``x != y``."""
    return x != y, (), no_vjp


def lt(x: Array, y: Array) -> Result:
    """``x < y``."""
    return x < y, (), no_vjp


def le(x: Array, y: Array) -> Result:
    """``x <= y``."""
    return x <= y, (), no_vjp


def gt(x: Array, y: Array) -> Result:
    """``x > y``."""
    return x > y, (), no_vjp


def ge(x: Array, y: Array) -> Result:
    """``x >= y``."""
    return x >= y, (), no_vjp


def logical_and(x: Array, y: Array) -> Result:
    """Whether both are not zero."""
    return get_array_module(x).logical_and(x, y), (), no_vjp


def logical_or(x: Array, y: Array) -> Result:
    """Whether one is not zero."""
    return get_array_module(x).logical_or(x, y), (), no_vjp


def logical_xor(x: Array, y: Array) -> Result:
    """Whether exactly one is not zero."""
    return get_array_module(x).logical_xor(x, y), (), no_vjp


def logical_not(x: Array) -> Result:
    """Whether ``x`` is zero."""
    return get_array_module(x).logical_not(x), (), no_vjp


def bitwise_and(x: Array, y: Array) -> Result:
    """``x & y`` on integers or booleans."""
    return x & y, (), no_vjp


def bitwise_or(x: Array, y: Array) -> Result:
    """``x | y`` on integers or booleans."""
    return x | y, (), no_vjp


def bitwise_xor(x: Array, y: Array) -> Result:
    """``x ^ y`` on integers or booleans."""
    return x ^ y, (), no_vjp


def bitwise_not(x: Array) -> Result:
    """``~x`` on integers or booleans."""
    return ~x, (), no_vjp


def isnan(x: Array) -> Result:
    """Whether ``x`` is not a number."""
    return get_array_module(x).isnan(x), (), no_vjp


def isinf(x: Array) -> Result:
    """Whether ``x`` is an infinity."""
    return get_array_module(x).isinf(x), (), no_vjp


def isfinite(x: Array) -> Result:
    """Whether ``x`` is neither nan nor an infinity."""
    return get_array_module(x).isfinite(x), (), no_vjp
