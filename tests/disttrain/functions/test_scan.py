"""Running sums and their like, differences and integrals against PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import disttrain as dt

rng = np.random.default_rng(0)


def c(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def f(*shape: int) -> Any:
    return rng.standard_normal(shape)


DTYPES = (np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_)
TIES = np.array([[2.0, 1.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
NANS = np.array([1.0, np.nan, 3.0, np.nan, -np.inf, np.inf])
ZEROS = np.array([[0.0, 2.0, 3.0], [2.0, 0.0, 0.0], [1.0, 2.0, 0.0]])
COMMON = [c(f(*s), d) for s in ((), (3,), (2, 3), (2, 1, 3), (0,), (2, 0)) for d in (0, -1, 1, 5)]
COMMON += [c((f(2, 3) * 3).astype(d), 1) for d in DTYPES]
COMMON += [c(f(2, 3), dim=0), c(NANS, 0), c(f(2, 3).T, 0), c(f(2, 3), axis=0), c([1.0], 0)]
CHECKED = [(a, k) for a, k in COMMON if "dim" in k or np.size(a[0]) or len(a) < 2 or a[1] in (0, -1)]
"""PyTorch's cummax and cummin do not look at the dimension of an empty tensor."""
CASES: dict[str, list[Any]] = {
    "cumsum": [*COMMON, c(f(3), 0, dtype=dt.float32), c(np.arange(3), 0, dtype=dt.float64)],
    "cumprod": [*COMMON, c(ZEROS, 0), c(ZEROS, 1), c(np.arange(1, 4), 0, dtype=dt.float64)],
    "logcumsumexp": [*COMMON, c(np.array([1000.0, 1.0, -1000.0]), 0)],
    "cummax": [*CHECKED, c(TIES, 0), c(TIES, 1)],
    "cummin": [*CHECKED, c(TIES, 0), c(TIES, 1)],
    "diff": [
        *[c(f(2, 3), n, d) for n in (0, 1, 2, 4, -1) for d in (0, 1, -1, 2)],
        c(f(5)),
        c(f()),
        c(f(0)),
        c(np.array([True, False, False])),
        c(np.array([3, 1], np.uint8)),
        c(f(2, 3), prepend=f(2, 1), append=f(2, 2)),
        c(f(2, 3), prepend=f(1, 1)),
        c(f(2, 3), dim=0, append=f(2, 3)),
        c(f(2, 3), prepend=f(2)),
    ],
    "trapezoid": [
        c(f(4)),
        c(f(2, 4), dx=0.5),
        c(f(2, 4), dim=0),
        c(f(2, 4), f(4)),
        c(f(2, 4), f(2, 4)),
        c(f(2, 4), f(2), dim=0),
        c(np.arange(4)),
        c(f(2, 4), f(3)),
        c(f(2, 4), f(4), dx=2.0),
        c(f(0)),
        c(f(2, 0)),
        c(np.array([True, False])),
        c(f(3), dim=1),
    ],
}
CASES["cumsum_"], CASES["cumprod_"] = COMMON, [*COMMON, c(ZEROS, 1)]
CASES["trapz"] = [case for case in CASES["trapezoid"] if "dx" not in case[1] or len(case[0]) == 1]
CASES["cumulative_trapezoid"] = CASES["trapezoid"]

CASES["trapezoid"] += [
    c(np.array([123, 133, 0, 1], np.uint8)),  # twice an end may be more than the type holds
    c(np.array([np.inf, 0.0, 1.0])),
    c(np.array([], np.int64)),
    c(np.array([[1, 2], [3, 5]], np.int16), dx=2, axis=0),
]
CASES["cumulative_trapezoid"] = [
    *CASES["trapezoid"],
    c(np.array([0, 2**31 - 1, 1], np.int32), dx=2),
    c(np.array([1, 2, 4]), dx=0.5),
]
CASES["cumsum"] += [c(f(3), True), c(f(3), 0.0), c(f(3), axis=0)]


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])
