"""Modes against PyTorch's: what is recorded, and what inference tensors may do."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

import disttrain as dt

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")


def told(x: Any, is_tensor: Any) -> Any:
    if isinstance(x, list | tuple):
        return [told(e, is_tensor) for e in x]
    return (x.requires_grad, x.is_inference(), x.tolist()) if is_tensor(x) else x


def made(lib: Any) -> Any:
    with lib.inference_mode():
        return lib.ones(2)


def inside(lib: Any) -> Any:
    x = lib.ones(2)
    with lib.inference_mode():
        i = lib.ones(2)
        v = x[:1]
        x.add_(1)
        i.mul_(3)
        i.requires_grad_()
        return [
            i.is_inference(),
            v.is_inference(),
            i[:1].is_inference(),
            (i * 2).requires_grad,
            i.is_leaf,
            x,
            i.requires_grad,
        ]


def nested(lib: Any) -> Any:
    seen = []

    def look() -> None:
        r = (lib.ones(1, requires_grad=True) * 2).requires_grad
        seen.append((lib.is_grad_enabled(), lib.is_inference_mode_enabled(), r))

    with lib.inference_mode():
        look()
        with lib.enable_grad():
            look()
        with lib.inference_mode(False):
            look()
            with lib.no_grad():
                look()
        look()
    with lib.no_grad():
        with lib.inference_mode(False):
            look()
        with lib.inference_mode():
            look()
        look()
    with lib.inference_mode(mode=False):
        look()
    look()
    return seen


def decorated(lib: Any) -> Any:
    @lib.inference_mode()
    def called(t: Any) -> Any:
        return t * 2

    @lib.inference_mode
    def bare(t: Any) -> Any:
        return t * 2

    x = lib.ones(2, requires_grad=True)
    return called(x), bare(x), (x * 2).requires_grad, called.__name__


def generator(lib: Any) -> Any:
    @lib.no_grad()
    def steps() -> Any:
        sent = yield lib.is_grad_enabled()
        try:
            got = yield lib.is_grad_enabled(), sent
        except KeyError:
            got = "thrown", lib.is_grad_enabled()
        return got

    found = []
    for end in ("send", "throw"):
        it = steps()
        found += [next(it), lib.is_grad_enabled(), it.send(5), lib.is_grad_enabled()]
        try:
            it.send(7) if end == "send" else it.throw(KeyError())
        except StopIteration as e:
            found.append(e.value)
    return found


def class_decorated(lib: Any) -> Any:
    @lib.no_grad()
    class Holder:
        def __init__(self) -> None:
            self.enabled = lib.is_grad_enabled()

    return Holder().enabled, lib.is_grad_enabled()


PROGRAMS: dict[str, Any] = {
    "inside": inside,
    "nested": nested,
    "decorated": decorated,
    "generator": generator,
    "class": class_decorated,
    "change in place": lambda lib: made(lib).add_(1),
    "change of a view in place": lambda lib: made(lib)[:1].add_(1),
    "change in place under no_grad": lambda lib: under_no_grad(lib),
    "saved": lambda lib: made(lib) * lib.ones(2, requires_grad=True),
    "not saved": lambda lib: made(lib) + lib.ones(2, requires_grad=True),
    "saved by a Function": lambda lib: saved_by_function(lib),
    "version": lambda lib: made(lib)._version,
    "requires_grad_": lambda lib: made(lib).requires_grad_(),
    "requires_grad_(False)": lambda lib: made(lib).requires_grad_(False),
    "result outside": lambda lib: [made(lib) * 2, made(lib).clone(), made(lib)[:1], made(lib).detach()],
    "source of a change": lambda lib: lib.ones(2).add_(made(lib)),
    "set_grad_enabled of a number": lambda lib: lib.set_grad_enabled(1),
}


def under_no_grad(lib: Any) -> Any:
    with lib.no_grad():
        return made(lib).add_(1)


def saved_by_function(lib: Any) -> Any:
    class Keep(lib.autograd.Function):  # type: ignore[misc,name-defined]
        @staticmethod
        def forward(ctx: Any, a: Any, b: Any) -> Any:
            ctx.save_for_backward(b)
            return a * 2

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g, None

    return Keep.apply(lib.ones(2, requires_grad=True), made(lib))


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_tell_what_they_tell_in_pytorch(name: str) -> None:
    def outcome(lib: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return told(PROGRAMS[name](lib), lib.is_tensor)
        except Exception as e:
            return RuntimeError if isinstance(e, RuntimeError) else type(e)

    assert outcome(dt) == outcome(torch)


def test_errors_of_inference_tensors_name_the_cure() -> None:
    with pytest.raises(RuntimeError, match=r"mul has to keep its argument 0.*inference_mode\(\); clone\(\)"):
        made(dt) * dt.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"cannot be changed in place.*inference_mode\(\).*clone\(\)"):
        made(dt).add_(1)
