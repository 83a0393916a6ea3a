"""Derivatives of what is sorted, by central differences; the table is complete."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttrain.ops import sort as ops

rng = np.random.default_rng(0)


def c(*args: Any, **options: Any) -> Any:
    return args, options


DISTINCT = rng.permutation(40).reshape(4, 10) * 0.3
CASES: dict[str, list[Any]] = {
    "sort": [
        c(rng.permutation(6).reshape(2, 3) * 0.3, axis=a, descending=d) for a in (0, 1) for d in (True, False)
    ],
    "topk": [c(DISTINCT, k=k, axis=a, largest=b) for k, a in ((2, 1), (3, 0), (1, 1)) for b in (True, False)],
    "kth_along": [c(DISTINCT, k=2, axis=a, keepdims=k) for a in (0, 1) for k in (True, False)],
    "median_along": [
        c(DISTINCT, axis=a, keepdims=k, skip_nan=s)
        for a in (0, 1)
        for k in (True, False)
        for s in (True, False)
    ],
    "median": [c(DISTINCT, skip_nan=s) for s in (True, False)],
    "mode_along": [c(DISTINCT, axis=a, keepdims=k) for a in (0, 1) for k in (True, False)],
}


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives(name: str, differences: Any) -> None:
    for args, options in CASES[name]:
        differences(getattr(ops, name), *args, **options)
