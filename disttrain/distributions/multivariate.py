"""The normal distribution of vectors, and mixtures of distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from disttrain.distributions import constraints
from disttrain.distributions.constraints import Constraint
from disttrain.distributions.discrete import Categorical
from disttrain.distributions.distribution import Distribution
from disttrain.functions.creation import eye
from disttrain.functions.decompositions import cholesky, solve_triangular
from disttrain.functions.random import randn
from disttrain.functions.shape import broadcast_shapes
from disttrain.modes import no_grad

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = ["MixtureSameFamily", "MultivariateNormal", "distance", "half_log_det"]


def half_log_det(root: Tensor) -> Tensor:
    """Return half the logarithm of the determinant of the covariance whose Cholesky factor is ``root``."""
    return root.diagonal(0, -2, -1).log().sum(-1)


def distance(root: Tensor, x: Tensor) -> Tensor:
    """Return the squared length of ``x`` in units of the covariance whose Cholesky factor is ``root``."""
    shape = broadcast_shapes(root.shape[:-1], x.shape)
    z = solve_triangular(root.expand((*shape, shape[-1])), x.expand(shape).unsqueeze(-1), upper=False)
    return z.pow(2).sum((-2, -1))


class MultivariateNormal(Distribution):
    """Normal vectors, as ``torch.distributions.MultivariateNormal``.

    Args:
        loc: means, ``(..., n)``.
        covariance_matrix: ``(..., n, n)``, or
        precision_matrix: its inverse, or
        scale_tril: its Cholesky factor.
        validate_args: see :class:`Distribution`.

    Raises:
        ValueError: not exactly one of the matrices is given, one has the wrong shape, or is not positive definite.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {
        "loc": constraints.real_vector,
        "covariance_matrix": constraints.positive_definite,
        "precision_matrix": constraints.positive_definite,
        "scale_tril": constraints.lower_cholesky,
    }
    has_rsample = True
    _held = ("_root",)

    def __init__(
        self,
        loc: Tensor,
        covariance_matrix: Tensor | None = None,
        precision_matrix: Tensor | None = None,
        scale_tril: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if loc.dim() < 1:
            raise ValueError("MultivariateNormal: loc needs a dimension, got a tensor without dimensions")
        given = {
            "covariance_matrix": covariance_matrix,
            "precision_matrix": precision_matrix,
            "scale_tril": scale_tril,
        }
        names = [name for name, matrix in given.items() if matrix is not None]
        if len(names) != 1:
            raise ValueError(
                f"MultivariateNormal needs one of covariance_matrix, precision_matrix and scale_tril, got {names}"
            )
        (name,) = names
        matrix: Any = given[name]
        if matrix.dim() < 2:
            raise ValueError(
                f"MultivariateNormal: {name} needs two dimensions, got shape {list(matrix.shape)}"
            )
        batch = broadcast_shapes(matrix.shape[:-2], loc.shape[:-1])
        self._given = name
        vars(self)[name] = matrix.expand((*batch, *matrix.shape[-2:]))
        self.loc = loc.expand((*batch, *loc.shape[-1:]))
        super().__init__(batch, loc.shape[-1:], validate_args)
        matrix = vars(self)[name]
        if name == "scale_tril":
            self._root: Tensor = matrix
        elif name == "covariance_matrix":
            self._root = cholesky(matrix)
        else:  # of the inverse: the factor of the precision in reverse order, inverted
            turned = cholesky(matrix.flip((-2, -1))).flip((-2, -1)).mT
            unit = eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand(matrix.shape)
            self._root = solve_triangular(turned, unit, upper=False)

    def __getattr__(self, name: str) -> Any:
        """Compute the matrices that were not given, when somebody asks."""
        if name == "scale_tril":
            return self._root
        if name == "covariance_matrix":
            return self._root @ self._root.mT
        if name == "precision_matrix":
            return (self._root @ self._root.mT).inverse()
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @property
    def support(self) -> Constraint:
        return constraints.real_vector

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self._root.pow(2).sum(-1)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        z = randn(self._shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + (self._root @ z.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        self._validate_sample(value)
        size = self._event_shape[0]
        away = distance(self._root, value - self.loc)
        result: Tensor = -0.5 * (size * math.log(2 * math.pi) + away) - half_log_det(self._root)
        return result

    def entropy(self) -> Tensor:
        size = self._event_shape[0]
        result: Tensor = 0.5 * size * (1.0 + math.log(2 * math.pi)) + half_log_det(self._root)
        return result


class MixtureSameFamily(Distribution):
    """One of several distributions of a kind, chosen at random, as ``torch.distributions.MixtureSameFamily``.

    Args:
        mixture_distribution: a :class:`Categorical` over the last batch dimension of
        component_distribution: the distributions.
        validate_args: see :class:`Distribution`.

    Raises:
        ValueError: the arguments are no such distributions, or their shapes do not fit.
    """

    def __init__(
        self,
        mixture_distribution: Categorical,
        component_distribution: Distribution,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(mixture_distribution, Categorical):
            raise ValueError(f"mixture_distribution must be a Categorical, got {mixture_distribution!r}")
        if not isinstance(component_distribution, Distribution):
            raise ValueError(f"component_distribution must be a Distribution, got {component_distribution!r}")
        batch = component_distribution.batch_shape
        for a, b in zip(reversed(mixture_distribution.batch_shape), reversed(batch[:-1]), strict=False):
            if a not in (1, b) and b != 1:
                raise ValueError(
                    f"the batch of mixture_distribution, {tuple(mixture_distribution.batch_shape)}, does not fit that "
                    f"of component_distribution, {tuple(batch)}"
                )
        if not batch or mixture_distribution._num_events != batch[-1]:
            raise ValueError(
                f"mixture_distribution chooses among {mixture_distribution._num_events}, but component_distribution "
                f"has batch_shape {tuple(batch)}"
            )
        self._mixture_distribution = mixture_distribution
        self._component_distribution = component_distribution
        self._events = len(component_distribution.event_shape)
        super().__init__(batch[:-1], component_distribution.event_shape, validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        count = self._mixture_distribution._num_events
        return MixtureSameFamily(
            self._mixture_distribution.expand(batch_shape),
            self._component_distribution.expand((*batch_shape, count)),
            self._validate_args,
        )

    @property
    def mixture_distribution(self) -> Categorical:
        """How the components are chosen."""
        return self._mixture_distribution

    @property
    def component_distribution(self) -> Distribution:
        """The components, along the last batch dimension."""
        return self._component_distribution

    @property
    def support(self) -> Constraint:
        return self._component_distribution.support

    def _weights(self) -> Tensor:
        probs = self._mixture_distribution.probs
        return probs.reshape((*probs.shape, *[1] * self._events))

    @property
    def _dim(self) -> int:
        return -1 - self._events

    @property
    def mean(self) -> Tensor:
        return (self._weights() * self._component_distribution.mean).sum(self._dim)

    @property
    def variance(self) -> Tensor:
        weights, parts = self._weights(), self._component_distribution
        within = (weights * parts.variance).sum(self._dim)
        between = (weights * (parts.mean - self.mean.unsqueeze(self._dim)).pow(2)).sum(self._dim)
        return within + between

    def cdf(self, value: Tensor) -> Tensor:
        parts = self._component_distribution.cdf(value.unsqueeze(self._dim))
        return (parts * self._mixture_distribution.probs).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        self._validate_sample(value)
        parts = self._component_distribution.log_prob(value.unsqueeze(self._dim))
        return (parts + self._mixture_distribution.logits.log_softmax(-1)).logsumexp(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with no_grad():
            dim = len(sample_shape) + len(self._batch_shape)
            chosen = self._mixture_distribution.expand(self._batch_shape).sample(sample_shape)
            parts = self._component_distribution.sample(sample_shape)
            index = chosen.reshape((*chosen.shape, *[1] * (self._events + 1)))
            index = index.expand((*chosen.shape, 1, *self._event_shape))
            return parts.gather(dim, index).squeeze(dim)

    def __repr__(self) -> str:
        return f"MixtureSameFamily({self._mixture_distribution}, {self._component_distribution})"
