"""Derivatives of what is sorted, by central differences; the table is complete."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from disttrain.ops import sort as ops

rng = np.random.default_rng(0)


def c(*args: Any, **options: Any) -> Any:
    return args, options


CASES: dict[str, list[Any]] = {
    "sort": [
        c(rng.permutation(6).reshape(2, 3) * 0.3, axis=a, descending=d) for a in (0, 1) for d in (True, False)
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives(name: str, differences: Any) -> None:
    for args, options in CASES[name]:
        differences(getattr(ops, name), *args, **options)
