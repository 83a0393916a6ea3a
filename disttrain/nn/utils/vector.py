"""Parameters as one vector, as ``torch.nn.utils``."""

from __future__ import annotations

from collections.abc import Iterable

from disttrain.engine import no_grad
from disttrain.functions.join import cat
from disttrain.tensors import Tensor


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """Return all elements of ``parameters``, one after another, as one vector."""
    return cat([p.reshape(-1) for p in parameters])


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Write the elements of ``vec`` into ``parameters``, one after another.

    Raises:
        TypeError: ``vec`` is no Tensor.
        ValueError: it has another number of elements than all parameters together; nothing is written.
    """
    if not isinstance(vec, Tensor):
        raise TypeError(f"expected a Tensor, got {type(vec).__name__}")
    into = list(parameters)
    count = sum(p.numel() for p in into)
    if vec.ndim != 1 or vec.numel() != count:
        raise ValueError(f"the parameters have {count} elements, got a tensor of shape {tuple(vec.shape)}")
    begin = 0
    with no_grad():
        for p in into:
            p.copy_(vec[begin : begin + p.numel()].reshape(p.shape))
            begin += p.numel()
