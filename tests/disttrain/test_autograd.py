"""Gradients, hooks and modes against PyTorch's."""

from __future__ import annotations

import threading
import warnings
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
    with pytest.warns(FutureWarning, match="only_inputs"):
        (g,) = dt.autograd.grad(x.sum(), x, only_inputs=False)
    assert g.tolist() == [1, 1]


# --------------------------------------------------------------------------------- arguments of grad and backward


def small(lib: Any) -> dict[str, Any]:
    x, y = lib.ones(2, requires_grad=True), lib.ones(2)
    return {"L": lib, "A": lib.autograd, "x": x, "y": y, "g": lib.ones(2, requires_grad=True)} | {
        "end": lambda t: t.expand_as(t).grad_fn.next_functions[0][0]
    }


ARGUMENTS = """
A.grad(x*x*2, x, L.eye(2), is_grads_batched=True)
A.grad((x*x*2, (x*3).sum()), [x], (L.eye(2),L.ones(2)), is_grads_batched=True)
A.grad((x*x).sum(), x, None, is_grads_batched=True)
A.grad(x*x, [x,g], L.eye(2), is_grads_batched=True, allow_unused=True)
A.grad(x*x, [x,g], L.eye(2), is_grads_batched=True, materialize_grads=True)
A.grad(x*x, x, (L.eye(2),), None, True, True, None, True)
A.grad(x.sum(), x, allow_unused=False, materialize_grads=True) | A.grad(x.sum(), []) | A.grad([], x)
A.grad(x.sum(), None) | A.grad(3, x) | A.grad(y.sum(), x) | A.grad(x.sum(), y) | A.grad(x.sum(), g)
A.grad(x.sum(), g, materialize_grads=True) | A.grad(x.sum(), g, materialize_grads=True, create_graph=True)
A.grad(x*2, x, L.ones(3)) | A.grad(x.sum(), x, L.ones(1)) | A.grad((x*2), x, L.ones(2,dtype=L.float64))
A.grad((x*2), x, L.ones(2,dtype=L.int64)) | A.grad((x*2).sum(), x, 3.0) | A.grad((x*2,x*3), x, (L.ones(2),))
A.grad((x*2), x, [L.ones(2)]) | A.grad((x*2).sum(), [x,x]) | A.grad(x, x, L.ones(2))
A.grad(x.sum().long(), x) | (x*2).backward(3.0) | (x*2).backward(L.ones(3)) | (x*2).backward()
x.sum().backward(inputs=[]) | ((x*2).sum().backward(inputs=x), x.grad) | (x*2).sum().backward(inputs=[y])
(A.backward([x.sum(),(x*2)],[None,L.ones(2)]), x.grad) | (A.backward([x.sum(),(x*2).sum()]), x.grad)
(A.backward([x.sum()],grad_variables=[L.ones(())]), x.grad) | A.backward([])
A.backward([x.sum()],[L.ones(())],grad_variables=[L.ones(())])
A.grad(A.grad(x*x, x, g, create_graph=True)[0].sum(), g) | A.Variable(L.ones(2), requires_grad=True)
setattr(x*2, "requires_grad", True) | setattr(x, "requires_grad", True) | (x*2).requires_grad_()
A.grad(x.sum(), x, only_inputs=False)
A.Variable(x) | A.Variable(L.ones(2), True).requires_grad | A.Variable(3) | isinstance(x, A.Variable)
A.grad(((h:=x*2)*3).sum(), A.graph.get_gradient_edge(h)) | A.grad((x*3).sum(), A.graph.get_gradient_edge(x))
A.graph.get_gradient_edge(y) | A.grad(A.graph.get_gradient_edge((h:=x*2)*3), x, L.ones(2))
A.graph.get_gradient_edge(x*2).output_nr
(A.backward((x*3).sum(), inputs=[A.graph.get_gradient_edge(x)]), x.grad)
(A.backward(((h:=x*2)*3).sum(), inputs=[A.graph.get_gradient_edge(h)]), x.grad)
A.grad((x*3).sum(), A.graph.get_gradient_edge(g), materialize_grads=True)
A.grad((x*3).sum(), A.graph.get_gradient_edge(x), materialize_grads=True)
(h:=x*1, h.retain_grad(), h.retains_grad, (h*2).sum().backward(), h.grad)[1:]
(x.retain_grad(), x.retains_grad)
(h:=x*2, h.retain_grad(), h.register_hook(lambda v: v*10), h.sum().backward(), h.grad, x.grad)[4:]
(x.register_hook(lambda v: L.ones(3)), (x*2).sum().backward())
(x.register_hook(lambda v: 3), (x*2).sum().backward())
(x.register_hook(lambda v: v.double()), (x*2).sum().backward())
(h:=x*2, h.register_hook(lambda v: v*3), h.sum().backward(), x.grad)[3]
(h:=x*2, h.grad_fn.register_hook(lambda gi,go: (gi[0]*3+go[0],None)), h.sum().backward(), x.grad)[3]
(h:=x*2, h.grad_fn.register_hook(lambda gi,go: (gi[0],)), h.sum().backward()) | (x*2).grad_fn.name()
(x*2).grad_fn.next_functions[1]
(h:=x*2, h.grad_fn.register_prehook(lambda go: (go[0]*3,)), h.sum().backward(), x.grad)[3] | x.output_nr
L.stack([x,x]).unbind()[1].requires_grad
(h:=x*2, k:=h.grad_fn.register_hook(lambda gi,go: (gi[0]*3,None)), k.remove(), h.sum().backward(), x.grad)[4]
(n:=(x*3).grad_fn.next_functions[0][0], n.variable is x, n.name(), n.next_functions)[1:]
(s:=[], n:=end(x), n.register_hook(lambda *v: s.append(v)), (x*2).sum().backward(), s)[4]
(s:=[], n:=end(x), n.register_prehook(lambda v: (v[0]*5,)), (x*2).sum().backward(), x.grad)[4]
"""


@pytest.mark.parametrize("call", [c.strip() for c in ARGUMENTS.replace("\n", "|").split("|") if c.strip()])
def test_arguments_are_taken_and_refused_as_pytorch_does(call: str) -> None:
    def outcome(lib: Any) -> Any:
        def told(v: Any) -> Any:
            if isinstance(v, list | tuple):
                return [told(e) for e in v]
            return (str(v.dtype).split(".")[1], v.requires_grad, v.tolist()) if lib.is_tensor(v) else v

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = told(eval(call, small(lib)))
        except Exception as e:
            return RuntimeError if isinstance(e, RuntimeError) else type(e)
        return (
            [r for r in result if isinstance(r, bool | int | str | list | tuple)]
            if "register" in call
            else result
        )

    ours, theirs = outcome(dt), outcome(torch)

    assert ours == theirs


def test_hooks_pack_and_unpack_what_is_saved() -> None:
    def gradients(lib: Any, hooked: bool) -> Any:
        log: list[str] = []

        def pack(t: Any) -> Any:
            log.append(f"pack {t.requires_grad}" if lib is dt else "pack")
            return t.detach().numpy().copy()

        def unpack(a: Any) -> Any:
            log.append("unpack")
            return lib.from_numpy(a)

        x = lib.linspace(0.1, 1.0, 4, dtype=lib.float64).requires_grad_()
        if hooked:
            with lib.autograd.graph.saved_tensors_hooks(pack, unpack):
                y = program(x)
        else:
            y = program(x)
        (g,) = lib.autograd.grad(y, x, create_graph=True)
        (h,) = lib.autograd.grad((g * g).sum(), x)
        assert bool(log) is hooked
        assert "pack True" not in log  # a hook sees values without history
        return g.tolist(), h.tolist()

    def program(x: Any) -> Any:
        y = x * 2
        y.mul_(x)
        y[1:].exp_()
        return (y.sin() * y.cumsum(0)).sum()

    assert gradients(dt, True) == gradients(dt, False)
    np.testing.assert_allclose(gradients(dt, True), gradients(torch, True), rtol=1e-10)


def test_a_tensor_tells_which_output_it_is_and_whether_its_gradient_is_kept() -> None:
    for lib in (dt, torch):
        x = lib.arange(6.0).reshape(2, 3).requires_grad_()
        values = x * 2
        assert [x.output_nr, values.output_nr] == [0, 0]
        assert not values.retains_grad
        values.retain_grad()
        assert values.retains_grad
        (parts := Halves(lib).apply(x))[1].sum().backward()
        assert [p.output_nr for p in parts] == [0, 1]


def Halves(lib: Any) -> Any:
    class Both(lib.autograd.Function):  # type: ignore[misc,name-defined]
        @staticmethod
        def forward(ctx: Any, a: Any) -> Any:
            return a * 2, a * 3

        @staticmethod
        def backward(ctx: Any, g: Any, h: Any) -> Any:
            return g * 2 + h * 3

    return Both


def test_what_an_unpack_hook_returns_must_be_a_tensor() -> None:
    with dt.autograd.graph.saved_tensors_hooks(lambda t: 1, lambda v: v):
        y = dt.ones(2, requires_grad=True).exp()
    with pytest.raises(TypeError, match="must return a Tensor, got int"):
        y.sum().backward()


def test_save_on_cpu_and_increment_version() -> None:
    x = dt.ones(2, requires_grad=True)
    with dt.autograd.graph.save_on_cpu(pin_memory=True):
        y = x.exp().sum()
    y.backward()
    np.testing.assert_allclose(x.grad.numpy(), np.e, rtol=1e-6)
    z = (x * 1).exp()
    dt.autograd.graph.increment_version(z)
    with pytest.raises(RuntimeError, match="version 1, expected 0"):
        z.sum().backward()
    with dt.autograd.set_multithreading_enabled(False):
        assert dt.is_grad_enabled()


SQUARES: dict[str, Any] = {
    "right": lambda lib: lambda a, g: g * 2 * a,
    "wrong": lambda lib: lambda a, g: g * 3 * a,
    "right once": lambda lib: lambda a, g: g * 2 * a.detach(),
}


@pytest.mark.parametrize("name", [*SQUARES, "mm", "two", "constant", "linear"])
@pytest.mark.parametrize("fast", [False, True])
def test_gradcheck_judges_as_pytorchs(name: str, fast: bool) -> None:
    def verdicts(lib: Any) -> Any:
        A = lib.autograd
        x = lib.linspace(-1.0, 1.3, 6, dtype=lib.float64).reshape(3, 2).requires_grad_()
        w = lib.linspace(-0.7, 0.9, 8, dtype=lib.float64).reshape(2, 4).requires_grad_()
        inputs: Any = (x,)
        if name in SQUARES:
            backward = SQUARES[name](lib)

            class Square(A.Function):  # type: ignore[misc,name-defined]
                @staticmethod
                def forward(ctx: Any, a: Any) -> Any:
                    ctx.save_for_backward(a)
                    return a * a

                @staticmethod
                def backward(ctx: Any, g: Any) -> Any:
                    return backward(ctx.saved_tensors[0], g)

            f: Any = Square.apply
        else:
            f = {
                "mm": lambda x, w: (x @ w).tanh(),
                "two": lambda x: (x.exp(), x.sum()),
                "constant": lambda x: x.detach(),
                "linear": lambda x: x * 2,
            }[name]
            inputs = (x, w) if name == "mm" else x if name == "two" else (x,)
        found = [A.gradcheck(f, inputs, raise_exception=False, fast_mode=fast, check_batched_grad=True)]
        if name not in ("constant", "right once"):
            found.append(A.gradgradcheck(f, inputs, raise_exception=False, gen_non_contig_grad_outputs=True))
        try:
            A.gradcheck(f, inputs)
        except RuntimeError:
            found.append("raised")
        return found

    assert verdicts(dt) == verdicts(torch)


def test_gradgradcheck_finds_a_gradient_without_history() -> None:
    class Square(dt.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Any) -> Any:
            ctx.save_for_backward(a)
            return a * a

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g * 2 * ctx.saved_tensors[0].detach()

    x = dt.linspace(0.1, 1.0, 3, dtype=dt.float64).requires_grad_()
    assert dt.autograd.gradcheck(Square.apply, x)
    with pytest.raises(RuntimeError, match="two Jacobians of output 0 by input 0 differ"):
        dt.autograd.gradgradcheck(Square.apply, x)
    with pytest.raises(ValueError, match="nothing to check"):
        dt.autograd.gradcheck(Square.apply, x.detach())
    with pytest.raises(NotImplementedError, match="forward-mode"):
        dt.autograd.gradcheck(Square.apply, x, check_forward_ad=True)


@pytest.mark.parametrize("retains", [False, True])
@pytest.mark.parametrize("wanted", ["t", "tx"])
def test_an_inner_tensor_among_the_inputs_gets_its_gradient_once(retains, wanted):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")

    def program(lib):
        x = lib.ones(2, requires_grad=True)
        t = x * 3
        if retains:
            t.retain_grad()
        (t * t).sum().backward(inputs=[{"t": t, "x": x}[n] for n in wanted])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [None if g is None else g.tolist() for g in (t.grad, x.grad)]

    assert program(dt) == program(torch)
