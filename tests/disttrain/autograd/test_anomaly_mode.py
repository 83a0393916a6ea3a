"""Anomaly mode names the operation and the line that made the first value that is not finite."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain import nn
from disttrain.errors import AnomalyError


def here(offset: int) -> str:
    """Return how a traceback tells the caller's line plus ``offset``."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return f'test_anomaly_mode.py", line {frame.f_back.f_lineno + offset}, in {frame.f_back.f_code.co_name}'


def test_forward_names_the_first_operation_and_its_line() -> None:
    x = dt.tensor([1.0, -1.0, 4.0], requires_grad=True)
    with dt.autograd.detect_anomaly(), pytest.raises(AnomalyError) as e:
        (x * 2).sqrt().exp()
    place = here(-1)

    assert str(e.value).startswith(
        "sqrt() made the first value that is not finite: nan at [1] (1 of 3 elements)"
    )
    assert place in str(e.value)
    assert "\n    (x * 2).sqrt().exp()" in str(e.value)


def test_backward_names_the_operation_its_gradient_and_the_forward_line() -> None:
    x = dt.zeros(2, requires_grad=True)
    with dt.autograd.detect_anomaly():
        place = here(1)
        y = x.sqrt()
        with pytest.raises(
            RuntimeError, match=r"Function 'SqrtBackward0' returned inf values in its 0th output"
        ) as e:
            (y * 3).sum().backward()

    assert place in str(e.value)
    assert "what came in was finite" in str(e.value)


def test_the_users_line_is_told_and_not_the_librarys() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Any) -> Any:
            return self.layer(x)

    net = Net()
    with dt.no_grad():
        net.layer.weight.fill_(3e38)
    with (
        np.errstate(over="ignore"),
        dt.autograd.detect_anomaly(),
        pytest.raises(AnomalyError, match=r"return self\.layer\(x\)"),
    ):
        net(dt.full((1, 2), 1e4))


def test_a_users_function_is_named() -> None:
    class Broken(dt.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Any) -> Any:
            return a * 2

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g * float("nan")

    with (
        dt.autograd.detect_anomaly(),
        pytest.raises(RuntimeError, match="Function 'BrokenBackward' returned nan"),
    ):
        Broken.apply(dt.ones(2, requires_grad=True)).sum().backward()


def test_infinities_that_the_program_brings_are_no_anomaly() -> None:
    scores = dt.zeros(3, 3, requires_grad=True)
    mask = dt.ones(3, 3).tril() == 0
    with dt.autograd.detect_anomaly():
        filled = scores.masked_fill(mask, float("-inf"))
        added = scores + dt.full((3, 3), float("-inf")).triu(1).masked_fill(dt.ones(3, 3).tril() == 1, 0.0)
        (filled.softmax(-1).sum() + added.softmax(-1)[0, 0]).backward()
    assert np.isfinite(scores.grad.numpy()).all()


def test_a_nan_that_comes_in_is_not_blamed_on_who_passes_it_on() -> None:
    x = dt.ones(2, requires_grad=True)
    with dt.autograd.detect_anomaly():
        y = x * dt.tensor([1.0, float("nan")])
        with pytest.raises(AnomalyError, match="so had what came in"):
            (x * 2).backward(dt.tensor([float("nan"), 1.0]))
    assert np.isnan(y.detach().numpy()[1])


def test_lines_without_checks_of_values() -> None:
    x = dt.tensor([-1.0], requires_grad=True)
    with dt.autograd.detect_anomaly(check_nan=False):
        y = x.sqrt()
        y.sum().backward()
    assert np.isnan(x.grad.item())


def test_other_errors_in_backward_tell_the_line() -> None:
    x = dt.ones(2, requires_grad=True)
    with dt.autograd.detect_anomaly():
        y = x * 1
        z = y.exp()
        z.add_(1)
        with pytest.raises(RuntimeError) as e:
            z.sum().backward()
    assert any("z = y.exp()" in note for note in e.value.__notes__)


def test_the_second_derivative_tells_the_line_of_the_first_forward() -> None:
    x = dt.zeros(2, requires_grad=True)
    with dt.autograd.detect_anomaly():
        place = here(1)
        y = (x.abs() ** 1.5).sum()
        (g,) = dt.autograd.grad(y, x, create_graph=True)
        with pytest.raises(AnomalyError) as e:
            g.sum().backward()
    assert place in str(e.value)


def test_the_mode_is_switched_as_in_pytorch_and_belongs_to_its_thread() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")

    def program(lib: Any) -> list[bool]:
        A, seen = lib.autograd, []
        look = lambda: seen.extend([lib.is_anomaly_enabled(), lib.is_anomaly_check_nan_enabled()])  # noqa: E731
        A.set_detect_anomaly(True, check_nan=False)
        look()
        with A.set_detect_anomaly(False):
            look()
        look()
        A.set_detect_anomaly(False)
        look()
        with A.set_detect_anomaly(True), lib.no_grad():
            look()
            with lib.enable_grad():
                look()
        seen.append(lib.is_anomaly_enabled())
        return seen

    def pairs(seen: list[bool]) -> list[Any]:
        return [(a, b) if a else a for a, b in zip(seen[::2], seen[1::2], strict=False)]

    assert pairs(program(dt)) == pairs(program(torch))
    elsewhere: list[bool] = []
    with dt.autograd.detect_anomaly():
        t = threading.Thread(target=lambda: elsewhere.append(dt.is_anomaly_enabled()))
        t.start()
        t.join(10)
    assert elsewhere == [False]
