"""Gradients that are summed over the ranks so that each rank keeps an equal part of them (reduce-scatter)."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain.autograd import accumulates
from disttrain.backward_pass import Slot
from disttrain.kernels.arrays import Array
from disttrain.parallel.buckets import Bucket, vacate
from disttrain.tensors import RemovableHandle, Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from disttrain.collectives.communicator import Communicator, Work


class Shard:
    """Which part of a tensor, seen as one axis, each rank keeps.

    Args:
        comm: the ranks.
        shape: of the whole tensor.
        bounds: for each rank where its part begins and ends; the parts lie one after the other.
    """

    def __init__(self, comm: Communicator, shape: tuple[int, ...], bounds: list[tuple[int, int]]) -> None:
        self.comm = comm
        self.shape = shape
        self.bounds = bounds

    @property
    def here(self) -> slice:
        """This rank's part."""
        return slice(*self.bounds[self.comm.rank])

    def part(self, whole: Array) -> Array:
        """Return a copy of this rank's part of an array of the whole shape."""
        return np.ascontiguousarray(whole).reshape(-1)[self.here].copy()

    def gather(self, part: Array) -> Array:
        """Return the whole of what all ranks have a part of; all of them call it."""
        longest = max(end - begin for begin, end in self.bounds)
        rows = np.zeros((self.comm.size, longest), part.dtype)
        mine = rows[self.comm.rank]
        mine[: part.size] = part.reshape(-1)
        self.comm.all_gather(mine, rows)
        parts = [row[: end - begin] for row, (begin, end) in zip(rows, self.bounds, strict=True)]
        return np.concatenate(parts).reshape(self.shape)


class SpreadBucket(Bucket):
    """A bucket whose averages are spread over the ranks: each keeps an equal part of all its elements.

    The rank's own gradients are whole from the first that backward makes until they are summed; then their memory is
    free. What stays in ``grad`` is this rank's part of the average, on one axis, with its ``_shard``.

    Args:
        params: whole ones, of one type.
        comm: the ranks.
        last: whether the ranks' votes travel with it.
        before: the bucket that is sent before this one, whose memory is to be free when this one is sent.
    """

    def __init__(
        self, params: list[Tensor], comm: Communicator, *, last: bool = False, before: Bucket | None = None
    ) -> None:
        self._shapes = [p._array.shape for p in params]
        self.begins: list[int] = np.cumsum([0, *[p.numel() for p in params]]).tolist()
        """Where each parameter begins among the elements of all, and where the last one ends."""
        self.length = max(1, -(-self.begins[-1] // comm.size))
        """Elements that each rank keeps, the last ones with padding."""
        edges = [r * self.length for r in range(comm.size + 1)]
        self.shards: list[Shard] = []
        """How each parameter is spread."""
        self.places: list[slice] = []
        """Where the part of each parameter lies among the elements that this rank keeps."""
        for shape, (begin, end) in zip(self._shapes, pairwise(self.begins), strict=True):
            inside = np.clip(np.array(edges) - begin, 0, end - begin).tolist()
            self.shards.append(Shard(comm, shape, list(pairwise(inside))))
            mine = inside[comm.rank + 1] - inside[comm.rank]
            first = begin + inside[comm.rank] - edges[comm.rank] if mine else 0
            self.places.append(slice(first, first + mine))
        super().__init__(params, comm, last=last)
        self._before = before
        self._held: dict[int, Array] = {}
        """This rank's part of averages that nobody has cleared, by parameter, while new gradients are added."""
        self._part_sums: Array = None
        self._work_of_tail: Work | None = None

    def _allocate(self) -> None:
        self._scale = 1.0
        self.kind = self.params[0]._array.dtype
        self.half = self.kind.itemsize == 2
        self.message = self.sums = self.grads = None
        self.slots = []
        count = len(self.params)
        self.tail = np.zeros(count + 1 + self._votes, np.float32 if self.half else self.kind)
        self.used = self.tail[1 : 1 + count]
        self.votes = self.tail[1 + count :]
        self._make_part()

    def _make_part(self) -> None:
        """Make the place where this rank's part of the averages lives."""
        self.part = np.zeros(self.length, self.kind)
        self.part_slots = [Slot(self.part, place.start, (place.stop - place.start,)) for place in self.places]

    def use_comm(self, comm: Communicator) -> None:
        """Sum over another group of the same ranks."""
        self._comm = comm

    @property
    def is_open(self) -> bool:
        """Whether the rank's whole gradients are here."""
        return bool(self.slots)

    def watch(self, p: Tensor, begin: Callable[[], None]) -> RemovableHandle:
        """Be there before a gradient of ``p`` is made, after ``begin`` was called."""
        return p.register_hook(partial(self._comes, begin))

    def _comes(self, begin: Callable[[], None], _: Tensor) -> None:
        if accumulates():
            begin()
            self._open()

    def take_slots(self) -> None:
        for p, shape, slot in zip(self.params, self._shapes, self.part_slots, strict=True):
            if p._array.shape != shape or p._array.dtype != self.kind:
                raise RuntimeError(
                    f"a parameter was of shape {list(shape)} and {self.kind} when its gradients were spread over the "
                    f"ranks, and is now of shape {list(p.shape)} and {p._array.dtype}; convert the module first"
                )
            if not self.is_open:
                p._slot = slot

    def _open(self) -> None:
        """Let whole gradients be made here."""
        if self.is_open:
            return
        size = self.begins[-1]
        self.message = self._comm.empty(self._comm.size * self.length, self.tail.dtype)
        self.message[size:] = 0
        self.sums = self.message[:size]
        self.grads = np.zeros(size, self.kind) if self.half else self.sums
        self.slots = [
            Slot(self.grads, begin, shape) for begin, shape in zip(self.begins, self._shapes, strict=False)
        ]
        for i, (p, slot) in enumerate(zip(self.params, self.slots, strict=True)):
            if p._grad is not None:
                self._held[i] = p._grad._array
                p._grad = None
            slot.scale = self._scale
            p._slot = slot

    def rest(self) -> None:
        """Add averages that nobody has cleared to the whole gradients; all ranks call it."""
        if not self.is_open and all(p._grad is None for p in self.params):
            return
        self._open()
        if not self._held:
            return
        rows = np.zeros((self._comm.size, self.length), self.kind)
        mine = rows[self._comm.rank]
        for i, part in self._held.items():
            mine[self.places[i]] = part.reshape(-1)
        self._comm.all_gather(mine, rows)
        for i in self._held:
            p, slot = self.params[i], self.slots[i]
            before = rows.reshape(-1)[self.begins[i] : self.begins[i + 1]].reshape(slot.array.shape)
            if p._grad is None:
                slot.array[...] = before
                p._give_slot()
            else:
                p._grad._array += before
        self._held.clear()

    def fill(self, first_weight: float, weight: float) -> None:
        self._open()
        self.rest()
        self.tail[...] = 0
        for i, (p, slot) in enumerate(zip(self.params, self.slots, strict=True)):
            source = None if p._grad is None else p._grad._array
            self.used[i] = source is not None
            p._grad = None
            vacate(p, slot)
            if source is None:
                slot.array[...] = 0
            elif source is not slot.array:
                slot.array[...] = source
        self.tail[0] = weight
        self._apply_weight(first_weight, weight)

    def fill_with_zeros(self, weight: float, *, failed: bool) -> None:
        self._held.clear()
        self._open()
        for p in self.params:
            p._grad = None
        super().fill_with_zeros(weight, failed=failed)

    def start(self, tag: tuple[int, int, int]) -> None:
        if self._before is not None:
            self._before.wait()
        self._close()
        self._part_sums = np.empty(self.length, np.float32) if self.half else self.part
        self.work = self._comm.start_reduce_scatter(self.message, self._part_sums, tag=tag)
        self._work_of_tail = self._comm.start_all_reduce(self.tail, self.tail, tag=tag)

    def sum(self, tag: tuple[int, int, int]) -> None:
        self.start(tag)
        self.wait()

    def _close(self) -> None:
        """Let the place of the gradients be that of this rank's part."""
        if any(slot.is_held(p) for p, slot in zip(self.params, self.part_slots, strict=True)):
            self._make_part()  # somebody keeps an old average's memory
        for p, slot in zip(self.params, self.part_slots, strict=True):
            vacate(p, slot)
            p._slot = slot
        self.slots = []

    def wait(self) -> bool:
        for work in (self.work, self._work_of_tail):
            if work is not None:
                work.wait()
        if self.work is not None:
            self.message = self.sums = self.grads = None
        self.work = self._work_of_tail = None
        return False

    def average(self, divide: bool) -> None:
        total = self.tail[0]
        if divide and total != 0 and total != 1:
            self._part_sums /= total
        if self.half:
            with np.errstate(all="ignore"):  # too large for the type: infinite, as anywhere
                self.part[...] = self._part_sums
        self._part_sums = None
        for used, p, shard in zip(self.used.tolist(), self.params, self.shards, strict=True):
            if used:
                p._give_slot()
                assert p._grad is not None
                p._grad._shard = shard

    def forget(self, accumulated: bool) -> None:
        """Undo a backward that has failed; gradients ``accumulated`` before it are lost with it."""
        self.wait()
        if not self.is_open:
            return
        for p in self.params:
            p._grad = None
        keep = [] if accumulated else list(self._held)
        self._held.clear()
        values = self.part
        self._close()
        self.part[...] = values  # somebody may have kept the memory
        for i in keep:
            p = self.params[i]
            p._give_slot()
            assert p._grad is not None
            p._grad._shard = self.shards[i]
        self.message = self.sums = self.grads = None


def is_spread(value: Any) -> bool:
    """Return whether a part of an optimizer's state is one number for each element of its parameter."""
    return isinstance(value, Tensor) and value.ndim > 0


def part_of_state(p: Tensor, value: Any) -> Any:
    """Return what of a part of the state of a whole parameter goes with the part ``p`` of it that is here.

    Raises:
        ValueError: it is neither of the shape of the whole nor of the part.
    """
    shard = p._shard
    if shard is None or not is_spread(value) or value.shape == p.shape:
        return value
    if value.shape != shard.shape:
        raise ValueError(
            f"the state of a parameter of shape {list(shard.shape)} has shape {list(value.shape)}, neither that nor "
            f"that of this rank's part, {list(p.shape)}"
        )
    return Tensor._of(shard.part(value._array))
