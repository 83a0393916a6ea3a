"""Distributions over a few choices; their draws have no gradient, their probabilities have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from disttrain import dtypes
from disttrain.distributions.distribution import Distribution, parameters
from disttrain.functions.activation import log_softmax, softmax, softplus
from disttrain.functions.elementwise import log, log1p, sigmoid
from disttrain.functions.random import bernoulli, multinomial
from disttrain.functions.scatter import gather
from disttrain.functions.shape import broadcast_tensors
from disttrain.modes import no_grad

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = ["Bernoulli", "Categorical"]


def _eps(t: Tensor) -> float:
    return {dtypes.float64: 2.0**-52, dtypes.float32: 2.0**-23, dtypes.float16: 2.0**-10}.get(
        t.dtype, 2.0**-7
    )


def _one_of(probs: Any, logits: Any) -> None:
    if (probs is None) == (logits is None):
        raise ValueError("one of probs and logits is needed, and only one; give the other None")


class Bernoulli(Distribution):
    """1 with probability ``probs``, else 0, as ``torch.distributions.Bernoulli``.

    Args:
        probs: probabilities of 1, or
        logits: logarithms of their odds.
        validate_args: see :class:`Distribution`.

    Raises:
        ValueError: both or neither is given, or a probability is not in [0, 1].
    """

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None) -> None:
        _one_of(probs, logits)
        (given,) = parameters(logits if probs is None else probs)
        super().__init__(given.shape, (), validate_args)
        if probs is None:
            self.logits, self.probs = given, sigmoid(given)
            self._check("logits", given, given == given, "real")
        else:
            self.probs = given
            self._check("probs", given, (given >= 0).logical_and(given <= 1), "in [0, 1]")
            safe = given.clamp(_eps(given), 1 - _eps(given))
            self.logits = log(safe) - log1p(-safe)

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def variance(self) -> Tensor:
        return self.probs * (1 - self.probs)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with no_grad():
            return bernoulli(self.probs.expand(self._shape(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        self._check_value(value, lambda v: (v == 0).logical_or(v == 1), "0 or 1")
        logits, value = broadcast_tensors(self.logits, value)
        return value * logits - softplus(logits)

    def entropy(self) -> Tensor:
        return softplus(self.logits) - self.probs * self.logits


class Categorical(Distribution):
    """One of as many choices as the last dimension counts, as ``torch.distributions.Categorical``.

    Args:
        probs: weights of the choices, which need not sum to one, or
        logits: their logarithms, up to a constant.
        validate_args: see :class:`Distribution`.

    Raises:
        ValueError: both or neither is given, there is no dimension, or a weight is negative.
    """

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None) -> None:
        _one_of(probs, logits)
        given = logits if probs is None else probs
        if given.dim() < 1:
            which = "logits" if probs is None else "probs"
            raise ValueError(
                f"{type(self).__name__}: {which} needs a dimension of classes, got a tensor without dimensions"
            )
        super().__init__(given.shape[:-1], (), validate_args)
        self._num_events = int(given.shape[-1])
        if probs is None:
            self.logits = log_softmax(given, -1)
            self._check("logits", given, given == given, "real")
            self.probs = softmax(given, -1)
        else:
            self.probs = given / given.sum(-1, keepdim=True)
            self._check("probs", self.probs, self.probs >= 0, "on the simplex")
            self.logits = log(self.probs.clamp(_eps(given), 1 - _eps(given)))

    @property
    def mode(self) -> Tensor:
        """The most probable choice."""
        return self.probs.argmax(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        count = 1
        for n in sample_shape:
            count *= n
        with no_grad():
            rows = self.probs.reshape(-1, self._num_events)
            drawn = multinomial(rows, count, True) if count else rows.new_zeros(rows.shape[0], 0).long()
            return drawn.t().reshape(self._shape(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        n = self._num_events
        self._check_value(
            value, lambda v: (v % 1 == 0).logical_and(v >= 0).logical_and(v < n), f"0 to {n - 1}"
        )
        index = value.long().unsqueeze(-1)
        shape = broadcast_tensors(index, self.logits[..., :1])[0].shape
        logits = self.logits.expand((*shape[:-1], n))
        return gather(logits, -1, index.expand(shape)).squeeze(-1)

    def entropy(self) -> Tensor:
        return -(self.probs * self.logits).sum(-1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return all choices, along a new first dimension."""
        from disttrain.functions.creation import arange

        values = arange(self._num_events).reshape(-1, *[1] * len(self.batch_shape))
        return values.expand((-1, *self.batch_shape)) if expand else values
