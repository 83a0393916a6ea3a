"""``testing.assert_close``: what is close and what is not, as PyTorch says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import disttrain as dt

NAN = float("nan")
CASES: list[Any] = [
    lambda m: ((m.ones(3), m.ones(3)), {}),
    lambda m: ((m.ones(3), m.ones(3) + 1e-6), {}),
    lambda m: ((m.ones(3), m.ones(3) + 1e-4), {}),
    lambda m: ((m.ones(3), m.ones(3) + 1e-4), {"rtol": 0, "atol": 1e-3}),
    lambda m: ((m.ones(3), m.ones(3)), {"rtol": 0.1}),
    lambda m: ((m.ones(3, dtype=m.float64), m.ones(3, dtype=m.float64) + 1e-6), {}),
    lambda m: ((m.ones(3, dtype=m.bfloat16), m.ones(3, dtype=m.bfloat16) * 1.01), {}),
    lambda m: ((m.ones(3), m.ones(3, dtype=m.float64)), {}),
    lambda m: ((m.ones(3), m.ones(3, dtype=m.float64) + 1e-6), {"check_dtype": False}),
    lambda m: ((m.ones(3), m.ones(1, 3)), {}),
    lambda m: ((m.ones(2, 3), m.ones(3, 2).T), {"check_stride": True}),
    lambda m: ((m.ones(2, 3), m.ones(3, 2).T), {}),
    lambda m: ((m.tensor([1, 2]), m.tensor([1, 3])), {}),
    lambda m: ((m.tensor([1, 2]), m.tensor([1, 3])), {"rtol": 0, "atol": 1}),
    lambda m: ((m.tensor([True]), m.tensor([True])), {}),
    lambda m: ((m.tensor([NAN]), m.tensor([NAN])), {}),
    lambda m: ((m.tensor([NAN]), m.tensor([NAN])), {"equal_nan": True}),
    lambda m: ((m.tensor([float("inf")]), m.tensor([float("inf")])), {}),
    lambda m: ((m.tensor([float("inf")]), m.tensor([1.0])), {}),
    lambda m: ((1.0, 1.0 + 1e-9), {}),
    lambda m: ((1, 1.0), {}),
    lambda m: ((1, 2), {}),
    lambda m: (([m.ones(2), 3.0], [m.ones(2), 3.0]), {}),
    lambda m: (([m.ones(2)], [m.ones(2), m.ones(2)]), {}),
    lambda m: (({"a": m.ones(2)}, {"a": m.ones(2)}), {}),
    lambda m: (({"a": m.ones(2)}, {"b": m.ones(2)}), {}),
    lambda m: (({"a": [m.ones(2)]}, {"a": [m.zeros(2)]}), {}),
    lambda m: ((m.ones(0), m.ones(0)), {}),
    lambda m: ((m.ones(2, requires_grad=True), m.ones(2)), {}),
    lambda m: ((np.ones(2), np.ones(2)), {}),
    lambda m: ((object(), object()), {}),
    lambda m: ((1.0, m.tensor(1.0)), {}),
    lambda m: ((m.tensor(1), 1), {}),
    lambda m: ((m.ones(2), np.ones(2, np.float32)), {}),
    lambda m: (([1.0, 1.0], m.ones(2)), {}),
    lambda m: (({"a": 1.0}, [1.0]), {}),
    lambda m: ((np.float32(1), np.float32(1)), {}),
    lambda m: ((m.nn.Parameter(m.ones(2)), m.ones(2)), {}),
    lambda m: ((True, True), {}),
    lambda m: ((None, None), {}),
    lambda m: ((None, 1), {}),
]


@pytest.mark.parametrize("case", CASES)
def test_as_pytorch_says(case: Any) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")

    def outcome(lib: Any) -> Any:
        args, options = case(lib)
        try:
            lib.testing.assert_close(*args, **options)
        except (AssertionError, ValueError, TypeError) as error:
            return type(error)
        return None

    assert outcome(dt) == outcome(torch)


def test_what_an_error_says() -> None:
    with pytest.raises(
        AssertionError, match=r"\['a'\]\[1\]: 1 of 2 elements differ .* at \[1\]: 5.0, expected 2.0"
    ):
        dt.testing.assert_close({"a": [0, dt.tensor([1.0, 5.0])]}, {"a": [0, dt.tensor([1.0, 2.0])]})
    with pytest.raises(AssertionError, match=r"^mine$"):
        dt.testing.assert_close(1.0, 2.0, msg="mine")
    with pytest.raises(AssertionError, match=r"^mine: assert_close\(\): 1 of 1"):
        dt.testing.assert_close(1.0, 2.0, msg=lambda text: f"mine: {text}")
