"""Arrays on a GPU over a channel of the host: through pinned memory, piece by piece.

While a piece is on its way between the processes, the next one comes from the GPU and the one before goes back to it.
"""

import copy
from collections.abc import Callable, Sequence

from disttrain.collectives.call import Call
from disttrain.collectives.cuda import Event, Gpu, over
from disttrain.collectives.progress import Steps
from disttrain.kernels.arrays import Array

PIECE_BYTES = 4 << 20
"""How much of an array is staged at a time."""
_ROWS_OF_X = ("reduce_scatter", "scatter", "all_to_all")
_ROWS_OF_OUT = ("all_gather", "gather", "all_to_all")
"""Verbs of which that array has a row for each rank."""
_UNEVEN = ("all_gather_v", "all_to_all_v")
"""Verbs whose arrays are no rows of columns: they are one piece."""


class _Slot:
    """Pinned memory for one piece of all that the ranks of this process give and get."""

    def __init__(self) -> None:
        self.given: Array | None = None
        self.got: Array | None = None
        self.written: Event | None = None
        """When what was got last has reached the GPU."""


class Staging:
    """What a group, or two ranks that send to each other, need to do so. One call at a time.

    Args:
        size: the number of rows of arrays that have one for each rank.
        most: ranks of one process that take part.
    """

    def __init__(self, gpu: Gpu, size: int = 1, most: int = 1) -> None:
        self._gpu = gpu
        self._size = size
        self._most = most
        self._down, self._up = gpu.new_stream(), gpu.new_stream()
        self._slots = (_Slot(), _Slot())

    def run(self, calls: Sequence[Call], move: Callable[[Sequence[Call]], Steps]) -> Steps:
        """Do what ``calls`` ask; ``move`` does it with arrays of the host. Their ``passed`` is set at the end."""
        verb = calls[0].verb
        for call in calls:
            self._down.wait_event(call.ready)
            self._up.wait_event(call.ready)  # an array may be written only
        xs = [self._rows(call.x, verb in _ROWS_OF_X) for call in calls]
        outs = [self._rows(call.out, verb in _ROWS_OF_OUT) for call in calls]
        if verb == "broadcast":
            xs = [x if call.index == call.root else None for call, x in zip(calls, xs, strict=True)]
            outs = [None if call.index == call.root else x for call, x in zip(calls, outs, strict=True)]
        columns = max(a.shape[1] for a in (*xs, *outs) if a is not None)
        # The same on all processes, also on those that give or get nothing.
        rows = self._size if verb in (*_ROWS_OF_X, *_ROWS_OF_OUT) else 1
        width = max(1, PIECE_BYTES // (rows * self._most * calls[0].like.itemsize))
        if verb in _UNEVEN:
            width = max(1, columns)
        pieces = [slice(lo, min(lo + width, columns)) for lo in range(0, columns, width)] or [slice(0, 0)]
        coming = self._fetch(self._slots[0], xs, pieces[0])
        for k, piece in enumerate(pieces):
            slot, (given, arrived) = self._slots[k & 1], coming
            if k + 1 < len(pieces):
                coming = self._fetch(self._slots[k + 1 & 1], xs, pieces[k + 1])
            yield over(arrived), False
            if slot.written is not None:
                yield over(slot.written), False
            yield from self._pass_on(calls, slot, given, outs, piece, move)
        event = self._gpu.mark(self._up)
        for call in calls:
            call.passed = event

    def _rows(self, x: Array | None, many: bool) -> Array | None:
        return None if x is None else x.reshape(self._size if many else 1, -1)

    def _fetch(
        self, slot: _Slot, xs: Sequence[Array | None], piece: slice
    ) -> tuple[list[Array | None], Event]:
        """Begin to bring a piece of the arrays to the host; return where to, and when it is there."""
        slot.given, places = self._places(slot.given, xs, piece)
        for x, place in zip(xs, places, strict=True):
            if x is not None:
                self._gpu.copy_rows(x[:, piece], place, self._down)
        return places, self._gpu.mark(self._down)

    def _pass_on(
        self,
        calls: Sequence[Call],
        slot: _Slot,
        given: Sequence[Array | None],
        outs: Sequence[Array | None],
        piece: slice,
        move: Callable[[Sequence[Call]], Steps],
    ) -> Steps:
        """Exchange one piece between the processes, and begin to bring what came to the GPU."""
        slot.got, got = self._places(slot.got, outs, piece)
        parts = []
        for call, x, out in zip(calls, given, got, strict=True):
            part = copy.copy(call)
            part.x, part.out = x, out
            if call.verb == "broadcast":
                part.x = part.out = out if x is None else x
            part.like = part.out if part.x is None else part.x
            parts.append(part)
        yield from move(parts)
        for out, place in zip(outs, got, strict=True):
            if out is not None:
                self._gpu.copy_rows(place, out[:, piece], self._up)
        slot.written = self._gpu.mark(self._up)

    def _places(
        self, memory: Array | None, arrays: Sequence[Array | None], piece: slice
    ) -> tuple[Array, list[Array | None]]:
        """Return memory that is large enough, and where in it the columns of each array go."""
        widths = [0 if a is None else min(piece.stop, a.shape[1]) - piece.start for a in arrays]
        sizes = [0 if a is None else a.shape[0] * w * a.itemsize for a, w in zip(arrays, widths, strict=True)]
        if memory is None or memory.size < sum(sizes):
            memory = self._gpu.pinned(sum(sizes))
        places: list[Array | None] = []
        begin = 0
        for a, width, size in zip(arrays, widths, sizes, strict=True):
            place = memory[begin : begin + size]
            places.append(None if a is None else place.view(a.dtype).reshape(a.shape[0], width))
            begin += size
        return memory, places
