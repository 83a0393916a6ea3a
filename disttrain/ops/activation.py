"""Activation functions. Half-precision arguments are computed in float32 and come back in their own type."""

import math
from typing import Any

import numpy as np

from disttrain.kernels import buffers
from disttrain.kernels import gelu as gelu_kernels
from disttrain.kernels import relu as relu_kernels
from disttrain.kernels import sigmoid as sigmoid_kernels
from disttrain.kernels import softmax as softmax_kernels
from disttrain.kernels.arrays import on_gpu
from disttrain.ops import elementwise, reduce, shape
from disttrain.ops.types import Array, Result, call, get_array_module, is_array

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]
_SMALL = 4096
"""Below this many elements one plain array operation is quicker than a compiled kernel; the results are equal."""


def widen(x: Array) -> Array:
    """Return half-precision ``x`` as float32, anything else as it is."""
    return buffers.convert(x, np.float32) if x.dtype.itemsize == 2 and x.dtype.kind in "fV" else x


def for_kernel(x: Array) -> Array:
    """Return ``x`` as a fused kernel takes it: as it is on a GPU, where kernels widen what they read, else widened."""
    return x if on_gpu(x) else widen(x)


def wide_type(x: Array) -> Any:
    """Return the type in which ``x`` is calculated with: float32 for half precision, else its own."""
    return np.dtype(np.float32) if x.dtype.itemsize == 2 and x.dtype.kind in "fV" else x.dtype


def relu(x: Array) -> Result:
    """``max(x, 0)``; NaN stays."""
    if x.dtype.kind in "fV" and x.size >= _SMALL:
        y = _flat(relu_kernels.relu, x)  # three times as fast as NumPy, whose maximum is not vectorised
    else:
        y = get_array_module(x).maximum(x, x.dtype.type(0), out=buffers.spare(x))
    return y, (y,), relu_vjp


def relu_vjp(g: Any, needs: Needs, y: Any) -> Grads:
    if is_array(g):  # y is never negative, and NaN lets the gradient pass, as in PyTorch
        return (_flat(relu_kernels.relu_grad, g, y),)
    return (call(elementwise.where, y != 0, g, g * 0),)


def leaky_relu(x: Array, *, negative_slope: float) -> Result:
    """``x`` where positive, else ``negative_slope * x``."""
    xp, below = get_array_module(x), x * x.dtype.type(negative_slope)
    y = xp.maximum(x, below) if 0 <= negative_slope <= 1 else xp.where(x > 0, x, below)  # the first is faster
    return y, (x, negative_slope), leaky_relu_vjp


def leaky_relu_vjp(g: Any, needs: Needs, x: Any, negative_slope: float) -> Grads:
    slope = g.dtype.type(negative_slope) if is_array(g) else negative_slope
    return (call(elementwise.where, x > 0, g, g * slope),)


def elu(x: Array, *, alpha: float, scale: float = 1.0, input_scale: float = 1.0) -> Result:
    """``scale`` times: ``x`` where positive, else ``alpha * (e ** (input_scale * x) - 1)``.

    ELU (Clevert et al. 2016) with both scales 1; SELU (Klambauer et al. 2017) and CELU (Barron 2017) with others.
    """
    xp = get_array_module(x)
    wide = widen(x)
    kind = wide.dtype.type
    below = xp.expm1(xp.minimum(wide, 0) * kind(input_scale)) * kind(alpha)
    y = xp.maximum(wide, 0) + below
    y = y if scale == 1 else y * kind(scale)
    return buffers.convert(y, x.dtype), (x, alpha, scale, input_scale), elu_vjp


def elu_vjp(g: Any, needs: Needs, x: Any, alpha: float, scale: float, input_scale: float) -> Grads:
    slope = alpha * scale * input_scale
    if is_array(g):
        xp = get_array_module(g)
        wide = widen(x)
        kind = wide.dtype.type
        below = xp.exp(xp.minimum(wide, 0) * kind(input_scale)) * kind(slope)
        return (buffers.convert(widen(g) * xp.where(wide <= 0, below, kind(scale)), g.dtype),)
    negative = call(elementwise.where, x < 0, x, 0.0)  # no overflow where unused
    below = call(elementwise.exp, negative * input_scale) * slope
    return (call(elementwise.where, x <= 0, g * below, g * scale),)


def sigmoid(x: Array) -> Result:
    """``1 / (1 + e ** -x)``, without overflow."""
    y = _flat(sigmoid_kernels.sigmoid, x)
    return y, (y,), sigmoid_vjp


def sigmoid_vjp(g: Any, needs: Needs, y: Any) -> Grads:
    if is_array(g):
        return (_flat(sigmoid_kernels.sigmoid_grad, g, y),)
    return (g * (y * (1 - y)),)


def stable_sigmoid(x: Array) -> Array:
    """Return the logistic function of a float32 or float64 array, without a warning where ``e ** -x`` overflows."""
    with np.errstate(all="ignore"):
        return 1 / (1 + get_array_module(x).exp(-x))


def log1p_exp(x: Array) -> Array:
    """Return ``log(1 + e ** x)`` of a float32 or float64 array: no overflow; ten times as fast as ``logaddexp``."""
    xp = get_array_module(x)
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


def tanh(x: Array) -> Result:
    """Hyperbolic tangent."""
    wide = widen(x)
    y = buffers.convert(get_array_module(x).tanh(wide, out=buffers.spare(wide)), x.dtype)
    return y, (y,), tanh_vjp


def tanh_vjp(g: Any, needs: Needs, y: Any) -> Grads:
    if is_array(g):
        return (_flat(sigmoid_kernels.tanh_grad, g, y),)
    return (g * (1 - y * y),)


def silu(x: Array) -> Result:
    """``x * sigmoid(x)``, also known as swish."""
    return _flat(sigmoid_kernels.silu, x), (x,), silu_vjp


def silu_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    if is_array(g):
        return (_flat(sigmoid_kernels.silu_grad, g, x),)
    s = call(sigmoid, x)
    return (g * (s * (x * (1 - s) + 1)),)


def mish(x: Array) -> Result:
    """``x * tanh(log(1 + e ** x))`` (Misra 2020)."""
    xp = get_array_module(x)
    wide = widen(x)
    y = wide * xp.tanh(log1p_exp(wide))
    return buffers.convert(y, x.dtype), (x,), mish_vjp


def mish_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    wide, h = (widen(x), widen(g)) if is_array(g) else (x, g)
    t = call(tanh, call(softplus, wide, beta=1.0, threshold=20.0))
    gx = h * (t + wide * (1 - t * t) * call(sigmoid, wide))
    return (buffers.convert(gx, g.dtype) if is_array(g) else gx,)


def softsign(x: Array) -> Result:
    """``x / (1 + |x|)``."""
    return x / (get_array_module(x).abs(x) + x.dtype.type(1)), (x,), softsign_vjp


def softsign_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    divisor = call(elementwise.abs, x) + (x.dtype.type(1) if is_array(x) else 1)
    return (g / divisor / divisor,)


def logsigmoid(x: Array) -> Result:
    """``log(sigmoid(x))``, without overflow."""
    xp = get_array_module(x)
    wide = widen(x)
    y = xp.minimum(wide, 0) - xp.log1p(xp.exp(-xp.abs(wide)))
    return buffers.convert(y, x.dtype), (x,), logsigmoid_vjp


def logsigmoid_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (g * call(sigmoid, -x),)


def glu(x: Array, *, dim: int) -> Result:
    """The first half along axis ``dim`` times the sigmoid of the second (Dauphin et al. 2017)."""
    a, b = get_array_module(x).split(widen(x), 2, axis=dim)
    return buffers.convert(a * stable_sigmoid(b), x.dtype), (x, dim), glu_vjp


def glu_vjp(g: Any, needs: Needs, x: Any, dim: int) -> Grads:
    half = x.shape[dim] // 2
    before = (slice(None),) * dim
    a = call(shape.index, x, key=(*before, slice(0, half)))
    b = call(shape.index, x, key=(*before, slice(half, 2 * half)))
    s = call(sigmoid, b)
    gated = g * s
    return (call(shape.concatenate, gated, gated * (a * (1 - s)), axis=dim),)


def softplus(x: Array, *, beta: float, threshold: float) -> Result:
    """``log(1 + e ** (beta * x)) / beta``, and ``x`` itself where ``beta * x`` is above ``threshold``."""
    xp = get_array_module(x)
    wide = widen(x)
    z = wide * wide.dtype.type(beta)
    y = xp.where(z > threshold, wide, log1p_exp(z) / wide.dtype.type(beta))
    return buffers.convert(y, x.dtype), (x, beta, threshold), softplus_vjp


def softplus_vjp(g: Any, needs: Needs, x: Any, beta: float, threshold: float) -> Grads:
    z = x * (x.dtype.type(beta) if is_array(x) else beta)
    return (call(elementwise.where, z > threshold, g, g * call(sigmoid, z)),)


def erf(x: Array) -> Result:
    """The error function."""
    y = _flat(gelu_kernels.erf, x)
    return y, (x,), erf_vjp


def erf_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    slope = call(elementwise.exp, -(x * x))
    factor = 2 / math.sqrt(math.pi)
    return (g * (slope * (x.dtype.type(factor) if is_array(x) else factor)),)


def gelu(x: Array, *, approximate: str = "none") -> Result:
    """``x * Phi(x)`` (Hendrycks and Gimpel 2016); with ``approximate="tanh"`` its approximation by tanh.

    Raises:
        ValueError: ``approximate`` is neither ``"none"`` nor ``"tanh"``.
    """
    if approximate == "none":
        return _flat(gelu_kernels.gelu, x), (x,), gelu_vjp
    if approximate != "tanh":
        raise ValueError(f'gelu: approximate must be "none" or "tanh", got {approximate!r}')
    return _flat(gelu_kernels.gelu_tanh, x), (x,), gelu_tanh_vjp


def gelu_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    if is_array(g):
        return (_flat(gelu_kernels.gelu_grad, g, x),)
    cdf = (call(erf, x * math.sqrt(0.5)) + 1) * 0.5
    density = call(elementwise.exp, x * x * -0.5) * (1 / math.sqrt(2 * math.pi))
    return (g * (cdf + x * density),)


_ROOT_2_BY_PI = math.sqrt(2 / math.pi)
_CUBE = 0.044715


def gelu_tanh_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    if is_array(g):
        return (_flat(gelu_kernels.gelu_tanh_grad, g, x),)
    square = x * x
    t = call(tanh, x * ((square * _CUBE + 1) * _ROOT_2_BY_PI))
    slope = (square * (3 * _CUBE) + 1) * _ROOT_2_BY_PI
    return (g * ((t + 1) * 0.5 + x * (1 - t * t) * slope * 0.5),)


def softmax(x: Array, *, dim: int) -> Result:
    """``e ** x`` over its sum along axis ``dim``."""
    y = _rows(softmax_kernels.softmax, dim, x)
    return y, (y, dim % max(x.ndim, 1)), softmax_vjp


def softmax_vjp(g: Any, needs: Needs, y: Any, dim: int) -> Grads:
    if is_array(g):
        return (_rows(softmax_kernels.softmax_grad, dim, g, y),)
    return (y * (g - call(reduce.sum, g * y, axes=(dim,) if y.ndim else (), keepdims=True)),)


def log_softmax(x: Array, *, dim: int) -> Result:
    """The logarithm of :func:`softmax`, exact where that is near zero."""
    y = _rows(softmax_kernels.log_softmax, dim, x)
    return y, (y, dim % max(x.ndim, 1)), log_softmax_vjp


def log_softmax_vjp(g: Any, needs: Needs, y: Any, dim: int) -> Grads:
    if is_array(g):
        return (_rows(softmax_kernels.log_softmax_grad, dim, g, y),)
    total = call(reduce.sum, g, axes=(dim,) if y.ndim else (), keepdims=True)
    return (g - call(elementwise.exp, y) * total,)


def _rows(kernel: Any, dim: int, *arrays: Array) -> Array:
    """Run a kernel on rows along axis ``dim``."""
    x = arrays[0]
    xp = get_array_module(x)
    if x.ndim == 0:
        return buffers.convert(kernel(*[for_kernel(a).reshape(1, 1) for a in arrays]).reshape(()), x.dtype)
    if not -x.ndim <= dim < x.ndim:
        raise IndexError(f"dim must be in [{-x.ndim}, {x.ndim}) for shape {x.shape}, got {dim}")
    last = dim in (-1, x.ndim - 1)
    moved = [for_kernel(a) if last else xp.moveaxis(for_kernel(a), dim, -1) for a in arrays]
    size = moved[0].shape
    if 0 in size:
        return x.copy()
    out = kernel(*[buffers.contiguous(a).reshape(-1, size[-1]) for a in moved])
    out = buffers.convert(out.reshape(size), x.dtype)
    return out if last else shape.row_major(xp.moveaxis(out, -1, dim))


def _flat(kernel: Any, *arrays: Array) -> Array:
    """Run a kernel of flat arrays, elementwise, and keep the layout of the first."""
    x = arrays[0]
    if all(a.flags.c_contiguous for a in arrays):  # below is longer than a small kernel
        out = kernel(*[for_kernel(a).reshape(-1) for a in arrays])
        return buffers.convert(out.reshape(x.shape), x.dtype)
    axes = _memory_order(x)
    flat = [buffers.contiguous(for_kernel(a).transpose(axes)).reshape(-1) for a in arrays]
    back = [axes.index(a) for a in range(x.ndim)]
    out = kernel(*flat).reshape([x.shape[a] for a in axes]).transpose(back)
    return buffers.convert(out, x.dtype)


def _memory_order(x: Array) -> tuple[int, ...]:
    if x.flags.c_contiguous or 0 in x.strides:
        return tuple(range(x.ndim))
    return tuple(sorted(range(x.ndim), key=lambda a: -x.strides[a]))
