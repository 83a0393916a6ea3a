"""Convolution, with PyTorch's names and defaults."""

from __future__ import annotations

from collections.abc import Sequence

from disttrain import engine
from disttrain.nn.functional.checks import Pair, check_dtypes, images, pair
from disttrain.nn.functional.padding import pad
from disttrain.ops import conv
from disttrain.tensors import Tensor


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation of images with filters.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
        weight: ``(out_channels, C // groups, KH, KW)``.
        bias: ``(out_channels,)`` or ``None``.
        stride: step between windows.
        padding: rows and columns of zeros on each side; ``"valid"`` for none, ``"same"`` for as many as keep
            the size.
        dilation: step between the pixels of a window.
        groups: channels are split into so many groups that do not see each other.

    Returns:
        ``(N, out_channels, OH, OW)``, in channels-last memory; without ``N`` if the input has none.

    Raises:
        ValueError: shapes or options that do not fit together.
        TypeError: the dtypes differ.
    """
    check_dtypes("conv2d", input, weight, bias)
    if weight._array.ndim != 4:
        raise ValueError(f"conv2d: weight must be (O, C // groups, KH, KW), got shape {weight._array.shape}")
    steps, spread = pair("conv2d", "stride", stride), pair("conv2d", "dilation", dilation)
    if isinstance(padding, str):
        input, edges = _named_padding(input, padding, weight._array.shape[2:], steps, spread)
    else:
        edges = pair("conv2d", "padding", padding)
    channels = weight._array.shape[1] * groups
    input, batched = images("conv2d", input, str(channels))
    out = engine.apply(
        conv.conv2d, input, weight, bias, stride=steps, padding=edges, dilation=spread, groups=groups
    )
    return out if batched else out.squeeze(0)  # type: ignore[no-any-return]


def _named_padding(
    input: Tensor, padding: str, kernel: Sequence[int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    if padding == "valid":
        return input, (0, 0)
    if padding != "same":
        raise ValueError(f'conv2d: padding must be "same", "valid" or a number, got {padding!r}')
    if stride != (1, 1):
        raise ValueError(f'conv2d: padding="same" needs stride 1, got stride={stride}')
    rows, cols = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    if rows % 2 or cols % 2:  # one more at the end
        input = pad(input, (0, cols % 2, 0, rows % 2))
    return input, (rows // 2, cols // 2)
