"""A value that backward needs and that was changed in place after it was saved: refused where PyTorch refuses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import disttrain as dt

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")

VALUES = np.array([0.5, 1.5, 0.7])

OF_ONE = [
    "exp",
    "expm1",
    "exp2",
    "log",
    "log2",
    "log10",
    "log1p",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "sin",
    "cos",
    "tan",
    "atan",
    "asinh",
    "sinh",
    "cosh",
    "tanh",
    "sigmoid",
    "relu",
    "abs",
    "square",
    "erf",
    "erfc",
    "neg",
    "sign",
    "floor",
    "frac",
    "digamma",
    "lgamma",
    "sinc",
    "nan_to_num",
    "sum",
    "mean",
    "prod",
    "var",
    "std",
    "norm",
    "max",
    "amax",
    "median",
    "msort",
]
OF_TWO = [
    "add",
    "sub",
    "mul",
    "div",
    "pow",
    "maximum",
    "minimum",
    "fmax",
    "atan2",
    "hypot",
    "logaddexp",
    "xlogy",
    "fmod",
    "remainder",
    "copysign",
    "dot",
    "dist",
]
LINES: dict[str, Callable[..., Any]] = {
    "x.logsumexp(0)": lambda x: x.logsumexp(0),
    "x.max(0)": lambda x: x.max(0)[0],
    "x.norm(1)": lambda x: x.norm(1),
    "x.norm(3)": lambda x: x.norm(3),
    "x.cumsum(0)": lambda x: x.cumsum(0),
    "x.cumprod(0)": lambda x: x.cumprod(0),
    "x.cummax(0)": lambda x: x.cummax(0)[0],
    "x.logcumsumexp(0)": lambda x: x.logcumsumexp(0),
    "x.topk(2)": lambda x: x.topk(2)[0],
    "x.softmax(0)": lambda x: x.softmax(0),
    "x.log_softmax(0)": lambda x: x.log_softmax(0),
    "x.clamp(0.6, 1)": lambda x: x.clamp(0.6, 1.0),
    "x.masked_fill(x > 1, 0)": lambda x: x.masked_fill(x > 1, 0.0),
    "x ** 3": lambda x: x**3,
    "2 ** x": lambda x: 2**x,
    "x * 3": lambda x: x * 3,
    "3 / x": lambda x: 3 / x,
    "x * x": lambda x: x * x,
    "x[:2]": lambda x: x[:2],
    "x.diff()": lambda x: x.diff(),
}
CHANGES = (
    "argument",
    "view of the argument",
    "argument's base",
    "result",
    "view of the result",
    "other",
    "constant",
)

RIGHT_HERE = {
    ("dist", "argument"): "keeps the difference, which is not changed",
    ("dist", "other"): "keeps the difference, which is not changed",
    ("dist", "view of the argument"): "keeps the difference, which is not changed",
    ("dist", "constant"): "keeps the difference, which is not changed",
    ("dist", "argument's base"): "keeps the difference, which is not changed",
    ("prod", "result"): "keeps no result",
    ("prod", "view of the result"): "keeps no result",
    ("x.cummax(0)", "argument"): "keeps the indices",
    ("x.cummax(0)", "view of the argument"): "keeps the indices",
    ("x.cummax(0)", "argument's base"): "keeps the indices",
}
"""Where PyTorch refuses and we need not, because something else was saved, and what."""


def gradients(lib: Any, function: Callable[..., Any], two: bool, change: str, aside: bool = False) -> Any:
    """Return the gradients of two leaves with a change between forward and backward, or "refused".

    Args:
        lib: PyTorch or disttrain.
        function: of one tensor or of two.
        two: whether it is of two.
        change: what is changed.
        aside: give copies to the function and change copies of its result, so that nothing saved is changed.
    """
    x, y = (lib.tensor(v, dtype=lib.float64).requires_grad_() for v in (VALUES, VALUES[::-1] + 0.1))
    base, other = x * 1, y * 1
    given = base[:] if change == "argument's base" else base
    second = other.detach().clone() if change == "constant" else other
    args = [given, second] if two else [given]
    out = function(*[a.clone() for a in args] if aside else args)
    out = out.clone() if aside else out
    if change in ("argument", "argument's base"):
        base.add_(1)
    elif change == "view of the argument":
        base[:2].add_(1)
    elif change == "result":
        out.add_(1)
    elif change == "view of the result":
        out.reshape(-1)[:2].mul_(2)
    else:
        second.add_(1)
    weights = lib.tensor(np.arange(1.0, 1 + out.numel()), dtype=lib.float64)
    try:
        (out.reshape(-1) * weights).sum().backward()
    except RuntimeError as error:
        if "in place" not in str(error) and "inplace" not in str(error):
            raise
        return "refused"
    return [np.zeros(3) if t.grad is None else t.grad.numpy() for t in (x, y)]


@pytest.mark.parametrize("change", CHANGES)
def test_what_pytorch_refuses_is_refused_or_right(change: str) -> None:
    wrong = []
    named = [(n, None, n in OF_TWO) for n in (*OF_ONE, *OF_TWO)]
    for name, line, two in [*named, *[(n, f, False) for n, f in LINES.items()]]:
        if change in ("other", "constant") and not two:
            continue
        theirs = gradients(torch, line or getattr(torch, name), two, change)
        ours = gradients(dt, line or getattr(dt, name), two, change)
        if theirs == "refused" and (name, change) in RIGHT_HERE:
            theirs = gradients(torch, line or getattr(torch, name), two, change, aside=True)
        if theirs == "refused" or ours == "refused":
            agree = theirs is ours or theirs == ours
        else:
            agree = all(
                np.allclose(a, b, 1e-8, 1e-10, equal_nan=True) for a, b in zip(ours, theirs, strict=True)
            )
        if not agree:
            wrong.append(f"{name}, {change} changed: {ours}, PyTorch {theirs}")

    assert not wrong


@pytest.mark.parametrize("name", ["exp_", "sqrt_", "sigmoid_", "tanh_", "relu_", "mul_", "div_", "pow_"])
def test_a_value_from_before_the_change_is_kept(name: str) -> None:
    def program(lib: Any, aside: bool) -> Any:
        x = lib.tensor(VALUES, dtype=lib.float64).requires_grad_()
        y = x * 1
        more = {"mul_": [y], "div_": [y], "pow_": [2.5]}.get(name, [])
        if aside:
            y = getattr(lib, name[:-1])(y, *more)
            z = y + 1
        else:
            getattr(y, name)(*more)
            y.add_(1)
            z = y
        (z * lib.tensor([1.0, 2.0, 3.0], dtype=lib.float64)).sum().backward()
        return x.grad.numpy()

    np.testing.assert_allclose(program(dt, False), program(torch, True), 1e-12)
