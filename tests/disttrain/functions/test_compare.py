"""Comparisons of whole tensors against PyTorch's."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.uint8, np.bool_)
ODD = np.array([1.0, np.nan, np.inf, -np.inf, 0.0])
NEAR = np.array([1.0 + 5e-6, np.nan, np.inf, np.inf, 5e-9])


def c(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


PAIRS = [
    c(ODD, NEAR),
    c(ODD, ODD),
    c(np.ones((2, 3)), np.ones(3)),
    c(np.ones((2, 3)), np.ones((2, 3))),
    c(np.ones((2, 3)), np.ones(2)),
    c(np.ones(0), np.ones(0)),
    c(np.ones(()), np.ones(1)),
    c(np.ones(3), 1.0),
    *[c(np.array([0, 1, 1]).astype(d), np.array([0, 1, 0]).astype(d)) for d in DTYPES],
    c(np.array([0, 200], np.uint8), np.array([1, 201], np.uint8)),
    c(np.ones(2), np.ones(2, np.float32)),
]
TOLERANCES = [
    c(ODD, NEAR, equal_nan=True),
    c(ODD, NEAR, 0.0, 0.0),
    c(np.array([100, 103]), np.array([101, 100]), 0.02, 0.5),
    c(ODD, ODD, -1.0),
    c(ODD, ODD, atol=-1.0),
]
CASES: dict[str, list[Any]] = {
    "equal": PAIRS,
    "isclose": PAIRS + TOLERANCES,
    "allclose": PAIRS + TOLERANCES,
    "is_same_size": PAIRS,
    "is_nonzero": [c(np.asarray(v)) for v in (0.0, 2.0, True, 0, np.nan)]
    + [c(np.ones(1)), c(np.ones(2)), c(np.ones(0))],
    **{
        name: [c(np.ones(2, d)) for d in (np.float64, np.float16, np.int64, np.uint8, np.bool_)] + [c(1.0)]
        for name in ("is_floating_point", "is_signed", "is_complex", "numel")
    },
}


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])
