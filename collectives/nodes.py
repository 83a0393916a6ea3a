"""A channel between processes of several nodes: shared memory inside a node, messages between nodes."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from disttrain.collectives.memory import NodeMemory
from disttrain.collectives.mpi import MpiChannel, gather_over
from disttrain.collectives.shared import STAGE_BYTES, SharedChannel, open_shared
from disttrain.collectives.transport import Channel

NETWORK_STAGE_BYTES = 4 * STAGE_BYTES
"""A stage whose pieces go over a network too: what costs little per byte there."""
_logger = logging.getLogger("disttrain")


@dataclass(frozen=True)
class Home:
    """Where the processes of a channel are, in its order, and what those of this process's node share."""

    nodes: Sequence[int]
    """The node of each process."""
    places: Sequence[int]
    """The number of each process in the memory of its node."""
    memory: NodeMemory

    def of(self, processes: Sequence[int]) -> "Home":
        """Return the same for some of the processes."""
        nodes, places = [self.nodes[p] for p in processes], [self.places[p] for p in processes]
        return Home(nodes, places, self.memory)


class NodesChannel(MpiChannel):
    """A channel over processes of several nodes, of which one at least has several processes.

    The k-th processes of all nodes are a *column*, and each column carries its part of an array from node to node.
    Where the nodes have different numbers of processes there are as many columns as the smallest has.

    Raises:
        MemoryError: on all processes alike, if one of them has no room left in shared memory.
    """

    def __init__(self, mpi: Any, comm: Any, home: Home) -> None:
        super().__init__(mpi, comm)
        self._home = home
        names = list(dict.fromkeys(home.nodes))
        self.nodes = [[p for p, n in enumerate(home.nodes) if n == name] for name in names]
        """The processes of each node."""
        self.node = names.index(home.nodes[self.index])
        """Which of them is this one's."""
        here = self.nodes[self.node]
        self.columns = min(map(len, self.nodes))
        """Number of columns."""
        column = here.index(self.index)
        self.inside = _inside(mpi, comm, home, here, self.node)
        """This process and the others of its node, in the order of ``nodes``."""
        between = comm.Split(column if column < self.columns else mpi.UNDEFINED, self.node)
        self.between = None if between == mpi.COMM_NULL else MpiChannel(mpi, between)
        """The column that this process is in, in the order of ``nodes``; ``None`` if it is in none."""

    def _make(self, comm: Any, processes: Sequence[int]) -> Channel:
        made = connect(self._mpi, comm, self._home.of(processes))
        if isinstance(made, SharedChannel):
            comm.Free()  # nothing goes through it any more
        return made

    def close(self) -> None:
        self.inside.close()
        if self.between is not None:
            self.between.close()
        super().close()


def connect(mpi: Any, comm: Any, home: Home) -> Channel:
    """Return the channel over the processes of ``comm`` that fits where they are; all of them call this together."""
    nodes = set(home.nodes)
    try:
        if len(nodes) == 1 < len(home.nodes):
            return open_shared(home.memory, home.places, gather_over(mpi, comm))
        if 1 < len(nodes) < len(home.nodes):
            return NodesChannel(mpi, comm, home)
    except MemoryError as error:
        if comm.Get_rank() == 0:
            _logger.warning("a group of %d processes goes through MPI: %s", len(home.nodes), error)
    return MpiChannel(mpi, comm)


def _inside(mpi: Any, comm: Any, home: Home, here: Sequence[int], node: int) -> SharedChannel:
    """Return the channel over the processes ``here`` of one node; all processes of ``comm`` make theirs together."""
    own = comm.Split(node, comm.Get_rank())
    made: SharedChannel | None = None
    try:
        members = [home.places[p] for p in here]
        made = open_shared(home.memory, members, gather_over(mpi, own), NETWORK_STAGE_BYTES)
    except MemoryError:
        pass  # which all are told
    own.Free()
    has = numpy.array([made is not None], numpy.int64)
    have = numpy.empty(comm.Get_size(), numpy.int64)
    comm.Allgather(has, have)
    if made is not None and have.all():
        return made
    if made is not None:
        made.close()
    raise MemoryError("the memory that the processes of a node share is used up")
