"""Jacobians, Hessians and products with them, call by call against PyTorch."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

import disttrain as dt

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")

CALLS = """
A.jacobian(f1,x) | A.jacobian(f1,x,create_graph=True) | A.jacobian(f2,(x,y)) | A.jacobian(lambda x:(x,),x)
A.jacobian(lambda *a:a[0]*a[1],(x,y)) | A.jacobian(const,x) | A.jacobian(const,x,strict=True)
A.jacobian(lambda x:x*2,x,create_graph=True,strict=True) | A.jacobian(f1,x,vectorize=True) | A.jacobian(f1,3)
A.jacobian(lambda x:3,x) | A.jacobian(f1,[x]) | A.jacobian(f2,(x,y),strict=True) | A.jacobian(fs,x)
A.jacobian(lambda a:a*2,x[0]) | A.hessian(lambda a:a**3,x[0]) | A.jacobian(lambda *a:a,(x[0],x[1]))
A.jacobian(lambda x:x.reshape(1,2)*2,x) | A.hessian(fs,x)
A.jacobian(f1,y,create_graph=True)
A.hessian(fs2,(x,y)) | A.hessian(fs2,(x,y),create_graph=True) | A.hessian(f1,x)
A.hessian(lambda x:x.sum(),x) | A.hessian(lambda x:x.sum(),x,strict=True) | A.hessian(lambda x:y.sum(),x)
A.hessian(lambda x:y.sum(),x,strict=True) | A.hessian(lambda x:(x**2).sum().reshape(1),x)
A.hessian(lambda x:((x**2).sum(),),x) | A.hessian(lambda x:(x.sum(),x.sum()),x)
A.hessian(lambda x,y:(x**2).sum(),(x,y)) | A.hessian(fs,x,vectorize=True) | A.vjp(f1,x,y) | A.vjp(f1,x)
A.vjp(fs,x) | A.vjp(f2,(x,y),(y,c)) | A.vjp(f2,(x,y),y) | A.vjp(f1,x,T(1.)) | A.vjp(f1,x,y,create_graph=True)
A.vjp(const,x,y) | A.vjp(const,x,y,strict=True) | A.vjp(f1,x,(y,)) | A.vjp(lambda x,y:x*2,(x,y),y,strict=True)
A.vjp(f1,y,x) | A.vjp(f1,y,x,create_graph=True) | A.jvp(f1,x,y) | A.jvp(f1,x) | A.jvp(f2,(x,y),(y,y))
A.jvp(f1,c) | A.jvp(lambda x:(x**2,x),c,c) | A.jvp(f1,x,y,create_graph=True) | A.jvp(const,x,y)
A.jvp(const,x,y,strict=True) | A.jvp(f1,x,T(1.)) | A.jvp(f2,(x,y),(y,)) | A.jvp(lambda x:x*3,x,y)
A.jvp(lambda x:x*3,x,y,strict=True) | A.jvp(lambda x:x*3,x,y,strict=True,create_graph=True) | A.jvp(fs,x,y)
A.hvp(fs,x,y) | A.hvp(fs2,(x,y),(y,x)) | A.hvp(fs,x) | A.hvp(f1,x,y) | A.hvp(fs,x,y,create_graph=True)
A.hvp(lambda x:x.sum(),x,y) | A.hvp(lambda x:x.sum(),x,y,strict=True) | A.hvp(lambda x:c*1,x,y)
A.hvp(lambda x:c*1,x,y,strict=True) | A.hvp(fs,x,T(1.)) | A.hvp(fs,c) | A.vhp(fs,x,y) | A.vhp(fs2,(x,y),(y,x))
A.vhp(fs,x) | A.vhp(f1,x,y) | A.vhp(fs,x,y,create_graph=True) | A.vhp(lambda x:x.sum(),x,y)
A.vhp(lambda x:x.sum(),x,y,strict=True) | A.vhp(fs,c)
"""


def told(x: Any, is_tensor: Any) -> Any:
    if isinstance(x, list | tuple):
        return [told(e, is_tensor) for e in x]
    return (x.requires_grad, tuple(x.shape), x.detach().tolist()) if is_tensor(x) else x


def flat(x: Any, is_tensor: Any) -> list[Any]:
    if isinstance(x, list | tuple):
        return [t for e in x for t in flat(e, is_tensor)]
    return [x]


def outcome(lib: Any, call: str) -> Any:
    def T(*values: float, **options: Any) -> Any:
        return lib.tensor(list(values), dtype=lib.float64, **options)

    x, y = T(0.3, 0.7, requires_grad=True), T(1.0, 2.0)
    names = {
        "A": importlib.import_module(f"{lib.__name__}.autograd.functional"),
        "L": lib,
        "T": T,
        "x": x,
        "y": y,
        "c": lib.tensor(2.0, dtype=lib.float64),
        "f1": lambda x: (x * x).sin(),
        "f2": lambda x, y: (x * y, x.sum()),
        "fs": lambda x: (x**3).sum(),
        "fs2": lambda x, y: (x**2 * y**3).sum(),
        "const": lambda x: y,
    }
    try:
        result = eval(call, names)
    except Exception as e:
        return RuntimeError if isinstance(e, RuntimeError) else type(e)
    again = None
    if "create_graph=True" in call:
        roots = [t.sum() for t in flat(result, lib.is_tensor) if t.requires_grad]
        if roots:
            again = lib.autograd.grad(sum(roots), x, allow_unused=True)
    return told([result, again], lib.is_tensor)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return bool(np.isclose(a, b, rtol=1e-10, atol=1e-12))
    return type(a) is type(b) and bool(a == b)


@pytest.mark.parametrize("call", [c.strip() for c in CALLS.replace("\n", "|").split("|") if c.strip()])
def test_calls_give_what_they_give_in_pytorch(call: str) -> None:
    ours, theirs = outcome(dt, call), outcome(torch, call)

    assert same(ours, theirs), f"{ours}, PyTorch {theirs}"


def test_forward_mode_is_taken_where_pytorch_takes_it() -> None:
    with pytest.raises(NotImplementedError, match="reverse-mode"):
        dt.autograd.functional.jacobian(lambda x: x, dt.ones(2), strategy="forward-mode")
    with pytest.raises(NotImplementedError, match="create_graph"):
        dt.autograd.functional.jacobian(
            lambda x: x, dt.ones(2), create_graph=True, vectorize=True, strategy="forward-mode"
        )
    with pytest.raises(ValueError, match="sideways"):
        dt.autograd.functional.jacobian(lambda x: x, dt.ones(2), strategy="sideways")
    (rows,) = dt.autograd.functional.jacobian(
        lambda x: (x * x,), dt.tensor([1.0, 2.0]), vectorize=True, strategy="forward-mode"
    )
    assert rows.tolist() == [[2, 0], [0, 4]]
