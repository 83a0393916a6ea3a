"""Scatters along a dimension, against PyTorch's."""

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


IDX = i([0, 1, 1], [1, 0, 0])
ZEROS = np.array([[0.0, 1.5, -0.5], [2.0, 0.0, 0.0]])
VECTORS = [
    (c(f(3, 2), 0, i(2, 0), f(2, 2))),
    (c(f(3, 2), -1, i(1, 1, 0), f(3, 3))),
    (c(f(3, 2), 0, i(2, 0), f(2, 3))),
    (c(f(3, 2), 0, i(3, 0), f(2, 2))),
    (c(f(3, 2), 2, i(0), f(1, 2))),
    (c(f(3, 2), 0, i([2], [0]), f(2, 2))),
    (c(f(3), 0, i(0, 0, 1), f(3))),
    (c(f(3), 0, i(0), f(1).astype(np.float32))),
    (c(f(), 0, i(0), f())),
    (c(f(3), 0, i(), f(0))),
]
REDUCED = [
    c(f(2, 3), d, IDX, src, r, include_self=s)
    for r in ("sum", "prod", "mean", "amax", "amin")
    for d in (0, 1)
    for s in (True, False)
    for src in (f(2, 3), ZEROS)
]
REDUCED += [
    c(np.arange(6).reshape(2, 3), 0, IDX, np.arange(6).reshape(2, 3), r) for r in ("prod", "mean", "amax")
]
CASES: dict[str, list[Any]] = {
    "scatter": [c(f(2, 3), 0, IDX, f(2, 3), reduce=r) for r in ("add", "multiply", "max")]
    + [
        c(f(2, 3), 0, IDX, 2.0, reduce="add"),
        c(f(2, 3), dim=0, index=IDX, value=1.5),
        c(f(), 0, np.asarray(0), f()),
    ],
    "scatter_reduce": REDUCED,
    "scatter_reduce_": REDUCED[::5],
    "index_add": [*VECTORS, c(f(3, 2), 0, i(2, 2), f(2, 2), alpha=2), c(i(1, 2), 0, i(0), i(1), alpha=1.5)],
    "index_copy": VECTORS[:5] + VECTORS[7:],
    "index_fill": [
        c(f(3, 2), 0, i(2, 0), 1.5),
        c(f(3, 2), 1, i(1), np.asarray(2.5)),
        c(f(3, 2), 1, i(1), f(1)),
        c(f(3, 2), 1, i(2), 1.0),
        c(f(3, 2), 0, i(0, 0), np.asarray(0.5)),
        c(f(3), 0, np.array([0], np.int32), 1.0),
        c(i(1, 2), 0, i(0), 2.7),
    ],
}
for _name in ("index_add", "index_copy", "index_fill"):
    CASES[f"{_name}_"] = CASES[_name]

CASES["index_fill"] += [c(np.zeros(3, np.uint8), 0, i(1), v) for v in (300, 255, -1)]
CASES["scatter"] += [c(np.zeros(3, np.uint8), 0, i(1), v) for v in (300, 255, -1)]
CASES["index_select"] = [c(f(2, 3), axis=1, index=i(0, 2))]
CASES["index_fill"] += [c(f(3, 2), 0, i(-1, 1), 2.0), c(f(3), 0, i(-4), 2.0), c(f(), 0, i(-1), 2.0)]
CASES["gather"] = [
    c(f(), 0, i(0, 0, 0)),
    c(f(), 0, i(0, 1)),
    c(f(3), 0, np.asarray(2)),
    c(f(2, 3), axis=0, index=np.zeros((1, 3), np.int64)),
]


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])
