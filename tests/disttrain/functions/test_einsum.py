"""Sums of products written with letters, against PyTorch's."""

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


def i(*values: Any) -> Any:
    return np.array(values, np.int64)


A, B, V = f(2, 3), f(3, 4), f(3)
X, Y = f(5, 2, 3), f(5, 3, 4)
CASES: dict[str, list[Any]] = {
    "einsum": [
        c(e, *x)
        for e, x in [
            ("ij,jk->ik", (A, B)),
            ("ij,jk", (A, B)),
            ("ij,jk->ki", (A, B)),
            ("ij, jk -> i k", (A, B)),
            ("bij,bjk->bik", (X, Y)),
            ("bij,bjk->ik", (X, Y)),
            ("bij,bjk->", (X, Y)),
            ("...ij,...jk->...ik", (X, Y)),
            ("...ij,jk->...ik", (X, B)),
            ("...ij,...jk", (X, B)),
            ("ij->ji", (A,)),
            ("ba", (A,)),
            ("ij->", (A,)),
            ("ij->i", (A,)),
            ("...->...", (A,)),
            ("i...->...", (A,)),
            ("ii->i", (f(3, 3),)),
            ("ii", (f(3, 3),)),
            ("iij->j", (f(3, 3, 2),)),
            ("ii->i", (A,)),
            ("i,j->ij", (V, f(2))),
            ("i,i->i", (V, V)),
            ("i,i", (V, V)),
            ("ij,j,jk->ik", (A, V, B)),
            ("ij,kj,lj->ikl", (A, f(4, 3), f(5, 3))),
            ("ab,bc,cd,de->ae", (A, B, f(4, 2), f(2, 3))),
            ("ij,jk->ik", (f(2, 1), B)),
            ("bij,bjk->bik", (f(1, 2, 3), Y)),
            ("Ab,bC->AC", (A, B)),
            ("ij,jk->ik", (i([1, 2]), i([1], [2]))),
            (",i->i", (f(), V)),
            ("->", (f(),)),
            ("ij,jk->il", (A, B)),
            ("ij,jk->ii", (A, B)),
            ("ij,jk->ik", (A, f(2, 4))),
            ("ij,jk->ik", (A,)),
            ("ijk,jk->ik", (A, B)),
            ("i,jk->ik", (A, B)),
            ("i-j,jk->ik", (A, B)),
            ("i..j->ij", (A,)),
            ("ij->ij->ij", (A,)),
            ("ij,jk->ik", (A, B.astype(np.float32))),
        ]
    ]
    + [
        c("ij,jk->ik", [A, B]),
        c(A, [0, 1], B, [1, 2], [0, 2]),
        c(A, [0, 1], B, [1, 2]),
        c(X, [..., 0], [0, ...]),
    ]
    + [c(A, [0, 60])],
}


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])


@pytest.mark.parametrize(
    "letters", ["bij,bjk->bki", "bij,bkj->bki", "bij,jk->kbi", "bi,bj->bji", "bij,bjk->bik", "bij,bji->b"]
)
def test_the_output_is_row_major(letters: str) -> None:
    sizes = {"b": 2, "i": 3, "j": 4, "k": 5}
    shapes = [[sizes[k] for k in part] for part in letters.split("->")[0].split(",")]

    assert dt.einsum(letters, *[dt.ones(*s) for s in shapes]).is_contiguous()


def test_of_one_operand_it_is_a_view() -> None:
    x = dt.ones(2, 3)
    y = dt.einsum("ij->ij", x)

    assert y is not x
    assert y.data_ptr() == x.data_ptr()


def test_a_sum_of_one_number_is_no_view() -> None:
    x = dt.ones(3, 1)
    dt.einsum("ij->i", x).zero_()

    assert x.sum() == 3
