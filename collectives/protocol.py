"""What ranks do together, written once for all transports: agree on the call, then move and reduce.

Each verb is a generator over the calls of the ranks that this process hosts; it yields what it waits for.
``P`` processes, ``V`` ranks; ranks are group indices throughout.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy

from disttrain.collectives import shared_moves
from disttrain.collectives.call import HEADER_BYTES, RECORD_BYTES, Call, mismatch
from disttrain.collectives.host import Group
from disttrain.collectives.progress import Steps
from disttrain.collectives.reduction import (
    UFUNCS,
    accumulator,
    copy_flat,
    flat,
    fold_hosted,
    fold_into,
    operands,
    operation,
    round_into,
)
from disttrain.collectives.shared import SharedChannel
from disttrain.collectives.shared_reduce import enclose, reduce_enclosed, reduce_shared
from disttrain.collectives.tree import Node
from disttrain.kernels.arrays import Array

PIECE_BYTES = 2 << 20
"""How much is reduced at a time. MPI's reductions lose a factor of 2 outside the caches."""
SMALL_BYTES = 8 << 10
"""Up to here every process folds everything itself: more bytes, one exchange instead of two."""


def collective(group: Group, calls: Sequence[Call]) -> Steps:
    """Agree with all ranks of the group on the call, then do it."""
    group.scratch.reset()
    verb, channel = calls[0].verb, group.channel
    if isinstance(channel, SharedChannel) and verb == "all_reduce":
        enclosed = enclose(group, channel, calls)
        yield from _agree(group, calls)
        if enclosed is not None:
            reduce_enclosed(group, calls, enclosed)
        else:
            yield from reduce_shared(group, channel, calls)
        return
    yield from _agree(group, calls)
    steps = shared_moves.VERBS.get(verb) if isinstance(channel, SharedChannel) else None
    steps = steps or _VERBS.get(verb)
    if steps is not None:
        yield from steps(group, calls)


def message(group: Group, calls: Sequence[Call]) -> Steps:
    """Move one array from rank to rank; both calls are here, or one of them."""
    assert calls[0].pair is not None
    source, target = calls[0].pair
    headers = [call.header() for call in calls]
    if len(calls) == 2:
        if headers[0] != headers[1]:
            raise _message_mismatch(
                group, calls[0].number, source, target, [c.record() for c in _in_order(calls)]
            )
        sender, receiver = _in_order(calls)
        numpy.copyto(flat(receiver.out), flat(sender.x))
        return
    (call,) = calls
    lane = 1 + source * group.size + target
    peer = group.process_of[target if call.x is not None else source]
    theirs = numpy.empty(HEADER_BYTES, numpy.uint8)
    yield group.channel.exchange([(peer, _bytes(headers[0]))], [(peer, theirs)], lane), True
    if theirs.tobytes() != headers[0]:
        record = numpy.empty(RECORD_BYTES, numpy.uint8)
        yield group.channel.exchange([(peer, _bytes(call.record()))], [(peer, record)], lane), False
        records = [call.record(), record.tobytes()]
        if call.x is None:
            records.reverse()
        raise _message_mismatch(group, call.number, source, target, records)
    sends = [] if call.x is None else [(peer, flat(call.x))]
    receives = [] if call.out is None else [(peer, flat(call.out))]
    yield group.channel.exchange(sends, receives, lane), False


def _in_order(calls: Sequence[Call]) -> list[Call]:
    return sorted(calls, key=lambda c: c.x is None)


def _message_mismatch(
    group: Group, number: int, source: int, target: int, records: Sequence[bytes]
) -> Exception:
    return mismatch(number, [group.ranks[source], group.ranks[target]], records)


def _agree(group: Group, calls: Sequence[Call]) -> Steps:
    """Compare what all ranks ask for.

    Raises:
        CollectiveMismatch: on every rank alike, if they differ.
    """
    header = calls[0].header()
    equal = all(call.header() == header for call in calls[1:])
    if group.channel.size == 1:
        if equal:
            return
        raise mismatch(calls[0].number, group.ranks, [call.record() for call in calls])
    mine = header if equal else b"\xff" * HEADER_BYTES
    request, everyone = group.channel.gather_headers(mine)
    yield request, True
    if equal and everyone == header * group.channel.size:
        return
    records = {call.index: _bytes(call.record()) for call in calls}
    for i in range(group.size):
        if i not in records:
            records[i] = numpy.empty(RECORD_BYTES, numpy.uint8)
    yield (
        group.channel.exchange(
            [(p, records[i]) for p in group.others for i in group.here],
            [(p, records[i]) for p in group.others for i in group.hosted[p]],
        ),
        False,
    )
    raise mismatch(calls[0].number, group.ranks, [records[i].tobytes() for i in range(group.size)])


def _all_reduce(group: Group, calls: Sequence[Call]) -> Steps:
    xs, op = operands(calls), operation(calls[0])
    outs = [flat(call.out, op) for call in calls]
    count, itemsize = outs[0].size, outs[0].itemsize
    dtype = accumulator(outs[0].dtype)
    # MPI leaves min and max of NaN open; ours keep it, so that a vote on "is it finite" can be a max.
    native = not group.host.env.fixed_order and (op in ("sum", "prod") or dtype.kind != "f")
    steps = _reduce_piece_natively if native and group.channel.size > 1 else _reduce_piece_in_order
    step = max(1, PIECE_BYTES // itemsize)
    for lo in range(0, count, step):
        piece = slice(lo, min(lo + step, count))
        group.scratch.reset()
        yield from steps(group, {i: x[piece] for i, x in xs.items()}, outs[0][piece], op)
        for out in outs[1:]:
            numpy.copyto(out[piece], outs[0][piece])


def _reduce_piece_natively(group: Group, xs: dict[int, Array], out: Array, op: str) -> Steps:
    dtype = accumulator(out.dtype)
    total = out if out.dtype == dtype and len(xs) == 1 else group.scratch.take(out.size, dtype)
    first, *rest = (fold_hosted(group, node, xs, op, dtype) for node in group.nodes[group.channel.index])
    if first is not total:
        numpy.copyto(total, first)
    with numpy.errstate(all="ignore"):
        for part in rest:
            UFUNCS[op](total, part, out=total)
    yield group.channel.all_reduce(total, op), False
    if total is not out:
        round_into(total, out)


def _reduce_piece_in_order(group: Group, xs: dict[int, Array], out: Array, op: str) -> Steps:
    channel = group.channel
    if out.nbytes <= SMALL_BYTES:
        bounds = [(0, out.size)] * channel.size
    else:
        edges = [out.size * p // channel.size for p in range(channel.size + 1)]
        bounds = list(pairwise(edges))
    segments = [(p, slice(*bounds[p])) for p in range(channel.size)]
    mine = segments[channel.index][1]
    yield from _fold_segments(group, xs, segments, {channel.index: out[mine]}, op)
    if out.nbytes > SMALL_BYTES and channel.size > 1:
        yield (
            channel.exchange(
                [(p, out[mine]) for p in group.others],
                [(p, out[segments[p][1]]) for p in group.others],
            ),
            False,
        )


def _fold_segments(
    group: Group,
    xs: dict[int, Array],
    segments: Sequence[tuple[int, slice]],
    targets: dict[int, Array],
    op: str,
) -> Steps:
    """Reduce segments of the ranks' arrays along the fixed tree, each at the process that owns it.

    Args:
        xs: the flat array of each rank hosted here.
        segments: (process, which part of the arrays), the same on all processes.
        targets: where each segment that this process owns goes, by its position in ``segments``.
    """
    channel, here = group.channel, group.channel.index
    dtype = accumulator(next(iter(xs.values())).dtype)
    parts: list[dict[Node, tuple[Array, bool]]] = []
    sends, receives = [], []
    for owner, where in segments:
        known: dict[Node, tuple[Array, bool]] = {}
        for node in group.nodes[here]:
            part = fold_hosted(group, node, {i: x[where] for i, x in xs.items()}, op, dtype)
            known[node] = (part, False)
            if owner != here:
                sends.append((owner, part))
        if owner == here:
            for p in group.others:
                for node in group.nodes[p]:
                    part = group.scratch.take(where.stop - where.start, dtype)
                    known[node] = (part, True)
                    receives.append((p, part))
        parts.append(known)
    if channel.size > 1:
        yield channel.exchange(sends, receives), False
    for k, target in targets.items():
        fold_into(group, parts[k], op, target)


def _reduce(group: Group, calls: Sequence[Call]) -> Steps:
    xs, op, root = operands(calls), operation(calls[0]), calls[0].root
    owner = group.process_of[root]
    out = next((flat(call.out, op) for call in calls if call.index == root), None)
    count = next(iter(xs.values())).size
    step = max(1, PIECE_BYTES // next(iter(xs.values())).itemsize)
    for lo in range(0, count, step):
        piece = slice(lo, min(lo + step, count))
        group.scratch.reset()
        targets = {} if out is None else {0: out[piece]}
        yield from _fold_segments(group, xs, [(owner, piece)], targets, op)


def _reduce_scatter(group: Group, calls: Sequence[Call]) -> Steps:
    xs, op = operands(calls), operation(calls[0])
    outs = {call.index: flat(call.out, op) for call in calls}
    count = outs[calls[0].index].size
    step = max(1, PIECE_BYTES // (group.size * outs[calls[0].index].itemsize))
    for lo in range(0, count, step):
        hi = min(lo + step, count)
        group.scratch.reset()
        segments = [(group.process_of[i], slice(i * count + lo, i * count + hi)) for i in range(group.size)]
        yield from _fold_segments(group, xs, segments, {i: out[lo:hi] for i, out in outs.items()}, op)


def _all_gather(group: Group, calls: Sequence[Call]) -> Steps:
    out = _rows(calls[0].out, group.size)
    for call in calls:
        copy_flat(call.x, out[call.index])
    yield (
        group.channel.exchange(
            [(p, out[i]) for p in group.others for i in group.here],
            [(p, out[i]) for p in group.others for i in group.hosted[p]],
        ),
        False,
    )
    for call in calls[1:]:
        numpy.copyto(_rows(call.out, group.size), out)


def _gather(group: Group, calls: Sequence[Call]) -> Steps:
    root = calls[0].root
    owner = group.process_of[root]
    out = next((_rows(call.out, group.size) for call in calls if call.index == root), None)
    if out is None:
        yield group.channel.exchange([(owner, flat(call.x)) for call in calls], []), False
        return
    for call in calls:
        copy_flat(call.x, out[call.index])
    yield group.channel.exchange([], [(p, out[i]) for p in group.others for i in group.hosted[p]]), False


def _scatter(group: Group, calls: Sequence[Call]) -> Steps:
    root = calls[0].root
    owner = group.process_of[root]
    x = next((_rows(call.x, group.size) for call in calls if call.index == root), None)
    if x is None:
        yield group.channel.exchange([], [(owner, flat(call.out)) for call in calls]), False
        return
    yield group.channel.exchange([(p, x[i]) for p in group.others for i in group.hosted[p]], []), False
    for call in calls:
        copy_flat(x[call.index], flat(call.out))


def _broadcast(group: Group, calls: Sequence[Call]) -> Steps:
    """A binomial tree over the processes, so that no process sends more than log2(P) copies."""
    channel, root = group.channel, calls[0].root
    first = next((call for call in calls if call.index == root), calls[0])
    x = flat(first.out)
    owner = group.process_of[root]
    place = (channel.index - owner) % channel.size
    bit = 1
    while bit < channel.size and not place & bit:
        bit *= 2
    if place:
        yield channel.exchange([], [((place - bit + owner) % channel.size, x)]), False
    children = []
    bit //= 2
    while bit:
        if place + bit < channel.size:
            children.append(((place + bit + owner) % channel.size, x))
        bit //= 2
    yield channel.exchange(children, []), False
    for call in calls:
        if call is not first:
            numpy.copyto(flat(call.out), x)


def _all_to_all(group: Group, calls: Sequence[Call]) -> Steps:
    xs: dict[int, Array] = {}
    for call in calls:
        xs[call.index] = _rows(call.x, group.size)
        if numpy.may_share_memory(call.x, call.out):
            xs[call.index] = group.scratch.take(xs[call.index].size, call.x.dtype).reshape(
                xs[call.index].shape
            )
            numpy.copyto(xs[call.index], _rows(call.x, group.size))
    outs = {call.index: _rows(call.out, group.size) for call in calls}
    sends = [(p, xs[i][j]) for p in group.others for i in group.here for j in group.hosted[p]]
    receives = [(p, outs[j][i]) for p in group.others for i in group.hosted[p] for j in group.here]
    yield group.channel.exchange(sends, receives), False
    for i in group.here:
        for j in group.here:
            numpy.copyto(outs[j][i], xs[i][j])


def _split(group: Group, calls: Sequence[Call]) -> Steps:
    """Gather (color, key) of all ranks and make the new groups; ``result`` is (group, index) or None."""
    shared = isinstance(group.channel, SharedChannel)
    yield from (shared_moves.all_gather if shared else _all_gather)(group, calls)
    wishes = calls[0].out.tolist()
    new: dict[int, tuple[Group, int]] = {}
    for color in sorted({color for taken, color, _ in wishes if taken}):
        members = sorted((key, i) for i, (taken, c, key) in enumerate(wishes) if taken and c == color)
        indices = [i for _, i in members]
        processes = sorted({group.process_of[i] for i in indices})
        if group.channel.index not in processes:
            continue
        request, made_channel = group.channel.narrow(processes)
        yield request, False
        hosted = [[k for k, i in enumerate(indices) if group.process_of[i] == p] for p in processes]
        made = Group(group.host, [group.ranks[i] for i in indices], made_channel(), hosted)
        for k in made.here:
            new[indices[k]] = (made, k)
    for call in calls:
        call.result = new.get(call.index)


def _close(group: Group, calls: Sequence[Call]) -> Steps:
    if group is not group.host.world:
        yield group.channel.leave(), False
        group.channel.close()
    group.broken = ValueError("it was closed")


_VERBS: dict[str, Callable[[Group, Sequence[Call]], Steps]] = {
    "all_reduce": _all_reduce,
    "reduce": _reduce,
    "reduce_scatter": _reduce_scatter,
    "all_gather": _all_gather,
    "gather": _gather,
    "scatter": _scatter,
    "broadcast": _broadcast,
    "all_to_all": _all_to_all,
    "split": _split,
    "close": _close,
}


def _rows(x: Array, rows: int) -> Array:
    return x.reshape(rows, x.size // rows)


def _bytes(data: bytes) -> Array:
    return numpy.frombuffer(data, numpy.uint8)
