"""Probability distributions to draw from and to score with, by PyTorch's names (``torch.distributions``)."""

from typing import TYPE_CHECKING

from disttrain import missing
from disttrain.distributions.continuous import Normal, Uniform
from disttrain.distributions.discrete import Bernoulli, Categorical
from disttrain.distributions.distribution import Distribution, Independent
from disttrain.distributions.kl import kl_divergence, register_kl

__all__ = [
    "Bernoulli",
    "Categorical",
    "Distribution",
    "Independent",
    "Normal",
    "Uniform",
    "kl_divergence",
    "register_kl",
]


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
