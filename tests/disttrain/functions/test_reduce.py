"""Reductions against PyTorch's."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import disttrain as dt

rng = np.random.default_rng(0)
FLOATS = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
DTYPES = (*FLOATS, np.int64, np.int32, np.uint8, np.bool_)


def c(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def f(*shape: int) -> Any:
    return rng.standard_normal(shape)


def typed(*args: Any, **kwargs: Any) -> list[Any]:
    return [c((f(2, 3) * 3).astype(d), *args, **kwargs) for d in DTYPES]


def over(dims: tuple[Any, ...], *args: Any, keepdim: bool = True, **kwargs: Any) -> list[Any]:
    """Shapes with 0 to 3 dimensions and empty ones, over each of ``dims``; impossible ones are refused."""
    cases = []
    for shape in [(), (3,), (2, 3), (2, 1, 3), (0,), (0, 3), (2, 0)]:
        for dim, keep in itertools.product(dims, (False, True) if keepdim else (None,)):
            more = {} if keep is None else {"keepdim": keep}
            cases.append(c(f(*shape), *args, dim, **more, **kwargs))
    return cases


SETS = (0, 1, -1, -2, 2, 5, -4, (0, 1), (0, -1), (-1,), (), None, [0], (0, 0))
ONE = (0, 1, -1, -2, 2, 5)
TIES = np.array([[1.0, 2.0, 2.0], [3.0, 3.0, 3.0], [0.0, -1.0, -1.0]])
NANS = np.array([[1.0, np.nan, 2.0], [np.inf, -np.inf, 3.0]])

CASES: dict[str, list[Any]] = {
    name: [c(f(2, 3)), c(f()), c(f(0)), c(f(2, 3).T), c(NANS), *typed(), *over(SETS)]
    for name in ("sum", "mean")
}
CASES["sum"] += [
    c(f(2, 3), dtype=dt.float32),
    c(np.arange(3), dtype=dt.float64),
    c(f(2, 3), 1, dtype=dt.float32),
] + typed(0)
CASES["var"] = [
    c(f(2, 3)),
    c(f(3)),
    c(f(4), False),
    c(f(4), True),
    c(f(2, 3), 1, False),
    c(f(2, 3), (0, 1), True, True),
    *typed(),
    *over((0, 1, -1, (0, 1), None), correction=0),
    c(f(5), correction=2),
    c(f(2, 3), dim=1, correction=0, keepdim=True),
]
CASES["std"] = CASES["var"]
CASES["prod"] = [
    c(f(2, 3)),
    c(f()),
    c(f(0)),
    *typed(),
    *over(ONE),
    c(np.array([[0.0, 2, 3], [0, 0, 4], [1, 2, 3]]), 1),
    c(np.array([0.0, 2.0, 3.0])),
    c(np.array([0.0, 2.0, 0.0])),
]
for _name in ("amax", "amin"):
    CASES[_name] = [
        c(f(2, 3)),
        c(f()),
        c(f(0)),
        c(TIES),
        c(TIES, 1),
        c(NANS.astype(np.float32), 1),
        *typed(),
        *typed(1),
        *over(tuple(d for d in SETS if d not in [(0, -1), (0, 0)])),
    ]
for _name in ("max", "min"):
    CASES[_name] = [
        c(f(2, 3)),
        c(f()),
        c(f(0)),
        c(TIES),
        c(TIES, 1),
        c(TIES, 0),
        c(NANS),
        c(NANS, 1),
        *typed(),
        *typed(1),
        *over(ONE),
        c(f(2, 3), f(3)),
        c(f(2, 3), 1, True),
    ]
for _name in ("argmax", "argmin"):
    CASES[_name] = [
        c(f(2, 3)),
        c(f()),
        c(f(0)),
        c(TIES),
        c(TIES, 1),
        c(NANS),
        c(NANS, 1),
        *typed()[:-1],
        *over((None, *ONE)),
    ]
for _name in ("all", "any"):
    CASES[_name] = [
        c(f(2, 3)),
        c(f()),
        c(f(0)),
        *typed(),
        *typed(1),
        *over((0, 1, -1, 2, 5, (0, 1))),
        c(np.array([[True, False], [True, True]]), 1),
        c(np.array([0.0, np.nan])),
    ]
CASES["logsumexp"] = [
    *typed(1),
    *over((0, 1, -1, 2, 5, (0, 1))),
    c(f(2, 3) * 1000, 1),
    c(np.full((2, 2), -np.inf), 1),
    c(np.array([[np.inf, 1.0]]), 1),
    c(f(2, 3), dim=(0, 1)),
]
CASES["nansum"] = [*CASES["sum"], c(NANS, 1)]
CASES["nanmean"] = [*[case for case in CASES["mean"] if "dtype" not in case[1]], c(NANS, 1)]
CASES["var_mean"] = CASES["std_mean"] = CASES["var"]
CASES["count_nonzero"] = [*typed(), *over((0, 1, -1, 2, 5, (0, 1), None), keepdim=False), c(TIES, dim=1)]
CASES["aminmax"] = [
    *typed(),
    *[c(f(2, 3), dim=d, keepdim=k) for d in (None, 0, 1, -1, 2) for k in (True, False)],
    *[
        c(TIES),
        c(TIES, dim=1),
        c(NANS.astype(np.float32)),
        c(f()),
        c(f(), dim=0),
        c(f(0)),
        c(f(2, 0), dim=1),
        c(f(2, 0), dim=0),
    ],
]
for _name in ("sum", "mean", "var", "std", "amax", "amin", "all", "any", "prod", "argmax"):  # NumPy's words
    CASES[_name] += [c(f(2, 3), axis=1), c(f(2, 3), axis=0, keepdims=True)]
for _name in ("sum", "argmax", "max", "any", "var"):
    CASES[_name] += [c([1.0, 2.0]), c(1.0), c(f(3), "a")]

for _name in ("sum", "mean", "amax", "any", "argmax", "prod"):  # dimensions that are no integers
    CASES[_name] = CASES[_name] + [c(f(2, 3), dim=True), c(f(2, 3), dim=1.0), c(f(2, 3), dim="0")]
CASES["logsumexp"] = [*CASES["logsumexp"], c(f(2, 3), None)]


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])
