"""ReLU and its gradient on flat contiguous arrays, float32 or float64."""

import numpy

from disttrain.kernels import buffers
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.elementwise import fuse, where
from disttrain.kernels.jit import jit


def relu(x: Array) -> Array:
    """Return ``max(x, 0)``; NaN stays."""
    if get_array_module(x) is not numpy:
        return _relu_chain(x)
    out = buffers.empty_like(x)
    _relu(x, x.dtype.type(0), out)
    return out


def relu_reference(x: Array) -> Array:
    """What :func:`relu` must equal."""
    return get_array_module(x).maximum(x, x.dtype.type(0))


@jit
def _relu(x, zero, out):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        out[i] = zero if x[i] <= 0 else x[i]


@fuse
def _relu_chain(x):  # type: ignore[no-untyped-def]
    return where(x <= 0, 0.0, x)


def relu_grad(g: Array, y: Array) -> Array:
    """Return ``g`` where ``y``, the output of ReLU, is not 0, else 0: also where ``g`` is not finite."""
    if get_array_module(g) is not numpy:
        return _relu_grad_chain(g, y)
    out = buffers.empty_like(g)
    _relu_grad(g, y, g.dtype.type(0), out)
    return out


def relu_grad_reference(g: Array, y: Array) -> Array:
    """What :func:`relu_grad` must equal."""
    return get_array_module(g).where(y != 0, g, g.dtype.type(0))


@jit
def _relu_grad(g, y, zero, out):  # type: ignore[no-untyped-def]
    for i in range(g.size):
        out[i] = g[i] if y[i] != 0 else zero


@fuse
def _relu_grad_chain(g, y):  # type: ignore[no-untyped-def]
    return where(y != 0, g, 0.0)
