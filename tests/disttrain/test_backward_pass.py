"""The backward pass: what it frees and keeps, and where gradients go."""

from __future__ import annotations

import gc
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain.backward_pass import Slot
from disttrain.nn.functional import linear
from disttrain.ops.types import WRITES

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


@pytest.mark.parametrize("kind", ["backward", "delete"])
def test_deep_graphs_need_no_stack(kind: str) -> None:
    code = f"""
import disttrain as dt
x = dt.ones(1, requires_grad=True)
y = x
for _ in range(100_000):
    y = y * 1.0
if {kind!r} == "backward":
    y.backward()
    assert x.grad.item() == 1
del y
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "done\n"


def test_backward_frees_what_nodes_saved() -> None:
    import weakref

    x = dt.ones(3, requires_grad=True)
    y = (x * 2).exp()
    saved = weakref.ref(y._array)
    z = y.sum()
    del y
    gc.collect()
    assert saved() is not None

    z.backward()

    gc.collect()
    assert saved() is None


def test_a_graph_is_freed_without_the_garbage_collector() -> None:
    import weakref

    gc.collect()
    gc.disable()
    try:
        x = dt.ones(3, requires_grad=True)
        y = x.exp()[1:]
        y.mul_(y.detach())
        dead = weakref.ref(y)
        array = weakref.ref(y._array)
        del y
        assert dead() is None
        assert array() is None
    finally:
        gc.enable()


def test_gradients_alias_nothing() -> None:
    a, b = dt.ones(3, requires_grad=True), dt.ones(3, requires_grad=True)
    g = dt.ones(3)

    (a + b).backward(g)

    a.grad.mul_(5)
    assert b.grad.tolist() == [1, 1, 1]
    assert g.tolist() == [1, 1, 1]


def test_a_gradient_that_is_used_twice_is_not_added_to_in_place() -> None:
    """What ``add`` hands to both arguments is one array; sums must go into arrays of their own."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        leaves = [rng.standard_normal(3) for _ in range(4)]
        order = rng.integers(0, 4, (12, 2))

        def run(lib: Any, make: Any, leaves: Any = leaves, order: Any = order) -> list[Any]:
            ts = [make(v.copy()).requires_grad_() for v in leaves]
            made = list(ts)
            for i, j in order:
                made.append(made[i - 4] + made[j - 4])
            made[-1].backward(made[-1].detach())
            return [None if t.grad is None else t.grad.numpy() for t in ts]

        for ours, theirs in zip(run(dt, dt.from_numpy), run(torch, torch.from_numpy), strict=True):
            if theirs is not None:
                np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def _once(x, weight):
    return linear(x, weight).square().sum()


def _twice(x, weight):
    return (linear(x, weight).square() + linear(2 * x, weight)).sum()


def _also_elsewhere(x, weight):
    return linear(x, weight).square().sum() + weight.sum()


@pytest.mark.parametrize("loss", [_once, _twice, _also_elsewhere])
@pytest.mark.parametrize("scale", [1.0, 0.25, 0.0])
def test_gradient_of_a_weight_with_a_slot(loss, scale):
    rng = np.random.default_rng(0)
    x, values = dt.tensor(rng.standard_normal((3, 4))), rng.standard_normal((5, 4))
    plain, weight = (dt.tensor(values).requires_grad_() for _ in range(2))
    flat = np.full(30, np.nan)
    weight._slot = Slot(flat, 6, (5, 4))
    weight._slot.scale = scale

    loss(x, plain).backward()
    loss(x, weight).backward()

    np.testing.assert_array_equal(weight.grad.numpy(), plain.grad.numpy() * scale)
    assert np.shares_memory(weight.grad.numpy(), flat)
    assert np.isnan(flat[:6]).all()
    assert np.isnan(flat[26:]).all()


def test_gradient_in_a_slot_is_the_product_itself():
    x, weight = dt.ones(3, 4), dt.ones(5, 4).requires_grad_()
    weight._slot = Slot(np.zeros(20, np.float32), 0, (5, 4))
    out = linear(x, weight).sum()
    node = out._node.edges[0][0]
    returned = []
    vjp = node.vjp

    def seen(*args, **options):
        grads = vjp(*args, **options)
        returned.append(np.shares_memory(grads[1], weight._slot.flat))
        return grads

    WRITES[seen] = WRITES[vjp]
    try:
        node.vjp = seen
        out.backward()
    finally:
        del WRITES[seen]

    assert returned == [True]


def test_gradient_that_somebody_kept_stays_when_a_slot_is_written_again():
    x, weight = dt.ones(3, 4), dt.ones(5, 4).requires_grad_()
    weight._slot = Slot(np.zeros(20, np.float32), 0, (5, 4))
    linear(x, weight).sum().backward()
    kept, memory = weight.grad, weight.grad.detach()

    weight.grad = None
    linear(2 * x, weight).sum().backward()

    assert kept[0, 0].item() == memory[0, 0].item() == 3
    assert weight.grad[0, 0].item() == 6


def test_gradient_in_a_slot_is_added_to():
    x, weight = dt.ones(3, 4), dt.ones(5, 4).requires_grad_()
    weight._slot = Slot(np.zeros(20, np.float32), 0, (5, 4))

    linear(x, weight).sum().backward()
    linear(x, weight).sum().backward()

    assert weight.grad[0, 0].item() == 6


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_of_a_leaf_with_a_slot_see_its_gradient(register):
    x, weight = dt.ones(3, 4), dt.ones(5, 4).requires_grad_()
    weight._slot = Slot(np.zeros(20, np.float32), 0, (5, 4))
    seen = []

    getattr(weight, register)(
        lambda t: seen.append((t if register == "register_hook" else t.grad)[0, 0].item())
    )
    linear(x, weight).sum().backward()

    assert seen == [3]
    assert weight.grad[0, 0].item() == 3
