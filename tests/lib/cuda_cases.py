"""What the tests of CUDA kernels share: types, arrays as a GPU's allocator places them, and how near is near."""

import ml_dtypes
import numpy as np
from cuda_shim import aligned

DTYPES = ["float32", "float64", "float16", "bfloat16"]
_LIMITS = {
    "float32": 2e-5,
    "float64": 1e-11,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
}  # a unit of the last place


def kind(name):
    """Return NumPy's type of a name."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def wide(name):
    """Return the type that kernels calculate in."""
    return np.dtype("float64" if name == "float64" else "float32")


def cast(x, dtype):
    """Return ``x`` in a type, placed as on a GPU."""
    return aligned(np.asarray(x).astype(kind(dtype)))


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
