"""What users' own distributions are made with, by PyTorch's names (``torch.distributions.utils``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from disttrain.distributions.distribution import parameters as broadcast_all
from disttrain.functions.elementwise import log1p, sigmoid
from disttrain.limits import finfo
from disttrain.modes import enable_grad

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = ["broadcast_all", "clamp_probs", "lazy_property", "logits_to_probs", "probs_to_logits"]


def clamp_probs(probs: Tensor) -> Tensor:
    """Return probabilities kept off 0 and 1, by what their type can tell from them."""
    eps = finfo(probs.dtype).eps
    return probs.clamp(min=eps, max=1 - eps)


def logits_to_probs(logits: Tensor, is_binary: bool = False) -> Tensor:
    """Return the probabilities of logarithms of odds (``is_binary``), or of weights along the last dimension."""
    return sigmoid(logits) if is_binary else logits.softmax(-1)


def probs_to_logits(probs: Tensor, is_binary: bool = False) -> Tensor:
    """Return the logarithms of probabilities, or of their odds (``is_binary``)."""
    safe = clamp_probs(probs)
    return safe.log() - log1p(-safe) if is_binary else safe.log()


class lazy_property:
    """Decorate a method without arguments: it is called once, and its result is an attribute from then on."""

    def __init__(self, wrapped: Callable[[Any], Any]) -> None:
        self.wrapped = wrapped
        self.__doc__ = wrapped.__doc__

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        with enable_grad():
            value = self.wrapped(instance)
        setattr(instance, self.wrapped.__name__, value)
        return value
