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
NANS = np.array([[1.0, np.nan, -2.0, 3.0, np.nan], [0.5, 2.0, 1.0, -1.0, 4.0]])
SHAPES = [c(f(*s), d) for s in ((), (5,), (2, 5), (2, 1, 4), (0,), (2, 0)) for d in (0, -1, 1, 5)]
KINDS = [(rng.permutation(6) * 3).astype(d) for d in (np.float32, np.float16, np.int64, np.int32, np.uint8)]
BOOLS = np.array([True, False, True])
CASES["sort"] += [c(f(3, 4), stable=True), c(BOOLS), *map(c, KINDS), c(NANS), c(NANS, descending=True)]
CASES["msort"] = [c(f(3, 4)), c(f(3)), c(f()), c(f(0))]
CASES["topk"] += [
    c(f(50), 5),
    c(f(50), 5, largest=False),
    c(f(2, 40), 3),
    c(f(40, 2), 3, 0),
    *[c(k, 3) for k in KINDS],
]
CASES["topk"] += [c(np.append(np.arange(30.0), np.nan), 3), c(f(40), 3, sorted=True), c(f(3), 1.5)]
for _name in ("median", "nanmedian"):
    CASES[_name] = [
        *SHAPES,
        c(f(2, 5)),
        c(f(4)),
        c(f()),
        c(f(0).astype(np.float32)),
        c(NANS),
        c(NANS, 1),
        c(NANS, 0),
        c(BOOLS),
    ]
    CASES[_name] += [*map(c, KINDS), *[c(k, 0, True) for k in KINDS], c(np.array([1.0, 2.0, 1.0, 1.0]))]
    CASES[_name] += [c(np.full(3, np.nan)), c(f(2, 5), dim=1, keepdim=True), c(f(2, 5), axis=1), c([1.0])]
CASES["mode"] = [*SHAPES, *map(c, KINDS), c(TIES), c(TIES, 0), c(np.array([3, 1, 3, 1, 2])), c(BOOLS)]
CASES["mode"] += [c(f(2, 5), dim=0, keepdim=True)]
CASES["kthvalue"] = [c(f(2, 5), k, d, keep) for k in (1, 3, 0, 6) for d in (0, 1) for keep in (True, False)]
CASES["kthvalue"] += [*[c(k, 2) for k in KINDS], c(f(), 1), c(f(), 2), c(f(0), 1), c(BOOLS, 1), c(NANS, 4)]
for _name in ("quantile", "nanquantile"):
    CASES[_name] = [
        *[
            c(f(3, 4), q, *d)
            for q in (0.0, 0.3, 1.0, np.array([0.2, 0.8]))
            for d in ((), (0,), (1, True), (2,))
        ],
        *[
            c(f(3, 4), 0.4, 1, interpolation=i)
            for i in ("linear", "lower", "higher", "midpoint", "nearest", "odd")
        ],
        c(NANS, 0.5, 1),
        c(NANS, 0.5),
        c(np.full((2, 3), np.nan), 0.5, 1),
        c(f(3), 1.5),
        c(f(3), np.array([[0.5]])),
        c(f(3), np.array([0.5], np.float32)),
        c(np.arange(3), 0.5),
        c(f(3).astype(np.float32), 0.5),
        c(f(3).astype(np.float16), 0.5),
        c(f(0), 0.5),
        c(f(), 0.5, 0),
        c(f(3, 4), np.array([0.25, 0.75]), keepdim=True),
    ]

CASES["topk"] += [c(BOOLS, 1), c(f(3), 1, dim=True)]


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])
