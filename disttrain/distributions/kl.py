"""The Kullback-Leibler divergence of distributions of one kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from disttrain.distributions.continuous import Normal, Uniform
from disttrain.distributions.discrete import Bernoulli, Categorical
from disttrain.distributions.distribution import Distribution, Independent
from disttrain.functions.activation import softplus
from disttrain.functions.arithmetic import where
from disttrain.functions.elementwise import log

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = ["kl_divergence", "register_kl"]

_KINDS: dict[tuple[type, type], Callable[[Any, Any], Tensor]] = {}


def register_kl(
    type_p: type, type_q: type
) -> Callable[[Callable[[Any, Any], Any]], Callable[[Any, Any], Any]]:
    """Decorate a function that computes the divergence of a ``type_p`` from a ``type_q``."""
    for kind in (type_p, type_q):
        if not (isinstance(kind, type) and issubclass(kind, Distribution)):
            raise TypeError(f"register_kl() needs classes of distributions, got {kind!r}")

    def decorate(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        _KINDS[type_p, type_q] = function
        return function

    return decorate


def kl_divergence(p: Distribution, q: Distribution) -> Tensor:
    """Return the divergence of ``p`` from ``q``, of their batch shape, as ``torch.distributions.kl_divergence``.

    Raises:
        NotImplementedError: it is not known for these kinds.
    """
    for kind in type(p).__mro__:
        for other in type(q).__mro__:
            function = _KINDS.get((kind, other))
            if function is not None:
                return function(p, q)
    raise NotImplementedError(
        f"kl_divergence(): no formula from {type(p).__name__} to {type(q).__name__}; register_kl() adds one"
    )


@register_kl(Normal, Normal)
def _normal(p: Normal, q: Normal) -> Tensor:
    ratio = (p.scale / q.scale).pow(2)
    distance = ((p.loc - q.loc) / q.scale).pow(2)
    result: Tensor = 0.5 * (ratio + distance - 1 - log(ratio))
    return result


@register_kl(Uniform, Uniform)
def _uniform(p: Uniform, q: Uniform) -> Tensor:
    result = log((q.high - q.low) / (p.high - p.low))
    spread: Tensor = where((q.low > p.low).logical_or(q.high < p.high), float("inf"), result)
    return spread


def _expected(chance: Tensor, ratio: Tensor, other: Tensor) -> Tensor:
    """Return ``chance * ratio``, but 0 where there is no chance, and else infinity where ``other`` gives none."""
    term: Tensor = where(other == 0, float("inf"), chance * ratio)
    result: Tensor = where(chance == 0, 0.0, term)
    return result


@register_kl(Bernoulli, Bernoulli)
def _bernoulli(p: Bernoulli, q: Bernoulli) -> Tensor:
    one = _expected(p.probs, softplus(-q.logits) - softplus(-p.logits), q.probs)
    zero = _expected(1 - p.probs, softplus(q.logits) - softplus(p.logits), 1 - q.probs)
    return one + zero


@register_kl(Categorical, Categorical)
def _categorical(p: Categorical, q: Categorical) -> Tensor:
    result: Tensor = _expected(p.probs, p.logits - q.logits, q.probs).sum(-1)
    return result


@register_kl(Independent, Independent)
def _independent(p: Independent, q: Independent) -> Tensor:
    if p.reinterpreted_batch_ndims != q.reinterpreted_batch_ndims:
        raise NotImplementedError("kl_divergence() of Independent needs equal reinterpreted_batch_ndims")
    return p._sum(kl_divergence(p.base_dist, q.base_dist))
