"""One process of a job: the ranks that it hosts, their groups, and the way to the other processes."""

import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import Context
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy

from disttrain.collectives.call import (
    AT_THE_END,
    BIT_OPS,
    DTYPES,
    OPS,
    VERBS,
    Call,
    Form,
    Tag,
    name_ranks,
)
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.errors import CollectiveError
from disttrain.collectives.ledger import Ledger, Page
from disttrain.collectives.progress import Operation, Progress, Steps
from disttrain.collectives.scheduler import Baton
from disttrain.collectives.scratch import Scratch
from disttrain.collectives.transport import Channel, Transport
from disttrain.collectives.tree import cover
from disttrain.collectives.watch import Watch
from disttrain.kernels.arrays import Array

if TYPE_CHECKING:
    from disttrain.collectives.on_gpu import GpuSide

PIECE_BYTES = 2 << 20
"""How much of an array is reduced at a time. MPI's reductions lose a factor of 2 outside the caches."""
Verb = Callable[["Group", Sequence[Call]], Steps]
"""What a group does once the ranks hosted here have made their calls."""


class Group:
    """The process's side of a group of ranks. Ranks are numbered from 0 within the group (``index``).

    Args:
        path: which calls of ``split`` have made it, by their numbers: the same on all its ranks, and that of no
            other group of them; empty for the world.
    """

    def __init__(
        self,
        host: "Host",
        ranks: Sequence[int],
        channel: Channel,
        hosted: Sequence[Sequence[int]],
        path: tuple[int, ...] = (),
    ) -> None:
        self.host = host
        self.ranks = tuple(ranks)
        """The rank in the world of each index."""
        self.path = path
        self.name = f"group {'.'.join(map(str, path))} of {name_ranks(ranks)}"[:200] if path else "the world"
        self.timeout = host.env.timeout
        """Seconds that an operation may wait for other ranks."""
        self._text = host.ledger.text(self.name)
        self.channel = channel
        self.hosted = [tuple(indices) for indices in hosted]
        """The indices that each process of the channel hosts."""
        self.here = self.hosted[channel.index]
        """The indices that this process hosts, ascending."""
        self.ranks_here = frozenset(self.ranks[i] for i in self.here)
        self.process_of = {i: p for p, indices in enumerate(self.hosted) for i in indices}
        self.subtrees = [cover(len(self.ranks), indices) for indices in self.hosted]
        """The subtrees of the fixed tree that each process of the channel can fold by itself."""
        self.most_subtrees = max(map(len, self.subtrees))
        self.others = [p for p in range(channel.size) if p != channel.index]
        self.scratch = Scratch()
        self.enclosed: dict[Hashable, Any] = {}
        """Places of small arrays in shared memory, by size and type."""
        self.in_place: dict[Hashable, Any] = {}
        """What is done with large arrays in shared memory, by their places, size and type."""
        self.of_nodes: Group | None = None
        """The same ranks as the nodes host them, over the channel to the other nodes, once it has been needed."""
        self.piece_bytes = PIECE_BYTES
        self.in_order = host.env.fixed_order
        """Whether all reductions follow the fixed tree; else a channel may have an order of its own."""
        self.on_gpu: dict[int, Any] = {}
        """The ways of arrays on GPUs, by lane (``on_gpu.way``; 0 is that of collectives), once there were some."""
        self.broken: BaseException | None = None
        """Why this group cannot be used any more."""
        self._quiet = Context()
        self._quiet.run(numpy.seterr, all="ignore")
        self._made = dict.fromkeys(self.here, 0)
        self._messages: dict[tuple[int, tuple[int, int]], int] = {}
        self._deposits: dict[int, list[Call]] = {}
        self._pairs: dict[tuple[int, int, int], Call] = {}

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)

    def quietly(self, ufunc: Callable[..., Any], left: Array, right: Array, out: Array) -> None:
        """Call a function of NumPy that says nothing of overflow and NaN: they are results, for the caller to look at.

        Costs less than ``numpy.errstate``. Only for whoever drives the operations of this group.
        """
        self._quiet.run(ufunc, left, right, out=out)

    def deposit(self, call: Call, steps: Verb, stay: bool) -> None:
        """Add one rank's part of a collective; the last one here sets it going, and may ``stay`` with it."""
        with self.host.lock:
            call.number = self._made[call.index]
            self._made[call.index] += 1
            self._note(call)
            calls = [call]
            if len(self.here) > 1:
                calls = self._deposits.setdefault(call.number, [])
                calls.append(call)
                if len(calls) < len(self.here):
                    return
                del self._deposits[call.number]
                calls.sort(key=lambda c: c.index)
        self._submit(id(self), calls, steps, stay)

    def deposit_message(self, call: Call, steps: Verb, stay: bool) -> None:
        """Add the sender's or the receiver's part of a message; the peer may be on this process too."""
        assert call.pair is not None
        source, target = call.pair
        with self.host.lock:
            call.number = self._messages.get((call.index, call.pair), 0)
            self._messages[call.index, call.pair] = call.number + 1
            self._note(call)
        calls = [call]
        if source in self.here and target in self.here:
            with self.host.lock:
                other = self._pairs.pop((source, target, call.number), None)
                if other is None:
                    self._pairs[source, target, call.number] = call
                    return
            calls.append(other)
        self._submit((id(self), source, target), calls, steps, stay)

    def _submit(self, lane: Hashable, calls: Sequence[Call], steps: Verb, stay: bool) -> None:
        progress = self.host.progress
        if stay:
            progress.run(lane, calls, steps(self, calls))
        else:
            progress.submit(Operation(lane, calls, steps(self, calls)))

    def _note(self, call: Call) -> None:
        call.group = self
        call.page = page = self.host.ledger.pages[self.ranks[call.index]]
        call.entry = page.enter(call.number, call.tag, call.source, self._text, call.form.noted)

    def note(self, tag: Tag, source: tuple[str, int], form: Form) -> tuple[int, Page, int]:
        """Count and note a collective of the one rank here; return its number, and where it is noted as which entry."""
        (index,) = self.here
        page = self.host.ledger.pages[self.ranks[index]]
        with self.host.lock:
            number = self._made[index]
            self._made[index] = number + 1
            return number, page, page.enter(number, tag, source, self._text, form.noted)


class Host:
    """What one process brings to a job. Each rank that it hosts has a ``Communicator`` over the world."""

    def __init__(
        self,
        env: WorkerEnv,
        transport: Transport,
        *,
        threads: bool,
        on_switch: Callable[[int], None] | None = None,
    ) -> None:
        self.env = env
        self.transport = transport
        self.lock = threading.Lock()
        self.progress = Progress()
        ranks = range(env.rank, env.rank + env.hosted)
        tables = {
            "verbs": VERBS,
            "ops": OPS + BIT_OPS,
            "dtypes": list(map(str, DTYPES)),
            "generation": env.generation,
        }
        self.ledger = Ledger(ranks, tables, env.ledger)
        self.baton = Baton(ranks, self.progress, env.schedule, on_switch) if threads else None
        self.world = Group(self, range(env.world_size), transport.world, transport.hosts)
        self.failure: BaseException | None = None
        """What has failed on the GPU, where nobody waited for it."""
        self.communicators: dict[int, Any] = {}
        """The world communicator of each hosted rank, once it has asked for it."""
        self.waits: dict[int, tuple[Call, float]] = {}
        """The call that each rank cannot go on without, and since when, by ``time.monotonic()``."""
        self.failed: dict[int, Call] = {}
        """The first call of each rank that failed."""
        self.told: set[int] = set()
        """Ranks that have been told of a failure; others of the same cause may have been left behind then."""
        if not threads:
            self.ledger.pages[env.rank].set_thread(threading.main_thread().native_id or 0)
        watched = env.processes > 1 or (env.hosted > 1 and self.ledger.descriptor >= 0)
        self.watch = Watch(self) if watched else None

    def node_of(self, rank: int) -> int:
        """Return the number of the node on which a rank of the world is."""
        return self.transport.nodes[self.world.process_of[rank]]

    @cached_property
    def gpu(self) -> "GpuSide":
        """What arrays on a GPU need, once there were some."""
        from disttrain.collectives.on_gpu import GpuSide

        return GpuSide(self)

    @property
    def uses_gpu(self) -> bool:
        """Whether there were arrays on a GPU."""
        return "gpu" in self.__dict__

    def check(self, group: Group) -> None:
        """Raise if a call on ``group`` could never complete."""
        if self.baton is not None:
            self.baton.check()
        if self.failure is not None:
            raise CollectiveError(f"the GPU cannot be used any more: {self.failure}") from self.failure
        if group.broken is not None:
            raise CollectiveError(f"this group cannot be used any more: {group.broken}") from group.broken

    def wait(self, rank: int, call: Call) -> None:
        """Return once ``call`` of ``rank`` has finished."""
        with self._waiting(rank, call):
            if self.baton is not None:
                self.baton.wait(rank, call)
            else:
                self.progress.drive(lambda: call.finished)

    def finish(self, rank: int, call: Call) -> None:
        """Return once ``call`` of ``rank`` has finished, and raise what it failed with."""
        if not call.finished:
            self.wait(rank, call)
        if call.error is not None:
            self.told.add(rank)
            raise call.error

    @contextmanager
    def _waiting(self, rank: int, call: Call) -> Iterator[None]:
        page = self.ledger.pages[rank]
        self.waits[rank] = (call, time.monotonic())
        page.wait(call.entry)
        try:
            yield
        finally:
            self.waits.pop(rank, None)
            page.wait(-1)

    def test(self, rank: int, call: Call) -> bool:
        """Return whether ``call`` of ``rank`` has finished, after giving it a chance to."""
        if not call.finished:
            self.progress.poll()
            if self.baton is not None and not call.finished:
                self.baton.offer(rank)
        return call.finished

    def abort(self, reason: str, code: int) -> None:
        """End the whole job at once."""
        print(reason, file=sys.stderr, flush=True)
        self.transport.abort(code)

    def close(self, steps: Verb) -> None:
        """End communication. All processes take part, on behalf of all ranks that they host.

        Raises:
            CollectiveMismatch: some rank is still in, or has started and left behind, another call.
            CollectiveError: a call of a rank failed that has not been told of any, as it did not wait for it.
        """
        if self.uses_gpu:
            self.progress.drive(lambda: self.gpu.watchdog.idle or self.failure)
        # Who has waited too long, or was interrupted, leaves without the others, who may never come.
        if isinstance(self.world.broken, CollectiveError) or self.failure is not None:
            self.stop()
            return
        try:
            self._say_goodbye(steps)
            if self.uses_gpu:
                self.gpu.close()
        finally:
            self.stop()
        self.transport.close()
        for call in (self.failed[rank] for rank in sorted(self.failed.keys() - self.told)):
            raise CollectiveError(f"nobody waited for {call.name}, which has failed") from call.error

    def stop(self) -> None:
        """End the threads of this process that look after its calls."""
        if self.watch is not None:
            self.watch.close()
        self.progress.close()
        if self.uses_gpu:
            self.gpu.stop()

    def _say_goodbye(self, steps: Verb) -> None:
        if self.world.broken is None:
            calls = [Call("close") for _ in self.world.here]
            for index, call in zip(self.world.here, calls, strict=True):
                call.index = index
                call.source = AT_THE_END
                call.generation = self.env.generation
                self.world.deposit(call, steps, stay=False)
            with ExitStack() as waits:
                for call in calls:
                    waits.enter_context(self._waiting(self.world.ranks[call.index], call))
                self.progress.drive(lambda: any(c.error for c in calls) or all(c.finished for c in calls))
            for call in calls:
                if call.error is not None:
                    raise call.error
