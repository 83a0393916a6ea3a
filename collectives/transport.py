"""What a transport must be able to do: four ways to move bytes between processes, none of which blocks.

Everything else (headers, matching, order of reduction, timeouts) is written once, on top of these.
"""

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from disttrain.collectives.env import WorkerEnv
from disttrain.kernels.arrays import Array

if TYPE_CHECKING:
    from disttrain.collectives.memory import NodeMemory

Request = Callable[[], bool]
"""Something in flight: call it to make progress; returns whether it has completed. Not called after that."""
Gather = Callable[[bytes], list[bytes]]
"""Tells bytes, of one length, to all of some processes and returns those of all of them in their order."""
_IDENTITY = struct.Struct("=4q")


class Channel(Protocol):
    """The processes of one group. Calls on a channel are made in the same order by all its processes."""

    index: int
    """Which of the channel's processes this is."""
    size: int
    """Number of processes of the channel."""

    def gather_headers(self, mine: bytes) -> tuple[Request, bytearray]:
        """Send ``mine`` to every process; the buffer holds all of them, in process order, once complete."""

    @property
    def all_reduce(self) -> Callable[[Array, str], Request] | None:
        """Reduce the flat array ``x`` in place, in whatever order the transport finds fastest: ``all_reduce(x, op)``.

        ``x`` is of an integer type, float32 or float64; ``op`` is one of ``OPS`` or, for integers, ``BIT_OPS``.
        ``None`` where the channel only moves bytes.
        """

    def exchange(
        self,
        sends: Sequence[tuple[int, Array]],
        receives: Sequence[tuple[int, Array]],
        lane: int = 0,
    ) -> Request:
        """Send each (process, flat array), receive into each (process, flat array).

        The k-th array sent to a process meets the k-th that it receives from here on the same ``lane``.
        Empty arrays are left out. ``lane`` keeps point-to-point traffic apart from collectives.
        """

    def narrow(self, processes: Sequence[int]) -> tuple[Request, Callable[[], "Channel"]]:
        """Make a channel over some of the processes, called by exactly those; it is there once complete."""

    def leave(self) -> Request:
        """Say that this process reads nothing of the channel any more; complete once all have."""

    def close(self) -> None:
        """Free what the channel holds; all processes have left."""


class Mailbox(Protocol):
    """Short letters between processes, which come when they come; they are no calls and have no order."""

    def send(self, process: int, data: bytes) -> None:
        """Send ``data`` to a process, and do not wait until it has come."""

    def receive(self) -> bytes | None:
        """Return a letter that has come, or ``None``."""

    def close(self) -> None:
        """Receive nothing any more; what is still on its way is lost."""


class Transport(Protocol):
    """How the processes of a job reach each other."""

    name: str
    world: Channel
    """All processes of the job, in the order of ``WorkerEnv.process``."""
    hosts: list[range]
    """The ranks that each process hosts, by process."""
    nodes: list[int]
    """The node of each process, numbered from 0 in the order of their first processes."""
    memory: "NodeMemory | None"
    """What the processes of this node share, if they do."""

    def open_mailbox(self) -> Mailbox:
        """Return a way to write to the other processes; all of them call this together."""

    def abort(self, code: int) -> None:
        """End all processes of the job at once, as far as the transport can."""

    def close(self) -> None:
        """End communication; all processes take part, and nothing can be sent afterwards."""


def exchange_hosts(env: WorkerEnv, gather: Gather) -> list[range]:
    """Return the ranks that each process hosts, once all processes have told who they are.

    Raises:
        RuntimeError: they are not the processes of one job.
    """
    mine = env.process, env.rank, env.hosted, env.world_size
    told = [_IDENTITY.unpack(theirs) for theirs in gather(_IDENTITY.pack(*mine))]
    hosts = [range(rank, rank + hosted) for _, rank, hosted, _ in told]
    in_order = [process for process, *_ in told] == list(range(env.processes))
    if not in_order or [rank for host in hosts for rank in host] != list(range(env.world_size)):
        raise RuntimeError(
            f"the processes of this job do not agree on who they are; "
            f"(process, rank, hosted, world size): {told}. Start the job with `disttrain launch`"
        )
    return hosts
