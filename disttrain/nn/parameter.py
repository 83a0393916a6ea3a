"""The two kinds of tensors that a module keeps: those that are learnt, and those that are not."""

from __future__ import annotations

from typing import Any

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
        super().__init__(0 if data is None else _array_of("Parameter", data))
        if data is not None:
            self._version_counter = data._version_counter
        if requires_grad:
            self.requires_grad_()


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
        super().__init__(0 if data is None else _array_of("Buffer", data))
        if data is not None:
            self._version_counter = data._version_counter
        self.persistent = persistent


def _array_of(what: str, data: Any) -> Any:
    if not isinstance(data, Tensor):
        raise TypeError(
            f"a {what} is made of a Tensor, got {type(data).__name__}; convert it with disttrain.tensor()"
        )
    return data._array
