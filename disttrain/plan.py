"""What was written down of a step as one function in Python, without autograd: a line for each call of a kernel."""

from __future__ import annotations

import dataclasses
import itertools
import keyword
import linecache
import math
import os
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from disttrain import backward_pass, engine
from disttrain.arena import Arena
from disttrain.autograd.anomaly_mode import Line, show_line
from disttrain.cuda_graphs import CudaGraphs
from disttrain.errors import CaptureError
from disttrain.kernels import buffers
from disttrain.kernels.arrays import Array, is_array, owner, to_host
from disttrain.tape import UFUNCS, AsTensor, Call, Made, Tape, idle_passes, is_arithmetic, last_uses, numbers

_number = itertools.count(1).__next__


class Plan:
    """A step as a function of the arrays of its arguments.

    What a call was given is, if the same step was written down twice, one of three: a value that the step has made; an
    object that was there both times, which is used as it is then (a parameter's memory, an optimizer); or a constant
    that Python has made both times, and must have been equal.

    Args:
        first: the step written down.
        second: the same step with other arguments.

    Raises:
        CaptureError: they differ.
    """

    def __init__(self, first: Tape, second: Tape) -> None:
        self._tapes = first, second
        self._fresh: dict[int, Any] = {}
        """By id, tensors and constant arrays that Python made anew; of these, what they held at first."""
        self._compare(first, second)
        self._guards = second.guards
        del self._tapes
        self.source, names, self._lines = _write(second, self._fresh)
        file = self._file = os.path.join(os.path.dirname(__file__), f"captured step {_number()}")
        linecache.cache[file] = (len(self.source), None, self.source.splitlines(True), file)
        space = names | {"__name__": "disttrain.captured"}  # its warnings are ours
        exec(compile(self.source, file, "exec"), space)
        calls = (
            CudaGraphs(second, self._fresh)
            if second.is_on_gpu
            else Arena(np.errstate(all="ignore")(space["step"]))
        )
        self.run: Callable[..., tuple[Any, ...]] = calls.run
        """Takes the arrays of the arguments, and returns those of the results."""
        del self._fresh

    def explain(self, error: BaseException) -> None:
        """Call those who wait for an error of a replay, and add to it which line of the user's led to it."""
        for guard in self._guards:
            guard(error)
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == self._file:
                line = self._lines[trace.tb_lineno - 1]
                error.add_note(
                    f"in a replay of a captured step; the line that was captured:\n{show_line(line)}"
                )
                return
            trace = trace.tb_next

    # ------------------------------------------------------------------------------------------ twice the same

    def _compare(self, first: Tape, second: Tape) -> None:
        for a, b in zip(first.calls, second.calls, strict=False):
            if not _is_same_function(a.function, b.function) or a.line != b.line:
                raise CaptureError(
                    f"a step cannot be captured: two calls of it did different things, so that a replay would repeat "
                    f"what was right for one: {_name(a.function)}() in one call\n{show_line(a.line)}\nand "
                    f"{_name(b.function)}() in the next\n{show_line(b.line)}\nIs there an `if` on data, or on what "
                    f"Python counts?"
                )
            self._compare_values(b, (a.args, a.options), (b.args, b.options))
            if a.out != b.out:
                self._differ(b, "what it returns", a.out, b.out)
        if len(first.calls) != len(second.calls):
            more = max(first.calls, second.calls, key=len)[min(len(first.calls), len(second.calls))]
            raise CaptureError(
                f"a step cannot be captured: of two calls of it one did more, from {_name(more.function)}() on\n"
                f"{show_line(more.line)}"
            )
        last = second.calls[-1] if second.calls else Call(Plan, (), {}, ("", 0, ""))
        self._compare_values(last, first.results, second.results)

    def _compare_values(self, call: Call, a: Any, b: Any) -> None:
        """Raise CaptureError unless two values that a call was given are the same, or equal."""
        if a is b:
            return
        kind = type(b)
        if type(a) is not kind:
            self._differ(call, "an argument", a, b)
        elif kind in (Made, AsTensor):
            if a != b:
                self._differ(call, "which value it gets", a, b)
        elif is_array(b):
            if a.shape != b.shape or a.dtype != b.dtype:
                self._differ(call, "an array", a.shape, b.shape)
            a, held = (tape.before[id(x)] for tape, x in zip(self._tapes, (a, b), strict=True))
            if not _equal(a, held):
                self._differ(
                    call, f"an array of shape {list(b.shape)} that no tensor operation made", a, held
                )
            self._fresh[id(b)] = held
        elif isinstance(b, engine.Tensor_):
            self._compare_values(call, a._array, b._array)
            self._fresh[id(b)] = b
        elif isinstance(b, tuple | list):
            if len(a) != len(b):
                self._differ(call, "an argument", a, b)
            for x, y in zip(a, b, strict=True):
                self._compare_values(call, x, y)
        elif isinstance(b, dict):
            if a.keys() != b.keys():
                self._differ(call, "an argument", a, b)
            for name in b:
                self._compare_values(call, a[name], b[name])
        elif isinstance(b, types.FunctionType | types.MethodType):
            if not _is_same_function(a, b):
                self._differ(call, "a function", a, b)
        elif not (_is_equal(a, b) or (isinstance(b, float) and math.isnan(a) and math.isnan(b))):
            if not dataclasses.is_dataclass(b):
                self._differ(call, "a number" if isinstance(b, int | float) else "an argument", a, b)
            self._compare_values(call, vars(a), vars(b))

    def _differ(self, call: Call, what: str, a: Any, b: Any) -> None:
        raise CaptureError(
            f"a step cannot be captured: {what} differs between two calls of it, and a replay would repeat one of "
            f"them: {_name(call.function)}() got {_short(a)}, then {_short(b)}\n{show_line(call.line)}\nGive what "
            f"changes to the step as a tensor, or draw it with disttrain's random functions"
        )


def _is_same_function(a: Any, b: Any) -> bool:
    """Return whether two functions do the same: one code, over the same or equal values."""
    if a is b:
        return True
    if isinstance(a, types.MethodType) and isinstance(b, types.MethodType):
        return a.__self__ is b.__self__ and a.__func__ is b.__func__
    if not (isinstance(a, types.FunctionType) and isinstance(b, types.FunctionType)):
        return _is_equal(a, b)
    if a.__code__ is not b.__code__:
        return False
    mine, other = ([c.cell_contents for c in f.__closure__ or ()] for f in (a, b))
    return all(map(_is_equal, mine, other)) and _is_equal(a.__defaults__, b.__defaults__)


def _is_equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    try:
        return bool(a == b)
    except (TypeError, ValueError, RuntimeError):  # arrays, which do not say yes or no
        return False


def _equal(a: Array, b: Array) -> bool:
    """Return whether two arrays of one shape and type hold the same bits."""
    a, b = (np.ascontiguousarray(to_host(x)).reshape(-1).view(np.uint8) for x in (a, b))
    return np.array_equal(a, b)


def _short(value: Any) -> str:
    return " ".join(f"{value!r:.60}".split())


def _name(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


# ---------------------------------------------------------------------------------------------- in Python


def _write(tape: Tape, fresh: dict[int, Any]) -> tuple[str, dict[str, Any], list[Line]]:
    """Return the source of the function ``step``, the objects that it names, and the user's line for each of its own.

    Args:
        tape: what to repeat.
        fresh: see :class:`Plan`.
    """
    names = _Names(fresh, tape.changed)
    last = last_uses(tape)
    lines: list[tuple[str, Line]] = []
    where: Line = ("", 0, "")
    without = idle_passes(tape.calls)
    for i, call in enumerate(tape.calls):
        if i in without:
            continue
        made = [n for n in numbers(call.out) if n in last]
        if call.is_getter and not made:
            continue
        args = [names.of(a) for a in call.args] + [f"{k}={names.of(v)}" for k, v in call.options.items()]
        out = call.out
        if call.made is not None:
            args.append(f"out={names.memory(*call.made)}")
            out = out if type(out) is Made else out[0]
        right = f"{names.function(call)}({', '.join(args)})"
        new = [] if call.line == where else [f"# {os.path.basename(call.line[0])}:{call.line[1]}"]
        where = call.line
        new.append(_assignment(out, right, last))
        new += [f"v{n} = v{n}._array" for n in call.tensors if n in last]
        new += [f"v{n} = asarray(v{n})" for n in call.scalars if n in last]
        done = sorted({n for n in numbers((call.args, call.options)) if last[n] == i})
        if done:
            new.append("del " + ", ".join(f"v{n}" for n in done))
        lines += [(line, where) for line in new]
    results = "".join(f"{names.of(r)}, " for r in tape.results)
    head = f"def step({', '.join(f'v{m.number}' for m in tape.inputs)}):\n"
    first, final = [(line, where) for line in names.copies], [(f"return ({results})", where)]
    body = [*first, *lines, *final]
    source = head + "".join(f"    {line}\n" for line, _ in body)
    return source, names.objects, [where, *(line for _, line in body)]


def _assignment(out: Any, right: str, last: dict[int, int]) -> str:
    """Return a line that gives names to what of ``out`` is needed."""
    path = ""
    while type(out) is tuple:
        needed = [i for i, part in enumerate(out) if any(n in last for n in numbers(part))]
        if len(needed) != 1:
            break
        path, out = f"{path}[{needed[0]}]", out[needed[0]]
    if not any(n in last for n in numbers(out)):
        return right
    return f"{_targets(out, last)} = {right}{path}"


def _targets(out: Any, last: dict[int, int]) -> str:
    if type(out) is Made:
        return f"v{out.number}" if out.number in last else "_"
    if type(out) is tuple and any(n in last for n in numbers(out)):
        return f"({', '.join(_targets(part, last) for part in out)},)"
    return "_"


def _as_array(value: Any) -> Array:
    """Return an array for what NumPy has made a scalar of."""
    return value if is_array(value) else np.asarray(value)


class _Names:
    """The names of objects in the source."""

    def __init__(self, fresh: dict[int, Any], changed: set[int]) -> None:
        self.objects: dict[str, Any] = {
            "asarray": _as_array,
            "copy_of": buffers.copy,
            "empty": buffers.empty,
            "laid_out": buffers.laid_out,
            "tensor": engine.Tensor_._of,
            "step": None,
        }
        self.copies: list[str] = []
        """Lines that copy constants."""
        self._fresh, self._changed = fresh, changed
        self._of: dict[Any, str] = {}

    def of(self, value: Any) -> str:
        """Return an expression for an argument."""
        if type(value) is Made:
            return f"v{value.number}"
        if type(value) is AsTensor:
            return f"tensor(v{value.array.number})"
        if any(True for _ in numbers(value)):
            if type(value) is dict:
                return "{" + ", ".join(f"{k!r}: {self.of(v)}" for k, v in value.items()) + "}"
            parts = ", ".join(map(self.of, value))
            return f"[{parts}]" if type(value) is list else f"({parts},)"
        if (
            value is None
            or type(value) in (bool, int, str)
            or (type(value) is float and math.isfinite(value))
        ):
            return repr(value)
        if type(value) is tuple and all(type(v) in (bool, int) for v in value):
            return repr(value)
        if isinstance(value, engine.Tensor_) and id(value) in self._fresh:
            return f"tensor({self.of(value._array)})"
        if id(value) not in self._of:
            name = self._of[id(value)] = f"k{len(self._of)}"
            self.objects[name] = self._fresh.get(id(value), value)
            if (
                id(value) in self._fresh and id(owner(value)) in self._changed
            ):  # each replay begins with a copy
                self._of[id(value)] = f"c{name[1:]}"
                self.copies.append(f"c{name[1:]} = copy_of({name})")
        return self._of[id(value)]

    def memory(self, shape: tuple[int, ...], dtype: Any, axes: tuple[int, ...]) -> str:
        """Return an expression that makes the memory of an array, whose axes lie in this order."""
        kind = self.of(dtype)
        if axes == tuple(range(len(axes))):
            return f"empty({shape}, {kind})"
        return f"laid_out({shape}, {kind}, {axes})"

    def function(self, call: Call) -> str:
        """Return the name of a call's function: its own, if no other has it."""
        function = call.function if call.made is None else UFUNCS[call.function]
        # What may make other arrays each time, or keep them, has no part in the fixed memory.
        apart = call.function is not backward_pass.open_pass and not is_arithmetic(call)
        if (id(function), apart) not in self._of:
            name = _name(function)
            name = name if name.isidentifier() and not keyword.iskeyword(name) else "call"
            if name in self.objects:
                name = f"{name}_{len(self._of)}"
            self._of[id(function), apart] = name
            self.objects[name] = buffers.apart(function) if apart else function
        return self._of[id(function), apart]
