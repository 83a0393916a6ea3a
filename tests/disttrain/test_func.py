"""Functions of functions against PyTorch's ``torch.func``."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain import nn

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


def told(x: Any, is_tensor: Any) -> Any:
    if isinstance(x, dict):
        return {k: told(v, is_tensor) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [told(e, is_tensor) for e in x]
    return (x.requires_grad, np.round(x.detach().numpy(), 10).tolist()) if is_tensor(x) else x


def loss(p: Any, x: Any) -> Any:
    return ((x * p["w"]).tanh() + p["b"]).pow(2).sum()


PROGRAMS: dict[str, Any] = {
    "grad": lambda F, L, x, y: F.grad(lambda t: t.sin().sum())(x),
    "grad of grad": lambda F, L, x, y: F.grad(lambda t: F.grad(lambda u: u.sin().sum())(t).cos().sum())(x),
    "argnums": lambda F, L, x, y: F.grad(lambda a, b: (a * b**2).sum(), argnums=(0, 1))(x, y),
    "last argument": lambda F, L, x, y: F.grad(lambda a, b: (a * b**2).sum(), argnums=-1)(x, y),
    "value": lambda F, L, x, y: F.grad_and_value(lambda t: t.exp().sum())(x),
    "aux": lambda F, L, x, y: F.grad(lambda t: (t.exp().sum(), t * 2), has_aux=True)(x),
    "value and aux": lambda F, L, x, y: F.grad_and_value(lambda t: (t.exp().sum(), {"a": t}), has_aux=True)(
        x
    ),
    "nest": lambda F, L, x, y: F.grad(loss)({"w": x, "b": y}, y),
    "constant": lambda F, L, x, y: F.grad(lambda t: y.sum())(x),
    "of what requires grad": lambda F, L, x, y: F.grad(lambda t: t.pow(3).sum())(x.clone().requires_grad_()),
    "no scalar": lambda F, L, x, y: F.grad(lambda t: t * 2)(x),
    "no tensor": lambda F, L, x, y: F.grad(lambda t: 3)(x),
    "argument that is not there": lambda F, L, x, y: F.grad(lambda t: t.sum(), argnums=1)(x),
    "argument twice": lambda F, L, x, y: F.grad(lambda t: t.sum(), argnums=(0, 0))(x),
    "vjp": lambda F, L, x, y: (lambda out, back: [out, back(y)])(*F.vjp(lambda t: t.sin(), x)),
    "vjp of two": lambda F, L, x, y: (lambda out, back: [out, back((y, x))])(
        *F.vjp(lambda a, b: (a * b, a), x, y)
    ),
    "jacrev": lambda F, L, x, y: F.jacrev(lambda t: t.sin() * t.sum())(x),
    "jacrev of two": lambda F, L, x, y: F.jacrev(lambda a, b: a * b, argnums=(0, 1))(x, y),
    "jacrev and aux": lambda F, L, x, y: F.jacrev(lambda t: (t.sin(), t * 2), has_aux=True)(x),
    "jacfwd": lambda F, L, x, y: F.jacfwd(lambda t: t.sin() * t.sum())(x),
    "jvp": lambda F, L, x, y: F.jvp(lambda a, b: (a * b, b.exp()), (x, y), (y, x)),
    "jvp of a part": lambda F, L, x, y: F.jvp(lambda a, b: (a.sin(), y * 2), (x, y), (y, x)),
    "jvp and aux": lambda F, L, x, y: F.jvp(lambda a: (a.sin(), a + 1), (x,), (y,), has_aux=True),
    "jvp of other shapes": lambda F, L, x, y: F.jvp(lambda a: a.sin(), (x,), (y[:1],)),
    "jvp of no tuple": lambda F, L, x, y: F.jvp(lambda a: a.sin(), x, y),
    "hessian by hand": lambda F, L, x, y: F.jacrev(F.jacfwd(lambda t: t.pow(3).sum() * t.sum()))(x),
    "derivative along a gradient": lambda F, L, x, y: F.jvp(F.grad(lambda t: t.pow(3).sum()), (x,), (y,)),
    "linearize": lambda F, L, x, y: (lambda out, along: [out, along(y)])(*F.linearize(lambda t: t.sin(), x)),
    "jacrev of a nest": lambda F, L, x, y: F.jacrev(lambda p, t: t @ p["w"] + p["b"])({"w": x, "b": y[0]}, x),
    "jacrev to a nest": lambda F, L, x, y: F.jacrev(lambda t: {"a": t * 2, "b": [t.sum()]})(x),
    "jacrev of and to nests": lambda F, L, x, y: F.jacrev(
        lambda a, p: (a * p["b"], {"c": p["w"]}), argnums=(1, 0)
    )(x, {"w": x, "b": y}),
    "jacfwd of a nest": lambda F, L, x, y: F.jacfwd(lambda p: p["w"] * p["b"])({"w": x, "b": y}),
    "jacrev of samples": lambda F, L, x, y: F.vmap(F.jacrev(lambda p, t: t * p["w"]), (None, 0))({"w": x}, y),
    "jacrev of a number": lambda F, L, x, y: F.jacrev(lambda t: t * 2)(3.0),
    "jacrev to a number": lambda F, L, x, y: F.jacrev(lambda t: 3.0)(x),
    "hessian of a nest": lambda F, L, x, y: F.hessian(lambda p: p["w"].pow(2).sum() * p["b"].sum())(
        {"w": x, "b": y}
    ),
    "jacrev around a parameter": lambda F, L, x, y: (lambda w: F.jacrev(lambda t: t * w)(x))(
        y.clone().requires_grad_()
    ),
    "jacrev around a parameter, unrecorded": lambda F, L, x, y: (
        lambda w: L.no_grad()(lambda: F.jacrev(lambda t: t * w)(x))()
    )(y.clone().requires_grad_()),
    "hessian around a parameter": lambda F, L, x, y: (lambda w: F.hessian(lambda t: (t.pow(3) * w).sum())(x))(
        y.clone().requires_grad_()
    ),
    "vjp around a parameter": lambda F, L, x, y: (lambda w: F.vjp(lambda t: t * w, x)[1](x))(
        y.clone().requires_grad_()
    ),
    "gradients of a residual": lambda F, L, x, y: (
        lambda w: L.autograd.grad(F.hessian(lambda t: (w * t).sin().sum())(x).pow(2).sum(), w)
    )(y.clone().requires_grad_()),
    "vjp of what requires grad": lambda F, L, x, y: F.vjp(lambda t: t.sin(), y.clone().requires_grad_())[1](
        x
    ),
    "argument by name": lambda F, L, x, y: F.grad(lambda t: t.sum(), argnums="t")(x),
    "arguments in a list": lambda F, L, x, y: F.grad(lambda a, b: (a * b).sum(), argnums=[0, 1])(x, y),
    "jvp to a number": lambda F, L, x, y: F.jvp(lambda t: 3, (x,), (y,)),
    "jvp of nothing": lambda F, L, x, y: F.jvp(lambda: x, (), ()),
    "call with no dict": lambda F, L, x, y: F.functional_call(L.nn.Linear(2, 1), 3, x),
    "grad of a number": lambda F, L, x, y: F.grad(lambda t: t * t)(3.0),
    "vjp of a number": lambda F, L, x, y: F.vjp(lambda t: t * x, 3.0)[0],
    "vjp to a number": lambda F, L, x, y: F.vjp(lambda t: 3.0, x)[0],
    "vmap with keywords": lambda F, L, x, y: F.vmap(lambda a, b, n: a * b.sum() + n)(x, b=y, n=3),
    "vmap of keywords alone": lambda F, L, x, y: F.vmap(lambda a: a)(a=x),
    "vmap": lambda F, L, x, y: F.vmap(lambda a, b: a * b)(x, y),
    "vmap over one": lambda F, L, x, y: F.vmap(lambda a, b: a * b, in_dims=(0, None))(x, y),
    "vmap with dims": lambda F, L, x, y: F.vmap(lambda a: a * y, in_dims=1, out_dims=1)(
        L.outer(x, y).expand(2, 2)
    ),
    "vmap of a nest": lambda F, L, x, y: F.vmap(lambda d: (d["a"] + d["b"], d["a"]))({"a": x, "b": y}),
    "vmap of a nest with dims": lambda F, L, x, y: F.vmap(
        lambda d, c: d["a"] + d["b"] * c, in_dims=({"a": 0, "b": None}, None)
    )({"a": x, "b": y}, 2.0),
    "vmap in vmap": lambda F, L, x, y: F.vmap(F.vmap(lambda a, b: a - b, (None, 0)), (0, None))(x, y),
    "gradients of samples": lambda F, L, x, y: F.vmap(F.grad(loss), in_dims=(None, 0))({"w": x, "b": y}, y),
    "vmap under a gradient": lambda F, L, x, y: F.grad(lambda t: F.vmap(lambda a: a.exp())(t).sum())(x),
    "vmap of two sizes": lambda F, L, x, y: F.vmap(lambda a, b: a * b)(x, y[:1]),
    "vmap over nothing": lambda F, L, x, y: F.vmap(lambda a: a, in_dims=None)(x),
    "vmap with too few dims": lambda F, L, x, y: F.vmap(lambda a, b: a, in_dims=(0,))(x, y),
    "vmap over a number": lambda F, L, x, y: F.vmap(lambda a: a)(3),
    "vmap beyond the dimensions": lambda F, L, x, y: F.vmap(lambda a: a, in_dims=2)(x),
    "vmap of no tensor": lambda F, L, x, y: F.vmap(lambda a: 3)(x),
    "vmap with random numbers": lambda F, L, x, y: F.vmap(lambda a: a * L.rand(()))(x),
    "vmap with other randomness": lambda F, L, x, y: F.vmap(lambda a: a, randomness="some")(x),
    "vmap in chunks": lambda F, L, x, y: F.vmap(lambda a: a * 2, chunk_size=1)(x),
    "vmap in no chunks": lambda F, L, x, y: F.vmap(lambda a: a * 2, chunk_size=0)(x),
    "hessian": lambda F, L, x, y: F.hessian(lambda t: t.pow(3).sum() * t.sum())(x),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_give_what_they_give_in_pytorch(name: str) -> None:
    def outcome(lib: Any) -> Any:
        F = importlib.import_module(f"{lib.__name__}.func")
        x = lib.tensor([0.3, -0.7], dtype=lib.float64)
        y = lib.tensor([1.5, 0.5], dtype=lib.float64)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return told(PROGRAMS[name](F, lib, x, y), lib.is_tensor)
        except (RuntimeError, ValueError) as error:
            return type(error)

    assert outcome(dt) == outcome(torch)


def test_a_module_is_called_with_other_parameters() -> None:
    def program(lib: Any) -> Any:
        F = importlib.import_module(f"{lib.__name__}.func")
        net = lib.nn.Sequential(lib.nn.Linear(2, 2), lib.nn.BatchNorm1d(2))
        given = {
            k: lib.full(tuple(v.shape), 0.5 + i).requires_grad_()
            for i, (k, v) in enumerate(net.named_parameters())
        }
        x = lib.arange(6.0).reshape(3, 2)
        out = F.functional_call(net, given, (x,))
        out.square().sum().backward()
        untouched = all(p.grad is None for p in net.parameters())
        return out.detach().numpy(), [g.grad.numpy() for g in given.values()], untouched

    ours, theirs = program(dt), program(torch)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    for a, b in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert ours[2] is theirs[2] is True


def test_gradients_of_a_module_as_a_function() -> None:
    net = nn.Linear(3, 1)
    x = dt.ones(4, 3)

    def loss_of(params: Any) -> Any:
        return dt.func.functional_call(net, params, x).square().mean()

    grads = dt.func.grad(loss_of)(dict(net.named_parameters()))
    net(x).square().mean().backward()

    for name, p in net.named_parameters():
        np.testing.assert_allclose(grads[name].detach().numpy(), p.grad.numpy(), rtol=1e-6)


def test_names_are_checked_and_everything_is_put_back() -> None:
    net = nn.Linear(2, 2)
    before = dict(net.named_parameters())
    call = dt.func.functional_call
    assert call(net, {"bogus": dt.ones(2)}, dt.ones(2)).tolist() == net(dt.ones(2)).tolist()  # as PyTorch
    with pytest.raises(RuntimeError, match=r"missing names \['bias'\]"):
        call(net, {"weight": dt.ones(2, 2)}, dt.ones(2), strict=True)
    with pytest.raises(ValueError, match=r"more than one of the dictionaries has \["):
        call(net, [{"weight": dt.ones(2, 2)}, {"weight": dt.ones(2, 2)}], dt.ones(2))
    with pytest.raises(RuntimeError):
        call(net, {"weight": dt.ones(2, 3)}, dt.ones(2))
    assert all(p is before[n] for n, p in net.named_parameters())


def test_tied_weights_are_replaced_together() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2, bias=False)
            self.b = nn.Linear(2, 2, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Any) -> Any:
            return self.b(self.a(x))

    net, two = Tied(), dt.eye(2) * 2
    call = dt.func.functional_call
    assert call(net, {"a.weight": two}, dt.ones(2)).tolist() == [4, 4]
    with pytest.raises(ValueError, match=r"different values for .*tied"):
        call(net, {"a.weight": two, "b.weight": two + 1}, dt.ones(2))


def test_an_ensemble_is_one_call() -> None:
    def program(lib: Any) -> Any:
        F = importlib.import_module(f"{lib.__name__}.func")
        nets = [lib.nn.Sequential(lib.nn.Linear(2, 3), lib.nn.BatchNorm1d(3)).eval() for _ in range(3)]
        for i, net in enumerate(nets):
            for p in net.parameters():
                p.data.fill_(0.5 + i)
        params, buffers = F.stack_module_state(nets)
        x = lib.arange(8.0).reshape(4, 2)
        out = F.vmap(lambda p, b: F.functional_call(nets[0], (p, b), (x,)))(params, buffers)
        out.sum().backward()
        return out.detach().numpy(), {k: v.grad.numpy() for k, v in params.items()}

    ours, theirs = program(dt), program(torch)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    for k, g in ours[1].items():
        np.testing.assert_allclose(g, theirs[1][k], rtol=1e-5)


def test_random_numbers_of_samples() -> None:
    draw, x = (lambda a: a + dt.rand(())), dt.zeros(3)

    dt.manual_seed(1)
    same = dt.func.vmap(draw, randomness="same")(x)
    dt.manual_seed(1)
    different = dt.func.vmap(draw, randomness="different")(x)

    assert len(set(same.tolist())) == 1
    assert len(set(different.tolist())) == 3


@pytest.mark.parametrize(
    ("nets", "what"),
    [
        ([], "there are no modules"),
        ([nn.Linear(1, 1), nn.Linear(1, 1).eval()], "some modules train"),
        ([nn.Linear(1, 1), nn.Identity()], "several classes"),
    ],
)
def test_modules_that_cannot_be_stacked(nets: Any, what: str) -> None:
    with pytest.raises(RuntimeError, match=what):
        dt.func.stack_module_state(nets)
