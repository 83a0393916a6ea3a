"""Writing down what a step computes while it runs, call by call; ``disttrain.plan`` makes a function of it.

A value (an array, nearly always) is known by its identity: it is one of the step's arguments, or some call on the tape
has made it. Any other array that a call gets was there before or was made by Python behind the tape's back; which of
the two shows when the step is written down a second time.
"""

from __future__ import annotations

import operator
import random
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import numpy as np

from disttrain import backward_pass, engine
from disttrain.autograd.anomaly_mode import Line, show_line, users_line
from disttrain.context import grad_enabled
from disttrain.errors import CaptureError
from disttrain.kernels import buffers
from disttrain.kernels.arrays import Array, is_array, on_gpu, owner
from disttrain.modes import changed
from disttrain.nn.parameter import Parameter
from disttrain.nodes import Node
from disttrain.ops import elementwise
from disttrain.ops.types import Op

UFUNCS: dict[Callable[..., Any], np.ufunc] = {
    operator.add: np.add,
    elementwise.add: np.add,
    elementwise.sub: np.subtract,
    elementwise.mul: np.multiply,
    elementwise.div: np.divide,
    elementwise.neg: np.negative,
    elementwise.abs: np.abs,
    elementwise.reciprocal: np.reciprocal,
    elementwise.exp: np.exp,
    elementwise.log: np.log,
    elementwise.log1p: np.log1p,
    elementwise.sqrt: np.sqrt,
    elementwise.sin: np.sin,
    elementwise.cos: np.cos,
    elementwise.maximum: np.maximum,
    elementwise.minimum: np.minimum,
    elementwise.eq: np.equal,
    elementwise.ne: np.not_equal,
    elementwise.lt: np.less,
    elementwise.le: np.less_equal,
    elementwise.gt: np.greater,
    elementwise.ge: np.greater_equal,
    elementwise.logical_and: np.logical_and,
    elementwise.logical_or: np.logical_or,
    elementwise.logical_not: np.logical_not,
}
"""Operations that on NumPy's arrays are nothing but a function of NumPy's, which writes where it is told."""


class Made(NamedTuple):
    """Stands for a value that is known: the step's argument, or what a call has made, of this number."""

    number: int


class AsTensor(NamedTuple):
    """Stands for a Tensor over the memory of an array that is known."""

    array: Made


@dataclass(slots=True)
class Call:
    """One call of a step. Wherever it was given or has returned a value that is known, :class:`Made` stands for it."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any]
    line: Line
    """The user's line that led to it."""
    out: Any = None
    """What it returns that others may need: ``Made``, tuples of it, ``None`` for the rest."""
    tensors: list[int] = field(default_factory=list)
    """Numbers of what it returns as Tensors, of which only the arrays are known."""
    scalars: list[int] = field(default_factory=list)
    """Numbers of what it may return as NumPy scalars, and is an array afterwards."""
    made: tuple[Any, ...] | None = None
    """Shape, type and order of axes in memory of its one result, where it is NumPy's function of ``UFUNCS``."""
    is_getter: bool = False
    """Whether it does nothing but return something."""
    is_python: bool = False
    """Whether it does more than arithmetic on arrays, and so is no part of a CUDA graph."""


class Tape:
    """Writes down one call of a step.

    Args:
        inputs: the arrays of the step's arguments.
    """

    def __init__(self, inputs: Sequence[Array]) -> None:
        self.calls: list[Call] = []
        self.is_on_gpu = False
        """Whether any of it is done by a GPU."""
        self.tensors: dict[int, Any] = {}
        """By id of its array, each Tensor that was used and that no call has made."""
        self.modules: dict[int, Any] = {}
        """By id, the modules that were called."""
        self.before: dict[int, Array] = {}
        """By id, what arrays that no call has made, and that are no parameter's, held when they were first used."""
        self.changed: set[int] = set()
        """Ids of the arrays whose memory was written."""
        self.guards: list[Callable[[BaseException], None]] = []
        """What is called with the error if a replay raises one."""
        self._known: dict[int, tuple[int, Any]] = {}
        """By id of a value its number, and a reference to it: weak if that can be, so that memory is freed as ever."""
        self._count = 0
        self._saved: tuple[list[int], list[Any], Line] = ([], [], ("", 0, ""))
        """The ids of what the last operation has saved, and what stands for that."""
        self._nodes: dict[Node, tuple[list[int], list[Any], Line]] = {}
        """The same for each operation that was recorded. Not what it saved, which backward frees."""
        self._of_formula: Line | None = None
        """The line of the operation whose gradient is being computed step by step."""
        self._drawn = _host_randomness()
        self._last: Line = users_line()
        self.inputs = [self._define(a) for a in inputs]
        self.results: list[Any] = []
        """What the step returns, as :meth:`use` says it."""

    # ------------------------------------------------------------------------------------------ values

    def _number(self) -> Made:
        self._count += 1
        return Made(self._count - 1)

    def _define(self, value: Any) -> Made:
        made = self._number()
        self.is_on_gpu |= on_gpu(value)
        try:
            reference: Any = weakref.ref(value)
        except TypeError:

            def reference(kept: Any = value) -> Any:
                return kept

        self._known[id(value)] = made.number, reference
        return made

    def _find(self, value: Any) -> Made | None:
        number, reference = self._known.get(id(value), (-1, None))
        return Made(number) if reference is not None and reference() is value else None

    def use(self, value: Any) -> Any:
        """Return what stands for ``value``: :class:`Made` for what is known, also inside containers; else itself."""
        if value is None or type(value) in (int, bool, str):
            return value
        found = self._find(value)
        if found is not None:
            return found
        if isinstance(value, engine.Tensor_):
            if isinstance(value, Parameter):
                return value
            array = self.use(value._array)
            return AsTensor(array) if type(array) is Made else value
        if is_array(value):
            if id(value) not in self.before:
                self.before[id(value)] = value.copy()
            return value
        if type(value) in (tuple, list):
            parts = [self.use(v) for v in value]
            return value if all(p is v for p, v in zip(parts, value, strict=True)) else type(value)(parts)
        if type(value) is dict:
            return {k: self.use(v) for k, v in value.items()}
        return value

    def _changes(self, value: Any) -> None:
        """Note that the memory of all arrays in ``value`` is written, or may be."""
        self.changed.update(id(owner(a)) for a in _arrays(value))

    def _line(self) -> Line:
        """Return the user's line, where Python must not have drawn random numbers since the last one.

        Raises:
            CaptureError: it has.
        """
        drawn, line = _host_randomness(), users_line()
        if drawn != self._drawn:
            raise CaptureError(
                f"a step cannot be captured: it draws random numbers with Python's or NumPy's generator, which a "
                f"replay would not draw again; use disttrain's. Between\n{show_line(self._last)}\nand\n"
                f"{show_line(line)}"
            )
        self._last = line
        return line

    def finish(self, results: Sequence[Array]) -> None:
        """Note what the step returns."""
        self._line()
        self.results = [self.use(a) for a in results]
        self._nodes.clear()
        self._known.clear()

    # ------------------------------------------------------------------------------------------ what is told

    def forward(
        self,
        op: Op,
        options: dict[str, Any],
        inputs: Sequence[Any],
        arrays: Sequence[Any],
        out: Any,
        saved: tuple[Any, ...],
    ) -> None:
        """Write down ``op(*arrays, **options)``, which has returned ``out`` and ``saved``."""
        for i, a in zip(inputs, arrays, strict=True):
            if isinstance(i, engine.Tensor_) and self._find(a) is None:
                self.tensors[id(a)] = i
                if isinstance(i, Parameter):
                    self.before.setdefault(id(a), a)
        line = self._line() if self._of_formula is None else self._of_formula
        call = Call(op, tuple(map(self.use, arrays)), self.use(options), line)
        self._changes(options)  # running values of a norm
        known = {id(a) for a in _arrays((arrays, options))}  # what an operation was given, it may hand back
        outs = [None if id(o) in known else self._define(o) for o in (out if type(out) is tuple else (out,))]
        call.scalars = [
            n.number
            for n, o in zip(outs, out if type(out) is tuple else (out,), strict=True)
            if n is not None and not o.ndim
        ]
        known |= {id(o) for o in (out if type(out) is tuple else (out,))}
        kept: list[Any] = []
        fresh: list[Made | None] = []
        for s in saved:
            if is_array(s) and id(s) in known:
                kept.append(self.use(s))
                fresh.append(None)
            else:
                kept.append(self._define(s) if is_array(s) else self._number())
                fresh.append(kept[-1])
        call.out = (tuple(outs) if type(out) is tuple else outs[0], tuple(fresh), None)
        call.made = _layout(op, out)
        self.calls.append(call)
        self._saved = list(map(id, saved)), kept, call.line

    def attach(self, node: Node) -> None:
        """Note that ``node`` is the record of the last operation."""
        self._nodes[node] = self._saved

    def gradients(
        self, node: Node, g: Any, needs: tuple[bool, ...], saved: tuple[Any, ...], into: Array | None
    ) -> Sequence[Any]:
        """Return the gradients of a node's arguments, and write down how they are made.

        A gradient that is a formula is written down operation by operation, so that each is one function of NumPy.
        """
        if node.vjp.__module__ != elementwise.__name__ or not getattr(g, "ndim", 0):
            grads: Sequence[Any] = node.vjp(g, needs, *saved, **({} if into is None else {"into": into}))
            self.backward(node, g, needs, saved, into, grads)
            return grads
        self._of_formula = self._nodes[node][2] if node in self._nodes else users_line()
        try:
            made = node.vjp(_tensor(g), needs, *map(_tensor, saved))
        finally:
            self._of_formula = None
        return [one._array if isinstance(one, engine.Tensor_) else one for one in made]

    def backward(
        self,
        node: Node,
        g: Any,
        needs: tuple[bool, ...],
        saved: tuple[Any, ...],
        into: Array | None,
        grads: Sequence[Any],
    ) -> None:
        """Write down ``node.vjp(g, needs, *saved, into=into)``, which has returned ``grads``."""
        before, numbers, line = self._nodes.get(node, ([], [], users_line()))
        kept = [
            numbers[i] if s is not None and i < len(before) and id(s) == before[i] else self.use(s)
            for i, s in enumerate(saved)
        ]
        options = {} if into is None else {"into": self.use(into)}
        call = Call(node.vjp, (self.use(g), needs, *kept), options, line)
        call.out = tuple([None if one is None else self._define(one) for one in grads])
        self.calls.append(call)

    def note(
        self, function: Callable[..., Any], args: tuple[Any, ...], out: Any = None, *, changes: Any = None
    ) -> None:
        """Write down ``function(*args)``, which the engine itself has done, and which made ``out``."""
        call = Call(function, tuple(map(self.use, args)), {}, users_line())
        self._changes(changes)
        if out is not None:
            call.out = self._define(out)
            call.scalars = [] if out.ndim else [call.out.number]
            call.made = _layout(function, out)
        self.calls.append(call)

    def accumulate(self, leaf: Any, g: Any) -> None:
        """Bring a gradient to its leaf, and write that down."""
        self.call(type(leaf)._accumulate, (leaf, g), {})
        if leaf._grad is not None:
            line = self.calls[-1].line
            for getter, value in ((_gradient, leaf._grad), (_gradient_array, leaf._grad._array)):
                self.calls.append(Call(getter, (leaf,), {}, line, self._define(value), is_getter=True))

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Return what a function returns that is called anew at each replay; write down nothing of what it does."""
        args = tuple(map(_listed, args))
        options = {name: _listed(value) for name, value in options.items()}
        call = Call(function, tuple(map(self.use, args)), self.use(options), self._line(), is_python=True)
        self.calls.append(call)
        self._changes(args)
        token = grad_enabled.set(changed(tape=None))
        try:
            result = function(*args, **options)
        finally:
            grad_enabled.reset(token)
        call.out = self._pattern(result, call, {id(a) for a in _arrays((args, options))})
        return result

    def on_error(self, function: Callable[[BaseException], None]) -> None:
        """Call ``function`` with the error if a replay raises one."""
        self.guards.append(function)

    def _pattern(self, result: Any, call: Call, given: set[int]) -> Any:
        if isinstance(result, engine.Tensor_):
            if id(result._array) in given:
                return None
            made = self._define(result._array)
            call.tensors.append(made.number)
            return made
        if is_array(result) or type(result) is float:
            return self._define(result)
        if type(result) in (tuple, list):
            return tuple([self._pattern(r, call, given) for r in result])
        return None

    def refuse(self, what: str) -> NoReturn:
        """Say what cannot be captured, and where.

        Raises:
            CaptureError: always.
        """
        raise CaptureError(f"a step cannot be captured: {what}\n{show_line(users_line())}")


def numbers(value: Any) -> Iterator[int]:
    """Yield the numbers of the known values in what :meth:`Tape.use` has returned."""
    if type(value) is Made:
        yield value.number
    elif type(value) is AsTensor:
        yield value.array.number
    elif type(value) in (tuple, list):
        for v in value:
            yield from numbers(v)
    elif type(value) is dict:
        yield from numbers(list(value.values()))


def last_uses(tape: Tape) -> dict[int, int]:
    """Return, for each known value that is used, the index of the last call that does; for results, one beyond."""
    last = {n: i for i, call in enumerate(tape.calls) for n in numbers((call.args, call.options))}
    return last | dict.fromkeys(numbers(tape.results), len(tape.calls))


def is_arithmetic(call: Call) -> bool:
    """Return whether all that a call does is done by the GPU, or needs to be done only once.

    So is the call that brings a gradient to a leaf that nobody watches.
    """
    if not call.is_python:
        return call.function not in (backward_pass.open_pass, backward_pass.close_pass)
    leaf = call.args[0] if call.args else None
    return (
        isinstance(leaf, engine.Tensor_)
        and call.function is type(leaf)._accumulate
        and not leaf._post_hooks
        and not leaf._after_hooks
    )


def idle_passes(calls: Sequence[Call]) -> set[int]:
    """Return the indices of calls that begin or end a backward pass in which Python does nothing."""
    idle: set[int] = set()
    begin: int | None = None
    for i, call in enumerate(calls):
        if call.function is backward_pass.open_pass:
            begin = i
        elif call.function is backward_pass.close_pass:
            if begin is not None:
                idle |= {begin, i}
            begin = None
        elif not is_arithmetic(call):
            begin = None
    return idle


def _tensor(value: Any) -> Any:
    return engine.Tensor_._of(value) if is_array(value) else value


def _layout(function: Callable[..., Any], out: Any) -> tuple[Any, ...] | None:
    """Return what to know of the result of NumPy's function of the same meaning, to make its memory beforehand."""
    if function not in UFUNCS or type(out) is not np.ndarray or not out.ndim:
        return None
    axes = buffers.order_of(out)
    return None if axes is None else (out.shape, out.dtype, axes)


def _host_randomness() -> tuple[Any, ...]:
    """Return the states of the generators that Python and NumPy share out."""
    _, key, position, *rest = np.random.get_state()
    return random.getstate(), bytes(np.asarray(key)), position, *rest


def _arrays(value: Any) -> Iterator[Array]:
    """Yield the arrays in containers, also those of Tensors."""
    if isinstance(value, engine.Tensor_):
        yield value._array
    elif is_array(value):
        yield value
    elif isinstance(value, tuple | list):
        for v in value:
            yield from _arrays(v)
    elif isinstance(value, dict):
        yield from _arrays(list(value.values()))


def _listed(value: Any) -> Any:
    """Return an iterator, ``model.parameters()`` say, as what can be gone through at each replay."""
    return list(value) if isinstance(value, Iterator) else value


def _gradient(leaf: Any) -> Any:
    return leaf._grad


def _gradient_array(leaf: Any) -> Array:
    return leaf._grad._array
