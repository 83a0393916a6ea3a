"""Activation functions whose form here differs from that at the top level, and those that exist only here."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from disttrain import random
from disttrain.functions import activation
from disttrain.functions.common import need_tensors
from disttrain.functions.creation import zeros_like
from disttrain.modes import replayed
from disttrain.tensors import Tensor


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """``exp(input)`` over its sum along ``dim``.

    Args:
        input: scores.
        dim: the dimension along which the results add up to 1; without one the first of vectors and of tensors of
            3 dimensions, else the second, with a warning.
        dtype: convert to it first.

    Raises:
        IndexError: there is no such dimension.
    """
    return activation.softmax(input, _choose("softmax", input, dim, _stacklevel), dtype)


def log_softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """The logarithm of :func:`softmax`, exact where that is near zero; same arguments and errors."""
    return activation.log_softmax(input, _choose("log_softmax", input, dim, _stacklevel), dtype)


def softmin(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """:func:`softmax` of ``-input``; same arguments and errors."""
    return activation.softmax(-input, _choose("softmin", input, dim, _stacklevel), dtype)


def _choose(name: str, input: Tensor, dim: int | None, stacklevel: int) -> int:
    if dim is not None:
        return dim
    warnings.warn(
        f"{name}: a dim that is left to be guessed is deprecated; say which, dim=...",
        stacklevel=stacklevel,
    )
    return 0 if input.ndim in (0, 1, 3) else 1


def gumbel_softmax(
    logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor:
    """A random sample near a one-hot vector, with a gradient (Jang et al. 2017, Maddison et al. 2017).

    Args:
        logits: unnormalised log-probabilities.
        tau: temperature: the smaller, the nearer.
        hard: return the one-hot vector itself, with the gradient of the soft sample.
        eps: has no effect.
        dim: the dimension along which the results add up to 1.
    """
    if eps != 1e-10:
        warnings.warn("gumbel_softmax: eps has no effect; leave it out", stacklevel=2)
    need_tensors("gumbel_softmax", logits)
    noise = _gumbel(logits.shape, logits._array.dtype).to(logits.device)
    soft = activation.softmax((logits + noise) / tau, dim)
    if not hard:
        return soft
    best = soft.detach().argmax(dim, keepdim=True)
    one = zeros_like(soft.detach()).scatter_(dim, best, 1.0)
    return one - soft.detach() + soft


@replayed
def _gumbel(shape: tuple[int, ...], kind: np.dtype[Any]) -> Tensor:
    """Draw from Gumbel's distribution."""
    u = (random.bits32(shape) + 0.5) * 2.0**-32  # in (0, 1): both logarithms are finite
    return Tensor._of((-np.log(-np.log(u))).astype(kind))
