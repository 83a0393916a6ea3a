"""Which array library an array belongs to. The only place that asks."""

import sys
from types import ModuleType
from typing import Any

import numpy

Array = Any
"""A ``numpy.ndarray`` or a ``cupy.ndarray``. Not a union: CuPy ships no types and may be absent."""


def get_array_module(*arrays: Array) -> ModuleType:
    """Return ``cupy`` if any of ``arrays`` lives on a GPU, else ``numpy``."""
    cupy = sys.modules.get("cupy")  # a CuPy array exists only if CuPy is loaded
    if cupy is not None and any(isinstance(a, cupy.ndarray) for a in arrays):
        return cupy
    return numpy


def on_gpu(x: object) -> bool:
    """Return whether ``x`` is an array on a GPU."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and bool(isinstance(x, cupy.ndarray))


def address(x: Array) -> int:
    """Return where the memory of ``x`` begins, on whichever device it is."""
    where: int = x.__array_interface__["data"][0] if isinstance(x, numpy.ndarray) else x.data.ptr
    return where


def overlap(x: Array, y: Array) -> bool:
    """Return whether two C-contiguous arrays have bytes in common."""
    a, b = address(x), address(y)
    return bool(a < b + y.nbytes and b < a + x.nbytes)


def owner(x: Array) -> Array:
    """Return the array whose memory ``x`` is a view of: itself if it is none."""
    while is_array(x.base):
        x = x.base
    return x


def copy_into(out: Array, x: Array) -> None:
    """Copy ``x`` into ``out``, of the same library, as ``numpy.copyto`` does."""
    (numpy if isinstance(out, numpy.ndarray) else get_array_module(out)).copyto(out, x)


def is_array(x: object) -> bool:
    """Return whether ``x`` is an array of any library (and not a Tensor or a Python number)."""
    if isinstance(x, numpy.ndarray):
        return True
    cupy = sys.modules.get("cupy")
    return cupy is not None and bool(isinstance(x, cupy.ndarray))


def to_host(x: Array) -> numpy.ndarray[Any, Any]:
    """Return ``x`` as a NumPy array: itself if it is one, else a copy from its device."""
    if isinstance(x, numpy.ndarray):
        return x
    host: numpy.ndarray[Any, Any] = x.get()
    return host
