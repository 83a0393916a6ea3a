"""Convolutions."""

from __future__ import annotations

import math
from typing import Any

from disttrain.functions.creation import empty
from disttrain.nn import functional as F
from disttrain.nn import init
from disttrain.nn.functional.checks import Pair, pair
from disttrain.nn.module import Module
from disttrain.nn.parameter import Parameter
from disttrain.tensors import Tensor

_MODES = ("zeros", "reflect", "replicate", "circular")


class Conv2d(Module):
    """Cross-correlation of images ``(N, C, H, W)`` with learnt filters.

    Args:
        in_channels: C.
        out_channels: number of filters.
        kernel_size: size of a filter.
        stride: step between windows.
        padding: rows and columns of zeros on each side; ``"valid"`` for none, ``"same"`` for as many as keep
            the size.
        dilation: step between the pixels of a window.
        groups: channels are split into so many groups that do not see each other.
        bias: learn a bias.
        padding_mode: only ``"zeros"`` so far.
        device: where the parameters are.
        dtype: of the parameters, by default the default dtype.

    Raises:
        ValueError: channels and groups that do not fit, or an unknown padding.
        NotImplementedError: another ``padding_mode`` that PyTorch has.
    """

    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if groups <= 0:
            raise ValueError(f"groups must be a positive integer, got {groups}")
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"in_channels and out_channels must be divisible by groups={groups}, got {in_channels} and "
                f"{out_channels}"
            )
        if padding_mode not in _MODES:
            raise ValueError(f"padding_mode must be one of {', '.join(_MODES)}, got {padding_mode!r}")
        if padding_mode != "zeros":
            raise NotImplementedError(
                f"Conv2d: padding_mode={padding_mode!r} is not there yet; pad the input before with "
                f"nn.functional.pad, or use 'zeros'"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = pair("Conv2d", "kernel_size", kernel_size)
        self.stride = pair("Conv2d", "stride", stride)
        self.dilation = pair("Conv2d", "dilation", dilation)
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise ValueError(f'Conv2d: padding must be "same", "valid" or a number, got {padding!r}')
            if padding == "same" and self.stride != (1, 1):
                raise ValueError(f'Conv2d: padding="same" needs stride 1, got stride={self.stride}')
        self.padding = padding if isinstance(padding, str) else pair("Conv2d", "padding", padding)
        self.groups = groups
        self.padding_mode = padding_mode
        self.weight = Parameter(
            empty(out_channels, in_channels // groups, *self.kernel_size, dtype=dtype, device=device)
        )
        self.register_parameter(
            "bias", Parameter(empty(out_channels, dtype=dtype, device=device)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters again: evenly in ±1 / sqrt(numbers that an output is made of)."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            fan_in = math.prod(self.weight.shape[1:])
            if fan_in:
                init.uniform_(self.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        ]
        if self.padding != (0, 0):
            parts.append(
                f"padding={self.padding!r}" if isinstance(self.padding, tuple) else f"padding={self.padding}"
            )
        if self.dilation != (1, 1):
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        return ", ".join(parts)
