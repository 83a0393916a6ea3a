"""Custom Functions, as programs that run on both libraries and must tell the same."""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import pytest

import disttrain as dt

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


def make(lib: Any, forward: Any, backward: Any, **more: Any) -> Any:
    members = {"forward": staticmethod(forward), "backward": staticmethod(backward), **more}
    return type("My", (lib.autograd.Function,), members)


def leaf(lib: Any, *values: float) -> Any:
    return lib.tensor(list(values or (1.0, 2.0)), requires_grad=True)


def told(x: Any, is_tensor: Any) -> Any:
    if is_tensor(x):
        return str(x.dtype).split(".")[1], bool(x.requires_grad), x.detach().tolist()
    if isinstance(x, list | tuple):
        return [told(e, is_tensor) for e in x]
    return x


def grad(lib: Any, f: Any, x: Any, **options: Any) -> Any:
    return lib.autograd.grad(f.sum(), x, allow_unused=True, **options)


def packed(lib: Any, again: bool) -> Any:
    """Hooks on what is saved see what a Function saves, and ``backward`` sees what they give back."""
    x = leaf(lib)
    with lib.autograd.graph.saved_tensors_hooks(lambda t: t * 10, lambda t: t):
        y = keeps(lib).apply(x)
        z = keeps(lib).apply(y)
    g = grad(lib, z, x, create_graph=again)
    return [g, grad(lib, g[0], x)] if again else g


def double(lib: Any) -> Any:
    return make(lib, lambda ctx, a: a * 2, lambda ctx, g: g * 2)


def keeps(lib: Any) -> Any:
    return make(
        lib, lambda ctx, a: (ctx.save_for_backward(a), a * a)[1], lambda ctx, g: g * 2 * ctx.saved_tensors[0]
    )


def with_backward(backward: Any, *more: Any) -> Any:
    """A program with one tensor (and ``more``) going in and ``backward`` giving gradients."""

    def program(lib: Any) -> Any:
        x = leaf(lib)
        f = make(lib, lambda ctx, a, *rest: a * 2, lambda ctx, g: backward(lib, g))
        return grad(lib, f.apply(x, *[m(lib) if callable(m) else m for m in more]), x)

    return program


def twice(lib: Any, function: Any) -> Any:
    out = function.apply(leaf(lib)).sum()
    out.backward()
    out.backward()


def changed(lib: Any) -> Any:
    z = leaf(lib) * 1
    out = keeps(lib).apply(z)
    z.add_(1)
    out.sum().backward()


def materialized(lib: Any, value: bool) -> Any:
    seen = []

    def forward(ctx: Any, a: Any) -> Any:
        ctx.set_materialize_grads(value)
        return a * 2, a * 3

    def backward(ctx: Any, g: Any, h: Any) -> Any:
        seen.append(None if h is None else h.tolist())
        return g

    x = leaf(lib)
    return grad(lib, make(lib, forward, backward).apply(x)[0], x), seen


def not_differentiable(lib: Any, of: Any) -> Any:
    seen = []

    def forward(ctx: Any, a: Any) -> Any:
        b = of(a)
        ctx.mark_non_differentiable(b)
        return a * 2, b

    def backward(ctx: Any, g: Any, h: Any) -> Any:
        seen.append((h.tolist(), str(h.dtype).split(".")[1]))
        return g

    x = leaf(lib)
    a, b = make(lib, forward, backward).apply(x)
    return a, b, grad(lib, a, x), seen


def dirty(lib: Any, make_input: Any, returned: bool = True) -> Any:
    def forward(ctx: Any, a: Any) -> Any:
        a.add_(1)
        ctx.mark_dirty(a)
        return a if returned else a * 1

    x = leaf(lib)
    base, z = make_input(x)
    out = make(lib, forward, lambda ctx, g: g * 5).apply(z)
    return out is z, base, grad(lib, base, x), z._version


def identity(lib: Any, requires_grad: bool) -> Any:
    x = leaf(lib).detach().requires_grad_(requires_grad)
    out = make(lib, lambda ctx, a: a, lambda ctx, g: g * 5).apply(x)
    found = grad(lib, out, x) if requires_grad else None
    return out is x, out.is_leaf, out.data_ptr() == x.data_ptr(), found


def part(lib: Any) -> Any:
    return make(lib, lambda ctx, a: a[:1], lambda ctx, g: lib.cat([g * 5, g * 0]))


def view_changed(lib: Any) -> Any:
    return part(lib).apply(leaf(lib) * 1).mul_(3)


def needs(lib: Any) -> Any:
    seen = []

    def forward(ctx: Any, a: Any, b: Any, c: Any) -> Any:
        seen.append(ctx.needs_input_grad)
        return a * b

    def backward(ctx: Any, g: Any) -> Any:
        seen.append(ctx.needs_input_grad)
        return g, g, None

    x = leaf(lib)
    make(lib, forward, backward).apply(x, lib.ones(2), 3).sum().backward()
    return seen, x.grad


def two_steps(lib: Any, *args: Any, **kwargs: Any) -> Any:
    seen = []

    def setup_context(ctx: Any, inputs: Any, output: Any) -> Any:
        seen.append(len(inputs))
        ctx.b = inputs[1]
        ctx.save_for_backward(inputs[0], output)

    def backward(ctx: Any, g: Any) -> Any:
        a, out = ctx.saved_tensors
        return g * ctx.b + 0 * a * out, None

    f = make(lib, lambda a, b=2: a * b, backward, setup_context=staticmethod(setup_context))
    x = leaf(lib)
    return grad(lib, f.apply(x, *args, **kwargs), x), seen


def once(lib: Any, seed_recorded: bool) -> Any:
    x = leaf(lib)
    backward = lib.autograd.function.once_differentiable(lambda ctx, g: g * 2 * ctx.saved_tensors[0])
    f = make(lib, lambda ctx, a: (ctx.save_for_backward(a), a * a)[1], backward)
    v = lib.ones(2).requires_grad_(seed_recorded)
    (g,) = lib.autograd.grad(f.apply(x), x, v, create_graph=True)
    return g, lib.autograd.grad(g.sum(), x)


def three_orders(lib: Any) -> Any:
    def forward(ctx: Any, a: Any) -> Any:
        r = a**3
        ctx.save_for_backward(a, r)
        return r

    def backward(ctx: Any, g: Any) -> Any:
        a, r = ctx.saved_tensors
        return g * 3 * r / a

    x = leaf(lib, 2.0, 3.0)
    found, out = [], make(lib, forward, backward).apply(x).sum()
    for _ in range(3):
        (g,) = lib.autograd.grad(out, x, create_graph=True)
        found.append(g.tolist())
        out = g.sum()
    return found


def modes_inside(lib: Any) -> Any:
    seen = []

    def forward(ctx: Any, a: Any) -> Any:
        seen.append((lib.is_grad_enabled(), a.requires_grad))
        return double(lib).apply(a) * 2

    def backward(ctx: Any, g: Any) -> Any:
        seen.append(lib.is_grad_enabled())
        return g * 4

    x = leaf(lib)
    out = make(lib, forward, backward).apply(x)
    grad(lib, out, x, retain_graph=True)
    grad(lib, out, x, create_graph=True)
    return seen, out.grad_fn.name(), type(out.grad_fn).__name__


def gradient_inside(lib: Any) -> Any:
    def forward(ctx: Any, a: Any) -> Any:
        with lib.enable_grad():
            b = a.detach().requires_grad_()
            out = (b**2).sum()
        (ctx.g,) = lib.autograd.grad(out, b)
        return out.detach()

    x = leaf(lib)
    return grad(lib, make(lib, forward, lambda ctx, g: g * ctx.g).apply(x), x)


def outside(lib: Any) -> Any:
    x = leaf(lib)
    with lib.no_grad():
        out = keeps(lib).apply(x)
    return out, out.grad_fn is None


def ctx_is_grad_fn(lib: Any) -> Any:
    x = leaf(lib)
    out = keeps(lib).apply(x)
    (acc, index), *_ = out.grad_fn.next_functions
    return out.grad_fn.saved_tensors, index, acc.variable is x, acc.name(), out.output_nr


def plain(forward: Any, backward: Any = lambda ctx, *g: g[0]) -> Any:
    return lambda lib: make(lib, lambda ctx, a: forward(lib, ctx, a), backward).apply(leaf(lib))


def missing(lib: Any, **members: Any) -> Any:
    return type("My", (lib.autograd.Function,), members).apply(leaf(lib)).sum().backward()


PROGRAMS: dict[str, Any] = {
    "simple": lambda lib: grad(lib, double(lib).apply(x := leaf(lib)), x),
    "too few gradients": with_backward(lambda lib, g: g, lambda lib: lib.ones(2)),
    "too many gradients": with_backward(lambda lib, g: (g, g)),
    "more that are None": with_backward(lambda lib, g: (g, None, None)),
    "gradient of what is no tensor": with_backward(lambda lib, g: (g, g), 3),
    "gradient that is no tensor": with_backward(lambda lib, g: 3),
    "gradients in a list": with_backward(lambda lib, g: [g]),
    "gradient of another shape": with_backward(lambda lib, g: lib.ones(3)),
    "gradient of a smaller shape": with_backward(lambda lib, g: lib.ones(1)),
    "gradient of a larger shape": with_backward(lambda lib, g: lib.ones(3, 2)),
    "gradient of another type": with_backward(lambda lib, g: lib.ones(2, dtype=lib.float64)),
    "gradient of integers": with_backward(lambda lib, g: lib.ones(2, dtype=lib.int64)),
    "no gradient": with_backward(lambda lib, g: None),
    "outputs that are no tensors": plain(lambda lib, ctx, a: (a * 2, 5, None, "s")),
    "a number": plain(lambda lib, ctx, a: 5),
    "a list": plain(lambda lib, ctx, a: [a * 2, a]),
    "a tuple of one": plain(lambda lib, ctx, a: (a * 2,)),
    "one output twice": plain(lambda lib, ctx, a: (b := a * 2, b)),
    "an output of integers": plain(lambda lib, ctx, a: (a * 2, a.long())),
    "keyword": lambda lib: make(lib, lambda ctx, a: a * 2, lambda ctx, g: g).apply(a=leaf(lib)),
    "keyword twice": lambda lib: make(lib, lambda ctx, a: a * 2, lambda ctx, g: g).apply(leaf(lib), a=1),
    "instance": lambda lib: double(lib)()(leaf(lib)),
    "save what is no tensor": plain(lambda lib, ctx, a: (ctx.save_for_backward(3), a * 2)[1]),
    "save None": plain(lambda lib, ctx, a: (ctx.save_for_backward(None, a), a * 2)[1]),
    "twice": lambda lib: twice(lib, keeps(lib)),
    "twice with nothing saved": lambda lib: twice(lib, double(lib)),
    "changed after it was saved": changed,
    "materialize": lambda lib: materialized(lib, True),
    "do not materialize": lambda lib: materialized(lib, False),
    "not differentiable mask": lambda lib: not_differentiable(lib, lambda a: a > 1),
    "not differentiable number": lambda lib: not_differentiable(lib, lambda a: a * 3),
    "dirty": lambda lib: dirty(lib, lambda x: (z := x * 1, z)),
    "dirty view": lambda lib: dirty(lib, lambda x: (z := x * 1, z[:1])),
    "dirty leaf": lambda lib: dirty(lib, lambda x: (x, x)),
    "dirty and not returned": lambda lib: dirty(lib, lambda x: (z := x * 1, z), returned=False),
    "identity": lambda lib: identity(lib, True),
    "identity without grad": lambda lib: identity(lib, False),
    "view": lambda lib: grad(lib, part(lib).apply(x := leaf(lib)), x),
    "view changed in place": view_changed,
    "needs_input_grad": needs,
    "setup_context": lambda lib: two_steps(lib, 3),
    "setup_context with a default": two_steps,
    "setup_context by keyword": lambda lib: two_steps(lib, b=4),
    "once_differentiable": lambda lib: once(lib, True),
    "once_differentiable from a constant": lambda lib: once(lib, False),
    "three orders": three_orders,
    "modes inside": modes_inside,
    "gradient inside": gradient_inside,
    "under no_grad": outside,
    "ctx is grad_fn": ctx_is_grad_fn,
    "saved under hooks": lambda lib: packed(lib, False),
    "saved under hooks, twice": lambda lib: packed(lib, True),
    "no forward": missing,
    "no backward": lambda lib: missing(lib, forward=staticmethod(lambda ctx, a: a * 2)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_tell_what_they_tell_in_pytorch(name: str) -> None:
    def outcome(lib: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return told(PROGRAMS[name](lib), lib.is_tensor)
        except Exception as e:
            return RuntimeError if type(e).__name__ in ("GradientError", "RuntimeError") else type(e)

    assert outcome(dt) == outcome(torch)


def test_errors_say_whose_gradient_is_wrong() -> None:
    f = make(dt, lambda ctx, a, b: a * b, lambda ctx, g: g)
    with pytest.raises(RuntimeError, match=r"MyBackward: backward must return 2 gradients, got 1"):
        f.apply(leaf(dt), leaf(dt)).sum().backward()


def test_a_call_is_freed_without_the_garbage_collector() -> None:
    f = make(
        dt, lambda ctx, a: (r := a * 2, ctx.save_for_backward(a, r))[0], lambda ctx, g: ctx.saved_tensors[1]
    )
    gc.collect()
    gc.disable()
    try:
        out = f.apply(leaf(dt))
        node = weakref.ref(out.grad_fn)
        array = weakref.ref(out._array)
        del out
        assert node() is None
        assert array() is None
    finally:
        gc.enable()


def test_backward_frees_what_a_function_saved() -> None:
    out = keeps(dt).apply(x := leaf(dt) * 1)
    array = weakref.ref(x._array)
    total = out.sum()
    node = out.grad_fn
    del x, out

    total.backward()

    del total
    gc.collect()
    assert array() is None
    with pytest.raises(RuntimeError, match="second time"):
        node.saved_tensors
