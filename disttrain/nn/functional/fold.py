"""Windows of images as columns, and back, with PyTorch's names and defaults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from disttrain import engine
from disttrain.kernels.conv import Window
from disttrain.nn.functional.checks import batch, check_kind, each
from disttrain.ops import fold as ops
from disttrain.ops.conv import check_window
from disttrain.tensors import Tensor

Sizes = int | Sequence[int]


def unfold(
    input: Tensor, kernel_size: Sizes, dilation: Sizes = 1, padding: Sizes = 0, stride: Sizes = 1
) -> Tensor:
    """What each window sees, as columns.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
        kernel_size: size of a window.
        dilation: step between the pixels of a window.
        padding: rows and columns of zeros on each side.
        stride: step between windows.

    Returns:
        ``(N, C * KH * KW, windows)``; without ``N`` if the input has none.

    Raises:
        RuntimeError: windows that do not fit.
        TypeError: ``input`` is no Tensor, or a size no integer.
    """
    check_kind("unfold", input, "fV", "bool")
    images, batched = batch("unfold", input, 2)
    if 0 in images._array.shape[1:]:
        raise RuntimeError(f"unfold: expected images of at least one pixel, got shape {tuple(input.shape)}")
    window = _window("unfold", kernel_size, stride, padding, dilation, images._array.shape[2:])
    out: Tensor = engine.apply(ops.unfold, images, window=window)
    return out if batched else out.squeeze(0)


def fold(
    input: Tensor,
    output_size: Sizes,
    kernel_size: Sizes,
    dilation: Sizes = 1,
    padding: Sizes = 0,
    stride: Sizes = 1,
) -> Tensor:
    """Images to which columns are added where :func:`unfold` takes them.

    Args:
        input: ``(N, C * KH * KW, windows)``, or without ``N``.
        output_size: size of the images.
        kernel_size: size of a window.
        dilation: step between the pixels of a window.
        padding: rows and columns of the windows that lie outside, on each side.
        stride: step between windows.

    Returns:
        ``(N, C, *output_size)``; without ``N`` if the input has none.

    Raises:
        RuntimeError: windows that do not fit, or another number of columns or rows than they have.
        TypeError: ``input`` is no Tensor, or a size no integer.
    """
    check_kind("fold", input, "fV", "bool")
    size = each("fold", "output_size", output_size, 2)
    columns, batched = batch("fold", input, 1, "C * KH * KW")
    window = _window("fold", kernel_size, stride, padding, dilation, size)
    have, count = columns._array.shape[1:], math.prod(window.out_size(*size))
    if 0 in have or have[0] % math.prod(window.kernel) or have[1] != count:
        raise RuntimeError(
            f"fold: windows of {window.kernel} pixels in images of {size} make {count} columns of a multiple of "
            f"{math.prod(window.kernel)}, got input of shape {tuple(input.shape)}"
        )
    out: Tensor = engine.apply(ops.fold, columns, window=window, size=size)
    return out if batched else out.squeeze(0)


def _window(name: str, kernel: Any, stride: Any, padding: Any, dilation: Any, size: Any) -> Window:
    values = (("kernel_size", kernel), ("stride", stride), ("padding", padding), ("dilation", dilation))
    window = Window(*(each(name, what, value, 2) for what, value in values))
    check_window(name, stride=window.stride, padding=window.padding, dilation=window.dilation)
    if min(window.kernel) < 1 or min(window.out_size(*size)) < 1:
        raise RuntimeError(
            f"{name}: windows of {window.kernel} pixels (dilation {window.dilation}) do not fit into images of "
            f"{tuple(size)} with padding {window.padding}"
        )
    return window
