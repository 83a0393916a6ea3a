"""Pooling of lines (N, C, L), images (N, C, H, W) and volumes (N, C, D, H, W), of any memory layout."""

import functools
import math
from typing import Any

import numpy as np

from disttrain.kernels import axes, buffers, pool
from disttrain.kernels.arrays import on_gpu
from disttrain.kernels.axes import AxisMap, Maps, Spans
from disttrain.kernels.conv import Sizes, Window
from disttrain.ops.activation import for_kernel, widen
from disttrain.ops.axes import map_axes
from disttrain.ops.conv import check_window
from disttrain.ops.types import Array, Result, call, get_array_module

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]


def max_pool(x: Array, *, window: Window, ceil_mode: bool = False) -> Result:
    """The largest element of each window, and where it is, as ``torch.nn.functional.max_pool2d``.

    NaN is larger than anything; of equal ones the first counts. Padding never counts. Images come back in
    channels-last memory.

    Returns:
        Two outputs: the pooled images (N, C, OH, OW), and the places ``row * W + column``, int32 for images and
        int64 else (PyTorch: int64).

    Raises:
        RuntimeError: windows that do not fit.
    """
    size = pooled_size("max_pool", tuple(x.shape), window, ceil_mode)
    if x.ndim == 4:
        out, where = pool.max_pool2d(for_kernel(x), window, size)
    else:
        out, where = axes.max_spans(for_kernel(x), _windows(x.shape[2:], size, window))
    out = buffers.convert(out, x.dtype)
    spans = _windows(x.shape[2:], size, window) if on_gpu(x) else None
    return (out, where), (where, tuple(x.shape[2:]), spans), max_pool_vjp


def max_pool_vjp(g: Any, needs: Needs, where: Any, size: Sizes, spans: tuple[Spans, ...] | None) -> Grads:
    return (call(scatter_pixels, g[0], where, size=size, spans=spans),)


def _windows(size: Sizes, outs: Sizes, window: Window) -> tuple[Spans, ...]:
    return tuple(_taps(*step) for step in zip(size, outs, *window, strict=True))


@functools.lru_cache(maxsize=256)
def _taps(n: int, outs: int, kernel: int, stride: int, padding: int, dilation: int) -> Spans:
    starts = np.arange(outs) * stride - padding
    stops = np.minimum(starts + dilation * (kernel - 1) + 1, n)
    return Spans(np.where(starts < 0, starts % dilation, starts), stops, dilation)


def adaptive_max_pool(x: Array, *, output_size: Sizes) -> Result:
    """Maxima over an even division into ``output_size``, and where they are (int64), as :func:`max_pool`."""
    cuts = [_cuts(n, parts) for n, parts in zip(x.shape[2:], output_size, strict=True)]
    return max_spans(x, spans=tuple(Spans(starts, stops) for starts, stops in cuts))


def max_spans(x: Array, *, spans: tuple[Spans, ...]) -> Result:
    """The largest of each product of stretches of the last axes, and where they are (int64), as :func:`max_pool`."""
    out, where = axes.max_spans(for_kernel(x), spans)
    return (buffers.convert(out, x.dtype), where), (where, tuple(x.shape[2:]), spans), max_pool_vjp


def scatter_pixels(g: Array, where: Array, *, size: Sizes, spans: tuple[Spans, ...] | None = None) -> Result:
    """Images of ``size`` to which ``g`` (N, C, ...) is added at the places ``where`` of each channel.

    Places count row-major; those below 0 are left out. ``spans`` are the stretches of each axis that they come from, if
    these are known: on a GPU each pixel knows then where to look for itself.
    """
    if spans is not None and on_gpu(g):
        return pool.max_spans_input_grad(g, where, size, spans), (where,), scatter_pixels_vjp
    wide, at, flat = widen(g), where, size
    if g.ndim != 4:  # as images of one row
        wide, at, flat = _row(wide), _row(where), (1, math.prod(size))
    gx = pool.max_pool2d_input_grad(wide, at, flat)
    return buffers.convert(gx.reshape(*g.shape[:2], *size), g.dtype), (where,), scatter_pixels_vjp


def _row(x: Array) -> Array:
    return x.reshape(*x.shape[:2], 1, math.prod(x.shape[2:]))


def scatter_pixels_vjp(h: Any, needs: Needs, where: Any) -> Grads:
    return call(gather_pixels, h, where) if needs[0] else None, None


def gather_pixels(x: Array, where: Array) -> Result:
    """The pixels of ``x`` at the places ``where`` of each channel; 0 at places below 0."""
    xp = get_array_module(x)
    flat = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
    at = where.reshape(*where.shape[:2], math.prod(where.shape[2:]))
    out = xp.take_along_axis(flat, xp.maximum(at, 0).astype(np.int64), 2) * (at >= 0)
    return out.reshape(where.shape), (where, tuple(x.shape[2:])), gather_pixels_vjp


def gather_pixels_vjp(g: Any, needs: Needs, where: Any, size: Sizes) -> Grads:
    return call(scatter_pixels, g, where, size=size) if needs[0] else None, None


def place_pixels(x: Array, where: Array, *, size: Sizes) -> Result:
    """Images of ``size`` that hold ``x`` (N, C, ...) at the places ``where`` of each channel, and 0 elsewhere.

    Where several have one place, the last counts; all of them get its gradient.
    """
    xp = get_array_module(x)
    out = buffers.zeros((*x.shape[:2], math.prod(size)), x.dtype, x)
    flat = (*x.shape[:2], math.prod(x.shape[2:]))
    xp.put_along_axis(out, where.reshape(flat), x.reshape(flat), 2)
    return out.reshape(*x.shape[:2], *size), (where,), scatter_pixels_vjp


def avg_pool(
    x: Array,
    *,
    window: Window,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Result:
    """The mean of each window, as ``torch.nn.functional.avg_pool2d``; of integers without what is after the point.

    Args:
        x: lines, images or volumes.
        window: where the windows stand; they have no dilation.
        ceil_mode: keep windows that stick out at the end.
        count_include_pad: padding, which is 0, counts in the divisor.
        divisor_override: divide by this instead of the number of pixels.

    Raises:
        RuntimeError: windows that do not fit, or a divisor of 0.
    """
    if divisor_override == 0:
        raise RuntimeError("avg_pool: divisor_override must not be 0")
    size = pooled_size("avg_pool", tuple(x.shape), window, ceil_mode)
    steps = list(zip(x.shape[2:], size, *window[:3], strict=True))
    whole = x.dtype.kind in "iu"
    if divisor_override is not None or whole:
        maps = [_mean_map(*step, True, False) for step in steps]
    else:
        maps = [_mean_map(*step, count_include_pad, True) for step in steps]
    if divisor_override is not None and not whole:
        first = maps[0]
        maps[0] = AxisMap(first.starts, first.index, first.weight / divisor_override, first.size)
    result = map_axes(x, maps=tuple(enumerate(maps, 2)))
    if not whole:
        return result
    total, xp = result[0], get_array_module(x)
    divisor: Any = divisor_override
    if divisor is None:
        counts = [_counts(*step, count_include_pad) for step in steps]
        divisor = functools.reduce(lambda a, b: a[..., None] * b, counts)
    out = xp.sign(total) * (abs(total) // abs(xp.asarray(divisor))) * xp.sign(divisor)
    return out.astype(x.dtype), *result[1:]


@functools.lru_cache(maxsize=256)
def _mean_map(
    n: int, outs: int, kernel: int, stride: int, padding: int, include_pad: bool, divide: bool
) -> AxisMap:
    starts = np.arange(outs) * stride - padding
    weight = 1 / _counts(n, outs, kernel, stride, padding, include_pad) if divide else np.ones(outs)
    inside = np.clip(starts, 0, n), np.clip(starts + kernel, 0, n)
    return axes.spans(*inside, weight, n)


def _counts(n: int, outs: int, kernel: int, stride: int, padding: int, include_pad: bool) -> Array:
    """Return by how many pixels each window is divided."""
    starts = np.arange(outs) * stride - padding
    if include_pad:
        return np.minimum(starts + kernel, n + padding) - starts
    return np.maximum(np.minimum(starts + kernel, n) - np.maximum(starts, 0), 1)


def adaptive_avg_pool(x: Array, *, output_size: Sizes) -> Result:
    """Means over an even division into ``output_size``, as ``torch.nn.functional.adaptive_avg_pool2d``."""
    maps: Maps = tuple((axis, _even_means(x.shape[axis], parts)) for axis, parts in enumerate(output_size, 2))
    return map_axes(x, maps=maps)


@functools.lru_cache(maxsize=256)
def _even_means(size: int, parts: int) -> AxisMap:
    starts, stops = _cuts(size, parts)
    return axes.spans(starts, stops, 1 / (stops - starts), size)


@functools.lru_cache(maxsize=256)
def _cuts(size: int, parts: int) -> tuple[Array, Array]:
    """Return where each of ``parts`` even parts starts and stops; they overlap where ``size`` is no multiple."""
    i = np.arange(parts)
    return i * size // max(parts, 1), -(-(i + 1) * size // max(parts, 1))


def pooled_size(name: str, shape: Sizes, window: Window, ceil_mode: bool) -> Sizes:
    """Return how many windows there are along each axis.

    Raises:
        RuntimeError: windows that do not fit into images of ``shape`` (N, C, ...).
    """
    kernel, stride, padding, dilation = window
    if 0 in shape[1:]:
        raise RuntimeError(f"{name}: expected images of at least one channel and pixel, got shape {shape}")
    check_window(name, stride=stride, padding=padding, dilation=dilation)
    if min(kernel) < 1 or any(
        2 * p > d * (k - 1) + 1 for p, k, d in zip(padding, kernel, dilation, strict=True)
    ):
        raise RuntimeError(
            f"{name}: padding must be at most half of the kernel, got padding={padding}, kernel={kernel}"
        )
    size = window.out_size(*shape[2:])
    if ceil_mode:
        grown = []
        for n, k, s, p, d in zip(shape[2:], *window, strict=True):
            o = -(-(n + 2 * p - d * (k - 1) - 1) // s) + 1
            grown.append(o - 1 if (o - 1) * s >= n + p else o)  # the last window must begin inside
        size = tuple(grown)
    if min(size) < 1:
        raise RuntimeError(
            f"{name}: windows of {kernel} pixels do not fit into images of {shape[2:]} with padding {padding}"
        )
    return size
