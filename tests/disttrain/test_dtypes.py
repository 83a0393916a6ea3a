"""Promotion against PyTorch's, the whole table."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest

import disttrain as dt
from disttrain import dtypes

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")

NUMBERS = [True, 2, 2.5]


def operands(lib: Any) -> list[Any]:
    """Return tensors with and without dimensions of every type, and Python numbers of every type."""
    made: list[Any] = list(NUMBERS)
    for d in dtypes.ALL:
        kind = getattr(lib, d.name)
        made += [lib.tensor([1, 2], dtype=kind), lib.tensor(1, dtype=kind)]
    return made


def name(kind: Any) -> str:
    return str(kind).rpartition(".")[2]


def outcome(function: Any, a: Any, b: Any) -> str:
    try:
        return name(function(a, b).dtype)
    except (RuntimeError, TypeError) as e:
        return "RuntimeError" if isinstance(e, RuntimeError) else "TypeError"


def pairs() -> Any:
    ours, theirs = operands(dt), operands(torch)
    for i, j in itertools.product(range(len(ours)), repeat=2):
        if i >= len(NUMBERS) or j >= len(NUMBERS):
            yield (ours[i], ours[j]), (theirs[i], theirs[j])


def test_result_type_is_that_of_pytorch() -> None:
    count = 0
    for ours, theirs in pairs():
        assert name(dt.result_type(*ours)) == name(torch.result_type(*theirs)), ours
        count += 1
    assert count == 23 * 23 - 9


@pytest.mark.parametrize("op", ["add", "mul", "div", "lt", "eq", "sub", "floor_divide", "where"])
def test_results_have_the_types_of_pytorch(op: str) -> None:
    for ours, theirs in pairs():
        if op == "where":
            a = outcome(lambda x, y: dt.where(dt.tensor([True, False]), x, y), *ours)
            b = outcome(lambda x, y: torch.where(torch.tensor([True, False]), x, y), *theirs)
        else:
            symbol = {
                "add": "__add__",
                "mul": "__mul__",
                "div": "__truediv__",
                "lt": "__lt__",
                "eq": "__eq__",
                "sub": "__sub__",
                "floor_divide": "__floordiv__",
            }[op]
            if not isinstance(ours[0], dt.Tensor):
                ours, theirs = ours[::-1], theirs[::-1]
                symbol = symbol if op in ("lt", "eq") else symbol.replace("__", "__r", 1)
            a = outcome(lambda x, y, s=symbol: getattr(x, s)(y), *ours)
            b = outcome(lambda x, y, s=symbol: getattr(x, s)(y), *theirs)
        assert a == b, f"{op} of {ours}: {a}, PyTorch {b}"


def test_promote_types_is_that_of_pytorch() -> None:
    for a, b in itertools.product(dtypes.ALL, repeat=2):
        assert name(dt.promote_types(a, b)) == name(
            torch.promote_types(getattr(torch, a.name), getattr(torch, b.name))
        )


def test_the_default_type_decides_for_numbers() -> None:
    before = dt.get_default_dtype()
    try:
        dt.set_default_dtype(dt.float64)
        assert dt.tensor([1.5]).dtype is dt.float64
        assert (dt.tensor([1]) * 0.5).dtype is dt.float64
        assert (dt.tensor([1]) / 2).dtype is dt.float64
        assert dt.zeros(1).dtype is dt.float64
        assert dt.randn(1).dtype is dt.float64
        with pytest.raises(TypeError, match=r"must be a floating point type, got disttrain\.int64"):
            dt.set_default_dtype(dt.int64)
    finally:
        dt.set_default_dtype(before)


def test_attributes_are_those_of_pytorch() -> None:
    for d in dtypes.ALL:
        theirs = getattr(torch, d.name)
        assert (d.itemsize, d.is_floating_point, d.is_signed, d.is_complex) == (
            theirs.itemsize,
            theirs.is_floating_point,
            theirs.is_signed,
            theirs.is_complex,
        )
        assert repr(d) == str(theirs).replace("torch", "disttrain")
        assert copy.deepcopy(d) is d
        assert copy.copy(d) is d


def test_unknown_types_are_refused() -> None:
    for wrong in ("float33", complex, "complex64", object):
        with pytest.raises(TypeError, match=r"dtype must be one of disttrain\.bool"):
            dt.zeros(1, dtype=wrong)
