"""The two kinds of tensors that a module keeps, learnt or not; also before their shape is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from disttrain import dtypes, missing
from disttrain.devices import device as Device
from disttrain.kernels.arrays import Array
from disttrain.tensors import Tensor


class Parameter(Tensor):
    """A tensor that a :class:`~disttrain.nn.Module` learns: assigned to an attribute, it is registered.

    Results of operations on it are plain Tensors. As ``torch.nn.Parameter``.

    Args:
        data: a tensor, whose memory is shared; empty by default.
        requires_grad: whether it is trained.

    Raises:
        TypeError: ``data`` is not a Tensor.
        RuntimeError: ``data`` holds integers, which can have no gradient.
    """

    def __init__(self, data: Tensor | None = None, requires_grad: bool = True) -> None:
        if data is None:
            super().__init__()
        else:
            self._array, self._version_counter = _array_of("Parameter", data), data._version_counter
        if requires_grad:
            self.requires_grad_()

    def __deepcopy__(self, memo: dict[Any, Any]) -> Any:
        """Return a parameter of the same values, without the gradient, as PyTorch's."""
        copied = type(self)(self.data.clone(), self._requires_grad)
        memo[id(self)] = copied
        return copied


class Buffer(Tensor):
    """A tensor that belongs to a module's state but is not learnt; assigned to an attribute, it is registered.

    As ``torch.nn.Buffer``.

    Args:
        data: a tensor, whose memory is shared; empty by default.
        persistent: whether it is part of the state dict.

    Raises:
        TypeError: ``data`` is not a Tensor.
    """

    persistent: bool = True

    def __init__(self, data: Tensor | None = None, *, persistent: bool = True) -> None:
        if data is None:
            super().__init__()
        else:
            self._array, self._version_counter = _array_of("Buffer", data), data._version_counter
        self.persistent = persistent


def _array_of(what: str, data: Any) -> Any:
    if not isinstance(data, Tensor):
        raise TypeError(
            f"a {what} is made of a Tensor, got {type(data).__name__}; convert it with disttrain.tensor()"
        )
    return data._array


class UninitializedTensorMixin(Tensor):
    """What a parameter and a buffer have in common that do not know their shape yet.

    They have a dtype and a device, and can be converted and moved. Whatever else asks for their memory is refused,
    because they have none: reading ``_array`` raises.
    """

    cls_to_become: ClassVar[type[Tensor]]

    def materialize(self, shape: int | Sequence[int], device: Any = None, dtype: Any = None) -> None:
        """Get memory, whose values are not set, and become an ordinary parameter or buffer.

        Args:
            shape: of the memory.
            device: where it is; by default where this one was to be.
            dtype: type of the elements, by default this one's.
        """
        from disttrain.functions.creation import empty

        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        self._array = empty(sizes, dtype=dtype or self.dtype, device=device or self.device)._array
        self.__class__ = self.cls_to_become  # type: ignore[assignment]  # the same object, in whose hands it is

    @property
    def _array(self) -> Array:
        raise ValueError(
            f"an {type(self).__name__} was used, which has no values: it is an uninitialized parameter or buffer of a "
            f"lazy module; call the module with a batch first, so that it sees the size of its input"
        )

    @_array.setter
    def _array(self, array: Array) -> None:
        self.__dict__["_array"] = array

    @property
    def data(self) -> Tensor:
        """A tensor without elements, of the dtype and the device."""
        return Tensor._of(self.__dict__["_array"])

    @data.setter
    def data(self, value: Tensor) -> None:
        self._array = value._array

    @property
    def shape(self) -> NoReturn:
        """Not known.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "a lazy parameter or buffer has no shape yet: it is known once the lazy module has been "
            "called with a batch, or has loaded the state of one that has; load_state_dict() cannot put an "
            "uninitialized parameter in the place of an initialized one"
        )

    def size(self, dim: int | None = None) -> Any:
        """Return the shape of nothing."""
        return self.data.size(dim)

    @property
    def dtype(self) -> dtypes.dtype:
        """Type that the elements will have."""
        return self.data.dtype

    @property
    def device(self) -> Device:
        """Where the memory will be."""
        return self.data.device

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return a tensor without elements of another dtype or on another device; see :meth:`Tensor.to`."""
        return self.data.to(*args, **kwargs)

    def copy_(self, src: Tensor, non_blocking: bool = False) -> Any:
        """Return itself: there is nothing to copy from another that is uninitialized.

        Raises:
            ValueError: ``src`` has elements.
        """
        if not is_lazy(src) and src.numel():
            raise ValueError(
                f"an {type(self).__name__} has no memory to copy to; materialize({tuple(src.shape)}) it first"
            )
        return self

    def detach(self) -> Any:
        """Return itself: it has no history."""
        return self

    def share_memory_(self) -> NoReturn:
        """Refuse.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "share_memory_(): a lazy parameter or buffer has no memory yet; call its module with a batch first"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __hash__(self) -> int:
        return id(self)

    def __deepcopy__(self, memo: dict[Any, Any]) -> Any:
        copied = type(self)(self._requires_grad, self.device, self.dtype)
        memo[id(self)] = copied
        return copied


class UninitializedParameter(UninitializedTensorMixin, Parameter):
    """A parameter whose shape is not known yet, as ``torch.nn.UninitializedParameter``.

    Args:
        requires_grad: whether it will be trained.
        device: where it will be.
        dtype: of its elements, by default the default dtype.
    """

    cls_to_become = Parameter

    def __init__(self, requires_grad: bool = True, device: Any = None, dtype: Any = None) -> None:
        super().__init__(_nothing(device, dtype), requires_grad)


class UninitializedBuffer(UninitializedTensorMixin, Buffer):
    """A buffer whose shape is not known yet, as ``torch.nn.UninitializedBuffer``.

    Args:
        requires_grad: whether operations on it will be recorded.
        device: where it will be.
        dtype: of its elements, by default the default dtype.
        persistent: whether it is part of the state dict.
    """

    cls_to_become = Tensor

    def __init__(
        self, requires_grad: bool = False, device: Any = None, dtype: Any = None, persistent: bool = True
    ) -> None:
        super().__init__(_nothing(device, dtype), persistent=persistent)
        if requires_grad:
            self.requires_grad_()


def is_lazy(param: Any) -> bool:
    """Return whether ``param`` is a parameter or a buffer that does not know its shape yet."""
    return isinstance(param, UninitializedTensorMixin)


def _nothing(device: Any, dtype: Any) -> Tensor:
    from disttrain.functions.creation import empty

    return empty(0, device=device, dtype=dtype)


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
