"""Convolution, with PyTorch's names and defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disttrain import engine
from disttrain.kernels.conv import Window
from disttrain.nn.functional.checks import AXES, batch, each
from disttrain.nn.functional.padding import pad
from disttrain.ops import conv
from disttrain.precision import autocasts
from disttrain.tensors import Tensor

Sizes = int | Sequence[int]


@autocasts
def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation of lines ``(N, C, L)`` or ``(C, L)`` with filters; otherwise as :func:`conv2d`."""
    return _conv("conv1d", 1, input, weight, bias, stride, padding, dilation, groups)


@autocasts
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
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
        RuntimeError: shapes, options or dtypes that do not fit together.
        TypeError: an argument is no Tensor, or no integer.
    """
    return _conv("conv2d", 2, input, weight, bias, stride, padding, dilation, groups)


@autocasts
def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """Cross-correlation of volumes ``(N, C, D, H, W)`` or ``(C, D, H, W)``; otherwise as :func:`conv2d`."""
    return _conv("conv3d", 3, input, weight, bias, stride, padding, dilation, groups)


@autocasts
def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Tensor:
    """Transposed convolution of lines ``(N, C, L)`` or ``(C, L)``; otherwise as :func:`conv_transpose2d`."""
    return _transposed(
        "conv_transpose1d", 1, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


@autocasts
def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Tensor:
    """The transpose of the linear map that :func:`conv2d` is, also called fractionally strided convolution.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``.
        weight: ``(C, out_channels // groups, KH, KW)``.
        bias: ``(out_channels,)`` or ``None``.
        stride: step between windows in the output.
        padding: rows and columns to leave out at each side of the output.
        output_padding: rows and columns to add at the end of the output; below ``stride`` or ``dilation``.
        groups: channels are split into so many groups that do not see each other.
        dilation: step between the pixels of a window.

    Returns:
        ``(N, out_channels, OH, OW)`` with ``OH = (H - 1) * stride - 2 * padding + dilation * (KH - 1) +
        output_padding + 1``, in channels-last memory; without ``N`` if the input has none.

    Raises:
        RuntimeError: shapes, options or dtypes that do not fit together.
        TypeError: an argument is no Tensor, or no integer.
    """
    return _transposed(
        "conv_transpose2d", 2, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


@autocasts
def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Tensor:
    """Transposed convolution of volumes ``(N, C, D, H, W)``; otherwise as :func:`conv_transpose2d`."""
    return _transposed(
        "conv_transpose3d", 3, input, weight, bias, stride, padding, output_padding, groups, dilation
    )


def _check(name: str, n: int, input: Any, weight: Any, bias: Any, groups: Any) -> None:
    for what, x in (("input", input), ("weight", weight), ("bias", bias)):
        if x is None and what == "bias":
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}() needs a Tensor as {what}, got {type(x).__name__}")
        if x._array.dtype != input._array.dtype:
            raise RuntimeError(
                f"{name}: expected one dtype, got input {input.dtype} and {what} {x.dtype}; convert with .to()"
            )
    if input._array.dtype.kind not in "fV" and input._array.dtype.name != "int64":
        raise NotImplementedError(
            f"{name}() needs floating point tensors, got {input.dtype}; convert with .float()"
        )
    if type(groups) is not int:
        raise TypeError(f"{name}: groups must be an integer, got {groups!r}")
    if weight._array.ndim != n + 2:
        raise RuntimeError(
            f"{name}: weight must have {n + 2} dimensions (channels, channels // groups, {_kernel(n)}), "
            f"got shape {tuple(weight.shape)}"
        )


def _kernel(n: int) -> str:
    return ", ".join(f"K{axis}" for axis in AXES[n - 1].split(", "))


def _conv(
    name: str,
    n: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
) -> Tensor:
    _check(name, n, input, weight, bias, groups)
    steps, spread = each(name, "stride", stride, n), each(name, "dilation", dilation, n)
    if isinstance(padding, str):
        input, edges = _named_padding(name, input, padding, weight._array.shape[2:], steps, spread)
    else:
        edges = each(name, "padding", padding, n)
    conv.check_window(name, stride=steps, padding=edges, dilation=spread)
    input, batched = batch(name, input, n, str(weight._array.shape[1] * groups))
    window = Window(tuple(weight._array.shape[2:]), steps, edges, spread)
    if n == 1:
        input, weight, window = input.unsqueeze(2), weight.unsqueeze(2), _one_row(window)
    out: Tensor = engine.apply(conv.convolution, input, weight, bias, window=window, groups=groups)
    if n == 1:
        out = out.squeeze(2)
    return out if batched else out.squeeze(0)


def _one_row(window: Window) -> Window:
    (kernel,), (stride,), (padding,), (dilation,) = window
    return Window((1, kernel), (1, stride), (0, padding), (1, dilation))


def _named_padding(
    name: str,
    input: Tensor,
    padding: str,
    kernel: Sequence[int],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[Tensor, tuple[int, ...]]:
    if padding == "valid":
        return input, (0,) * len(stride)
    if padding != "same":
        raise RuntimeError(f'{name}: padding must be "same", "valid" or a number, got {padding!r}')
    if any(s != 1 for s in stride):
        raise RuntimeError(f'{name}: padding="same" needs stride 1, got stride={stride}')
    totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if any(t % 2 for t in totals):  # one more at the end
        input = pad(input, [w for t in reversed(totals) for w in (0, t % 2)])
    return input, tuple(t // 2 for t in totals)


def _transposed(
    name: str,
    n: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    output_padding: Sizes,
    groups: int,
    dilation: Sizes,
) -> Tensor:
    _check(name, n, input, weight, bias, groups)
    steps, spread = each(name, "stride", stride, n), each(name, "dilation", dilation, n)
    edges, more = each(name, "padding", padding, n), each(name, "output_padding", output_padding, n)
    conv.check_window(name, stride=steps, padding=edges, dilation=spread)
    if any(not 0 <= m < max(s, d) for m, s, d in zip(more, steps, spread, strict=True)):
        raise RuntimeError(
            f"{name}: output_padding must be at least 0 and smaller than stride or dilation, got "
            f"output_padding={more}, stride={steps}, dilation={spread}"
        )
    input, batched = batch(name, input, n, str(weight._array.shape[0]))
    window = Window(tuple(weight._array.shape[2:]), steps, edges, spread)
    size = tuple(
        (m - 1) * s - 2 * p + d * (k - 1) + o + 1
        for m, k, s, p, d, o in zip(input._array.shape[2:], *window, more, strict=True)
    )
    if n == 1:
        input, weight, window, size = input.unsqueeze(2), weight.unsqueeze(2), _one_row(window), (1, *size)
    out: Tensor = engine.apply(
        conv.conv_transpose, input, weight, bias, window=window, groups=groups, size=size
    )
    if n == 1:
        out = out.squeeze(2)
    return out if batched else out.squeeze(0)
