"""Elements repeated, reversed and rotated, against PyTorch's."""

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


CASES: dict[str, list[Any]] = {
    "repeat_interleave": [
        c(f(3, 2), 2),
        c(f(3, 2), 2, 0),
        c(f(3, 2), 2, dim=-1),
        c(f(3, 2), i(1, 0, 2), 0),
        c(f(3, 2), i(2), 0),
        c(f(3, 2), i(1, 2), 0),
        c(f(3, 2), i(1, 0, 2), dim=0, output_size=3),
        c(f(3, 2), i(1, 0, 2), dim=0, output_size=4),
        c(f(3, 2), -1),
        c(f(3), i(1, -1, 0), 0),
        c(f(3), f(3), 0),
        c(f(3), i([1], [2], [3]), 0),
        c(f(), 2),
        c(f(), 2, 0),
        c(f(), i(2), -1),
        c(f(3, 2), 1, 2),
    ],
    "fliplr": [c(f(2, 3)), c(f(3)), c(f(2, 3, 4))],
    "flipud": [c(f(2, 3)), c(f(3)), c(f())],
    "flip": [c(f(2, 3), dims=(0, 1)), c(f(2, 3), dims=[-1])],
    "rot90": [c(f(2, 3), k) for k in range(-2, 5)]
    + [c(f(2, 3, 4), 1, d) for d in ((0, 2), (2, 1), (-1, 0), (0, 0), (0, 5), (0,))]
    + [c(f(3)), c(f(2, 3), k=1, dims=[1, 0])],
}


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])


def test_repeat_interleave_of_numbers_alone() -> None:
    import disttrain as dt

    assert dt.repeat_interleave(dt.tensor([1, 0, 2])).tolist() == [0, 2, 2]
