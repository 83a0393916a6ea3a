"""Distributions made of gamma numbers; gradients pass through their draws by implicit differentiation.

A draw ``x`` at concentration ``a`` stays at the same value of the distribution function ``F`` as ``a`` moves, hence
``dx/da = -(dF/da) / (dF/dx)`` (Figurnov, Mohamed and Mnih, "Implicit reparameterization gradients", 2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from disttrain import engine
from disttrain.autograd.function import Function, once_differentiable
from disttrain.distributions import constraints
from disttrain.distributions.constraints import Constraint
from disttrain.distributions.distribution import Distribution, ExponentialFamily, parameters
from disttrain.functions.arithmetic import where, xlogy
from disttrain.functions.conversion import as_tensor
from disttrain.functions.creation import zeros_like
from disttrain.functions.join import stack
from disttrain.functions.random import randn
from disttrain.functions.shape import broadcast_tensors
from disttrain.kernels import random as kernels
from disttrain.kernels.special import digamma, lgamma
from disttrain.limits import finfo
from disttrain.random import words64

if TYPE_CHECKING:
    from disttrain.kernels.arrays import Array
    from disttrain.tensors import Tensor

__all__ = [
    "Beta",
    "Chi2",
    "Dirichlet",
    "FisherSnedecor",
    "Gamma",
    "InverseGamma",
    "StudentT",
    "standard_gamma",
]


def _draw_log(concentration: Array) -> Array:
    """Return the logarithms of gamma numbers of float64 concentrations, by Marsaglia and Tsang (ACM TOMS 26, 2000).

    The numbers themselves of a concentration near 0 would mostly be too small for any type.
    """
    a = concentration.reshape(-1)
    small = a < 1
    d = np.where(small, a + 1, a) - 1 / 3
    with np.errstate(all="ignore"):
        c = 1 / np.sqrt(9 * d)
        out = np.log(np.where((a == 0) | (a == math.inf), a, math.nan))
    left = np.flatnonzero((a > 0) & (a < math.inf))
    while left.size:
        words = words64(2 * a.size)
        z = kernels.normal(words[left])
        u = kernels.open_uniform(words[a.size + left])
        v = (1 + c[left] * z) ** 3
        good = v > 0
        score = 0.5 * z * z + d[left] * (1 - v + kernels.log(np.where(good, v, 1)))
        good &= kernels.log(u) < score
        out[left[good]] = kernels.log((d[left] * v)[good])
        left = left[~good]
    if small.any():  # one more, and a power of an even number
        boost = kernels.open_uniform(words64(a.size))
        with np.errstate(all="ignore"):
            out = np.where(small, out + kernels.log(boost) / np.where(small, a, 1), out)
    return out.reshape(concentration.shape)


def _series(a: Array, x: Array) -> tuple[Array, Array]:
    """Return the sum ``S`` of ``x**n / ((a + 1) ... (a + n))`` and its derivative with respect to ``a``.

    The distribution function is ``F = x**a exp(-x) / gamma(a + 1) * S``.
    """
    term, harmonic = np.ones_like(x), np.zeros_like(x)
    total, derivative = np.ones_like(x), np.zeros_like(x)
    n = 0
    while bool((term > 1e-17 * total).any()):
        n += 1
        term = term * (x / (a + n))
        harmonic = harmonic + 1 / (a + n)
        total = total + term
        derivative = derivative - term * harmonic
    return total, derivative


def _log_slope(a: Array, log_x: Array) -> Array:
    """Return the derivative of the logarithm of a draw with respect to its concentration ``a``, in float64."""
    with np.errstate(all="ignore"):
        total, derivative = _series(a, np.exp(log_x))
        return -(total * (log_x - digamma(a + 1)) + derivative) / a


def _slope(a: Array, x: Array) -> Array:
    """Return the derivative of the draw ``x`` with respect to its concentration ``a``, in float64."""
    with np.errstate(all="ignore"):
        return x * _log_slope(a, np.log(x))


def _is_far(a: Array, x: Array) -> Array:
    """Return where less than 1e-17 of the distribution lies above ``x``, and :func:`_series` might overflow."""
    return x > a + 12 * np.sqrt(a) + 80


def _flat(*tensors: Tensor) -> tuple[Array, ...]:
    return tuple([t._array.astype(np.float64).reshape(-1) for t in tensors])


class _StandardGamma(Function):
    @staticmethod
    def forward(ctx: Any, concentration: Tensor) -> Tensor:
        least = finfo(concentration.dtype).tiny
        array = concentration._array
        with np.errstate(all="ignore"):
            drawn = np.exp(_draw_log(array.astype(np.float64))).astype(array.dtype)
        x: Tensor = engine.Tensor_._of(drawn).clamp(min=least)
        ctx.save_for_backward(concentration, x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        concentration, x = ctx.saved_tensors
        slope = _slope(*_flat(concentration, x)).astype(x._array.dtype)
        return grads[0] * engine.Tensor_._of(slope.reshape(x.shape))


class _LogStandardGamma(Function):
    """The logarithm of a gamma number, of a float64 concentration."""

    @staticmethod
    def forward(ctx: Any, concentration: Tensor) -> Tensor:
        log_x: Tensor = engine.Tensor_._of(_draw_log(concentration._array))
        ctx.save_for_backward(concentration, log_x)
        return log_x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        concentration, log_x = ctx.saved_tensors
        slope = _log_slope(*_flat(concentration, log_x))
        return grads[0] * engine.Tensor_._of(slope.reshape(log_x.shape))


class _GammaCdf(Function):
    @staticmethod
    def forward(ctx: Any, concentration: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(concentration, x)
        a, at = _flat(concentration, x)
        with np.errstate(all="ignore"):
            far = _is_far(a, at)
            total, _ = _series(a, np.where(far, 0.0, at))
            found = np.exp(a * np.log(at) - at - lgamma(a + 1)) * total
        found = np.where(far, 1.0, np.minimum(found, 1.0))
        result: Tensor = engine.Tensor_._of(found.astype(x._array.dtype).reshape(x.shape))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        concentration, x = ctx.saved_tensors
        a, at = _flat(concentration, x)
        with np.errstate(all="ignore"):
            density = np.exp((a - 1) * np.log(at) - at - lgamma(a))
            inside = (density > 0) & ~_is_far(a, at)
            slope = np.where(inside, -_slope(a, np.where(inside, at, 1.0)) * density, 0.0)
        by_a, by_x = (engine.Tensor_._of(v.astype(x._array.dtype).reshape(x.shape)) for v in (slope, density))
        return grads[0] * by_a, grads[0] * by_x


def gamma_cdf(concentration: Tensor, x: Tensor) -> Tensor:
    """Return the distribution function of :func:`standard_gamma` at ``x``; gradients pass, once."""
    found: Tensor = _GammaCdf.apply(*broadcast_tensors(concentration, x))
    return found


def standard_gamma(concentration: Tensor) -> Tensor:
    """Return a gamma number of rate 1 for each ``concentration``; gradients pass, once."""
    drawn: Tensor = _StandardGamma.apply(concentration)
    return drawn


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return a.lgamma() + b.lgamma() - (a + b).lgamma()


class Gamma(ExponentialFamily):
    """The sum of ``concentration`` exponential numbers of ``rate``, as ``torch.distributions.Gamma``.

    Raises:
        ValueError: a parameter is not positive.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "concentration": constraints.positive,
        "rate": constraints.positive,
    }
    has_rsample = True

    def __init__(self, concentration: Any, rate: Any, validate_args: bool | None = None) -> None:
        self.concentration, self.rate = parameters(concentration, rate)
        super().__init__(self.concentration.shape, (), validate_args)

    @property
    def support(self) -> Constraint:
        return constraints.nonnegative

    @property
    def mean(self) -> Tensor:
        return self.concentration / self.rate

    @property
    def mode(self) -> Tensor:
        return ((self.concentration - 1) / self.rate).clamp(min=0)

    @property
    def variance(self) -> Tensor:
        return self.concentration / self.rate.pow(2)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return standard_gamma(self.concentration.expand(self._shape(sample_shape))) / self.rate

    def cdf(self, value: Tensor) -> Tensor:
        self._validate_sample(value)
        return gamma_cdf(self.concentration, self.rate * value)

    def log_prob(self, value: Any) -> Tensor:
        value = as_tensor(value, dtype=self.rate.dtype, device=self.rate.device)
        self._validate_sample(value)
        a, b = self.concentration, self.rate
        return xlogy(a, b) + xlogy(a - 1, value) - b * value - a.lgamma()  # type: ignore[no-any-return]

    def entropy(self) -> Tensor:
        a = self.concentration
        return a - self.rate.log() + a.lgamma() + (1 - a) * a.digamma()


class Chi2(Gamma):
    """The sum of ``df`` squares of normal numbers, as ``torch.distributions.Chi2``.

    Raises:
        ValueError: ``df`` is not positive.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {"df": constraints.positive}
    _held = ("concentration", "rate")

    def __init__(self, df: Any, validate_args: bool | None = None) -> None:
        (self.df,) = parameters(df)
        super().__init__(0.5 * self.df, 0.5, validate_args)


class InverseGamma(Distribution):
    """One over a :class:`Gamma` number, as ``torch.distributions.InverseGamma``.

    Raises:
        ValueError: a parameter is not positive.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "concentration": constraints.positive,
        "rate": constraints.positive,
    }
    has_rsample = True

    def __init__(self, concentration: Any, rate: Any, validate_args: bool | None = None) -> None:
        self.concentration, self.rate = parameters(concentration, rate)
        super().__init__(self.concentration.shape, (), validate_args)

    @property
    def support(self) -> Constraint:
        return constraints.positive

    @property
    def mean(self) -> Tensor:
        a = self.concentration
        return where(a > 1, self.rate / (a - 1), math.inf)  # type: ignore[no-any-return]

    @property
    def mode(self) -> Tensor:
        return self.rate / (self.concentration + 1)

    @property
    def variance(self) -> Tensor:
        a = self.concentration
        spread: Tensor = where(a > 2, self.rate.pow(2) / ((a - 1).pow(2) * (a - 2)), math.inf)
        return spread

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.rate / standard_gamma(self.concentration.expand(self._shape(sample_shape)))

    def cdf(self, value: Tensor) -> Tensor:
        self._validate_sample(value)
        return 1 - gamma_cdf(self.concentration, self.rate / value)

    def log_prob(self, value: Tensor) -> Tensor:
        self._validate_sample(value)
        a, b = self.concentration, self.rate
        return a * b.log() - (a + 1) * value.log() - b / value - a.lgamma()

    def entropy(self) -> Tensor:
        a = self.concentration
        return a + self.rate.log() + a.lgamma() - (1 + a) * a.digamma()


class Dirichlet(ExponentialFamily):
    """Shares of a whole, as ``torch.distributions.Dirichlet``; the last dimension of ``concentration`` is the event.

    Raises:
        ValueError: ``concentration`` is not positive, or has no dimension.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "concentration": constraints.independent(constraints.positive, 1)
    }
    has_rsample = True

    def __init__(self, concentration: Tensor, validate_args: bool | None = None) -> None:
        if concentration.dim() < 1:
            raise ValueError(
                "Dirichlet: concentration needs a dimension of shares, got a tensor without dimensions"
            )
        self.concentration = concentration
        super().__init__(concentration.shape[:-1], concentration.shape[-1:], validate_args)

    @property
    def support(self) -> Constraint:
        return constraints.simplex

    @property
    def mean(self) -> Tensor:
        return self.concentration / self.concentration.sum(-1, True)

    @property
    def mode(self) -> Tensor:
        above = (self.concentration - 1).clamp(min=0)
        shares = above / above.sum(-1, True)
        corner = zeros_like(above)
        corner[..., 0] = 1  # one of those where the density has no bound
        inside = (self.concentration >= 1).any(-1, keepdim=True)
        return where(inside, shares, corner)  # type: ignore[no-any-return]

    @property
    def variance(self) -> Tensor:
        total = self.concentration.sum(-1, True)
        return self.concentration * (total - self.concentration) / (total.pow(2) * (total + 1))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        a = self.concentration
        logs: Tensor = _LogStandardGamma.apply(a.expand(self._shape(sample_shape)).double())
        limits = finfo(a.dtype)
        return logs.softmax(-1).to(a.dtype).clamp(limits.tiny, 1 - limits.eps / 2)

    def log_prob(self, value: Tensor) -> Tensor:
        self._validate_sample(value)
        a = self.concentration
        return xlogy(a - 1, value).sum(-1) + a.sum(-1).lgamma() - a.lgamma().sum(-1)

    def entropy(self) -> Tensor:
        a, k = self.concentration, self.concentration.shape[-1]
        total = a.sum(-1)
        result: Tensor = (
            a.lgamma().sum(-1)
            - total.lgamma()
            - (k - total) * total.digamma()
            - ((a - 1) * a.digamma()).sum(-1)
        )
        return result


class Beta(ExponentialFamily):
    """The first of two shares of a whole, as ``torch.distributions.Beta``.

    Raises:
        ValueError: a concentration is not positive.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "concentration1": constraints.positive,
        "concentration0": constraints.positive,
    }
    has_rsample = True

    def __init__(self, concentration1: Any, concentration0: Any, validate_args: bool | None = None) -> None:
        self.concentration1, self.concentration0 = parameters(concentration1, concentration0)
        super().__init__(self.concentration1.shape, (), validate_args)

    @property
    def support(self) -> Constraint:
        return constraints.unit_interval

    @property
    def mean(self) -> Tensor:
        return self.concentration1 / (self.concentration1 + self.concentration0)

    @property
    def mode(self) -> Tensor:
        return self._shares().mode[..., 0]

    @property
    def variance(self) -> Tensor:
        total = self.concentration1 + self.concentration0
        return self.concentration1 * self.concentration0 / (total.pow(2) * (total + 1))

    def _shares(self) -> Dirichlet:
        return Dirichlet(stack([self.concentration1, self.concentration0], -1), validate_args=False)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self._shares().rsample(sample_shape)[..., 0]

    def log_prob(self, value: Tensor) -> Tensor:
        self._validate_sample(value)
        a, b = self.concentration1, self.concentration0
        return xlogy(a - 1, value) + xlogy(b - 1, 1 - value) - _log_beta(a, b)

    def entropy(self) -> Tensor:
        a, b = self.concentration1, self.concentration0
        return (
            _log_beta(a, b) - (a - 1) * a.digamma() - (b - 1) * b.digamma() + (a + b - 2) * (a + b).digamma()
        )


class StudentT(Distribution):
    """A normal number over the root of a mean of ``df`` squares, as ``torch.distributions.StudentT``.

    Raises:
        ValueError: ``df`` or ``scale`` is not positive, or ``loc`` is nan.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "df": constraints.positive,
        "loc": constraints.real,
        "scale": constraints.positive,
    }
    has_rsample = True

    def __init__(self, df: Any, loc: Any = 0.0, scale: Any = 1.0, validate_args: bool | None = None) -> None:
        self.df, self.loc, self.scale = parameters(df, loc, scale)
        super().__init__(self.df.shape, (), validate_args)

    @property
    def support(self) -> Constraint:
        return constraints.real

    @property
    def mean(self) -> Tensor:
        return where(self.df > 1, self.loc, math.nan)  # type: ignore[no-any-return]

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        spread = where(self.df > 2, self.scale.pow(2) * self.df / (self.df - 2), math.inf)
        return where(self.df > 1, spread, math.nan)  # type: ignore[no-any-return]

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._shape(sample_shape)
        z = randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        squares = 2 * standard_gamma((0.5 * self.df).expand(shape))
        return self.loc + self.scale * z * (squares / self.df).rsqrt()

    def log_prob(self, value: Tensor) -> Tensor:
        self._validate_sample(value)
        z = (value - self.loc) / self.scale
        half = 0.5 * self.df
        scale = self.scale.log() + 0.5 * self.df.log() + 0.5 * math.log(math.pi)
        return (
            -0.5 * (self.df + 1) * (z * z / self.df).log1p() - scale - half.lgamma() + (half + 0.5).lgamma()
        )

    def entropy(self) -> Tensor:
        half = 0.5 * self.df
        log_beta = half.lgamma() + math.lgamma(0.5) - (half + 0.5).lgamma()
        spread = (half + 0.5) * ((half + 0.5).digamma() - half.digamma())
        return self.scale.log() + spread + 0.5 * self.df.log() + log_beta


class FisherSnedecor(Distribution):
    """The ratio of two means of squares, of ``df1`` and ``df2``, as ``torch.distributions.FisherSnedecor``.

    Raises:
        ValueError: a parameter is not positive.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "df1": constraints.positive,
        "df2": constraints.positive,
    }
    has_rsample = True

    def __init__(self, df1: Any, df2: Any, validate_args: bool | None = None) -> None:
        self.df1, self.df2 = parameters(df1, df2)
        super().__init__(self.df1.shape, (), validate_args)

    @property
    def support(self) -> Constraint:
        return constraints.positive

    @property
    def mean(self) -> Tensor:
        return where(self.df2 > 2, self.df2 / (self.df2 - 2), math.nan)  # type: ignore[no-any-return]

    @property
    def mode(self) -> Tensor:
        found = (self.df1 - 2) / self.df1 * self.df2 / (self.df2 + 2)
        return where(self.df1 > 2, found, math.nan)  # type: ignore[no-any-return]

    @property
    def variance(self) -> Tensor:
        a, b = self.df1, self.df2
        spread = 2 * b.pow(2) * (a + b - 2) / (a * (b - 2).pow(2) * (b - 4))
        return where(b > 4, spread, math.nan)  # type: ignore[no-any-return]

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._shape(sample_shape)
        above = standard_gamma((0.5 * self.df1).expand(shape)) / self.df1
        return above / (standard_gamma((0.5 * self.df2).expand(shape)) / self.df2)

    def log_prob(self, value: Tensor) -> Tensor:
        self._validate_sample(value)
        a, b, ratio = 0.5 * self.df1, 0.5 * self.df2, self.df1 / self.df2
        return a * ratio.log() + (a - 1) * value.log() - (a + b) * (ratio * value).log1p() - _log_beta(a, b)
