"""Data parallelism: every rank holds the model, sees other samples, and steps with everybody's average gradient."""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import context
from disttrain.autograd import accumulates, backward_weight
from disttrain.backward_pass import queue_callback
from disttrain.collectives.call import name_ranks
from disttrain.collectives.env import current_env
from disttrain.collectives.ledger import bucket_tag
from disttrain.distributed.device_mesh import data_parallel_group
from disttrain.distributed.groups import communicator_of
from disttrain.engine import is_grad_enabled
from disttrain.modes import current_tape, replayed
from disttrain.nn.module import Module
from disttrain.nn.parameter import is_lazy
from disttrain.parallel.buckets import Bucket, GradBucket, grouped
from disttrain.parallel.replicas import agree, compare_fingerprints, take_from
from disttrain.parallel.spread import SpreadBucket
from disttrain.parallel.vote import StepVote, Telling, reason
from disttrain.tensors import RemovableHandle, Tensor

if TYPE_CHECKING:
    from disttrain.collectives.communicator import Communicator
    from disttrain.distributed.groups import ProcessGroup
    from disttrain.futures import Future
    from disttrain.steering import Agreement

    Hook = Callable[[Any, GradBucket], Future]

_logger = logging.getLogger("disttrain")
_INSTEAD = {
    "delay_all_reduce_named_params": "all gradients are averaged as backward makes them",
    "param_to_hook_all_reduce": "all gradients are averaged as backward makes them",
    "mixed_precision": "convert the module, or run its forward under autocast",
}
_MOST_NAMED = 16
"""So many unused parameters at most are named."""


class DistributedDataParallel(Module):
    """Train a copy of ``module`` on every rank, as ``torch.nn.parallel.DistributedDataParallel``.

    Parameters and buffers are those of rank 0 at the start. Backward averages the gradients over the ranks, in
    buckets that are sent while it still runs; it returns once the averages are in ``grad``. A rank counts in
    proportion to its samples: those that its DataLoader dealt last, or ``loss.backward(weight=n)``; so an uneven
    last batch is weighted right. Parameters that a rank, or all, did not use are handled without a flag.

    With its gradients every rank votes on the step. If one raises in forward or in backward, the others do not hang:
    their backward raises ``PeerFailed`` with that error, and the step's gradients are gone on all ranks.

    Args:
        module: the model, equal in structure on all ranks.
        device_ids: accepted as PyTorch's; the device is where the module's parameters are.
        output_device: as ``device_ids``.
        broadcast_buffers: before each training forward, take the buffers (BatchNorm's statistics) of rank 0.
        init_sync: take rank 0's parameters and buffers at the start.
        process_group: the ranks to average over; all by default.
        bucket_cap_mb: largest bucket, in MiB; by default what suits the transport: 4, and 25 on GPUs.
        find_unused_parameters: accepted as PyTorch's; unused parameters need no flag here.
        check_reduction: accepted as PyTorch's; it changes nothing.
        gradient_as_bucket_view: accepted as PyTorch's; gradients always live in the buckets.
        static_graph: accepted as PyTorch's; it changes nothing.
        delay_all_reduce_named_params: must be None, as ``param_to_hook_all_reduce`` and ``mixed_precision``.
        device_mesh: the ranks to average over, in place of ``process_group``: a mesh of one dimension.
        skip_all_reduce_unused_params: accepted as PyTorch's; it changes nothing.
        fingerprint_every: compare the ranks' parameters before every so many training forwards (the first included);
            0 is never. It takes about as long as reading them.
        nonfinite: what to do where a rank's gradient, before it is averaged, has a nan or an infinity. ``"keep"``
            averages it as PyTorch does (a GradScaler looks for it afterwards) and says so once; ``"skip"`` forgets
            the step's gradients on all ranks, so that optimizers leave the parameters alone; ``"raise"`` raises.
            The rank, the parameter and the samples are named.

    Raises:
        NotImplementedError: an argument that must be None is not, or a mesh of several dimensions.
        RuntimeError: ``process_group`` and ``device_mesh`` at once.
        ValueError: the module has no parameter that requires a gradient, or a bucket size that is not positive.
            Or some, but not all, of the parameters of another wrapper are in the module; if all are, this
            wrapper replaces that one.
        CollectiveMismatch: the ranks' modules differ in structure.
        ReplicasDiffer: from forward, see ``fingerprint_every``.
        AnomalyError: from backward on all ranks, see ``nonfinite``.
        PeerFailed: from backward: another rank has raised in this step.
    """

    def __init__(
        self,
        module: Module,
        device_ids: Any = None,
        output_device: Any = None,
        dim: int = 0,
        broadcast_buffers: bool = True,
        init_sync: bool = True,
        process_group: ProcessGroup | None = None,
        bucket_cap_mb: float | None = None,
        find_unused_parameters: bool = False,
        check_reduction: bool = False,
        gradient_as_bucket_view: bool = False,
        static_graph: bool = False,
        delay_all_reduce_named_params: Any = None,
        param_to_hook_all_reduce: Any = None,
        mixed_precision: Any = None,
        device_mesh: Any = None,
        skip_all_reduce_unused_params: bool = False,
        *,
        fingerprint_every: int = 0,
        nonfinite: str = "keep",
    ) -> None:
        super().__init__()
        for name, value in (
            ("delay_all_reduce_named_params", delay_all_reduce_named_params),
            ("param_to_hook_all_reduce", param_to_hook_all_reduce),
            ("mixed_precision", mixed_precision),
        ):
            if value is not None:
                raise NotImplementedError(
                    f"DistributedDataParallel({name}=...) is not in disttrain; {_INSTEAD[name]}"
                )
        if fingerprint_every < 0:
            raise ValueError(f"fingerprint_every must not be negative, got {fingerprint_every}")
        if any(is_lazy(t) for t in (*module.parameters(), *module.buffers())):
            raise RuntimeError(
                "DistributedDataParallel cannot average uninitialized parameters; call the module with a batch first, "
                "so that its lazy modules take their shapes"
            )
        if any(p._shard is not None for p in module.parameters()):
            raise ValueError(
                "DistributedDataParallel was given a sharded module, which averages its gradients itself; use it as "
                "it is"
            )
        params: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        if not params:
            raise ValueError(
                "DistributedDataParallel needs a module with a parameter that requires grad; got none"
            )
        if bucket_cap_mb is not None and bucket_cap_mb <= 0:
            raise ValueError(f"bucket_cap_mb must be positive, got {bucket_cap_mb}")
        self.module = module
        if process_group is not None and device_mesh is not None:
            raise RuntimeError("give the ranks by process_group or by device_mesh, not by both")
        mesh_group = data_parallel_group(device_mesh, "give the part of it along one: mesh['NAME']")
        self._comm = communicator_of(mesh_group or process_group)
        self._vote = StepVote(self._comm, module, nonfinite)
        self._broadcast_buffers = broadcast_buffers
        self._fingerprint_every = fingerprint_every
        self._forwards = 0
        """How many forwards have recorded."""
        self.steps = 0
        """How often an optimizer has stepped the parameters."""
        self._reported_unused = False
        self._is_inside = False
        """Whether the module's forward is running, and the other ranks' backwards will wait for this one's."""
        self._synchronize = True
        """Whether the backward of the next forward averages; see :meth:`no_sync`."""
        self._averages = True
        """Whether the backward that runs does."""
        self._running = False
        self._weights: list[float] = []
        """Weights of the backwards since gradients were averaged last."""
        self._telling: Telling | None = None
        self._hook: tuple[Any, Hook] | None = None
        """What sums the gradients in place of one all-reduce for each bucket, and its state."""
        self._weighing: Any = None
        """For a hook: the sum of the ranks' weights, and the call that makes it."""
        self._joining: _Joining | None = None
        self._first_weight = self._last_weight = 1.0
        self._started = 0
        self._number = 0
        """Number of this wrapper among those of rank 0."""
        self._replaced = False
        self._handles: list[RemovableHandle] = []
        self._buckets: list[Bucket] = []
        self._of_modules: list[dict[str, Tensor | None]] = [m._buffers for m in module.modules()]
        """Where the module's buffers are: to walk through it anew takes longer than to send them."""
        self._is_idle = self._comm.size == 1 and nonfinite == "keep"
        """Whether nothing is to be averaged, nor to be looked at."""
        if not self._is_idle:
            self._replace_others(module)
        for p in params:
            p._synchronized = self
        if current_env().audit:
            importlib.import_module("disttrain.audit").watch(module)
        if self._is_idle:
            return
        cap = bucket_cap_mb * 2**20 if bucket_cap_mb else self._comm.bucket_bytes(params[0]._array)
        groups = list(grouped(params[::-1], cap))
        self._buckets = [Bucket(g, self._comm, last=i == len(groups) - 1) for i, g in enumerate(groups)]
        for bucket in self._buckets:
            bucket.take_slots()
            for p in bucket.params:
                self._handles.append(p.register_post_accumulate_grad_hook(_Arrival(self, bucket)))
        self._number = agree(self._comm)
        if init_sync:
            take_from(self._comm, 0, [*module.parameters(), *module.buffers()])

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
        if self._is_idle:
            return self.module(*args, **kwargs)
        recording = is_grad_enabled()
        self._prepare(recording, self._synchronize)
        tape = current_tape()
        if tape is not None:
            if any(isinstance(bucket, SpreadBucket) for bucket in self._buckets):
                tape.refuse("gradients are spread over the ranks (ZeroOptimizer, stage 2); take stage 1")
            tape.on_error(self._fail)
        try:
            out = self.module(*args, **kwargs)
        except Exception as error:
            self._fail(error)
            raise
        self._leave()
        if recording:
            for t in tensors_in(out):
                if t.requires_grad:
                    t.register_hook(_Beginning(self, self._synchronize))
        return out

    @replayed
    def _prepare(self, recording: bool, averages: bool) -> None:
        """Do what comes before the module's forward."""
        if self._replaced:
            raise RuntimeError(
                "a DistributedDataParallel that was made later has the parameters of this one; call that one"
            )
        self._settle()
        for bucket in self._buckets:
            bucket.take_slots()
        if recording:
            if self._fingerprint_every and self._forwards % self._fingerprint_every == 0:
                compare_fingerprints(self.module, self._comm, self._forwards)
            self._forwards += 1
        root = 0
        if recording and averages and self._joining is not None:
            root = self._call_the_roll(self._joining)
        if recording and averages and self._broadcast_buffers and self.training:
            take_from(self._comm, root, self._buffers_now())
        self._is_inside = recording and averages and self.training

    @replayed
    def _leave(self) -> None:
        self._is_inside = False

    def _fail(self, error: BaseException) -> None:
        """Tell the other ranks if it is forward that has raised, and they wait for this rank's gradients."""
        if self._is_inside and not self._running and isinstance(error, Exception):
            self._withdraw(error)
        self._is_inside = False

    @property
    def agreement(self) -> tuple[Agreement, Communicator]:
        """What the ranks have agreed to do after the next step, and the ranks."""
        return self._vote.agreement, self._comm

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

    def register_comm_hook(self, state: Any, hook: Hook) -> None:
        """Let ``hook`` average the gradients over the ranks, bucket by bucket, in place of one plain sum each.

        Compression is done so: see ``disttrain.parallel.comm_hooks`` for float16 and bfloat16.

        Args:
            state: is handed to ``hook``; PyTorch's hooks take the group of ranks, ``None`` for all.
            hook: called as ``hook(state, bucket)`` with a :class:`.GradBucket` as soon as backward has filled it;
                returns a :class:`disttrain.futures.Future` of a Tensor like ``bucket.buffer()`` with the averages.

        Raises:
            TypeError: ``hook`` cannot be called.
            RuntimeError: there is one already, or gradients are spread over the ranks.
        """
        if any(isinstance(bucket, SpreadBucket) for bucket in self._buckets):
            raise RuntimeError(
                "gradients are spread over the ranks (ZeroOptimizer, stage 2); a communication hook needs whole ones"
            )
        if not callable(hook):
            raise TypeError(f"a communication hook must be callable, got {type(hook).__name__}")
        if self._hook is not None:
            raise RuntimeError("there is a communication hook already; a model has one")
        self._hook = state, hook

    def spread_gradients(self) -> list[SpreadBucket]:
        """Keep on each rank its part of the averaged gradients only; return the buckets.

        From now on ``grad`` of a parameter is, after backward, this rank's part of it, on one axis. All ranks call it.
        See :class:`.ZeroOptimizer`, which does.

        Raises:
            RuntimeError: there is a communication hook, which averages whole gradients.
        """
        if self._hook is not None:
            raise RuntimeError("a communication hook averages whole gradients, which cannot be spread too")
        if self._buckets and not isinstance(self._buckets[0], SpreadBucket):
            for handle in self._handles:
                handle.remove()
            old, self._buckets, self._handles = self._buckets, [], []
            before: SpreadBucket | None = None
            for bucket in old:
                for p in bucket.params:
                    p._grad = None
                last = bucket is old[-1]
                before = SpreadBucket(bucket.params, self._comm, last=last, before=before)
                before.take_slots()
                self._buckets.append(before)
                for p in bucket.params:
                    self._handles.append(before.watch(p, self._begin_by_itself))
                    self._handles.append(p.register_post_accumulate_grad_hook(_Arrival(self, before)))
        return [bucket for bucket in self._buckets if isinstance(bucket, SpreadBucket)]

    @contextmanager
    def join(
        self,
        divide_by_initial_world_size: bool = True,
        enable: bool = True,
        throw_on_early_termination: bool = False,
    ) -> Iterator[None]:
        """Train on ranks that have different numbers of batches: those that have ended wait inside and take part.

        A DataLoader without a sampler needs none of this: it deals equally many batches to all ranks. When the last
        rank has ended, the others take its parameters and buffers.

        Args:
            divide_by_initial_world_size: a rank that has ended counts in the average, with gradients of zero; if
                false it does not count.
            enable: false makes this do nothing.
            throw_on_early_termination: raise as soon as one rank has ended.

        Raises:
            RuntimeError: on all ranks, with ``throw_on_early_termination``.
        """
        if not enable or self._comm.size == 1:
            yield
            return
        self._joining = _Joining(divide_by_initial_world_size, throw_on_early_termination)
        try:
            yield
            self._take_part_until_all_have_ended(self._joining)
        finally:
            self._joining = None

    def __deepcopy__(self, memo: dict[int, Any]) -> DistributedDataParallel:
        raise TypeError(
            "a DistributedDataParallel belongs to the ranks that made it together and cannot be copied by one; copy "
            "its .module, and wrap the copy on all ranks if it is to be trained"
        )

    def _call_the_roll(self, joining: _Joining) -> int:
        """Note which ranks have batches left; return the first that has one, or -1.

        Raises:
            RuntimeError: on all ranks, if one has ended and none may.
        """
        mine = np.array([not joining.ended, self.steps, *(self._position or (-1, -1))], np.int64)
        everyone = np.empty((self._comm.size, mine.size), np.int64)
        self._comm.all_gather(mine, everyone)
        left = everyone[:, 0].nonzero()[0]
        if joining.throws and left.size < self._comm.size:
            ended = name_ranks(self._comm.ranks[i] for i in (everyone[:, 0] == 0).nonzero()[0])
            raise RuntimeError(
                f"{ended} had no batch left before the other ranks (throw_on_early_termination)"
            )
        if left.size == 0:
            return -1
        first = int(left[0])
        if joining.ended:  # to be where the others are
            _, self.steps, epoch, batch = everyone[first].tolist()
            joining.position = None if epoch < 0 else (epoch, batch)
        return first

    def _take_part_until_all_have_ended(self, joining: _Joining) -> None:
        joining.ended = True
        self._settle()
        root, last = self._call_the_roll(joining), -1
        while root >= 0:
            last = root
            if self._broadcast_buffers and self.training:
                take_from(self._comm, root, self._buffers_now())
            self._send_zeros(self._last_weight if joining.counts else 0.0, failed=False)
            self._averages = True
            self._end()
            self._vote.agreement.keep(self._comm)  # the others make their step now
            root = self._call_the_roll(joining)
        complete = np.array([last])  # a rank that has seen all steps; -1 on those that have
        self._comm.all_reduce(complete, complete, op="max")
        if complete[0] >= 0:
            take_from(self._comm, int(complete[0]), [*self.module.parameters(), *self.module.buffers()])

    def _buffers_now(self) -> list[Tensor]:
        return [b for buffers in self._of_modules for b in buffers.values() if b is not None]

    def _report_unused(self) -> None:
        """Say once which parameters a backward did not use, on some ranks or on all."""
        self._reported_unused = True
        if self._comm.rank:
            return
        used = {id(p): int(n) for b in self._buckets for p, n in zip(b.params, b.used.tolist(), strict=True)}
        by_ranks: dict[int, list[str]] = {}
        for name, p in self.module.named_parameters():
            ranks = used.get(id(p), self._comm.size)
            if ranks < self._comm.size:
                by_ranks.setdefault(ranks, []).append(name)
        listed = []
        for ranks, names in sorted(by_ranks.items()):
            more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            listed.append(
                f"{', '.join(names[:_MOST_NAMED])}{more} on {ranks or 'none'} of {self._comm.size} ranks"
            )
        _logger.info(
            "this backward used parameters on some ranks only, or on none; their gradients are right (said once): %s",
            "; ".join(listed),
        )

    # -------------------------------------------------------------------------------------- one backward

    @replayed
    def _begin(self, averages: bool) -> None:
        """Prepare for the gradients of the backward that is beginning; called more than once in some."""
        if self._running:
            self._averages |= averages
            return
        try:
            queue_callback(self._end, self._abandon)
        except RuntimeError:
            raise RuntimeError(
                "backward(inputs=...) does not average gradients over the ranks; call backward() without inputs"
            ) from None
        self._settle()
        self._running = True
        self._averages = averages
        if all(p._grad is None for bucket in self._buckets for p in bucket.params):
            # Whatever was accumulated has been thrown away.
            self._weights.clear()
            self._vote.batches.clear()
        weight = backward_weight()
        self._last_weight = weight
        first = not any(self._weights)
        self._weights.append(weight)
        self._vote.batches.append(context.current().dealt)
        if first:
            self._first_weight = weight or 1.0
        scale = weight / self._first_weight
        for bucket in self._buckets:
            bucket.missing = len(bucket.params)
            bucket.weighted = (
                averages and first and not bucket.half and all(p._grad is None for p in bucket.params)
            )
            bucket.scale(weight if bucket.weighted else scale)
        if averages and self._hook is not None:
            self._weigh(sum(self._weights) / len(self._weights))

    def _begin_by_itself(self) -> None:
        if not self._running:  # not by an output of forward: by the module itself, say
            self._begin(self._synchronize)

    def _filled(self) -> None:
        """Send the buckets that are complete, in the same order on all ranks whatever the order in which they come.

        But for the last one: backward is over then, and :meth:`_end` waits for it without waking another thread.
        """
        if not self._averages:
            return
        while self._started < len(self._buckets) - 1 and self._buckets[self._started].missing <= 0:
            self._send_next()

    def _send_next(self) -> None:
        bucket = self._buckets[self._started]
        bucket.fill(self._first_weight, sum(self._weights) / len(self._weights))
        self._vote.look_at(bucket)
        if bucket is self._buckets[-1]:
            self._vote.cast(bucket)
        if self._hook is not None:
            self._level(bucket)
        self._start(bucket, stay=bucket is self._buckets[-1])

    def _start(self, bucket: Bucket, stay: bool = False) -> None:
        """Start to sum the next bucket, and ``stay`` until it is done; or start what the hook does instead."""
        index = self._started
        self._started += 1
        tag = bucket_tag(self._number, index, self.steps, self._position)
        if self._hook is None:
            if not stay:
                bucket.start(tag)
                return
            for before in self._buckets[:index]:
                before.wait()
            bucket.sum(tag)
            return
        bucket.work = self._comm.start_all_reduce(bucket.tail, bucket.tail, tag=tag)
        state, hook = self._hook
        bucket.average_of_hook = hook(state, GradBucket(bucket, index, self._started == len(self._buckets)))

    def _send_zeros(self, weight: float, *, failed: bool) -> None:
        """Take part in what is left of a step without gradients, and do not wait for the others."""
        if self._hook is not None and self._weighing is None:
            self._weigh(weight)
        while self._started < len(self._buckets):
            bucket = self._buckets[self._started]
            bucket.fill_with_zeros(weight, failed=failed)
            self._start(bucket)

    @property
    def _position(self) -> tuple[int, int] | None:
        """Where in the data the rank is, if the DataLoader deals it."""
        if self._joining is not None and self._joining.ended:
            return self._joining.position
        dealt = context.current().dealt
        return None if dealt is None else dealt.position

    def _level(self, bucket: Bucket) -> None:
        """Scale the weighted gradients so that their plain average, which a hook makes, is the weighted one."""
        if self._weighing is None:
            self._weigh(sum(self._weights) / len(self._weights))
        work, total = self._weighing
        work.wait()
        if total[0] not in (0, self._comm.size):
            bucket.sums *= bucket.sums.dtype.type(self._comm.size / total[0])

    def _weigh(self, weight: float) -> None:
        total = np.array([weight], np.float64)
        self._weighing = self._comm.start_all_reduce(total, total), total

    def _end(self) -> None:
        """Send what is left, wait for the averages, and hear the votes."""
        try:
            if not self._averages:
                for bucket in self._buckets:
                    bucket.rest()
                return
            self._send_rest()
            for bucket in self._buckets:
                bucket.average(divide=not bucket.wait())
            self._weights.clear()
            self._vote.hear(self._buckets)
            if not self._reported_unused and not all(b.is_used_everywhere for b in self._buckets):
                self._report_unused()
        finally:
            self._finish()

    def _send_rest(self) -> None:
        try:
            while self._started < len(self._buckets):
                self._send_next()
        except Exception as error:
            self._withdraw(error)
            raise

    def _abandon(self, error: BaseException) -> None:
        """The backward that was running has raised."""
        if not self._running:
            return  # it was _end
        self._weights.pop()
        self._vote.batches.pop()
        if self._averages and isinstance(error, Exception):
            self._withdraw(error)
        self._finish()

    def _withdraw(self, error: Exception) -> None:
        """Tell the other ranks, without waiting for them, that this one will not finish the step."""
        if self._started == len(self._buckets):
            return  # too late: the vote has been cast
        self._send_zeros(0, failed=True)
        self._telling = Telling(self._comm, reason(error))
        self._started = 0

    def _settle(self) -> None:
        """Wait until nothing reads or writes the buckets of a backward that has raised."""
        for bucket in self._buckets:
            bucket.wait()
        self._weighing = None
        if self._telling is not None:
            telling, self._telling = self._telling, None
            telling.wait()

    def _finish(self) -> None:
        self._running = False
        self._started = 0
        self._weighing = None
        self._vote.faults.clear()
        for bucket in self._buckets:
            bucket.scale(1.0)


class _Joining:
    """What a rank does once it has no batch left; see :meth:`DistributedDataParallel.join`."""

    def __init__(self, counts: bool, throws: bool) -> None:
        self.counts = counts
        self.throws = throws
        self.ended = False
        self.position: tuple[int, int] | None = None


class _Beginning:
    """Tells the wrapper that backward has come to an output of its module."""

    def __init__(self, owner: DistributedDataParallel, averages: bool) -> None:
        self._owner = owner
        self._averages = averages

    def __call__(self, _: Tensor) -> None:
        if accumulates():
            self._owner._begin(self._averages)


class _Arrival:
    """Tells the wrapper that the gradient of a parameter is complete."""

    def __init__(self, owner: DistributedDataParallel, bucket: Bucket) -> None:
        self.owner = owner
        self._bucket = bucket

    def __call__(self, _: Tensor) -> None:
        owner, bucket = self.owner, self._bucket
        if not owner._running:
            owner._begin_by_itself()
        bucket.missing -= 1
        if bucket.missing == 0:
            owner._filled()


def tensors_in(out: Any) -> Iterator[Tensor]:
    """Yield the tensors that a module has returned, in containers too."""
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, dict):
        for value in out.values():
            yield from tensors_in(value)
    elif dataclasses.is_dataclass(out):
        for field in dataclasses.fields(out):
            yield from tensors_in(getattr(out, field.name))
    elif isinstance(out, list | tuple):
        for value in out:
            yield from tensors_in(value)
