"""Derivatives of views that speak of memory, by central differences; the table is complete."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttrain.ops import strided as ops
from disttrain.ops.types import no_vjp

rng = np.random.default_rng(0)


def c(*args: Any, **options: Any) -> Any:
    return args, options


def f(*shape: int) -> Any:
    return rng.standard_normal(shape)


VIEW = {"shape": (2, 3), "strides": (2, 1), "offset": 1}
CASES: dict[str, list[Any]] = {
    "unfold": [c(f(2, 5), axis=1, size=n, step=s) for n, s in ((3, 1), (2, 2), (5, 1), (0, 1))]
    + [c(f(5, 2), axis=0, size=2, step=3)],
    "fold": [
        c(f(2, 3, 3), shape=(2, 5), axis=1, size=3, step=1),
        c(f(2, 2, 2), shape=(5, 2), axis=0, size=2, step=3),
    ]
    + [c(f(2, 2, 4), shape=(2, 5), axis=1, size=4, step=1)],
    "as_strided": [c(f(2, 3), **VIEW, layout=(3, 1)), c(f(2, 3), **VIEW, layout=(1, 2))],
    "add_strided": [c(f(2, 3), **VIEW, size=(2, 3), layout=(3, 1))],
}
NO_GRADIENT = {"reinterpret": c(f(3), dtype=np.dtype(np.int64))}
"""The result are bytes read otherwise."""


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives(name: str, differences: Any) -> None:
    for args, options in CASES[name]:
        differences(getattr(ops, name), *args, **options)


@pytest.mark.parametrize("name", NO_GRADIENT)
def test_the_rest_says_that_it_has_no_derivative(name: str) -> None:
    args, options = NO_GRADIENT[name]

    _, _, vjp = getattr(ops, name)(*args, **options)

    assert vjp is no_vjp
