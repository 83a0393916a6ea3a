"""Convolution and its two gradients, over images and volumes.

Each of the three is bilinear, and its gradients are the other two. Lines (N, C, L) are images of one row.
"""

from typing import Any

from disttrain.kernels import buffers
from disttrain.kernels import conv as images
from disttrain.kernels import conv3d as volumes
from disttrain.kernels.arrays import on_gpu
from disttrain.kernels.conv import Sizes, Window
from disttrain.ops import reduce, shape
from disttrain.ops.activation import widen
from disttrain.ops.types import Array, Result, call, get_array_module, is_array

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]


def convolution(x: Array, w: Array, b: Array | None = None, *, window: Window, groups: int = 1) -> Result:
    """Cross-correlation of images or volumes with filters, as ``torch.nn.functional.conv2d`` and ``conv3d``.

    Args:
        x: images (N, C, H, W) or volumes (N, C, D, H, W), of any memory layout.
        w: filters (O, C // groups, KH, KW) or (O, C // groups, KD, KH, KW).
        b: bias (O,), or ``None``.
        window: where the filters stand.
        groups: channels are split into so many groups that do not see each other.

    Returns:
        (N, O, ...), nearly always in channels-last memory.

    Raises:
        RuntimeError: shapes or options that do not fit together.
    """
    check_filters("convolution", w.shape, 0, x.shape, b, groups)
    size = window.out_size(*x.shape[2:])
    if min(window.kernel) < 1 or min(size) < 1:
        raise RuntimeError(
            f"convolution: filters of {tuple(window.kernel)} pixels (dilation {window.dilation}) do not fit into "
            f"{tuple(x.shape[2:])} with padding {window.padding}"
        )
    kernel = images.conv2d if x.ndim == 4 else volumes.conv3d
    out = kernel(*_wide(x, w), None if b is None else _wide(x, b)[1], window, groups)
    return buffers.convert(out, x.dtype), (x, w, window, groups), convolution_vjp


def _wide(x: Array, other: Array) -> tuple[Array, Array]:
    """Return both in the type that convolution computes in: float32 for half precision, but for images on a GPU."""
    return (x, other) if on_gpu(x) and x.ndim == 4 else (widen(x), widen(other))


def convolution_vjp(g: Any, needs: Needs, x: Any, w: Any, window: Window, groups: int) -> Grads:
    gx = gw = gb = None
    if needs[0]:
        gx = call(convolution_input_grad, g, w, window=window, groups=groups, size=tuple(x.shape[2:]))
    if needs[1]:
        gw = call(convolution_weight_grad, g, x, window=window, groups=groups)
    if needs[2:3] == (True,):
        gb = _channel_sum(g)
    return (gx, gw, gb)[: len(needs)]


def _channel_sum(g: Any) -> Any:
    axes = (0, *range(2, g.ndim))
    if not is_array(g):
        return call(reduce.sum, g, axes=axes, keepdims=False)
    xp = get_array_module(g)
    C, W = g.shape[1], g.shape[-1]
    if not g.size:
        return buffers.zeros(C, g.dtype, g)
    lines = buffers.contiguous(xp.moveaxis(widen(g), 1, -1)).reshape(-1, W * C)
    ones = buffers.empty(len(lines), lines.dtype, lines)
    ones.fill(1)
    # far quicker than a sum over axis 0
    line = xp.matmul(ones, lines, out=buffers.empty(W * C, lines.dtype, lines))
    return line.reshape(W, C).sum(0, out=buffers.empty(C, lines.dtype, lines))


def convolution_input_grad(g: Array, w: Array, *, window: Window, groups: int, size: Sizes) -> Result:
    """The gradient of the images of :func:`convolution`, which are of ``size``, given that of its output.

    This is also the transposed convolution.
    """
    kernel = images.conv2d_input_grad if g.ndim == 4 else volumes.conv3d_input_grad
    gx = kernel(*_wide(g, w), window, groups, size)
    return buffers.convert(gx, g.dtype), (g, w, window, groups), convolution_input_grad_vjp


def convolution_input_grad_vjp(h: Any, needs: Needs, g: Any, w: Any, window: Window, groups: int) -> Grads:
    gg = gw = None
    if needs[0]:
        gg = call(convolution, h, w, window=window, groups=groups)
        if gg.shape != g.shape:  # images so large that more windows fit than there are outputs
            gg = call(shape.index, gg, key=(..., *(slice(n) for n in g.shape[2:])))
    if needs[1]:
        gw = call(convolution_weight_grad, g, h, window=window, groups=groups)
    return gg, gw


def convolution_weight_grad(g: Array, x: Array, *, window: Window, groups: int) -> Result:
    """The gradient of the filters of :func:`convolution`, given that of its output and its images."""
    kernel = images.conv2d_weight_grad if g.ndim == 4 else volumes.conv3d_weight_grad
    gw = kernel(*_wide(g, x), window, groups)
    return buffers.convert(gw, g.dtype), (g, x, window, groups), convolution_weight_grad_vjp


def convolution_weight_grad_vjp(h: Any, needs: Needs, g: Any, x: Any, window: Window, groups: int) -> Grads:
    gg = gx = None
    if needs[0]:
        gg = call(convolution, x, h, window=window, groups=groups)
        if gg.shape != g.shape:
            gg = call(shape.index, gg, key=(..., *(slice(n) for n in g.shape[2:])))
    if needs[1]:
        gx = call(convolution_input_grad, g, h, window=window, groups=groups, size=tuple(x.shape[2:]))
    return gg, gx


def conv_transpose(
    x: Array, w: Array, b: Array | None = None, *, window: Window, groups: int = 1, size: Sizes
) -> Result:
    """:func:`convolution_input_grad` plus a bias for each channel, as ``torch.nn.functional.conv_transpose2d``.

    Args:
        x: images (N, C, H, W) or volumes (N, C, D, H, W).
        w: filters (C, O // groups, KH, KW), or with a depth.
        b: bias (O,), or ``None``.
        window: where the filters stand in the output.
        groups: channels are split into so many groups that do not see each other.
        size: that of the output.

    Raises:
        RuntimeError: shapes or options that do not fit together.
    """
    check_filters("conv_transpose", w.shape, 1, x.shape, b, groups)
    if min(window.kernel) < 1 or min(size) < 1:
        raise RuntimeError(
            f"conv_transpose: images of {tuple(x.shape[2:])} give none of {size} with filters of {window.kernel}, "
            f"padding {window.padding}"
        )
    kernel = images.conv2d_input_grad if x.ndim == 4 else volumes.conv3d_input_grad
    out = kernel(*_wide(x, w), window, groups, size)
    if b is not None:
        out += buffers.convert(b, out.dtype).reshape(-1, *[1] * len(size))
    return buffers.convert(out, x.dtype), (x, w, window, groups), conv_transpose_vjp


def conv_transpose_vjp(g: Any, needs: Needs, x: Any, w: Any, window: Window, groups: int) -> Grads:
    gx, gw = convolution_input_grad_vjp(g, needs[:2], x, w, window, groups)
    gb = _channel_sum(g) if needs[2:3] == (True,) else None
    return (gx, gw, gb)[: len(needs)]


def check_filters(name: str, w: Sizes, outputs: int, x: Sizes, b: Array | None, groups: int) -> None:
    """Check that filters of shape ``w`` fit images of shape ``x``.

    Args:
        name: of the function, for the message.
        w: (O, C // groups, ...), or for a transposed convolution (C, O // groups, ...).
        outputs: the axis of ``w`` that counts outputs.
        x: (N, C, ...).
        b: bias (O,), or ``None``.
        groups: of channels.

    Raises:
        RuntimeError: they do not.
    """
    if len(x) not in (4, 5) or len(w) != len(x):
        raise RuntimeError(f"{name}: images of shape {tuple(x)} and filters of shape {tuple(w)} do not fit")
    if groups < 1 or w[0] % groups or w[0] < groups:
        raise RuntimeError(
            f"{name}: groups must divide the first size of the filters, {w[0]}, got groups={groups}"
        )
    channels, outs = (w[0], w[1] * groups) if outputs else (w[1] * groups, w[0])
    if x[1] != channels:
        raise RuntimeError(
            f"{name}: filters of shape {tuple(w)} with groups={groups} take {channels} channels, "
            f"got shape {tuple(x)}"
        )
    if b is not None and tuple(b.shape) != (outs,):
        raise RuntimeError(f"{name}: bias must have shape ({outs},), got {tuple(b.shape)}")


def check_window(name: str, *, stride: Sizes, padding: Sizes, dilation: Sizes) -> None:
    """Check the options of a window.

    Raises:
        RuntimeError: a stride or dilation below 1, or a negative padding.
    """
    if min(stride) < 1 or min(dilation) < 1 or min(padding) < 0:
        raise RuntimeError(
            f"{name}: stride and dilation must be at least 1 and padding at least 0, "
            f"got stride={stride}, dilation={dilation}, padding={padding}"
        )
