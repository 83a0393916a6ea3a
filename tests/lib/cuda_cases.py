"""What the tests of CUDA kernels share: all programs, types, arrays placed as on a GPU, and how near is near."""

import functools
import importlib
import pkgutil

import ml_dtypes
import numpy as np
from cuda_shim import aligned

from disttrain import kernels
from disttrain.kernels import cuda, elementwise

DTYPES = ["float32", "float64", "float16", "bfloat16"]
_ANY_TYPE = {"clip", "count_step", "update_scale", "words"}
"""Kernels that are the same for each type of their program."""
_LIMITS = {
    "float32": 2e-5,
    "float64": 1e-11,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
}  # a unit of the last place


@functools.cache
def programs():
    """Return every program of the package, by the name of its file and where it is the second of a file a number."""
    found = {}
    for module in pkgutil.walk_packages(kernels.__path__, "disttrain.kernels."):
        for value in vars(importlib.import_module(module.name)).values():
            for p in value.values() if isinstance(value, dict) else (value,):
                p = p.program if isinstance(p, elementwise.Chain) else p
                if isinstance(p, cuda.Program) and p not in found.values():
                    same = sum(p.path == q.path for q in found.values())
                    found[f"{p.path.name} {same + 1}" if same else p.path.name] = p
    return found


def kernel_of(program, variant, kernel):
    """Return what the journal calls a kernel for one type, or None for a program of the tests."""
    name = next((name for name, p in programs().items() if p is program), None)
    if name is None or kernel in _ANY_TYPE:
        return name and f"{program.path.name} {kernel}"
    return f"{name} {kernel} {variant.get('T', '')}".rstrip()


def form_of(program, variant, kernel):
    """Return a name for a kernel with its constants but for types: those decide how threads work together."""
    name = next(name for name, p in programs().items() if p is program)
    return " ".join([name, kernel, *(f"{k}={v}" for k, v in variant.items() if isinstance(v, int))])


def every_kernel():
    """Return what :func:`kernel_of` calls each kernel for each of its types."""
    return {
        kernel_of(program, variant, kernel)
        for program in programs().values()
        for variant in program.variants()
        for kernel in program.kernels
    }


def kind(name):
    """Return NumPy's type of a name."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def wide(name):
    """Return the type that kernels calculate in."""
    return np.dtype("float64" if name == "float64" else "float32")


def cast(x, dtype):
    """Return ``x`` in a type, placed as on a GPU."""
    return aligned(np.asarray(x).astype(kind(dtype)))


def arrays_at(where):
    """Return what moves an array of NumPy to where launches run, as one of CuPy if that is "gpu", and what brings it
    back."""
    if where != "gpu":
        return lambda x: x, lambda x: x
    import cupy

    return cupy.asarray, cupy.asnumpy


def exact(*arrays):
    """Return float64 copies, for a reference."""
    return [a.astype(np.float64) for a in arrays]


def near(ours, reference, dtype, room=1.0):
    """Compare arrays of a type with what the reference makes of the same numbers in float64."""
    limit = _LIMITS[dtype] * room
    ours, reference = (v if isinstance(v, tuple) else (v,) for v in (ours, reference))
    for a, b in zip(ours, reference, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a.astype(np.float64), np.asarray(b, np.float64), limit, limit)
