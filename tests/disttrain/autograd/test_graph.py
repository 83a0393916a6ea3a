"""Hooks on several gradients at once, against PyTorch's ``torch.autograd.graph``."""

from __future__ import annotations

import gc
from typing import Any

import pytest

import disttrain as dt
from disttrain.autograd import graph


def leaves(lib: Any, n: int = 3) -> list[Any]:
    return [lib.full((2,), float(i + 1), requires_grad=True) for i in range(n)]


def told(grads: Any) -> Any:
    return [None if g is None else g.tolist() for g in grads] if isinstance(grads, list) else grads.tolist()


def all_of_them(lib: Any, seen: list[Any]) -> None:
    a, b, c = leaves(lib)
    lib.autograd.graph.register_multi_grad_hook([a, b, c], lambda g: seen.append(told(g)))
    (a * b + c).sum().backward()


def some_get_none(lib: Any, seen: list[Any]) -> None:
    a, b, c = leaves(lib)
    lib.autograd.graph.register_multi_grad_hook([a, b, c], lambda g: seen.append(told(g)))
    (a * b).sum().backward()
    (b + c).sum().backward()


def inner_tensors(lib: Any, seen: list[Any]) -> None:
    a, b, _ = leaves(lib)
    x, y = a * 2, b * 3
    lib.autograd.graph.register_multi_grad_hook((x, y), lambda g: seen.append(told(g)))
    out = (x * y).sum()
    out.backward(retain_graph=True)
    out.backward()


def any_of_them(lib: Any, seen: list[Any]) -> None:
    a, b, _ = leaves(lib)
    lib.autograd.graph.register_multi_grad_hook((a, b), lambda g: seen.append(told(g)), mode="any")
    (a + b).sum().backward()
    b.sum().backward()


def removed(lib: Any, seen: list[Any]) -> None:
    a, b, _ = leaves(lib)
    handle = lib.autograd.graph.register_multi_grad_hook((a, b), lambda g: seen.append(told(g)))
    (a + b).sum().backward()
    handle.remove()
    (a + b).sum().backward()


def unknown_mode(lib: Any, seen: list[Any]) -> None:
    lib.autograd.graph.register_multi_grad_hook(leaves(lib), seen.append, mode="most")


def any_without_gradient(lib: Any, seen: list[Any]) -> None:
    lib.autograd.graph.register_multi_grad_hook([*leaves(lib), lib.ones(2)], seen.append, mode="any")


def forbidden_hooks(lib: Any, seen: list[Any]) -> None:
    with lib.autograd.graph.disable_saved_tensors_hooks("not here"):
        with pytest.raises(RuntimeError, match="not here"), lib.autograd.graph.saved_tensors_hooks(id, id):
            pass
        seen.append("refused")
    with lib.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        seen.append("allowed again")


def hooks_before_they_are_forbidden(lib: Any, seen: list[Any]) -> None:
    with (
        lib.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),
        lib.autograd.graph.disable_saved_tensors_hooks("too late"),
    ):
        pass


@pytest.mark.parametrize(
    "program",
    [
        all_of_them,
        some_get_none,
        inner_tensors,
        any_of_them,
        removed,
        unknown_mode,
        any_without_gradient,
        forbidden_hooks,
        hooks_before_they_are_forbidden,
    ],
)
def test_programs_see_what_they_see_in_pytorch(program: Any) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")

    def outcome(lib: Any) -> Any:
        seen: list[Any] = []
        try:
            program(lib, seen)
        except (RuntimeError, ValueError) as error:
            seen.append(type(error))
        return seen

    assert outcome(dt) == outcome(torch)


def test_gradients_that_are_asked_for_are_enough() -> None:
    a, b, c = leaves(dt)
    seen: list[Any] = []
    graph.register_multi_grad_hook((a, b, c), lambda g: seen.append(told(g)))
    dt.autograd.grad((a * b * c).sum(), [a, c])
    assert seen == [[[6, 6], None, [2, 2]]]


def test_a_tensor_without_gradient_is_refused() -> None:
    with pytest.raises(RuntimeError, match="require"):
        graph.register_multi_grad_hook([*leaves(dt), dt.ones(2)], print)


def test_a_handle_ends_with_its_block() -> None:
    a = dt.ones(2, requires_grad=True)
    seen: list[Any] = []
    with graph.register_multi_grad_hook([a], seen.append):
        a.sum().backward()
    a.sum().backward()
    assert len(seen) == 1


def test_a_pass_that_fails_leaves_nothing_behind() -> None:
    def stop(grad: Any) -> None:
        raise KeyError("stop")

    def run() -> None:
        late = dt.ones(2, requires_grad=True)
        late.register_hook(stop)
        with pytest.raises(KeyError):
            (late.exp() * b.sin() * a).sum().backward()

    a, b, _ = leaves(dt)
    graph.register_multi_grad_hook([a, b], lambda g: None)
    gc.collect()  # what other tests have left
    before = dt.memory.saved().nodes
    run()
    gc.collect()

    assert dt.memory.saved().nodes == before
