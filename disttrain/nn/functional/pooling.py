"""Pooling, with PyTorch's names and defaults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from disttrain import engine
from disttrain.functions.random import rand
from disttrain.kernels.conv import Window
from disttrain.modes import replayed
from disttrain.nn.functional.checks import batch, check_kind, each
from disttrain.ops import pool
from disttrain.precision import autocasts, autocasts_as
from disttrain.tensors import Tensor

Sizes = int | Sequence[int]


def max_pool1d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of each window of lines ``(N, C, L)`` or ``(C, L)``; otherwise as :func:`max_pool2d`."""
    return _max_pool(
        "max_pool1d", 1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    )


def max_pool2d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of each window.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
        kernel_size: size of a window.
        stride: step between windows; by default ``kernel_size``.
        padding: rows and columns of ``-inf`` on each side.
        dilation: step between the pixels of a window.
        ceil_mode: keep windows that stick out at the end.
        return_indices: also return where each element is, ``row * W + column`` as int64.

    Raises:
        RuntimeError: windows that do not fit.
        TypeError: ``input`` is no Tensor, or a size no integer.
    """
    return _max_pool(
        "max_pool2d", 2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    )


@autocasts
def max_pool3d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The largest element of each window of volumes ``(N, C, D, H, W)``; otherwise as :func:`max_pool2d`."""
    return _max_pool(
        "max_pool3d", 3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices
    )


def _max_pool(
    name: str,
    n: int,
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Sizes,
    dilation: Sizes,
    ceil_mode: bool,
    return_indices: bool,
) -> Any:
    check_kind(name, input, "fViu")
    images, batched = batch(name, input, n)
    window = _window(name, n, kernel_size, stride, padding, dilation)
    out, where = engine.apply(pool.max_pool, images, window=window, ceil_mode=ceil_mode)
    return _with_places(out, where, batched, return_indices)


def _window(
    name: str, n: int, kernel_size: Sizes, stride: Sizes | None, padding: Sizes, dilation: Sizes = 1
) -> Window:
    kernel = each(name, "kernel_size", kernel_size, n)
    default = stride is None or (not isinstance(stride, int) and len(stride) == 0)
    steps = kernel if default else each(name, "stride", stride, n)
    return Window(kernel, steps, each(name, "padding", padding, n), each(name, "dilation", dilation, n))


def _with_places(out: Tensor, where: Tensor, batched: bool, return_indices: bool) -> Any:
    if not batched:
        out, where = out.squeeze(0), where.squeeze(0)
    return (out, where.long()) if return_indices else out


def avg_pool1d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of lines ``(N, C, L)`` or ``(C, L)``; otherwise as :func:`avg_pool2d`."""
    return _avg_pool("avg_pool1d", 1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def avg_pool2d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
        kernel_size: size of a window.
        stride: step between windows; by default ``kernel_size``.
        padding: rows and columns of zeros on each side.
        ceil_mode: keep windows that stick out at the end.
        count_include_pad: padding counts in the divisor.
        divisor_override: divide by this instead of the number of pixels.

    Raises:
        RuntimeError: windows that do not fit, or a divisor of 0.
        TypeError: ``input`` is no Tensor, or a size no integer.
    """
    return _avg_pool(
        "avg_pool2d",
        2,
        input,
        kernel_size,
        stride,
        padding,
        ceil_mode,
        count_include_pad,
        divisor_override,
    )


@autocasts
def avg_pool3d(
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window of volumes ``(N, C, D, H, W)``; otherwise as :func:`avg_pool2d`."""
    return _avg_pool(
        "avg_pool3d",
        3,
        input,
        kernel_size,
        stride,
        padding,
        ceil_mode,
        count_include_pad,
        divisor_override,
    )


def _avg_pool(
    name: str,
    n: int,
    input: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Sizes,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    check_kind(name, input, "fV", "int64")
    images, batched = batch(name, input, n)
    window = _window(name, n, kernel_size, stride, padding)
    if n == 3 and any(size < k for size, k in zip(images._array.shape[2:], window[0], strict=True)):
        raise RuntimeError(  # of volumes only, and whatever the padding, as in PyTorch
            f"{name}: volumes of {images._array.shape[2:]} are smaller than the windows of {window[0]}"
        )
    out: Tensor = engine.apply(
        pool.avg_pool,
        images,
        window=window,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        divisor_override=divisor_override,
    )
    return out if batched else out.squeeze(0)


def lp_pool1d(
    input: Tensor,
    norm_type: float,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The ``norm_type``-norm of each window of lines ``(N, C, L)`` or ``(C, L)``; as :func:`lp_pool2d`."""
    return _lp_pool(1, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool2d(
    input: Tensor,
    norm_type: float,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The sum of each window's elements to the power ``norm_type``, to the power of one over it.

    For ``inf`` (``-inf``) that is the largest (smallest) absolute value.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
        norm_type: the power.
        kernel_size: size of a window.
        stride: step between windows; by default ``kernel_size``.
        ceil_mode: keep windows that stick out at the end.

    Raises:
        RuntimeError: windows that do not fit.
    """
    return _lp_pool(2, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool3d(
    input: Tensor,
    norm_type: float,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The ``norm_type``-norm of each window of volumes ``(N, C, D, H, W)``; as :func:`lp_pool2d`."""
    return _lp_pool(3, input, norm_type, kernel_size, stride, ceil_mode)


def _lp_pool(
    n: int, input: Tensor, norm_type: float, kernel_size: Sizes, stride: Sizes | None, ceil_mode: bool
) -> Tensor:
    name = f"lp_pool{n}d"
    check_kind(name, input, "fV")
    if math.isinf(norm_type):  # the largest absolute value, or the smallest
        sign = 1 if norm_type > 0 else -1
        extreme: Tensor = _max_pool(name, n, sign * input.abs(), kernel_size, stride, 0, 1, ceil_mode, False)
        return sign * extreme
    mean = _avg_pool(name, n, input.pow(norm_type), kernel_size, stride, 0, ceil_mode, True, None)
    pixels = math.prod(each(name, "kernel_size", kernel_size, n))
    return (mean.sign() * mean.abs().relu() * pixels).pow(1.0 / norm_type)


def adaptive_avg_pool1d(input: Tensor, output_size: Any) -> Tensor:
    """Means over an even division of lines ``(N, C, L)`` or ``(C, L)``; otherwise as :func:`adaptive_avg_pool2d`."""
    return _adaptive_avg_pool("adaptive_avg_pool1d", 1, input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: Any) -> Tensor:
    """Means over an even division of the images into ``output_size`` (``None``: as many as there are pixels).

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
        output_size: ``(OH, OW)``, or one number for both.

    Raises:
        RuntimeError: a negative size, or images without pixels.
        TypeError: ``input`` is no Tensor, or a size no integer.
    """
    return _adaptive_avg_pool("adaptive_avg_pool2d", 2, input, output_size)


@autocasts
def adaptive_avg_pool3d(input: Tensor, output_size: Any) -> Tensor:
    """Means over an even division of volumes ``(N, C, D, H, W)``; otherwise as :func:`adaptive_avg_pool2d`."""
    return _adaptive_avg_pool("adaptive_avg_pool3d", 3, input, output_size)


def _adaptive_avg_pool(name: str, n: int, input: Tensor, output_size: Any) -> Tensor:
    check_kind(name, input, "fV")
    images, batched = batch(name, input, n)
    out: Tensor = engine.apply(
        pool.adaptive_avg_pool,
        images,
        output_size=_adaptive_size(name, n, images, output_size, n == 3 and batched),
    )
    return out if batched else out.squeeze(0)


def _adaptive_size(name: str, n: int, images: Tensor, output_size: Any, channels: bool) -> tuple[int, ...]:
    have = images._array.shape
    if 0 in have[2:] or (channels and not have[1]):
        raise RuntimeError(
            f"{name}: expected images of at least one {'channel and ' if channels else ''}pixel, got shape {have}"
        )
    if isinstance(output_size, tuple | list):
        if len(output_size) != n:
            raise RuntimeError(f"{name}: output_size must be one integer or {n} of them, got {output_size!r}")
        output_size = [h if want is None else want for want, h in zip(output_size, have[2:], strict=True)]
    size = each(name, "output_size", output_size, n)
    if min(size) < 0:
        raise RuntimeError(f"{name}: output_size must not be negative, got {output_size!r}")
    return size


def adaptive_max_pool1d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Maxima over an even division of lines ``(N, C, L)`` or ``(C, L)``; otherwise as :func:`adaptive_max_pool2d`."""
    return _adaptive_max_pool("adaptive_max_pool1d", 1, input, output_size, return_indices)


def adaptive_max_pool2d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Maxima over an even division of the images into ``output_size`` (``None``: as many as there are pixels).

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
        output_size: ``(OH, OW)``, or one number for both.
        return_indices: also return where each element is, ``row * W + column`` as int64.

    Raises:
        RuntimeError: a negative size, or images without pixels.
        TypeError: ``input`` is no Tensor, or a size no integer.
    """
    return _adaptive_max_pool("adaptive_max_pool2d", 2, input, output_size, return_indices)


@autocasts
def adaptive_max_pool3d(input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
    """Maxima over an even division of volumes ``(N, C, D, H, W)``; otherwise as :func:`adaptive_max_pool2d`."""
    return _adaptive_max_pool("adaptive_max_pool3d", 3, input, output_size, return_indices)


def _adaptive_max_pool(name: str, n: int, input: Tensor, output_size: Any, return_indices: bool) -> Any:
    check_kind(name, input, "fV")
    images, batched = batch(name, input, n)
    out, where = engine.apply(
        pool.adaptive_max_pool, images, output_size=_adaptive_size(name, n, images, output_size, batched)
    )
    return _with_places(out, where, batched, return_indices)


@autocasts_as("max_unpool2d")
def max_unpool1d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Lines with the elements of ``input`` where :func:`max_pool1d` found them; as :func:`max_unpool2d`."""
    return _max_unpool("max_unpool1d", 1, input, indices, kernel_size, stride, padding, output_size)


@autocasts
def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Images with the elements of ``input`` where :func:`max_pool2d` found them, and 0 elsewhere.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
        indices: where its elements belong, as ``max_pool2d(..., return_indices=True)`` says.
        kernel_size: size of a window of the pooling.
        stride: step between its windows; by default ``kernel_size``.
        padding: its rows and columns on each side.
        output_size: size of the images; by default the smallest that pools to ``input``.

    Raises:
        ValueError: an ``output_size`` that cannot pool to ``input``.
        RuntimeError: indices of another shape or type, or outside of the images.
    """
    return _max_unpool("max_unpool2d", 2, input, indices, kernel_size, stride, padding, output_size)


@autocasts
def max_unpool3d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Volumes with the elements of ``input`` where :func:`max_pool3d` found them; as :func:`max_unpool2d`."""
    return _max_unpool("max_unpool3d", 3, input, indices, kernel_size, stride, padding, output_size)


def _max_unpool(
    name: str,
    n: int,
    input: Tensor,
    indices: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Sizes,
    output_size: Sequence[int] | None,
) -> Tensor:
    check_kind(name, input, "fViu")
    window = _window(name, n, kernel_size, stride, padding)
    if min(window.stride) < 1:
        raise RuntimeError(f"{name}: stride must be at least 1, got {window.stride}")
    size = _unpooled_size(name, n, input, window, output_size)
    images, batched = batch(name, input, n)
    if not isinstance(indices, Tensor) or indices._array.dtype.name != "int64":
        found = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise RuntimeError(f"{name}: indices must be an int64 Tensor, got {found}")
    if indices.shape != input.shape or 0 in images._array.shape[1:]:
        raise RuntimeError(
            f"{name}: expected indices of the shape of input and at least one pixel, got input "
            f"{tuple(input.shape)} and indices {tuple(indices.shape)}"
        )
    where = indices._array if batched else indices._array[None]
    if where.size and not 0 <= int(where.min()) <= int(where.max()) < math.prod(size):
        raise RuntimeError(
            f"{name}: indices must be in [0, {math.prod(size)}) for output size {size}, got one of "
            f"{int(where.min())} and one of {int(where.max())}"
        )
    out: Tensor = engine.apply(pool.place_pixels, images, where, size=size)
    return out if batched else out.squeeze(0)


def _unpooled_size(
    name: str, n: int, input: Tensor, window: Window, output_size: Sequence[int] | None
) -> tuple[int, ...]:
    default = tuple(
        (m - 1) * s + k - 2 * p for m, k, s, p in zip(input._array.shape[-n:], *window[:3], strict=False)
    )
    if output_size is None:
        return default
    size = tuple(output_size)
    size = size[2:] if len(size) == n + 2 else size
    if len(size) != n:
        raise ValueError(f"{name}: output_size must have {n} or {n + 2} sizes, got {tuple(output_size)}")
    for want, d, s in zip(size, default, window.stride, strict=True):
        if not d - s < want < d + s:
            raise ValueError(
                f"{name}: output_size {size} cannot be pooled to {tuple(input.shape[-n:])}; each size must be "
                f"nearer than stride {window.stride} to {default}"
            )
    return size


@autocasts
def fractional_max_pool2d(
    input: Tensor,
    kernel_size: Sizes,
    output_size: Any = None,
    output_ratio: Any = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Any:
    """The largest element of windows at pseudo-random places (Graham 2015).

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
        kernel_size: size of a window.
        output_size: how many windows there are, along each axis; or
        output_ratio: how many per pixel, in (0, 1).
        return_indices: also return where each element is, ``row * W + column`` as int64.
        _random_samples: numbers in [0, 1) that place the windows, ``(N, C, 2)``; drawn by default.

    Raises:
        ValueError: neither ``output_size`` nor ``output_ratio``, or a ratio outside of (0, 1).
        RuntimeError: windows that do not fit.
    """
    return _fractional(
        "fractional_max_pool2d",
        2,
        input,
        kernel_size,
        output_size,
        output_ratio,
        return_indices,
        _random_samples,
    )


@autocasts
def fractional_max_pool3d(
    input: Tensor,
    kernel_size: Sizes,
    output_size: Any = None,
    output_ratio: Any = None,
    return_indices: bool = False,
    _random_samples: Tensor | None = None,
) -> Any:
    """The same of volumes ``(N, C, D, H, W)``, with samples ``(N, C, 3)``; see :func:`fractional_max_pool2d`."""
    return _fractional(
        "fractional_max_pool3d",
        3,
        input,
        kernel_size,
        output_size,
        output_ratio,
        return_indices,
        _random_samples,
    )


def _fractional(
    name: str,
    n: int,
    input: Tensor,
    kernel_size: Sizes,
    output_size: Any,
    output_ratio: Any,
    return_indices: bool,
    samples: Tensor | None,
) -> Any:
    check_kind(name, input, "fV")
    if output_size is None and output_ratio is None:
        raise ValueError(f"{name}: give output_size or output_ratio")
    images, batched = batch(name, input, n)
    have = images._array.shape
    kernel = each(name, "kernel_size", kernel_size, n)
    if output_size is None:
        ratios = (output_ratio,) * n if isinstance(output_ratio, float | int) else tuple(output_ratio)
        if len(ratios) != n or not all(0 < r < 1 for r in ratios):
            raise ValueError(f"{name}: output_ratio must be numbers in (0, 1), got {output_ratio!r}")
        size = tuple(int(m * r) for m, r in zip(have[2:], ratios, strict=True))
    else:
        size = each(name, "output_size", output_size, n)
    if 0 in have[1:] or any(
        k < 1 or o < 1 or o + k - 1 > m - (n == 3) for k, o, m in zip(kernel, size, have[2:], strict=True)
    ):
        raise RuntimeError(
            f"{name}: {size} windows of {kernel} pixels do not fit into images of shape {tuple(have)}"
        )
    if samples is None:
        samples = rand(have[0], have[1], n, dtype=input.dtype)
    drawn = samples._array if batched else samples._array[:1]  # PyTorch takes the first for one image
    if drawn.shape != (have[0], have[1], n) or drawn.dtype != images._array.dtype:
        raise RuntimeError(
            f"{name}: _random_samples must be ({have[0]}, {have[1]}, {n}) of {input.dtype}, got "
            f"{tuple(samples.shape)} of {samples.dtype}"
        )
    where = _fractional_places(images._array, kernel, size, drawn)
    out = engine.apply(pool.gather_pixels, images, where)
    return _with_places(out, Tensor._of(where), batched, return_indices)


@replayed
def _fractional_places(x: Any, kernel: tuple[int, ...], size: tuple[int, ...], samples: Any) -> Any:
    """Return where the largest of each window is, (N, C, *size)."""
    n, (N, C, *have) = len(size), x.shape
    places = np.zeros((N, C, *[1] * 2 * n), np.int64)
    for axis, (m, k, o) in enumerate(zip(have, kernel, size, strict=True)):
        # PyTorch draws the width first: samples are from the last axis to the first, but for volumes
        u = samples[..., n - 1 - axis if n == 2 else axis].astype(np.float64)[..., None]
        alpha = (m - k) / (o - 1) if o > 1 else 0.0
        starts = ((np.arange(o) + u) * alpha).astype(np.int64) - (u * alpha).astype(np.int64)
        starts[..., -1] = m - k
        seen = starts[..., None] + np.arange(k)
        shape = [N, C, *[1] * 2 * n]
        shape[2 + axis], shape[2 + n + axis] = o, k
        places = places * m + seen.reshape(shape)
    places = places.reshape(N, C, math.prod(size), math.prod(kernel))
    values = np.take_along_axis(
        x.reshape(N, C, math.prod(have)), places.reshape(N, C, math.prod(places.shape[2:])), 2
    ).reshape(places.shape)
    best = values.argmax(-1)
    return np.take_along_axis(places, best[..., None], -1).reshape(N, C, *size)
