"""What all distributions share, and :class:`Independent`, which reads a batch of them as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from disttrain import engine
from disttrain.functions.creation import tensor
from disttrain.functions.shape import broadcast_tensors
from disttrain.modes import no_grad
from disttrain.tensors import Size

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = ["Distribution", "Independent", "parameters"]


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

    Args:
        batch_shape: see above.
        event_shape: see above.
        validate_args: check parameters and values; the default is that of :meth:`set_default_validate_args`.
    """

    has_rsample = False
    has_enumerate_support = False
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
    def mean(self) -> Tensor:
        """Expected value."""
        raise NotImplementedError

    @property
    def variance(self) -> Tensor:
        """Expected square of the distance from the mean."""
        raise NotImplementedError

    @property
    def stddev(self) -> Tensor:
        """Square root of the variance."""
        return self.variance.sqrt()

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return draws of shape ``(*sample_shape, *batch_shape, *event_shape)``, without gradient."""
        with no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return draws that depend on the parameters, so that gradients pass.

        Raises:
            NotImplementedError: the distribution is discrete.
        """
        raise NotImplementedError(f"{type(self).__name__} has no rsample(); its draws have no gradient")

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the logarithm of the density (or the probability) at ``value``, less the event's dimensions."""
        raise NotImplementedError

    def entropy(self) -> Tensor:
        """Return the entropy, of ``batch_shape``, in nats."""
        raise NotImplementedError

    def _shape(self, sample_shape: Sequence[int]) -> Size:
        return Size((*sample_shape, *self._batch_shape, *self._event_shape))

    def _check(self, name: str, value: Tensor, good: Tensor, what: str) -> None:
        if self._validate_args and not bool(good.all()):
            raise ValueError(
                f"{type(self).__name__}: {name} of shape {tuple(value.shape)} has to be {what}, got\n{value!r}"
            )

    def _check_value(self, value: Any, good: Any, what: str) -> None:
        """Raise ``ValueError`` unless ``value`` can come from this distribution; ``good(value)`` says where it can."""
        if not self._validate_args:
            return
        if not isinstance(value, engine.Tensor_):
            raise ValueError(f"{type(self).__name__}: a value must be a Tensor, got {type(value).__name__}")
        have, want = tuple(value.shape), (*self._batch_shape, *self._event_shape)
        for a, b in zip(reversed(have), reversed(want), strict=False):
            if a not in (1, b) and b != 1:
                raise ValueError(
                    f"{type(self).__name__}: a value of shape {have} does not broadcast with {want}, the batch_shape "
                    f"and event_shape"
                )
        if not bool(good(value).all()):
            raise ValueError(f"{self!r} has no such values: they have to be {what}, got\n{value!r}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(batch_shape={tuple(self._batch_shape)}, event_shape={tuple(self._event_shape)})"


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
    def mean(self) -> Tensor:
        return self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.base_dist.sample(sample_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.base_dist.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self._sum(self.base_dist.log_prob(value))

    def entropy(self) -> Tensor:
        return self._sum(self.base_dist.entropy())

    def _sum(self, t: Tensor) -> Tensor:
        n = self.reinterpreted_batch_ndims
        return t.sum(tuple(range(-n, 0))) if n else t
