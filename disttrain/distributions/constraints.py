"""Where parameters and values of distributions may lie, by PyTorch's names (``torch.distributions.constraints``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from disttrain.functions.decompositions import cholesky_ex

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

__all__ = [
    "Constraint",
    "boolean",
    "dependent",
    "dependent_property",
    "greater_than",
    "greater_than_eq",
    "half_open_interval",
    "independent",
    "integer_interval",
    "interval",
    "is_dependent",
    "less_than",
    "lower_cholesky",
    "lower_triangular",
    "multinomial",
    "nonnegative",
    "nonnegative_integer",
    "one_hot",
    "positive",
    "positive_definite",
    "positive_integer",
    "real",
    "real_vector",
    "simplex",
    "unit_interval",
]


class Constraint:
    """A region: :meth:`check` says what lies in it. A subclass may write that method instead of giving ``check``.

    Args:
        words: what its elements have to be, for messages.
        check: returns, for a tensor, a bool tensor without the last ``event_dim`` dimensions.
        is_discrete: whether only integers lie in it.
        event_dim: how many dimensions one element has.
    """

    is_discrete = False
    event_dim = 0
    _words = "in the region"
    _check: Callable[[Tensor], Any] | None = None

    def __init__(
        self,
        words: str = _words,
        check: Callable[[Tensor], Any] | None = None,
        *,
        is_discrete: bool | None = None,
        event_dim: int | None = None,
    ) -> None:
        self._words = words
        self._check = check
        if is_discrete is not None:
            self.is_discrete = is_discrete
        if event_dim is not None:
            self.event_dim = event_dim

    def check(self, value: Tensor) -> Tensor:
        """Return which elements of ``value`` lie in the region."""
        if self._check is None:
            raise NotImplementedError(f"{type(self).__name__} does not say what lies in it")
        result: Tensor = self._check(value)
        return result

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The regions below are copied and pickled by their names: there is one object of each.
        named = [name for name, value in globals().items() if value is self]
        return named[0] if named else super().__reduce_ex__(protocol)

    @property
    def words(self) -> str:
        """What its elements have to be; of tensors a long text, so it is made when it is asked for."""
        return self._words

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.words})"


def _whole(v: Tensor) -> Any:
    return v % 1 == 0


class greater_than(Constraint):
    """Numbers above ``lower_bound``."""

    def __init__(self, lower_bound: Any) -> None:
        super().__init__()
        self.lower_bound = lower_bound

    def check(self, value: Tensor) -> Tensor:
        inside: Tensor = value > self.lower_bound
        return inside

    @property
    def words(self) -> str:
        return f"above {self.lower_bound}"


class greater_than_eq(Constraint):
    """Numbers from ``lower_bound`` on."""

    def __init__(self, lower_bound: Any) -> None:
        super().__init__()
        self.lower_bound = lower_bound

    def check(self, value: Tensor) -> Tensor:
        inside: Tensor = value >= self.lower_bound
        return inside

    @property
    def words(self) -> str:
        return f"at least {self.lower_bound}"


class less_than(Constraint):
    """Numbers below ``upper_bound``."""

    def __init__(self, upper_bound: Any) -> None:
        super().__init__()
        self.upper_bound = upper_bound

    def check(self, value: Tensor) -> Tensor:
        inside: Tensor = value < self.upper_bound
        return inside

    @property
    def words(self) -> str:
        return f"below {self.upper_bound}"


class interval(Constraint):
    """Numbers from ``lower_bound`` to ``upper_bound``, both included."""

    def __init__(self, lower_bound: Any, upper_bound: Any) -> None:
        super().__init__()
        self.lower_bound, self.upper_bound = lower_bound, upper_bound

    def check(self, value: Tensor) -> Tensor:
        inside: Tensor = (value >= self.lower_bound).logical_and(value <= self.upper_bound)
        return inside

    @property
    def words(self) -> str:
        return f"from {self.lower_bound} to {self.upper_bound}"


class half_open_interval(Constraint):
    """Numbers from ``lower_bound`` on and below ``upper_bound``."""

    def __init__(self, lower_bound: Any, upper_bound: Any) -> None:
        super().__init__()
        self.lower_bound, self.upper_bound = lower_bound, upper_bound

    def check(self, value: Tensor) -> Tensor:
        inside: Tensor = (value >= self.lower_bound).logical_and(value < self.upper_bound)
        return inside

    @property
    def words(self) -> str:
        return f"in [{self.lower_bound}, {self.upper_bound})"


class integer_interval(Constraint):
    """Integers from ``lower_bound`` to ``upper_bound``, both included."""

    is_discrete = True

    def __init__(self, lower_bound: Any, upper_bound: Any) -> None:
        super().__init__()
        self.lower_bound, self.upper_bound = lower_bound, upper_bound

    def check(self, value: Tensor) -> Tensor:
        inside: Tensor = (
            _whole(value).logical_and(value >= self.lower_bound).logical_and(value <= self.upper_bound)
        )
        return inside

    @property
    def words(self) -> str:
        return f"integers from {self.lower_bound} to {self.upper_bound}"


class multinomial(Constraint):
    """Vectors of counts that sum to at most ``upper_bound``."""

    is_discrete = True
    event_dim = 1

    def __init__(self, upper_bound: Any) -> None:
        super().__init__()
        self.upper_bound = upper_bound

    def check(self, value: Tensor) -> Tensor:
        inside: Tensor = (value >= 0).all(-1).logical_and(value.sum(-1) <= self.upper_bound)
        return inside

    @property
    def words(self) -> str:
        return f"not negative, with a sum of at most {self.upper_bound}"


class independent(Constraint):
    """``base_constraint`` for all elements along the last ``reinterpreted_batch_ndims`` dimensions at once."""

    def __init__(self, base_constraint: Constraint, reinterpreted_batch_ndims: int) -> None:
        super().__init__(
            is_discrete=base_constraint.is_discrete,
            event_dim=base_constraint.event_dim + reinterpreted_batch_ndims,
        )
        self.base_constraint = base_constraint
        self.reinterpreted_batch_ndims = reinterpreted_batch_ndims

    def check(self, value: Tensor) -> Tensor:
        n = self.reinterpreted_batch_ndims
        inside = self.base_constraint.check(value)
        if inside.ndim < n:
            raise ValueError(
                f"independent: expected at least {self.base_constraint.event_dim + n} dimensions, got {value.ndim}"
            )
        return inside.reshape(*inside.shape[: inside.ndim - n], -1).all(-1) if n else inside

    @property
    def words(self) -> str:
        return self.base_constraint.words


class _Dependent(Constraint):
    """What other parameters allow; called with ``is_discrete`` or ``event_dim``, a region of which that is known."""

    def __call__(self, *, is_discrete: bool | None = None, event_dim: int | None = None) -> _Dependent:
        return _Dependent(self._words, is_discrete=is_discrete, event_dim=event_dim)

    def check(self, value: Tensor) -> Tensor:
        raise ValueError("a constraint that depends on other parameters cannot be checked without them")


def _lower(v: Tensor) -> Any:
    return (v.tril() == v).reshape(*v.shape[:-2], -1).all(-1)


def _definite(v: Tensor) -> Any:
    even = ((v - v.mT).abs() <= 1e-6).reshape(*v.shape[:-2], -1).all(-1)
    return even.logical_and(cholesky_ex(v.detach()).info == 0) if bool(even.all()) else even


boolean = Constraint("0 or 1", lambda v: (v == 0).logical_or(v == 1), is_discrete=True)
dependent = _Dependent("what other parameters allow")
real = Constraint("real", lambda v: v == v)
real_vector = independent(real, 1)
positive = Constraint("positive", lambda v: v > 0)
nonnegative = Constraint("non-negative", lambda v: v >= 0)
positive_integer = Constraint("positive integers", lambda v: _whole(v).logical_and(v >= 1), is_discrete=True)
nonnegative_integer = Constraint(
    "non-negative integers", lambda v: _whole(v).logical_and(v >= 0), is_discrete=True
)
unit_interval = Constraint("in [0, 1]", lambda v: (v >= 0).logical_and(v <= 1))
simplex = Constraint(
    "on the simplex: not negative, with sum 1",
    lambda v: (v >= 0).all(-1).logical_and((v.sum(-1) - 1).abs() < 1e-6),
    event_dim=1,
)
one_hot = Constraint(
    "one 1 among zeros",
    lambda v: (v == 0).logical_or(v == 1).all(-1).logical_and(v.sum(-1) == 1),
    is_discrete=True,
    event_dim=1,
)
lower_triangular = Constraint("lower triangular", _lower, event_dim=2)
lower_cholesky = Constraint(
    "lower triangular with a positive diagonal",
    lambda v: _lower(v).logical_and((v.diagonal(0, -2, -1) > 0).all(-1)),
    event_dim=2,
)
positive_definite = Constraint("symmetric and positive definite", _definite, event_dim=2)


class dependent_property(property):
    """A property that is a region which depends on the parameters, as ``support`` may be.

    ``is_discrete`` and ``event_dim`` are there for PyTorch's signature: the region says both itself.
    """

    def __init__(
        self,
        fn: Callable[[Any], Any] | None = None,
        *,
        is_discrete: bool | None = None,
        event_dim: int | None = None,
    ) -> None:
        super().__init__(fn)

    def __call__(self, fn: Callable[[Any], Any]) -> dependent_property:
        return dependent_property(fn)


def is_dependent(constraint: Any) -> bool:
    """Return whether ``constraint`` is :data:`dependent` or a call of it, which cannot be checked."""
    return isinstance(constraint, _Dependent)
