"""One process of a job: the ranks that it hosts, their groups, and the way to the other processes."""

import logging
import sys
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from disttrain.collectives.call import AT_THE_END, Call, name_ranks
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.errors import CollectiveError, CollectiveTimeout
from disttrain.collectives.progress import Operation, Progress, Steps
from disttrain.collectives.scheduler import Baton
from disttrain.collectives.scratch import Scratch
from disttrain.collectives.transport import Channel, Transport
from disttrain.collectives.tree import cover

_MOST_ASKED = 4
"""Of so many processes at most a notice says where they are."""
_logger = logging.getLogger("disttrain")

Verb = Callable[["Group", Sequence[Call]], Steps]
"""What a group does once the ranks hosted here have made their calls."""


class Group:
    """The process's side of a group of ranks. Ranks are numbered from 0 within the group (``index``)."""

    def __init__(
        self, host: "Host", ranks: Sequence[int], channel: Channel, hosted: Sequence[Sequence[int]]
    ) -> None:
        self.host = host
        self.ranks = tuple(ranks)
        """The rank in the world of each index."""
        self.channel = channel
        self.hosted = [tuple(indices) for indices in hosted]
        """The indices that each process of the channel hosts."""
        self.here = self.hosted[channel.index]
        """The indices that this process hosts, ascending."""
        self.process_of = {i: p for p, indices in enumerate(self.hosted) for i in indices}
        self.subtrees = [cover(len(self.ranks), indices) for indices in self.hosted]
        """The subtrees of the fixed tree that each process of the channel can fold by itself."""
        self.most_subtrees = max(map(len, self.subtrees))
        self.others = [p for p in range(channel.size) if p != channel.index]
        self.scratch = Scratch()
        self.enclosed: dict[Hashable, Any] = {}
        """Places of small arrays in shared memory, by size and type."""
        self.of_nodes: Group | None = None
        """The same ranks as the nodes host them, over the channel to the other nodes, once it has been needed."""
        self.broken: BaseException | None = None
        """Why this group cannot be used any more."""
        self._made = dict.fromkeys(self.here, 0)
        self._messages: dict[tuple[int, tuple[int, int]], int] = {}
        self._deposits: dict[int, list[Call]] = {}
        self._pairs: dict[tuple[int, int, int], Call] = {}

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)

    def deposit(self, call: Call, steps: Verb, stay: bool) -> None:
        """Add one rank's part of a collective; the last one here sets it going, and may ``stay`` with it."""
        with self.host.lock:
            call.number = self._made[call.index]
            self._made[call.index] += 1
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
        operation = Operation(lane, calls, steps(self, calls), self._timed_out, self._still_waits)
        (progress.run if stay else progress.submit)(operation)

    def _still_waits(self, operation: Operation, waited: float) -> None:
        """Say which ranks a call waits for, and where they are; one process of those that wait does."""
        call = operation.calls[0]
        if call.pair is not None:
            absent = [self.process_of[i] for i in call.pair if i not in self.here]
        else:
            absent = self.channel.absent()
            if self.channel.index != min(set(range(self.channel.size)) - set(absent)):
                return
        away = name_ranks(self.ranks[i] for p in absent for i in self.hosted[p])
        if call.awaited is not None and self.process_of[0] in absent:
            _logger.info("%s: %s, %.0f s so far", away, call.awaited, waited)
            return
        here = name_ranks(self.ranks[c.index] for c in operation.calls)
        lines = [
            f"{here} has waited {waited:.0f} s in {call} at {call.place}" + (f" for {away}" if absent else "")
        ]
        for p in absent[:_MOST_ASKED]:
            ranks = name_ranks(self.ranks[i] for i in self.hosted[p])
            lines += [f"  {ranks}:", *[f"    {line}" for line in self.channel.where_is(p)]]
        _logger.warning("\n".join(lines))

    def _timed_out(self, operation: Operation, waited: float) -> BaseException:
        call = operation.calls[0]
        here = name_ranks(self.ranks[c.index] for c in operation.calls)
        met = range(self.size) if call.pair is None else call.pair
        away = [self.ranks[i] for i in met if i not in self.here]
        self.broken = CollectiveTimeout(
            f"{here} waited {waited:.1f} s in {call} at {call.place} (call number {call.number} of its "
            f"group) for {name_ranks(away)}; look for a rank that stopped, left early or skipped the call. "
            f"If it only computes that long, raise --timeout."
        )
        return self.broken


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
        self.progress = Progress(env.timeout)
        ranks = range(env.rank, env.rank + env.hosted)
        self.baton = Baton(ranks, self.progress, on_switch) if threads else None
        self.world = Group(self, range(env.world_size), transport.world, transport.hosts)
        self.communicators: dict[int, Any] = {}
        """The world communicator of each hosted rank, once it has asked for it."""

    def node_of(self, rank: int) -> int:
        """Return the number of the node on which a rank of the world is."""
        return self.transport.nodes[self.world.process_of[rank]]

    def check(self, group: Group) -> None:
        """Raise if a call on ``group`` could never complete."""
        if self.baton is not None:
            self.baton.check()
        if group.broken is not None:
            raise CollectiveError(f"this group cannot be used any more: {group.broken}") from group.broken

    def wait(self, rank: int, call: Call) -> None:
        """Return once ``call`` of ``rank`` has finished."""
        if self.baton is not None:
            self.baton.wait(rank, call)
        else:
            self.progress.drive(lambda: call.finished)

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
        """
        if isinstance(self.world.broken, CollectiveTimeout):  # the others may never come: leave without them
            self.progress.close()
            return
        try:
            self._say_goodbye(steps)
        finally:
            self.progress.close()
        self.transport.close()

    def _say_goodbye(self, steps: Verb) -> None:
        if self.world.broken is None:
            calls = [Call("close") for _ in self.world.here]
            for index, call in zip(self.world.here, calls, strict=True):
                call.index = index
                call.source = AT_THE_END
                call.generation = self.env.generation
                self.world.deposit(call, steps, stay=False)
            self.progress.drive(lambda: any(c.error for c in calls) or all(c.finished for c in calls))
            for call in calls:
                if call.error is not None:
                    raise call.error
