"""A channel between processes of one node that share memory: they meet by counters and read each other's arrays."""

import struct
from collections.abc import Callable, Sequence

import numpy

from disttrain.collectives.alone import AloneChannel
from disttrain.collectives.memory import USED_UP, NodeMemory
from disttrain.collectives.pipes import Pipes
from disttrain.collectives.transport import Channel, Gather, Request
from disttrain.kernels.arrays import Array

SMALL_BYTES = 64 << 10
"""Up to here arrays travel with the header, and every process folds everything itself: one meeting, not four."""
STAGE_BYTES = 1 << 20
"""What the caches hold."""
_SLOT_BYTES = 256
_PLACES = struct.Struct("<2q")
_PLACES_AT = _SLOT_BYTES - _PLACES.size
_WEIGHT = struct.Struct("<d")
_WEIGHT_AT = _PLACES_AT - _WEIGHT.size
_CONTROL_BYTES = 4096
"""Of a process: how many steps it has made, two headers, and (below) marks of those that have left."""
_SLOTS_AT = 64
_LEFT_AT = _SLOTS_AT + 2 * _SLOT_BYTES
_WORD_BYTES = 8
_OFFSET = struct.Struct("=q")


class SharedChannel:
    """A channel over processes that share ``memory``.

    Each process counts its steps where all can see it. A step is over when all counters have come as far, and what a
    process has written before its step is there for all after it (x86-64 keeps stores in order). Headers and small
    arrays have two places, used in turn: a process writes a place again only after a step that the others make when
    they have read it.

    Args:
        members: the processes of ``memory`` that the channel connects, in its order.
        place: what this process has prepared (:class:`Place`).
        told: what each of the processes has told of its place.

    Raises:
        MemoryError: on all processes alike, if one of them has no room left for it.
    """

    all_reduce = None  # every sum is taken along the fixed tree (`shared_reduce`)

    def __init__(
        self, memory: NodeMemory, members: Sequence[int], place: "Place", told: Sequence[bytes]
    ) -> None:
        offsets = [_OFFSET.unpack(theirs)[0] for theirs in told]
        if min(offsets) < 0:
            raise MemoryError(f"{USED_UP}; free arrays of collectives.empty(), or close groups")
        self.memory = memory
        self.size = len(members)
        self.index = members.index(memory.index)
        self._members = tuple(members)
        self.stage_bytes = stage_bytes = place.stage_bytes
        self._mine = place.block
        memory.keep(self._mine)  # others may read it after this process is through with the channel
        blocks = [memory.part(p, offset, place.nbytes) for p, offset in zip(members, offsets, strict=True)]
        self._counters = [memoryview(b[:_WORD_BYTES]).cast("q") for b in blocks]
        self._others = [c for p, c in enumerate(self._counters) if p != self.index]
        self._slots = [
            [memoryview(b)[_SLOTS_AT + i * _SLOT_BYTES :][:_SLOT_BYTES] for i in (0, 1)] for b in blocks
        ]
        self._offers = [[slots[i][_PLACES_AT:] for slots in self._slots] for i in (0, 1)]
        self.nowhere = _PLACES.pack(-1, -1) * self.size
        """What :meth:`offered` returns if no process has told of a place."""
        self._left = [memoryview(b[_LEFT_AT:_CONTROL_BYTES])[: self.size] for b in blocks]
        """By process: its marks, one for each process that has left."""
        small, stage = _CONTROL_BYTES, _CONTROL_BYTES + 2 * SMALL_BYTES
        chains = stage + 2 * stage_bytes
        self._pipes = Pipes(memory, self._members, [memoryview(b[chains:]).cast("q") for b in blocks])
        self._small_at = [[offset + small + i * SMALL_BYTES for offset in offsets] for i in (0, 1)]
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

    def offer(self, x: int, out: int) -> None:
        """Tell with the next header where in shared memory two arrays begin; -1 is nowhere."""
        _PLACES.pack_into(self._slots[self.index][self.headers & 1], _PLACES_AT, x, out)

    def weigh(self, weight: float) -> None:
        """Tell with the next header with which weight an array is averaged."""
        _WEIGHT.pack_into(self._slots[self.index][self.headers & 1], _WEIGHT_AT, weight)

    def weights(self) -> list[float]:
        """Return by process what :meth:`weigh` has told with the header that was gathered last."""
        return [_WEIGHT.unpack_from(slots[self._slot], _WEIGHT_AT)[0] for slots in self._slots]

    def offered(self) -> bytes:
        """Return what the processes have told with the header that was gathered last, for :meth:`places`."""
        return b"".join(self._offers[self._slot])

    def places(self, offered: bytes) -> list[tuple[int, int]]:
        """Return by process where its two arrays begin, of what :meth:`offered` has returned."""
        return list(_PLACES.iter_unpack(offered))

    def or_beside(self, offered: bytes) -> bytes:
        """Return ``offered``, the last ones; of a process that has told of no place: where what it sent beside lies."""
        places = zip(self.places(offered), self._small_at[self._slot], strict=True)
        return b"".join(_PLACES.pack(*((at, at) if x < 0 else (x, out))) for (x, out), at in places)

    def array_of(self, process: int, offset: int, like: Array) -> Array:
        """Return the flat array, of the size and type of ``like``, at ``offset`` of the part of ``process``."""
        return self.memory.part(self._members[process], offset, like.nbytes).view(like.dtype)

    def exchange(
        self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]], lane: int = 0
    ) -> Request:
        return self._pipes.exchange(sends, receives, lane)

    def narrow(self, processes: Sequence[int]) -> tuple[Request, Callable[[], Channel]]:
        if len(processes) == 1:
            return lambda: True, AloneChannel
        place = Place(self.memory, len(processes))
        told = {p: numpy.frombuffer(bytearray(place.told), numpy.uint8) for p in processes}
        others = [p for p in processes if p != self.index]
        for p in others:
            told[p] = numpy.empty_like(told[p])
        mine = told[self.index]
        request = self.exchange([(p, mine) for p in others], [(p, told[p]) for p in others])
        members = [self._members[p] for p in processes]
        return request, lambda: SharedChannel(
            self.memory, members, place, [told[p].tobytes() for p in processes]
        )

    def leave(self) -> Request:
        # Not a step: a process waits for that where the others count, and their memory is free once all have left.
        self._pipes.stop()
        for marks in self._left:
            marks[self.index] = 1
        mine = self._left[self.index]
        return lambda: all(mine)

    def close(self) -> None:
        self._pipes.close()
        self.memory.release(self._mine)


class Place:
    """What a process prepares for a new channel over some of the processes that share ``memory``.

    Args:
        size: how many processes it is to have.
        stage_bytes: size of the places through which larger arrays go that are not in shared memory themselves.
    """

    def __init__(self, memory: NodeMemory, size: int, stage_bytes: int = STAGE_BYTES) -> None:
        self.stage_bytes = stage_bytes
        self.nbytes = _CONTROL_BYTES + 2 * SMALL_BYTES + 2 * stage_bytes + size * _WORD_BYTES
        offset = -1
        try:
            self.block: Array = memory.take(self.nbytes)
            self.block[:_CONTROL_BYTES] = 0
            self.block[-size * _WORD_BYTES :] = 0
            offset = memory.offset_of(self.block)
        except MemoryError:
            pass  # which all are told
        self.told = _OFFSET.pack(offset)
        """What the other processes of the channel have to know."""


def open_shared(
    memory: NodeMemory, members: Sequence[int], gather: Gather, stage_bytes: int = STAGE_BYTES
) -> SharedChannel:
    """Return a channel over processes of ``memory``, all of which call this and are reached by ``gather``.

    Raises:
        MemoryError: on all processes alike, if one of them has no room left for it.
    """
    place = Place(memory, len(members), stage_bytes)
    return SharedChannel(memory, members, place, gather(place.told))
