"""Full backward hooks: what watches the gradients that enter and leave a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from disttrain import engine
from disttrain.ops.types import Array, Result, is_array
from disttrain.tensors import Tensor

Grads = tuple[Any, ...]


class BackwardHooks:
    """One pass of a module whose gradients are watched.

    The module's arguments and its outputs each pass through one operation that changes nothing; backward reaches
    the one at the outputs first and the one at the arguments last, each with all gradients at once.
    """

    def __init__(
        self,
        module: Any,
        pre_hooks: dict[int, Callable[..., Any]],
        hooks: dict[int, Callable[..., Any]],
    ) -> None:
        self.module = module
        self.pre_hooks = list(pre_hooks.values())
        self.hooks = list(hooks.values())
        self.arguments = 0
        self.places: list[int] = []
        """Which arguments are watched."""
        self.grad_output: Grads = ()

    def watch_inputs(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments, those that want a gradient watched."""
        self.arguments = len(args)
        self.places = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]
        if not self.places or not engine.is_grad_enabled():
            self.places = []
            return args
        watched = engine.apply(watch, *[args[i] for i in self.places], seen=self._leave)
        replaced = dict(zip(self.places, watched, strict=True))
        return tuple(replaced.get(i, a) for i, a in enumerate(args))

    def watch_outputs(self, output: Any) -> Any:
        """Return the output, a Tensor or a tuple, list or dict of them, watched."""
        if isinstance(output, Tensor):
            return self._watch([output])[0]
        if isinstance(output, dict):
            return dict(zip(output, self._watch(list(output.values())), strict=True))
        if isinstance(output, tuple | list):
            watched = self._watch(list(output))
            return type(output)(*watched) if hasattr(output, "_fields") else type(output)(watched)
        return output

    def _watch(self, outputs: list[Any]) -> list[Any]:
        places = [i for i, o in enumerate(outputs) if isinstance(o, Tensor) and o.requires_grad]
        count = len(outputs)  # the hook must not hold the list: what it belongs to will be in it
        if places:
            watched = engine.apply(
                watch,
                *[outputs[i] for i in places],
                seen=lambda grads: self._enter(grads, places, count),
            )
            for i, o in zip(places, watched, strict=True):
                outputs[i] = o
        return outputs

    def _enter(self, grads: Grads, places: list[int], count: int) -> Grads:
        full = _scatter(grads, places, count)
        for hook in self.pre_hooks:
            full = _replaced(hook(self.module, full), full, "grad_output")
        self.grad_output = full
        if not self.places:  # nothing asks for the gradients of the arguments: this is the end
            self._run(tuple([None] * self.arguments))
        return tuple(full[i] for i in places)

    def _leave(self, grads: Grads) -> Grads:
        full = self._run(_scatter(grads, self.places, self.arguments))
        return tuple(full[i] for i in self.places)

    def _run(self, grad_input: Grads) -> Grads:
        for hook in self.hooks:
            grad_input = _replaced(hook(self.module, grad_input, self.grad_output), grad_input, "grad_input")
        return grad_input


def watch(*xs: Array, seen: Callable[[Grads], Grads]) -> Result:
    """Copies of ``xs``, whose gradients go through ``seen`` together.

    Copies, so that a module which changes its argument in place does not change what the hooks have not seen.
    """
    return tuple([x.copy() for x in xs]), (seen,), watch_vjp


def watch_vjp(g: Any, needs: tuple[bool, ...], seen: Callable[[Grads], Grads]) -> Grads:
    grads = tuple(g) if isinstance(g, tuple | list) else (g,)
    plain = any(is_array(v) for v in grads)
    result = seen(tuple(Tensor._of(v) if is_array(v) else v for v in grads))
    return tuple(v._array if plain and isinstance(v, Tensor) else v for v in result)


def _scatter(values: Grads, places: list[int], count: int) -> Grads:
    full = [None] * count
    for i, v in zip(places, values, strict=True):
        full[i] = v
    return tuple(full)


def _replaced(result: Any, before: Grads, what: str) -> Grads:
    if result is None:
        return before
    result = result if isinstance(result, tuple) else (result,)
    if len(result) != len(before):
        raise RuntimeError(
            f"a backward hook returned {len(result)} gradients for {what}, expected {len(before)}"
        )
    return result  # type: ignore[no-any-return]
