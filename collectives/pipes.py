"""Messages between processes that share memory: a stream of bytes for each direction and lane.

A stream goes through a ring in the part of its sender, who alone writes how many bytes it has put there; the receiver
alone writes how many it has taken (x86-64 keeps stores in order, so the bytes are there before their number is). Both
know how long each array is, so nothing but the arrays' bytes goes through. Of a large array that is its address, if
the processes can read each other's memory: the receiver fetches it, with one copy and without the sender.

A ring is made when its sender first has something to send. The rings from one process to another are a chain, and the
receiver follows it until it comes to the lane that it looks for.
"""

import sys
from collections import deque
from collections.abc import Callable, Sequence

import numpy

from disttrain.collectives.memory import NodeMemory
from disttrain.collectives.transport import Request
from disttrain.kernels.arrays import Array, address

RING_BYTES = 256 << 10
"""What the caches hold of both processes."""
_STEP_BYTES = RING_BYTES // 4
"""How much is copied before the other side is told: it copies that while this one copies the next."""
_TURN_BYTES = 4 * RING_BYTES
"""How much of a message goes through at most before others have their turn."""
DIRECT_BYTES = 128 << 10
"""Arrays from this size on are fetched: a call of the system costs less than a second copy."""
_ADDRESS_BYTES = 8
_HEAD_BYTES = 256
# Words of the head, each written by one process, and in a cache line of its own where the other one polls it.
_WRITTEN, _TAKEN, _FETCHED, _LANE, _NEXT = 0, 8, 9, 16, 17


class _Ring:
    """One stream, as its sender or its receiver sees it."""

    def __init__(self, block: Array) -> None:
        self._head = memoryview(block[:_HEAD_BYTES]).cast("q")
        self._bytes = block[_HEAD_BYTES:]
        self._written = self._head[_WRITTEN : _WRITTEN + 1]
        self._taken = self._head[_TAKEN : _TAKEN + 1]
        self._at = 0
        """How many bytes have gone through this end."""
        self.promised = 0
        """How many arrays the receiver is to fetch, as the sender counts."""
        self.fetched = self._head[_FETCHED : _FETCHED + 1]
        """How many the receiver has fetched."""
        self.lane = self._head[_LANE]
        self.next = self._head[_NEXT : _NEXT + 1]
        """Where the next ring of the chain begins in the same part; 0 if there is none yet."""

    def put(self, data: Array) -> int:
        """Copy as much as there is room for, at most a step; return how many bytes."""
        count: int = min(data.size, RING_BYTES - self._at + self._taken[0], _STEP_BYTES)
        if not count:
            return 0
        begin, end = self._at % RING_BYTES, (self._at + count) % RING_BYTES
        if begin <= end:
            self._bytes[begin:end] = data[:count]
        else:
            self._bytes[begin:RING_BYTES] = data[: RING_BYTES - begin]
            self._bytes[:end] = data[RING_BYTES - begin : count]
        self._at += count
        self._written[0] = self._at
        return count

    def take(self, data: Array) -> int:
        """Copy as much as has come, at most a step; return how many bytes."""
        count: int = min(data.size, self._written[0] - self._at, _STEP_BYTES)
        if not count:
            return 0  # and the sender's copy of the head is left alone
        begin, end = self._at % RING_BYTES, (self._at + count) % RING_BYTES
        if begin <= end:
            data[:count] = self._bytes[begin:end]
        else:
            data[: RING_BYTES - begin] = self._bytes[begin:RING_BYTES]
            data[RING_BYTES - begin : count] = self._bytes[:end]
        self._at += count
        self._taken[0] = self._at
        return count


class Pipes:
    """The streams between this process and the others of a channel.

    Args:
        members: the processes of ``memory`` that the channel connects, in its order.
        chains: of each of them, a word for each process: where the chain of rings to it begins, 0 at first.
    """

    def __init__(self, memory: NodeMemory, members: Sequence[int], chains: Sequence[memoryview]) -> None:
        self._memory = memory
        self._members = members
        self._index = members.index(memory.index)
        self._own: list[Array] = []
        self._ends = [chain[self._index : self._index + 1] for chain in chains]
        """By process: the word that will say where the next ring from there begins."""
        self._tips = [chains[self._index][p : p + 1] for p in range(len(members))]
        """By process: the word in which to say where the next ring to it begins."""
        self._sending: dict[tuple[int, int], _Ring] = {}
        self._receiving: dict[tuple[int, int], _Ring] = {}
        self._closed = False
        self._direct = DIRECT_BYTES if memory.readable else sys.maxsize

    def exchange(
        self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]], lane: int
    ) -> Request:
        """See :meth:`.Channel.exchange`.

        Raises:
            MemoryError: there is no room for another ring.
        """
        out = {p: _Sending(self._ring_to(p, lane), xs, self._direct) for p, xs in _by_process(sends).items()}
        into = {p: deque(self._awaited(p, x) for x in xs) for p, xs in _by_process(receives).items()}

        def all_moved() -> bool:
            if self._closed:
                return False  # as any other call on a closed group, that of a message never ends
            for p, sending in list(out.items()):
                if sending.advance():
                    del out[p]
            for p, awaited in list(into.items()):
                ring = self._ring_from(p, lane)
                if ring is not None and _receive(ring, awaited):
                    del into[p]
            return not out and not into

        return (lambda: True) if all_moved() else all_moved

    def _awaited(self, process: int, x: Array) -> "_Awaited":
        if x.size < self._direct:
            return _Awaited(x)
        member = self._members[process]
        return _Fetched(x, lambda place, part: self._memory.read(member, place, part))

    def stop(self) -> None:
        """Leave the others' memory alone from now on: they may free it."""
        self._closed = True

    def close(self) -> None:
        """Free the rings of this process; all processes have stopped."""
        for block in self._own:
            self._memory.release(block)

    def _ring_to(self, process: int, lane: int) -> _Ring:
        ring = self._sending.get((process, lane))
        if ring is None:
            block = self._memory.take(_HEAD_BYTES + RING_BYTES)
            block[:_HEAD_BYTES] = 0
            memoryview(block[:_HEAD_BYTES]).cast("q")[_LANE] = lane
            self._memory.keep(block)
            self._own.append(block)
            ring = self._sending[process, lane] = _Ring(block)
            self._tips[process][0] = self._memory.offset_of(block)
            self._tips[process] = ring.next
        return ring

    def _ring_from(self, process: int, lane: int) -> _Ring | None:
        """Return the ring through which a process sends on a lane, if it has made it already."""
        ring = self._receiving.get((process, lane))
        while ring is None and (offset := self._ends[process][0]):
            found = _Ring(self._memory.part(self._members[process], offset, _HEAD_BYTES + RING_BYTES))
            self._ends[process] = found.next
            self._receiving[process, found.lane] = found
            ring = self._receiving.get((process, lane))
        return ring


class _Sending:
    """Arrays on their way to one process.

    Args:
        direct: from how many bytes on only the address of an array goes through the ring.
    """

    def __init__(self, ring: _Ring, arrays: Sequence[Array], direct: int) -> None:
        self._ring = ring
        self._arrays = arrays  # which must live until they have been fetched
        self._data = deque(x if x.size < direct else _address_of(x) for x in arrays)
        ring.promised += sum(x.size >= direct for x in arrays)
        self._promised = ring.promised

    def advance(self) -> bool:
        """Move what can be moved now, within bounds; return whether all has come to the other side."""
        left = _TURN_BYTES
        data = self._data
        while data and left > 0:
            count = self._ring.put(data[0])
            if not count:
                return False
            left -= count
            if count == data[0].size:
                data.popleft()
            else:
                data[0] = data[0][count:]
        return not data and self._ring.fetched[0] >= self._promised


class _Awaited:
    """An array that comes through a ring."""

    def __init__(self, x: Array) -> None:
        self._rest = x

    def advance(self, ring: _Ring) -> int:
        """Take what has come, at most a step; return how many bytes that were."""
        count = ring.take(self._rest)
        self._rest = self._rest[count:]
        return count

    @property
    def there(self) -> bool:
        """Whether all of it has come."""
        return not self._rest.size


class _Fetched(_Awaited):
    """An array whose address comes through a ring, and whose bytes are fetched then.

    Args:
        read: copies what is at an address of the sender.
    """

    def __init__(self, x: Array, read: Callable[[int, Array], None]) -> None:
        self._address = numpy.empty(_ADDRESS_BYTES, numpy.uint8)
        super().__init__(self._address)
        self._x, self._read = x, read
        self._at = 0

    def advance(self, ring: _Ring) -> int:
        if self._rest.size:
            return super().advance(ring)
        part = self._x[self._at : self._at + _TURN_BYTES]
        self._read(int(self._address.view(numpy.int64)[0]) + self._at, part)
        self._at += part.size
        if self.there:
            ring.fetched[0] += 1
        return int(part.size)

    @property
    def there(self) -> bool:
        return bool(self._at == self._x.size)


def _address_of(x: Array) -> Array:
    return numpy.array([address(x)], numpy.int64).view(numpy.uint8)


def _by_process(arrays: Sequence[tuple[int, Array]]) -> dict[int, list[Array]]:
    """Return the bytes of the arrays that go to, or come from, each process; nothing of empty ones."""
    found: dict[int, list[Array]] = {}
    for p, x in arrays:
        if x.size:
            found.setdefault(p, []).append(x.view(numpy.uint8))
    return found


def _receive(ring: _Ring, awaited: deque[_Awaited]) -> bool:
    """Take what has come, within bounds; return whether that was the last of it."""
    left = _TURN_BYTES
    while awaited and left > 0:
        count = awaited[0].advance(ring)
        if not count:
            return False
        left -= count
        if awaited[0].there:
            awaited.popleft()
    return not awaited
