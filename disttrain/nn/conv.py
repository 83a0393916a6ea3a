"""Convolutions and transposed convolutions of lines, images and volumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from disttrain.functions.creation import empty
from disttrain.nn import functional as F
from disttrain.nn import init
from disttrain.nn.functional.checks import each
from disttrain.nn.module import Module
from disttrain.nn.parameter import Parameter
from disttrain.tensors import Tensor

Sizes = int | Sequence[int]
_MODES = ("zeros", "reflect", "replicate", "circular")


class _ConvNd(Module):
    axes: ClassVar[int]
    """Number of dimensions of an image."""
    transposed: ClassVar[bool] = False

    weight: Parameter
    bias: Parameter | None

    def _set_up(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes,
        padding: Sizes | str,
        dilation: Sizes,
        output_padding: Sizes,
        groups: int,
        bias: bool,
        padding_mode: str,
        device: Any,
        dtype: Any,
    ) -> None:
        name, n = type(self).__name__, self.axes
        if groups <= 0:
            raise ValueError(f"{name}: groups must be positive, got {groups}")
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{name}: groups={groups} must divide in_channels and out_channels, got {in_channels} and "
                f"{out_channels}"
            )
        if padding_mode not in _MODES:
            raise ValueError(f"{name}: padding_mode is {', '.join(_MODES)}, got {padding_mode!r}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = each(name, "kernel_size", kernel_size, n)
        self.stride = each(name, "stride", stride, n)
        self.dilation = each(name, "dilation", dilation, n)
        self.output_padding = each(name, "output_padding", output_padding, n)
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise ValueError(f'{name}: padding must be "same", "valid" or a number, got {padding!r}')
            if padding == "same" and any(s != 1 for s in self.stride):
                raise ValueError(f'{name}: padding="same" needs stride 1, got stride={self.stride}')
        self.padding = padding if isinstance(padding, str) else each(name, "padding", padding, n)
        self.groups = groups
        self.padding_mode = padding_mode
        channels = (
            (in_channels, out_channels // groups)
            if self.transposed
            else (out_channels, in_channels // groups)
        )
        self.weight = Parameter(empty(*channels, *self.kernel_size, dtype=dtype, device=device))
        self.register_parameter(
            "bias", Parameter(empty(out_channels, dtype=dtype, device=device)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters again: evenly in ±1 / sqrt(numbers that an output is made of)."""
        init.draw_by_fan_in(self.weight, self.bias)

    def extra_repr(self) -> str:
        parts = [
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        ]
        zeros, ones = (0,) * self.axes, (1,) * self.axes
        if self.padding != zeros:
            parts.append(f"padding={self.padding}")
        if self.dilation != ones:
            parts.append(f"dilation={self.dilation}")
        if self.output_padding != zeros:
            parts.append(f"output_padding={self.output_padding}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode}")
        return ", ".join(parts)


class _Conv(_ConvNd):
    """Cross-correlation of images ``(N, C, H, W)`` (lines, volumes) with learnt filters.

    Args:
        in_channels: C.
        out_channels: number of filters.
        kernel_size: size of a filter.
        stride: step between windows.
        padding: rows and columns on each side; ``"valid"`` for none, ``"same"`` for as many as keep the size.
        dilation: step between the pixels of a window.
        groups: channels are split into so many groups that do not see each other.
        bias: learn a bias.
        padding_mode: what the padding holds: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        device: where the parameters are.
        dtype: of the parameters, by default the default dtype.

    Raises:
        ValueError: channels and groups that do not fit, or an unknown padding.
    """

    function: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self._set_up(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            0,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )

    def forward(self, input: Tensor) -> Tensor:
        padding: Sizes | str = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._edges(), self.padding_mode), 0
        return type(self).function(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )

    def _edges(self) -> list[int]:
        """Return the padding as :func:`disttrain.nn.functional.pad` takes it."""
        if self.padding == "valid":
            return [0] * (2 * self.axes)
        if isinstance(self.padding, str):
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return [w for t in reversed(totals) for w in (t // 2, t - t // 2)]
        return [w for p in reversed(self.padding) for w in (p, p)]


class Conv1d(_Conv):
    __doc__ = f"Of lines ``(N, C, L)`` or ``(C, L)``. {_Conv.__doc__}"
    axes = 1
    function = staticmethod(F.conv1d)


class Conv2d(_Conv):
    __doc__ = f"Of images ``(N, C, H, W)`` or ``(C, H, W)``. {_Conv.__doc__}"
    axes = 2
    function = staticmethod(F.conv2d)


class Conv3d(_Conv):
    __doc__ = f"Of volumes ``(N, C, D, H, W)`` or ``(C, D, H, W)``. {_Conv.__doc__}"
    axes = 3
    function = staticmethod(F.conv3d)


class _ConvTranspose(_ConvNd):
    """The transpose of the linear map that a convolution is, with learnt filters.

    Args:
        in_channels: C.
        out_channels: channels of the output.
        kernel_size: size of a filter.
        stride: step between windows in the output.
        padding: rows and columns to leave out at each side of the output.
        output_padding: rows and columns to add at its end.
        groups: channels are split into so many groups that do not see each other.
        bias: learn a bias.
        dilation: step between the pixels of a window.
        padding_mode: only ``"zeros"``.
        device: where the parameters are.
        dtype: of the parameters, by default the default dtype.

    Raises:
        ValueError: channels and groups that do not fit, or another ``padding_mode``.
    """

    transposed = True
    function: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sizes = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if padding_mode != "zeros":
            raise ValueError(f"{type(self).__name__}: padding_mode must be 'zeros', got {padding_mode!r}")
        self._set_up(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            output_padding,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
        )

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Return the transposed convolution of ``input``.

        Args:
            input: images, one or a batch.
            output_size: size of the output, of those that the stride leaves open; instead of ``output_padding``.

        Raises:
            ValueError: an ``output_size`` that the input cannot have.
        """
        more = self.output_padding if output_size is None else self._padding_for(input, tuple(output_size))
        return type(self).function(
            input, self.weight, self.bias, self.stride, self.padding, more, self.groups, self.dilation
        )

    def _padding_for(self, input: Tensor, output_size: tuple[int, ...]) -> tuple[int, ...]:
        n = self.axes
        if len(output_size) == input.ndim and input.ndim > n:
            output_size = output_size[-n:]
        if len(output_size) != n:
            raise ValueError(
                f"{type(self).__name__}: output_size must have {n} or {input.ndim} sizes, got {output_size}"
            )
        assert not isinstance(self.padding, str)
        least = tuple(
            (m - 1) * s - 2 * p + d * (k - 1) + 1
            for m, s, p, d, k in zip(
                input.shape[-n:], self.stride, self.padding, self.dilation, self.kernel_size, strict=True
            )
        )
        more = tuple(size - low for size, low in zip(output_size, least, strict=True))
        if not all(0 <= m < s for m, s in zip(more, self.stride, strict=True)):
            most = tuple(low + s - 1 for low, s in zip(least, self.stride, strict=True))
            raise ValueError(
                f"{type(self).__name__}: an input of {tuple(input.shape[-n:])} gives output sizes from {least} to "
                f"{most}, got output_size={output_size}"
            )
        return more


class ConvTranspose1d(_ConvTranspose):
    __doc__ = f"Of lines ``(N, C, L)`` or ``(C, L)``. {_ConvTranspose.__doc__}"
    axes = 1
    function = staticmethod(F.conv_transpose1d)


class ConvTranspose2d(_ConvTranspose):
    __doc__ = f"Of images ``(N, C, H, W)`` or ``(C, H, W)``. {_ConvTranspose.__doc__}"
    axes = 2
    function = staticmethod(F.conv_transpose2d)


class ConvTranspose3d(_ConvTranspose):
    __doc__ = f"Of volumes ``(N, C, D, H, W)`` or ``(C, D, H, W)``. {_ConvTranspose.__doc__}"
    axes = 3
    function = staticmethod(F.conv_transpose3d)
