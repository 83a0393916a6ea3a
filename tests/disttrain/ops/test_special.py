"""Derivatives of special functions, by central differences; the table is complete."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttrain.ops import special as ops
from disttrain.ops.types import no_vjp

rng = np.random.default_rng(0)


def c(*args: Any, **options: Any) -> Any:
    return args, options


def f(*shape: int) -> Any:
    return rng.standard_normal(shape)


def inside(*shape: int) -> Any:
    return rng.uniform(0.1, 0.9, shape)


PAIRS = [c(f(2, 3), f(2, 3) + 0.1), c(f(2, 1), f(3)), c(f(), f(2))]
APART = c(np.array([[1.0, -2.0, 3.0]]), np.array([[0.5], [-4.0]]))
CASES: dict[str, list[Any]] = {
    **{
        name: [c(inside(2, 3)), c(-inside(3))]
        for name in ("asin", "acos", "asinh", "atanh", "erfinv", "erfc")
    },
    **{name: [c(inside(2, 3) + 0.3), c(inside(3) * 6 + 1)] for name in ("lgamma", "digamma")},
    "acosh": [c(inside(2, 3) + 1.1)],
    "polygamma": [c(inside(2, 3) + 0.3, n=n) for n in (1, 2, 3)] + [c(-inside(3) - 1, n=1)],
    "sinc": [c(f(2, 3)), c(f(3) * 3)],
    "logit": [c(inside(2, 3), limit=None), c(np.array([0.05, 0.4, 0.97]), limit=0.1)],
    **dict.fromkeys(("atan2", "hypot", "logaddexp", "logaddexp2", "copysign"), PAIRS),
    "xlogy": [c(f(2, 3), inside(2, 3)), c(f(2, 1), inside(3))],
    "nan_to_num": [c(f(2, 3), nan=0.0, posinf=1.0, neginf=2.0)],
    "angle": [c(f(2, 3))],
    "fmax": [APART],
    "fmin": [APART],
    "lerp": [c(f(2, 3), f(2, 3), w) for w in (0.3, 0.8, f(3), f(2, 1))],
    "addcmul": [c(f(2, 3), f(3), f(2, 1), value=v) for v in (1, -0.5)],
    "addcdiv": [c(f(2, 3), f(3), inside(2, 1), value=v) for v in (1, -0.5)],
}
NO_GRADIENT = {
    "heaviside": c(f(3), f(3)),
    "signbit": c(f(3)),
    "gcd": c(np.arange(3), np.arange(3)),
    "lcm": c(np.arange(3), np.arange(3)),
    "left_shift": c(np.arange(3), np.arange(3)),
    "right_shift": c(np.arange(3), np.arange(3)),
}
"""Steps, booleans and integers."""


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives(name: str, differences: Any) -> None:
    for args, options in CASES[name]:
        differences(getattr(ops, name), *args, **options)


@pytest.mark.parametrize("name", NO_GRADIENT)
def test_the_rest_says_that_it_has_no_derivative(name: str) -> None:
    args, options = NO_GRADIENT[name]

    _, _, vjp = getattr(ops, name)(*args, **options)

    assert vjp is no_vjp
