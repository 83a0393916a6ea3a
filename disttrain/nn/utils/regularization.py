"""Penalties on the size of parameters, to be added to a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from disttrain.functions.creation import zeros
from disttrain.tensors import Tensor


def l1_penalty(parameters: Tensor | Iterable[Tensor]) -> Tensor:
    """Return the sum of the absolute values of all elements, differentiable: ``loss + 1e-4 * l1_penalty(...)``.

    The gradient is the sign of each element, so that elements are driven to 0.

    Args:
        parameters: Tensors of any shapes; of ``model.parameters()`` those that are to stay small. None gives 0.

    Returns:
        A Tensor without dimensions, in the parameters' type.

    Raises:
        TypeError: something that is no Tensor.
    """
    return _total(parameters, lambda p: p.abs().sum())


def l2_penalty(parameters: Tensor | Iterable[Tensor]) -> Tensor:
    """Return the sum of the squares of all elements, differentiable: ``loss + 1e-4 * l2_penalty(...)``.

    The gradient is twice each element: ``0.5 * weight_decay * l2_penalty(...)`` in the loss is what
    ``weight_decay`` is in :class:`disttrain.optim.SGD`.

    Args:
        parameters: Tensors of any shapes; of ``model.parameters()`` those that are to stay small. None gives 0.

    Returns:
        A Tensor without dimensions, in the parameters' type.

    Raises:
        TypeError: something that is no Tensor.
    """
    return _total(parameters, lambda p: (p * p).sum())


def _total(parameters: Tensor | Iterable[Tensor], size: Callable[[Tensor], Tensor]) -> Tensor:
    total: Tensor | None = None
    for p in [parameters] if isinstance(parameters, Tensor) else parameters:
        if not isinstance(p, Tensor):
            raise TypeError(f"a penalty is on Tensors, got {type(p).__name__}")
        total = size(p) if total is None else total + size(p)
    return zeros(()) if total is None else total
