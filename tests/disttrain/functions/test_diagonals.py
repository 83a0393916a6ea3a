"""Diagonals and triangles, and slices written into copies, against PyTorch's."""

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


OFFSETS = (0, 1, -1, 2, -3)
CASES: dict[str, list[Any]] = {
    "diag": [c(f(*s), o) for s in ((3,), (3, 4), (0,), (0, 2)) for o in OFFSETS] + [c(f()), c(f(2, 2, 2))],
    "diag_embed": [c(f(2, 3), o) for o in OFFSETS]
    + [c(f(2, 3), 0, *d) for d in ((0, 1), (0, 2), (2, 0), (-1, -2), (1, 1), (0, 5))]
    + [c(f(3)), c(i(1, 2))],
    "diagflat": [c(f(3)), c(f(2, 2), 1), c(f(), -1)],
    "trace": [c(f(3, 3)), c(f(2, 4)), c(f(3)), c(i([1, 2], [3, 4])), c(np.ones((2, 2), bool)), c(f(0, 2))],
    "tril_": [c(f(3, 4)), c(f(2, 3, 3), -1), c(f(3))],
    "triu_": [c(f(3, 4)), c(f(2, 3, 3), 1), c(f(3))],
    "tril_indices": [c(3, 4), c(3, 4, 1), c(4, 2, -2), c(0, 2), c(-1, 2), c(3, 3, offset=5)],
    "triu_indices": [c(3, 4), c(3, 4, 1), c(4, 2, -2), c(0, 2), c(-1, 2), c(3, 3, offset=5)],
    "diagonal_scatter": [
        c(f(3, 3), f(3)),
        c(f(3, 4), f(3), 1),
        c(f(3, 3), f(2)),
        c(f(2, 3, 3), f(2, 3), 0, 1, 2),
    ],
    "select_scatter": [
        c(f(2, 3), f(3), 0, 1),
        c(f(2, 3), f(2), -1, -1),
        c(f(2, 3), f(2), 0, 0),
        c(f(2, 3), f(3), 0, 2),
    ],
    "slice_scatter": [
        c(f(4, 3), f(2, 3), 0, 1, 3),
        c(f(4, 3), f(4, 2), dim=1, start=0, step=2),
        c(f(4, 3), f(4, 3)),
        c(f(4, 3), f(3, 3), 0, 1, 3),
        c(f(4, 3), f(2, 3), 0, -2),
        c(f(4, 3), f(4, 3), step=0),
    ],
}
CASES["fill_diagonal_"] = [
    *[c(f(*s), 2.5, w) for s in ((3, 3), (2, 4), (7, 3), (3, 3, 3), (0, 2)) for w in (False, True)],
    *[c(f(*s), 1.0) for s in ((3,), (2, 3, 3), ())],
    c(np.zeros((3, 3), np.uint8), 300),
]


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])
