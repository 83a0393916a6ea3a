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


def is_array(x: object) -> bool:
    """Return whether ``x`` is an array of any library (and not a Tensor or a Python number)."""
    if isinstance(x, numpy.ndarray):
        return True
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(x, cupy.ndarray)


def to_host(x: Array) -> numpy.ndarray[Any, Any]:
    """Return ``x`` as a NumPy array: itself if it is one, else a copy from its device."""
    if isinstance(x, numpy.ndarray):
        return x
    host: numpy.ndarray[Any, Any] = x.get()
    return host
