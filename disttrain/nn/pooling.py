"""Pooling of lines ``(N, C, L)``, images ``(N, C, H, W)`` and volumes ``(N, C, D, H, W)``, of one or a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from disttrain.nn import functional as F
from disttrain.nn.functional.checks import each
from disttrain.nn.module import Module
from disttrain.tensors import Tensor

Sizes = int | Sequence[int]


class _MaxPool(Module):
    """The largest element of each window.

    Args:
        kernel_size: size of a window.
        stride: step between windows; by default ``kernel_size``.
        padding: rows and columns of ``-inf`` on each side.
        dilation: step between the pixels of a window.
        return_indices: also return where each element is, counted row by row, as int64.
        ceil_mode: keep windows that stick out at the end.
    """

    function: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        dilation: Sizes = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.return_indices = return_indices
        self.ceil_mode = ceil_mode

    def forward(self, input: Tensor) -> Any:
        return type(self).function(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            self.return_indices,
        )

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, ceil_mode={self.ceil_mode}"
        )


class MaxPool1d(_MaxPool):
    __doc__ = f"Of lines. {_MaxPool.__doc__}"
    function = staticmethod(F.max_pool1d)


class MaxPool2d(_MaxPool):
    __doc__ = f"Of images. {_MaxPool.__doc__}"
    function = staticmethod(F.max_pool2d)


class MaxPool3d(_MaxPool):
    __doc__ = f"Of volumes. {_MaxPool.__doc__}"
    function = staticmethod(F.max_pool3d)


class _MaxUnpool(Module):
    """Images with elements where max pooling found them, and 0 elsewhere.

    Args:
        kernel_size: size of a window of the pooling.
        stride: step between its windows; by default ``kernel_size``.
        padding: its rows and columns on each side.
    """

    axes: ClassVar[int]
    function: ClassVar[Callable[..., Tensor]]

    def __init__(self, kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0) -> None:
        super().__init__()
        name = type(self).__name__
        self.kernel_size = each(name, "kernel_size", kernel_size, self.axes)
        self.stride = self.kernel_size if stride is None else each(name, "stride", stride, self.axes)
        self.padding = each(name, "padding", padding, self.axes)

    def forward(self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        return type(self).function(input, indices, self.kernel_size, self.stride, self.padding, output_size)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxUnpool1d(_MaxUnpool):
    __doc__ = f"Of lines. {_MaxUnpool.__doc__}"
    axes = 1
    function = staticmethod(F.max_unpool1d)


class MaxUnpool2d(_MaxUnpool):
    __doc__ = f"Of images. {_MaxUnpool.__doc__}"
    axes = 2
    function = staticmethod(F.max_unpool2d)


class MaxUnpool3d(_MaxUnpool):
    __doc__ = f"Of volumes. {_MaxUnpool.__doc__}"
    axes = 3
    function = staticmethod(F.max_unpool3d)


class AvgPool1d(Module):
    """The mean of each window of lines.

    Args:
        kernel_size: size of a window.
        stride: step between windows; by default ``kernel_size``.
        padding: zeros on each side.
        ceil_mode: keep windows that stick out at the end.
        count_include_pad: padding counts in the divisor.
    """

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__()
        self.kernel_size = each("AvgPool1d", "kernel_size", kernel_size, 1)
        self.stride = each("AvgPool1d", "stride", self.kernel_size if stride is None else stride, 1)
        self.padding = each("AvgPool1d", "padding", padding, 1)
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool1d(
            input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad
        )

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class _AvgPool(Module):
    """The mean of each window.

    Args:
        kernel_size: size of a window.
        stride: step between windows; by default ``kernel_size``.
        padding: rows and columns of zeros on each side.
        ceil_mode: keep windows that stick out at the end.
        count_include_pad: padding counts in the divisor.
        divisor_override: divide by this instead of the number of pixels.
    """

    function: ClassVar[Callable[..., Tensor]]

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad
        self.divisor_override = divisor_override

    def forward(self, input: Tensor) -> Tensor:
        return type(self).function(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool2d(_AvgPool):
    __doc__ = f"Of images. {_AvgPool.__doc__}"
    function = staticmethod(F.avg_pool2d)


class AvgPool3d(_AvgPool):
    __doc__ = f"Of volumes. {_AvgPool.__doc__}"
    function = staticmethod(F.avg_pool3d)


class _LPPool(Module):
    """The sum of each window's elements to the power ``norm_type``, to the power of one over it.

    Args:
        norm_type: the power.
        kernel_size: size of a window.
        stride: step between windows; by default ``kernel_size``.
        ceil_mode: keep windows that stick out at the end.
    """

    function: ClassVar[Callable[..., Tensor]]

    def __init__(
        self, norm_type: float, kernel_size: Sizes, stride: Sizes | None = None, ceil_mode: bool = False
    ) -> None:
        super().__init__()
        self.norm_type = norm_type
        self.kernel_size = kernel_size
        self.stride = stride
        self.ceil_mode = ceil_mode

    def forward(self, input: Tensor) -> Tensor:
        return type(self).function(
            input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode
        )

    def extra_repr(self) -> str:
        return (
            f"norm_type={self.norm_type}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"ceil_mode={self.ceil_mode}"
        )


class LPPool1d(_LPPool):
    __doc__ = f"Of lines. {_LPPool.__doc__}"
    function = staticmethod(F.lp_pool1d)


class LPPool2d(_LPPool):
    __doc__ = f"Of images. {_LPPool.__doc__}"
    function = staticmethod(F.lp_pool2d)


class LPPool3d(_LPPool):
    __doc__ = f"Of volumes. {_LPPool.__doc__}"
    function = staticmethod(F.lp_pool3d)


class _AdaptiveAvgPool(Module):
    """Means over an even division of the images into ``output_size`` (``None``: as many as there are pixels)."""

    function: ClassVar[Callable[..., Tensor]]

    def __init__(self, output_size: int | Sequence[int | None] | None) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, input: Tensor) -> Tensor:
        return type(self).function(input, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class AdaptiveAvgPool1d(_AdaptiveAvgPool):
    __doc__ = f"Of lines. {_AdaptiveAvgPool.__doc__}"
    function = staticmethod(F.adaptive_avg_pool1d)


class AdaptiveAvgPool2d(_AdaptiveAvgPool):
    __doc__ = f"Of images. {_AdaptiveAvgPool.__doc__}"
    function = staticmethod(F.adaptive_avg_pool2d)


class AdaptiveAvgPool3d(_AdaptiveAvgPool):
    __doc__ = f"Of volumes. {_AdaptiveAvgPool.__doc__}"
    function = staticmethod(F.adaptive_avg_pool3d)


class _AdaptiveMaxPool(Module):
    """Maxima over an even division of the images into ``output_size`` (``None``: as many as there are pixels).

    Args:
        output_size: how many parts along each axis.
        return_indices: also return where each element is, counted row by row, as int64.
    """

    function: ClassVar[Callable[..., Any]]

    def __init__(self, output_size: int | Sequence[int | None] | None, return_indices: bool = False) -> None:
        super().__init__()
        self.output_size = output_size
        self.return_indices = return_indices

    def forward(self, input: Tensor) -> Any:
        return type(self).function(input, self.output_size, self.return_indices)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class AdaptiveMaxPool1d(_AdaptiveMaxPool):
    __doc__ = f"Of lines. {_AdaptiveMaxPool.__doc__}"
    function = staticmethod(F.adaptive_max_pool1d)


class AdaptiveMaxPool2d(_AdaptiveMaxPool):
    __doc__ = f"Of images. {_AdaptiveMaxPool.__doc__}"
    function = staticmethod(F.adaptive_max_pool2d)


class AdaptiveMaxPool3d(_AdaptiveMaxPool):
    __doc__ = f"Of volumes. {_AdaptiveMaxPool.__doc__}"
    function = staticmethod(F.adaptive_max_pool3d)


class _FractionalMaxPool(Module):
    """The largest element of windows at pseudo-random places (Graham 2015).

    Args:
        kernel_size: size of a window.
        output_size: how many windows there are, along each axis; or
        output_ratio: how many per pixel, in (0, 1).
        return_indices: also return where each element is, counted row by row, as int64.
        _random_samples: numbers in [0, 1) that place the windows, instead of new ones at each call.

    Raises:
        ValueError: not one of ``output_size`` and ``output_ratio``, or a ratio outside of (0, 1).
    """

    axes: ClassVar[int]
    function: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        kernel_size: Sizes,
        output_size: Sizes | None = None,
        output_ratio: float | Sequence[float] | None = None,
        return_indices: bool = False,
        _random_samples: Tensor | None = None,
    ) -> None:
        super().__init__()
        name, n = type(self).__name__, self.axes
        if (output_size is None) == (output_ratio is None):
            raise ValueError(f"{name}: give one of output_size and output_ratio")
        ratios = (output_ratio,) * n if isinstance(output_ratio, float | int) else tuple(output_ratio or ())
        if not all(0 < r < 1 for r in ratios) or len(ratios) not in (0, n):
            raise ValueError(f"{name}: output_ratio must be numbers in (0, 1), got {output_ratio!r}")
        self.kernel_size = each(name, "kernel_size", kernel_size, n)
        self.return_indices = return_indices
        self.register_buffer("_random_samples", _random_samples)
        self.output_size = None if output_size is None else each(name, "output_size", output_size, n)
        self.output_ratio = ratios or None

    def forward(self, input: Tensor) -> Any:
        return type(self).function(
            input,
            self.kernel_size,
            self.output_size,
            self.output_ratio,
            self.return_indices,
            self._random_samples,
        )


class FractionalMaxPool2d(_FractionalMaxPool):
    __doc__ = f"Of images. {_FractionalMaxPool.__doc__}"
    axes = 2
    function = staticmethod(F.fractional_max_pool2d)


class FractionalMaxPool3d(_FractionalMaxPool):
    __doc__ = f"Of volumes. {_FractionalMaxPool.__doc__}"
    axes = 3
    function = staticmethod(F.fractional_max_pool3d)
