"""What ranks do together but all-reduce, between processes that share memory: each shows arrays, others read them."""

from collections.abc import Callable, Sequence

import numpy

from disttrain.collectives.call import Call
from disttrain.collectives.host import Group
from disttrain.collectives.progress import Steps
from disttrain.collectives.reduction import (
    CHUNK_BYTES,
    copy_flat,
    flat,
    fold_into,
    operands,
    operation,
)
from disttrain.collectives.shared import SharedChannel
from disttrain.kernels.arrays import Array

Take = Callable[[slice, dict[int, Array]], None]
"""Called with a range of columns and those columns of what is shown, ``(rows, columns)``, by the rank's index."""


def _show(
    group: Group,
    mine: dict[int, Array],
    ranks: Sequence[int],
    like: Array,
    take: Take,
    in_stages: bool = False,
) -> Steps:
    """Let every process read arrays of ``ranks``: where they are, or piece by piece through the stages.

    There are two stages, used in turn: a stage is written again only after a step that all make when they have taken
    what it held.

    Args:
        mine: the arrays ``(rows, columns)`` of those of the ranks that are hosted here.
        like: an array of their shape and type.
        take: is called with what there is to see.
        in_stages: do not read them where they are; the same on all processes.
    """
    channel = group.channel
    assert isinstance(channel, SharedChannel)
    rows, columns = like.shape
    if not like.size:
        return
    shown = {p: [i for i in group.hosted[p] if i in ranks] for p in range(channel.size)}
    most = max(map(len, shown.values()))
    place = -1
    if not mine or (most == 1 and not in_stages):
        place = max(map(channel.memory.offset_of, mine.values()), default=0)
    request, told = channel.gather_headers(place.to_bytes(8, "little", signed=True))
    yield request, False
    places = numpy.frombuffer(told, numpy.int64).tolist()
    if most == 1 and min(places) >= 0:
        take(
            slice(0, columns),
            {i: channel.array_of(p, places[p], like).reshape(like.shape) for p, [i] in _some(shown)},
        )
        yield channel.step(), False  # until then nobody may write what another reads
        return
    width = max(1, channel.stage_bytes // (like.itemsize * rows * most))
    for k, lo in enumerate(range(0, columns, width)):
        piece = slice(lo, min(lo + width, columns))
        nbytes = rows * (piece.stop - piece.start) * like.itemsize
        seen = {
            i: channel.stages[p][k & 1][j * nbytes : (j + 1) * nbytes].view(like.dtype).reshape(rows, -1)
            for p, indices in _some(shown)
            for j, i in enumerate(indices)
        }
        for i, x in mine.items():
            numpy.copyto(seen[i], x[:, piece])
        yield channel.step(), False
        take(piece, seen)


def _some(shown: dict[int, list[int]]) -> list[tuple[int, list[int]]]:
    return [(p, indices) for p, indices in shown.items() if indices]


def _line(x: Array) -> Array:
    return x.reshape(1, -1)


def all_gather(group: Group, calls: Sequence[Call]) -> Steps:
    """See :meth:`.Communicator.all_gather`."""
    out = calls[0].out.reshape(group.size, -1)
    mine = {call.index: _line(call.x) for call in calls}

    def take(piece: slice, seen: dict[int, Array]) -> None:
        for i, x in seen.items():
            if i not in mine:
                numpy.copyto(out[i][piece], x[0])

    for i, x in mine.items():
        copy_flat(x[0], out[i])
    yield from _show(group, mine, range(group.size), mine[calls[0].index], take)
    for call in calls[1:]:
        numpy.copyto(call.out.reshape(out.shape), out)


def gather(group: Group, calls: Sequence[Call]) -> Steps:
    """See :meth:`.Communicator.gather`."""
    out = next((call.out.reshape(group.size, -1) for call in calls if call.index == calls[0].root), None)
    mine = {call.index: _line(call.x) for call in calls}

    def take(piece: slice, seen: dict[int, Array]) -> None:
        for i, x in seen.items():
            if out is not None and i not in mine:
                numpy.copyto(out[i][piece], x[0])

    if out is not None:
        for i, x in mine.items():
            copy_flat(x[0], out[i])
    yield from _show(group, mine, range(group.size), mine[calls[0].index], take)


def scatter(group: Group, calls: Sequence[Call]) -> Steps:
    """See :meth:`.Communicator.scatter`."""
    root = calls[0].root
    mine = {call.index: call.x.reshape(group.size, -1) for call in calls if call.index == root}
    like = numpy.broadcast_to(_line(calls[0].out), (group.size, calls[0].out.size))

    def take(piece: slice, seen: dict[int, Array]) -> None:
        for call in calls:
            copy_flat(seen[root][call.index], flat(call.out)[piece])

    yield from _show(group, mine, [root], like, take)


def broadcast(group: Group, calls: Sequence[Call]) -> Steps:
    """See :meth:`.Communicator.broadcast`."""
    root = calls[0].root
    mine = {call.index: _line(call.out) for call in calls if call.index == root}

    def take(piece: slice, seen: dict[int, Array]) -> None:
        for call in calls:
            if call.index != root:
                numpy.copyto(flat(call.out)[piece], seen[root][0])

    yield from _show(group, mine, [root], _line(calls[0].out), take)


def broadcast_enclosed(group: Group, channel: SharedChannel, calls: Sequence[Call], agree: Steps) -> Steps:
    """:func:`broadcast` of a small array, which travels with the root's header.

    Args:
        agree: the steps, none of them made yet, in which all headers are compared.
    """
    root = calls[0].root
    place = channel.small[group.process_of[root]][channel.headers & 1][: calls[0].out.nbytes]
    for call in calls:
        if call.index == root:
            numpy.copyto(place, flat(call.out).view(numpy.uint8))
    yield from agree
    for call in calls:
        if call.index != root:
            numpy.copyto(flat(call.out).view(numpy.uint8), place)


def all_to_all(group: Group, calls: Sequence[Call]) -> Steps:
    """See :meth:`.Communicator.all_to_all`."""
    mine = {call.index: call.x.reshape(group.size, -1) for call in calls}
    outs = {call.index: call.out.reshape(group.size, -1) for call in calls}

    def take(piece: slice, seen: dict[int, Array]) -> None:
        for j, out in outs.items():
            for i, x in seen.items():
                numpy.copyto(out[i][piece], x[j])

    # In place, an array would be written while others still read it: what is shown is then a copy.
    in_place = any(numpy.may_share_memory(call.x, call.out) for call in calls)
    yield from _show(group, mine, range(group.size), mine[calls[0].index], take, in_stages=in_place)


def reduce(group: Group, calls: Sequence[Call]) -> Steps:
    """See :meth:`.Communicator.reduce`."""
    op = operation(calls[0])
    mine = {i: _line(x) for (i, _), x in operands(calls).items()}
    out = next((flat(call.out, op) for call in calls if call.index == calls[0].root), None)

    def take(piece: slice, seen: dict[int, Array]) -> None:
        if out is not None:
            _fold(group, {i: x[0] for i, x in seen.items()}, op, out[piece])

    yield from _show(group, mine, range(group.size), mine[calls[0].index], take)


def reduce_scatter(group: Group, calls: Sequence[Call]) -> Steps:
    """See :meth:`.Communicator.reduce_scatter`."""
    op = operation(calls[0])
    mine = {i: x.reshape(group.size, -1) for (i, _), x in operands(calls).items()}
    outs = {call.index: flat(call.out, op) for call in calls}

    def take(piece: slice, seen: dict[int, Array]) -> None:
        for i, out in outs.items():
            _fold(group, {j: x[i] for j, x in seen.items()}, op, out[piece])

    yield from _show(group, mine, range(group.size), mine[calls[0].index], take)


def _fold(group: Group, xs: dict[int, Array], op: str, out: Array) -> None:
    """Reduce the arrays of all ranks along the fixed tree."""
    width = CHUNK_BYTES // out.itemsize
    for lo in range(0, out.size, width):
        group.scratch.reset()
        parts = {(i, i + 1): (x[lo : lo + width], False) for i, x in xs.items()}
        fold_into(group, parts, op, out[lo : lo + width])


VERBS: dict[str, Callable[[Group, Sequence[Call]], Steps]] = {
    "reduce": reduce,
    "reduce_scatter": reduce_scatter,
    "all_gather": all_gather,
    "gather": gather,
    "scatter": scatter,
    "broadcast": broadcast,
    "all_to_all": all_to_all,
}
