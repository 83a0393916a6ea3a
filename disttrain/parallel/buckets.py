"""Buckets: gradients that the ranks sum in one call, and what travels with them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from disttrain.backward_pass import Slot
from disttrain.collectives.meter import Wish
from disttrain.kernels import buckets as kernels
from disttrain.kernels import cuda
from disttrain.kernels.arrays import Array, get_array_module, on_gpu
from disttrain.tensors import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from disttrain.collectives.communicator import Communicator, Work
    from disttrain.futures import Future

NOT_FINITE, FAILED, WISHES = range(3)
"""What a rank may vote with its last bucket; "go" is neither. From ``WISHES`` on it says what its user wishes, in the
order of ``disttrain.collectives.meter.Wish``. See ``disttrain.parallel.vote``."""
VOTES = WISHES + len(Wish)


class Bucket:
    """Gradients that are reduced in one call: parameters of one type whose gradients backward makes one after another.

    Behind the gradients travel, in the same call, the weight of the rank's samples, by whose sum it divides them, one
    mark for each parameter (did this rank use it?) and, in a model's last bucket, the rank's vote. Gradients in half
    precision are weighted, summed and divided in float32, so that no factor takes them out of their range, and are
    rounded once.
    """

    def __init__(self, params: list[Tensor], comm: Communicator, *, last: bool) -> None:
        self.params = params
        self._comm = comm
        self._votes = VOTES if last else 0
        self._allocate()
        self.missing = len(params)
        """How many gradients this backward has still to make."""
        self.weighted = False
        """Whether the gradients were multiplied by the rank's weight as they were copied here."""
        self.work: Work | None = None
        self.average_of_hook: Future | None = None
        """What a hook promised in place of the sum."""

    def _allocate(self) -> None:
        self._scale = 1.0
        like = self.params[0]._array
        kind = like.dtype
        ends = np.cumsum([0, *[p.numel() for p in self.params]])
        size, tail = int(ends[-1]), len(self.params) + 1 + self._votes
        self.half = kind.itemsize == 2
        self.message: Array = self._comm.empty(size + tail, np.float32 if self.half else kind, like=like)
        """What the ranks sum."""
        self.message[...] = 0
        self.sums = self.message[:size]
        self.tail = self.message[size:]
        self.used = self.tail[1 : 1 + len(self.params)]
        """After the sum: how many ranks used each parameter."""
        self.votes = self.tail[1 + len(self.params) :]
        """After the sum: how many ranks voted what."""
        self.grads: Array = get_array_module(like).zeros(size, kind) if self.half else self.sums
        """The memory of the gradients."""
        self.slots = [
            Slot(self.grads, int(begin), p._array.shape) for p, begin in zip(self.params, ends, strict=False)
        ]

    def take_slots(self) -> None:
        """Let the gradients of the parameters be made here, also after the module has been moved about.

        Raises:
            RuntimeError: a parameter has another type or shape than when it was wrapped.
        """
        for p, slot in zip(self.params, self.slots, strict=True):
            if p._slot is slot:
                continue
            if p._array.dtype != slot.array.dtype or p._array.shape != slot.array.shape:
                raise RuntimeError(
                    f"a parameter was of shape {list(slot.array.shape)} and {slot.array.dtype} when it was wrapped, "
                    f"and is now of shape {list(p.shape)} and {p._array.dtype}; convert the module first, then wrap it"
                )
            p._slot = slot

    def scale(self, factor: float) -> None:
        """Multiply all gradients that are accumulated from now on."""
        if factor != self._scale:
            self._scale = factor
            for slot in self.slots:
                slot.scale = factor

    def rest(self) -> None:
        """A backward has ended that only accumulates; all ranks call it."""

    def fill(self, first_weight: float, weight: float) -> None:
        """Make the bucket ready to be summed over the ranks, with a vote to go on.

        Args:
            first_weight: weight in whose units the gradients are, unless they are ``weighted``.
            weight: of this rank in the average.
        """
        elsewhere = [
            i
            for i, (p, slot) in enumerate(zip(self.params, self.slots, strict=True))
            if p._grad is None or p._grad._array is not slot.array
        ]
        if any(self.slots[i].is_held(self.params[i]) for i in elsewhere):
            # Somebody keeps an old gradient's memory.
            self._allocate()
            self.take_slots()
            elsewhere = list(range(len(self.params)))
        self.tail[...] = 0
        self.used[...] = 1
        self.tail[0] = weight
        for i in elsewhere:
            p, slot = self.params[i], self.slots[i]
            vacate(p, slot)
            if p._grad is None:
                slot.array[...] = 0
                self.used[i] = 0
            else:
                slot.array[...] = p._grad._array
        self._apply_weight(first_weight, weight)

    def _apply_weight(self, first_weight: float, weight: float) -> None:
        """Let ``sums`` be the gradients times the rank's weight; of no samples even a nan counts for nothing."""
        factor = 1.0 if self.weighted else first_weight
        if weight == 0:
            self.sums[...] = 0
        elif self.half and on_gpu(self.sums):
            kernels.pack([self.grads], self.sums, _on_gpu(factor))
        else:
            if self.half:
                self.sums[...] = self.grads
            if factor != 1:
                self.sums *= self.sums.dtype.type(factor)

    def fill_with_zeros(self, weight: float, *, failed: bool) -> None:
        """Make the bucket one of a rank that has no gradients.

        Args:
            weight: with which the zeros count in the average.
            failed: whether it votes against the step.
        """
        for p, slot in zip(self.params, self.slots, strict=True):
            vacate(p, slot)
        self.message[...] = 0
        self.tail[...] = 0
        self.tail[0] = weight
        if failed and self._votes:
            self.votes[FAILED] = 1

    @property
    def _averaged(self) -> int:
        """How many elements of the sum are averages already; on a GPU none are."""
        return 0 if on_gpu(self.message) else int(self.sums.size)

    def start(self, tag: tuple[int, int, int]) -> None:
        """Start to average over the ranks what the bucket was filled with."""
        self.work = self._comm.start_all_reduce(self.message, self.message, tag=tag, averaged=self._averaged)

    def sum(self, tag: tuple[int, int, int]) -> None:
        """:meth:`start`, and return once that is done."""
        self._comm.all_reduce(self.message, self.message, tag=tag, averaged=self._averaged)

    @property
    def is_finite(self) -> bool:
        """Whether what the rank contributes has neither nan nor an infinity."""
        # Many times as fast as asking each; a sum of squares may be too large where no element is.
        with np.errstate(over="ignore", invalid="ignore"):
            if math.isfinite(np.dot(self.sums, self.sums)):
                return True
        return bool(get_array_module(self.sums).isfinite(self.sums).all())

    @property
    def is_used_everywhere(self) -> bool:
        """Whether, after the sum, every rank has used every parameter."""
        return bool(min(self.used.tolist()) == self._comm.size)  # quicker than by NumPy

    def not_finite(self) -> Iterator[tuple[Tensor, str]]:
        """Yield each parameter whose gradient here is not finite, and what is in it."""
        for p, slot in zip(self.params, self.slots, strict=True):
            part = self.sums[slot.offset : slot.offset + slot.array.size]
            nans, infinities = int(np.isnan(part).sum()), int(np.isinf(part).sum())
            if nans or infinities:
                yield p, f"{nans} nan" if not infinities else f"{nans} nan and {infinities} inf"

    def wait(self) -> bool:
        """Return once nothing reads or writes the bucket any more, and whether a hook has averaged it."""
        work, self.work = self.work, None
        if work is not None:
            work.wait()
        promised, self.average_of_hook = self.average_of_hook, None
        if promised is None:
            return False
        average = promised.wait()
        if not isinstance(average, Tensor) or average.numel() != self.sums.size:
            raise TypeError(
                f"a communication hook must return a Future of a Tensor of {self.sums.size} elements, like the "
                f"buffer of its bucket; got {average!r:.80}"
            )
        if average._array is not self.sums:
            self.sums[...] = average._array.reshape(-1)
        return True

    def average(self, divide: bool) -> None:
        """Hand the averages to the parameters that some rank used.

        Args:
            divide: what the ranks have summed, by their weights, if the sum was not an average already.
        """
        on_the_way = self.half and on_gpu(self.sums)  # halves on a GPU are scaled as they are rounded
        factor = 1.0
        total = 1.0 if self._averaged or not divide else float(self.tail[0])
        if total not in (0, 1):
            if math.frexp(total)[0] == 0.5:  # a power of two: the same bits in less than half the time
                factor = 1 / total
                if not on_the_way:
                    self.sums *= self.sums.dtype.type(factor)
            else:
                self.sums /= self.sums.dtype.type(total)
        if on_the_way:
            kernels.unpack(self.sums, [self.grads], _on_gpu(factor))
        elif self.half:
            with np.errstate(all="ignore"):  # too large for the type: infinite, as anywhere
                self.grads[...] = self.sums
        for used, p, slot in zip(self.used.tolist(), self.params, self.slots, strict=True):
            if used == 0:
                continue
            if p._grad is None or p._grad._array is not slot.array:
                p._give_slot()
            else:
                p._grad._version_counter[0] += 1


def _on_gpu(factor: float) -> Array | None:
    """Return a factor as kernels are given it; None for 1."""
    return None if factor == 1 else cuda.upload(np.array([factor], np.float32))


class GradBucket:
    """A bucket as a communication hook sees it, ``torch.distributed.GradBucket``.

    Where the ranks' weights differ (uneven batches), the gradients come scaled so that their plain average over the
    ranks is the weighted one. Gradients in half precision come in float32.
    """

    def __init__(self, bucket: Bucket, index: int, last: bool) -> None:
        self._bucket = bucket
        self._index = index
        self._last = last
        self._buffer: Tensor = Tensor._of(bucket.sums)

    def index(self) -> int:
        """Return the bucket's number, from 0, in the order in which backward fills them."""
        return self._index

    def is_last(self) -> bool:
        """Return whether the step's gradients are complete with this one."""
        return self._last

    def buffer(self) -> Tensor:
        """Return all gradients as one Tensor with one dimension, in the bucket's own memory."""
        return self._buffer

    def set_buffer(self, buffer: Tensor) -> None:
        """Let ``buffer()`` be another Tensor with as many elements."""
        self._buffer = buffer

    def gradients(self) -> list[Tensor]:
        """Return the gradients, views of the buffer, in the order of :meth:`parameters`."""
        parts = self._buffer.split([p.numel() for p in self._bucket.params])
        return [part.view(p.shape) for part, p in zip(parts, self._bucket.params, strict=True)]

    def parameters(self) -> list[Tensor]:
        """Return the parameters whose gradients are in the bucket."""
        return list(self._bucket.params)


def vacate(p: Tensor, slot: Slot) -> None:
    """Before ``slot`` is overwritten: the gradient that somebody has kept of ``p`` stays what it was."""
    kept = p._given_grad() if p._given_grad is not None else None
    if kept is not None and kept._array is slot.array:
        kept._array = slot.array.copy()


def grouped(params: list[Tensor], cap: float) -> Iterator[list[Tensor]]:
    """Yield the parameters, in order, in groups of one type and of at most ``cap`` bytes (or of one parameter)."""
    group: list[Tensor] = []
    size = 0
    for p in params:
        if group and (size + p.nbytes > cap or p._array.dtype != group[0]._array.dtype):
            yield group
            group, size = [], 0
        group.append(p)
        size += p.nbytes
    yield group
