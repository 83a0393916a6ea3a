"""Layers that put elements around lines, images and volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from disttrain.nn import functional as F
from disttrain.nn.functional.checks import each
from disttrain.nn.module import Module
from disttrain.tensors import Tensor

Sizes = int | Sequence[int]


class _Pad(Module):
    axes: ClassVar[int]
    mode: ClassVar[str]

    def __init__(self, padding: Sizes) -> None:
        super().__init__()
        self.padding = each(type(self).__name__, "padding", padding, 2 * self.axes)

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, self.mode)

    def extra_repr(self) -> str:
        return f"{self.padding}"


class _ConstantPad(_Pad):
    """Puts elements of one value around the last dimensions.

    Args:
        padding: how many, (before, after) from the last dimension backwards, or one number for all; negative
            ones cut.
        value: what they are.
    """

    mode = "constant"

    def __init__(self, padding: Sizes, value: float) -> None:
        super().__init__(padding)
        self.value = value

    def forward(self, input: Tensor) -> Tensor:
        return F.pad(input, self.padding, "constant", self.value)

    def extra_repr(self) -> str:
        return f"padding={self.padding}, value={self.value}"


class ConstantPad1d(_ConstantPad):
    __doc__ = f"Of lines. {_ConstantPad.__doc__}"
    axes = 1


class ConstantPad2d(_ConstantPad):
    __doc__ = f"Of images. {_ConstantPad.__doc__}"
    axes = 2


class ConstantPad3d(_ConstantPad):
    __doc__ = f"Of volumes. {_ConstantPad.__doc__}"
    axes = 3


class _ZeroPad(_ConstantPad):
    """Puts zeros around the last dimensions.

    Args:
        padding: how many, (before, after) from the last dimension backwards, or one number for all; negative
            ones cut.
    """

    def __init__(self, padding: Sizes) -> None:
        super().__init__(padding, 0.0)

    def extra_repr(self) -> str:
        return f"{self.padding}"


class ZeroPad1d(_ZeroPad):
    __doc__ = f"Of lines. {_ZeroPad.__doc__}"
    axes = 1


class ZeroPad2d(_ZeroPad):
    __doc__ = f"Of images. {_ZeroPad.__doc__}"
    axes = 2


class ZeroPad3d(_ZeroPad):
    __doc__ = f"Of volumes. {_ZeroPad.__doc__}"
    axes = 3


class _ReflectionPad(_Pad):
    """Mirrors the last dimensions at their edges, which are not repeated.

    Args:
        padding: how many elements, (before, after) from the last dimension backwards, or one number for all.
    """

    mode = "reflect"


class ReflectionPad1d(_ReflectionPad):
    __doc__ = f"Of lines. {_ReflectionPad.__doc__}"
    axes = 1


class ReflectionPad2d(_ReflectionPad):
    __doc__ = f"Of images. {_ReflectionPad.__doc__}"
    axes = 2


class ReflectionPad3d(_ReflectionPad):
    __doc__ = f"Of volumes. {_ReflectionPad.__doc__}"
    axes = 3


class _ReplicationPad(_Pad):
    """Repeats the first and the last elements of the last dimensions.

    Args:
        padding: how many elements, (before, after) from the last dimension backwards, or one number for all.
    """

    mode = "replicate"


class ReplicationPad1d(_ReplicationPad):
    __doc__ = f"Of lines. {_ReplicationPad.__doc__}"
    axes = 1


class ReplicationPad2d(_ReplicationPad):
    __doc__ = f"Of images. {_ReplicationPad.__doc__}"
    axes = 2


class ReplicationPad3d(_ReplicationPad):
    __doc__ = f"Of volumes. {_ReplicationPad.__doc__}"
    axes = 3


class _CircularPad(_Pad):
    """Goes on at the other end of the last dimensions.

    Args:
        padding: how many elements, (before, after) from the last dimension backwards, or one number for all.
    """

    mode = "circular"


class CircularPad1d(_CircularPad):
    __doc__ = f"Of lines. {_CircularPad.__doc__}"
    axes = 1


class CircularPad2d(_CircularPad):
    __doc__ = f"Of images. {_CircularPad.__doc__}"
    axes = 2


class CircularPad3d(_CircularPad):
    __doc__ = f"Of volumes. {_CircularPad.__doc__}"
    axes = 3
