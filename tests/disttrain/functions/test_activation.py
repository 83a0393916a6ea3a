"""Softmax as function and method against PyTorch's."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import disttrain as dt

f = np.random.default_rng(0).standard_normal


def c(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


CASES: dict[str, list[Any]] = {
    name: [c(f(s), d) for s in [(2, 3), (3,), (2, 1, 3), (0, 3)] for d in (0, -1, 1, 5)]
    + [c(f((2, 3)).astype(t), 1) for t in (np.float32, np.float16, ml_dtypes.bfloat16)]
    + [
        c(f((2, 3)), 1, dtype=dt.float32),
        c(np.arange(3), 0, dtype=dt.float64),
        c(np.array([1e4, 0.0, -np.inf]), 0),
    ]
    for name in ("softmax", "log_softmax")
}


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])
