"""Indexing, gathering and scattering against PyTorch's."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import disttrain as dt

rng = np.random.default_rng(0)


def c(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def f(*shape: int) -> Any:
    return rng.standard_normal(shape)


def i(*values: Any) -> Any:
    return np.array(values, np.int64)


MASK = np.array([[True, False, True], [False, False, True]])
KEYS: list[Any] = [
    0,
    -1,
    2,
    -3,
    slice(None),
    slice(1, None),
    slice(None, None, 2),
    slice(5, 9),
    slice(None, None, -1),
    ...,
    None,
    (0, 1),
    (0, -1),
    (0, 5),
    (slice(None), 0),
    (..., 0),
    (None, ..., None),
    (0, ...),
    (slice(0, 1), slice(1, 3)),
    (),
    (0, 0, 0, 0),
    True,
    False,
    [0, 1],
    [1, 0, 1],
    i(1, 0),
    i(-1),
    i(5),
    i([0, 1], [1, 0]),
    (i(0, 1), i(2, 0)),
    (i(0, 1), 1),
    (slice(None), i(2, 0)),
    (slice(None), i(0, 0), None),
    (0, i(1, 1)),
    (i(1, 0), slice(1, 2)),
    (None, i(0, 1)),
    (i(0), ..., i(1)),
    MASK,
    MASK[:, 0],
    (slice(None), MASK[0]),
    (MASK[:, 0], 1),
    MASK[0],
    (MASK[:, 0], i(2)),
    np.array([0.5]),
    "a",
    1.5,
    i(),
    (i([0], [1]), i(0, 1)),
    np.asarray(1),
    (np.asarray(1), slice(None)),
    np.int64(1),
    (slice(1), slice(None, None, 3)),
    np.array([1, 0], np.int32),
    (0, slice(None), i(0, 1)),
    (i(1, 0), None, 1),
    (slice(None), True, i(0)),
]
GETS = [c(f(2, 3), k) for k in KEYS] + [c(f(2, 3, 4), k) for k in KEYS if k is not MASK[0]]
GETS += [c(f(), k) for k in (..., None, (), 0, True, np.asarray(True))] + [
    c(f(0), k) for k in (0, slice(None), i(), MASK[0])
]
GETS += [
    c(f(3, 4, 2), k)
    for k in (
        (None, i([0], [-2]), ..., i([0, 0]), np.array([True, False])),  # ... for nothing parts no indices
        (..., None, ...),
        (..., i(1, 0), ..., ...),
        (0, ..., 1, ..., 1),
        (0, ..., ..., 1),
        (0, i(0, 1), i(1), 1),
        np.array([0, 1, 1], np.int16),
        (slice(0, 0), np.array([], bool)),
        (..., np.array([], bool)),
    )
] + [c(f(0, 4), (..., np.array([], bool))), c(f(0, 4), (slice(None), 1))]
GETS += [c(f(4), k) for k in (slice(-2, None), slice(-9, 2), slice(3, 1), [True, False, True, False])]
SETS = [c(x, k, v) for k in KEYS for x, v in ((f(2, 3), 1.5), (f(2, 3), np.asarray(2.0)))]
SETS += [
    c(f(2, 3), 0, f(3)),
    c(f(2, 3), 0, f(2)),
    c(f(2, 3), (slice(None), 1), f(2)),
    c(f(2, 3), MASK, f(3)),
    c(f(2, 3), MASK, f(2)),
    c(f(2, 3), i(1, 0), f(3)),
    c(f(2, 3), i(1, 0), f(2, 3)),
    c(f(2, 3), slice(None), f(1, 3)),
    c(f(2, 3), 0, f(1, 1, 3)),
    c(f(2, 3), ..., np.arange(3)),
    c(np.arange(6).reshape(2, 3), 0, 2.7),
    c(np.arange(6).reshape(2, 3), 0, f(3)),
    c(np.arange(3), i(0, 2), f(2)),
    c(f(3).astype(np.float32), i(0, 2), f(2)),
    c(f(3), True, 1.0),
    c(f(), (), 2.0),
    c(f(), ..., f()),
    c(f(2, 3), (slice(None), i(0, 2)), f(2, 1)),
    c(f(2, 3), 0, "a"),
    c(MASK.copy(), 0, True),
    c(f(3, 2, 4), (0, slice(None), i(0, 1)), f(2, 2)),
    c(f(3, 2, 4), (i(0, 1), slice(None), i(0, 1)), f(2, 2)),
    c(f(2, 3), MASK, f(1, 1)),
    c(f(2, 3), MASK, np.ones((1, 1), np.float32)),
    c(f(2, 3), i(0, 1), np.ones((), np.float32)),
    c(f(2, 3), (slice(None), True), np.ones((), np.float32)),
    c(f(2, 3), False, np.ones((), np.float32)),
    c(f(2, 3), False, f(7)),
    c(f(2, 3), True, np.ones(3, np.float32)),
    c(f(2, 3), MASK, float("nan")),
    c(f(2, 3), (i(1), i(1, 2)), float("nan")),
    c(f(2, 3), (1, slice(1, 3)), float("nan")),
    c(f(2, 3), (i(0, 1), 1), f(1, 1, 2)),
    *(
        c(np.zeros(3, d), k, v)
        for d in (np.float32, np.float16, np.int64, np.uint8, bool)
        for k in (0, i(0, 1))
        for v in (1e40, float("inf"), float("nan"), -3, 2.7, True, np.float64(1.5))
    ),
    c(f(0, 3), (slice(None), 1), 2.0),
]

IDX = i([0, 1, 1], [1, 0, 0])
SCATTERS = [
    (0, IDX),
    (1, i([0, 2, 1], [2, 1, 0])),
    (-1, i([0], [2])),
    (0, i([1, 0])),
    (0, i([2, 0, 0])),
    (2, IDX),
    (0, i(0, 1)),
    (0, i([-1, 0, 0])),
    (0, np.zeros((0, 3), np.int64)),
    (0, i([0, 1, 1], [1, 0, 0], [0, 0, 0])),
]

CASES: dict[str, list[Any]] = {
    "__getitem__": GETS,
    "__setitem__": SETS,
    "gather": [c(f(2, 3), *a) for a in SCATTERS]
    + [
        c(f(2, 3), 0, IDX.astype(np.float64)),
        c(f(), 0, np.asarray(0)),
        c(f(3), 0, IDX),
        c(f(2, 3), 1, IDX.astype(np.int32)),
        c(f(2, 3), dim=1, index=IDX),
    ],
    "take_along_dim": [
        c(f(2, 3), i([0, 1, 1], [1, 0, 0]), 1),
        c(f(2, 3), i([0], [2]), 1),
        c(f(2, 3), i([1, 0, 1]), 0),
        c(f(2, 3), i(0, 4)),
        c(f(2, 3), i(0), 0),
        c(f(2, 3), i([1]), 0),
    ],
    "index_select": [
        c(f(2, 3), 0, i(1, 0, 1)),
        c(f(2, 3), -1, i(2)),
        c(f(2, 3), 0, IDX),
        c(f(2, 3), 2, i(0)),
        c(f(2, 3), 0, i()),
        c(f(2, 3), 1, np.asarray(1)),
        c(f(), 0, i(0)),
        c(f(2, 3), 0, f(2)),
        c(f(2, 3), 0, i(-1)),
    ],
    "scatter": [c(f(2, 3), *a, f(2, 3)) for a in SCATTERS if a[1] is not IDX]
    + [c(f(2, 3), *a, 1.5) for a in SCATTERS]
    + [
        c(f(4, 3), 0, i([0, 1, 2], [3, 0, 1]), f(2, 3)),
        c(f(2, 3), 0, i([0, 1]), f(5, 5)),
        c(f(2, 3), 0, i([0, 1]), np.ones((1, 2), np.float32)),
    ],
    "scatter_add": [c(f(2, 3), *a, f(2, 3)) for a in SCATTERS]
    + [
        c(f(2, 3), 0, i([0, 1]), f(5, 5)),
        c(f(3), 0, i(0, 0, 1), f(3)),
        c(np.zeros(3, np.int64), 0, i(0, 0, 1), i(1, 2, 3)),
        c(f(2, 3), 0, i([0, 1]), np.ones((1, 2), np.float32)),
    ],
    "masked_select": [
        c(f(2, 3), MASK),
        c(f(3), MASK),
        c(f(2, 3), MASK[:, :1]),
        c(f(2, 3), IDX),
        c(f(2), MASK),
        c(np.arange(3), MASK),
    ],
    "nonzero": [
        c(MASK),
        c(f(2, 3)),
        c(np.array([0, 2, 0, 3])),
        c(f(0)),
        c(MASK, as_tuple=True),
        c(np.asarray(3)),
        c(np.asarray(0)),
    ],
    "tril": [c(f(3, 4), *d) for d in ((), (1,), (-1,), (9,))]
    + [c(f(2, 3, 3)), c(f(3)), c(np.ones((2, 2), bool))],
}
CASES["triu"] = CASES["tril"]
PUTS = [
    c(f(2, 3), (i(1, 0), i(2, 2)), f(2)),
    c(f(2, 3), (i(1, 1),), f(3)),
    c(f(2, 3), (i(1, 1), i(0, 0)), f(2), True),
    c(f(2, 3), (MASK,), f(3)),
    c(f(2, 3), (i(5),), f(3)),
    c(f(2, 3), (i(0), i(0), i(0)), f(1)),
    c(f(2, 3), (i(0),), np.arange(3)),
    c(f(2, 3), (i(0),), f(2)),
    c(f(2, 3), [i(-1, 0)], np.asarray(2.0), accumulate=True),
    c(f(3), (i(0, 1),), f(1, 1)),
    c(f(3), (MASK[0],), f(1, 1)),
    c(f(3), (MASK[0],), f(1, 2)),
    c(f(3), (MASK[0],), f(1, 1), accumulate=True),
    c(f(3), (MASK[0],), np.asarray(2)),
]
CASES |= {
    "index_put": PUTS,
    "index_put_": PUTS,
    "take": [
        c(f(2, 3), i([0, 5], [-1, -6])),
        c(f(2, 3), i(6)),
        c(f(2, 3), i()),
        c(f(2, 3), f(2)),
        c(f(), np.asarray(0)),
    ],
    "put": [
        c(f(2, 3), i(0, -1), f(2)),
        c(f(2, 3), i(0, 0), f(2), True),
        c(f(2, 3), i(9), f(1)),
        c(f(2, 3), i(0), f(2)),
    ],
    "masked_scatter": [
        c(f(2, 3), MASK, f(4)),
        c(f(2, 3), MASK, f(2)),
        c(f(2, 3), MASK[0], f(2, 2)),
        c(f(2), IDX, f(2)),
    ],
    "argwhere": [c(MASK), c(f(2, 3)), c(f(0)), c(np.asarray(3))],
}
CASES["put_"] = CASES["put"]
CASES["masked_scatter_"] = CASES["masked_scatter"]
CASES["scatter_"] = list(CASES["scatter"]) + [c(f(2, 3), 0, IDX, value=2.0)]
CASES["scatter_add_"] = CASES["scatter_add"]

CASES["fill_diagonal_"] = [
    c(f(3, 3), 2.5),
    c(f(7, 3), 1),
    c(f(7, 3), 1, True),
    c(f(3, 7), fill_value=1, wrap=True),
    c(f(3, 3, 3), 4),
    c(f(3, 3, 2), 4),
    c(f(0, 3), 4),
    c(f(3), 4),
]
CASES["unravel_index"] = [
    c(i([5, 6], [11, 0]), (2, 2, 3)),
    c(np.asarray(5), 7),
    c(i(50), [3, 4]),
    c(i(), (3,)),
    c(f(2), (3, 4)),
    c(i(1), (-3, 4)),
]


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])


@pytest.mark.parametrize(
    "key",
    [
        [np.array([[0, 1], [1, 0]])],
        [np.array([True, False, True])],
        [range(2), [1, 0]],
        [[0, 1], [1, 2]],
        [0, 2],
        ([0, 2], 1),
        (np.int64(1), np.array([0, 2])),
        np.array([[0, 2]], np.int32),
        ((0, 1), slice(None)),
        [],
        [[]],
        [True, False, True],
        [None, 0],
        "a",
        {0},
    ],
    ids=repr,
)
def test_keys_of_lists_and_arrays(key: Any) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    x = np.arange(12.0).reshape(3, 4)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = torch.from_numpy(x)[key]
    except Exception as e:
        with pytest.raises(type(e)):
            dt.from_numpy(x)[key]
        return

    np.testing.assert_array_equal(dt.from_numpy(x)[key].numpy(), expected.numpy())


@pytest.mark.parametrize("key", ["[:]", "[0]", "[x == 0]", "[[0, 1, 2]]"])
def test_only_numbers_and_tensors_are_assigned(key: str) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    for value in (
        "np.ones(1)",
        "np.array(2.0)",
        "range(1)",
        "np.float32(2)",
        "np.bool_(True)",
        "[1]",
        "None",
    ):
        for T in (dt, torch):
            with pytest.raises(TypeError):
                exec(f"x{key} = {value}", {"x": T.zeros(3), "np": np})
    for value in ("np.float64(2)", "np.int32(2)", "True", "2", "T.tensor(2.0)"):
        for T in (dt, torch):
            exec(f"x{key} = {value}", {"x": T.zeros(3), "np": np, "T": T})
