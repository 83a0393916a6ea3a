"""Derivatives of running sums and their like, by central differences; the table is complete."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttrain.ops import scan as ops

rng = np.random.default_rng(0)


def c(*args: Any, **options: Any) -> Any:
    return args, options


def f(*shape: int) -> Any:
    return rng.standard_normal(shape)


DISTINCT = rng.permutation(12).reshape(3, 4) * 0.3
ZEROS = np.array([[0.0, 2.0, 3.0, 0.5], [2.0, 0.0, 0.0, 1.0], [1.0, 2.0, 0.0, 3.0]])
CASES: dict[str, list[Any]] = {
    "cumsum": [c(f(2, 3), axis=a) for a in (0, 1)],
    "cumprod": [c(x, axis=a) for x in (f(2, 3), ZEROS) for a in (0, 1)],
    "logcumsumexp": [c(f(2, 3), axis=a) for a in (0, 1)],
    "cummax": [c(DISTINCT, axis=a) for a in (0, 1)],
    "cummin": [c(DISTINCT, axis=a) for a in (0, 1)],
}


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives(name: str, differences: Any) -> None:
    for args, options in CASES[name]:
        differences(getattr(ops, name), *args, **options)
