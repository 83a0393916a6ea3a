"""A captured step on a GPU: CUDA graphs, and between them the calls that Python makes anew.

The rules of stream capture are CUDA's (Programming Guide, "CUDA Graphs"): nothing may wait for the GPU, and memory
stays where it is. So arguments are copied into arrays of the graphs' own, what kernels allocate while they are captured
comes from a pool that nobody else gets memory of, and results are copied out.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from disttrain import engine, random
from disttrain.autograd.anomaly_mode import show_line
from disttrain.errors import CaptureError
from disttrain.gpu_memory import allocator
from disttrain.kernels.arrays import Array, copy_into, is_array, owner
from disttrain.tape import AsTensor, Call, Made, Tape, idle_passes, is_arithmetic, last_uses, numbers

_DRAWS = {
    inspect.unwrap(draw)
    for draw in (
        *(random.gpu_key, random.words64, random.bits32),
        *(random.kept, random.uniform, random.normal),
    )
}
"""What draws random numbers, as it stands on a tape: without :func:`disttrain.modes.replayed`."""


class CudaGraphs:
    """The calls of a step, to be captured when they are first run.

    Args:
        tape: what to repeat.
        fresh: by id, tensors and constant arrays that Python makes anew in each call; of these, what they hold.
    """

    def __init__(self, tape: Tape, fresh: dict[int, Any]) -> None:
        self._tape, self._fresh = tape, fresh
        self._last = last_uses(tape)
        self._values: dict[int, Any] = {}
        self._constants: dict[int, Array] = {}
        """By id of a constant array that Python makes anew, the one that the graphs have."""
        self._restored: list[tuple[Array, Array]] = []
        """Of these, those that the step changes, and what they hold before it."""
        self._inputs: list[Array] = []
        self._results: list[Array] = []
        self._steps: list[Callable[[], None]] = []
        """What a replay does: launches of graphs, and calls."""
        self._given: list[tuple[Any, Array | None]] = []
        """Leaves that get a gradient in the graph that is being captured, and where if they have no slot."""
        self._stream: Any = None
        self._is_captured = False

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        """Replay the step; capture it at the first call.

        Raises:
            CaptureError: something cannot be part of a CUDA graph; names the user's line.
        """
        if not self._is_captured:
            self._capture(arrays)
        else:
            for fixed, array in [*zip(self._inputs, arrays, strict=True), *self._restored]:
                copy_into(fixed, array)
            for step in self._steps:
                step()
        return tuple([r.copy() for r in self._results])

    def _capture(self, arrays: tuple[Array, ...]) -> None:
        cupy = sys.modules["cupy"]
        self._steps.clear()
        self._restored.clear()
        self._inputs = [a.copy() for a in arrays]
        self._values = {m.number: a for m, a in zip(self._tape.inputs, self._inputs, strict=True)}
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._pool = cupy.cuda.MemoryPool()
        calls, waiting = self._tape.calls, []
        without = idle_passes(calls)
        for i, call in enumerate(calls):
            if i in without:
                continue
            if is_arithmetic(call):
                waiting.append((i, call))
                continue
            if _is_draw(call):
                self._call(i, call)  # ahead of the arithmetic that waits, which it does not look at
                continue
            self._capture_graph(waiting)
            waiting = []
            self._call(i, call)
        self._capture_graph(waiting)
        self._results = [self._value(r) for r in self._tape.results]
        self._values.clear()
        self._constants.clear()
        self._is_captured = True

    def _capture_graph(self, calls: list[tuple[int, Call]]) -> None:
        """Capture calls as one graph, and launch it."""
        if not calls:
            return
        cupy = sys.modules["cupy"]
        self._given = []
        with cupy.cuda.using_allocator(allocator(cupy, self._pool)), self._stream:
            self._stream.begin_capture()
            try:
                for i, call in calls:
                    self._capture_call(i, call)
            except CaptureError:
                # What broke the rules has ended it already, which CUDA says again.
                with suppress(RuntimeError):
                    self._stream.end_capture()
                raise
            graph = self._stream.end_capture()
        launch = partial(_launch, graph, self._given)
        launch()
        self._steps.append(launch)

    def _capture_call(self, i: int, call: Call) -> None:
        args, options = self._value(call.args), self._value(call.options)
        if any(isinstance(self._values.get(n), float) for n in numbers((call.args, call.options))):
            self._refuse(call, "it gets a number that Python holds, which would be that of the first replay")
        gets = call.is_python and args[0]._grad is None
        try:
            result = call.function(*args, **options)
        except Exception as error:
            self._refuse(call, str(error), error)
        if gets:
            leaf = args[0]
            has_slot = leaf._slot is not None and leaf._grad._array is leaf._slot.array
            self._given.append((leaf, None if has_slot else leaf._grad._array))
        self._bind(call.out, result, call)
        self._forget(i, call)

    def _refuse(self, call: Call, why: str, error: Exception | None = None) -> None:
        raise CaptureError(
            f"{call.function.__name__}() cannot be a part of a CUDA graph: {why}\n{show_line(call.line)}"
        ) from error

    def _call(self, i: int, call: Call) -> None:
        """Make a call that Python makes anew, now and at each replay."""
        args, options = self._value(call.args), self._value(call.options)
        result = call.function(*args, **options)
        self._bind(call.out, result, call)
        fixed = [
            (n, self._values[n]) for n in numbers(call.out) if n in self._last and is_array(self._values[n])
        ]
        self._steps.append(partial(self._call_again, call, args, options, fixed))
        self._forget(i, call)

    def _call_again(self, call: Call, args: Any, options: Any, fixed: list[tuple[int, Array]]) -> None:
        self._bind(call.out, call.function(*args, **options), call)
        for n, array in fixed:
            copy_into(array, self._values.pop(n))

    # ------------------------------------------------------------------------------------------ values

    def _value(self, template: Any) -> Any:
        """Return a value for what stands for it on the tape."""
        kind = type(template)
        if kind is Made:
            return self._values[template.number]
        if kind is AsTensor:
            return engine.Tensor_._of(self._values[template.array.number])
        if kind in (tuple, list):
            return kind([self._value(t) for t in template])
        if kind is dict:
            return {k: self._value(t) for k, t in template.items()}
        if id(template) not in self._fresh:
            return template
        if isinstance(template, engine.Tensor_):
            return engine.Tensor_._of(self._value(template._array))
        held = self._fresh[id(template)]
        if id(template) not in self._constants:
            self._constants[id(template)] = constant = held.copy()
            if id(owner(template)) in self._tape.changed:
                self._restored.append((constant, held))
        return self._constants[id(template)]

    def _bind(self, out: Any, result: Any, call: Call) -> None:
        if type(out) is Made:
            self._values[out.number] = result._array if out.number in call.tensors else result
        elif type(out) is tuple:
            for part, one in zip(out, result, strict=False):
                self._bind(part, one, call)

    def _forget(self, i: int, call: Call) -> None:
        """Give the memory of what nobody needs any more back to the pool, for the calls that follow."""
        for n in {*numbers((call.args, call.options)), *numbers(call.out)}:
            if self._last.get(n, -1) <= i:
                self._values.pop(n, None)


def _is_draw(call: Call) -> bool:
    """Return whether a call draws random numbers and looks at nothing that the step computes."""
    return call.function in _DRAWS and not list(numbers((call.args, call.options)))


def _launch(graph: Any, leaves: list[tuple[Any, Array | None]]) -> None:
    """Launch a graph, and let Python know of the gradients that it has made."""
    graph.launch()
    for leaf, array in leaves:
        if leaf._grad is None and array is None:
            leaf._give_slot()
        elif leaf._grad is None:
            leaf._grad = engine.Tensor_._of(array)
