"""Convolution over volumes: the planes that a window sees become channels of one plane, then it is one over images.

``x`` is (N, C, D, H, W), ``w`` is (O, C // groups, KD, KH, KW), ``out`` and its gradient ``g`` are
(N, O, OD, OH, OW). Any memory layout is accepted; results are views of channels-last memory.
"""

import numpy

from disttrain.kernels import buffers
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.conv import (
    Sizes,
    Window,
    conv2d,
    conv2d_input_grad,
    conv2d_weight_grad,
)


def conv3d(x: Array, w: Array, bias: Array | None, window: Window, groups: int) -> Array:
    """Return the cross-correlation of ``x`` with ``w``, plus ``bias`` (O,)."""
    depth = window.out_size(*x.shape[2:])[0]
    out = conv2d(_stack_planes(x, depth, window, groups), _stack_filters(w), bias, _flat(window), groups)
    return _volumes(out, depth)


def conv3d_input_grad(g: Array, w: Array, window: Window, groups: int, size: Sizes) -> Array:
    """Return the gradient of the input, volumes of ``size`` = (D, H, W)."""
    filters = _stack_filters(w)
    parts = conv2d_input_grad(_planes(g), filters, _flat(window), groups, size[1:])
    parts = parts.transpose(0, 2, 3, 1).reshape(
        len(g), g.shape[2], *size[1:], groups, window.kernel[0], w.shape[1]
    )
    gx = buffers.zeros((len(g), *size, groups, w.shape[1]), g.dtype, g)
    for k in range(window.kernel[0]):
        outs, planes = _meeting(k, g.shape[2], size[0], window)
        gx[:, planes] += parts[:, outs, :, :, :, k]
    return gx.reshape(len(g), *size, groups * w.shape[1]).transpose(0, 4, 1, 2, 3)


def conv3d_weight_grad(g: Array, x: Array, window: Window, groups: int) -> Array:
    """Return the gradient of the weight, (O, C // groups, KD, KH, KW)."""
    seen = _stack_planes(x, g.shape[2], window, groups)
    gw = conv2d_weight_grad(_planes(g), seen, _flat(window), groups)
    O, _, KH, KW = gw.shape  # noqa: E741
    return gw.reshape(O, window.kernel[0], x.shape[1] // groups, KH, KW).transpose(0, 2, 1, 3, 4)


def _flat(window: Window) -> Window:
    return Window(*(sizes[1:] for sizes in window))


def _meeting(k: int, depth: int, planes: int, window: Window) -> tuple[slice, slice]:
    """Return which of ``depth`` outputs have a plane under place ``k`` of the window, and which planes these are."""
    stride, offset = window.stride[0], k * window.dilation[0] - window.padding[0]
    first = max(0, -(offset // stride))
    last = max(first, min(depth, (planes - 1 - offset) // stride + 1))
    start = first * stride + offset
    return slice(first, last), slice(
        start, start + (last - first - 1) * stride + 1 if last > first else start, stride
    )


def _stack_planes(x: Array, depth: int, window: Window, groups: int) -> Array:
    """Return what each of ``depth`` outputs sees as images (N * depth, groups * KD * C // groups, H, W)."""
    N, C, D, H, W = x.shape
    KD = window.kernel[0]
    x = x.transpose(0, 2, 3, 4, 1)
    if (KD, depth, window.stride[0]) == (1, D, 1):
        return buffers.contiguous(x).reshape(N * D, H, W, C).transpose(0, 3, 1, 2)
    x = x.reshape(N, D, H, W, groups, C // groups)
    seen = buffers.zeros((N, depth, H, W, groups, KD, C // groups), x.dtype, x)
    for k in range(KD):
        outs, planes = _meeting(k, depth, D, window)
        seen[:, outs, :, :, :, k] = x[:, planes]
    return seen.reshape(N * depth, H, W, KD * C).transpose(0, 3, 1, 2)


def _stack_filters(w: Array) -> Array:
    O, c, KD, KH, KW = w.shape  # noqa: E741
    return w.transpose(0, 2, 1, 3, 4).reshape(O, KD * c, KH, KW)


def _planes(g: Array) -> Array:
    """Return (N, O, OD, OH, OW) as images (N * OD, O, OH, OW)."""
    N, O, OD, OH, OW = g.shape  # noqa: E741
    return g.transpose(0, 2, 1, 3, 4).reshape(N * OD, O, OH, OW)


def _volumes(images: Array, depth: int) -> Array:
    """Return images (N * depth, O, OH, OW) as (N, O, depth, OH, OW)."""
    _, O, OH, OW = images.shape  # noqa: E741
    volumes = images.transpose(0, 2, 3, 1).reshape(images.shape[0] // depth, depth, OH, OW, O)
    return volumes.transpose(0, 4, 1, 2, 3)


def conv3d_reference(x: Array, w: Array, bias: Array | None, window: Window, groups: int) -> Array:
    """What :func:`conv3d` must equal up to rounding."""
    out = get_array_module(x).einsum(
        "ngcdyxkij,gockij->ngodyx", _windows(x, window, groups), _split(w, 0, groups)
    )
    out = out.reshape(len(x), w.shape[0], *out.shape[3:])
    return out if bias is None else out + bias[:, None, None, None]


def conv3d_weight_grad_reference(g: Array, x: Array, window: Window, groups: int) -> Array:
    """What :func:`conv3d_weight_grad` must equal up to rounding."""
    seen = _windows(x, window, groups)[:, :, :, : g.shape[2], : g.shape[3], : g.shape[4]]
    gw = get_array_module(x).einsum("ngcdyxkij,ngodyx->gockij", seen, _split(g, 1, groups))
    return gw.reshape(g.shape[1], *gw.shape[2:])


def conv3d_input_grad_reference(g: Array, w: Array, window: Window, groups: int, size: Sizes) -> Array:
    """What :func:`conv3d_input_grad` must equal up to rounding."""
    xp = get_array_module(g)
    parts = xp.einsum("ngodyx,gockij->ngcdyxkij", _split(g, 1, groups), _split(w, 0, groups))
    parts = parts.reshape(len(g), groups * w.shape[1], *parts.shape[3:])
    gx = xp.zeros(
        (*parts.shape[:2], *(n + 2 * p for n, p in zip(size, window.padding, strict=True))), g.dtype
    )
    for at in numpy.ndindex(*window.kernel):
        seen = tuple(
            slice(k * d, k * d + (n - 1) * s + 1, s)
            for k, d, n, s in zip(at, window.dilation, g.shape[2:], window.stride, strict=True)
        )
        gx[(..., *seen)] += parts[(..., *at)]
    return gx[(..., *(slice(p, p + n) for n, p in zip(size, window.padding, strict=True)))]


def _split(x: Array, axis: int, groups: int) -> Array:
    return x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])


def _windows(x: Array, window: Window, groups: int) -> Array:
    """Return the padded volumes as (N, groups, C // groups, OD, OH, OW, KD, KH, KW)."""
    xp = get_array_module(x)
    x = xp.pad(x, ((0, 0), (0, 0), *((p, p) for p in window.padding)))
    span = tuple(d * (k - 1) + 1 for d, k in zip(window.dilation, window.kernel, strict=True))
    view = xp.lib.stride_tricks.sliding_window_view(x, span, axis=(2, 3, 4))
    steps = tuple(slice(None, None, n) for n in (*window.stride, *window.dilation))
    return _split(view[(slice(None), slice(None), *steps)], 1, groups)
