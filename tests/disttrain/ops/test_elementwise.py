"""Derivatives of elementwise operations, by central differences; the table is complete."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttrain.ops import elementwise as ops
from disttrain.ops.types import no_vjp

rng = np.random.default_rng(0)


def c(*args: Any, **options: Any) -> Any:
    return args, options


def f(*shape: int) -> Any:
    return rng.standard_normal(shape)


def pos(*shape: int) -> Any:
    return rng.uniform(0.4, 2.0, shape)


def apart(*shape: int) -> Any:
    """Numbers no closer than 0.1 to each other and to multiples of 0.5: away from all kinks."""
    return (rng.permutation(int(np.prod(shape))) * 0.5 + 0.2).reshape(shape) - 1.0


PAIRS = [c(f(2, 3), pos(2, 3)), c(f(2, 1), pos(3)), c(f(), pos(2)), c(f(2), 1.7), c(1.7, pos(2))]
UNARY = [c(pos(2, 3)), c(pos()), c(pos(3, 2).T)]
CASES: dict[str, list[Any]] = {
    **dict.fromkeys(
        [
            "neg",
            "abs",
            "reciprocal",
            "square",
            "exp",
            "exp2",
            "expm1",
            "log",
            "log2",
            "log10",
            "log1p",
            "sqrt",
            "rsqrt",
            "sin",
            "cos",
            "tan",
            "atan",
            "sinh",
            "cosh",
        ],
        UNARY,
    ),
    **{name: [c(apart(2, 3))] for name in ["sign", "floor", "ceil", "trunc", "frac"]},
    **dict.fromkeys(["add", "sub", "mul", "div"], PAIRS),
    "round": [c(apart(2, 3), decimals=0), c(apart(3), decimals=1)],
    "pow": [
        c(pos(2, 3), f(3)),
        c(pos(2), 3),
        c(f(2), 2),
        c(f(2), 0),
        c(pos(2), -1.5),
        c(1.5, f(2)),
        c(pos(), f(2, 1)),
    ],
    "trunc_divide": [c(apart(2, 3) + 5.03, np.array([0.7, 1.1, 1.3]))],
    "floor_divide": [c(apart(2, 3) + 5.03, np.array([0.7, 1.1, 1.3]))],
    "remainder": [c(apart(2, 3) + 5.03, np.array([0.7, 1.1, 1.3]))],
    "fmod": [c(-apart(2, 3) - 5.03, np.array([0.7, 1.1, 1.3]))],
    "maximum": [c(apart(2, 3), apart(2, 3) + 0.1)],
    "minimum": [c(apart(2, 3), apart(2, 3) + 0.1)],
    "clamp": [c(apart(2, 3), a, b) for a, b in ((0.0, 1.0), (None, 0.5), (0.0, None))]
    + [
        c(apart(2, 3), np.array([0.0, 0.5, -1.0]), np.asarray(0.9)),
        c(apart(3), np.asarray(1.0), np.asarray(0.0)),
    ],
    "where": [c(f(2, 3) > 0, f(2, 3), f(3)), c(f(3) > 0, f(2, 1), 1.0)],
    "fill": [c(f(2, 3), value=2.0)],
    "copy_from": [c(f(2, 3), f(3))],
    "masked_fill": [c(f(2, 3), f(3) > 0, np.asarray(2.0)), c(f(2, 3), f(2, 3) > 0, 1.0)],
}
TRUTH = f(3) > 0
NO_GRADIENT = {
    **{
        name: c(f(3), f(3))
        for name in ["eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor"]
    },
    **{name: c(f(3)) for name in ["logical_not", "isnan", "isinf", "isfinite"]},
    **{name: c(TRUTH, TRUTH) for name in ["bitwise_and", "bitwise_or", "bitwise_xor"]},
    "bitwise_not": c(TRUTH),
}
"""Results are booleans (or of integers)."""


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives(name: str, differences: Any) -> None:
    for args, options in CASES[name]:
        differences(getattr(ops, name), *args, **options)


@pytest.mark.parametrize("name", NO_GRADIENT)
def test_the_rest_says_that_it_has_no_derivative(name: str) -> None:
    args, options = NO_GRADIENT[name]

    _, _, vjp = getattr(ops, name)(*args, **options)

    assert vjp is no_vjp
