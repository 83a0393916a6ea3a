"""What graphs keep: each stretch of memory once, by operation, and nothing after it is freed."""

from __future__ import annotations

import gc
from typing import Any

import pytest

import disttrain as dt
from disttrain import memory


def test_what_a_graph_keeps_is_counted_by_operation() -> None:
    x = dt.ones(100, requires_grad=True)
    y = (x * 2).exp()
    z = (y * y[:50].sum()).sin()

    found = memory.saved(z)

    assert found.by_op() == {"exp": 400, "sin": 400, "mul": 4}
    assert found.bytes == 804
    assert found.leaf_bytes == 0
    assert found.packed == 0
    assert found.nodes == 6
    assert [e.shape for e in found.entries] == [(100,), (100,), ()]


def test_parameters_are_counted_apart_and_views_by_their_memory() -> None:
    w = dt.ones(10, 20, requires_grad=True)
    x = dt.ones(40, 10)

    one = memory.saved(x[:2] @ w)
    both = memory.saved(x.clone().requires_grad_().exp()[:2] @ w)

    assert one.bytes == 1600  # all of x is kept alive by two of its rows
    assert one.entries[0].shape == (2, 10)
    assert one.leaf_bytes == 0  # w is not needed for its own gradient
    assert both.bytes == 1600  # what exp saved, of which matmul saved a part
    assert both.leaf_bytes == 800


def test_nothing_is_kept_after_backward() -> None:
    x = dt.ones(100, requires_grad=True)
    y = x.exp().sum()
    assert memory.saved(y).bytes == 400

    y.backward()

    assert memory.saved(y).bytes == 0


def test_all_live_graphs_and_tensors() -> None:
    gc.collect()
    before, tensors = memory.saved(), memory.live_tensor_bytes()
    x = dt.ones(1000, requires_grad=True)
    y = x.exp()
    after = memory.saved()
    assert after.bytes - before.bytes == 4000
    assert after.nodes - before.nodes == 1
    assert memory.live_tensor_bytes() - tensors == 8000
    del x, y
    gc.collect()
    assert memory.saved().bytes == before.bytes


def test_functions_and_hooks() -> None:
    class Square(dt.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Any) -> Any:
            ctx.save_for_backward(a * 1)
            return a * a

    x = dt.ones(100, requires_grad=True)
    assert memory.saved(Square.apply(x)).by_op() == {"Square": 400}
    with dt.autograd.graph.saved_tensors_hooks(lambda t: t.tolist(), dt.tensor):
        hooked = x.exp()
    assert memory.saved(hooked).packed == 1
    assert memory.saved(hooked).bytes == 0


def test_summary_tells_it_in_words() -> None:
    x = dt.ones(1024, requires_grad=True)
    text = dt.memory.summary(x.exp().sin(), largest=1)
    assert text.splitlines()[0] == "saved for backward: 4.0 KiB in 2 operations"
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["exp", "4.0", "KiB", "in", "1"],
        ["largest:"],
        ["exp", "4.0", "KiB", "float32", "[1024]"],
    ]
    assert "live tensors" in dt.memory.summary()
    with pytest.raises(TypeError, match="memory is asked of Tensors, got int"):
        memory.saved(3)  # type: ignore[arg-type]
    assert (memory.resident_bytes() or 1 << 20) >= 1 << 20


def test_who_holds_memory_is_told_by_kind_each_stretch_once() -> None:
    w = dt.ones(100, requires_grad=True)
    (w * 2).sum().backward()
    x = dt.ones(50)
    y = (w[:50] * x).exp()  # x is saved, and exp keeps its result
    ours = {id(memory.owner(a)) for a in (w._array, w.grad._array, x._array, y._array)}

    found = memory.holders(lambda a: id(a) in ours)

    assert found == {
        "parameters": 400,
        "gradients": 400,
        "saved for backward by mul": 200,
        "saved for backward by exp": 200,
    }
    del y
    assert memory.holders(lambda a: id(a) in ours) == {
        "parameters": 400,
        "gradients": 400,
        "other tensors": 200,
    }
