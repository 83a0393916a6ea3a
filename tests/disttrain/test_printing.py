"""A tensor prints as PyTorch prints it, to the last space."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import disttrain as dt

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")

NAN, INF = float("nan"), float("inf")
ARRAYS: list[Any] = [
    [[24.0, 6.0], [6.0, 24.0]],
    [[1.5, 20.25], [3.0, 4.0]],
    [[10, 2], [3, 400]],
    [-1.0, 2.0],
    [-24.0, 6.0],
    [1e-8, 1.0],
    [1.0, 100000.0],
    [1e9, 2e9],
    [100000.5],
    [NAN, 1.0, -22.0],
    [INF],
    [0.0, 0.0],
    [True],
    [[True, False]],
    NAN,
    1e-5,
    5,
    np.zeros(0),
    np.zeros((0, 3), np.int32),
    np.arange(2000.0),
    np.arange(30.0) * 1.5,
    np.arange(40),
    np.ones((2, 2, 2)),
    np.ones((2, 3), np.float16),
    np.ones((2, 3), ml_dtypes.bfloat16),
    np.full((20, 3, 4, 9), 0.5),
    np.ones((50, 50)),
    np.ones((2000, 2)),
    np.ones((7, 200)),
    np.full((3, 12), 1 / 3),
]


@pytest.mark.parametrize("value", ARRAYS, ids=lambda v: f"{np.asarray(v).dtype}{list(np.shape(v))}")
def test_as_pytorch_does(value):
    a = np.asarray(value)
    if a.dtype == ml_dtypes.bfloat16:
        ours, theirs = dt.from_numpy(a), torch.from_numpy(a.astype(np.float32)).bfloat16()
    else:
        ours, theirs = dt.tensor(value), torch.tensor(value)

    assert repr(ours).replace("disttrain.", "torch.") == repr(theirs)


def test_what_needs_a_gradient_says_so():
    ours = dt.ones(3, 12, requires_grad=True)
    theirs = torch.ones(3, 12, requires_grad=True)

    assert repr(ours) == repr(theirs)
    assert repr(ours.sum() / 2) == repr(theirs.sum() / 2)


@pytest.mark.parametrize(
    "options",
    [
        {"precision": 2},
        {"sci_mode": True},
        {"sci_mode": False},
        {"linewidth": 40},
        {"profile": "short"},
        {"profile": "full"},
        {"threshold": 5, "edgeitems": 1},
    ],
)
def test_options_are_those_of_pytorch(options):
    arrays = [
        np.linspace(0, 1, 12, dtype=np.float32),
        np.array([1.0, 2.0], np.float32),
        np.array([1e-6, 1.0], np.float32),
        np.arange(30).reshape(5, 6),
    ]
    try:
        for lib in (torch, dt):
            lib.set_printoptions(**options)
        for a in arrays:
            assert repr(dt.from_numpy(a)) == repr(torch.from_numpy(a))
    finally:
        for lib in (torch, dt):
            lib.set_printoptions(profile="default")
