"""Sparse linear maps along axes: what averages, padding and interpolation are."""

from typing import Any

from disttrain.kernels import axes as kernels
from disttrain.kernels import buffers
from disttrain.kernels.axes import Maps
from disttrain.ops.activation import widen
from disttrain.ops.types import Array, Result, call

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]


def map_axes(x: Array, *, maps: Maps) -> Result:
    """``x`` after a sparse linear map along each of some axes; the order of its axes in memory stays."""
    return buffers.convert(kernels.map_axes(widen(x), maps), x.dtype), (maps,), map_axes_vjp


def map_axes_vjp(g: Any, needs: Needs, maps: Maps) -> Grads:
    return (call(map_axes, g, maps=tuple((axis, m.transposed) for axis, m in maps)),)
