"""Parameters of one type laid end to end in one buffer, so that an optimizer steps over all of them at once.

The order is the reverse of the parameters': backward makes gradients in about that order, and the buckets of
data parallelism lie so too. Nobody owns a parameter's memory for ever: what somebody else moved is taken back
at the next step.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from disttrain.backward_pass import Slot
from disttrain.defaults import get_default_dtype
from disttrain.kernels import pages
from disttrain.kernels.arrays import Array, get_array_module, on_gpu, to_host
from disttrain.kernels.optim.common import Extras
from disttrain.tensors import Tensor


@dataclass
class Run:
    """A stretch of neighbours, in the parameters' buffer and in that of the gradients, that step alike."""

    param: Array
    grad: Array
    state: dict[str, Array]
    scalars: dict[str, float]
    """State that is one number for each parameter, of them all the same; written back after the step."""
    scalar_type: Any
    """In which these numbers are kept."""
    fresh: bool
    """Whether the parameters' state has just been made."""
    bounds: list[int]
    """Where the parameters begin and end in the whole buffer."""
    extras: Extras | None = None
    """What the step does besides, of optimizers that can."""

    @property
    def ends(self) -> list[int]:
        """Where each parameter ends in ``param``."""
        begin = self.bounds[0]
        return [bound - begin for bound in self.bounds[1:]]


MASTER = "master"
"""The state that is a parameter in half precision before it was rounded."""
_ALONE = 2
"""References to an array that nobody but its tensor has: the tensor's, and that of the argument."""


def group_by_memory(params: Sequence[Tensor]) -> list[FlatParameters]:
    """Return the parameters by type and device, those apart whose memory somebody else has too.

    Such memory (of a state dict that was taken before, of weights that share it through ``data``) must stay what the
    parameter is. The arrays of an optimizer that is being replaced do not count.
    """
    flats: dict[Any, list[Tensor]] = {}
    seen: set[int] = set()
    for i, p in enumerate(params):
        shared = sys.getrefcount(p._array) > _ALONE + (p._array.base is not None)
        again = i + 1 if id(p) in seen else 0  # given twice, it steps twice
        seen.add(id(p))
        flats.setdefault((p._array.dtype, str(p.device), id(p) if shared else 0, again), []).append(p)
    return [FlatParameters(flat) for flat in flats.values()]


class FlatParameters:
    """Parameters (all of one dtype, on one device) as views of one buffer; a lone one keeps its own memory.

    Args:
        params: leaf tensors; laid down in reverse order.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params = list(params)[::-1]
        first = self.params[0]._array
        ends = np.cumsum([0, *[p.numel() for p in self.params]])
        self.begins = [int(b) for b in ends]
        self.array: Array
        self.views: list[Array]
        self.home: Array = None
        """Memory of a lone parameter that is not contiguous: each step is made in ``array`` and copied there."""
        if len(self.params) == 1:
            self.views = [first]
            if first.flags.c_contiguous:
                self.array = first.reshape(-1)
            else:
                self.home = first
                self.array = get_array_module(first).empty(first.size, first.dtype)
        else:
            self.array = pages.zeros(int(ends[-1]), first.dtype, first)
            self.views = [
                self.array[a:b].reshape(p.shape)
                for p, a, b in zip(self.params, self.begins, self.begins[1:], strict=False)
            ]
        self.state: dict[str, Array] = {}
        """Buffers of the optimizer, of the size and order of ``array``, or of one number for each parameter."""
        self.places: dict[str, list[Array]] = {}
        """By name of a state, the part of its buffer that belongs to each parameter."""
        self._named: Any = ((), ())
        self._parts: list[tuple[str, list[Array]]] = []
        self._held: list[Array] = []
        """The arrays of ``_parts``, parameter by parameter: what ``state`` holds if nobody has touched it."""
        self._slots: list[Slot | None] = []
        self._neighbours: list[Slot] = []
        """``_slots`` if they lie side by side in one buffer. Not their arrays: who refers to one holds the memory."""
        self.scalar_type = get_default_dtype().numpy.type
        self._skipped: Array = None
        """On a GPU, (1,) int32: how many steps were skipped that the numbers in ``state`` still count."""
        self._collect()
        self._give_slots()

    def _collect(self) -> None:
        """Move parameters that are elsewhere into the buffer."""
        if all(map(operator.is_, [p._array for p in self.params], self.views)):
            return
        for i, (p, view) in enumerate(zip(self.params, self.views, strict=True)):
            if p._array is view:
                continue
            if p._array.shape != view.shape or p._array.dtype != view.dtype:
                raise RuntimeError(
                    f"parameter {len(self.params) - 1 - i} was of shape {list(view.shape)} and {view.dtype} when the "
                    f"optimizer was made, and is now of shape {list(p.shape)} and {p._array.dtype}; make the "
                    f"optimizer after the change"
                )
            view[...] = p._array
            p._array = view

    def _give_slots(self) -> None:
        """Give a place for its gradient to each parameter that has none, in a buffer like that of the parameters."""
        if all(p._slot is not None for p in self.params):
            return
        grads = pages.zeros(self.array.size, self.array.dtype, self.array)
        for p, begin in zip(self.params, self.begins, strict=False):
            if p._slot is None:
                p._slot = Slot(grads, begin, p._array.shape)

    def _places(self, buffers: tuple[str, ...], scalars: tuple[str, ...]) -> list[tuple[str, list[Array]]]:
        """Return, for each state, the parts of its buffer that belong to each parameter."""
        if self._named != (buffers, scalars):
            self._named = (buffers, scalars)
            self._parts = [(n, self._place(n, True)) for n in scalars]
            self._parts += [(n, self._place(n, False)) for n in buffers]
            self._held = [parts[i] for i in range(len(self.params)) for _, parts in self._parts]
        return self._parts

    def _place(self, name: str, scalar: bool) -> list[Array]:
        """Return the parts of a state's buffer, which is made at its first use; float32 for half precision."""
        found = self.places.get(name)
        if found is None:
            if scalar:
                buffer = self.state[name] = np.zeros(len(self.params), self.scalar_type)
                found = [buffer[i : i + 1].reshape(()) for i in range(len(self.params))]
            else:
                kind = np.float32 if self.array.dtype.itemsize == 2 else self.array.dtype
                buffer = self.state[name] = pages.zeros(self.array.size, kind, self.array)
                found = [
                    buffer[a:b].reshape(p.shape)
                    for p, a, b in zip(self.params, self.begins, self.begins[1:], strict=False)
                ]
            self.places[name] = found
        return found

    def _take_state(
        self,
        i: int,
        state: dict[str, Any],
        places: list[tuple[str, list[Array]]],
        group: dict[str, Any],
        initial: Callable[[dict[str, Any], str], float],
    ) -> bool:
        """Let the state of a parameter be in the buffers; return whether a part of it had to be made."""
        fresh = False
        for name, parts in places:
            held, part = state.get(name), parts[i]
            if isinstance(held, Tensor) and held._array is part:
                continue
            if held is None and name == MASTER:
                part[...] = self.params[i]._array
            elif held is None:
                part[...] = initial(group, name)
                fresh = True
            elif isinstance(held, Tensor):
                part[...] = to_host(held._array) if isinstance(part, np.ndarray) else held._array
            else:  # a number, as PyTorch's optimizers once kept their steps
                part[...] = held
            state[name] = Tensor._of(part)
        return fresh

    def make_state(
        self,
        state: dict[Any, dict[str, Any]],
        group: dict[str, Any],
        buffers: tuple[str, ...],
        scalars: tuple[str, ...],
        initial: Callable[[dict[str, Any], str], float],
    ) -> None:
        """Make the state of all parameters; see :meth:`runs`."""
        places = self._places(buffers, scalars)
        for i in reversed(range(len(self.params))):  # the order in which the parameters were given
            self._take_state(i, state[self.params[i]], places, group, initial)

    def runs(
        self,
        state: dict[Any, dict[str, Any]],
        group: dict[str, Any],
        buffers: tuple[str, ...],
        scalars: tuple[str, ...],
        initial: Callable[[dict[str, Any], str], float],
    ) -> Iterator[Run]:
        """Yield the parameters that have a gradient in as few stretches as can be; after each, keep its numbers.

        Args:
            state: of each parameter, by name.
            group: options.
            buffers: names of the state that is of the size of the parameters.
            scalars: names of the state that is one number for each parameter.
            initial: what state is filled with, by group and name.
        """
        self._collect()
        if self.home is not None:
            self.array.reshape(self.home.shape)[...] = self.home
        places = self._places(buffers, scalars)
        numbers = [self.state[n].tolist() for n in scalars]
        if self._is_whole(state):
            for p in self.params:
                p._version_counter[0] += 1
            if all(values.count(values[0]) == len(values) for values in numbers):
                slot = self._slots[-1]
                assert slot is not None
                end, last = slot.offset + slot.array.size, len(self.params) - 1
                yield from self._run(0, last, slot.flat, end, numbers, False, buffers, scalars)
                return
        else:
            for p in reversed(self.params):
                if p._grad is not None:
                    p._version_counter[0] += 1
                    if places and p not in state:  # in the order in which the parameters were given
                        state[p] = {}
        self._give_slots()
        begins = self.begins
        first = last = -1
        together = fresh = False
        flat: Array = None
        flat_end = 0
        for i, p in enumerate(self.params):
            grad, slot = p._grad, p._slot
            if grad is None:
                continue
            assert slot is not None
            if grad._array is slot.array:
                source, offset = slot.flat, slot.offset
            else:  # put there by the user, who may have kept what is in the slot
                source, offset = get_array_module(grad._array).ascontiguousarray(grad._array).reshape(-1), 0
            made = False
            if places:
                mine = state[p]
                for name, parts in places:
                    held = mine.get(name)
                    if held.__class__ is not Tensor or held._array is not parts[i]:
                        made = self._take_state(i, mine, places, group, initial)
                        for values, n in zip(numbers, scalars, strict=True):
                            values[i] = float(self.state[n][i])
                        break
            if last >= 0:
                together = i == last + 1 and source is flat and offset == flat_end and made is fresh
                for values in numbers:
                    together = together and values[i] == values[first]
                if not together:
                    yield from self._run(first, last, flat, flat_end, numbers, fresh, buffers, scalars)
            if not together:
                first, fresh = i, made
            last = i
            flat, flat_end = source, offset + begins[i + 1] - begins[i]
        if last >= 0:
            yield from self._run(first, last, flat, flat_end, numbers, fresh, buffers, scalars)

    def _is_whole(self, state: dict[Any, dict[str, Any]]) -> bool:
        """Return whether all gradients lie side by side, and all state where it was put: one stretch, at once.

        This is nearly every step, and quick: the loops are list comprehensions.
        """
        slots = [p._slot for p in self.params]
        if not self._slots or not all(
            map(operator.is_, slots, self._slots)
        ):  # a parallel wrapper gave others
            self._slots, self._neighbours = slots, []
            first = slots[0]
            if first is not None and all(
                s is not None and s.flat is first.flat and s.offset - first.offset == begin
                for s, begin in zip(slots, self.begins, strict=False)
            ):
                self._neighbours = [s for s in slots if s is not None]
        if not self._neighbours:
            return False
        try:
            held: list[Any] = [p._grad._array for p in self.params]  # type: ignore[union-attr]
            if not all(map(operator.is_, held, [s.array for s in self._neighbours])):
                return False
            if not self._held:
                return True
            held = [t._array for p in self.params for t in state[p].values()]
        except AttributeError:  # a gradient is None, or something in the state is no Tensor
            return False
        return len(held) == len(self._held) and all(map(operator.is_, held, self._held))

    def grads(self) -> list[Array]:
        """Return the memory of all gradients, those side by side as one flat array."""
        found: list[Array] = []
        flat: Array = None
        begin = end = 0
        for p in self.params:
            grad, slot = p._grad, p._slot
            if grad is None:
                continue
            if slot is None or grad._array is not slot.array:
                found.append(grad._array)
                continue
            if flat is not slot.flat or slot.offset != end:
                if end > begin:
                    found.append(flat[begin:end])
                flat, begin = slot.flat, slot.offset
            end = slot.offset + slot.array.size
        return [*found, flat[begin:end]] if end > begin else found

    def skipping(
        self, state: dict[Any, dict[str, Any]], buffers: tuple[str, ...], scalars: tuple[str, ...]
    ) -> Array | None:
        """Return where a GPU counts steps that it skips; None where that must be known here, as in the first step.

        All parameters must step, and must have stepped, together.
        """
        self._places(buffers, scalars)
        if not on_gpu(self.array) or self.home is not None or not self._is_whole(state):
            return None
        if any((self.state[n] != self.state[n][0]).any() for n in scalars):
            return None
        if self._skipped is None:
            self._skipped = get_array_module(self.array).zeros(1, np.int32)
        return self._skipped

    def settle(self) -> None:
        """Take the steps that a GPU has skipped from those that were counted here; waits for it."""
        if self._skipped is not None:
            if "step" in self.state:
                self.state["step"] -= self.state["step"].dtype.type(to_host(self._skipped)[0])
            self._skipped = None

    def _run(
        self,
        first: int,
        last: int,
        flat: Array,
        flat_end: int,
        numbers: list[list[float]],
        fresh: bool,
        buffers: tuple[str, ...],
        scalars: tuple[str, ...],
    ) -> Iterator[Run]:
        begin, end = self.begins[first], self.begins[last + 1]
        part = slice(begin, end)
        run = Run(
            self.array[part],
            flat[flat_end - (end - begin) : flat_end],
            {name: self.state[name][part] for name in buffers},
            {name: values[first] for name, values in zip(scalars, numbers, strict=True)},
            self.scalar_type,
            fresh,
            self.begins[first : last + 2],
        )
        yield run
        for name, value in run.scalars.items():
            self.state[name][first : last + 1] = value
        if self.home is not None:
            self.home[...] = self.array.reshape(self.home.shape)
