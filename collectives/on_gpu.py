"""Calls with arrays on the GPU: over NCCL, or through host memory; both after the ranks have agreed on the call.

A call is over for the CPU once it has its place in a stream of its own. That stream waits for what the caller had asked
of the GPU before (``Call.ready``), and the caller's stream waits for the call (``Call.passed``).
"""

import logging
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import numpy

from disttrain.collectives import moves, nccl
from disttrain.collectives.call import Call
from disttrain.collectives.cuda import Event, Gpu, Stream
from disttrain.collectives.errors import TransportUnavailable
from disttrain.collectives.host import Group, Host
from disttrain.collectives.nccl import Link, NcclChannel
from disttrain.collectives.progress import Steps, Wait
from disttrain.collectives.reduction import copy_flat, flat, operation
from disttrain.collectives.scratch import Scratch
from disttrain.collectives.staging import Staging
from disttrain.collectives.transport import Request
from disttrain.collectives.watchdog import Flight, Watchdog
from disttrain.kernels.arrays import Array, copy_into

PIECE_BYTES = 32 << 20
"""How much of an array is folded at a time along the fixed tree."""
Move = Callable[[Group, Sequence[Call]], Steps]
"""What the processes of a group do with arrays of the host, once they have agreed on a call."""
_logger = logging.getLogger("disttrain")


class GpuSide:
    """The GPU of a process, and all that is in flight on it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._gpu: Gpu | None = None
        self._copies: Stream = None
        self._said: set[str] = set()
        self._stopped = False
        self.fixed_order = host.env.fixed_order
        self.transport = host.env.transport
        """``nccl``: over NCCL or not at all. ``auto``: over NCCL if that is possible. Others: through host memory."""
        self.watchdog = Watchdog(self._give_up, lambda reason: host.abort(reason, 1))

    @property
    def gpu(self) -> Gpu:
        """The one that the process uses."""
        assert self._gpu is not None
        return self._gpu

    @property
    def copies(self) -> Stream:
        """The stream of messages between ranks of this process."""
        if self._copies is None:
            self._copies = self.gpu.new_stream()
        return self._copies

    def accept(self, x: Array) -> Event:
        """Return the event after which ``x`` is what the calling thread has made of it.

        Raises:
            ValueError: it is not on the GPU that the process uses.
        """
        index = int(x.device.id)
        if self._gpu is None:
            with self._host.lock:
                self._gpu = self._gpu or Gpu(index)
        if index != self.gpu.index:
            raise ValueError(
                f"an array is on GPU {index}, and this process has communicated from GPU {self.gpu.index}; a process "
                f"uses one GPU: start a process for each"
            )
        self.watchdog.look_after(threading.get_ident())
        return self.gpu.mark()

    def follow(self, event: Event) -> None:
        """Let what the calling thread asks of the GPU from now on come after ``event``."""
        self.gpu.follow(event)

    def in_order(
        self, group: Group, stream: Stream, calls: Sequence[Call], steps: Steps, link: Link | None = None
    ) -> Steps:
        """Let ``steps`` put their work into ``stream``, behind what the callers had asked for before."""
        for call in calls:
            stream.wait_event(call.ready)
        flight = self.watchdog.begin(Flight(calls, _world_ranks(group, calls), link))
        try:
            while True:
                with self.gpu.on(stream):
                    wait = next(steps, None)
                if wait is None:
                    break
                yield wait
            flight.event = self.gpu.mark(stream)
        except BaseException:
            self.watchdog.drop(flight)
            raise
        for call in calls:
            call.passed = flight.event

    def staged(
        self, group: Group, staging: Staging, calls: Sequence[Call], move: Callable[[Sequence[Call]], Steps]
    ) -> Steps:
        """Take ``calls`` through host memory."""
        yield from staging.run(calls, move)
        flight = Flight(calls, _world_ranks(group, calls), None)
        flight.event = calls[0].passed
        self.watchdog.begin(flight)

    def meet(
        self,
        key: tuple[int, ...],
        index: int,
        ranks: Sequence[Sequence[int]],
        tell: Callable[[bytes], tuple[Request, bytearray]],
    ) -> Generator[Wait, None, Link | None]:
        """Connect some processes over NCCL; all of them call this, and agree on the result.

        Yields what it waits for; its value is the link, or ``None`` if arrays have to go through host memory.

        Args:
            key: what they connect for, the same on all of them and unlike any other.
            index: which of them this is.
            ranks: those that each process hosts.
            tell: sends bytes to all of the processes and receives theirs.

        Raises:
            TransportUnavailable: NCCL was asked for by name, and cannot be used.
        """
        wanted, over = self.transport, self._host.transport.name
        if wanted not in ("auto", "nccl"):
            self._say(index, f"GPU arrays go through host memory over {over} (asked for)")
            return None
        request, everyone = tell(nccl.offer(self.gpu))
        yield request, False
        offers = bytes(everyone)
        why_not = nccl.refusal(offers, ranks)
        if why_not and wanted == "nccl":
            raise TransportUnavailable(f"the nccl transport cannot connect these processes: {why_not}")
        if why_not:
            self._say(index, f"GPU arrays go through host memory over {over}: {why_not}")
            return None
        self._say(index, f"GPU arrays go over nccl {nccl.version_in(offers)} (a GPU for each process)")
        request, everyone = tell(nccl.unique_id(first=index == 0))
        yield request, False
        connected, made = nccl.connect(self.gpu, len(ranks), bytes(everyone), index, self._is_over)
        yield connected, False
        link = made()
        self.watchdog.links[key] = link
        return link

    def _say(self, index: int, line: str) -> None:
        if index == 0 and line not in self._said:
            self._said.add(line)
            _logger.info(line)

    def _give_up(self, error: BaseException) -> None:
        self._host.failure = error

    def close(self, keys: Iterable[tuple[int, ...]] | None = None) -> None:
        """Free what NCCL holds for ``keys`` (all by default); nothing is in flight on any process."""
        links = self.watchdog.links
        for key in sorted(links.keys() & (links if keys is None else keys)):  # in one order on all processes
            links.pop(key).close()

    def _is_over(self) -> bool:
        return self._stopped or self._host.failure is not None

    def stop(self) -> None:
        """End the watchdog, and abort what :meth:`close` has not freed: the other processes may never come."""
        self._stopped = True
        self.watchdog.close()
        self.watchdog.abort()


class _Direct:
    """The way within one process, or over NCCL: the same steps as on the CPU, put into a stream."""

    def __init__(self, group: Group, link: Link | None) -> None:
        self._side = group.host.gpu
        self._link = link
        channel = group.channel if link is None else NcclChannel(group.channel, link)
        self._group = Group(group.host, group.ranks, channel, group.hosted, group.path)
        self._group.scratch = _GpuScratch(self._side.gpu)
        self._group.piece_bytes = PIECE_BYTES
        self._group.in_order = True  # what may have another order is done by NCCL as a whole
        self._alone = group.hosted == [(p,) for p in range(group.size)]
        self._stream = self._side.gpu.new_stream() if link is None else link.stream

    def run(self, calls: Sequence[Call]) -> Steps:
        verb = calls[0].verb
        native = _NATIVE.get(verb) if self._alone else None
        if self._link is not None and native is not None and (not calls[0].op or self._may_reorder(calls[0])):
            steps = _at_once(native, self._link, calls[0])
        else:
            steps = moves.VERBS[verb](self._group, calls)
        yield from self._side.in_order(self._group, self._stream, calls, steps, self._link)

    def _may_reorder(self, call: Call) -> bool:
        """Return whether NCCL's own reduction will do: it has another order and leaves min and max of NaN open."""
        x, op = flat(call.x, call.op), operation(call)
        known = op in ("sum", "prod") or (op in ("min", "max") and x.dtype.kind in "iu")
        return known and x.dtype in nccl.TYPES and not self._side.fixed_order


class _Staged:
    """The way through host memory, over the channel of the host."""

    def __init__(self, group: Group, move: Move) -> None:
        self._group = group
        self._move = move
        self._staging = Staging(group.host.gpu.gpu, group.size, max(map(len, group.hosted)))

    def run(self, calls: Sequence[Call]) -> Steps:
        first = True

        def move(parts: Sequence[Call]) -> Steps:
            nonlocal first
            if (
                not first
            ):  # between two calls is a header: nobody is still reading what the last one has shown
                request, _ = self._group.channel.gather_headers(b"piece")
                yield request, False
            first = False
            self._group.scratch.reset()
            yield from self._move(self._group, parts)

        yield from self._group.host.gpu.staged(self._group, self._staging, calls, move)


class _GpuScratch(Scratch):
    """GPU memory for one step; the pool gives it to the next one in the same stream, so nothing has to wait."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self._gpu = gpu

    def reset(self) -> None:
        pass

    def take(self, count: int, dtype: Any) -> Array:
        memory: Array = self._gpu.xp.empty(count, dtype)
        return memory


def collective(group: Group, calls: Sequence[Call], move: Move) -> Steps:
    """Do what all ranks of the group have agreed on, with arrays on the GPU.

    Raises:
        TransportUnavailable: NCCL was asked for by name, and cannot be used; on all ranks.
        PeerFailed: NCCL cannot go on. Nothing can be called any more.
    """
    if 0 not in group.on_gpu:
        link = None
        if group.channel.size > 1:
            ranks = [[group.ranks[i] for i in hosted] for hosted in group.hosted]
            link = yield from group.host.gpu.meet(
                _key(group, 0), group.channel.index, ranks, group.channel.gather_headers
            )
        staged = link is None and group.channel.size > 1
        group.on_gpu[0] = _Staged(group, move) if staged else _Direct(group, link)
    yield from _or_break(group, group.on_gpu[0].run(calls))


def message(group: Group, calls: Sequence[Call], lane: int = 0) -> Steps:
    """Move an array from one rank to another, on whose call both have agreed.

    Each direction between two ranks has a communicator of NCCL for itself: in one that others use too, messages and
    collectives that two processes begin in different orders would wait for each other.
    """
    side = group.host.gpu
    if len(calls) == 2:
        sender, receiver = sorted(calls, key=lambda call: call.x is None)
        yield from side.in_order(group, side.copies, calls, _copy(sender.x, receiver.out))
        return
    (call,) = calls
    assert call.pair is not None
    source, target = (group.process_of[i] for i in call.pair)
    index, peer = (0, target) if call.out is None else (1, source)
    if lane not in group.on_gpu:

        def tell(mine: bytes) -> tuple[Request, bytearray]:
            both = bytearray(2 * len(mine))
            both[index * len(mine) : (index + 1) * len(mine)] = mine
            parts = numpy.frombuffer(both, numpy.uint8).reshape(2, -1)
            return group.channel.exchange([(peer, parts[index])], [(peer, parts[1 - index])], lane), both

        pair = [[group.ranks[i]] for i in call.pair]
        link = yield from side.meet(_key(group, lane), index, pair, tell)
        group.on_gpu[lane] = link or Staging(side.gpu)
    way = group.on_gpu[lane]
    if isinstance(way, Link):
        steps = side.in_order(group, way.stream, calls, _at_once(_pass, way, call), way)
    else:
        steps = side.staged(group, way, calls, lambda parts: _exchange(group, parts[0], peer, lane))
    yield from _or_break(group, steps)


def settled(group: Group) -> Request:
    """Return what asks whether nothing is in flight on the GPU."""
    return lambda: group.host.gpu.watchdog.idle


def close(group: Group) -> None:
    """Free what NCCL holds for the group; nothing is in flight on any of its processes."""
    group.host.gpu.close([_key(group, lane) for lane in group.on_gpu])
    group.on_gpu.clear()


def _key(group: Group, lane: int) -> tuple[int, ...]:
    return (len(group.path), *group.path, lane, *group.ranks)


def _or_break(group: Group, steps: Steps) -> Steps:
    """Whoever fails after all have agreed is out of step with the others, who may wait on the GPU for ever."""
    try:
        yield from steps
    except Exception as error:
        group.host.failure = error
        raise


def _exchange(group: Group, call: Call, peer: int, lane: int) -> Steps:
    sends = [] if call.x is None else [(peer, flat(call.x))]
    receives = [] if call.out is None else [(peer, flat(call.out))]
    yield group.channel.exchange(sends, receives, lane), False


def _copy(x: Array, out: Array) -> Steps:
    copy_into(flat(out), flat(x))
    yield from ()


def _at_once(verb: Callable[[Link, Call], None], link: Link, call: Call) -> Steps:
    if call.like.size:
        verb(link, call)
    yield from ()


def _pass(link: Link, call: Call) -> None:
    if call.out is None:
        link.exchange([(1, flat(call.x))], [])
    else:
        link.exchange([], [(0, flat(call.out))])


def _all_reduce(link: Link, call: Call) -> None:
    out = flat(call.out, call.op)
    copy_flat(flat(call.x, call.op), out)
    link.all_reduce(out, operation(call))


def _reduce(link: Link, call: Call) -> None:
    out = None if call.out is None else flat(call.out, call.op)
    link.reduce(flat(call.x, call.op), out, call.root, operation(call))


def _reduce_scatter(link: Link, call: Call) -> None:
    link.reduce_scatter(flat(call.x, call.op), flat(call.out, call.op), operation(call))


def _all_gather(link: Link, call: Call) -> None:
    link.all_gather(flat(call.x), flat(call.out))


def _broadcast(link: Link, call: Call) -> None:
    link.broadcast(flat(call.out), call.root)


_NATIVE: dict[str, Callable[[Link, Call], None]] = {
    "all_reduce": _all_reduce,
    "reduce": _reduce,
    "reduce_scatter": _reduce_scatter,
    "all_gather": _all_gather,
    "broadcast": _broadcast,
}
"""What NCCL does as a whole where each process hosts one rank, in order, so that its numbers are those of the ranks."""


def _world_ranks(group: Group, calls: Sequence[Call]) -> list[int]:
    return [group.ranks[call.index] for call in calls]
