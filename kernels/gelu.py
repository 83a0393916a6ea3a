"""GELU (Hendrycks and Gimpel 2016) of each element of a flat array, float32 or float64.

On a GPU of any shape and floating point type. With a bias (C) ``x`` is (..., C), here and there.
"""

import math
from typing import Any

import numpy

from disttrain.kernels import buffers, elementwise
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.elementwise import fuse
from disttrain.kernels.jit import erf as scalar_erf
from disttrain.kernels.jit import exp_down, jit
from disttrain.kernels.jit import tanh as scalar_tanh

_ROOT_HALF = math.sqrt(0.5)
_DENSITY = 1 / math.sqrt(2 * math.pi)


def erf(x: Array) -> Array:
    """Return the error function of each element of a flat contiguous array."""
    if get_array_module(x) is not numpy:
        return _erf_chain(x)
    out = buffers.empty_like(x)
    _erf(x, out)
    return out


def erf_reference(x: Array) -> Array:
    """What :func:`erf` must equal up to rounding."""
    if get_array_module(x) is not numpy:
        from cupyx.scipy.special import erf as cupy_erf

        return cupy_erf(x)
    return numpy.array([math.erf(v) for v in x.tolist()], x.dtype)


@jit
def _erf(x, out):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        out[i] = scalar_erf(x[i])


def gelu(x: Array) -> Array:
    """Return ``x * Phi(x)``, where Phi is the normal distribution function."""
    if get_array_module(x) is not numpy:
        return _gelu_chain(x)
    out = buffers.empty_like(x)
    _gelu(x, x.dtype.type(_ROOT_HALF), out)
    return out


def gelu_reference(x: Array) -> Array:
    """What :func:`gelu` must equal up to rounding."""
    return x * 0.5 * (1 + erf_reference(x * _ROOT_HALF))


@jit
def _gelu(x, root_half, out):  # type: ignore[no-untyped-def]
    half, one = x.dtype.type(0.5), x.dtype.type(1)
    for i in range(x.size):
        out[i] = x[i] * half * (one + scalar_erf(x[i] * root_half))


def gelu_grad(g: Array, x: Array) -> Array:
    """Return ``g * (Phi(x) + x * phi(x))``: the gradient of the input of :func:`gelu`."""
    if get_array_module(g) is not numpy:
        return _gelu_grad_chain(g, x)
    out = buffers.empty_like(x)
    T = x.dtype.type
    _gelu_grad(g, x, T(_ROOT_HALF), T(_DENSITY), out)
    return out


def gelu_grad_reference(g: Array, x: Array) -> Array:
    """What :func:`gelu_grad` must equal up to rounding."""
    xp = get_array_module(x)
    return g * (0.5 * (1 + erf_reference(x * _ROOT_HALF)) + x * (_DENSITY * xp.exp(-0.5 * x * x)))


@jit
def _gelu_grad(g, x, root_half, density, out):  # type: ignore[no-untyped-def]
    half, one = x.dtype.type(0.5), x.dtype.type(1)
    for i in range(x.size):
        v = x[i]
        cdf = half * (one + scalar_erf(v * root_half))
        out[i] = g[i] * (cdf + v * (density * exp_down(-half * v * v)))


@fuse
def _erf_chain(x):  # type: ignore[no-untyped-def]
    return elementwise.erf(x)


@fuse
def _gelu_chain(x):  # type: ignore[no-untyped-def]
    return x * 0.5 * (1 + elementwise.erf(x * _ROOT_HALF))


@fuse
def _gelu_grad_chain(g, x):  # type: ignore[no-untyped-def]
    return g * _slope(x)


def _slope(x: Any) -> Any:
    return 0.5 * (1 + elementwise.erf(x * _ROOT_HALF)) + x * (_DENSITY * elementwise.exp(-0.5 * x * x))


@fuse
def bias_gelu(x: Array, bias: Array) -> Array:
    """Return GELU of ``x + bias``."""
    u = x + bias
    return u * 0.5 * (1 + elementwise.erf(u * _ROOT_HALF))


@fuse
def bias_gelu_grad(g: Array, x: Array, bias: Array) -> Array:
    """Return the gradient of ``x`` in :func:`bias_gelu`; that of ``bias`` is its sum over the rows."""
    return g * _slope(x + bias)


_ROOT = math.sqrt(2 / math.pi)
_CUBE = 0.044715


def gelu_tanh(x: Array) -> Array:
    """Return the approximation of GELU by tanh."""
    if get_array_module(x) is not numpy:
        return _gelu_tanh_chain(x)
    out = buffers.empty_like(x)
    T = x.dtype.type
    _gelu_tanh(x, T(_ROOT), T(_CUBE), out)
    return out


def gelu_tanh_reference(x: Array) -> Array:
    """What :func:`gelu_tanh` must equal up to rounding."""
    return _by_tanh(x)


@jit
def _gelu_tanh(x, root, cube, out):  # type: ignore[no-untyped-def]
    half, one = x.dtype.type(0.5), x.dtype.type(1)
    for i in range(x.size):
        v = x[i]
        out[i] = half * v * (one + scalar_tanh(root * (v + cube * (v * v * v))))


def gelu_tanh_grad(g: Array, x: Array) -> Array:
    """Return the gradient of the input of :func:`gelu_tanh`."""
    if get_array_module(g) is not numpy:
        return _gelu_tanh_grad_chain(g, x)
    out = buffers.empty_like(x)
    T = x.dtype.type
    _gelu_tanh_grad(g, x, T(_ROOT), T(_CUBE), out)
    return out


def gelu_tanh_grad_reference(g: Array, x: Array) -> Array:
    """What :func:`gelu_tanh_grad` must equal up to rounding."""
    return g * _slope_by_tanh(x)


@jit
def _gelu_tanh_grad(g, x, root, cube, out):  # type: ignore[no-untyped-def]
    half, one, three = x.dtype.type(0.5), x.dtype.type(1), x.dtype.type(3)
    for i in range(x.size):
        v = x[i]
        square = v * v
        t = scalar_tanh(root * (v + cube * (square * v)))
        out[i] = g[i] * half * ((one + t) + v * (one - t * t) * (root * (one + three * cube * square)))


@fuse
def _gelu_tanh_chain(x):  # type: ignore[no-untyped-def]
    return _by_tanh(x)


@fuse
def _gelu_tanh_grad_chain(g, x):  # type: ignore[no-untyped-def]
    return g * _slope_by_tanh(x)


@fuse
def bias_gelu_tanh(x: Array, bias: Array) -> Array:
    """Return the approximation of GELU by tanh, of ``x + bias``."""
    return _by_tanh(x + bias)


@fuse
def bias_gelu_tanh_grad(g: Array, x: Array, bias: Array) -> Array:
    """Return the gradient of ``x`` in :func:`bias_gelu_tanh`; that of ``bias`` is its sum over the rows."""
    return g * _slope_by_tanh(x + bias)


def _by_tanh(u: Any) -> Any:
    return 0.5 * u * (1 + elementwise.tanh(_ROOT * (u + _CUBE * (u * u * u))))


def _slope_by_tanh(u: Any) -> Any:
    t = elementwise.tanh(_ROOT * (u + _CUBE * (u * u * u)))
    return 0.5 * (1 + t) + 0.5 * u * (1 - t * t) * (_ROOT * (1 + 3 * _CUBE * (u * u)))
