"""Distributions over numbers of a continuum; gradients pass through their draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from disttrain import engine
from disttrain.distributions.distribution import Distribution, parameters
from disttrain.functions.elementwise import isfinite, log
from disttrain.functions.random import rand, randn
from disttrain.ops.activation import erf

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = ["Normal", "Uniform"]


class Normal(Distribution):
    """The normal distribution of mean ``loc`` and standard deviation ``scale``, as ``torch.distributions.Normal``.

    Raises:
        ValueError: ``scale`` is not positive, or a parameter is nan.
    """

    has_rsample = True

    def __init__(self, loc: Any, scale: Any, validate_args: bool | None = None) -> None:
        self.loc, self.scale = parameters(loc, scale)
        super().__init__(self.loc.shape, (), validate_args)
        self._check("loc", self.loc, self.loc == self.loc, "real")
        self._check("scale", self.scale, self.scale > 0, "positive")

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        """The most probable value."""
        return self.loc

    @property
    def stddev(self) -> Tensor:
        return self.scale

    @property
    def variance(self) -> Tensor:
        return self.scale * self.scale

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._shape(sample_shape)
        return self.loc + randn(shape, dtype=self.loc.dtype, device=self.loc.device) * self.scale

    def log_prob(self, value: Tensor) -> Tensor:
        self._check_value(value, isfinite, "real")
        z = (value - self.loc) / self.scale
        return -0.5 * z * z - log(self.scale) - 0.5 * math.log(2 * math.pi)

    def cdf(self, value: Tensor) -> Tensor:
        """Return the probability of numbers below ``value``."""
        self._check_value(value, isfinite, "real")
        z = (value - self.loc) / self.scale / math.sqrt(2)
        return 0.5 * (1 + engine.apply(erf, z))  # type: ignore[no-any-return]

    def entropy(self) -> Tensor:
        return 0.5 + 0.5 * math.log(2 * math.pi) + log(self.scale)


class Uniform(Distribution):
    """Even in ``[low, high)``, as ``torch.distributions.Uniform``.

    Raises:
        ValueError: ``low`` is not below ``high``.
    """

    has_rsample = True

    def __init__(self, low: Any, high: Any, validate_args: bool | None = None) -> None:
        self.low, self.high = parameters(low, high)
        super().__init__(self.low.shape, (), validate_args)
        if self._validate_args and not bool((self.low < self.high).all()):
            raise ValueError(f"Uniform is not defined when low >= high: low={self.low!r}, high={self.high!r}")

    @property
    def mean(self) -> Tensor:
        return (self.high + self.low) / 2

    @property
    def variance(self) -> Tensor:
        return (self.high - self.low).pow(2) / 12

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        u = rand(self._shape(sample_shape), dtype=self.low.dtype, device=self.low.device)
        return self.low + u * (self.high - self.low)

    def log_prob(self, value: Tensor) -> Tensor:
        self._check_value(
            value, lambda v: (v >= self.low).logical_and(v <= self.high), "between low and high"
        )
        inside = (self.low <= value).logical_and(self.high > value)
        return log(inside.type_as(self.low)) - log(self.high - self.low)

    def cdf(self, value: Tensor) -> Tensor:
        """Return the probability of numbers below ``value``."""
        return ((value - self.low) / (self.high - self.low)).clamp(0, 1)

    def entropy(self) -> Tensor:
        return log(self.high - self.low)
