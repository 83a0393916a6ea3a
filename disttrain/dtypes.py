"""Data types and PyTorch's promotion rules (``torch.result_type``), in one table."""

from typing import Any

import ml_dtypes
import numpy as np

from disttrain.kernels.arrays import Array


class dtype:
    """The type of a Tensor's elements, as ``torch.dtype``. Compare with ``is`` or ``==``."""

    __slots__ = ("category", "is_floating_point", "itemsize", "name", "numpy")

    def __init__(self, name: str, numpy_dtype: Any, category: int) -> None:
        self.name = name
        self.numpy: np.dtype[Any] = np.dtype(numpy_dtype)
        self.category = category
        """0 boolean, 1 integer, 2 floating point: the order in which PyTorch promotes."""
        self.is_floating_point = category == 2
        self.itemsize = self.numpy.itemsize
        """Bytes of one element."""

    is_complex = False

    @property
    def is_signed(self) -> bool:
        """Whether the type holds negative numbers."""
        return self.category == 2 or self.name.startswith("int")

    def __repr__(self) -> str:
        return f"disttrain.{self.name}"

    def __reduce__(self) -> str:
        return self.name


# The order within a category is the order of promotion.
bool_ = dtype("bool", np.bool_, 0)
uint8 = dtype("uint8", np.uint8, 1)
int8 = dtype("int8", np.int8, 1)
int16 = dtype("int16", np.int16, 1)
int32 = dtype("int32", np.int32, 1)
int64 = dtype("int64", np.int64, 1)
float16 = dtype("float16", np.float16, 2)
bfloat16 = dtype("bfloat16", ml_dtypes.bfloat16, 2)
float32 = dtype("float32", np.float32, 2)
float64 = dtype("float64", np.float64, 2)

ALL = (bool_, uint8, int8, int16, int32, int64, float16, bfloat16, float32, float64)
_RANK = {d: i for i, d in enumerate(ALL)}
_BY_NUMPY = {d.numpy: d for d in ALL}
_BY_PYTHON = {bool: bool_, int: int64, float: float64}
BY_NAME = {d.name: d for d in ALL} | {
    "double": float64,
    "float": float32,
    "half": float16,
    "long": int64,
    "int": int32,
}


def of(array: Array) -> dtype:
    """Return the dtype of an array.

    Raises:
        TypeError: no Tensor can have the array's type (complex, strings, objects, unsigned above 8 bits).
    """
    try:
        return _BY_NUMPY[array.dtype]
    except KeyError:
        raise TypeError(
            f"no Tensor type for arrays of {array.dtype}; convert to one of {', '.join(BY_NAME)}"
        ) from None


def as_dtype(spec: Any) -> dtype:
    """Return the dtype that ``spec`` names: a dtype, a NumPy dtype, or Python's ``bool``, ``int``, ``float``.

    Python's types are those of its own numbers, int64 and float64, as in PyTorch.

    Raises:
        TypeError: ``spec`` names no type that a Tensor can have.
    """
    if isinstance(spec, dtype):
        return spec
    if spec in _BY_PYTHON:
        return _BY_PYTHON[spec]
    try:
        if isinstance(spec, str):
            raise TypeError
        return _BY_NUMPY[np.dtype(spec)]
    except (KeyError, TypeError):
        raise TypeError(
            f"dtype must be one of disttrain.{', disttrain.'.join(d.name for d in ALL)}, got {spec!r}"
        ) from None


def promote_types(type1: dtype, type2: dtype) -> dtype:
    """Return the smallest type that both can be converted to, as ``torch.promote_types``."""
    a, b = type1, type2
    if a is b:
        return a
    if a.category != b.category:
        return a if a.category > b.category else b
    if a.category == 1 and uint8 in (a, b):  # unsigned meets signed: the next signed type that holds both
        return int16 if int8 in (a, b) else max(a, b, key=_RANK.__getitem__)
    if {a, b} == {float16, bfloat16}:
        return float32
    return max(a, b, key=_RANK.__getitem__)


_cache: dict[tuple[Any, ...], np.dtype[Any]] = {}


def result_type(operands: tuple[Any, ...], default: dtype) -> np.dtype[Any]:
    """Return the NumPy dtype in which an elementwise operation on ``operands`` takes place.

    PyTorch's three priorities: arrays with dimensions, then arrays without, then Python numbers; a lower
    priority decides only if its category (boolean < integer < floating point) is higher.

    Args:
        operands: arrays and Python numbers, at least one of each kind that matters.
        default: the floating point type of a Python ``float``.
    """
    key = (default, *[(x.dtype, x.ndim == 0) if hasattr(x, "dtype") else type(x) for x in operands])
    found = _cache.get(key)
    if found is None:
        found = _cache[key] = _result_type(operands, default).numpy
    return found


def _result_type(operands: tuple[Any, ...], default: dtype) -> dtype:
    levels: list[dtype | None] = [None, None, None]
    for x in operands:
        if hasattr(x, "dtype"):
            level, kind = (0 if x.ndim else 1), of(x)
        else:
            level, kind = 2, default if type(x) is float else as_dtype(type(x))
        seen = levels[level]
        levels[level] = kind if seen is None else promote_types(seen, kind)
    result: dtype | None = None
    for kind_ in levels:
        if kind_ is not None and (result is None or kind_.category > result.category):
            result = kind_
    assert result is not None
    return result
