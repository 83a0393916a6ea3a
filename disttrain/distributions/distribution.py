"""What all distributions share, and :class:`Independent`, which reads a batch of them as one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from disttrain import engine
from disttrain.distributions import constraints
from disttrain.distributions.constraints import Constraint
from disttrain.functions.conversion import tensor
from disttrain.functions.shape import broadcast_tensors
from disttrain.modes import no_grad
from disttrain.tensors import Size

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = ["Distribution", "ExponentialFamily", "Independent", "parameters"]


def parameters(*values: Any) -> tuple[Tensor, ...]:
    """Return tensors and numbers as tensors of one shape.

    Raises:
        ValueError: one is neither.
    """
    for v in values:
        if not isinstance(v, engine.Tensor_ | bool | int | float):
            raise ValueError(
                f"parameters of distributions are Tensors or numbers, got {type(v).__name__}: {v!r:.80}"
            )
    like = next((v for v in values if isinstance(v, engine.Tensor_)), None)
    options = {} if like is None else {"dtype": like.dtype, "device": like.device}
    tensors = [
        v if isinstance(v, engine.Tensor_) else tensor(float(v) if like is None else v, **options)
        for v in values
    ]
    return tuple(broadcast_tensors(*tensors))


class Distribution:
    """The base class: a batch of distributions of ``batch_shape`` over events of ``event_shape``.

    A subclass sets its parameters, named in ``arg_constraints``, before it calls this.

    Args:
        batch_shape: see above.
        event_shape: see above.
        validate_args: check parameters and values; the default is that of :meth:`set_default_validate_args`.

    Raises:
        ValueError: a parameter lies outside its constraint.
    """

    has_rsample = False
    has_enumerate_support = False
    arg_constraints: ClassVar[dict[str, Constraint]] = {}
    """Where the parameters may lie."""
    _held: ClassVar[tuple[str, ...]] = ()
    """Attributes whose first dimensions are those of the batch, besides ``arg_constraints``."""
    _computed = ""
    """A parameter that was not given but computed from another, and so is not checked."""
    _validate_args = True

    def __init__(
        self,
        batch_shape: Sequence[int] = (),
        event_shape: Sequence[int] = (),
        validate_args: bool | None = None,
    ) -> None:
        self._batch_shape, self._event_shape = Size(batch_shape), Size(event_shape)
        if validate_args is not None:
            self._validate_args = validate_args
        if not self._validate_args:
            return
        for name, constraint in self.arg_constraints.items():
            value = vars(self).get(name)
            if value is None or name == self._computed or constraints.is_dependent(constraint):
                continue
            if not bool(constraint.check(value).all()):
                raise ValueError(
                    f"{type(self).__name__}: {name} of shape {tuple(value.shape)} has to be {constraint.words}, "
                    f"got\n{value!r}"
                )

    @staticmethod
    def set_default_validate_args(value: bool) -> None:
        """Switch the checks on or off for all distributions that are made from now on."""
        if value not in (True, False):
            raise ValueError(f"set_default_validate_args() needs True or False, got {value!r}")
        Distribution._validate_args = value

    @property
    def batch_shape(self) -> Size:
        """Shape of the parameters."""
        return self._batch_shape

    @property
    def event_shape(self) -> Size:
        """Shape of one draw of one distribution."""
        return self._event_shape

    @property
    def support(self) -> Constraint:
        """Where draws lie."""
        raise NotImplementedError

    @property
    def mean(self) -> Tensor:
        """Expected value."""
        raise NotImplementedError

    @property
    def mode(self) -> Tensor:
        """The most probable value."""
        raise NotImplementedError(f"{type(self).__name__} has no mode")

    @property
    def variance(self) -> Tensor:
        """Expected square of the distance from the mean."""
        raise NotImplementedError

    @property
    def stddev(self) -> Tensor:
        """Square root of the variance."""
        return self.variance.sqrt()

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        """Return the distribution with its parameters broadcast to ``batch_shape``.

        Raises:
            RuntimeError: they do not broadcast so.
        """
        shape, n = Size(batch_shape), len(self._batch_shape)
        new = copy.copy(self)
        for name in (*self.arg_constraints, *self._held):
            value = vars(self).get(name)
            if isinstance(value, engine.Tensor_):
                setattr(new, name, value.expand((*shape, *value.shape[n:])))
        new._batch_shape = shape
        return new

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return draws of shape ``(*sample_shape, *batch_shape, *event_shape)``, without gradient."""
        with no_grad():
            return self.rsample(sample_shape)

    def sample_n(self, n: int) -> Tensor:
        """Return ``n`` draws; an old name of ``sample((n,))``."""
        return self.sample((n,))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return draws that depend on the parameters, so that gradients pass.

        Raises:
            NotImplementedError: the distribution is discrete.
        """
        raise NotImplementedError(f"{type(self).__name__} has no rsample(); its draws have no gradient")

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the logarithm of the density (or the probability) at ``value``, less the event's dimensions."""
        raise NotImplementedError

    def cdf(self, value: Tensor) -> Tensor:
        """Return the probability of draws that are not above ``value``."""
        raise NotImplementedError(f"{type(self).__name__} has no cdf()")

    def icdf(self, value: Tensor) -> Tensor:
        """Return where :meth:`cdf` is ``value``."""
        raise NotImplementedError(f"{type(self).__name__} has no icdf()")

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return all possible values, along a new first dimension."""
        raise NotImplementedError(f"{type(self).__name__} has no enumerate_support()")

    def entropy(self) -> Tensor:
        """Return the entropy, of ``batch_shape``, in nats."""
        raise NotImplementedError(f"{type(self).__name__} has no entropy()")

    def perplexity(self) -> Tensor:
        """Return ``exp`` of the entropy."""
        return self.entropy().exp()

    def _shape(self, sample_shape: Sequence[int]) -> Size:
        return Size((*sample_shape, *self._batch_shape, *self._event_shape))

    def _extended_shape(self, sample_shape: Sequence[int] = ()) -> Size:
        return self._shape(sample_shape)  # the name by which users' subclasses know it

    def _validate_sample(self, value: Any) -> None:
        """Raise ``ValueError`` unless ``value`` can come from this distribution, if values are checked."""
        if not self._validate_args:
            return
        if not isinstance(value, engine.Tensor_):
            raise ValueError(f"a value of a distribution has to be a Tensor, got {type(value).__name__}")
        have, want = tuple(value.shape), (*self._batch_shape, *self._event_shape)
        events = len(self._event_shape)
        if have[len(have) - events :] != want[len(want) - events :]:
            raise ValueError(
                f"{type(self).__name__}: a value of shape {have} has to end in the event_shape, "
                f"{tuple(self._event_shape)}"
            )
        for a, b in zip(reversed(have), reversed(want), strict=False):
            if a not in (1, b) and b != 1:
                raise ValueError(
                    f"{type(self).__name__}: a value of shape {have} does not broadcast with {want}, the batch_shape "
                    f"and event_shape"
                )
        try:
            support = self.support
        except NotImplementedError:
            return  # a user's subclass that does not say
        if not bool(support.check(value).all()):
            raise ValueError(f"{self!r} has no such values: they have to be {support.words}, got\n{value!r}")

    def _get_checked_instance(self, cls: type, _instance: Any = None) -> Any:
        """Return an object without parameters, for the ``expand()`` of a user's subclass."""
        return self.__new__(type(self)) if _instance is None else _instance

    def __repr__(self) -> str:
        told = []
        for k in self.arg_constraints:
            value = vars(self).get(k)
            if isinstance(value, engine.Tensor_) and k != self._computed:
                told.append(f"{k}: {value.item() if value.numel() == 1 else value.shape}")
        return f"{type(self).__name__}({', '.join(told)})"


class ExponentialFamily(Distribution):
    """A distribution of an exponential family; there for PyTorch's name."""


class Independent(Distribution):
    """The last ``reinterpreted_batch_ndims`` dimensions of a batch, taken as one event.

    Raises:
        ValueError: the batch has fewer dimensions.
    """

    def __init__(
        self,
        base_distribution: Distribution,
        reinterpreted_batch_ndims: int,
        validate_args: bool | None = None,
    ) -> None:
        n = reinterpreted_batch_ndims
        shape = base_distribution.batch_shape
        if n > len(shape):
            raise ValueError(
                f"Independent: reinterpreted_batch_ndims={n} is more than the {len(shape)} batch dimensions there are"
            )
        self.base_dist = base_distribution
        self.reinterpreted_batch_ndims = n
        cut = len(shape) - n
        super().__init__(shape[:cut], (*shape[cut:], *base_distribution.event_shape), validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws have gradients."""
        return self.base_dist.has_rsample

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        """Whether all values can be listed."""
        return self.base_dist.has_enumerate_support and not self.reinterpreted_batch_ndims

    @property
    def support(self) -> Constraint:
        return constraints.independent(self.base_dist.support, self.reinterpreted_batch_ndims)

    @property
    def mean(self) -> Tensor:
        return self.base_dist.mean

    @property
    def mode(self) -> Tensor:
        return self.base_dist.mode

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        own = self._event_shape[: self.reinterpreted_batch_ndims]
        base = self.base_dist.expand((*batch_shape, *own))
        return type(self)(base, self.reinterpreted_batch_ndims, validate_args=self._validate_args)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.base_dist.sample(sample_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.base_dist.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self._sum(self.base_dist.log_prob(value))

    def entropy(self) -> Tensor:
        return self._sum(self.base_dist.entropy())

    def enumerate_support(self, expand: bool = True) -> Tensor:
        if self.reinterpreted_batch_ndims > 0:
            raise NotImplementedError("the values of several dimensions taken as one event are not listed")
        return self.base_dist.enumerate_support(expand)

    def _sum(self, t: Tensor) -> Tensor:
        n = self.reinterpreted_batch_ndims
        return t.sum(tuple(range(-n, 0))) if n else t

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_dist}, {self.reinterpreted_batch_ndims})"
