"""Tensors put together and taken apart, against PyTorch's."""

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


STACKS = [c([f(2), f(2)]), c([f(2, 3), f(2, 3)]), c([f(), f()]), c((f(2, 3, 1), f(2, 3, 1))), c([])]
STACKS += [c([f(2), i(1, 2)]), c([f(2, 3), f(3)]), c([f(2, 3), f(2)])]
ATLEAST = [c(f()), c(f(2)), c(f(2, 3)), c(f(2, 3, 4)), c([f(), f(2)])]
SPLITS = [c(f(*s), w) for s in ((), (4,), (4, 6), (4, 6, 2)) for w in (2, 3, [1, 3], [5], 0, [], [-1])]
GRIDS = [c(f(2), f(3)), c(f(2), f()), c([f(2), f(3), f(1)]), c(f(2, 2)), c(f(2), i(1)), c(), c(f(0), f(2))]
CASES: dict[str, list[Any]] = {
    "hstack": STACKS,
    "vstack": STACKS,
    "row_stack": STACKS,
    "dstack": STACKS,
    "column_stack": STACKS,
    "atleast_1d": ATLEAST,
    "atleast_2d": ATLEAST,
    "atleast_3d": ATLEAST,
    "tensor_split": [*SPLITS, c(f(7, 2), 3), c(f(7, 2), (2, 5), 0), c(f(2, 7), 3, dim=-1), c(f(5), i(1, 3))],
    "hsplit": SPLITS,
    "vsplit": SPLITS,
    "dsplit": SPLITS,
    "split_with_sizes": [
        c(f(5, 2), [1, 4]),
        c(f(5, 2), [2, 2]),
        c(f(2, 5), (2, 3), dim=1),
        c(f(3), [-1, 4]),
        c(f(), [1]),
    ],
    "block_diag": [c(f(2, 3), f(2), f()), c(f(2, 3)), c(f(1, 2, 3)), c(i(1, 2), f(2, 2)), c(f(0, 2), f(1))],
    "meshgrid": [c(*a, indexing=k) for a, _ in GRIDS for k in ("ij", "xy", "a")],
    "cartesian_prod": [c(f(2), f(3)), c(f(2)), c(f(2), f(3), f(2)), c(f(2, 2)), c(f(2), f())],
    "combinations": [c(f(4), *a) for a in ((), (0,), (1,), (3,), (5,), (2, True), (-1,))]
    + [c(f(2, 2)), c(f(0)), c(i(1, 2, 3), r=2, with_replacement=True)],
}

CASES["chunk"] = [c(f(4, 2), 2, axis=0)]
CASES["unbind"] = [c(f(4, 2), axis=1)]
CASES["stack"] = [c([f(2), f(2)], axis=1)]

CASES["unsafe_split"] = [c(f(5, 2), 2), c(f(5, 2), 1, 1)]
CASES["unsafe_chunk"] = [c(f(5, 2), 2), c(f(5, 2), 2, 1)]
CASES["unsafe_split_with_sizes"] = [c(f(5, 2), [2, 3]), c(f(5, 2), [2, 2])]


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])
