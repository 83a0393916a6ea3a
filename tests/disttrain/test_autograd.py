"""Gradients, hooks and modes against PyTorch's."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain.errors import GradientError

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


def make(lib: Any, *values: float) -> Any:
    return lib.tensor(list(values), dtype=lib.float64).requires_grad_()


def plain(x: Any) -> Any:
    """Return tensors as lists and exceptions as the family that both libraries raise."""
    if x is None or isinstance(x, bool | int | float | str):
        return x
    if isinstance(x, list | tuple):
        return [plain(e) for e in x]
    return x.detach().tolist()


def run(program: Any, lib: Any) -> Any:
    try:
        return plain(program(lib))
    except (RuntimeError, ValueError, TypeError) as e:
        return "RuntimeError" if isinstance(e, RuntimeError) else type(e).__name__


def same(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return bool(np.isclose(a, b, rtol=1e-10, equal_nan=True))
    return type(a) is type(b) and a == b


def grad_of(lib: Any, out: Any, *ins: Any, **options: Any) -> Any:
    return lib.autograd.grad(out, ins if len(ins) > 1 else ins[0], **options)


def hooked(lib: Any, hook: Any, leaf: bool) -> Any:
    x = make(lib, 1, 2)
    y = x * x
    (x if leaf else y).register_hook(hook)
    (y * 3).sum().backward()
    return x.grad


def two_hooks(lib: Any) -> Any:
    x, seen = make(lib, 1, 2), []
    y = x * 2
    first = y.register_hook(lambda g: seen.append(g.tolist()))
    y.register_hook(lambda g: g * 10)
    y.register_hook(lambda g: seen.append(g.tolist()))
    y.sum().backward(retain_graph=True)
    first.remove()
    y.sum().backward()
    return seen, x.grad


def post_hooks(lib: Any) -> Any:
    x, seen = make(lib, 1, 2), []
    handle = x.register_post_accumulate_grad_hook(lambda t: seen.append(t.grad.tolist()))
    (x * x).sum().backward()
    (x * 2).sum().backward()
    handle.remove()
    (x * 2).sum().backward()
    return seen, x.grad


def hook_sees_the_whole_gradient(lib: Any) -> Any:
    x, seen = make(lib, 1, 2), []
    y = x * 2
    y.register_hook(lambda g: seen.append(g.tolist()))
    x.register_hook(lambda g: seen.append(g.tolist()))
    (y * y + y.exp() + x).sum().backward()
    return seen


def hook_after_change(lib: Any) -> Any:
    """A hook belongs to the value that the tensor had when it was registered."""
    x, seen = make(lib, 1, 2), []
    y = x * 2
    y.register_hook(lambda g: seen.append(g.tolist()))
    y.mul_(3)
    y.register_hook(lambda g: seen.append(g.tolist()))
    y.sum().backward()
    return seen, x.grad


def retain(lib: Any) -> Any:
    x = make(lib, 1, 2)
    y = x * 2
    y.retain_grad()
    y.retain_grad()
    z = (y * y).sum()
    z.backward(retain_graph=True)
    z.backward()
    return y.grad, x.grad


def retain_after_change(lib: Any) -> Any:
    x = make(lib, 1, 2)
    y = x * 2
    y.retain_grad()
    y.mul_(3)
    y.sum().backward()
    return y.grad, x.grad


def twice(lib: Any, **first: Any) -> Any:
    x = make(lib, 1, 2)
    y = x.exp().sum()
    y.backward(**first)
    y.backward()
    return x.grad


def twice_linear(lib: Any) -> Any:
    x = make(lib, 1, 2)
    y = (x + x).sum()
    y.backward()
    y.backward()
    return x.grad


def into(lib: Any) -> Any:
    x, w = make(lib, 1, 2), make(lib, 3, 4)
    y = x * w
    (y * y).sum().backward(inputs=[w, y])
    return x.grad, w.grad, y.grad


def mixed_types(lib: Any) -> Any:
    x = lib.tensor([1.0, 2.0], dtype=lib.float32).requires_grad_()
    h = lib.tensor([1.5], dtype=lib.float16).requires_grad_()
    (x.to(lib.float64) * 3 + x * h + h * 2).sum().backward()
    return x.grad, h.grad, str(x.grad.dtype).split(".")[1], str(h.grad.dtype).split(".")[1]


def view_inputs(lib: Any) -> Any:
    x = make(lib, 1, 2, 3)
    y = x * x
    v = y[1:]
    w = y.view(3, 1)
    return (
        grad_of(lib, (v * v).sum(), v),
        grad_of(lib, (v * v).sum(), y, retain_graph=True),
        grad_of(lib, w.sum() + v.sum(), v, w, x, allow_unused=True),
    )


def view_input_after_change(lib: Any) -> Any:
    x = make(lib, 1, 2, 3)
    y = x * 1.0
    v = y[1:]
    v.mul_(2)
    return grad_of(lib, y.sum(), v, x, allow_unused=True, retain_graph=True), grad_of(
        lib, v.sum(), v, y, allow_unused=True
    )


def penalty(lib: Any) -> Any:
    x, w = make(lib, 0.3, -0.7), make(lib, 1.1, 0.4)
    (g,) = grad_of(lib, ((x * w).tanh() * w).sum(), x, create_graph=True)
    (g * g).sum().backward()
    return x.grad, w.grad


def setter(lib: Any, value: Any) -> Any:
    x = make(lib, 1, 2)
    x.grad = value(lib)
    (x * 2).sum().backward()
    return x.grad


def leaf_flags(lib: Any) -> Any:
    x = make(lib, 1, 2)
    y = x * 2
    with lib.no_grad():
        z = y * 2
    v = x[0]
    return [
        (t.requires_grad, t.is_leaf, t.grad_fn is None)
        for t in (x, y, z, v, y.detach(), x.data, x.detach()[0])
    ]


def modes(lib: Any) -> Any:
    x, seen = make(lib, 1), []

    @lib.no_grad()
    def off(depth: int) -> None:
        seen.append((x * 2).requires_grad)
        if depth:
            on(depth - 1)
        seen.append((x * 2).requires_grad)

    @lib.enable_grad()
    def on(depth: int) -> None:
        seen.append((x * 2).requires_grad)
        if depth:
            off(depth - 1)
        seen.append((x * 2).requires_grad)

    off(4)
    seen.append(lib.is_grad_enabled())
    with lib.set_grad_enabled(False):
        seen.append(lib.is_grad_enabled())
        with lib.set_grad_enabled(True):
            seen.append(lib.is_grad_enabled())
        seen.append(lib.is_grad_enabled())
    lib.set_grad_enabled(False)
    seen.append(lib.is_grad_enabled())
    lib.set_grad_enabled(True)
    seen.append(lib.is_grad_enabled())

    @lib.set_grad_enabled(False)
    def decorated() -> bool:
        return bool((x * 2).requires_grad)

    seen += [lib.is_grad_enabled(), decorated(), lib.is_grad_enabled(), decorated()]

    @lib.no_grad
    def bare() -> bool:
        return bool((x * 2).requires_grad)

    try:
        with lib.no_grad():
            raise KeyError
    except KeyError:
        seen.append(lib.is_grad_enabled())
    return [*seen, bare(), lib.is_grad_enabled()]


PROGRAMS: dict[str, Any] = {
    "hook sees": hook_sees_the_whole_gradient,
    "hook on leaf replaces": lambda lib: hooked(lib, lambda g: g * 2 + 1, True),
    "hook on result replaces": lambda lib: hooked(lib, lambda g: g * 2 + 1, False),
    "hook returns nothing": lambda lib: hooked(lib, lambda g: None, False),
    "two hooks": two_hooks,
    "hook after a change in place": hook_after_change,
    "post hooks": post_hooks,
    "post hook on a result": lambda lib: (make(lib, 1) * 2).register_post_accumulate_grad_hook(print),
    "hook without grad": lambda lib: make(lib, 1).detach().register_hook(print),
    "retain_grad": retain,
    "retain_grad then a change": retain_after_change,
    "retain_grad without grad": lambda lib: make(lib, 1).detach().retain_grad(),
    "retain_graph": lambda lib: twice(lib, retain_graph=True),
    "freed graph": twice,
    "freed graph that saved nothing": twice_linear,
    "create_graph keeps the graph": lambda lib: grad_of(
        lib, grad_of(lib, make(lib, 2) ** 3, make(lib, 1), create_graph=True)
    ),
    "non-scalar": lambda lib: (make(lib, 1, 2) * 2).backward(),
    "one element in two dimensions": lambda lib: make(lib, 1).view(1, 1).backward(),
    "without grad": lambda lib: make(lib, 1).detach().sum().backward(),
    "gradient of another shape": lambda lib: (make(lib, 1, 2) * 2).backward(lib.ones(3, dtype=lib.float64)),
    "inputs": into,
    "mixed types": mixed_types,
    "views as inputs": view_inputs,
    "views as inputs after a change": view_input_after_change,
    "penalty": penalty,
    "grad set": lambda lib: setter(lib, lambda lib: lib.ones(2, dtype=lib.float64)),
    "grad set to None": lambda lib: setter(lib, lambda lib: None),
    "grad of another shape": lambda lib: setter(lib, lambda lib: lib.ones(3, dtype=lib.float64)),
    "grad of another type": lambda lib: setter(lib, lambda lib: lib.ones(2, dtype=lib.float32)),
    "grad a list": lambda lib: setter(lib, lambda lib: [1.0, 2.0]),
    "leaf flags": leaf_flags,
    "modes": modes,
    "integers cannot": lambda lib: lib.ones(2, dtype=lib.int64).requires_grad_(),
    "switch off a result": lambda lib: (make(lib, 1) * 2).requires_grad_(False),
    "switch off a leaf": lambda lib: (make(lib, 1).requires_grad_(False) * 2).requires_grad,
    "numpy of a tensor with grad": lambda lib: make(lib, 1).numpy().tolist(),
    "detach_": lambda lib: (make(lib, 1) * 2).detach_().requires_grad,
    "detach_ of a view": lambda lib: (make(lib, 1) * 2)[0].detach_(),
    "unused": lambda lib: grad_of(lib, make(lib, 1) * 2, make(lib, 1)),
    "input without grad": lambda lib: grad_of(lib, make(lib, 1) * 2, make(lib, 1).detach()),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_give_what_they_give_in_pytorch(name: str) -> None:
    ours, theirs = run(PROGRAMS[name], dt), run(PROGRAMS[name], torch)

    assert same(ours, theirs), f"{ours}, PyTorch {theirs}"


def options(lib: Any, **more: Any) -> Any:
    x, y, z = make(lib, 1, 2), make(lib, 3, 4), make(lib, 5, 6)
    a, b = x * y, (y.exp() * 1e-2).sum()
    return lib.autograd.grad((a, b), (x, y, z), (lib.ones(2, dtype=lib.float64), None), **more)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"allow_unused": True},
        {"materialize_grads": True},
        {"allow_unused": False},
        {"allow_unused": True, "materialize_grads": True},
    ],
)
def test_several_outputs_and_inputs(more: Any) -> None:
    assert same(run(lambda lib: options(lib, **more), dt), run(lambda lib: options(lib, **more), torch))


COMPOSED = {
    "mlp": lambda lib, x: ((x.exp() @ (x.sin() * x).t()).tanh() * x.sigmoid()[:, :1]).pow(2).mean(),
    "softmax": lambda lib, x: (x - x.logsumexp(1, keepdim=True)).exp().mul(x).sum() / x.square().sum().sqrt(),
    "norms": lambda lib, x: ((x - x.mean(0)) / (x.var(0, correction=0) + 0.1).sqrt()).pow(3).sum(),
    "division": lambda lib, x: (x / (1 + x * x)).cumsum(1).prod(0).log1p().sum(),
    "choice": lambda lib, x: (
        lib.where(x > 0, x.pow(3), x.exp()).sum() + x.clamp(-0.5, 0.5).pow(3).sum() + x.amax(1).pow(3).sum()
    ),
    "moves": lambda lib, x: (
        lib.cat([x.t().flip(0), lib.stack([x[0], x[1]], 1)], 1).roll(1, 0)[1:].pow(3).sum() * x.tril().sum()
    ),
    "indices": lambda lib, x: (
        (x[lib.tensor([0, 1, 0])].gather(1, lib.tensor([[0, 1], [2, 0], [1, 1]])) ** 3).sum() * x.sum()
    ),
    "in place": lambda lib, x: (x * 2).mul_(x).add_(x.exp()).pow(2).sum(),
    "views in place": lambda lib, x: in_a_view(x),
    "powers": lambda lib, x: ((x * x + 0.5) ** (x * 0.5) + 2.0**x).sum() * (x * x + 1).rsqrt().sum(),
}


def in_a_view(x: Any) -> Any:
    y = x * x
    y[0].mul_(x[1])
    y[:, 1] = x[:, 0].exp()
    return (y * y * x).sum()


@pytest.mark.parametrize("name", COMPOSED)
def test_three_derivatives_of_composed_functions(name: str) -> None:
    data = np.random.default_rng(3).standard_normal((2, 3))
    direction = np.random.default_rng(4).standard_normal((2, 3))

    def derivatives(lib: Any, from_array: Any) -> list[Any]:
        x, v = from_array(data.copy()).requires_grad_(), from_array(direction.copy())
        found, out = [], COMPOSED[name](lib, x)
        for _ in range(3):
            (g,) = lib.autograd.grad(out, x, create_graph=True)
            found.append(g.detach().numpy())
            out = (g * v).sum() + (g * g).sum()
        return found

    for order, (ours, theirs) in enumerate(
        zip(derivatives(dt, dt.from_numpy), derivatives(torch, torch.from_numpy), strict=True)
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-8, err_msg=f"derivative {order + 1}")


def test_modes_belong_to_their_thread() -> None:
    inside, leave, seen = threading.Event(), threading.Event(), []

    def work() -> None:
        with dt.no_grad():
            inside.set()
            leave.wait(10)
            seen.append(dt.is_grad_enabled())

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(10)
    enabled = dt.is_grad_enabled()
    leave.set()
    thread.join(10)

    assert enabled
    assert seen == [False]


def test_a_decorated_function_may_run_in_threads_at_once() -> None:
    barrier, seen = threading.Barrier(4), []

    @dt.no_grad()
    def work() -> None:
        barrier.wait(10)
        seen.append(dt.is_grad_enabled())
        barrier.wait(10)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(10)

    assert seen == [False] * 4
    assert dt.is_grad_enabled()


def test_errors_say_what_to_do() -> None:
    x = dt.ones(2, requires_grad=True)
    with pytest.raises(GradientError, match=r"needs a scalar, got shape \[2\]; reduce it first"):
        (x * 2).backward()
    y = x.exp().sum()
    y.backward()
    with pytest.raises(GradientError, match=r"a second time: what exp saved.*retain_graph=True"):
        y.backward()
    with pytest.raises(GradientError, match="allow_unused=True"):
        dt.autograd.grad((x * 2).sum(), dt.ones(1, requires_grad=True))


def test_inference_mode_records_nothing_as_a_block_and_as_a_decorator():
    x = dt.ones(2, requires_grad=True)

    @dt.inference_mode()
    def called(y):
        return y * 2

    @dt.inference_mode
    def bare(y):
        return y * 2

    with dt.inference_mode():
        inside = x * 2
    with dt.inference_mode(mode=False):
        recorded = x * 2
    assert not inside.requires_grad
    assert recorded.requires_grad
    assert not called(x).requires_grad
    assert not bare(x).requires_grad
    assert (x * 2).requires_grad


def test_grad_takes_only_inputs_where_pytorch_does():
    x = dt.ones(2, requires_grad=True)

    (g,) = dt.autograd.grad((x * x).sum(), x, None, None, False, True)

    assert g.tolist() == [2, 2]
    with pytest.raises(ValueError, match="only_inputs"):
        dt.autograd.grad(x.sum(), x, only_inputs=False)
