"""The engine against PyTorch's: views and changes in place in random programs."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain.errors import GradientError

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


class Program:
    """A random sequence of arithmetic, views and changes in place on a few tensors, the same for both libraries."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.data = [self.rng.uniform(0.5, 1.5, (2, 3)) for _ in range(3)]
        self.shapes = [(2, 3)] * 3
        self.bare = seed % 5 == 0  # the third tensor is a leaf, which must not be changed
        self.steps = [self.step() for _ in range(int(self.rng.integers(3, 10)))]
        self.weights = [self.rng.standard_normal(s) for s in self.shapes]

    def step(self) -> tuple[str, int, int, int]:
        kinds = ["mul", "add", "exp", "view", "row", "t", "slice", "detach", "clone", "diagonal", "cat"]
        kind = str(
            self.rng.choice(kinds + ["add_", "add_", "scale_", "copy_", "zero_", "set", "mask", "mul_"])
        )
        a, b = (int(n) for n in self.rng.integers(0, len(self.shapes), 2))
        fits = [i for i, s in enumerate(self.shapes) if s in ((), self.shapes[a][-1:], self.shapes[a])]
        b = fits[b % len(fits)]
        shape: Any = self.shapes[a]
        number = int(self.rng.integers(0, 3))
        if kind in ("mul", "add", "exp", "detach", "clone"):
            made = shape
        elif kind == "view":
            made = (int(np.prod(shape)),)
        elif kind == "t":
            made = shape[::-1]
        elif kind == "row" and shape:
            number %= shape[0]
            made = shape[1:]
        elif kind == "slice" and shape and shape[-1] > 1:
            made = (*shape[:-1], shape[-1] - 1)
        elif kind == "diagonal" and len(shape) == 2:
            made = (min(shape),)
        elif kind == "cat" and shape:
            made = (2 * shape[0], *shape[1:])
        elif kind in ("add_", "mul_", "scale_", "copy_", "zero_", "mask"):
            made = None
        elif kind == "set" and shape:
            number, made = number % shape[0], None
        else:
            kind, made = "add", shape
        if made is not None:
            self.shapes.append(made)
        return kind, a, b, number

    def run(self, lib: Any, from_array: Any) -> tuple[list[Any], list[Any]]:
        """Return all values and the gradients of the three leaves."""
        leaves = [from_array(x.copy()).requires_grad_() for x in self.data]
        made = [leaf * 1.0 for leaf in leaves[:2]] + [leaves[2] if self.bare else leaves[2] * 1.0]
        for kind, a, b, number in self.steps:
            x, y = made[a], made[b]
            if kind in ("mul", "add"):
                made.append(getattr(lib, kind)(x, y))
            elif kind == "exp":
                made.append((x * 0.1).exp())
            elif kind == "cat":
                made.append(lib.cat([x, x]))
            elif kind == "view":
                made.append(x.reshape(-1))
            elif kind == "t":
                made.append(x.permute(*range(x.ndim)[::-1]) if x.ndim else x.view(()))
            elif kind == "row":
                made.append(x[number])
            elif kind == "slice":
                made.append(x[..., 1:])
            elif kind == "diagonal":
                made.append(x.diagonal())
            elif kind in ("detach", "clone"):
                made.append(getattr(x, kind)())
            elif kind in ("add_", "mul_", "copy_"):
                overlap = np.may_share_memory(x.detach().numpy(), y.detach().numpy())
                getattr(x, kind)(
                    0.5 * y if overlap else y
                )  # PyTorch leaves open what it gives where both overlap
            elif kind == "scale_":
                x.mul_(1.5)
            elif kind == "zero_":
                x.zero_() if number == 0 else x.add_(1.0)
            elif kind == "mask":
                x.masked_fill_(x.detach() > 1.0, 0.25)
            else:
                x[number] = 0.5 * x[number].detach() + y.sum() if number else y.sum()
        total = sum((t * from_array(w)).sum() for t, w in zip(made, self.weights, strict=True))
        total.backward()
        return [t.detach() for t in made], [leaf.grad for leaf in leaves]


def test_random_programs_of_views_and_changes_in_place() -> None:
    raised = 0
    for seed in range(400):
        program = Program(seed)
        try:
            values, grads = program.run(torch, torch.from_numpy)
        except RuntimeError as theirs:
            if "unsupported operation" in str(theirs):  # written from memory that overlaps it, which we allow
                continue
            raised += 1
            try:
                program.run(dt, dt.from_numpy)
            except RuntimeError:
                continue
            raise AssertionError(f"program {seed} {program.steps}: PyTorch raises {theirs!r}") from theirs
        where = f"program {seed}: {program.steps}"
        try:
            our_values, our_grads = program.run(dt, dt.from_numpy)
        except RuntimeError as e:
            raise AssertionError(f"{where}: {e!r}") from e
        for a, b in zip(our_values, values, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-12, err_msg=where)
        for a, b in zip(our_grads, grads, strict=True):
            assert (a is None or not np.any(a.numpy())) if b is None else a is not None, where
            if b is not None:
                np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-10, atol=1e-12, err_msg=where)
    assert 20 < raised < 200, f"{raised} programs fail; both kinds must be there"


def both(function: Any) -> None:
    """Run a function of (library, from_array) on both; results must be equal, or both must raise."""
    theirs = error = None
    try:
        theirs = function(torch, lambda *v: torch.tensor(v, dtype=torch.float64))
    except RuntimeError as e:
        error = e
    try:
        ours = function(dt, lambda *v: dt.tensor(v, dtype=dt.float64))
    except RuntimeError:
        if error is None:
            raise
        return
    assert error is None, f"PyTorch raises {error!r}, we give {ours!r}"
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize(
    "name", ["exp", "mul", "div", "sin", "sigmoid", "tanh", "relu", "sqrt", "log", "abs", "square", "pow"]
)
@pytest.mark.parametrize("change", ["argument", "result", "view of argument", "detached argument", "data"])
def test_a_change_of_what_was_saved_raises_where_it_does_in_pytorch(name: str, change: str) -> None:
    def program(lib: Any, t: Any) -> Any:
        leaf = t(0.5, 1.5).requires_grad_()
        x = leaf * 1.0
        y = getattr(lib, name)(x, *({"mul": [t(2.0, 3.0)], "div": [t(2.0, 3.0)], "pow": [3.0]}.get(name, [])))
        {
            "argument": x,
            "result": y,
            "view of argument": x[:1],
            "detached argument": x.detach(),
            "data": x.data,
        }[change].mul_(2)
        y.sum().backward()
        return leaf.grad.tolist()

    both(program)


@pytest.mark.parametrize(
    "program",
    [
        lambda lib, t: t(1.0, 2.0).requires_grad_().add_(1),
        lambda lib, t: t(1.0, 2.0).requires_grad_()[0].add_(1),
        lambda lib, t: t(1.0, 2.0).requires_grad_().detach().add_(1).tolist(),
        lambda lib, t: t(1.0, 2.0).requires_grad_().data.add_(1).tolist(),
        lambda lib, t: (t(1.0, 2.0).requires_grad_() * 2).add_(1).tolist(),
        lambda lib, t: t(1.0, 2.0).add_(t(1.0, 2.0).requires_grad_()).requires_grad,
        lambda lib, t: t(1.0, 2.0).expand(2, 2).add_(1).tolist(),
        lambda lib, t: t(1.0, 2.0).add_(t(1.0, 2.0)[:, None]),
    ],
)
def test_leaves_and_changes_in_place(program: Any) -> None:
    both(program)


def test_in_place_under_no_grad_keeps_leaf_a_leaf() -> None:
    x = dt.ones(2, requires_grad=True)
    with dt.no_grad():
        x.add_(1)

    assert x.is_leaf
    assert x.requires_grad
    assert x.tolist() == [2, 2]


def test_version_counts_changes_of_all_views() -> None:
    x = dt.zeros(4)
    before = x._version
    x[1:].add_(1)
    x.detach().mul_(2)

    assert x._version == before + 2
    x.data.mul_(2)
    assert x._version == before + 2


def test_errors_name_the_operation() -> None:
    x = dt.ones(2, requires_grad=True)
    y = x.exp()
    y.add_(1)
    with pytest.raises(GradientError, match=r"shape \(2,\) that exp needs .* version 1, expected 0"):
        y.sum().backward()


LOUD: dict[str, Any] = {
    "add": lambda x: x + x,
    "sub": lambda x: x * 0 - dt.tensor(float("inf")) + float("inf"),
    "mul": lambda x: x * x,
    "square": lambda x: x.square(),
    "div": lambda x: x / 0,
    "matmul": lambda x: x @ x,
    "half": lambda x: x.half(),
    "copy_": lambda x: dt.zeros(2, dtype=dt.float16).copy_(x),
    "lerp": lambda x: x.lerp(-x, 0.3),
    "addcmul": lambda x: x.addcmul(x, x),
    "var": lambda x: x.var(),
    "logsumexp": lambda x: x.logsumexp(0),
    "rad2deg": lambda x: x.rad2deg(),
    "trapezoid": lambda x: dt.trapezoid(x, x),
    "amax": lambda x: (x.bfloat16() * float("nan")).amax(),
    "where": lambda x: dt.where(x > 0, x.half(), 1e10),
    "repr": lambda x: repr(dt.tensor([1e300, 1e-300], dtype=dt.float64)),
    "cummax": lambda x: (x.bfloat16() * float("nan")).cummax(0),
    "norm": lambda x: dt.tensor([6e4, 6e4], dtype=dt.float16).norm(1),
    "backward": lambda x: (x.requires_grad_() * x * x).sum().backward(),
}


@pytest.mark.parametrize("name", LOUD)
def test_infinities_and_nan_give_no_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LOUD[name](dt.tensor([3e38, -3e38]))


def test_a_script_sees_no_warning_of_numpys_but_its_own() -> None:
    code = (
        "import disttrain as dt, numpy as np; x = dt.tensor([3e38, -3e38]); x + x; x * x; x - float('inf') * x;"
        "np.float32(3e38) * np.float32(3e38)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr.count("RuntimeWarning") == 1
