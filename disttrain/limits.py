"""``finfo`` and ``iinfo``: the limits of number types."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from disttrain import context, dtypes

__all__ = ["finfo", "iinfo"]


class finfo:
    """Limits of a floating point type (the default one, without an argument), as ``torch.finfo``.

    Attributes: ``bits``, ``eps``, ``max``, ``min``, ``tiny``, ``smallest_normal``, ``resolution``, ``dtype`` (its
    name).

    Raises:
        TypeError: not a floating point type.
    """

    def __init__(self, type: Any = None) -> None:
        kind = context.current().default_dtype if type is None else type
        if not isinstance(kind, dtypes.dtype):
            raise TypeError(f"finfo(): argument 'type' must be a disttrain.dtype, not {kind!r}")
        if not kind.is_floating_point:
            raise TypeError(f"finfo() tells of floating point types, got {kind}; ask iinfo()")
        limits: Any = ml_dtypes.finfo(kind.numpy)  # type: ignore[no-untyped-call]
        self.dtype = kind.name
        self.bits = int(limits.bits)
        self.eps = float(limits.eps)
        self.max = float(limits.max)
        self.min = float(limits.min)
        self.tiny = self.smallest_normal = float(limits.smallest_normal)
        self.resolution = float(f"1e-{limits.precision}")

    def __repr__(self) -> str:
        return (
            f"finfo(resolution={self.resolution:g}, min={self.min:g}, max={self.max:g}, eps={self.eps:g}, "
            f"smallest_normal={self.smallest_normal:g}, tiny={self.tiny:g}, dtype={self.dtype})"
        )


class iinfo:
    """Limits of an integer type, as ``torch.iinfo``. Attributes: ``bits``, ``max``, ``min``, ``dtype`` (its name).

    Raises:
        TypeError: not an integer type.
    """

    def __init__(self, type: Any) -> None:
        if not isinstance(type, dtypes.dtype):
            raise TypeError(f"iinfo(): argument 'type' must be a disttrain.dtype, not {type!r}")
        if type.category != 1:
            raise TypeError(f"iinfo() tells of integer types, got {type}; ask finfo()")
        limits = np.iinfo(type.numpy)
        self.dtype, self.bits = type.name, int(limits.bits)
        self.max, self.min = int(limits.max), int(limits.min)

    def __repr__(self) -> str:
        return f"iinfo(min={self.min:g}, max={self.max:g}, dtype={self.dtype})"
