"""Matrix products against PyTorch's."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

rng = np.random.default_rng(0)
DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int32)


def c(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def f(*shape: int) -> Any:
    return rng.standard_normal(shape)


def typed(*shapes: tuple[int, ...]) -> list[Any]:
    return [c(*[(f(*s) * 3).astype(d) for s in shapes]) for d in DTYPES]


SHAPES = [
    (3,),
    (2, 3),
    (3, 2),
    (3, 4),
    (5, 2, 3),
    (5, 3, 2),
    (1, 3, 2),
    (4, 1, 2, 3),
    (5, 3, 4),
    (0, 3),
    (3, 0),
    (0,),
    (),
    (2, 0, 3),
]
PAIRS = [c(f(*a), f(*b)) for a, b in itertools.product(SHAPES, SHAPES)]
MIXED = [c(f(2, 3), f(3, 2).astype(np.float32)), c(f(2, 3), 2.0)]

CASES: dict[str, list[Any]] = {
    "matmul": [*PAIRS, *MIXED, *typed((2, 3), (3, 4)), *typed((3,), (3,)), c(f(3, 2).T, f(4, 3).T)],
    "mm": [*PAIRS, *MIXED, *typed((2, 3), (3, 4))],
    "mv": [*[p for p in PAIRS if p[0][0].ndim], *MIXED, *typed((2, 3), (3,))],
    "dot": [*PAIRS, *MIXED, *typed((3,), (3,))],
    "bmm": [*PAIRS, *MIXED, *typed((5, 2, 3), (5, 3, 2))],
    "outer": [*PAIRS, *typed((3,), (2,)), c(f(3), np.arange(2))],
    "addmm": [
        c(f(2, 4), f(2, 3), f(3, 4)),
        c(f(4), f(2, 3), f(3, 4), beta=0.5, alpha=2),
        c(f(2, 1), f(2, 3), f(3, 4), alpha=-1.5),
        c(f(), f(2, 3), f(3, 4)),
        c(f(3), f(2, 3), f(3, 4)),
        c(f(2, 4), f(2, 3), f(4, 4)),
        c(f(5, 2, 4), f(2, 3), f(3, 4)),
        c(np.arange(4), np.ones((2, 3), np.int64), np.ones((3, 4), np.int64), beta=2),
    ],
}
SUMS = [{}, {"beta": 0.5, "alpha": 2}, {"beta": 0}, {"alpha": -1.5}]
WHOLE = {"beta": 2, "alpha": 3}
CASES |= {
    "addmv": [c(x, f(2, 3), f(3), **k) for k in SUMS for x in (f(2), f(1), f())] + [c(f(3), f(2, 3), f(3))],
    "addr": [c(x, f(2), f(3), **k) for k in SUMS for x in (f(2, 3), f(3), f())]
    + [c(f(2, 2), f(2), f(3)), c(np.ones((2, 3), int), np.arange(2), np.arange(3), **WHOLE)]
    + [c(np.ones((2, 2), bool), np.array([True, False]), np.array([True, True]), beta=False)],
    "baddbmm": [c(x, f(5, 2, 3), f(5, 3, 4), **k) for k in SUMS for x in (f(5, 2, 4), f(4), f(2, 1))]
    + [c(f(4, 2, 4), f(5, 2, 3), f(5, 3, 4)), c(f(2, 4), f(5, 2, 3), f(4, 3, 4))],
    "addbmm": [c(x, f(5, 2, 3), f(5, 3, 4), **k) for k in SUMS for x in (f(2, 4), f(4), f(2, 1))]
    + [
        c(f(5, 2, 4), f(5, 2, 3), f(5, 3, 4)),
        c(f(2, 4), f(5, 2, 3), f(4, 3, 4)),
    ],
    "vdot": [*PAIRS[:40], *MIXED],
    "inner": PAIRS,
    "ger": PAIRS[:40],
    "kron": [*PAIRS[:60], c(np.arange(3), f(2, 2))],
    "cross": [
        c(f(3), f(3)),
        c(f(2, 3), f(2, 3)),
        c(f(3, 2), f(3, 2), 0),
        c(f(2, 3), f(1, 3), dim=-1),
        c(f(2, 3), f(2, 3), 0),
        c(f(2, 2), f(2, 2)),
        c(np.arange(3), np.arange(3) + 1),
    ],
    "tensordot": [
        c(f(2, 3, 4), f(3, 4, 5), 2),
        c(f(2, 3), f(4, 5), 0),
        c(f(2, 3), f(3, 4), dims=1),
        c(f(2, 3, 4), f(4, 2, 5), ([0, 2], [1, 0])),
        c(f(2, 3), f(3, 4), ([-1], [0])),
        c(f(2, 3), f(4, 5), 1),
        c(f(2, 3), f(3, 4), ([0, 1], [0])),
        c(f(2, 3), f(3, 4), 3),
        c(f(2, 1), f(3, 4), 1),
    ],
    "chain_matmul": [c(f(2, 3), f(3, 4), f(4, 2)), c(f(2, 3)), c(f(2, 3), f(2, 3)), c(f(3), f(3, 2))],
}
for _name in ("addmm", "addmv", "addr", "baddbmm", "addbmm"):
    CASES[f"{_name}_"] = CASES[_name]
CASES["addbmm_"] = CASES["addbmm"][
    ::3
]  # where the tensor has the shape of the result; PyTorch would resize others
CASES["__matmul__"] = CASES["__rmatmul__"] = [
    case for case in CASES["matmul"] if isinstance(case[0][1], np.ndarray)
]
CASES["cov"] = [
    *[c(f(*s)) for s in ((3, 4), (4,), (1, 3), (2, 2, 2))],
    *[c(f(3, 4), correction=k) for k in (0, 1, 2)],
    c(np.arange(6).reshape(2, 3)),
    c(f(2, 3), fweights=np.array([1, 2, 3])),
    c(f(2, 3), aweights=np.array([0.5, 2, 1])),
    c(f(2, 3), fweights=np.array([1, 2, 3]), aweights=np.array([0.5, 2, 1]), correction=0),
    c(f(2, 3), fweights=np.array([1.0, 2, 3])),
    c(f(2, 3), fweights=np.array([1, 2])),
    c(f(2, 3), fweights=np.array([1, -2, 3])),
]
CASES["corrcoef"] = [c(f(3, 4)), c(f(4)), c(np.arange(6).reshape(2, 3))]


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])
