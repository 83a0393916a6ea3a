"""``FloatTensor``, ``LongTensor`` and their like: PyTorch's old names of tensor types, which many scripts still use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from disttrain import dtypes
from disttrain.defaults import set_default_dtype
from disttrain.functions import conversion, creation
from disttrain.tensors import Size, Tensor

__all__ = [
    "BFloat16Tensor",
    "BoolTensor",
    "ByteTensor",
    "CharTensor",
    "DoubleTensor",
    "FloatTensor",
    "HalfTensor",
    "IntTensor",
    "LongTensor",
    "ShortTensor",
]


class _TypeOfTensors(type):
    """A type that CPU tensors of one dtype are instances of."""

    dtype: dtypes.dtype

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, Tensor) and instance.dtype is cls.dtype and instance.device.type == "cpu"

    def __call__(cls, *args: Any) -> Tensor:
        """Return a tensor: empty, of sizes (elements not set), of a sequence or array, or of another tensor."""
        return construct(cls.__name__, cls.dtype, args)

    def __repr__(cls) -> str:
        return f"<class 'disttrain.{cls.__name__}'>"


def construct(name: str, kind: dtypes.dtype, args: tuple[Any, ...]) -> Tensor:
    """Return what ``name(*args)`` makes, for an old type of tensors or ``Tensor`` itself.

    Raises:
        TypeError: a tensor of another type, or neither sizes nor data.
    """
    first = args[0] if args else 0
    if len(args) == 1 and isinstance(first, Tensor):
        if first.dtype is not kind and name != "Tensor":  # which takes all
            raise TypeError(f"expected {name} (got a tensor of {first.dtype}); use to({kind})")
        return first.detach()
    if len(args) == 1 and (not isinstance(first, Size | int | np.integer) or isinstance(first, bool)):
        if not isinstance(first, Sequence | np.ndarray) or isinstance(first, str):
            raise TypeError(
                f"{name}() is made of sizes or of a sequence of numbers, got {type(first).__name__}"
            )
        return conversion.tensor(first, dtype=kind)
    return creation.empty(*(args or (0,)), dtype=kind)


def _make(name: str, kind: dtypes.dtype) -> Any:
    doc = f"CPU tensors of {kind.name}, as ``torch.{name}``: a constructor, and a type for ``isinstance``."
    return _TypeOfTensors(name, (), {"dtype": kind, "__doc__": doc, "__module__": "disttrain"})


FloatTensor: Any = _make("FloatTensor", dtypes.float32)
DoubleTensor: Any = _make("DoubleTensor", dtypes.float64)
HalfTensor: Any = _make("HalfTensor", dtypes.float16)
BFloat16Tensor: Any = _make("BFloat16Tensor", dtypes.bfloat16)
LongTensor: Any = _make("LongTensor", dtypes.int64)
IntTensor: Any = _make("IntTensor", dtypes.int32)
ShortTensor: Any = _make("ShortTensor", dtypes.int16)
CharTensor: Any = _make("CharTensor", dtypes.int8)
ByteTensor: Any = _make("ByteTensor", dtypes.uint8)
BoolTensor: Any = _make("BoolTensor", dtypes.bool_)

_BY_DTYPE = {globals()[name].dtype: globals()[name] for name in __all__}


def set_default_tensor_type(t: Any) -> None:
    """Set the type of tensors made from Python floats, by its old name or type; see ``set_default_dtype``.

    Raises:
        TypeError: not a floating point type.
    """
    old = dtype_of(t)
    set_default_dtype(t if old is None else old)


def type_of(tensor: Tensor) -> Any:
    """Return the old type of a tensor, such as :data:`FloatTensor`."""
    return _BY_DTYPE[tensor.dtype]


def type_name(tensor: Tensor) -> str:
    """Return what ``tensor.type()`` returns in PyTorch, such as ``"torch.FloatTensor"``: scripts compare it."""
    place = "torch.cuda" if tensor.device.type == "cuda" else "torch"
    return f"{place}.{_BY_DTYPE[tensor.dtype].__name__}"


def dtype_of(spec: Any) -> dtypes.dtype | None:
    """Return the dtype that an old type or its name (``"torch.LongTensor"``) stands for; ``None`` for another thing.

    Raises:
        ValueError: a text that names no type.
    """
    if isinstance(spec, _TypeOfTensors):
        return spec.dtype
    if not isinstance(spec, str):
        return None
    home, _, name = spec.rpartition(".")
    found = globals().get(name) if name in __all__ else None
    if home not in ("torch", "disttrain") or found is None:
        raise ValueError(f"invalid type: {spec!r}; use a dtype such as disttrain.float32")
    return found.dtype  # type: ignore[no-any-return]
