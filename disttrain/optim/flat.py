"""Parameters of one type laid end to end in one buffer, so that an optimizer steps over all of them at once.

The order is the reverse of the parameters': backward makes gradients in about that order, and the buckets of
data parallelism lie so too. Nobody owns a parameter's memory for ever: what somebody else moved is taken back
at the next step.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain.engine import Slot
from disttrain.kernels.arrays import Array, get_array_module

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


@dataclass
class Run:
    """A stretch of neighbours, in the parameters' buffer and in that of the gradients, that step alike."""

    begin: int
    end: int
    grad: Array
    step: int
    """Number of the step that they are about to make, counted from 1."""


_ALONE = 2
"""References to an array that nobody but its tensor has: the tensor's, and that of the argument."""


def group_by_memory(params: Sequence[Tensor]) -> list[FlatParameters]:
    """Return the parameters by type and device, those apart whose memory somebody else has too.

    Such memory (of a state dict that was taken before, of weights that share it through ``data``) must stay what the
    parameter is. The arrays of an optimizer that is being replaced do not count.
    """
    flats: dict[Any, list[Tensor]] = {}
    for p in params:
        shared = sys.getrefcount(p._array) > _ALONE + (p._array.base is not None)
        flats.setdefault((p._array.dtype, str(p.device), id(p) if shared else 0), []).append(p)
    return [FlatParameters(flats[key]) for key in sorted(flats, key=str)]


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
        if len(self.params) == 1 and first.flags.c_contiguous:
            self.array, self.views = first.reshape(-1), [first]
        else:
            self.array = get_array_module(first).empty(int(ends[-1]), first.dtype)
            self.views = [
                self.array[a:b].reshape(p.shape)
                for p, a, b in zip(self.params, self.begins, self.begins[1:], strict=False)
            ]
        self.state: dict[str, Array] = {}
        """Buffers of the optimizer, of the size and order of ``array``."""
        self.steps = [0] * len(self.params)
        self._collect()
        self._give_slots()

    def _collect(self) -> None:
        """Move parameters that are elsewhere into the buffer."""
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
        grads = get_array_module(self.array).empty_like(self.array)
        for p, begin in zip(self.params, self.begins, strict=False):
            if p._slot is None:
                p._slot = Slot(grads, begin, p._array.shape)

    def buffer(self, name: str) -> Array:
        """Return the optimizer's buffer ``name``, made of zeros at its first use; float32 for half-precision."""
        found = self.state.get(name)
        if found is None:
            kind = np.float32 if self.array.dtype.itemsize == 2 else self.array.dtype
            found = self.state[name] = get_array_module(self.array).zeros(self.array.shape, kind)
        return found

    def runs(self) -> Iterator[Run]:
        """Count a step of every parameter that has a gradient, and yield them in as few stretches as can be."""
        self._collect()
        self._give_slots()
        run: Run | None = None
        flat: Array = None
        flat_end = 0
        for i, p in enumerate(self.params):
            if p._grad is None:
                continue
            slot = p._slot
            assert slot is not None
            if p._grad._array is slot.array:
                source, offset = slot.flat, slot.offset
            else:  # put there by the user, who may have kept what is in the slot
                grad = p._grad._array
                source, offset = get_array_module(grad).ascontiguousarray(grad).reshape(-1), 0
            self.steps[i] += 1
            begin, end = self.begins[i], self.begins[i + 1]
            together = (
                run is not None
                and run.end == begin
                and run.step == self.steps[i]
                and source is flat
                and offset == flat_end
            )
            if together:
                assert run is not None
                run.end = end
            else:
                if run is not None:
                    run.grad = flat[flat_end - (run.end - run.begin) : flat_end]
                    yield run
                run = Run(begin, end, None, self.steps[i])
            flat, flat_end = source, offset + end - begin
            p._version_counter[0] += 1
        if run is not None:
            run.grad = flat[flat_end - (run.end - run.begin) : flat_end]
            yield run
