"""Functions that move elements, against PyTorch's: values, gradients, and what is a view of what."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

rng = np.random.default_rng(0)


def c(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def f(*shape: int) -> Any:
    return rng.standard_normal(shape)


RESHAPES = [
    c(f(2, 3), 6),
    c(f(2, 3), (3, 2)),
    c(f(2, 3), [3, -1]),
    c(f(2, 3), -1),
    c(f(2, 3), 4),
    c(f(2, 3), (-1, -1)),
    c(f(2, 3), (-2, 3)),
    c(f(), 1),
    c(f(), ()),
    c(f(1), ()),
    c(f(0), (0, 3)),
    c(f(0), -1),
    c(f(0, 3), (3, -1)),
    c(f(0, 3), (0, -1)),
    c(f(2, 3, 4), 2, 12),
    c(f(2, 3), (2, 3)),
    c(f(2, 3), "a"),
    c(f(4), (2, 2.0)),
]
DIMS = [c(f(*s), d) for s in [(), (1,), (2, 1, 3), (1, 1), (0, 1)] for d in (0, 1, -1, -2, 3, -5)]
TWO = [
    c(f(*s), *d)
    for s in [(2, 3), (2, 3, 4), (), (3,)]
    for d in ((0, 1), (1, 0), (-1, 0), (0, 5), (0, 0), (-2, -1))
]
EXPANDS = [
    c(f(1, 3), 2, 3),
    c(f(1, 3), (2, -1)),
    c(f(3), 2, 3),
    c(f(3), (2, 4)),
    c(f(), 2),
    c(f(), ()),
    c(f(2, 1), 2, 5),
    c(f(2, 3), 3),
    c(f(2, 1), (4, 2, 3)),
    c(f(3), (-1, 3)),
    c(f(1), 0),
    c(f(2, 3), -1, 3),
]


def methods(cases: list[Any]) -> list[Any]:
    """Cases with sizes as a tuple: PyTorch's functions take no others, its methods (and we) do."""
    return [case for case in cases if len(case[0]) == 1 or isinstance(case[0][1], tuple | list)]


CASES: dict[str, list[Any]] = {
    "reshape": RESHAPES,
    "view": [*RESHAPES[:14]],
    "flatten": [
        c(f(*s), *d)
        for s in [(), (2,), (2, 3, 4), (0, 3)]
        for d in ((), (0,), (1,), (0, 1), (-2, -1), (1, 0), (5,))
    ],
    "ravel": [c(f()), c(f(3)), c(f(2, 3)), c(f(0, 3))],
    "unflatten": [
        c(f(6, 2), 0, (2, 3)),
        c(f(6, 2), 0, (-1, 3)),
        c(f(6, 2), -1, (1, 2)),
        c(f(6), 0, (4, 2)),
        c(f(6), 1, (2, 3)),
        c(f(2, 6), dim=1, sizes=(3, 2)),
    ],
    "permute": [
        c(f(2, 3, 4), 2, 0, 1),
        c(f(2, 3, 4), (0, -1, 1)),
        c(f(2, 3), (0, 0)),
        c(f(2, 3), (0,)),
        c(f(2, 3), (0, 5)),
        c(f(), ()),
    ],
    "transpose": TWO,
    "swapaxes": TWO,
    "t": [c(f()), c(f(3)), c(f(2, 3)), c(f(2, 3, 4))],
    "movedim": [
        c(f(2, 3, 4), 0, 2),
        c(f(2, 3, 4), (0, 1), (-1, 0)),
        c(f(2, 3), 0, 5),
        c(f(2, 3), (0,), (0, 1)),
        c(f(2, 3), (0, 0), (0, 1)),
        c(f(2, 3, 4), -1, 0),
        c(f(2, 3), (0, 1), (1, 1)),
    ],
    "squeeze": [
        *DIMS,
        c(f(2, 1, 1)),
        c(f()),
        c(f(1, 2, 1), (0, 2)),
        c(f(1, 2, 1), (0, 1)),
        c(f(1, 2), (0, 0)),
    ],
    "unsqueeze": DIMS,
    "expand": EXPANDS,
    "broadcast_to": [case for case in EXPANDS if len(case[0]) == 2 and not isinstance(case[0][1], int)],
    "expand_as": [c(f(3), f(2, 3)), c(f(2, 1), f(2, 4)), c(f(2), f(3))],
    "view_as": [c(f(6), f(2, 3)), c(f(6), f(2, 2))],
    "reshape_as": [c(f(6), f(2, 3)), c(f(6), f(2, 2))],
    "broadcast_tensors": [c(f(3), f(2, 1)), c(f(2), f(3)), c(f(2, 3))],
    "repeat": [
        c(f(2, 3), 2, 1),
        c(f(2, 3), (2, 2)),
        c(f(2, 3), 4, 1, 2),
        c(f(2, 3), 2),
        c(f(3), 0),
        c(f(), 3),
        c(f(2), -1),
    ],
    "tile": [c(f(2, 3), (2, 1)), c(f(2, 3), (2,)), c(f(2), (2, 3)), c(f(), (2,)), c(f(2, 3), ())],
    "narrow": [
        c(f(4, 3), *a)
        for a in [(0, 1, 2), (1, 0, 3), (-1, -2, 1), (0, 3, 2), (0, 0, 0), (2, 0, 1), (0, 0, -1), (0, -5, 1)]
    ],
    "select": [c(f(4, 3), *a) for a in [(0, 1), (1, -1), (-1, 2), (0, 4), (0, -5), (2, 0)]] + [c(f(), 0, 0)],
    "split": [
        c(f(5, 2), *a)
        for a in [(2,), (5,), (7,), ([1, 4],), ([2, 2],), (1, 1), (2, -1), (0,), (-1,), ([1, -1, 5],), (2, 3)]
    ]
    + [c(f(0, 2), 2), c(f(0), [0]), c(f(3), [0, 3, 0]), c(f(), 1), c(f(0), 0)],
    "chunk": [c(f(5, 2), *a) for a in [(2,), (5,), (7,), (3, 0), (2, 1), (0,), (-1,), (2, -1), (2, 3)]]
    + [c(f(0), 2), c(f(0, 3), 2)],
    "unbind": [c(f(2, 3)), c(f(2, 3), 1), c(f(2, 3), -1), c(f()), c(f(0, 2)), c(f(2), 2)],
    "cat": [
        c([f(2, 3), f(1, 3)]),
        c([f(2, 3), f(2, 1)], 1),
        c((f(2, 3), f(2, 1)), dim=-1),
        c([f(2, 3), f(2, 2)]),
        c([]),
        c([f(2), np.arange(3)]),
        c([f(2).astype(np.float32), f(2)]),
        c([f(0), f(2, 3)]),
        c([f(2, 3)]),
        c([f(2)], 1),
        c([np.arange(2), np.asarray(1)[None]]),
        c([f(), f()]),
        c([f(0), f(0)]),
        c([np.arange(2), np.array([True])]),
        c([f(0, 3), f(2, 3)]),
        c([f(2, 3), f(3)]),
    ],
    "stack": [c([f(2, 3), f(2, 3)], d) for d in (0, 1, 2, -1, -3, 3, -4)]
    + [
        c([f(), f()]),
        c([f(2), f(3)]),
        c([]),
        c([f(2), np.arange(2)]),
        c([np.asarray(1.0), np.arange(1)[0:1].reshape(())]),
    ],
    "flip": [c(f(2, 3), *a) for a in [(0,), (1,), (0, 1), ((0, -1),), (2,), ((0, 0),), ((),)]]
    + [c(f(), 0), c(f(0), 0)],
    "roll": [
        c(f(2, 3), *a)
        for a in [(1,), (-1, 0), (2, 1), ((1, 1), (0, 1)), ((1,), (0, 1)), (1, 5), ((1, 2), (0, 0)), (7,)]
    ]
    + [c(f(0), 1)],
    "diagonal": [c(f(3, 4), *a) for a in [(), (1,), (-1,), (5,), (-5,), (0, 1, 0), (0, 0, 0), (0, 0, 5)]]
    + [c(f(2, 3, 4), o, a, b) for o, a, b in [(0, 0, 1), (1, 0, 2), (-1, 2, 1), (0, -1, -2)]]
    + [c(f(3))],
    "clone": [c(f()), c(f(2, 3)), c(np.arange(3)), c(f(2, 3).T)],
    "contiguous": [c(f(2, 3)), c(f())],
}
for _name in ("reshape", "flip", "permute"):
    CASES[f"Tensor.{_name}"], CASES[_name] = CASES[_name], methods(CASES[_name])
for _name in ("concat", "concatenate"):
    CASES[_name] = CASES["cat"]


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])


def test_strides_decide_between_view_and_copy() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    import disttrain as dt

    a = f(4, 3, 2)
    for axes, size in itertools.product(
        itertools.permutations(range(3)), [(12, 2), (4, 6), (24,), (2, 2, 3, 2), (3, 8)]
    ):
        ours, theirs = dt.from_numpy(a).permute(axes), torch.from_numpy(a).permute(axes)
        assert ours.stride() == theirs.stride()
        assert ours.is_contiguous() == theirs.is_contiguous()
        assert ours.contiguous().stride() == theirs.contiguous().stride()
        shared = np.may_share_memory(ours.reshape(size).numpy(), a)
        assert shared == np.may_share_memory(theirs.reshape(size).numpy(), a), (axes, size)
        try:
            theirs.view(size)
        except RuntimeError:
            with pytest.raises(RuntimeError, match="without a copy"):
                ours.view(size)
        else:
            ours.view(size)
