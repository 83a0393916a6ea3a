"""One comparison with PyTorch for all tables of cases in this folder.

A case is ``(args, kwargs)`` of one call, with arrays where the call takes tensors. The same call runs on
PyTorch and on disttrain, as a function and as a method of its first tensor; results, their types and shapes,
what is shared with the arguments, gradients, and what was written in place must agree, or both must refuse.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import disttrain as dt
from disttrain import engine
from disttrain.testing import check_vjp

ROUNDING = {"float64": 1e-12, "float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}
"""Largest difference by type, relative and absolute: a few units in the last place."""


@dataclass
class Library:
    """PyTorch or disttrain, and what differs between the two in writing a case."""

    module: Any
    from_array: Callable[[np.ndarray[Any, Any]], Any]
    to_array: Callable[[Any], np.ndarray[Any, Any]]
    grad: Callable[..., Any]
    tensors: list[Any] = field(default_factory=list)
    """All tensors made for the call that runs now, in their order."""

    def convert(self, x: Any) -> Any:
        """Return ``x`` with tensors for arrays and this library's dtypes for disttrain's."""
        if isinstance(x, np.ndarray):
            t = self.from_array(x)
            if x.dtype == np.float64:
                t.requires_grad_()
            self.tensors.append(t)
            return t
        if isinstance(x, dt.dtype):
            return getattr(self.module, x.name)
        if isinstance(x, list | tuple):
            return type(x)(self.convert(e) for e in x)
        if isinstance(x, dict):
            return {k: self.convert(v) for k, v in x.items()}
        return x


def _torch() -> Library:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")

    def from_array(a: np.ndarray[Any, Any]) -> Any:
        if a.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(a.astype(np.float32)).bfloat16()
        return torch.from_numpy(a.copy())

    def to_array(t: Any) -> np.ndarray[Any, Any]:
        t = t.detach().clone() if t._is_zerotensor() else t.detach()
        return t.float().numpy().astype(ml_dtypes.bfloat16) if t.dtype == torch.bfloat16 else t.numpy()

    return Library(torch, from_array, to_array, torch.autograd.grad)


def _ours() -> Library:
    return Library(dt, lambda a: dt.from_numpy(a.copy()), lambda t: t.detach().numpy(), dt.autograd.grad)


def tensors_in(result: Any) -> list[Any]:
    """Return the tensors of a result: itself, or those of a sequence."""
    if isinstance(result, list | tuple) and not isinstance(result, dt.Size):
        return [t for r in result for t in tensors_in(r)]
    return [result]


@dataclass
class Outcome:
    """What a call did."""

    error: Exception | None = None
    values: list[Any] = field(default_factory=list)
    after: list[Any] = field(default_factory=list)
    """The arguments after the call."""
    shares: list[bool] = field(default_factory=list)
    """For each result, whether it lies in the memory of an argument."""
    recorded: list[bool] = field(default_factory=list)
    grads: list[Any] = field(default_factory=list)


def _writes(name: str) -> bool:
    in_place_operator = name[:3] == "__i" and name not in ("__invert__", "__int__", "__index__", "__iter__")
    return (name.endswith("_") and not name.endswith("__")) or in_place_operator or name == "__setitem__"


def _run(lib: Library, name: str, as_method: bool, case: Any) -> Outcome:
    lib.tensors = []
    args, kwargs = copy.deepcopy(case)
    args, kwargs = lib.convert(args), lib.convert(kwargs)
    leaves = [t for t in lib.tensors if t.requires_grad]
    out, written = Outcome(), None
    try:
        with warnings.catch_warnings():
            if lib.module is not dt:
                warnings.simplefilter("ignore")
            if as_method:
                me, *rest = args
                if _writes(name):
                    written = me = me.clone() if me.requires_grad else me
                result = getattr(me, name)(*rest, **kwargs)
            else:
                result = getattr(lib.module, name)(*args, **kwargs)
    except Exception as e:
        out.error = e
        return out
    results = [*tensors_in(result), *([written] if written is not None else [])]
    is_tensor = lib.module.is_tensor
    out.values = [lib.to_array(r) if is_tensor(r) else r for r in results]
    out.after = [lib.to_array(t) for t in lib.tensors]
    for r in results:
        shared = is_tensor(r) and any(
            np.may_share_memory(lib.to_array(r), lib.to_array(t)) for t in lib.tensors
        )
        out.shares.append(
            bool(shared and r.dtype != lib.module.bfloat16)
        )  # which PyTorch cannot show as an array
        out.recorded.append(bool(is_tensor(r) and r.requires_grad))
    roots = [r for r in results if is_tensor(r) and r.requires_grad]
    if leaves and roots:
        rng = np.random.default_rng(1)
        weights = [lib.from_array(np.asarray(rng.standard_normal(tuple(r.shape)))).to(r.dtype) for r in roots]
        try:
            found = lib.grad(roots, leaves, weights, allow_unused=True)
        except RuntimeError as e:
            if lib.module is dt or not re.search(
                "is not implemented|bool tensor|INTERNAL ASSERT|invalid gradient", str(e)
            ):
                raise
            return out  # PyTorch has no derivative of some steps (ours is zero) and of a power of a boolean
        out.grads = [None if g is None else lib.to_array(g) for g in found]
    return out


def _show(x: Any) -> str:
    """Return an argument in few words: small arrays whole, larger ones by type and shape."""
    if isinstance(x, np.ndarray):
        values = np.array2string(x, precision=3, separator=",", floatmode="maxprec") if x.size <= 4 else ""
        return f"{x.dtype}{list(x.shape)}{values}"
    if isinstance(x, list | tuple):
        return f"[{', '.join(map(_show, x))}]"
    if isinstance(x, dict):
        return ", ".join(f"{k}={_show(v)}" for k, v in x.items())
    return repr(x)


def assert_same(ours: Any, theirs: Any, where: str, tolerance: float = 0) -> None:
    """Raise unless two results agree in kind, type, shape and value."""
    if theirs is None:
        assert ours is None or not np.any(ours), (
            f"{where}: {ours!r}, PyTorch None"
        )  # a zero it does not compute
        return
    if isinstance(theirs, bool | int | str):
        assert ours == theirs, f"{where}: {ours!r}, PyTorch {theirs!r}"
        assert type(ours) is type(theirs), f"{where}: {type(ours)}, PyTorch {type(theirs)}"
        return
    if not isinstance(theirs, np.ndarray):
        np.testing.assert_allclose(
            np.asarray(ours, float), np.asarray(theirs, float), err_msg=where, rtol=1e-6
        )
        return
    if ours is None and where.partition(": ")[2].startswith("gradient"):
        assert not np.any(theirs), f"{where}: None, PyTorch {theirs!r}"
        return
    assert isinstance(ours, np.ndarray), f"{where}: {ours!r}, PyTorch {theirs!r}"
    assert ours.dtype == theirs.dtype, f"{where}: {ours.dtype}, PyTorch {theirs.dtype}"
    assert ours.shape == theirs.shape, f"{where}: shape {ours.shape}, PyTorch {theirs.shape}"
    tol = max(tolerance, ROUNDING.get(ours.dtype.name, 0))
    if tol:
        ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
        np.testing.assert_allclose(ours, theirs, rtol=tol, atol=tol, err_msg=where)
    else:
        np.testing.assert_array_equal(ours, theirs, err_msg=where)


def same_family(ours: Exception, theirs: Exception) -> bool:
    """Return whether whoever catches PyTorch's exception catches ours."""
    if isinstance(theirs, NotImplementedError):  # a kernel that is missing for a type
        return isinstance(ours, RuntimeError | TypeError)
    return isinstance(ours, type(theirs))


def _check(torch: Library, ours: Library, name: str, case: Any, as_method: bool) -> None:
    where = f"{'Tensor.' if as_method else ''}{name}({', '.join(map(_show, case[0]))}, {_show(case[1])})"
    t, o = _run(torch, name, as_method, case), _run(ours, name, as_method, case)
    if t.error is not None:
        assert o.error is not None, f"{where}: gives {o.values!r}, PyTorch raises {t.error!r}"
        assert same_family(o.error, t.error), f"{where}: raises {o.error!r}, PyTorch {t.error!r}"
        assert len(str(o.error)) > 10, f"{where}: an error should say more than {o.error!r}"
        return
    if o.error is not None:
        raise AssertionError(f"{where}: raises {o.error!r}, PyTorch gives {t.values!r}") from o.error
    assert len(o.values) == len(t.values), f"{where}: {len(o.values)} results, PyTorch {len(t.values)}"
    for a, b in zip(o.values, t.values, strict=True):
        assert_same(a, b, where)
    for a, b in zip(o.after, t.after, strict=True):
        assert_same(a, b, f"{where}: argument afterwards")
    assert o.shares == t.shares, f"{where}: shares memory {o.shares}, PyTorch {t.shares}"
    assert o.recorded == t.recorded, f"{where}: requires_grad {o.recorded}, PyTorch {t.recorded}"
    used = [v for v in (*o.values, *o.after) if isinstance(v, np.ndarray)]
    coarsest = max((ROUNDING.get(v.dtype.name, 0) for v in used), default=0)
    for i, (a, b) in enumerate(zip(o.grads, t.grads or o.grads, strict=True)):
        assert_same(a, b, f"{where}: gradient {i}", 8 * coarsest)


@pytest.fixture(scope="session")
def against_torch() -> Callable[[str, Any], None]:
    """A function ``(name, cases)`` that compares the calls, as function and as method, with PyTorch's."""
    torch, ours = _torch(), _ours()

    def compare(name: str, cases: Any) -> None:
        method = hasattr(dt.Tensor, name.removeprefix("Tensor."))
        function = name in dt.__all__
        name = name.removeprefix("Tensor.")
        assert function or method, f"disttrain has no {name!r}"
        ran, failures = 0, []
        for case in cases:
            first = case[0][0] if case[0] else None
            for as_method in (False, True):  # a method that fails where the function fails is told once
                if not (method if as_method else function):
                    continue
                if as_method and (
                    not isinstance(first, np.ndarray) or not hasattr(torch.module.Tensor, name)
                ):
                    continue
                if not as_method and not hasattr(torch.module, name):
                    continue
                ran += 1
                try:
                    _check(torch, ours, name, case, as_method)
                except AssertionError as e:
                    failures.append(" ".join(str(e).split())[:700])
                    break
        assert ran, f"no case of {name} could run on PyTorch"
        if failures:
            shown = "\n".join(failures[:12])
            raise AssertionError(f"{len(failures)} of {ran} calls of {name} differ from PyTorch's:\n{shown}")

    return compare


@pytest.fixture(scope="session")
def differences() -> Callable[..., None]:
    """A function ``(op, *args, **options)`` that checks first and second derivatives by central differences."""

    def second(op: Any, *args: Any, **options: Any) -> None:
        rng = np.random.default_rng(2)
        floats = [i for i, a in enumerate(args) if isinstance(a, np.ndarray) and a.dtype == np.float64]
        out = op(*args, **options)[0]
        several = isinstance(out, tuple)
        outs = [np.asarray(o) for o in (out if several else (out,))]
        weights = [rng.standard_normal(o.shape) if o.dtype == np.float64 else None for o in outs]
        along = {i: rng.standard_normal(args[i].shape) for i in floats}

        def directional(*moved: Any) -> float:
            _, saved, vjp = op(*moved, **options)
            needs = tuple(i in along for i in range(len(args)))
            grads = vjp(tuple(weights) if several else weights[0], needs, *saved)
            return float(
                sum(np.sum(np.broadcast_to(grads[i], np.shape(grads[i])) * along[i]) for i in floats)
            )

        tensors = [dt.Tensor._of(a.copy()).requires_grad_() if i in along else a for i, a in enumerate(args)]
        tensors = [dt.Tensor._of(t) if isinstance(t, np.ndarray) else t for t in tensors]
        result = engine.apply(op, *tensors, **options)
        roots = [
            (r, w) for r, w in zip(result if several else (result,), weights, strict=True) if w is not None
        ]
        leaves = [tensors[i] for i in floats]
        firsts = dt.autograd.grad(
            [r for r, _ in roots], leaves, [dt.Tensor._of(w) for _, w in roots], create_graph=True
        )
        total = sum((g * dt.Tensor._of(along[i])).sum() for g, i in zip(firsts, floats, strict=True))
        np.testing.assert_allclose(
            total.item(), directional(*args), rtol=1e-9, atol=1e-9, err_msg=op.__name__
        )
        if not total.requires_grad:
            seconds: Any = [None] * len(leaves)
        else:
            seconds = dt.autograd.grad(total, leaves, allow_unused=True)
        for i, g in zip(floats, seconds, strict=True):
            step = 1e-6 * rng.standard_normal(args[i].shape)
            up, down = ([a + s * step if j == i else a for j, a in enumerate(args)] for s in (1, -1))
            numeric = (directional(*up) - directional(*down)) / 2
            exact = 0.0 if g is None else float(np.sum(g.numpy() * step))
            np.testing.assert_allclose(
                exact,
                numeric,
                rtol=1e-4,
                atol=1e-11,
                err_msg=f"{op.__name__}: second derivative, argument {i}",
            )

    def check(op: Any, *args: Any, **options: Any) -> None:
        check_vjp(op, *args, **options)
        second(op, *args, **options)

    return check
