"""Norms and distances against PyTorch's."""

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


def over(dims: tuple[Any, ...], p: Any) -> list[Any]:
    return [
        c(f(*shape), p, dim, keepdim=keep)
        for shape in [(), (3,), (2, 3), (2, 1, 3), (0,), (2, 0)]
        for dim in dims
        for keep in (False, True)
    ]


ORDERS = (1, 2, 3, 0.5, 1.5, -1, 0, np.inf, -np.inf)
DTYPES = (np.float64, np.float32, np.float16, np.int64, np.bool_)
CASES: dict[str, list[Any]] = {
    "norm": [c(f(2, 3), p) for p in (*ORDERS, "fro", "nuc", "bogus")]
    + [c(f(2, 3).astype(np.float32), None)]
    + [c((f(2, 3) * 3).astype(d)) for d in DTYPES]
    + [c(np.zeros((2, 3)), p, 1) for p in (1, 2, 3)]
    + over((0, 1, -1, (0, 1), 5, None), 2)
    + over((0, -1), 3)
    + over((0,), np.inf)
    + [
        c(f(2, 3)),
        c(f()),
        c(f(2, 3), 2, dim=(0, 1)),
        c(f(3), dim=0),
        c(f(2, 3, 4), "nuc", (0, 2)),
        c(f(2, 3), 2, 1, dtype=dt.float32),
        c(f(2, 3).astype(np.float32), 2, 1, dtype=dt.float64),
        c(f(2, 3), 2, axis=1),
    ],
    "dist": [c(f(2, 3), f(3), *p) for p in ((), (1,), (np.inf,), (3,))] + [c(f(2), f(3)), c(f(2), 1.0)],
}
CASES["renorm"] = [c(f(3, 4), p, d, 0.5) for p in (1, 2, 2.5, 0, -1) for d in (0, -1, 2)]
CASES["renorm"] += [c(f(2, 3, 2), 2, 1, 1.0), c(f(3), 2, 0, 1.0), c(f(2, 2), 2, 0, -1.0)]
CASES["renorm_"] = CASES["renorm"]
CASES["dist"] += [c(np.array([True]), np.array([False]))]
CASES["norm"] += [c(f(2, 2, 2), "fro", dim=(0, 1, 2))]


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])


@pytest.mark.parametrize("name", ["norm", "vector_norm"])
def test_linalg_as_pytorch_does(name: str) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    matrices = ("fro", "nuc", -2) if name == "norm" else ()
    for order in (*ORDERS, *matrices):
        for dim in (None, 0, 1, (0, 1), 7, (0, 0)):
            x = f(2, 3)
            try:
                theirs = getattr(torch.linalg, name)(torch.from_numpy(x), order, dim, True)
            except (RuntimeError, IndexError) as error:
                with pytest.raises(type(error)):
                    getattr(dt.linalg, name)(dt.from_numpy(x), order, dim, True)
                continue
            ours = getattr(dt.linalg, name)(dt.from_numpy(x), order, dim, True)
            np.testing.assert_allclose(ours.numpy(), theirs.numpy(), 1e-12, 1e-12)
