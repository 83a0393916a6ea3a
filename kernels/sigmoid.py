"""The logistic function, SiLU and the gradients of them and of tanh on flat contiguous arrays, float32 or float64."""

import numpy

from disttrain.kernels import buffers, elementwise
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import jit
from disttrain.kernels.jit import sigmoid as scalar_sigmoid


def sigmoid(x: Array) -> Array:
    """Return ``1 / (1 + e ** -x)``."""
    if get_array_module(x) is not numpy:
        return elementwise.sigmoid(x)
    out = buffers.empty_like(x)
    _sigmoid(x, out)
    return out


def sigmoid_reference(x: Array) -> Array:
    """What :func:`sigmoid` must equal up to rounding."""
    with numpy.errstate(all="ignore"):  # 0 where e ** -x overflows
        return 1 / (1 + get_array_module(x).exp(-x))


@jit
def _sigmoid(x, out):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        out[i] = scalar_sigmoid(x[i])


def sigmoid_grad(g: Array, y: Array) -> Array:
    """Return ``g * y * (1 - y)``: the gradient of the input of :func:`sigmoid`, whose output is ``y``."""
    if get_array_module(g) is not numpy:
        return elementwise.sigmoid_grad(g, y)
    out = buffers.empty_like(g)
    _sigmoid_grad(g, y, out)
    return out


def sigmoid_grad_reference(g: Array, y: Array) -> Array:
    """What :func:`sigmoid_grad` must equal up to rounding."""
    return g * (y * (1 - y))


@jit
def _sigmoid_grad(g, y, out):  # type: ignore[no-untyped-def]
    one = g.dtype.type(1)
    for i in range(g.size):
        out[i] = g[i] * (y[i] * (one - y[i]))


def silu(x: Array) -> Array:
    """Return ``x * sigmoid(x)``."""
    if get_array_module(x) is not numpy:
        return elementwise.silu(x)
    out = buffers.empty_like(x)
    _silu(x, out)
    return out


def silu_reference(x: Array) -> Array:
    """What :func:`silu` must equal up to rounding."""
    return x * sigmoid_reference(x)


@jit
def _silu(x, out):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        out[i] = x[i] * scalar_sigmoid(x[i])


def silu_grad(g: Array, x: Array) -> Array:
    """Return the gradient of the input of :func:`silu`."""
    if get_array_module(g) is not numpy:
        return elementwise.silu_grad(g, x)
    out = buffers.empty_like(g)
    _silu_grad(g, x, out)
    return out


def silu_grad_reference(g: Array, x: Array) -> Array:
    """What :func:`silu_grad` must equal up to rounding."""
    s = sigmoid_reference(x)
    return g * (s * (x * (1 - s) + 1))


@jit
def _silu_grad(g, x, out):  # type: ignore[no-untyped-def]
    one = g.dtype.type(1)
    for i in range(g.size):
        s = scalar_sigmoid(x[i])
        out[i] = g[i] * (s * (x[i] * (one - s) + one))


def tanh_grad(g: Array, y: Array) -> Array:
    """Return ``g * (1 - y * y)``: the gradient of the input of the hyperbolic tangent, whose value is ``y``."""
    if get_array_module(g) is not numpy:
        return elementwise.tanh_grad(g, y)
    out = buffers.empty_like(g)
    _tanh_grad(g, y, out)
    return out


def tanh_grad_reference(g: Array, y: Array) -> Array:
    """What :func:`tanh_grad` must equal up to rounding."""
    return g * (1 - y * y)


@jit
def _tanh_grad(g, y, out):  # type: ignore[no-untyped-def]
    one = g.dtype.type(1)
    for i in range(g.size):
        out[i] = g[i] * (one - y[i] * y[i])
