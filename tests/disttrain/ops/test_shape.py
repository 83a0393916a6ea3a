"""Derivatives of operations that move elements, by central differences; the table is complete."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttrain.ops import shape as ops

rng = np.random.default_rng(0)


def c(*args: Any, **options: Any) -> Any:
    return args, options


def f(*shape: int) -> Any:
    return rng.standard_normal(shape)


CHAIN = ((ops.index, {"key": (slice(1, None), ...)}), (ops.transpose, {"axes": (1, 0)}))
CASES: dict[str, list[Any]] = {
    "reshape": [c(f(2, 3), shape=(3, 2)), c(f(2, 3).T, shape=(6,))],
    "transpose": [c(f(2, 3, 4), axes=(2, 0, 1))],
    "broadcast_to": [c(f(2, 1), shape=(4, 2, 3))],
    "sum_to_shape": [c(f(2, 3), shape=(3,)), c(f(2, 3), shape=(2, 1)), c(f(2, 3), shape=())],
    "index": [
        c(f(2, 3), key=(1, ...)),
        c(f(2, 3), key=(..., slice(0, None, 2))),
        c(f(2, 3), key=(None, slice(1), 1)),
    ],
    "scatter_basic": [c(f(3), shape=(2, 3), key=(1, ...))],
    "diagonal": [c(f(3, 4), offset=o, axis1=0, axis2=1) for o in (-1, 0, 2)]
    + [c(f(2, 3, 3), offset=0, axis1=2, axis2=0)],
    "scatter_view": [c(f(3, 1), shape=(2, 3), chain=CHAIN)],
    "view_scatter": [c(f(2, 3), f(3, 1), chain=CHAIN)],
    "copy": [c(f(2, 3)), c(f(2, 3).T, order="C")],
    "astype": [c(f(2, 3), dtype=np.dtype(np.float64))],
    "concatenate": [c(f(2, 3), f(1, 3), axis=0), c(f(2, 3), f(2, 2), f(2, 1), axis=1)],
    "unbind": [c(f(2, 3, 4), axis=a) for a in (0, 1, 2)],
    "split": [
        c(f(2, 5, 3), axis=1, sizes=(2, 0, 3)),
        c(f(4), axis=0, sizes=(1, 3)),
        c(f(3, 2), axis=0, sizes=(3,)),
    ],
    "stack": [c(f(2, 3), f(2, 3), axis=a) for a in (0, 1, 2)],
    "flip": [c(f(2, 3), axes=(0, 1))],
    "roll": [c(f(2, 3), shifts=(1, -1), axes=(0, 1))],
    "tile": [c(f(2, 3), repeats=(2, 3))],
    "pad": [c(f(2, 3), widths=((1, 0), (-1, 2)), value=1.0)],
}


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives(name: str, differences: Any) -> None:
    for args, options in CASES[name]:
        differences(getattr(ops, name), *args, **options)
