"""Functions that turn draws of one distribution into draws of another (``torch.distributions.transforms``)."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from disttrain.distributions import constraints
from disttrain.distributions.constraints import Constraint
from disttrain.distributions.distribution import parameters
from disttrain.functions.activation import softplus
from disttrain.functions.elementwise import sigmoid
from disttrain.functions.join import cat
from disttrain.functions.shape import broadcast_shapes
from disttrain.limits import finfo

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = [
    "AbsTransform",
    "AffineTransform",
    "ComposeTransform",
    "ExpTransform",
    "IndependentTransform",
    "PowerTransform",
    "ReshapeTransform",
    "SigmoidTransform",
    "SoftmaxTransform",
    "SoftplusTransform",
    "StickBreakingTransform",
    "TanhTransform",
    "Transform",
    "identity_transform",
    "sum_last",
]


def sum_last(t: Tensor, n: int) -> Tensor:
    """Return the sums over the last ``n`` dimensions."""
    return t.sum(tuple(range(-n, 0))) if n else t


def _equal(a: Any, b: Any) -> bool:
    found = a == b
    return bool(found.all() if hasattr(found, "all") else found)


class Transform:
    """A function of tensors with its inverse and the logarithm of its slope.

    A subclass writes ``_call``, ``_inverse`` and ``log_abs_det_jacobian``, and says ``domain`` and ``codomain``.

    Args:
        cache_size: 1 to remember the last argument, so that ``inv(t(x))`` is ``x`` itself; 0 for nothing.

    Raises:
        ValueError: another ``cache_size``.
    """

    bijective = False
    domain: Constraint = constraints.real
    codomain: Constraint = constraints.real

    def __init__(self, cache_size: int = 0) -> None:
        if cache_size not in (0, 1):
            raise ValueError(f"cache_size must be 0 or 1, got {cache_size!r}")
        self._cache_size = cache_size
        self._last: tuple[Any, Any] = (None, None)
        self._inv: weakref.ref[Transform] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._cache_size and x is self._last[0]:
            return self._last[1]  # type: ignore[no-any-return]
        y = self._call(x)
        self._last = (x, y) if self._cache_size else self._last
        return y

    def _inv_call(self, y: Tensor) -> Tensor:
        if self._cache_size and y is self._last[1]:
            return self._last[0]  # type: ignore[no-any-return]
        x = self._inverse(y)
        self._last = (x, y) if self._cache_size else self._last
        return x

    def _call(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the logarithm of how much volume grows at ``x``, where the transform gives ``y``."""
        raise NotImplementedError(f"{type(self).__name__} changes the number of dimensions of its argument")

    @property
    def inv(self) -> Transform:
        """The inverse."""
        known = self._inv() if self._inv is not None else None
        if known is None:
            known = _Inverse(self)
            self._inv = weakref.ref(known)
        return known

    @property
    def sign(self) -> Any:
        """1 if it grows everywhere, -1 if it falls everywhere."""
        raise NotImplementedError(f"{type(self).__name__} neither grows nor falls everywhere")

    def with_cache(self, cache_size: int = 1) -> Transform:
        """Return the transform with another size of its memory."""
        if self._cache_size == cache_size:
            return self
        other = copy.copy(self)
        other._cache_size, other._last, other._inv = cache_size, (None, None), None
        return other

    def forward_shape(self, shape: Sequence[int]) -> Any:
        """Return the shape of the result for an argument of ``shape``."""
        return shape

    def inverse_shape(self, shape: Sequence[int]) -> Any:
        """Return the shape of the argument for a result of ``shape``."""
        return shape

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_inv": None}  # a copy has an inverse of its own

    def __eq__(self, other: object) -> bool:
        if self is other or type(self) is not type(other):
            return self is other
        apart = ("_last", "_cache_size", "_inv", "domain", "codomain")
        a, b = ({k: v for k, v in vars(t).items() if k not in apart} for t in (self, other))
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class _Inverse(Transform):
    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self._transform = transform
        self.bijective = transform.bijective
        self.domain, self.codomain = transform.codomain, transform.domain

    @property
    def inv(self) -> Transform:
        return self._transform

    def __call__(self, x: Tensor) -> Tensor:
        return self._transform._inv_call(x)

    def _inv_call(self, y: Tensor) -> Tensor:
        return self._transform(y)

    @property
    def sign(self) -> Any:
        return self._transform.sign

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -self._transform.log_abs_det_jacobian(y, x)

    def forward_shape(self, shape: Sequence[int]) -> Any:
        return self._transform.inverse_shape(shape)

    def inverse_shape(self, shape: Sequence[int]) -> Any:
        return self._transform.forward_shape(shape)

    def __repr__(self) -> str:
        return f"{self._transform!r}.inv"


class ComposeTransform(Transform):
    """Several transforms, one after the other."""

    def __init__(self, parts: Sequence[Transform], cache_size: int = 0) -> None:
        super().__init__(cache_size)
        self.parts = [part.with_cache(cache_size) for part in parts] if cache_size else list(parts)
        self.bijective = all(p.bijective for p in self.parts)
        if not self.parts:
            return
        taken = self.parts[-1].codomain.event_dim  # how many dimensions one event has, before each part
        for part in reversed(self.parts):
            taken = max(taken + part.domain.event_dim - part.codomain.event_dim, part.domain.event_dim)
        given = self.parts[0].domain.event_dim
        for part in self.parts:
            given = max(given + part.codomain.event_dim - part.domain.event_dim, part.codomain.event_dim)
        first, last = self.parts[0].domain, self.parts[-1].codomain
        self.domain = constraints.independent(first, taken - first.event_dim)
        self.codomain = constraints.independent(last, given - last.event_dim)

    def __call__(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x

    def _inv_call(self, y: Tensor) -> Tensor:
        for part in reversed(self.parts):
            y = part._inv_call(y)
        return y

    @property
    def sign(self) -> Any:
        product: Any = 1
        for part in self.parts:
            product = product * part.sign
        return product

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.parts:
            return x * 0
        points = [x]
        for part in self.parts[:-1]:
            points.append(part(points[-1]))
        points.append(y)
        total: Any = 0
        events = self.domain.event_dim
        for part, before, after in zip(self.parts, points[:-1], points[1:], strict=True):
            grown = part.log_abs_det_jacobian(before, after)
            total = total + sum_last(grown, events - part.domain.event_dim)
            events += part.codomain.event_dim - part.domain.event_dim
        return total  # type: ignore[no-any-return]

    def forward_shape(self, shape: Sequence[int]) -> Any:
        for part in self.parts:
            shape = part.forward_shape(shape)
        return shape

    def inverse_shape(self, shape: Sequence[int]) -> Any:
        for part in reversed(self.parts):
            shape = part.inverse_shape(shape)
        return shape

    def __repr__(self) -> str:
        return f"ComposeTransform({self.parts!r})"


identity_transform = ComposeTransform([])


class IndependentTransform(Transform):
    """A transform of the elements of an event of ``reinterpreted_batch_ndims`` more dimensions."""

    def __init__(
        self, base_transform: Transform, reinterpreted_batch_ndims: int, cache_size: int = 0
    ) -> None:
        super().__init__(cache_size)
        self.base_transform = base_transform.with_cache(cache_size)
        self.reinterpreted_batch_ndims = reinterpreted_batch_ndims
        self.bijective = base_transform.bijective
        self.domain = constraints.independent(base_transform.domain, reinterpreted_batch_ndims)
        self.codomain = constraints.independent(base_transform.codomain, reinterpreted_batch_ndims)

    def _call(self, x: Tensor) -> Tensor:
        return self.base_transform(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.base_transform._inv_call(y)

    @property
    def sign(self) -> Any:
        return self.base_transform.sign

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return sum_last(self.base_transform.log_abs_det_jacobian(x, y), self.reinterpreted_batch_ndims)

    def forward_shape(self, shape: Sequence[int]) -> Any:
        return self.base_transform.forward_shape(shape)

    def inverse_shape(self, shape: Sequence[int]) -> Any:
        return self.base_transform.inverse_shape(shape)


class ReshapeTransform(Transform):
    """The event in another shape.

    Raises:
        ValueError: the shapes have different numbers of elements.
    """

    bijective = True

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int], cache_size: int = 0) -> None:
        if math.prod(in_shape) != math.prod(out_shape):
            raise ValueError(f"ReshapeTransform: {tuple(in_shape)} and {tuple(out_shape)} differ in size")
        super().__init__(cache_size)
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.domain = constraints.independent(constraints.real, len(self.in_shape))
        self.codomain = constraints.independent(constraints.real, len(self.out_shape))

    def _call(self, x: Tensor) -> Tensor:
        return x.reshape((*x.shape[: x.ndim - len(self.in_shape)], *self.out_shape))

    def _inverse(self, y: Tensor) -> Tensor:
        return y.reshape((*y.shape[: y.ndim - len(self.out_shape)], *self.in_shape))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x.new_zeros(x.shape[: x.ndim - len(self.in_shape)])

    def forward_shape(self, shape: Sequence[int]) -> Any:
        return (*shape[: len(shape) - len(self.in_shape)], *self.out_shape)

    def inverse_shape(self, shape: Sequence[int]) -> Any:
        return (*shape[: len(shape) - len(self.out_shape)], *self.in_shape)


class _Growing(Transform):
    bijective = True

    @property
    def sign(self) -> Any:
        return 1


class ExpTransform(_Growing):
    """``exp(x)``."""

    codomain = constraints.positive

    def _call(self, x: Tensor) -> Tensor:
        return x.exp()

    def _inverse(self, y: Tensor) -> Tensor:
        return y.log()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x


class PowerTransform(Transform):
    """``x ** exponent`` of positive numbers."""

    bijective = True
    domain = codomain = constraints.positive

    def __init__(self, exponent: Any, cache_size: int = 0) -> None:
        super().__init__(cache_size)
        (self.exponent,) = parameters(exponent)

    @property
    def sign(self) -> Any:
        return self.exponent.sign()

    def _call(self, x: Tensor) -> Tensor:
        return x.pow(self.exponent)

    def _inverse(self, y: Tensor) -> Tensor:
        return y.pow(1 / self.exponent)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        result: Tensor = (self.exponent * y / x).abs().log()
        return result


class SigmoidTransform(_Growing):
    """``1 / (1 + exp(-x))``, kept off 0 and 1."""

    codomain = constraints.unit_interval

    def _call(self, x: Tensor) -> Tensor:
        limits = finfo(x.dtype)
        return sigmoid(x).clamp(min=limits.tiny, max=1.0 - limits.eps)

    def _inverse(self, y: Tensor) -> Tensor:
        limits = finfo(y.dtype)
        y = y.clamp(min=limits.tiny, max=1.0 - limits.eps)
        return y.log() - (-y).log1p()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -softplus(-x) - softplus(x)


class SoftplusTransform(_Growing):
    """``log(1 + exp(x))``."""

    codomain = constraints.positive

    def _call(self, x: Tensor) -> Tensor:
        return softplus(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return (-y).expm1().neg().log() + y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -softplus(-x)


class TanhTransform(_Growing):
    """``tanh(x)``."""

    codomain = constraints.interval(-1.0, 1.0)

    def _call(self, x: Tensor) -> Tensor:
        return x.tanh()

    def _inverse(self, y: Tensor) -> Tensor:
        return y.atanh()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return 2.0 * (math.log(2.0) - x - softplus(-2.0 * x))  # of 1 - tanh(x) ** 2, without cancellation


class AbsTransform(Transform):
    """``|x|``; its inverse is the positive one."""

    codomain = constraints.positive

    def _call(self, x: Tensor) -> Tensor:
        return x.abs()

    def _inverse(self, y: Tensor) -> Tensor:
        return y


class AffineTransform(Transform):
    """``loc + scale * x``, of events of ``event_dim`` dimensions."""

    bijective = True

    def __init__(self, loc: Any, scale: Any, event_dim: int = 0, cache_size: int = 0) -> None:
        super().__init__(cache_size)
        self.loc, self.scale, self.event_dim = loc, scale, event_dim
        self.domain = self.codomain = constraints.independent(constraints.real, event_dim)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, AffineTransform)
            and _equal(self.loc, other.loc)
            and _equal(self.scale, other.scale)
        )

    __hash__ = Transform.__hash__

    @property
    def sign(self) -> Any:
        s = self.scale
        return s.sign() if hasattr(s, "sign") else (s > 0) - (s < 0)

    def _call(self, x: Tensor) -> Tensor:
        return self.loc + self.scale * x  # type: ignore[no-any-return]

    def _inverse(self, y: Tensor) -> Tensor:
        return (y - self.loc) / self.scale  # type: ignore[no-any-return]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        s = self.scale
        grown = s.abs().log() if hasattr(s, "abs") else x.new_full((), math.log(abs(s)))
        return sum_last(grown.expand(x.shape), self.event_dim)

    def forward_shape(self, shape: Sequence[int]) -> Any:
        return broadcast_shapes(
            tuple(shape), getattr(self.loc, "shape", ()), getattr(self.scale, "shape", ())
        )

    inverse_shape = forward_shape


class SoftmaxTransform(Transform):
    """Shares in proportion to ``exp(x)``; not one to one."""

    domain = constraints.real_vector
    codomain = constraints.simplex

    def _call(self, x: Tensor) -> Tensor:
        return x.softmax(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        return y.log()


class StickBreakingTransform(Transform):
    """Shares cut off one after the other, each a :func:`sigmoid` part of what is left; one more than ``x`` has."""

    bijective = True
    domain = constraints.real_vector
    codomain = constraints.simplex

    def _parts(self, x: Tensor) -> Tensor:
        left = (x.new_ones(x.shape[-1]).cumsum(-1) * -1 + x.shape[-1] + 1).log()
        result: Tensor = x - left
        return result

    def _call(self, x: Tensor) -> Tensor:
        limits = finfo(x.dtype)
        z = sigmoid(self._parts(x)).clamp(min=limits.tiny, max=1.0 - limits.eps)
        rest = (1 - z).cumprod(-1)
        one = x.new_ones((*x.shape[:-1], 1))
        return cat([z, one], -1) * cat([one, rest], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        cut = y[..., :-1]
        offset = (y.new_ones(cut.shape[-1]).cumsum(-1) * -1 + cut.shape[-1] + 1).log()
        rest = (1 - cut.cumsum(-1)).clamp(min=finfo(y.dtype).tiny)
        result: Tensor = cut.log() - rest.log() + offset
        return result

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        x = self._parts(x)
        return (-x - softplus(-x) + y[..., :-1].log()).sum(-1)

    def forward_shape(self, shape: Sequence[int]) -> Any:
        return (*shape[:-1], shape[-1] + 1)

    def inverse_shape(self, shape: Sequence[int]) -> Any:
        return (*shape[:-1], shape[-1] - 1)
