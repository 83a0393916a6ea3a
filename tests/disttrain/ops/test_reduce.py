"""Derivatives of reductions, by central differences; the table is complete."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttrain.ops import reduce as ops
from disttrain.ops.types import no_vjp

rng = np.random.default_rng(0)


def c(*args: Any, **options: Any) -> Any:
    return args, options


def f(*shape: int) -> Any:
    return rng.standard_normal(shape)


AXES = [(2, 3, 4), (1,), False], [(2, 3), (0, 1), True], [(2, 3), (0, 1), False], [(3, 1, 2), (0, 2), True]
OVER = [c(f(*s), axes=a, keepdims=k) for s, a, k in AXES]
DISTINCT = rng.permutation(24).reshape(2, 3, 4) * 0.3
CASES: dict[str, list[Any]] = {
    "sum": OVER,
    "mean": OVER,
    "var": [c(*a, **o, correction=n) for a, o in OVER for n in (0, 1)],
    "prod": [*OVER, c(np.array([[0.0, 2.0, 3.0], [0.0, 0.0, 1.0]]), axes=(1,), keepdims=False)],
    "logsumexp": OVER,
    "amax": [c(DISTINCT, axes=a, keepdims=k) for a in ((1,), (0, 2), (0, 1, 2)) for k in (True, False)],
    "amin": [c(DISTINCT, axes=a, keepdims=k) for a in ((1,), (0, 2), (0, 1, 2)) for k in (True, False)],
    "max_along": [c(DISTINCT, axis=a, keepdims=k) for a in (0, 2) for k in (True, False)],
    "min_along": [c(DISTINCT, axis=a, keepdims=k) for a in (0, 2) for k in (True, False)],
    "root": [c(rng.uniform(0.4, 2.0, (2, 3)))],
    "vector_norm": [
        c(*a, **o, order=p) for a, o in OVER for p in (2.0, 1.0, 3.0, 0.5, 1.5, -1.0, 0.0, np.inf, -np.inf)
    ],
}
NO_GRADIENT = {
    **{name: c(f(2, 3), axis=1, keepdims=False) for name in ("argmax", "argmin")},
    **{name: c(f(2, 3), axes=(1,), keepdims=False) for name in ("all", "any")},
}
"""Results are indices or booleans."""


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives(name: str, differences: Any) -> None:
    for args, options in CASES[name]:
        differences(getattr(ops, name), *args, **options)


@pytest.mark.parametrize("name", NO_GRADIENT)
def test_the_rest_says_that_it_has_no_derivative(name: str) -> None:
    args, options = NO_GRADIENT[name]

    _, _, vjp = getattr(ops, name)(*args, **options)

    assert vjp is no_vjp
