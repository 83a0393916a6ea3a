"""``dt.graph(step)``: a training step that is captured once and replayed, as CUDA graphs are in PyTorch."""

from __future__ import annotations

import functools
import operator
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import numpy as np

from disttrain import backward_pass, context
from disttrain.context import autocast_state, grad_enabled
from disttrain.errors import CaptureError
from disttrain.kernels.arrays import Array, get_array_module, is_array
from disttrain.modes import changed, current_tape
from disttrain.nn.parameter import Parameter
from disttrain.plan import Plan
from disttrain.tape import Tape
from disttrain.tensors import Tensor

__all__ = ["Graph", "graph"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def graph(step: Callable[_P, _R], *, warmup: int = 1) -> Graph[_P, _R]:
    """Capture a training step, and replay it: the same numbers to the last bit, without the cost of autograd.

    Also a decorator. The first ``warmup`` calls run as ever, so that kernels are compiled and the optimizer has its
    state. The next two run as ever too, and are written down; what they had in common is the captured step. All
    later calls replay it: one call for each kernel, in the order of the first, and no tensors, graph nodes or checks
    between them.

    Replayed anew each time: random numbers, optimizers and schedulers, clipping, ``GradScaler``, gradients that
    reach their leaves and are averaged by ``DistributedDataParallel``. Repeated as it was: all that Python decided,
    by ``module.training`` or a number, say; :meth:`Graph.reset` forgets it.

    Args:
        step: computes, from tensors that do not require grad, with modules and optimizers that it refers to. It may
            return tensors, also in tuples, lists and dicts; they come back without history. What is not a tensor
            must be the same at every call.
        warmup: how many calls run before one is written down.

    Returns:
        A :class:`Graph`, which is called as ``step`` is.

    Raises:
        TypeError: ``step`` cannot be called.
        ValueError: ``warmup`` is negative.
    """
    return Graph(step, warmup)


class Graph(Generic[_P, _R]):
    """What :func:`graph` returns: a step that is captured at its first calls and replayed at all others.

    Ranks that are threads of one process capture a step that they share each on their own.

    Raises:
        CaptureError: from a call: the step does what cannot be captured, at the line that is named; or it is
            replayed with arguments of other shapes, in another mode, or with a parameter in other memory.
    """

    def __init__(self, step: Callable[_P, _R], warmup: int) -> None:
        if not callable(step):
            raise TypeError(f"graph() captures a function, got {type(step).__name__}: {step!r:.80}")
        if warmup < 0:
            raise ValueError(f"warmup must not be negative, got {warmup}")
        functools.update_wrapper(self, step)
        self._step = step
        self._warmup = warmup
        self._of_ranks: weakref.WeakKeyDictionary[context.RankContext, _Captured] = (
            weakref.WeakKeyDictionary()
        )

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        if current_tape() is not None:  # a part of another captured step
            return self._step(*args, **kwargs)
        rank = context.current()
        captured = self._of_ranks.get(rank)
        if captured is None:
            captured = self._of_ranks[rank] = _Captured(self._step, self._warmup)
        return captured(args, kwargs)  # type: ignore[no-any-return]

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """Return the step bound to an object, which captures on its own, where a method is decorated."""
        if instance is None:
            return self
        bound: Graph[..., Any] = Graph(functools.partial(self._step, instance), self._warmup)
        vars(instance)[self._step.__name__] = bound
        return bound

    def reset(self) -> None:
        """Forget what was captured: the next calls run, and are written down, as the first ones were."""
        self._of_ranks.clear()

    @property
    def is_captured(self) -> bool:
        """Whether the next call of this rank replays."""
        captured = self._of_ranks.get(context.current())
        return captured is not None and captured.plan is not None

    @property
    def source(self) -> str:
        """What a replay runs, as Python; empty before it is captured. With the lines of the step that led to it."""
        captured = self._of_ranks.get(context.current())
        return captured.plan.source if captured is not None and captured.plan is not None else ""


class _Captured:
    """One rank's capture of a step."""

    def __init__(self, step: Callable[..., Any], warmup: int) -> None:
        self._step = step
        self._left = warmup
        """How many calls are to run before one is written down."""
        self._first: tuple[Tape, _Shape, _Shape] | None = None
        self.plan: Plan | None = None
        self._plain: list[tuple[Any, ...]] = []
        """Shape, type and strides of the arrays of the arguments, if these are tensors and nothing else."""

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if (
            self._plain
            and not kwargs
            and len(args) == len(self._plain)
            and all(map(_is_like, args, self._plain))
        ):
            return self._replay([t._array for t in args])
        tensors: list[Tensor] = []
        given = _shape_of((args, kwargs), tensors)
        for t in tensors:
            if t._node is not None or t._requires_grad:
                raise CaptureError(
                    f"a captured step takes tensors that do not require grad, got one of shape {list(t.shape)} that "
                    f"does; detach() it"
                )
        if self.plan is not None:
            if given != self._given:
                raise CaptureError(_differs(self._given, given))
            return self._replay([_laid_out(t._array, s) for t, s in zip(tensors, self._strides, strict=True)])
        if self._left:
            self._left -= 1
            return _without_history(self._step(*args, **kwargs))
        return self._write_down(given, tensors, args, kwargs)

    def _write_down(
        self, given: _Shape, tensors: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        tape = Tape([t._array for t in tensors])
        mode = grad_enabled.set(changed(tape=tape))
        try:
            result = self._step(*args, **kwargs)
            results: list[Tensor] = []
            returned = _shape_of(result, results)
            tape.finish([t._array for t in results])
        finally:
            grad_enabled.reset(mode)
        if self._first is None:
            self._first = tape, given, returned
            return _without_history(result)
        first, given_first, returned_first = self._first
        self._first = None
        if given != given_first:
            raise CaptureError(_differs(given_first, given))
        if returned != returned_first:
            raise CaptureError(
                f"a step cannot be captured: it returned {returned_first}, then {returned}; return tensors of the same "
                f"shapes, and nothing else that changes"
            )
        self.plan = Plan(first, tape)
        self._given, self._returned = given, returned
        self._strides = [t._array.strides for t in tensors]
        plain = not kwargs and len(tensors) == len(args) and all(type(t) is Tensor for t in args)
        self._plain = [(a.shape, a.dtype, a.strides) for a in map(_array_of, args)] if plain else []
        self._mode = grad_enabled.get(), autocast_state.get()
        before = [
            t
            for i, t in tape.tensors.items()
            if i in first.tensors and first.tensors[i] is t and id(t._array) == i
        ]
        self._params = [t for t in before if isinstance(t, Parameter)]
        self._arrays = [t._array for t in self._params]
        self._learnt = [t._requires_grad for t in self._params]
        self._others = [(weakref.ref(t), t._array) for t in before if not isinstance(t, Parameter)]
        self._modules = list(tape.modules.values())
        self._training = [m.training for m in self._modules]
        return _without_history(result)

    def _replay(self, inputs: list[Array]) -> Any:
        plan = self.plan
        assert plan is not None
        if not all(map(operator.is_, map(_array_of, self._params), self._arrays)):
            moved = next(p for p, a in zip(self._params, self._arrays, strict=True) if p._array is not a)
            raise CaptureError(
                f"a parameter of shape {list(moved.shape)} has other memory than when the step was captured (it was "
                f"moved, converted, or given to another optimizer); call reset() to capture the step again"
            )
        for reference, array in self._others:
            t = reference()
            if t is None or t._array is not array:
                raise CaptureError(
                    f"a tensor of shape {list(array.shape)} that the captured step reads, and that is no argument of "
                    f"it, is gone or has other memory; give what changes as an argument, or call reset()"
                )
        if [p._requires_grad for p in self._params] != self._learnt:
            raise CaptureError(
                "another parameter requires grad than when the step was captured; call reset() to capture it again"
            )
        if [m.training for m in self._modules] != self._training:
            other = next(m for m, t in zip(self._modules, self._training, strict=True) if m.training != t)
            raise CaptureError(
                f"{type(other).__name__} was {'training' if not other.training else 'evaluating'} when the step "
                f"was captured, and is not now; capture another step for that, or call reset()"
            )
        if (grad_enabled.get(), autocast_state.get()) != self._mode:
            raise CaptureError(
                "a step is replayed in another mode (no_grad(), autocast() or their like) than it was captured in; "
                "enter it inside the step, or call reset()"
            )
        try:
            arrays = plan.run(*inputs)
        except BaseException as error:
            plan.explain(error)
            backward_pass.close_pass(error)
            raise
        return _fill(self._returned, iter([Tensor._of(a) for a in arrays]))


_array_of = operator.attrgetter("_array")


def _is_like(t: Any, known: tuple[Any, ...]) -> bool:
    """Return whether an argument is a tensor in main memory of this shape, type and strides, without a gradient."""
    if type(t) is not Tensor or t._node is not None or t._requires_grad:
        return False
    a = t._array
    return type(a) is np.ndarray and (a.shape, a.dtype, a.strides) == known


def _laid_out(array: Array, strides: tuple[int, ...]) -> Array:
    """Return ``array`` with the strides that it had when the step was captured."""
    if array.strides == strides:
        return array
    array = get_array_module(array).ascontiguousarray(array)
    if array.strides != strides:
        raise CaptureError(
            f"an argument of the captured step, of shape {list(array.shape)}, was not contiguous when it was captured "
            f"and lies otherwise in memory now; make it contiguous() outside"
        )
    return array


# ---------------------------------------------------------------------------------------------- what goes in and out


class _Leaf(NamedTuple):
    """Stands for a tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: str

    def __repr__(self) -> str:
        return f"a tensor {list(self.shape)} of {self.dtype}"


class _Container(NamedTuple):
    """Stands for a tuple, a list or a dict that has tensors somewhere in it."""

    kind: type
    keys: tuple[Any, ...]
    parts: tuple[Any, ...]

    def __repr__(self) -> str:
        names = [f"{k!r}: " for k in self.keys] or [""] * len(self.parts)
        inside = [f"{name}{part!r}" for name, part in zip(names, self.parts, strict=True)]
        return f"{self.kind.__name__}({', '.join(inside)})"


_Shape = Any
"""What :func:`_shape_of` returns."""


def _shape_of(value: Any, tensors: list[Tensor]) -> _Shape:
    """Return ``value`` with something in place of each tensor, and append these to ``tensors``."""
    if isinstance(value, Tensor):
        tensors.append(value)
        array = value._array
        return _Leaf(array.shape, array.dtype, "cpu" if type(array) is np.ndarray else str(value.device))
    kind = type(value)
    if kind is tuple or kind is list or isinstance(value, tuple):
        return _Container(kind, (), tuple([_shape_of(v, tensors) for v in value]))
    if kind is dict:
        return _Container(kind, tuple(value), tuple([_shape_of(v, tensors) for v in value.values()]))
    if is_array(value):
        raise CaptureError(
            f"a captured step takes and returns tensors, got an array of shape {list(value.shape)}; convert it with "
            f"disttrain.from_numpy()"
        )
    return value


def _fill(shape: _Shape, tensors: Iterator[Tensor]) -> Any:
    """Return what :func:`_shape_of` was given, with other tensors."""
    kind = type(shape)
    if kind is _Leaf:
        return next(tensors)
    if kind is not _Container:
        return shape
    parts = [_fill(part, tensors) for part in shape.parts]
    if shape.kind is dict:
        return dict(zip(shape.keys, parts, strict=True))
    return shape.kind(*parts) if hasattr(shape.kind, "_fields") else shape.kind(parts)


def _without_history(result: Any) -> Any:
    tensors: list[Tensor] = []
    shape = _shape_of(result, tensors)
    return _fill(shape, iter([t.detach() for t in tensors]))


def _differs(before: _Shape, now: _Shape) -> str:
    return (
        f"a captured step is called with {now.parts[0]!r} and {now.parts[1]!r}, and was captured with "
        f"{before.parts[0]!r} and {before.parts[1]!r}: shapes, types and all that is no tensor must stay; call "
        f"reset() to capture it again, or the function itself, __wrapped__, for a batch of another size"
    )
