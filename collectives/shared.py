"""A channel between processes of one node that share memory: they meet by counters and read each other's arrays."""

import logging
import struct
from collections.abc import Sequence
from typing import Any

import numpy

from disttrain.collectives.memory import NodeMemory
from disttrain.collectives.mpi import MpiChannel
from disttrain.collectives.transport import Channel, Request
from disttrain.kernels.arrays import Array

SMALL_BYTES = 64 << 10
"""Up to here arrays travel with the header, and every process folds everything itself: one meeting, not four."""
STAGE_BYTES = 1 << 20
"""What the caches hold."""
_logger = logging.getLogger("disttrain")
_SLOT_BYTES = 256
_PLACES = struct.Struct("<2q")
_PLACES_AT = _SLOT_BYTES - _PLACES.size
_CONTROL_BYTES = 4096


class SharedChannel(MpiChannel):
    """A channel over processes that share ``memory``. Messages between two ranks go through MPI.

    Each process counts its steps where all can see it. A step is over when all counters have come as far, and what a
    process has written before its step is there for all after it (x86-64 keeps stores in order). Headers and small
    arrays have two places, used in turn: a process writes a place again only after a step that the others make when
    they have read it.

    Args:
        members: the processes of ``memory`` that the channel connects, in its order.
        stage_bytes: size of the places through which larger arrays go that are not in shared memory themselves.

    Raises:
        MemoryError: on all processes alike, if one of them has no room left for it.
    """

    def __init__(
        self,
        mpi: Any,
        comm: Any,
        memory: NodeMemory,
        members: Sequence[int],
        stage_bytes: int = STAGE_BYTES,
    ) -> None:
        super().__init__(mpi, comm)
        self.memory = memory
        self._members = tuple(members)
        self.stage_bytes = stage_bytes
        nbytes = _CONTROL_BYTES + 2 * SMALL_BYTES + 2 * stage_bytes
        self._mine = memory.empty(nbytes, numpy.uint8)
        told = numpy.array([-1 if self._mine is None else memory.offset_of(self._mine)], numpy.int64)
        if self._mine is not None:
            self._mine[:_CONTROL_BYTES] = 0
        offsets = numpy.empty(self.size, numpy.int64)
        comm.Allgather(told, offsets)
        if (offsets < 0).any():
            raise MemoryError("the memory that the processes of this node share is used up")
        memory.keep(self._mine)  # others may read it after this process is through with the channel
        blocks = [memory.part(p, offset, nbytes) for p, offset in zip(members, offsets.tolist(), strict=True)]
        self._counters = [memoryview(b[:8]).cast("q") for b in blocks]
        self._others = [c for p, c in enumerate(self._counters) if p != self.index]
        self._slots = [[memoryview(b)[64 + i * _SLOT_BYTES :][:_SLOT_BYTES] for i in (0, 1)] for b in blocks]
        small, stage = _CONTROL_BYTES, _CONTROL_BYTES + 2 * SMALL_BYTES
        self.small = [[b[small + i * SMALL_BYTES :][:SMALL_BYTES] for i in (0, 1)] for b in blocks]
        """By process: the two places for arrays that travel with the header."""
        self.stages = [[b[stage + i * stage_bytes :][:stage_bytes] for i in (0, 1)] for b in blocks]
        """By process: the two places for pieces of larger arrays."""
        self._steps = 0
        self._cuts: dict[int, list[list[memoryview]]] = {}
        self._slot = 0
        self.headers = 0
        """How many headers were gathered so far; the next one goes with ``small[...][headers & 1]``."""

    def step(self) -> Request:
        """Say that this process has come so far; complete once all have."""
        self._steps = n = self._steps + 1
        self._counters[self.index][0] = n
        others = self._others
        if len(others) == 1:
            (other,) = others
            return lambda: other[0] >= n

        def all_have() -> bool:
            return all(c[0] >= n for c in others)

        return all_have

    def gather_headers(self, mine: bytes) -> tuple[Request, bytearray]:
        self._slot = slot = self.headers & 1
        self.headers += 1
        places = self._cuts.get(len(mine)) or self._cut(len(mine))
        places[slot][self.index][:] = mine
        everyone = bytearray()
        all_have = self.step()

        def gathered() -> bool:
            if not all_have():
                return False
            for place in places[slot]:
                everyone.extend(place)
            return True

        return gathered, everyone

    def _cut(self, length: int) -> list[list[memoryview]]:
        """Return where headers of a length lie: by slot and process."""
        cuts = self._cuts[length] = [[slots[i][:length] for slots in self._slots] for i in (0, 1)]
        return cuts

    def offer(self, x: Array | None, out: Array | None) -> None:
        """Tell with the next header where in shared memory two arrays begin, if they do; None: there are none."""
        at = (-1, -1) if x is None or out is None else (self.memory.offset_of(x), self.memory.offset_of(out))
        _PLACES.pack_into(self._slots[self.index][self.headers & 1], _PLACES_AT, *at)

    def offered(self) -> list[tuple[int, int]]:
        """Return what the processes have told with the header that was gathered last; -1 is nowhere."""
        return [_PLACES.unpack(slots[self._slot][_PLACES_AT:]) for slots in self._slots]

    def array_of(self, process: int, offset: int, like: Array) -> Array:
        """Return the flat array, of the size and type of ``like``, at ``offset`` of the part of ``process``."""
        return self.memory.part(self._members[process], offset, like.nbytes).view(like.dtype)

    def close(self) -> None:
        super().close()
        self.memory.release(self._mine)

    def _make(self, comm: Any, processes: Sequence[int]) -> Channel:
        if len(processes) == 1:
            return super()._make(comm, processes)
        members = [self._members[p] for p in processes]
        try:
            return SharedChannel(self._mpi, comm, self.memory, members)
        except MemoryError as error:  # on all of them
            _logger.warning("a group of processes %s goes through MPI: %s", members, error)
            return super()._make(comm, processes)
