"""Activation functions made of straight pieces. Where two pieces meet the gradient is the one that PyTorch chooses."""

from typing import Any

from disttrain.kernels import buffers
from disttrain.ops import elementwise
from disttrain.ops.activation import widen
from disttrain.ops.types import Array, Result, call, get_array_module, is_array

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]


def _where(condition: Any, g: Any) -> Any:
    """Return ``g`` where ``condition`` holds, else 0: also where ``g`` is not finite."""
    if is_array(g):
        return get_array_module(g).where(condition, g, g.dtype.type(0))
    return call(elementwise.where, condition, g, 0.0)


def hardtanh(x: Array, *, low: float, high: float) -> Result:
    """``x`` limited to ``[low, high]``, with no gradient at the limits; NaN stays."""
    xp, kind = get_array_module(x), x.dtype.type
    return xp.minimum(xp.maximum(x, kind(low)), kind(high)), (x, low, high), hardtanh_vjp


def hardtanh_vjp(g: Any, needs: Needs, x: Any, low: float, high: float) -> Grads:
    if is_array(x):
        low, high = x.dtype.type(low), x.dtype.type(high)
    return (_where(~((x <= low) | (x >= high)), g),)


def hardsigmoid(x: Array) -> Result:
    """``(x + 3) / 6`` limited to [0, 1]."""
    xp, wide = get_array_module(x), widen(x)
    y = xp.minimum(xp.maximum(wide + 3, 0), 6) / 6
    return buffers.convert(y, x.dtype), (x,), hardsigmoid_vjp


def hardsigmoid_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (_where((x > -3) & (x < 3), g * (1 / 6)),)


def hardswish(x: Array) -> Result:
    """``x * (x + 3) / 6`` between -3 and 3, 0 below and ``x`` above (Howard et al. 2019)."""
    xp, wide = get_array_module(x), widen(x)
    y = wide * xp.minimum(xp.maximum(wide + 3, 0), 6) / 6
    return buffers.convert(y, x.dtype), (x,), hardswish_vjp


def hardswish_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    middle = g * (x * (1 / 3) + 0.5)
    if is_array(g):
        return (get_array_module(g).where(x < 3, _where(x > -3, middle), g),)
    return (call(elementwise.where, x < 3, _where(x > -3, middle), g),)


def hardshrink(x: Array, *, lambd: float) -> Result:
    """``x`` outside of ``[-lambd, lambd]``, else 0."""
    edge = x.dtype.type(lambd)
    return _where(~((x >= -edge) & (x <= edge)), x), (x, lambd), shrink_vjp


def softshrink(x: Array, *, lambd: float) -> Result:
    """``x`` moved by ``lambd`` towards 0, and 0 within ``[-lambd, lambd]``; NaN stays."""
    xp, edge = get_array_module(x), x.dtype.type(lambd)
    zero = xp.where(xp.isnan(x), x, x.dtype.type(0))
    return xp.where(x > edge, x - edge, xp.where(x < -edge, x + edge, zero)), (x, lambd), shrink_vjp


def shrink_vjp(g: Any, needs: Needs, x: Any, lambd: float) -> Grads:
    edge = x.dtype.type(lambd) if is_array(x) else lambd
    return (_where(~((x >= -edge) & (x <= edge)), g),)


def threshold(x: Array, *, limit: float, value: float) -> Result:
    """``x`` where it is above ``limit``, else ``value``; NaN stays."""
    kind = x.dtype.type
    return get_array_module(x).where(x <= kind(limit), kind(value), x), (x, limit), threshold_vjp


def threshold_vjp(g: Any, needs: Needs, x: Any, limit: float) -> Grads:
    return (_where(~(x <= (x.dtype.type(limit) if is_array(x) else limit)), g),)


def prelu(x: Array, weight: Array) -> Result:
    """``x`` where positive, else ``weight * x``, for a ``weight`` that broadcasts to ``x`` (He et al. 2015)."""
    return get_array_module(x).where(x > 0, x, x * weight), (x, weight), prelu_vjp


def prelu_vjp(g: Any, needs: Needs, x: Any, weight: Any) -> Grads:
    gx = gw = None
    if needs[0]:
        gx = call(elementwise.where, x > 0, g, g * weight)
    if needs[1]:
        gw = _where(~(x > 0), g * x)
    return gx, gw
