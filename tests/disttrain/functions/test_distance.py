"""Distances between vectors, against PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

rng = np.random.default_rng(0)


def c(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def f(*shape: int) -> Any:
    return rng.standard_normal(shape)


def i(*values: Any) -> Any:
    return np.array(values, np.int64)


CASES: dict[str, list[Any]] = {
    "cdist": [c(f(2, 3), f(4, 3), *p) for p in ((), (1.0,), (3.0,), (0.0,), (float("inf"),), (1.5,), (-1.0,))]
    + [
        c(f(5, 2, 3), f(1, 4, 3)),
        c(f(2, 3), f(4, 2)),
        c(f(3), f(2, 3)),
        c(f(0, 3), f(2, 3)),
        c(i([1]), i([2])),
    ]
    + [c(np.ones((2, 3)), np.ones((2, 3)))],
}


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])
