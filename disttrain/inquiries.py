"""What one asks of a tensor or a type: what kind it is, of what size, where it is, and its old names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import devices, dtypes
from disttrain.layouts import strided

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = [
    "can_cast",
    "get_device",
    "is_complex",
    "is_floating_point",
    "is_nonzero",
    "is_same_size",
    "is_signed",
    "numel",
    "typename",
]


def is_floating_point(input: Tensor) -> bool:
    """Return whether the elements are floating point numbers."""
    return _tensor(input, "is_floating_point").dtype.is_floating_point


def is_complex(input: Tensor) -> bool:
    """Return False: there are no complex numbers."""
    return _tensor(input, "is_complex").dtype.is_complex


def is_signed(input: Tensor) -> bool:
    """Return whether the type of the elements holds negative numbers."""
    return _tensor(input, "is_signed").dtype.is_signed


def is_nonzero(input: Tensor) -> bool:
    """Return whether the only element is not zero.

    Raises:
        RuntimeError: there is more than one, or none.
    """
    if _tensor(input, "is_nonzero").numel() == 0:
        raise RuntimeError(
            f"Boolean value of Tensor of shape {list(input.shape)} is ambiguous: it has no elements; ask .numel()"
        )
    if input.numel() > 1:
        raise RuntimeError(
            f"Boolean value of Tensor of shape {list(input.shape)} is ambiguous: it has {input.numel()} elements; say "
            f".any() or .all()"
        )
    return bool(input.item())


def is_same_size(input: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same shape."""
    return bool(_tensor(input, "is_same_size").shape == _tensor(other, "is_same_size").shape)


def numel(input: Tensor) -> int:
    """Return the number of elements."""
    return _tensor(input, "numel").numel()


def get_device(input: Tensor) -> int:
    """Return the number of the GPU that holds the tensor; -1 on the CPU."""
    device = _tensor(input, "get_device").device
    return -1 if device.type == "cpu" else device.index or 0


def can_cast(from_: dtypes.dtype, to: dtypes.dtype) -> bool:
    """Return whether a result of type ``from_`` may be stored in a tensor of type ``to``: not in a lower category."""
    if not isinstance(from_, dtypes.dtype) or not isinstance(to, dtypes.dtype):
        raise TypeError(f"can_cast() needs two dtypes, got {from_!r} and {to!r}")
    return from_.category <= to.category


def typename(obj: Any) -> str:
    """Return the name of an object's type: of a tensor its old one (``"torch.FloatTensor"``)."""
    from disttrain.legacy import type_name
    from disttrain.tensors import Tensor

    if isinstance(obj, Tensor):
        return type_name(obj)
    module, name = "", ""
    if hasattr(obj, "__module__") and obj.__module__ not in ("builtins", "__builtin__", None):
        module = f"{obj.__module__}."
    name = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", None) or type(obj).__name__
    return module + name


def _tensor(value: Any, name: str) -> Tensor:
    from disttrain.tensors import Tensor

    if not isinstance(value, Tensor):
        raise TypeError(f"{name}(): argument must be Tensor, not {type(value).__name__}")
    return value


class Inquiries:
    """The methods of Tensor that ask these questions, and PyTorch's older ones."""

    is_complex, is_signed, is_nonzero, is_same_size = is_complex, is_signed, is_nonzero, is_same_size
    get_device = get_device

    def ndimension(self: Any) -> int:
        """Return the number of dimensions."""
        return self.ndim  # type: ignore[no-any-return]

    @property
    def is_cpu(self: Any) -> bool:
        """Whether the memory is the host's."""
        return self.device.type == "cpu"  # type: ignore[no-any-return]

    @property
    def layout(self) -> Any:
        """How the elements are stored: there is only ``strided``."""
        return strided

    @property
    def real(self: Any) -> Tensor:
        """The tensor itself: there are no complex numbers."""
        return self  # type: ignore[no-any-return]

    def is_conj(self: Any) -> bool:
        """Return False: there are no complex numbers."""
        return False

    def is_neg(self: Any) -> bool:
        """Return False: no tensor keeps a sign apart from its memory."""
        return False

    def is_set_to(self: Any, tensor: Tensor) -> bool:
        """Return whether the other tensor is over the same memory, in the same shape and strides."""
        return bool(
            self.data_ptr() == tensor.data_ptr()
            and self.shape == tensor.shape
            and self.stride() == tensor.stride()
        )

    def byte(self: Any) -> Tensor:
        """Return the tensor as uint8."""
        return self.to(dtypes.uint8)  # type: ignore[no-any-return]

    def char(self: Any) -> Tensor:
        """Return the tensor as int8."""
        return self.to(dtypes.int8)  # type: ignore[no-any-return]

    def is_pinned(self: Any, device: Any = None) -> bool:
        """Return whether the memory is page-locked."""
        return devices.is_pinned(self._array)

    def pin_memory(self: Any, device: Any = None) -> Tensor:
        """Return a copy in page-locked memory, which a GPU reaches without the CPU's help; itself if it is there.

        Raises:
            RuntimeError: no GPU can be used, as PyTorch's; ask ``cuda.is_available()`` first. Or the tensor is on one.
        """
        if not devices.is_available():
            raise RuntimeError(
                "pin_memory() needs a GPU, and none can be used; ask disttrain.cuda.is_available() first"
            )
        if not isinstance(self._array, np.ndarray):
            raise RuntimeError(f"pin_memory() is for tensors in host memory, got one on {self.device}")
        if devices.is_pinned(self._array):
            return self  # type: ignore[no-any-return]
        return type(self)._of(devices.pin(self._array))  # type: ignore[no-any-return]

    def short(self: Any) -> Tensor:
        """Return the tensor as int16."""
        return self.to(dtypes.int16)  # type: ignore[no-any-return]

    def new(self: Any, *args: Any) -> Tensor:
        """Return a tensor of this one's type, of sizes (elements not set) or of data."""
        from disttrain.legacy import type_of

        return type_of(self)(*args)  # type: ignore[no-any-return]

    def type(self: Any, dtype: Any = None, non_blocking: bool = False) -> Any:
        """Return the tensor in another type: a dtype, or an old type or its name; without one, its own old name.

        Raises:
            ValueError: a text that names no type.
        """
        from disttrain import legacy

        if dtype is None:
            return legacy.type_name(self)
        old = legacy.dtype_of(dtype)
        return self.to(dtypes.as_dtype(dtype) if old is None else old)
