"""Derivatives of matrix products, by central differences; the table is complete."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttrain.ops import linalg as ops

rng = np.random.default_rng(0)


def c(*args: Any, **options: Any) -> Any:
    return args, options


def f(*shape: int) -> Any:
    return rng.standard_normal(shape)


SHAPES = [
    ((3,), (3,)),
    ((2, 3), (3,)),
    ((3,), (3, 2)),
    ((2, 3), (3, 4)),
    ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)),
    ((5, 2, 3), (5, 3, 4)),
    ((1, 2, 3), (5, 3, 4)),
    ((4, 1, 2, 3), (5, 3, 2)),
    ((5, 2, 3), (3,)),
    ((3,), (5, 3, 2)),
]
CASES: dict[str, list[Any]] = {
    "matmul": [c(f(*a), f(*b)) for a, b in SHAPES],
    "linear": [c(f(*s, 3), f(4, 3), b) for s in ((), (2,), (5, 2)) for b in (None, f(4))],
}


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives(name: str, differences: Any) -> None:
    for args, options in CASES[name]:
        differences(getattr(ops, name), *args, **options)
