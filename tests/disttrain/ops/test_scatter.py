"""Derivatives of gathers and scatters along an axis, by central differences; the table is complete."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttrain.ops import scatter as ops

rng = np.random.default_rng(0)


def c(*args: Any, **options: Any) -> Any:
    return args, options


def f(*shape: int) -> Any:
    return rng.standard_normal(shape)


IDX = np.array([[0, 1, 1], [1, 0, 0]])
CASES: dict[str, list[Any]] = {
    "gather": [c(f(2, 3), IDX, axis=0), c(f(2, 3), IDX[:1], axis=1)],
    "scatter_add_zeros": [c(f(2, 3), IDX, axis=0, shape=(2, 3)), c(f(2, 3), IDX, axis=1, shape=(2, 4))],
    "scatter_add": [c(f(2, 3), IDX, f(2, 3), axis=0), c(f(2, 3), IDX[:1, :2], f(2, 3), axis=1)],
    "scatter": [
        c(f(3, 3), np.array([[0, 2, 1]]), f(1, 3), axis=0),
        c(f(3, 3), np.array([[0, 2]]), f(2, 3), axis=1),
        c(f(3, 3), np.array([[0, 2, 1]]), np.asarray(0.5), axis=0),
    ],
    "scatter_reduce": [
        c(f(2, 3), IDX, f(2, 3), axis=a, reduce=r, include_self=s)
        for a in (0, 1)
        for r in ("prod", "mean", "amax", "amin")
        for s in (True, False)
    ]
    + [c(f(3, 3), IDX[:1], f(2, 3), axis=0, reduce="prod", include_self=True)],
}


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives(name: str, differences: Any) -> None:
    for args, options in CASES[name]:
        differences(getattr(ops, name), *args, **options)
