"""Finding and counting values against PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

rng = np.random.default_rng(0)


def c(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def f(*shape: int) -> Any:
    return rng.standard_normal(shape)


MANY = rng.integers(0, 4, (3, 4))
NANS = np.array([1.0, np.nan, 1.0, np.nan, -np.inf, 0.5], np.float32)
KINDS = [rng.integers(0, 4, 9).astype(d) for d in (np.float32, np.float16, np.int32, np.uint8, np.bool_)]
ROWS = np.array([[1, 2], [0, 1], [1, 2], [0, 0]])
FLAGS = [
    {},
    {"return_inverse": True},
    {"return_counts": True},
    {"return_inverse": True, "return_counts": True},
]
STEPS = np.array([-1.0, 0.0, 0.5, 2.0])
COMMON = [
    c(x, **flags) for x in (MANY, NANS, *KINDS, np.zeros(0, np.float32), np.asarray(2)) for flags in FLAGS
]
COMMON += [c(ROWS, dim=d, **flags) for d in (0, 1, -1, 2) for flags in FLAGS]
COMMON += [
    c(np.zeros((0, 3), np.float32), dim=0),
    c(np.zeros((0, 3)), dim=1),
    c(ROWS.reshape(2, 2, 2), dim=1),
]
CASES: dict[str, list[Any]] = {
    "unique": [*COMMON, c(MANY, True, True, True), c(MANY, sorted=True), c([1, 2])],
    "unique_consecutive": [*COMMON, c(MANY, True, True), c(np.array([1, 1, 2, 2, 1]))],
    "isin": [
        c(MANY, np.array([1, 3])),
        c(MANY, 2),
        c(2, MANY),
        c(MANY, np.array([1, 3]), invert=True),
        c(np.arange(4), np.array([1, 3]), assume_unique=True),
        c(MANY, np.array([1.0, 2.5])),
        c(NANS, NANS),
        c(MANY, np.zeros(0, np.int64)),
        c(1, 2),
    ],
    "searchsorted": [
        *[c(STEPS, f(2, 3), **o) for o in ({}, {"right": True}, {"side": "right"}, {"side": "left"})],
        c(STEPS, f(3), out_int32=True),
        c(STEPS, 0.3),
        c(STEPS, 0.5, right=True),
        c(np.sort(f(2, 5)), f(2, 3)),
        c(np.sort(f(2, 5)), f(3)),
        c(np.sort(f(2, 5)), 0.1),
        c(STEPS[::-1].copy(), f(3), sorter=np.array([3, 2, 1, 0])),
        c(STEPS, f(3), sorter=np.array([3, 2, 1])),
        c(STEPS, f(3), sorter=np.array([3, 2, 1, 9])),
        c(STEPS, f(3), sorter=np.array([3, 2, 1, 0], np.int32)),
        c(STEPS, f(3), side="left", right=True),
        c(STEPS, f(3), side="middle"),
        c(STEPS, np.arange(3)),
        c(np.arange(5), np.array([2, 9])),
        c(STEPS, np.array([np.nan, np.inf])),
        c(STEPS, f(0)),
    ],
    "bucketize": [
        c(f(2, 3), STEPS),
        c(f(2, 3), STEPS, right=True),
        c(f(3), STEPS, out_int32=True),
        c(0.5, STEPS),
        c(np.arange(3), STEPS),
        c(f(3), np.sort(f(2, 3))),
    ],
    "bincount": [
        c(np.array([1, 3, 3, 0])),
        c(np.array([1, 3, 3, 0]), minlength=6),
        c(np.array([1, 3]), np.array([0.5, 2.0], np.float32)),
        c(np.array([1, 3]), np.array([2, 3])),
        c(np.array([1, 3], np.uint8)),
        c(np.zeros(0, np.int64)),
        c(np.array([-1, 2])),
        c(np.array([1.0, 2.0])),
        c(np.array([[1, 2]])),
        c(np.array([1, 2]), np.ones(3, np.float32)),
        c(np.array([1, 2]), minlength=-1),
    ],
    "histc": [
        c(f(30).astype(np.float32), 5),
        c(f(30).astype(np.float32), 5, -1, 1),
        c(f(30).astype(np.float32), bins=4, min=0, max=2),
        c(np.zeros(0, np.float32), 3),
        c(np.ones(4, np.float32), 3),
        c(np.array([1.0, np.nan, 3.0], np.float32), 3, 0, 4),
        c(np.array([1.0, np.inf], np.float32), 3),
        c(f(3).astype(np.float32), 0),
        c(f(3).astype(np.float32), 3, 2, 1),
        c(f(2, 3).astype(np.float32), 4),
    ],
}

CASES["isin"] += [c(np.array([True, False]), np.array([True])), c(np.array([1.0]), True)]
CASES["searchsorted"] += [c(np.array([False, True]), np.array([True]))]
CASES["bincount"] += [c(np.array([], np.int64), np.array([], np.float32), 2)]
CASES["histc"] += [c(np.arange(5), 5, 0, 4)]
CASES["searchsorted"] += [c(np.array([1, 3], np.int8), v) for v in (300, 2.5, -(2**40))]
CASES["unravel_index"] = [
    c(np.array(v), s) for v, s in (([5, 0, -1], (2, 3)), (5, (6,)), ([7], (2, 3)), ([5], 6), ([1.0], (2,)))
]
CASES["histc"] += [c(np.array([1e38, -3e38, 1.0], np.float32), 2, -1, 1)]


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])
