"""The Kullback-Leibler divergence of distributions of one kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from disttrain.distributions.continuous import (
    Cauchy,
    Exponential,
    Gumbel,
    HalfCauchy,
    HalfNormal,
    Laplace,
    Normal,
    Pareto,
    Uniform,
)
from disttrain.distributions.discrete import (
    Bernoulli,
    Binomial,
    Categorical,
    Geometric,
    OneHotCategorical,
    Poisson,
)
from disttrain.distributions.distribution import Distribution, Independent
from disttrain.distributions.gamma import Beta, Dirichlet, Gamma, InverseGamma
from disttrain.distributions.multivariate import MultivariateNormal, distance, half_log_det
from disttrain.distributions.transformed import LogNormal, TransformedDistribution
from disttrain.functions.activation import softplus
from disttrain.functions.arithmetic import where, xlogy
from disttrain.functions.decompositions import solve_triangular
from disttrain.functions.elementwise import log
from disttrain.functions.shape import broadcast_tensors

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = ["kl_divergence", "register_kl"]

_EULER = 0.57721566490153286060
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


@register_kl(OneHotCategorical, OneHotCategorical)
def _one_hot(p: OneHotCategorical, q: OneHotCategorical) -> Tensor:
    result: Tensor = _categorical(p._choice, q._choice)
    return result


@register_kl(TransformedDistribution, TransformedDistribution)
def _transformed(p: TransformedDistribution, q: TransformedDistribution) -> Tensor:
    if p.transforms != q.transforms or p.event_shape != q.event_shape:
        raise NotImplementedError("kl_divergence() of TransformedDistribution needs equal transforms")
    extra = len(p.event_shape) - len(p.base_dist.event_shape)
    base = kl_divergence(p.base_dist, q.base_dist)
    return base.sum(tuple(range(-extra, 0))) if extra > 0 else base


@register_kl(LogNormal, LogNormal)
def _log_normal(p: LogNormal, q: LogNormal) -> Tensor:
    result: Tensor = _normal(p.base_dist, q.base_dist)
    return result


@register_kl(HalfNormal, HalfNormal)
def _half_normal(p: HalfNormal, q: HalfNormal) -> Tensor:
    ratio = (p.scale / q.scale).pow(2)
    result: Tensor = 0.5 * (ratio - 1 - log(ratio))
    return result


@register_kl(Laplace, Laplace)
def _laplace(p: Laplace, q: Laplace) -> Tensor:
    ratio, away = p.scale / q.scale, (p.loc - q.loc).abs()
    return -ratio.log() + away / q.scale + ratio * (-away / p.scale).exp() - 1


@register_kl(Cauchy, Cauchy)
def _cauchy(p: Cauchy, q: Cauchy) -> Tensor:
    together = (p.scale + q.scale).pow(2) + (p.loc - q.loc).pow(2)
    return together.log() - (4 * p.scale * q.scale).log()


@register_kl(Gumbel, Gumbel)
def _gumbel(p: Gumbel, q: Gumbel) -> Tensor:
    ratio, away = p.scale / q.scale, (q.loc - p.loc) / q.scale
    return -ratio.log() - away + (away + (1 + ratio).lgamma()).exp() + ratio * _EULER - (1 + _EULER)


@register_kl(Exponential, Exponential)
def _exponential(p: Exponential, q: Exponential) -> Tensor:
    ratio = q.rate / p.rate
    return ratio - ratio.log() - 1


@register_kl(Gamma, Gamma)
def _gamma(p: Gamma, q: Gamma) -> Tensor:
    moved = (p.concentration - q.concentration) * p.concentration.digamma()
    scale = q.concentration * (p.rate / q.rate).log() + p.concentration * (q.rate / p.rate - 1)
    return scale + q.concentration.lgamma() - p.concentration.lgamma() + moved


@register_kl(Exponential, Gamma)
def _exponential_gamma(p: Exponential, q: Gamma) -> Tensor:
    result: Tensor = _gamma(Gamma(p.rate * 0 + 1, p.rate, validate_args=False), q)
    return result


@register_kl(Gamma, Exponential)
def _gamma_exponential(p: Gamma, q: Exponential) -> Tensor:
    result: Tensor = _gamma(p, Gamma(q.rate * 0 + 1, q.rate, validate_args=False))
    return result


@register_kl(Beta, Beta)
def _beta(p: Beta, q: Beta) -> Tensor:
    result: Tensor = _dirichlet(p._shares(), q._shares())
    return result


@register_kl(Dirichlet, Dirichlet)
def _dirichlet(p: Dirichlet, q: Dirichlet) -> Tensor:
    a, b = p.concentration, q.concentration
    total = a.sum(-1)
    ways = total.lgamma() - b.sum(-1).lgamma() + (b.lgamma() - a.lgamma()).sum(-1)
    return ways + ((a - b) * (a.digamma() - total.digamma().unsqueeze(-1))).sum(-1)


@register_kl(Poisson, Poisson)
def _poisson(p: Poisson, q: Poisson) -> Tensor:
    return p.rate * (p.rate.log() - q.rate.log()) - (p.rate - q.rate)


@register_kl(Geometric, Geometric)
def _geometric(p: Geometric, q: Geometric) -> Tensor:
    return -p.entropy() - (-q.probs).log1p() / p.probs - q.logits


@register_kl(Binomial, Binomial)
def _binomial(p: Binomial, q: Binomial) -> Tensor:
    if bool((p.total_count < q.total_count).any()):
        raise NotImplementedError("kl_divergence() of Binomial to one of a larger total_count has no formula")
    each = xlogy(p.probs, p.probs / q.probs) + xlogy(1 - p.probs, (1 - p.probs) / (1 - q.probs))
    return where(p.total_count > q.total_count, float("inf"), p.total_count * each)  # type: ignore[no-any-return]


@register_kl(MultivariateNormal, MultivariateNormal)
def _multivariate_normal(p: MultivariateNormal, q: MultivariateNormal) -> Tensor:
    if p.event_shape != q.event_shape:
        raise ValueError(
            f"kl_divergence(): vectors of {tuple(p.event_shape)} and {tuple(q.event_shape)} elements"
        )
    ratio = solve_triangular(*broadcast_tensors(q._root, p._root), upper=False).pow(2).sum((-2, -1))
    away = distance(q._root, q.loc - p.loc)
    result: Tensor = half_log_det(q._root) - half_log_det(p._root) + 0.5 * (ratio + away - p.event_shape[0])
    return result


@register_kl(Beta, Normal)
@register_kl(Exponential, Normal)
@register_kl(Gamma, Normal)
@register_kl(Gumbel, Normal)
@register_kl(Laplace, Normal)
@register_kl(Uniform, Normal)
def _to_normal(p: Distribution, q: Normal) -> Tensor:
    squared = q.scale.pow(2)
    away = (p.variance + (p.mean - q.loc).pow(2)) / (2 * squared)
    return 0.5 * (2 * math.pi * squared).log() + away - p.entropy()


@register_kl(Normal, Laplace)
def _normal_laplace(p: Normal, q: Laplace) -> Tensor:
    away = (p.loc - q.loc) / p.scale
    bell = math.sqrt(2 / math.pi) * (-0.5 * away.pow(2)).exp()
    distance_ = p.scale * (bell + away * (math.sqrt(0.5) * away).erf()) / q.scale
    return (2 * q.scale).log() + distance_ - p.entropy()


@register_kl(InverseGamma, InverseGamma)
def _inverse_gamma(p: InverseGamma, q: InverseGamma) -> Tensor:
    result: Tensor = _gamma(
        Gamma(p.concentration, p.rate, validate_args=False),
        Gamma(q.concentration, q.rate, validate_args=False),
    )
    return result


@register_kl(Pareto, Pareto)
def _pareto(p: Pareto, q: Pareto) -> Tensor:
    ratio = p.scale / q.scale
    found = q.alpha * ratio.log() - (q.alpha / p.alpha).log() + q.alpha / p.alpha - 1
    return where(ratio < 1, float("inf"), found)  # type: ignore[no-any-return]


@register_kl(HalfCauchy, HalfCauchy)
def _half_cauchy(p: HalfCauchy, q: HalfCauchy) -> Tensor:
    result: Tensor = _cauchy(Cauchy(0.0, p.scale), Cauchy(0.0, q.scale))
    return result


@register_kl(Normal, Gumbel)
def _normal_gumbel(p: Normal, q: Gumbel) -> Tensor:
    away = (p.loc - q.loc) / q.scale
    spread = (0.5 * (p.scale / q.scale).pow(2) - away).exp()
    return q.scale.log() + away + spread - p.entropy()
