"""Distributions of transformed draws, and those that are made so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from disttrain.distributions import constraints
from disttrain.distributions.constraints import Constraint
from disttrain.distributions.continuous import Normal, open_uniform
from disttrain.distributions.discrete import Categorical, _Odds
from disttrain.distributions.distribution import Distribution, Independent
from disttrain.distributions.transforms import (
    ComposeTransform,
    ExpTransform,
    SigmoidTransform,
    Transform,
    sum_last,
)
from disttrain.functions.activation import softplus
from disttrain.modes import no_grad

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = [
    "LogNormal",
    "LogitRelaxedBernoulli",
    "RelaxedBernoulli",
    "RelaxedOneHotCategorical",
    "TransformedDistribution",
]


class TransformedDistribution(Distribution):
    """What draws of ``base_distribution`` become by ``transforms``, as ``torch.distributions.TransformedDistribution``.

    Raises:
        ValueError: ``transforms`` is no transform and no list of them, or the base has too few dimensions for them.
    """

    def __init__(
        self,
        base_distribution: Distribution,
        transforms: Transform | Sequence[Transform],
        validate_args: bool | None = None,
    ) -> None:
        parts = [transforms] if isinstance(transforms, Transform) else transforms
        if not isinstance(parts, list | tuple) or not all(isinstance(t, Transform) for t in parts):
            raise ValueError(f"transforms must be a Transform or a list of them, got {transforms!r:.80}")
        self.transforms = list(parts)
        whole = ComposeTransform(self.transforms)
        base_shape = (*base_distribution.batch_shape, *base_distribution.event_shape)
        events = len(base_distribution.event_shape)
        if len(base_shape) < whole.domain.event_dim:
            raise ValueError(
                f"base_distribution needs at least {whole.domain.event_dim} dimensions for these transforms, got shape "
                f"{base_shape}"
            )
        shape = tuple(whole.forward_shape(base_shape))
        expanded = tuple(whole.inverse_shape(shape))
        if base_shape != expanded:
            base_distribution = base_distribution.expand(expanded[: len(expanded) - events])
        more = whole.domain.event_dim - events
        if more > 0:
            base_distribution = Independent(base_distribution, more)
        self.base_dist = base_distribution
        taken = max(len(base_distribution.event_shape), whole.domain.event_dim)
        event_dim = whole.codomain.event_dim + max(taken - whole.domain.event_dim, 0)
        cut = len(shape) - event_dim
        super().__init__(shape[:cut], shape[cut:], validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws have gradients."""
        return self.base_dist.has_rsample

    @property
    def support(self) -> Constraint:
        if not self.transforms:
            return self.base_dist.support
        last = self.transforms[-1].codomain
        return constraints.independent(last, max(len(self._event_shape) - last.event_dim, 0))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        shape = ComposeTransform(self.transforms).inverse_shape((*batch_shape, *self._event_shape))
        new = super().expand(batch_shape)
        new.base_dist = self.base_dist.expand(shape[: len(shape) - len(self.base_dist.event_shape)])
        return new

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with no_grad():
            return self._forward(self.base_dist.sample(sample_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self._forward(self.base_dist.rsample(sample_shape))

    def _forward(self, x: Tensor) -> Tensor:
        for transform in self.transforms:
            x = transform(x)
        return x

    def log_prob(self, value: Tensor) -> Tensor:
        self._validate_sample(value)
        events = len(self._event_shape)
        total: Any = 0.0
        y = value
        for transform in reversed(self.transforms):
            x = transform._inv_call(y)
            events += transform.domain.event_dim - transform.codomain.event_dim
            grown = transform.log_abs_det_jacobian(x, y)
            total = total - sum_last(grown, events - transform.domain.event_dim)
            y = x
        return total + sum_last(self.base_dist.log_prob(y), events - len(self.base_dist.event_shape))  # type: ignore[no-any-return]

    def _flip(self, p: Any) -> Any:
        """Return ``1 - p`` where the transforms fall, else ``p``."""
        sign: Any = 1
        for transform in self.transforms:
            sign = sign * transform.sign
        return p if isinstance(sign, int) and sign == 1 else sign * (p - 0.5) + 0.5

    def cdf(self, value: Tensor) -> Tensor:
        for transform in reversed(self.transforms):
            value = transform._inv_call(value)
        return self._flip(self.base_dist.cdf(value))  # type: ignore[no-any-return]

    def icdf(self, value: Tensor) -> Tensor:
        return self._forward(self.base_dist.icdf(self._flip(value)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_dist}, {self.transforms})"


class LogNormal(TransformedDistribution):
    """``exp`` of a normal number, as ``torch.distributions.LogNormal``.

    Raises:
        ValueError: ``scale`` is not positive, or ``loc`` is nan.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = Normal.arg_constraints
    base_dist: Normal

    def __init__(self, loc: Any, scale: Any, validate_args: bool | None = None) -> None:
        super().__init__(Normal(loc, scale, validate_args), ExpTransform(), validate_args)

    @property
    def loc(self) -> Tensor:
        """Mean of the logarithm."""
        return self.base_dist.loc

    @property
    def scale(self) -> Tensor:
        """Standard deviation of the logarithm."""
        return self.base_dist.scale

    @property
    def mean(self) -> Tensor:
        return (self.loc + self.scale.pow(2) / 2).exp()

    @property
    def mode(self) -> Tensor:
        return (self.loc - self.scale.pow(2)).exp()

    @property
    def variance(self) -> Tensor:
        squared = self.scale.pow(2)
        return squared.expm1() * (2 * self.loc + squared).exp()

    def entropy(self) -> Tensor:
        return self.base_dist.entropy() + self.loc


class LogitRelaxedBernoulli(_Odds):
    """The logit of a :class:`RelaxedBernoulli` number, as ``LogitRelaxedBernoulli`` of PyTorch.

    Raises:
        ValueError: both or neither of ``probs`` and ``logits`` is given, or a probability is not in [0, 1].
    """

    has_rsample = True

    def __init__(
        self, temperature: Any, probs: Any = None, logits: Any = None, validate_args: bool | None = None
    ) -> None:
        self.temperature = temperature
        self._take(probs, logits)
        super().__init__(self.probs.shape, (), validate_args)

    @property
    def support(self) -> Constraint:
        return constraints.real

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        u = open_uniform(self._shape(sample_shape), self.probs)
        return (u.log() - (-u).log1p() + self.logits) / self.temperature  # type: ignore[no-any-return]

    def log_prob(self, value: Tensor) -> Tensor:
        self._validate_sample(value)
        diff = self.logits - value * self.temperature
        result: Tensor = _log(self.temperature, value) + diff - 2 * softplus(diff)
        return result


def _log(x: Any, like: Tensor) -> Tensor:
    return x.log() if hasattr(x, "log") else like.new_full((), x).log()


class RelaxedBernoulli(TransformedDistribution):
    """A number in (0, 1) near 0 or 1, as ``torch.distributions.RelaxedBernoulli`` (Maddison et al., 2017).

    Raises:
        ValueError: see :class:`LogitRelaxedBernoulli`.
    """

    base_dist: LogitRelaxedBernoulli

    def __init__(
        self, temperature: Any, probs: Any = None, logits: Any = None, validate_args: bool | None = None
    ) -> None:
        base = LogitRelaxedBernoulli(temperature, probs, logits, validate_args)
        super().__init__(base, SigmoidTransform(), validate_args)

    @property
    def temperature(self) -> Any:
        """How far from 0 and 1 draws may be."""
        return self.base_dist.temperature

    @property
    def probs(self) -> Tensor:
        """Probabilities of 1."""
        return self.base_dist.probs

    @property
    def logits(self) -> Tensor:
        """Logarithms of the odds."""
        return self.base_dist.logits


class _ExpRelaxedCategorical(Distribution):
    """The logarithms of shares that lean to one choice."""

    arg_constraints: ClassVar[dict[str, Constraint]] = Categorical.arg_constraints
    has_rsample = True

    def __init__(self, temperature: Any, probs: Any, logits: Any, validate_args: bool | None) -> None:
        self._choice = Categorical(probs, logits, validate_args)
        self.temperature = temperature
        super().__init__(self._choice.batch_shape, self._choice.param_shape[-1:], validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        new = super().expand(batch_shape)
        new._choice = self._choice.expand(batch_shape)
        return new

    @property
    def support(self) -> Constraint:
        return constraints.real_vector

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        logits = self._choice.logits
        gumbel = -(-open_uniform(self._shape(sample_shape), logits).log()).log()
        result: Tensor = ((logits + gumbel) / self.temperature).log_softmax(-1)
        return result

    def log_prob(self, value: Tensor) -> Tensor:
        self._validate_sample(value)
        k = value.shape[-1]
        score = self._choice.logits - value * self.temperature
        score = (score - score.logsumexp(-1, keepdim=True)).sum(-1)
        ways = value.new_full((), float(k)).lgamma()
        result: Tensor = score + ways + (k - 1) * _log(self.temperature, value)
        return result


class RelaxedOneHotCategorical(TransformedDistribution):
    """Shares near a single 1, as ``torch.distributions.RelaxedOneHotCategorical`` (Jang, Gu and Poole, 2017).

    Raises:
        ValueError: see :class:`Categorical`.
    """

    base_dist: _ExpRelaxedCategorical

    def __init__(
        self, temperature: Any, probs: Any = None, logits: Any = None, validate_args: bool | None = None
    ) -> None:
        base = _ExpRelaxedCategorical(temperature, probs, logits, validate_args)
        super().__init__(base, ExpTransform(), validate_args)

    @property
    def support(self) -> Constraint:
        return constraints.simplex

    @property
    def temperature(self) -> Any:
        """How far from a single 1 draws may be."""
        return self.base_dist.temperature

    @property
    def probs(self) -> Tensor:
        """Probabilities of the choices."""
        return self.base_dist._choice.probs

    @property
    def logits(self) -> Tensor:
        """Logarithms of ``probs``."""
        return self.base_dist._choice.logits
