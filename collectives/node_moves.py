"""What ranks of several nodes do together: inside a node by shared memory, between nodes by messages.

An array goes in pieces, each in three phases: the processes of a node show what they have; each column exchanges its
segment of that with the other nodes, once for the whole node; all take what has come. Verbs of which every byte crosses
the network once anyway (gather, scatter, all_to_all) go by messages between processes, as do headers.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy

from disttrain.collectives.call import Call
from disttrain.collectives.host import Group
from disttrain.collectives.moves import (
    SMALL_BYTES,
    broadcast_from,
    fold_segments,
    gather_rows,
    reduce_piece,
)
from disttrain.collectives.nodes import NodesChannel
from disttrain.collectives.progress import Steps
from disttrain.collectives.reduction import (
    Dtype,
    Parts,
    accumulator,
    flat,
    fold_hosted,
    operands,
    operation,
    round_into,
)
from disttrain.kernels.arrays import Array

Put = Callable[[slice, Array], None]
"""Called with a range of columns and this process's rows of them: writes what the process shows."""
Carry = Callable[[Group, list[Array], Array], Steps]
"""Called in a column with the group as the nodes host it, a segment of what each process of this node shows, and the
rows that the column leaves for its node."""
Take = Callable[[slice, list[Array], list[tuple[slice, Array]]], None]
"""Called with a range of columns, what each process of this node shows of it, and what the columns have left: segments
of the range."""


def _relay(
    group: Group,
    columns: int,
    dtype: Dtype,
    rows: tuple[int, int],
    put: Put,
    carry: Carry,
    take: Take,
) -> Steps:
    """Pass arrays ``(rows, columns)`` through all nodes, piece by piece.

    There are two stages, used in turn: a process writes its stage again only after a step that the others of its node
    make when they have taken what it held.

    Args:
        rows: how many rows a process shows at most, and how many a column leaves; the same on all processes.
    """
    channel = _channel(group)
    inside = channel.inside
    shown, left = rows
    width = max(1, inside.stage_bytes // (dtype.itemsize * (shown + left)))
    for k, lo in enumerate(range(0, columns, width)):
        piece = slice(lo, min(lo + width, columns))
        count = piece.stop - piece.start
        stages = [
            stage[k & 1][: (shown + left) * count * dtype.itemsize].view(dtype).reshape(-1, count)
            for stage in inside.stages
        ]
        put(piece, stages[inside.index][:shown])
        yield inside.step(), False
        segments = _segments(channel, count, dtype)
        if inside.index < len(segments):
            where = segments[inside.index]
            yield from carry(
                _as_nodes(group),
                [stage[:shown, where] for stage in stages],
                stages[inside.index][shown:, where],
            )
        yield inside.step(), False
        take(
            piece,
            [stage[:shown] for stage in stages],
            [(where, stages[p][shown:, where]) for p, where in enumerate(segments)],
        )


def _channel(group: Group) -> NodesChannel:
    assert isinstance(group.channel, NodesChannel)
    return group.channel


def _segments(channel: NodesChannel, count: int, dtype: Dtype) -> list[slice]:
    """Return which part of ``count`` elements each column carries; a small array goes through one column."""
    columns = 1 if count * dtype.itemsize <= SMALL_BYTES else channel.columns
    edges = [count * k // columns for k in range(columns + 1)]
    return [slice(lo, hi) for lo, hi in pairwise(edges)]


def _as_nodes(group: Group) -> Group:
    """Return the group whose processes are the nodes, over the column that this process is in."""
    channel = _channel(group)
    if group.of_nodes is None:
        assert channel.between is not None
        hosted = [sorted(i for p in node for i in group.hosted[p]) for node in channel.nodes]
        group.of_nodes = Group(group.host, group.ranks, channel.between, hosted, group.path)
    group.of_nodes.scratch.reset()
    return group.of_nodes


def _subtrees_here(group: Group) -> list[tuple[int, int, tuple[int, int]]]:
    """Return (process of the node, row that it shows, subtree of ranks in that row)."""
    channel = _channel(group)
    return [
        (place, row, node)
        for place, p in enumerate(channel.nodes[channel.node])
        for row, node in enumerate(group.subtrees[p])
    ]


def _show_sums(group: Group, xs: Parts, op: str, shown: Array) -> None:
    """Write the sums of the subtrees that this process can fold by itself into the rows of ``shown``."""
    for row, node in enumerate(group.subtrees[group.channel.index]):
        numpy.copyto(shown[row], fold_hosted(group, node, xs, op, shown.dtype))


def _all_reduce(group: Group, calls: Sequence[Call]) -> Steps:
    """See :meth:`.Communicator.all_reduce`."""
    inside, op = _channel(group).inside, operation(calls[0])
    outs = [flat(call.out, op) for call in calls]
    dtype = accumulator(outs[0].dtype)
    place = (-1, -1)
    if len(calls) == 1:
        place = inside.memory.offset_of(calls[0].x), inside.memory.offset_of(calls[0].out)
    request, told = inside.gather_headers(numpy.array(place, numpy.int64).tobytes())
    yield request, False
    places = numpy.frombuffer(told, numpy.int64).reshape(-1, 2)
    if places.min() >= 0 and dtype == outs[0].dtype:
        yield from _all_reduce_in_place(group, op, outs[0], places)
        return
    xs = operands(calls)
    subtrees = _subtrees_here(group)

    def put(piece: slice, shown: Array) -> None:
        group.scratch.reset()
        _show_sums(group, {node: x[piece] for node, x in xs.items()}, op, shown)

    def carry(nodes: Group, seen: list[Array], left: Array) -> Steps:
        yield from reduce_piece(nodes, {node: seen[p][row] for p, row, node in subtrees}, left[0], op)

    def take(piece: slice, _: list[Array], left: list[tuple[slice, Array]]) -> None:
        for where, total in left:
            for out in outs:
                round_into(total[0], out[piece][where])

    yield from _relay(group, outs[0].size, dtype, (group.most_subtrees, 1), put, carry, take)


def _all_reduce_in_place(group: Group, op: str, out: Array, places: Array) -> Steps:
    """The arrays of this node are in shared memory: its columns fold their segments where they are.

    ``x`` and ``out`` may be the same: a segment is read and written by the process of its column alone until all are
    there. What goes over the network is what :func:`_relay` sends, since other nodes may have their arrays elsewhere.

    Args:
        places: where ``x`` and ``out`` of each process of the node begin.
    """
    channel = _channel(group)
    inside = channel.inside
    sources = [inside.array_of(p, x, out) for p, (x, _) in enumerate(places.tolist())]
    results = [inside.array_of(p, y, out) for p, (_, y) in enumerate(places.tolist())]
    indices = [group.hosted[p][0] for p in channel.nodes[channel.node]]
    width = max(1, inside.stage_bytes // (out.itemsize * (group.most_subtrees + 1)))
    moved: list[tuple[int, slice]] = []
    for lo in range(0, out.size, width):
        count = min(width, out.size - lo)
        for p, segment in enumerate(_segments(channel, count, out.dtype)):
            where = slice(lo + segment.start, lo + segment.stop)
            moved.append((p, where))
            if p == inside.index:
                xs = {(i, i + 1): x[where] for i, x in zip(indices, sources, strict=True)}
                yield from reduce_piece(_as_nodes(group), xs, out[where], op)
    yield inside.step(), False
    for p, where in moved:
        if p != inside.index:
            numpy.copyto(out[where], results[p][where])
    yield inside.step(), False  # nobody may write an array that another still reads


def _reduce(group: Group, calls: Sequence[Call]) -> Steps:
    op, root = operation(calls[0]), calls[0].root
    xs = operands(calls)
    x = next(iter(xs.values()))
    out = next((flat(call.out, op) for call in calls if call.index == root), None)
    subtrees = _subtrees_here(group)

    def put(piece: slice, shown: Array) -> None:
        group.scratch.reset()
        _show_sums(group, {node: x[piece] for node, x in xs.items()}, op, shown)

    def carry(nodes: Group, seen: list[Array], left: Array) -> Steps:
        owner = nodes.process_of[root]
        parts = {node: seen[p][row] for p, row, node in subtrees}
        targets = {0: left[0]} if owner == nodes.channel.index else {}
        yield from fold_segments(nodes, [(owner, parts)], targets, op)

    def take(piece: slice, _: list[Array], left: list[tuple[slice, Array]]) -> None:
        if out is not None:
            for where, total in left:
                round_into(total[0], out[piece][where])

    yield from _relay(group, x.size, accumulator(x.dtype), (group.most_subtrees, 1), put, carry, take)


def _reduce_scatter(group: Group, calls: Sequence[Call]) -> Steps:
    op, ranks = operation(calls[0]), group.size
    xs = {node: x.reshape(ranks, -1) for node, x in operands(calls).items()}
    outs = {call.index: flat(call.out, op) for call in calls}
    out = next(iter(outs.values()))
    dtype = accumulator(out.dtype)
    subtrees = _subtrees_here(group)

    def put(piece: slice, shown: Array) -> None:
        for i in range(ranks):
            group.scratch.reset()
            _show_sums(group, {node: x[i, piece] for node, x in xs.items()}, op, shown[i::ranks])

    def carry(nodes: Group, seen: list[Array], left: Array) -> Steps:
        segments = [
            (nodes.process_of[i], {node: seen[p][row * ranks + i] for p, row, node in subtrees})
            for i in range(ranks)
        ]
        yield from fold_segments(nodes, segments, {i: left[i] for i in nodes.here}, op)

    def take(piece: slice, _: list[Array], left: list[tuple[slice, Array]]) -> None:
        for where, totals in left:
            for i, mine in outs.items():
                round_into(totals[i], mine[piece][where])

    rows = group.most_subtrees * ranks, ranks
    yield from _relay(group, out.size, dtype, rows, put, carry, take)


def _all_gather(group: Group, calls: Sequence[Call]) -> Steps:
    channel = _channel(group)
    here = channel.nodes[channel.node]
    out = calls[0].out.reshape(group.size, -1)
    most = max(map(len, group.hosted))

    def put(piece: slice, shown: Array) -> None:
        for row, call in enumerate(calls):
            numpy.copyto(shown[row], flat(call.x)[piece])

    def carry(nodes: Group, seen: list[Array], left: Array) -> Steps:
        rows = list(left)
        for place, p in enumerate(here):
            for row, i in enumerate(group.hosted[p]):
                rows[i] = seen[place][row]
        yield gather_rows(nodes, rows), False

    def take(piece: slice, seen: list[Array], left: list[tuple[slice, Array]]) -> None:
        near = {i for p in here for i in group.hosted[p]}
        for place, p in enumerate(here):
            for row, i in enumerate(group.hosted[p]):
                numpy.copyto(out[i, piece], seen[place][row])
        for where, rows in left:
            for i in range(group.size):
                if i not in near:
                    numpy.copyto(out[i, piece][where], rows[i])

    yield from _relay(group, out.shape[1], out.dtype, (most, group.size), put, carry, take)
    for call in calls[1:]:
        numpy.copyto(call.out.reshape(out.shape), out)


def _broadcast(group: Group, calls: Sequence[Call]) -> Steps:
    channel, root = _channel(group), calls[0].root
    owner = group.process_of[root]
    here = channel.nodes[channel.node]
    x = flat(calls[0].out)

    def put(piece: slice, shown: Array) -> None:
        for call in calls:
            if call.index == root:
                numpy.copyto(shown[0], flat(call.out)[piece])

    def carry(nodes: Group, seen: list[Array], left: Array) -> Steps:
        source = seen[here.index(owner)][0] if owner in here else left[0]
        yield from broadcast_from(nodes, nodes.process_of[root], source)

    def take(piece: slice, seen: list[Array], left: list[tuple[slice, Array]]) -> None:
        for call in calls:
            if call.index == root:
                continue
            if owner in here:
                numpy.copyto(flat(call.out)[piece], seen[here.index(owner)][0])
            else:
                for where, rows in left:
                    numpy.copyto(flat(call.out)[piece][where], rows[0])

    yield from _relay(group, x.size, x.dtype, (1, 1), put, carry, take)


VERBS: dict[str, Callable[[Group, Sequence[Call]], Steps]] = {
    "all_reduce": _all_reduce,
    "reduce": _reduce,
    "reduce_scatter": _reduce_scatter,
    "all_gather": _all_gather,
    "broadcast": _broadcast,
}
