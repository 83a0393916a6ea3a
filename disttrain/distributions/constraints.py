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
    words = "in the region"

    def __init__(
        self,
        words: str | None = None,
        check: Callable[[Tensor], Any] | None = None,
        *,
        is_discrete: bool | None = None,
        event_dim: int | None = None,
    ) -> None:
        given = {"words": words, "is_discrete": is_discrete, "event_dim": event_dim, "_check": check}
        vars(self).update({k: v for k, v in given.items() if v is not None})

    def check(self, value: Tensor) -> Tensor:
        """Return which elements of ``value`` lie in the region."""
        if "_check" not in vars(self):
            raise NotImplementedError(f"{type(self).__name__} does not say what lies in it")
        result: Tensor = vars(self)["_check"](value)
        return result

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.words})"


def _whole(v: Tensor) -> Any:
    return v % 1 == 0


def greater_than(lower_bound: Any) -> Constraint:
    """Numbers above ``lower_bound``."""
    return Constraint(f"above {lower_bound}", lambda v: v > lower_bound)


def greater_than_eq(lower_bound: Any) -> Constraint:
    """Numbers from ``lower_bound`` on."""
    return Constraint(f"at least {lower_bound}", lambda v: v >= lower_bound)


def less_than(upper_bound: Any) -> Constraint:
    """Numbers below ``upper_bound``."""
    return Constraint(f"below {upper_bound}", lambda v: v < upper_bound)


def interval(lower_bound: Any, upper_bound: Any) -> Constraint:
    """Numbers from ``lower_bound`` to ``upper_bound``, both included."""
    return Constraint(
        f"from {lower_bound} to {upper_bound}",
        lambda v: (v >= lower_bound).logical_and(v <= upper_bound),
    )


def half_open_interval(lower_bound: Any, upper_bound: Any) -> Constraint:
    """Numbers from ``lower_bound`` on and below ``upper_bound``."""
    return Constraint(
        f"in [{lower_bound}, {upper_bound})",
        lambda v: (v >= lower_bound).logical_and(v < upper_bound),
    )


def integer_interval(lower_bound: Any, upper_bound: Any) -> Constraint:
    """Integers from ``lower_bound`` to ``upper_bound``, both included."""
    return Constraint(
        f"integers from {lower_bound} to {upper_bound}",
        lambda v: _whole(v).logical_and(v >= lower_bound).logical_and(v <= upper_bound),
        is_discrete=True,
    )


def multinomial(upper_bound: Any) -> Constraint:
    """Vectors of counts that sum to at most ``upper_bound``."""
    return Constraint(
        f"not negative, with a sum of at most {upper_bound}",
        lambda v: (v >= 0).all(-1).logical_and(v.sum(-1) <= upper_bound),
        is_discrete=True,
        event_dim=1,
    )


def independent(base_constraint: Constraint, reinterpreted_batch_ndims: int) -> Constraint:
    """``base_constraint`` for all elements along the last ``reinterpreted_batch_ndims`` dimensions at once."""
    n = reinterpreted_batch_ndims

    def check(v: Tensor) -> Any:
        inside = base_constraint.check(v)
        if inside.ndim < n:
            raise ValueError(
                f"independent: expected at least {base_constraint.event_dim + n} dimensions, got {v.ndim}"
            )
        return inside.reshape(*inside.shape[: inside.ndim - n], -1).all(-1) if n else inside

    return Constraint(
        base_constraint.words,
        check,
        is_discrete=base_constraint.is_discrete,
        event_dim=base_constraint.event_dim + n,
    )


def _lower(v: Tensor) -> Any:
    return (v.tril() == v).reshape(*v.shape[:-2], -1).all(-1)


def _definite(v: Tensor) -> Any:
    even = ((v - v.mT).abs() <= 1e-6).reshape(*v.shape[:-2], -1).all(-1)
    return even.logical_and(cholesky_ex(v.detach()).info == 0) if bool(even.all()) else even


def _impossible(v: Tensor) -> Any:
    raise ValueError("a constraint that depends on other parameters cannot be checked without them")


boolean = Constraint("0 or 1", lambda v: (v == 0).logical_or(v == 1), is_discrete=True)
dependent = Constraint("what other parameters allow", _impossible)
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
    """Return whether ``constraint`` is :data:`dependent`, which cannot be checked."""
    return constraint is dependent
