"""What ranks do together, by messages between the processes of a channel.

A process is whatever hosts ranks and can fold the largest subtrees that it has in full; seen from the network, so is
a node, and :mod:`.node_moves` calls the same functions for the nodes of a job.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import numpy

from disttrain.collectives.call import Call
from disttrain.collectives.host import Group
from disttrain.collectives.progress import Steps
from disttrain.collectives.reduction import (
    Parts,
    accumulator,
    copy_flat,
    flat,
    fold_hosted,
    fold_into,
    operands,
    operation,
    round_into,
    ufunc,
)
from disttrain.collectives.transport import Request
from disttrain.collectives.tree import is_leaf
from disttrain.kernels.arrays import Array, copy_into, overlap

SMALL_BYTES = 8 << 10
"""Up to here every process folds everything itself: more bytes, one exchange instead of two."""


def all_reduce(group: Group, calls: Sequence[Call]) -> Steps:
    """See :meth:`.Communicator.all_reduce`."""
    xs, op = operands(calls), operation(calls[0])
    outs = [flat(call.out, op) for call in calls]
    count, itemsize = outs[0].size, outs[0].itemsize
    step = max(1, group.piece_bytes // itemsize)
    for lo in range(0, count, step):
        piece = slice(lo, min(lo + step, count))
        group.scratch.reset()
        yield from reduce_piece(group, _cut(xs, piece), outs[0][piece], op)
        for out in outs[1:]:
            copy_into(out[piece], outs[0][piece])


def reduce_piece(group: Group, xs: Parts, out: Array, op: str) -> Steps:
    """Reduce flat arrays over all ranks into ``out`` on every process, which may be one of them.

    Args:
        xs: of the ranks hosted here, or of subtrees of them, all of one type: that of ``out``, or the one that it is
            accumulated in.
    """
    dtype = accumulator(out.dtype)
    reduce = None if group.in_order or group.channel.size == 1 else group.channel.all_reduce
    if op in ("min", "max") and dtype.kind == "f":
        reduce = (
            None  # MPI leaves NaN open there; ours keep it, so that a vote on "is it finite" can be a max
        )
    # In order, half precision stays half on the way.
    if reduce is not None and next(iter(xs.values())).dtype == dtype:
        yield from _reduce_natively(group, xs, out, op, reduce)
    else:
        yield from _reduce_in_order(group, xs, out, op)


def _reduce_natively(
    group: Group, xs: Parts, out: Array, op: str, reduce: Callable[[Array, str], Request]
) -> Steps:
    dtype = accumulator(out.dtype)
    first, *rest = (fold_hosted(group, node, xs, op, dtype) for node in group.subtrees[group.channel.index])
    total = first
    if any(first is x for x in xs.values()):  # not ours to write
        total = out if out.dtype == dtype and not rest else group.scratch.take(out.size, dtype)
        if total is not first:
            copy_into(total, first)
    with numpy.errstate(all="ignore"):
        for part in rest:
            ufunc(op, total)(total, part, out=total)
    yield reduce(total, op), False
    if total is not out:
        round_into(total, out)


def _reduce_in_order(group: Group, xs: Parts, out: Array, op: str) -> Steps:
    channel = group.channel
    if out.nbytes <= SMALL_BYTES:
        bounds = [(0, out.size)] * channel.size
    else:
        edges = [out.size * p // channel.size for p in range(channel.size + 1)]
        bounds = list(pairwise(edges))
    segments = [slice(*bounds[p]) for p in range(channel.size)]
    mine = segments[channel.index]
    owned = [(p, _cut(xs, segment)) for p, segment in enumerate(segments)]
    yield from fold_segments(group, owned, {channel.index: out[mine]}, op)
    if out.nbytes > SMALL_BYTES and channel.size > 1:
        yield (
            channel.exchange(
                [(p, out[mine]) for p in group.others],
                [(p, out[segments[p]]) for p in group.others],
            ),
            False,
        )


def fold_segments(
    group: Group, segments: Sequence[tuple[int, Parts]], targets: dict[int, Array], op: str
) -> Steps:
    """Reduce segments of the ranks' arrays along the fixed tree, each at the process that owns it.

    Args:
        segments: (process that owns it, the segment of each array here), in one order on all processes. The arrays are
            flat, of the ranks hosted here or of subtrees of them.
        targets: where each segment that this process owns goes, by its position in ``segments``.
    """
    channel, here = group.channel, group.channel.index
    parts: list[dict[tuple[int, int], tuple[Array, bool]]] = []
    sends, receives = [], []
    for owner, xs in segments:
        like = next(iter(xs.values()))
        dtype = accumulator(like.dtype)
        known: dict[tuple[int, int], tuple[Array, bool]] = {}
        for node in group.subtrees[here]:
            # What one rank has in half precision goes over the wire as it is: half the bytes.
            part = xs[node] if is_leaf(node) and owner != here else fold_hosted(group, node, xs, op, dtype)
            known[node] = (part, False)
            if owner != here:
                sends.append((owner, part))
        if owner == here:
            for p in group.others:
                for node in group.subtrees[p]:
                    part = group.scratch.take(like.size, like.dtype if is_leaf(node) else dtype)
                    known[node] = (part, True)
                    receives.append((p, part))
        parts.append(known)
    if channel.size > 1:
        yield channel.exchange(sends, receives), False
    for k, target in targets.items():
        fold_into(group, parts[k], op, target)


def _cut(xs: Parts, where: slice) -> Parts:
    return {node: x[where] for node, x in xs.items()}


def _reduce(group: Group, calls: Sequence[Call]) -> Steps:
    xs, op, root = operands(calls), operation(calls[0]), calls[0].root
    owner = group.process_of[root]
    out = next((flat(call.out, op) for call in calls if call.index == root), None)
    count = next(iter(xs.values())).size
    step = max(1, group.piece_bytes // next(iter(xs.values())).itemsize)
    for lo in range(0, count, step):
        piece = slice(lo, min(lo + step, count))
        group.scratch.reset()
        targets = {} if out is None else {0: out[piece]}
        yield from fold_segments(group, [(owner, _cut(xs, piece))], targets, op)


def _reduce_scatter(group: Group, calls: Sequence[Call]) -> Steps:
    xs, op = operands(calls), operation(calls[0])
    outs = {call.index: flat(call.out, op) for call in calls}
    count = outs[calls[0].index].size
    step = max(1, group.piece_bytes // (group.size * outs[calls[0].index].itemsize))
    for lo in range(0, count, step):
        hi = min(lo + step, count)
        group.scratch.reset()
        segments = [
            (group.process_of[i], _cut(xs, slice(i * count + lo, i * count + hi))) for i in range(group.size)
        ]
        yield from fold_segments(group, segments, {i: out[lo:hi] for i, out in outs.items()}, op)


def _all_gather(group: Group, calls: Sequence[Call]) -> Steps:
    out = _rows(calls[0].out, group.size)
    for call in calls:
        copy_flat(call.x, out[call.index])
    yield gather_rows(group, out), False
    for call in calls[1:]:
        copy_into(_rows(call.out, group.size), out)


def gather_rows(group: Group, rows: Sequence[Array]) -> Callable[[], bool]:
    """Give the ``rows`` of the ranks hosted here to all processes, and receive the others'."""
    return group.channel.exchange(
        [(p, rows[i]) for p in group.others for i in group.here],
        [(p, rows[i]) for p in group.others for i in group.hosted[p]],
    )


def _all_gather_v(group: Group, calls: Sequence[Call]) -> Steps:
    out = flat(calls[0].out)
    rows = _split(out, calls[0].receives)
    for call in calls:
        copy_flat(call.x, rows[call.index])
    yield gather_rows(group, rows), False
    for call in calls[1:]:
        copy_into(flat(call.out), out)


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
    root = calls[0].root
    first = next((call for call in calls if call.index == root), calls[0])
    x = flat(first.out)
    yield from broadcast_from(group, group.process_of[root], x)
    for call in calls:
        if call is not first:
            copy_into(flat(call.out), x)


def broadcast_from(group: Group, owner: int, x: Array) -> Steps:
    """Overwrite ``x`` with that of process ``owner``: a binomial tree, so that no process sends more than log2(P)."""
    channel = group.channel
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


def _all_to_all(group: Group, calls: Sequence[Call]) -> Steps:
    parts = group.size
    yield from _swap(
        group,
        {call.index: list(_rows(_apart(group, call), parts)) for call in calls},
        {call.index: list(_rows(call.out, parts)) for call in calls},
    )


def _all_to_all_v(group: Group, calls: Sequence[Call]) -> Steps:
    yield from _swap(
        group,
        {c.index: _split(_apart(group, c), c.sends) for c in calls},
        {c.index: _split(flat(c.out), c.receives) for c in calls},
    )


def _split(x: Array, counts: Sequence[int]) -> list[Array]:
    """Return consecutive parts of the flat ``x`` of so many elements."""
    return [x[lo:hi] for lo, hi in pairwise(accumulate(counts, initial=0))]


def _apart(group: Group, call: Call) -> Array:
    """Return the flat ``x`` of a call, a copy if it shares memory with ``out``."""
    x = flat(call.x)
    if not overlap(call.x, call.out):
        return x
    copy = group.scratch.take(x.size, x.dtype)
    copy_into(copy, x)
    return copy


def _swap(group: Group, xs: dict[int, list[Array]], outs: dict[int, list[Array]]) -> Steps:
    """Move ``xs[i][j]`` of rank i to ``outs[j][i]`` of rank j."""
    sends = [(p, xs[i][j]) for p in group.others for i in group.here for j in group.hosted[p]]
    receives = [(p, outs[j][i]) for p in group.others for i in group.hosted[p] for j in group.here]
    yield group.channel.exchange(sends, receives), False
    for i in group.here:
        for j in group.here:
            copy_into(outs[j][i], xs[i][j])


def _rows(x: Array, rows: int) -> Array:
    return x.reshape(rows, x.size // rows)


VERBS: dict[str, Callable[[Group, Sequence[Call]], Steps]] = {
    "all_reduce": all_reduce,
    "reduce": _reduce,
    "reduce_scatter": _reduce_scatter,
    "all_gather": _all_gather,
    "all_gather_v": _all_gather_v,
    "gather": _gather,
    "scatter": _scatter,
    "broadcast": _broadcast,
    "all_to_all": _all_to_all,
    "all_to_all_v": _all_to_all_v,
}
