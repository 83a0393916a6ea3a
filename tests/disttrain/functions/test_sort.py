"""Sorting, and what follows from it, against PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

rng = np.random.default_rng(0)


def c(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def f(*shape: int) -> Any:
    return rng.standard_normal(shape)


TIES = np.array([[2.0, 1.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0]])

CASES: dict[str, list[Any]] = {
    "sort": [
        c(f(3, 4)),
        c(f(3, 4), 0),
        c(f(3, 4), -1, True),
        c(f(3, 4), 2),
        c(f()),
        c(f(0)),
        c(np.array([1.0, np.nan, -np.inf])),
        c(np.array([1.0, np.nan, 0.0]), 0, True),
        c(np.array([3, 1, 2])),
        c(np.array([True, False])),
        c(f(3, 4), dim=0, descending=True),
    ],
    "argsort": [
        c(f(3, 4)),
        c(f(3, 4), 0),
        c(f(3, 4), -1, True),
        c(f()),
        c(TIES, dim=1, stable=True),
        c(TIES, dim=1, descending=True, stable=True),
    ],
    "topk": [
        c(f(3, 4), 2),
        c(f(3, 4), 2, 0),
        c(f(3, 4), 2, 0, False),
        c(f(3, 4), 5),
        c(f(3, 4), 0),
        c(f(), 1),
        c(f(3, 4), -1),
        c(f(3, 4), 1, 2),
        c(np.array([1.0, np.nan, 2.0]), 2),
        c(np.array([3, 1, 2]), 2),
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])
