"""Data parallelism: every rank holds the model, sees other samples, and steps with everybody's average gradient."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import collectives, context
from disttrain.autograd import accumulates, backward_weight
from disttrain.collectives.call import name_ranks
from disttrain.collectives.env import current_env
from disttrain.engine import Slot, is_grad_enabled, queue_callback
from disttrain.errors import ReplicasDiffer
from disttrain.kernels.arrays import Array, to_host
from disttrain.nn.module import Module
from disttrain.nn.parameter import is_lazy
from disttrain.random import current_generator
from disttrain.tensors import RemovableHandle, Tensor

if TYPE_CHECKING:
    from disttrain.collectives.communicator import Communicator, Work

_logger = logging.getLogger("disttrain")
_BUCKET_MB = 4.0
"""Past this size one all-reduce through MPI costs more than several, and less of it hides behind backward."""


class Bucket:
    """Gradients that are reduced in one call: parameters of one type whose gradients backward makes one after another.

    Behind the gradients travel, in the same call, one mark for each parameter (did this rank use it?) and the
    weight of the rank's samples. Gradients in half precision are weighted, summed and divided in float32, so that
    no factor takes them out of their range, and are rounded once.
    """

    def __init__(self, params: list[Tensor], comm: Communicator) -> None:
        self.params = params
        self._comm = comm
        self._allocate()
        self.missing = len(params)
        """How many gradients this backward has still to make."""
        self.weighted = False
        """Whether the gradients were multiplied by the rank's weight as they were copied here."""
        self.work: Work | None = None
        self.used: Array = np.zeros(0)
        """How many ranks used each parameter in the last averaged backward."""

    def _allocate(self) -> None:
        kind = self.params[0]._array.dtype
        ends = np.cumsum([0, *[p.numel() for p in self.params]])
        size, tail = int(ends[-1]), len(self.params) + 1
        self.half = kind.itemsize == 2
        self.message: Array = self._comm.empty(size + tail, np.float32 if self.half else kind)
        """What the ranks sum."""
        self.message[...] = 0
        self.sums = self.message[:size]
        self.tail = self.message[size:]
        self.grads: Array = np.zeros(size, kind) if self.half else self.sums
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

    def fill(self, first_weight: float, weight: float) -> None:
        """Make the bucket ready to be summed over the ranks.

        Args:
            first_weight: weight in whose units the gradients are, unless they are ``weighted``.
            weight: of this rank in the average.
        """
        if any(
            (p._grad is None or p._grad._array is not slot.array) and slot.is_held(p)
            for p, slot in zip(self.params, self.slots, strict=True)
        ):  # somebody keeps an old gradient's memory
            self._allocate()
            self.take_slots()
        for i, (p, slot) in enumerate(zip(self.params, self.slots, strict=True)):
            grad = p._grad
            self.tail[i] = grad is not None
            if grad is None:
                _vacate(p, slot)
                slot.array[...] = 0
            elif grad._array is not slot.array:
                _vacate(p, slot)
                slot.array[...] = grad._array
        self.tail[-1] = weight
        if self.half:
            self.sums[...] = self.grads
        if weight == 0:
            self.sums[...] = 0
        elif not self.weighted and first_weight != 1:
            self.sums *= self.sums.dtype.type(first_weight)

    def average(self) -> None:
        """Turn the sum over the ranks into the average, and hand it to the parameters that some rank used."""
        self.used = self.tail[:-1].copy()
        total = self.tail[-1]
        if total != 0 and total != 1:
            self.sums /= total
        if self.half:
            with np.errstate(all="ignore"):  # too large for the type: infinite, as anywhere
                self.grads[...] = self.sums
        for used, p, slot in zip(self.tail, self.params, self.slots, strict=False):
            if used == 0:
                continue
            if p._grad is None or p._grad._array is not slot.array:
                p._give_slot()
            else:
                p._grad._version_counter[0] += 1


def _vacate(p: Tensor, slot: Slot) -> None:
    """Before ``slot`` is overwritten: the gradient that somebody has kept of ``p`` stays what it was."""
    kept = p._given_grad() if p._given_grad is not None else None
    if kept is not None and kept._array is slot.array:
        kept._array = slot.array.copy()


class DistributedDataParallel(Module):
    """Train a copy of ``module`` on every rank, as ``torch.nn.parallel.DistributedDataParallel``.

    Parameters and buffers are those of rank 0 at the start. Backward averages the gradients over the ranks, in
    buckets that are sent while it still runs; it returns once the averages are in ``grad``. A rank counts in
    proportion to its samples: those that its DataLoader dealt last, or ``loss.backward(weight=n)``; so an uneven
    last batch is weighted right. Parameters that a rank, or all, did not use are handled without a flag.

    Args:
        module: the model, equal in structure on all ranks.
        device_ids: accepted as PyTorch's; the device is where the module's parameters are.
        output_device: as ``device_ids``.
        broadcast_buffers: before each training forward, take the buffers (BatchNorm's statistics) of rank 0.
        init_sync: take rank 0's parameters and buffers at the start.
        process_group: the ranks to average over; all by default.
        bucket_cap_mb: largest bucket, in MiB; 4 by default.
        find_unused_parameters: accepted as PyTorch's; unused parameters need no flag here.
        gradient_as_bucket_view: accepted as PyTorch's; gradients always live in the buckets.
        static_graph: accepted as PyTorch's; it changes nothing.
        fingerprint_every: compare the ranks' parameters before every so many training forwards (the first included);
            0 is never. It takes about as long as reading them.

    Raises:
        ValueError: the module has no parameter that requires a gradient, or a bucket size that is not positive.
            Or some, but not all, of the parameters of another wrapper are in the module; if all are, this
            wrapper replaces that one.
        CollectiveMismatch: the ranks' modules differ in structure.
        ReplicasDiffer: from forward, see ``fingerprint_every``.
    """

    def __init__(
        self,
        module: Module,
        device_ids: Any = None,
        output_device: Any = None,
        dim: int = 0,
        broadcast_buffers: bool = True,
        init_sync: bool = True,
        process_group: Communicator | None = None,
        bucket_cap_mb: float | None = None,
        find_unused_parameters: bool = False,
        gradient_as_bucket_view: bool = False,
        static_graph: bool = False,
        *,
        fingerprint_every: int = 0,
    ) -> None:
        super().__init__()
        if fingerprint_every < 0:
            raise ValueError(f"fingerprint_every must not be negative, got {fingerprint_every}")
        if any(is_lazy(t) for t in (*module.parameters(), *module.buffers())):
            raise RuntimeError(
                "DistributedDataParallel cannot average uninitialized parameters; call the module with a batch first, "
                "so that its lazy modules take their shapes"
            )
        params: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        if not params:
            raise ValueError(
                "DistributedDataParallel needs a module with a parameter that requires grad; got none"
            )
        if bucket_cap_mb is not None and bucket_cap_mb <= 0:
            raise ValueError(f"bucket_cap_mb must be positive, got {bucket_cap_mb}")
        self.module = module
        self._comm = collectives.connect() if process_group is None else process_group
        self._broadcast_buffers = broadcast_buffers
        self._fingerprint_every = fingerprint_every
        self._forwards = 0
        """How many forwards have recorded."""
        self._reported_unused = False
        self._synchronize = True
        """Whether the backward of the next forward averages; see :meth:`no_sync`."""
        self._averages = True
        """Whether the backward that runs does."""
        self._begun: set[_Beginning] = set()
        """Where the backward that runs has come through outputs; empty if none runs."""
        self._running = False
        self._rounds = 0
        self._weights: list[float] = []
        """Weights of the backwards since gradients were averaged last."""
        self._first_weight = 1.0
        self._started = 0
        self._number = 0
        """Number of this wrapper among those of rank 0."""
        self._replaced = False
        self._handles: list[RemovableHandle] = []
        self._buckets: list[Bucket] = []
        if self._comm.size > 1:
            self._replace_others(module)
        for p in params:
            p._synchronized = True
        if current_env().audit:
            importlib.import_module("disttrain.audit").watch(module)
        if self._comm.size == 1:
            return
        self._buckets = [
            Bucket(group, self._comm)
            for group in _grouped(params[::-1], (bucket_cap_mb or _BUCKET_MB) * 2**20)
        ]
        for bucket in self._buckets:
            bucket.take_slots()
            for p in bucket.params:
                self._handles.append(p.register_post_accumulate_grad_hook(_Arrival(self, bucket)))
        self._agree()
        if init_sync:
            self._take_from_rank_0([*module.parameters(), *module.buffers()])

    def _replace_others(self, module: Module) -> None:
        ours = {id(p) for p in module.parameters()}
        hooks = [h for p in module.parameters() for h in (p._post_hooks or {}).values()]
        for other in dict.fromkeys(h.owner for h in hooks if isinstance(h, _Arrival)):
            theirs = [p for bucket in other._buckets for p in bucket.params]
            left = sum(id(p) not in ours for p in theirs)
            if left:
                raise ValueError(
                    f"{len(theirs) - left} parameters of the module belong to another DistributedDataParallel, which "
                    f"has {left} more; wrap one module that contains them all, so that each is averaged once"
                )
            for handle in other._handles:
                handle.remove()
            for p in theirs:
                p._synchronized = False
            other._replaced = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module; the backward of what it returns will average the gradients.

        Raises:
            RuntimeError: another wrapper, made later, averages the parameters now; or their type has changed.
        """
        if self._comm.size == 1:
            return self.module(*args, **kwargs)
        if self._replaced:
            raise RuntimeError(
                "a DistributedDataParallel that was made later has the parameters of this one; call that one"
            )
        self._give_up()  # a backward that raised has not come to its end
        for bucket in self._buckets:
            bucket.take_slots()
        recording = is_grad_enabled()
        if recording:
            if self._fingerprint_every and self._forwards % self._fingerprint_every == 0:
                self._compare_fingerprints()
            self._forwards += 1
        if recording and self._synchronize and self._broadcast_buffers and self.training:
            self._take_from_rank_0(list(self.module.buffers()))
        out = self.module(*args, **kwargs)
        if recording:
            for t in _tensors_in(out):
                if t.requires_grad:
                    t.register_hook(_Beginning(self, self._synchronize))
        return out

    @property
    def require_backward_grad_sync(self) -> bool:
        """Whether backwards of the forwards that follow average the gradients; some programs set it themselves."""
        return self._synchronize

    @require_backward_grad_sync.setter
    def require_backward_grad_sync(self, value: bool) -> None:
        self._synchronize = bool(value)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Only accumulate on each rank in the backwards of forwards inside; the next one outside averages the sum."""
        before, self._synchronize = self._synchronize, False
        try:
            yield
        finally:
            self._synchronize = before

    def __deepcopy__(self, memo: dict[int, Any]) -> DistributedDataParallel:
        raise TypeError(
            "a DistributedDataParallel belongs to the ranks that made it together and cannot be copied by one; copy "
            "its .module, and wrap the copy on all ranks if it is to be trained"
        )

    def _agree(self) -> None:
        """Take from rank 0 this wrapper's number, and the seed that orders data sets: ranks may seed differently."""
        rank = context.current()
        told = np.array([rank.wrappers, current_generator().initial_seed()], np.uint64)
        rank.wrappers += 1
        self._comm.broadcast(told)
        self._number, rank.order_seed = (int(word) for word in told)

    def _take_from_rank_0(self, tensors: list[Tensor]) -> None:
        for kind in dict.fromkeys(t._array.dtype for t in tensors):
            same = [t for t in tensors if t._array.dtype == kind]
            flat = np.concatenate([t._array.reshape(-1) for t in same])
            self._comm.broadcast(flat)
            begin = 0
            for t in same:
                t._array[...] = flat[begin : begin + t._array.size].reshape(t._array.shape)
                t._version_counter[0] += 1
                begin += t._array.size

    def _compare_fingerprints(self) -> None:
        """Raise ReplicasDiffer, on all ranks alike, unless every rank has the same parameters."""
        named = list(self.module.named_parameters())
        mine = np.array(
            [zlib.crc32(np.ascontiguousarray(to_host(p._array)).tobytes()) for _, p in named], np.uint32
        )
        everyone = np.empty((self._comm.size, mine.size), np.uint32)
        self._comm.all_gather(mine, everyone)
        differ = (everyone != everyone[0]).any(0)
        if not differ.any():
            return
        first = int(differ.argmax())
        ranks: dict[int, list[int]] = {}
        for rank, fingerprint in enumerate(everyone[:, first].tolist()):
            ranks.setdefault(fingerprint, []).append(rank)
        odd = min(ranks.values(), key=len)
        raise ReplicasDiffer(
            f"before forward {self._forwards + 1}, {int(differ.sum())} of {len(named)} parameters differ between the "
            f"ranks; the first is {named[first][0]!r}, on {name_ranks(odd)} it is not what it is on the others. Look "
            f"for code that changes parameters on some ranks only"
        )

    def _report_unused(self) -> None:
        """Say once which parameters a backward did not use, on some ranks or on all."""
        self._reported_unused = True
        if self._comm.rank:
            return
        names = {id(p): name for name, p in self.module.named_parameters()}
        for bucket in self._buckets:
            for used, p in zip(bucket.used.tolist(), bucket.params, strict=True):
                if used < self._comm.size:
                    _logger.info(
                        "parameter %s was used on %d of %d ranks in this backward; its gradient is right "
                        "(said once)", names.get(id(p), list(p.shape)), used, self._comm.size
                    )  # fmt: skip

    # -------------------------------------------------------------------------------------- one backward

    def _begin(self, averages: bool) -> None:
        """Prepare for the gradients of the backward that is beginning; called more than once in some."""
        if self._running:
            self._averages |= averages
            return
        try:
            queue_callback(self._end)
        except RuntimeError:
            raise RuntimeError(
                "backward(inputs=...) does not average gradients over the ranks; call backward() without inputs"
            ) from None
        self._running = True
        self._averages = averages
        if all(p._grad is None for bucket in self._buckets for p in bucket.params):
            # Whatever was accumulated has been thrown away.
            self._weights.clear()
        weight = backward_weight()
        if weight is None:
            dealt = context.current().samples
            weight = 1.0 if dealt is None else float(dealt)
        first = not any(self._weights)
        self._weights.append(weight)
        if first:
            self._first_weight = weight or 1.0
        scale = weight / self._first_weight
        self._started = 0
        for bucket in self._buckets:
            bucket.missing = len(bucket.params)
            bucket.weighted = (
                averages and first and not bucket.half and all(p._grad is None for p in bucket.params)
            )
            for slot in bucket.slots:
                slot.scale = weight if bucket.weighted else scale

    def _came_through(self, beginning: _Beginning) -> None:
        """Backward has come through an output of the module, which it does once."""
        if beginning in self._begun:
            self._give_up()
        self._begin(beginning.averages)
        self._begun.add(beginning)

    def _arrived(self, bucket: Bucket) -> None:
        if not self._running:  # not by an output of forward: by the module itself, say
            self._begin(self._synchronize)
        bucket.missing -= 1
        if not self._averages:
            return
        # In the same order on all ranks, whatever the order in which their gradients come.
        while self._started < len(self._buckets) and self._buckets[self._started].missing <= 0:
            self._start_next()

    def _start_next(self) -> None:
        index = self._started
        bucket = self._buckets[index]
        bucket.fill(self._first_weight, sum(self._weights) / len(self._weights))
        tag = (self._number, self._rounds, index)
        bucket.work = self._comm.start_all_reduce(bucket.message, bucket.message, tag=tag)
        self._started += 1

    def _end(self) -> None:
        """Send what is left and wait for the averages."""
        if self._averages:
            while self._started < len(self._buckets):
                self._start_next()
            for bucket in self._buckets:
                assert bucket.work is not None
                bucket.work.wait()
                bucket.work = None
                bucket.average()
            self._rounds += 1
            if not self._reported_unused and any((b.used < self._comm.size).any() for b in self._buckets):
                self._report_unused()
            self._weights.clear()
        self._finish()

    def _give_up(self) -> None:
        """Forget a backward that has raised, once nothing reads or writes the buckets any more."""
        if not self._running:
            return
        for bucket in self._buckets:
            if bucket.work is not None:
                bucket.work.wait()
                bucket.work = None
        self._weights.pop()
        self._finish()

    def _finish(self) -> None:
        self._running = False
        self._begun.clear()
        for bucket in self._buckets:
            for slot in bucket.slots:
                slot.scale = 1.0


class _Beginning:
    """Tells the wrapper that backward has come to an output of its module."""

    def __init__(self, owner: DistributedDataParallel, averages: bool) -> None:
        self._owner = owner
        self.averages = averages

    def __call__(self, _: Tensor) -> None:
        if accumulates():
            self._owner._came_through(self)


class _Arrival:
    """Tells the wrapper that the gradient of a parameter is complete."""

    def __init__(self, owner: DistributedDataParallel, bucket: Bucket) -> None:
        self.owner = owner
        self._bucket = bucket

    def __call__(self, _: Tensor) -> None:
        self.owner._arrived(self._bucket)


def _grouped(params: list[Tensor], cap: float) -> Iterator[list[Tensor]]:
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


def _tensors_in(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, dict):
        for value in out.values():
            yield from _tensors_in(value)
    elif dataclasses.is_dataclass(out):
        for field in dataclasses.fields(out):
            yield from _tensors_in(getattr(out, field.name))
    elif isinstance(out, list | tuple):
        for value in out:
            yield from _tensors_in(value)
