"""Pooling of images (N, C, H, W) of any memory layout; results are in channels-last memory."""

import math
from typing import Any

import numpy as np

from disttrain.kernels import pool as kernels
from disttrain.kernels.conv import Pair, Window, to_channels_last
from disttrain.ops.activation import widen
from disttrain.ops.conv import check_window
from disttrain.ops.types import Array, Result, call, get_array_module

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]


def max_pool2d(
    x: Array,
    *,
    kernel: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    ceil_mode: bool = False,
) -> Result:
    """The largest element of each window, and where it is, as ``torch.nn.functional.max_pool2d``.

    NaN is larger than anything; of equal ones the first counts. Padding is ``-inf``.

    Returns:
        Two outputs: the pooled images (N, C, OH, OW), and the places ``row * W + column`` as int32 (PyTorch:
        int64).

    Raises:
        ValueError: windows that do not fit.
    """
    window, size = _windows("max_pool2d", x, kernel, stride, padding, dilation, ceil_mode)
    out, where = kernels.max_pool2d(widen(x), window, size)
    out = out.astype(x.dtype, copy=False)
    return (out, where), (where, tuple(x.shape[2:])), max_pool2d_vjp


def max_pool2d_vjp(g: Any, needs: Needs, where: Any, size: Pair) -> Grads:
    return (call(scatter_pixels, g[0], where, size=size),)


def scatter_pixels(g: Array, where: Array, *, size: Pair) -> Result:
    """Images of ``size`` to which ``g`` (N, C, OH, OW) is added at the places ``where`` of each channel."""
    gx = kernels.max_pool2d_input_grad(widen(g), where, size)
    return gx.astype(g.dtype, copy=False), (where,), scatter_pixels_vjp


def scatter_pixels_vjp(h: Any, needs: Needs, where: Any) -> Grads:
    return call(gather_pixels, h, where) if needs[0] else None, None


def gather_pixels(x: Array, where: Array) -> Result:
    """The pixels of ``x`` at the places ``where`` of each channel; 0 at places below 0."""
    xp = get_array_module(x)
    flat = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
    at = where.reshape(*where.shape[:2], math.prod(where.shape[2:]))
    out = xp.take_along_axis(flat, xp.maximum(at, 0).astype(np.int64), 2) * (at >= 0)
    return out.reshape(where.shape), (where, tuple(x.shape[2:])), gather_pixels_vjp


def gather_pixels_vjp(g: Any, needs: Needs, where: Any, size: Pair) -> Grads:
    return call(scatter_pixels, g, where, size=size) if needs[0] else None, None


def avg_pool2d(
    x: Array,
    *,
    kernel: Pair,
    stride: Pair,
    padding: Pair = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Result:
    """The mean of each window, as ``torch.nn.functional.avg_pool2d``.

    Args:
        x: images.
        kernel: size of a window, (vertical, horizontal).
        stride: step between windows.
        padding: rows and columns of zeros on each side.
        ceil_mode: keep windows that stick out at the end.
        count_include_pad: padding counts in the divisor.
        divisor_override: divide by this instead of the number of pixels.

    Raises:
        ValueError: windows that do not fit, or a divisor of 0.
    """
    if divisor_override == 0:
        raise ValueError("avg_pool2d: divisor_override must not be 0")
    window, out_size = _windows("avg_pool2d", x, kernel, stride, padding, (1, 1), ceil_mode)
    size = tuple(x.shape[2:])
    divisor = _divisors(window, size, out_size, count_include_pad, divisor_override)
    return call(window_mean, x, window=window, divisor=divisor), (window, divisor, size), window_mean_vjp


def window_mean(x: Array, *, window: Window, divisor: tuple[tuple[float, ...], tuple[float, ...]]) -> Result:
    """The sum over each window, divided by a divisor for its row times one for its column of the output."""
    wide = widen(x)
    out = kernels.sum_pool2d(wide, window, (len(divisor[0]), len(divisor[1])))
    out /= _as_image(divisor, wide)
    return out.astype(x.dtype, copy=False), (window, divisor, tuple(x.shape[2:])), window_mean_vjp


def window_mean_vjp(g: Any, needs: Needs, window: Window, divisor: Any, size: Pair) -> Grads:
    return (call(window_mean_input_grad, g, window=window, divisor=divisor, size=size),)


def window_mean_input_grad(g: Array, *, window: Window, divisor: Any, size: Pair) -> Result:
    """The gradient of the images of :func:`window_mean`, which are of ``size``."""
    wide = widen(g)
    gx = kernels.sum_pool2d_input_grad(wide / _as_image(divisor, wide), window, size)
    return gx.astype(g.dtype, copy=False), (window, divisor), window_mean_input_grad_vjp


def window_mean_input_grad_vjp(h: Any, needs: Needs, window: Window, divisor: Any) -> Grads:
    return (call(window_mean, h, window=window, divisor=divisor),)


def adaptive_avg_pool2d(x: Array, *, output_size: Pair) -> Result:
    """Means over an even division of the images into ``output_size``, as ``F.adaptive_avg_pool2d``.

    Raises:
        ValueError: ``x`` is not (N, C, H, W), is without pixels, or a size is below 1.
    """
    if x.ndim != 4 or min(output_size) < 1 or min(x.shape[2:]) < 1:
        raise ValueError(f"adaptive_avg_pool2d: cannot pool shape {x.shape} to output_size {output_size}")
    wide = widen(x)
    out = _cut_means(wide, output_size)
    return out.astype(x.dtype, copy=False), (tuple(x.shape[2:]),), adaptive_avg_pool2d_vjp


def adaptive_avg_pool2d_vjp(g: Any, needs: Needs, size: Pair) -> Grads:
    return (call(adaptive_avg_pool2d_input_grad, g, size=size),)


def adaptive_avg_pool2d_input_grad(g: Array, *, size: Pair) -> Result:
    """The gradient of the images of :func:`adaptive_avg_pool2d`, which are of ``size``."""
    xp = get_array_module(g)
    wide = to_channels_last(widen(g))
    gx = xp.zeros((wide.shape[0], *size, wide.shape[3]), wide.dtype)
    for i, rows in enumerate(_cuts(size[0], wide.shape[1])):
        for j, cols in enumerate(_cuts(size[1], wide.shape[2])):
            area = (rows.stop - rows.start) * (cols.stop - cols.start)
            gx[:, rows, cols] += (wide[:, i, j] * wide.dtype.type(1 / area))[:, None, None]
    out_size = (g.shape[2], g.shape[3])
    return (
        gx.transpose(0, 3, 1, 2).astype(g.dtype, copy=False),
        (out_size,),
        adaptive_avg_pool2d_input_grad_vjp,
    )


def adaptive_avg_pool2d_input_grad_vjp(h: Any, needs: Needs, out_size: Pair) -> Grads:
    return (call(adaptive_avg_pool2d, h, output_size=out_size),)


def _cut_means(x: Array, out_size: Pair) -> Array:
    xp = get_array_module(x)
    x = to_channels_last(x)
    out = xp.empty((x.shape[0], *out_size, x.shape[3]), x.dtype)
    for i, rows in enumerate(_cuts(x.shape[1], out_size[0])):
        for j, cols in enumerate(_cuts(x.shape[2], out_size[1])):
            out[:, i, j] = x[:, rows, cols].mean((1, 2))
    return out.transpose(0, 3, 1, 2)


def _cuts(size: int, parts: int) -> list[slice]:
    return [slice(i * size // parts, -(-(i + 1) * size // parts)) for i in range(parts)]


def _windows(
    name: str, x: Array, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil_mode: bool
) -> tuple[Window, Pair]:
    if x.ndim != 4:
        raise ValueError(f"{name}: expected images (N, C, H, W), got shape {x.shape}")
    check_window(name, stride=stride, padding=padding, dilation=dilation)
    window = Window(kernel, stride, padding, dilation)
    if min(kernel) < 1 or any(
        2 * p > d * (k - 1) + 1 for p, k, d in zip(padding, kernel, dilation, strict=True)
    ):
        raise ValueError(
            f"{name}: padding must be at most half of the kernel, got padding={padding}, kernel={kernel}"
        )
    out_size = window.out_size(x.shape[2], x.shape[3])
    if ceil_mode:
        grown = []
        for n, k, s, p, d in zip(x.shape[2:], *window, strict=True):
            o = -(-(n + 2 * p - d * (k - 1) - 1) // s) + 1
            grown.append(o - 1 if (o - 1) * s >= n + p else o)  # the last window must begin inside
        out_size = (grown[0], grown[1])
    if min(out_size) < 1:
        raise ValueError(
            f"{name}: windows of {kernel} pixels do not fit into images of {tuple(x.shape[2:])} "
            f"with padding {padding}"
        )
    return window, out_size


def _divisors(
    window: Window, size: Any, out_size: Pair, include_pad: bool, override: int | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return divisors by output row and by output column; a window is divided by the product of its two."""
    if override is not None:
        return (float(override),) * out_size[0], (1.0,) * out_size[1]
    counts = []
    for n, o, k, s, p in zip(size, out_size, window.kernel, window.stride, window.padding, strict=True):
        starts = [i * s - p for i in range(o)]
        if include_pad:
            counts.append(tuple(float(min(a + k, n + p) - a) for a in starts))
        else:
            counts.append(tuple(float(max(min(a + k, n) - max(a, 0), 1)) for a in starts))
    return counts[0], counts[1]


def _as_image(divisor: Any, like: Array) -> Array:
    rows, cols = (get_array_module(like).asarray(d, like.dtype) for d in divisor)
    return rows[:, None] * cols
