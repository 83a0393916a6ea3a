"""Distributions over choices and counts; their draws have no gradient, their probabilities have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from disttrain.distributions import constraints
from disttrain.distributions.constraints import Constraint
from disttrain.distributions.distribution import Distribution, ExponentialFamily, parameters
from disttrain.distributions.gamma import standard_gamma
from disttrain.distributions.utils import probs_to_logits
from disttrain.functions.activation import log_softmax, softmax, softplus
from disttrain.functions.arithmetic import where, xlogy
from disttrain.functions.creation import arange, eye, zeros_like
from disttrain.functions.elementwise import sigmoid
from disttrain.functions.random import bernoulli, binomial, multinomial, poisson
from disttrain.functions.scatter import gather
from disttrain.functions.shape import broadcast_tensors
from disttrain.limits import finfo
from disttrain.modes import no_grad

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = [
    "Bernoulli",
    "Binomial",
    "Categorical",
    "Geometric",
    "Multinomial",
    "NegativeBinomial",
    "OneHotCategorical",
    "OneHotCategoricalStraightThrough",
    "Poisson",
]


def _one_of(probs: Any, logits: Any) -> None:
    if (probs is None) == (logits is None):
        raise ValueError("one of probs and logits is needed, and only one; give the other None")


class _Odds(Distribution):
    """What distributions with a chance share: ``probs`` or ``logits``, the logarithms of their odds."""

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "probs": constraints.unit_interval,
        "logits": constraints.real,
    }
    probs: Tensor
    logits: Tensor

    def _take(self, probs: Any, logits: Any, *others: Any) -> tuple[Tensor, ...]:
        """Set ``probs`` and ``logits``; return the other parameters, broadcast with them."""
        _one_of(probs, logits)
        given, *rest = parameters(logits if probs is None else probs, *others)
        if probs is None:
            self.logits, self.probs, self._computed = given, sigmoid(given), "probs"
        else:
            self.probs, self.logits, self._computed = given, probs_to_logits(given, is_binary=True), "logits"
        return tuple(rest)

    @property
    def param_shape(self) -> Any:
        """Shape of ``probs``."""
        return self.probs.shape


class Bernoulli(_Odds, ExponentialFamily):
    """1 with probability ``probs``, else 0, as ``torch.distributions.Bernoulli``.

    Args:
        probs: probabilities of 1, or
        logits: logarithms of their odds.
        validate_args: see :class:`Distribution`.

    Raises:
        ValueError: both or neither is given, or a probability is not in [0, 1].
    """

    has_enumerate_support = True

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None) -> None:
        self._take(probs, logits)
        super().__init__(self.probs.shape, (), validate_args)

    @property
    def support(self) -> Constraint:
        return constraints.boolean

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def mode(self) -> Tensor:
        likely = (self.probs >= 0.5).to(self.probs.dtype)
        return where(self.probs == 0.5, math.nan, likely)  # type: ignore[no-any-return]

    @property
    def variance(self) -> Tensor:
        return self.probs * (1 - self.probs)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with no_grad():
            return bernoulli(self.probs.expand(self._shape(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        self._validate_sample(value)
        logits, value = broadcast_tensors(self.logits, value)
        return value * logits - softplus(logits)

    def entropy(self) -> Tensor:
        return softplus(self.logits) - self.probs * self.logits

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = arange(2, dtype=self.probs.dtype).reshape(-1, *[1] * len(self.batch_shape))
        return values.expand((-1, *self.batch_shape)) if expand else values


class Geometric(_Odds):
    """Failures before the first success of chance ``probs``, as ``torch.distributions.Geometric``.

    Raises:
        ValueError: both or neither of ``probs`` and ``logits`` is given, or a probability is not in (0, 1].
    """

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None) -> None:
        self._take(probs, logits)
        super().__init__(self.probs.shape, (), validate_args)
        if self._validate_args and probs is not None and not bool((self.probs > 0).all()):
            raise ValueError(f"Geometric: probs has to be positive, got\n{self.probs!r}")

    @property
    def support(self) -> Constraint:
        return constraints.nonnegative_integer

    @property
    def mean(self) -> Tensor:
        return self.probs.reciprocal() - 1

    @property
    def mode(self) -> Tensor:
        return zeros_like(self.probs)

    @property
    def variance(self) -> Tensor:
        return (self.probs.reciprocal() - 1) / self.probs

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        from disttrain.distributions.continuous import open_uniform

        with no_grad():
            u = open_uniform(self._shape(sample_shape), self.probs)
            return (u.log() / (-self.probs).log1p()).floor()

    def log_prob(self, value: Tensor) -> Tensor:
        self._validate_sample(value)
        value, probs = broadcast_tensors(value, self.probs)
        failed = where((probs == 1).logical_and(value == 0), 0.0, probs)
        result: Tensor = value * (-failed).log1p() + self.probs.log()
        return result

    def entropy(self) -> Tensor:
        return (softplus(self.logits) - self.probs * self.logits) / self.probs


class Binomial(_Odds):
    """Successes of chance ``probs`` in ``total_count`` trials, as ``torch.distributions.Binomial``.

    Raises:
        ValueError: both or neither of ``probs`` and ``logits`` is given, or a parameter lies outside its region.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "total_count": constraints.nonnegative_integer,
        **_Odds.arg_constraints,
    }
    has_enumerate_support = True

    def __init__(
        self, total_count: Any = 1, probs: Any = None, logits: Any = None, validate_args: bool | None = None
    ) -> None:
        (self.total_count,) = self._take(probs, logits, total_count)
        self.total_count = self.total_count.type_as(self.probs)
        super().__init__(self.probs.shape, (), validate_args)

    @property
    def support(self) -> Constraint:
        return constraints.integer_interval(0, self.total_count)

    @property
    def mean(self) -> Tensor:
        return self.total_count * self.probs

    @property
    def mode(self) -> Tensor:
        return ((self.total_count + 1) * self.probs).floor().clamp(max=self.total_count)

    @property
    def variance(self) -> Tensor:
        return self.total_count * self.probs * (1 - self.probs)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._shape(sample_shape)
        with no_grad():
            return binomial(self.total_count.expand(shape), self.probs.expand(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        self._validate_sample(value)
        n = self.total_count
        ways = (n + 1).lgamma() - (value + 1).lgamma() - (n - value + 1).lgamma()
        return ways + value * self.logits - n * softplus(self.logits)

    def entropy(self) -> Tensor:
        n = int(self.total_count.max().item())
        if int(self.total_count.min().item()) != n:
            raise NotImplementedError("Binomial.entropy() needs one total_count for all of the batch")
        log_prob = self.log_prob(self.enumerate_support(False))
        return -(log_prob.exp() * log_prob).sum(0)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        n = int(self.total_count.max().item())
        if int(self.total_count.min().item()) != n:
            raise NotImplementedError(
                "Binomial.enumerate_support() needs one total_count for all of the batch"
            )
        values = arange(n + 1, dtype=self.probs.dtype).reshape(-1, *[1] * len(self.batch_shape))
        return values.expand((-1, *self.batch_shape)) if expand else values


class NegativeBinomial(_Odds):
    """Successes of chance ``probs`` before ``total_count`` failures, as ``torch.distributions.NegativeBinomial``.

    Raises:
        ValueError: both or neither of ``probs`` and ``logits`` is given, or a parameter lies outside its region.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "total_count": constraints.nonnegative,
        "probs": constraints.half_open_interval(0.0, 1.0),
        "logits": constraints.real,
    }

    def __init__(
        self, total_count: Any, probs: Any = None, logits: Any = None, validate_args: bool | None = None
    ) -> None:
        (self.total_count,) = self._take(probs, logits, total_count)
        self.total_count = self.total_count.type_as(self.probs)
        super().__init__(self.probs.shape, (), validate_args)

    @property
    def support(self) -> Constraint:
        return constraints.nonnegative_integer

    @property
    def mean(self) -> Tensor:
        return self.total_count * self.logits.exp()

    @property
    def mode(self) -> Tensor:
        return ((self.total_count - 1) * self.logits.exp()).floor().clamp(min=0.0)

    @property
    def variance(self) -> Tensor:
        return self.mean / sigmoid(-self.logits)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with no_grad():
            rate = standard_gamma(self.total_count.expand(self._shape(sample_shape))) * self.logits.exp()
            return poisson(rate)

    def log_prob(self, value: Tensor) -> Tensor:
        self._validate_sample(value)
        n = self.total_count
        chance = -n * softplus(self.logits) - value * softplus(-self.logits)
        ways = (n + value).lgamma() - (value + 1).lgamma() - n.lgamma()
        return chance + where(n + value == 0, 0.0, ways)  # type: ignore[no-any-return]


class Poisson(ExponentialFamily):
    """How many events come in a time in which ``rate`` are expected, as ``torch.distributions.Poisson``.

    Raises:
        ValueError: ``rate`` is negative.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {"rate": constraints.nonnegative}

    def __init__(self, rate: Any, validate_args: bool | None = None) -> None:
        (self.rate,) = parameters(rate)
        super().__init__(self.rate.shape, (), validate_args)

    @property
    def support(self) -> Constraint:
        return constraints.nonnegative_integer

    @property
    def mean(self) -> Tensor:
        return self.rate

    @property
    def mode(self) -> Tensor:
        return self.rate.floor()

    @property
    def variance(self) -> Tensor:
        return self.rate

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with no_grad():
            return poisson(self.rate.expand(self._shape(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        self._validate_sample(value)
        rate, value = broadcast_tensors(self.rate, value)
        return xlogy(value, rate) - rate - (value + 1).lgamma()


class Categorical(Distribution):
    """One of as many choices as the last dimension counts, as ``torch.distributions.Categorical``.

    Args:
        probs: weights of the choices, which need not sum to one, or
        logits: their logarithms, up to a constant.
        validate_args: see :class:`Distribution`.

    Raises:
        ValueError: both or neither is given, there is no dimension, or a weight is negative.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "probs": constraints.simplex,
        "logits": constraints.real_vector,
    }
    has_enumerate_support = True

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None) -> None:
        _one_of(probs, logits)
        given = logits if probs is None else probs
        if given.dim() < 1:
            which = "logits" if probs is None else "probs"
            raise ValueError(
                f"{type(self).__name__}: {which} needs a dimension of classes, got a tensor without dimensions"
            )
        self._num_events = int(given.shape[-1])
        self._computed = "probs" if probs is None else "logits"
        if probs is None:
            self.logits = log_softmax(given, -1)
            self.probs = softmax(given, -1)
        else:
            self.probs = given / given.sum(-1, keepdim=True)
            self.logits = probs_to_logits(self.probs)
        super().__init__(given.shape[:-1], (), validate_args)

    @property
    def support(self) -> Constraint:
        return constraints.integer_interval(0, self._num_events - 1)

    @property
    def param_shape(self) -> Any:
        """Shape of ``probs``."""
        return self.probs.shape

    @property
    def mean(self) -> Tensor:
        return self.probs.detach().sum(-1) * math.nan

    @property
    def mode(self) -> Tensor:
        return self.probs.argmax(-1)

    @property
    def variance(self) -> Tensor:
        return self.mean

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        count = math.prod(sample_shape)
        with no_grad():
            rows = self.probs.reshape(-1, self._num_events)
            drawn = multinomial(rows, count, True) if count else rows.new_zeros(rows.shape[0], 0).long()
            return drawn.t().reshape((*sample_shape, *self._batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        self._validate_sample(value)
        n = self._num_events
        index = value.long().unsqueeze(-1)
        shape = broadcast_tensors(index, self.logits[..., :1])[0].shape
        logits = self.logits.expand((*shape[:-1], n))
        return gather(logits, -1, index.expand(shape)).squeeze(-1)

    def entropy(self) -> Tensor:
        return -(self.probs * self.logits.clamp(min=finfo(self.logits.dtype).min)).sum(-1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = arange(self._num_events).reshape(-1, *[1] * len(self.batch_shape))
        return values.expand((-1, *self.batch_shape)) if expand else values


class OneHotCategorical(Distribution):
    """A :class:`Categorical` choice as a vector with a single 1, as ``torch.distributions.OneHotCategorical``.

    Raises:
        ValueError: see :class:`Categorical`.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = Categorical.arg_constraints
    has_enumerate_support = True

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None) -> None:
        self._choice = Categorical(probs, logits, validate_args)
        super().__init__(self._choice.batch_shape, self._choice.param_shape[-1:], validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        new = super().expand(batch_shape)
        new._choice = self._choice.expand(batch_shape)
        return new

    @property
    def support(self) -> Constraint:
        return constraints.one_hot

    @property
    def probs(self) -> Tensor:
        """Probabilities of the choices."""
        return self._choice.probs

    @property
    def logits(self) -> Tensor:
        """Logarithms of ``probs``."""
        return self._choice.logits

    @property
    def param_shape(self) -> Any:
        """Shape of ``probs``."""
        return self._choice.param_shape

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def mode(self) -> Tensor:
        return self._hot(self._choice.mode)

    @property
    def variance(self) -> Tensor:
        return self.probs * (1 - self.probs)

    def _hot(self, index: Tensor) -> Tensor:
        return eye(self._event_shape[0], dtype=self.probs.dtype, device=self.probs.device)[index]

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self._hot(self._choice.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        self._validate_sample(value)
        return self._choice.log_prob(value.argmax(-1))

    def entropy(self) -> Tensor:
        return self._choice.entropy()

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return self._hot(self._choice.enumerate_support(expand))


class OneHotCategoricalStraightThrough(OneHotCategorical):
    """:class:`OneHotCategorical` whose draws pass gradients to ``probs`` (Bengio et al., 2013)."""

    has_rsample = True

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.sample(sample_shape) + (self.probs - self.probs.detach())


class Multinomial(Distribution):
    """How often each choice comes in ``total_count`` draws, as ``torch.distributions.Multinomial``.

    Raises:
        ValueError: see :class:`Categorical`.
        NotImplementedError: ``total_count`` is no integer.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = Categorical.arg_constraints

    def __init__(
        self, total_count: int = 1, probs: Any = None, logits: Any = None, validate_args: bool | None = None
    ) -> None:
        if not isinstance(total_count, int):
            raise NotImplementedError(
                f"Multinomial: total_count has to be one integer for all of the batch, got {total_count!r:.80}"
            )
        self.total_count = total_count
        self._choice = Categorical(probs, logits, validate_args)
        super().__init__(self._choice.batch_shape, self._choice.param_shape[-1:], validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        new = super().expand(batch_shape)
        new._choice = self._choice.expand(batch_shape)
        return new

    @property
    def support(self) -> Constraint:
        return constraints.multinomial(self.total_count)

    @property
    def probs(self) -> Tensor:
        """Probabilities of the choices."""
        return self._choice.probs

    @property
    def logits(self) -> Tensor:
        """Logarithms of ``probs``."""
        return self._choice.logits

    @property
    def param_shape(self) -> Any:
        """Shape of ``probs``."""
        return self._choice.param_shape

    @property
    def mean(self) -> Tensor:
        return self.probs * self.total_count

    @property
    def variance(self) -> Tensor:
        return self.total_count * self.probs * (1 - self.probs)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        drawn = self._choice.sample((self.total_count, *sample_shape))
        counts = self.probs.detach().new_zeros(self._shape(sample_shape))
        index = drawn.movedim(0, -1)
        return counts.scatter_add(-1, index, counts.new_ones(index.shape))

    def log_prob(self, value: Tensor) -> Tensor:
        self._validate_sample(value)
        logits, value = broadcast_tensors(self.logits, value)
        logits = where((value == 0).logical_and(logits == -math.inf), 0.0, logits)
        ways = (value.sum(-1) + 1).lgamma() - (value + 1).lgamma().sum(-1)
        result: Tensor = ways + (logits * value).sum(-1)
        return result

    def entropy(self) -> Tensor:
        n = self.total_count
        counts = Binomial(n, self.probs, validate_args=False)
        values = counts.enumerate_support(False)[1:]
        weights = counts.log_prob(values).exp()
        kept = (weights * (values + 1).lgamma()).sum((0, -1))
        return n * self._choice.entropy() - math.lgamma(n + 1) + kept
