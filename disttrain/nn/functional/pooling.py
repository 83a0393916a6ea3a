"""Pooling, with PyTorch's names and defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disttrain import engine
from disttrain.functions.activation import check_float
from disttrain.nn.functional.checks import Pair, images, pair
from disttrain.ops import pool
from disttrain.tensors import Tensor


def max_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
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
        ValueError: windows that do not fit.
    """
    check_float("max_pool2d", input)
    input, batched = images("max_pool2d", input)
    size = pair("max_pool2d", "kernel_size", kernel_size)
    out, where = engine.apply(
        pool.max_pool2d,
        input,
        kernel=size,
        stride=size if stride is None else pair("max_pool2d", "stride", stride),
        padding=pair("max_pool2d", "padding", padding),
        dilation=pair("max_pool2d", "dilation", dilation),
        ceil_mode=ceil_mode,
    )
    if not batched:
        out, where = out.squeeze(0), where.squeeze(0)
    return (out, where.long()) if return_indices else out


def avg_pool2d(
    input: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
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
        ValueError: windows that do not fit, or a divisor of 0.
    """
    check_float("avg_pool2d", input)
    input, batched = images("avg_pool2d", input)
    size = pair("avg_pool2d", "kernel_size", kernel_size)
    out = engine.apply(
        pool.avg_pool2d,
        input,
        kernel=size,
        stride=size if stride is None else pair("avg_pool2d", "stride", stride),
        padding=pair("avg_pool2d", "padding", padding),
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        divisor_override=divisor_override,
    )
    return out if batched else out.squeeze(0)  # type: ignore[no-any-return]


def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    """Means over an even division of the images into ``output_size`` (``None``: as many as there are pixels).

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
        output_size: ``(OH, OW)``, or one number for both.

    Raises:
        ValueError: a size below 1, or images without pixels.
    """
    check_float("adaptive_avg_pool2d", input)
    input, batched = images("adaptive_avg_pool2d", input)
    wanted = (output_size,) * 2 if isinstance(output_size, int) else tuple(output_size)
    if len(wanted) != 2:
        raise ValueError(f"adaptive_avg_pool2d: output_size must be one or two numbers, got {output_size!r}")
    sizes = tuple(have if want is None else want for want, have in zip(wanted, input.shape[2:], strict=True))
    out = engine.apply(pool.adaptive_avg_pool2d, input, output_size=sizes)
    return out if batched else out.squeeze(0)  # type: ignore[no-any-return]
