"""Derivatives of what takes and puts by keys, by central differences; the table is complete."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttrain.ops import index as ops
from disttrain.ops.types import no_vjp

rng = np.random.default_rng(0)


def c(*args: Any, **options: Any) -> Any:
    return args, options


def f(*shape: int) -> Any:
    return rng.standard_normal(shape)


KEYS: list[Any] = [
    (np.array([1, 0, 1]),),
    (slice(None), np.array([2, 2])),
    (np.array([[True, False, True], [True, True, False]]),),
]
CASES: dict[str, list[Any]] = {
    "take": [c(f(2, 3), key=k) for k in KEYS],
    "put_zeros": [c(np.zeros((2, 3))[k] + f(1)[0], shape=(2, 3), key=k) for k in KEYS],
    "put": [c(f(2, 3), f(*np.zeros((2, 3))[k].shape), key=k, accumulate=True) for k in KEYS]
    + [
        c(f(3, 2), f(2, 2), key=(np.array([2, 0]),), accumulate=False),
        c(f(2, 3), f(4), key=KEYS[2], accumulate=False),
    ],
    "triangle": [c(f(3, 4), diagonal=d, upper=u) for d in (-1, 0, 1) for u in (True, False)],
}
NO_GRADIENT = {"nonzero": c(f(3))}
"""The result are indices."""


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives(name: str, differences: Any) -> None:
    for args, options in CASES[name]:
        differences(getattr(ops, name), *args, **options)


@pytest.mark.parametrize("name", NO_GRADIENT)
def test_the_rest_says_that_it_has_no_derivative(name: str) -> None:
    args, options = NO_GRADIENT[name]

    _, _, vjp = getattr(ops, name)(*args, **options)

    assert vjp is no_vjp
