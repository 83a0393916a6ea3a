"""Convolution and its two gradients. Each of the three is bilinear, and its gradients are the other two."""

from typing import Any

from disttrain.kernels import conv as kernels
from disttrain.kernels.conv import Pair, Window
from disttrain.ops import reduce
from disttrain.ops.activation import widen
from disttrain.ops.types import Array, Result, call, get_array_module, is_array

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]


def conv2d(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Result:
    """Cross-correlation of images with filters, as ``torch.nn.functional.conv2d``.

    Args:
        x: images (N, C, H, W), of any memory layout.
        w: filters (O, C // groups, KH, KW).
        b: bias (O,), or ``None``.
        stride: step between windows, (vertical, horizontal).
        padding: rows and columns of zeros on each side.
        dilation: step between the pixels of a window.
        groups: channels are split into so many groups that do not see each other.

    Returns:
        Images (N, O, OH, OW) in channels-last memory.

    Raises:
        ValueError: shapes or options that do not fit together.
    """
    window = _window(x, w, stride, padding, dilation, groups)
    if b is not None and b.shape != (w.shape[0],):
        raise ValueError(f"conv2d: bias must have shape ({w.shape[0]},), got {b.shape}")
    out = kernels.conv2d(widen(x), widen(w), None if b is None else widen(b), window, groups)
    return out.astype(x.dtype, copy=False), (x, w, window, groups), conv2d_vjp


def conv2d_vjp(g: Any, needs: Needs, x: Any, w: Any, window: Window, groups: int) -> Grads:
    gx = gw = gb = None
    if needs[0]:
        gx = call(conv2d_input_grad, g, w, window=window, groups=groups, size=tuple(x.shape[2:]))
    if needs[1]:
        gw = call(conv2d_weight_grad, g, x, window=window, groups=groups)
    if needs[2:3] == (True,):
        gb = _channel_sum(g)
    return (gx, gw, gb)[: len(needs)]


def _channel_sum(g: Any) -> Any:
    if not is_array(g):
        return call(reduce.sum, g, axes=(0, 2, 3), keepdims=False)
    N, C, H, W = g.shape
    lines = kernels.to_channels_last(widen(g)).reshape(N * H, W * C)
    line = get_array_module(g).ones(len(lines), lines.dtype) @ lines  # far quicker than a sum over axis 0
    return line.reshape(W, C).sum(0)


def conv2d_input_grad(g: Array, w: Array, *, window: Window, groups: int, size: Pair) -> Result:
    """The gradient of the images of :func:`conv2d`, which are of ``size`` (H, W), given that of its output.

    This is also the transposed convolution.
    """
    gx = kernels.conv2d_input_grad(widen(g), widen(w), window, groups, size)
    return gx.astype(g.dtype, copy=False), (g, w, window, groups), conv2d_input_grad_vjp


def conv2d_input_grad_vjp(h: Any, needs: Needs, g: Any, w: Any, window: Window, groups: int) -> Grads:
    gg = _conv(h, w, window, groups) if needs[0] else None
    gw = call(conv2d_weight_grad, g, h, window=window, groups=groups) if needs[1] else None
    return gg, gw


def conv2d_weight_grad(g: Array, x: Array, *, window: Window, groups: int) -> Result:
    """The gradient of the filters of :func:`conv2d`, given that of its output and its images."""
    gw = kernels.conv2d_weight_grad(widen(g), widen(x), window, groups)
    return gw.astype(g.dtype, copy=False), (g, x, window, groups), conv2d_weight_grad_vjp


def conv2d_weight_grad_vjp(h: Any, needs: Needs, g: Any, x: Any, window: Window, groups: int) -> Grads:
    gg = _conv(x, h, window, groups) if needs[0] else None
    gx = None
    if needs[1]:
        gx = call(conv2d_input_grad, g, h, window=window, groups=groups, size=tuple(x.shape[2:]))
    return gg, gx


def _conv(x: Any, w: Any, window: Window, groups: int) -> Any:
    _, stride, padding, dilation = window
    return call(conv2d, x, w, stride=stride, padding=padding, dilation=dilation, groups=groups)


def _window(x: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Window:
    if x.ndim != 4 or w.ndim != 4:
        raise ValueError(
            f"conv2d: expected images (N, C, H, W) and filters (O, C, KH, KW), got {x.shape}, {w.shape}"
        )
    if groups < 1 or w.shape[0] % groups:
        raise ValueError(f"conv2d: groups must divide the {w.shape[0]} output channels, got groups={groups}")
    if x.shape[1] != w.shape[1] * groups:
        raise ValueError(
            f"conv2d: filters of shape {w.shape} with groups={groups} take images of {w.shape[1] * groups} "
            f"channels, got shape {x.shape}"
        )
    check_window("conv2d", stride=stride, padding=padding, dilation=dilation)
    window = Window(tuple(w.shape[2:]), stride, padding, dilation)
    if min(window.kernel) < 1 or min(window.out_size(*x.shape[2:])) < 1:
        raise ValueError(
            f"conv2d: filters of {window.kernel} pixels (dilation {dilation}) do not fit into images of "
            f"{tuple(x.shape[2:])} with padding {padding}"
        )
    return window


def check_window(name: str, *, stride: Pair, padding: Pair, dilation: Pair) -> None:
    """Check the options of a window.

    Raises:
        ValueError: a stride or dilation below 1, or a negative padding.
    """
    if min(stride) < 1 or min(dilation) < 1 or min(padding) < 0:
        raise ValueError(
            f"{name}: stride and dilation must be at least 1 and padding at least 0, "
            f"got stride={stride}, dilation={dilation}, padding={padding}"
        )
