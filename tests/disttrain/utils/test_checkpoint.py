"""Recomputation: the same numbers, the same gradients, less memory."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain import memory, nn
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.local import run_ranks
from disttrain.nn import functional as F
from disttrain.nn.parallel import DistributedDataParallel
from disttrain.utils.checkpoint import (
    CheckpointError,
    checkpoint,
    checkpoint_sequential,
    set_checkpoint_debug_enabled,
    set_checkpoint_early_stop,
)


def weights(n: int = 40) -> Any:
    return (dt.randn(n, n, generator=dt.Generator().manual_seed(7)) * 0.2).requires_grad_()


def deep(x: Any, w: Any) -> Any:
    for _ in range(4):
        x = F.dropout((x @ w).tanh(), 0.3)
    return x


def run(recompute: bool) -> Any:
    """Return what a net with Dropout gives, its gradients, and what it keeps."""
    w = weights()
    dt.manual_seed(3)
    x = dt.randn(20, 40, requires_grad=True)
    y = x
    for _ in range(3):
        y = checkpoint(deep, y, w, use_reentrant=False) if recompute else deep(y, w)
    loss = y.square().sum()
    kept = memory.saved(loss)
    between = dt.rand(3).tolist()
    loss.backward()
    return loss.item(), x.grad.tolist(), w.grad.tolist(), between, dt.rand(3).tolist(), kept


def test_the_result_the_gradients_and_the_random_numbers_are_the_same() -> None:
    *plain, kept = run(False)
    *again, less = run(True)

    assert again == plain
    assert less.bytes < kept.bytes / 4
    assert less.packed > 20


def test_activations_are_not_alive_between_forward_and_backward() -> None:
    seen = []

    def block(x: Any) -> Any:
        inner = x.exp()
        seen.append(weakref.ref(inner._array))
        return inner.sin()

    out = checkpoint(block, dt.ones(5, requires_grad=True)).sum()
    gc.collect()
    assert seen[0]() is None

    out.backward()

    assert len(seen) == 2
    gc.collect()
    assert seen[1]() is None


def test_one_pass_of_backward_computes_once() -> None:
    runs = []

    def block(x: Any) -> Any:
        runs.append(1)
        return x.exp().sin().tanh()

    out = checkpoint(block, dt.ones(5, requires_grad=True)).sum()
    out.backward(retain_graph=True)
    assert len(runs) == 2
    out.backward()
    assert len(runs) == 3


@pytest.mark.parametrize("stop", [True, False])
def test_a_switch_says_whether_the_second_run_ends_early(stop: bool) -> None:
    ended = []

    def block(x: Any) -> Any:
        y = x.exp()
        ended.append(x)
        return y + 1

    with set_checkpoint_early_stop(stop), set_checkpoint_debug_enabled(True):
        out = checkpoint(block, dt.ones(5, requires_grad=True), use_reentrant=False).sum()
    out.backward()
    assert len(ended) == (1 if stop else 2)


def nest(x: Any, k: float = 1.0) -> Any:
    return checkpoint(lambda t: (t.exp() * k).sin(), x) * x, {"other": x.tanh()}


def test_nests_keywords_and_several_outputs_to_the_second_derivative() -> None:
    def derivatives(recompute: bool) -> list[Any]:
        x = dt.arange(1.0, 6.0, dtype=dt.float64).requires_grad_()
        p, q = checkpoint(nest, x, k=2.0) if recompute else nest(x, k=2.0)
        (g,) = dt.autograd.grad((p * q["other"]).sum(), x, create_graph=True)
        (h,) = dt.autograd.grad((g * g).sum(), x)
        return [g.tolist(), h.tolist()]

    assert derivatives(True) == derivatives(False)


def test_the_arguments_of_a_nested_call_are_dropped_too() -> None:
    seen = []

    def outer(x: Any) -> Any:
        middle = x.exp()
        seen.append(weakref.ref(middle._array))
        return checkpoint(lambda t: t.sin().cos(), middle)

    x = dt.ones(5, requires_grad=True)
    out = checkpoint(outer, x).sum()
    gc.collect()
    assert seen[0]() is None
    out.backward()
    expected = -np.sin(np.sin(np.e)) * np.cos(np.e) * np.e
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-6)


def test_changes_in_place_inside() -> None:
    def block(t: Any, z: Any) -> Any:
        t = t * 2
        t.mul_(z)
        return t.exp_()

    grads = []
    for f in (block, lambda t, z: checkpoint(block, t, z)):
        z = dt.tensor([0.1, 0.2, 0.3], requires_grad=True)
        f(z * 1, z).sum().backward()
        grads.append(z.grad.tolist())
    assert grads[0] == grads[1]


def test_modes_of_the_first_run_come_back() -> None:
    seen = []

    def block(x: Any) -> Any:
        with dt.no_grad():
            y = x * 2
        seen.append((dt.is_grad_enabled(), y.requires_grad))
        return x * y

    with dt.autograd.detect_anomaly():
        out = checkpoint(block, dt.ones(2, requires_grad=True)).sum()
    with dt.no_grad():
        out.backward()
    assert seen == [(True, False)] * 2
    with dt.no_grad():
        assert not checkpoint(block, dt.ones(2, requires_grad=True)).requires_grad


def test_another_function_the_second_time_is_an_error() -> None:
    runs = []

    def more(x: Any) -> Any:
        runs.append(1)
        return x.exp() if len(runs) == 1 else x.exp().sin()

    with pytest.raises(CheckpointError, match=r"saved 1 tensors, and 2 the second time.*must not depend"):
        checkpoint(more, dt.ones(2, requires_grad=True), early_stop=False).sum().backward()
    runs.clear()
    checkpoint(
        more, dt.ones(2, requires_grad=True)
    ).sum().backward()  # has what it needs before the difference

    def less(x: Any) -> Any:
        runs.append(1)
        return x.exp().sin() if len(runs) == 1 else x.exp()

    runs.clear()
    with pytest.raises(CheckpointError, match=r"saved 2 tensors, and 1 the second time"):
        checkpoint(less, dt.ones(2, requires_grad=True)).sum().backward()

    def larger(x: Any) -> Any:
        runs.append(1)
        return (x.sum() if len(runs) == 3 else x).exp().sum()

    runs[:] = [1, 1]
    with pytest.raises(CheckpointError, match=r"had shape \[\] and .*, and \[2\]"):
        checkpoint(larger, dt.ones(2, requires_grad=True)).backward()
    with pytest.raises(ValueError, match="'sometimes'"):
        checkpoint(more, dt.ones(2), determinism_check="sometimes")


def test_contexts_of_both_runs() -> None:
    from contextlib import contextmanager

    seen = []

    @contextmanager
    def told(word: str) -> Any:
        seen.append(word)
        try:
            yield
        finally:
            seen.append(word + " ends")

    out = checkpoint(
        lambda x: x.exp(), dt.ones(2, requires_grad=True), context_fn=lambda: (told("first"), told("second"))
    )
    out.sum().backward()
    assert seen == ["first", "first ends", "second", "second ends"]


def test_other_random_numbers_if_they_are_not_kept() -> None:
    drawn = []

    def block(x: Any) -> Any:
        drawn.append(dt.rand(2).tolist())
        return x.exp()

    for keep in (True, False):
        checkpoint(block, dt.ones(2, requires_grad=True), preserve_rng_state=keep).sum().backward()
    assert drawn[0] == drawn[1]
    assert drawn[2] != drawn[3]


@pytest.mark.parametrize("segments", [1, 2, 3, 6])
def test_sequential(segments: int) -> None:
    dt.manual_seed(5)
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(5)], nn.Dropout(0.5))
    x = dt.randn(4, 8, requires_grad=True)

    def gradients(call: Any) -> Any:
        dt.manual_seed(6)
        x.grad = None
        model.zero_grad()
        call().sum().backward()
        return x.grad.tolist(), [p.grad.tolist() for p in model.parameters()]

    plain = gradients(lambda: model(x))
    assert gradients(lambda: checkpoint_sequential(model, segments, x, use_reentrant=False)) == plain
    with pytest.raises(ValueError, match="bogus"):
        checkpoint_sequential(model, 2, x, bogus=1)
    for wrong in (0, 7):
        with pytest.raises(ValueError, match=f"at most the number of functions, 6; got {wrong}"):
            checkpoint_sequential(model, wrong, x)


def test_gradients_are_those_of_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    from torch.utils.checkpoint import checkpoint as theirs

    def program(lib: Any, call: Any) -> Any:
        x = lib.linspace(0.1, 1.0, 6, dtype=lib.float64).reshape(2, 3).requires_grad_()
        w = lib.linspace(-1.0, 1.0, 9, dtype=lib.float64).reshape(3, 3).requires_grad_()
        y = call(lambda t: (t @ w).tanh().exp(), x, use_reentrant=False)
        (y * y).sum().backward()
        return x.grad.numpy(), w.grad.numpy()

    for a, b in zip(program(dt, checkpoint), program(torch, theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("size", [1, 2])
def test_under_data_parallelism(size: int) -> None:
    class Net(nn.Module):
        def __init__(self, recompute: bool) -> None:
            super().__init__()
            self.first, self.second, self.drop = nn.Linear(6, 6), nn.Linear(6, 6), nn.Dropout(0.5)
            self.recompute = recompute

        def block(self, x: Any) -> Any:
            return self.drop(self.second(x).tanh())

        def forward(self, x: Any) -> Any:
            x = self.first(x)
            for _ in range(2):
                x = checkpoint(self.block, x, use_reentrant=False) if self.recompute else self.block(x)
            return x.sum()

    def body(rank: int) -> Any:
        grads = []
        for recompute in (False, True):
            dt.manual_seed(0)
            model = DistributedDataParallel(Net(recompute))
            dt.manual_seed(5)
            model(dt.randn(3, 6)).backward(weight=3)
            grads.append([p.grad.tolist() for p in model.parameters()])
        return grads

    ranks = run_ranks(WorkerEnv(world_size=size, hosted=size, local_world_size=size, fixed_order=True), body)
    for plain, again in ranks:
        assert again == plain == ranks[0][0]
