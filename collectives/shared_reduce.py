"""All-reduce between processes that share memory: each reads the others' arrays where they are.

Every sum is taken along the fixed tree, so its bits do not depend on the path: small arrays travel with the header,
arrays in shared memory are reduced in place, and others go through the stages, piece by piece.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise

import numpy

from disttrain.collectives.call import Call
from disttrain.collectives.host import Group
from disttrain.collectives.progress import Steps
from disttrain.collectives.reduction import (
    CHUNK_BYTES,
    Dtype,
    Parts,
    accumulator,
    flat,
    fold_hosted,
    fold_into,
    operands,
    operation,
    round_into,
    ufunc,
)
from disttrain.collectives.scratch import Scratch
from disttrain.collectives.shared import SMALL_BYTES, SharedChannel
from disttrain.collectives.tree import Node, fold
from disttrain.kernels.arrays import Array

_KEPT = 64
"""How many sizes and types of small arrays a group keeps the places of, and how many large arrays in shared memory."""


class Enclosed:
    """The places of small arrays of one size and type, beside one of the two headers, and how they are folded."""

    __slots__ = ("steps", "target", "targets", "total")

    def __init__(self, group: Group, channel: SharedChannel, place: int, count: int, dtype: Dtype) -> None:
        by_process = [_parts(group, p, channel.small[p][place], count, dtype) for p in range(channel.size)]
        self.targets = by_process[channel.index]
        """Where this process puts the sums of the subtrees that it folds by itself."""
        self.target = next(iter(self.targets.values()))
        """The first of them: the only one if this process has one rank."""
        self.total = numpy.empty(count, dtype)
        self.steps: list[tuple[Array, Array, Array]] = []
        """What to reduce in turn: left, right and where to; the last one is :attr:`total`."""
        parts = {node: (part, False) for parts in by_process for node, part in parts.items()}

        def note(left: Array, right: Array, out: Array) -> None:
            self.steps.append((left, right, out))

        fold((0, group.size), parts, note, lambda: numpy.empty(count, dtype), self.total)


def places_of(group: Group, channel: SharedChannel, slot: int, count: int, dtype: Dtype) -> Enclosed | None:
    """Return the places of arrays of ``count`` elements of ``dtype`` beside a header; None if they are not small."""
    key = (slot, count, dtype)
    enclosed: Enclosed | None = group.enclosed.get(key)
    if enclosed is None:
        wide = accumulator(dtype)
        if count * wide.itemsize * group.most_subtrees > SMALL_BYTES:
            return None
        if len(group.enclosed) >= _KEPT:
            group.enclosed.clear()
        enclosed = group.enclosed[key] = Enclosed(group, channel, slot, count, wide)
    return enclosed


def enclose(group: Group, channel: SharedChannel, calls: Sequence[Call]) -> Enclosed | None:
    """Put the arrays beside the header that is sent next if they are small, and return where they are.

    Of larger ones the header tells where they are.
    """
    x = flat(calls[0].x, calls[0].op)
    enclosed = places_of(group, channel, channel.headers & 1, x.size, x.dtype)
    several = len(calls) > 1
    if enclosed is None:
        offset_of = channel.memory.offset_of
        channel.offer(*(-1, -1) if several else (offset_of(calls[0].x), offset_of(calls[0].out)))
        return None
    if not several:
        enclosed.target[...] = x
        return enclosed
    if any((y.x.size, y.x.dtype) != (x.size, calls[0].x.dtype) for y in calls):
        return None  # a mismatch, as will be found
    xs, op = operands(calls), operation(calls[0])
    for node, target in enclosed.targets.items():
        numpy.copyto(target, fold_hosted(group, node, xs, op, enclosed.total.dtype))
    return enclosed


def reduce_enclosed(group: Group, calls: Sequence[Call], enclosed: Enclosed) -> None:
    """Fold what came with the headers."""
    op = operation(calls[0])
    out = flat(calls[0].out, op)
    total = enclosed.total
    last = out if out.dtype == total.dtype else total
    reduce = ufunc(op, out)
    for left, right, target in enclosed.steps:
        group.quietly(reduce, left, right, last if target is total else target)
    if last is total:
        round_into(total, out)
    for call in calls[1:]:
        numpy.copyto(flat(call.out, op), out)


def _parts(group: Group, process: int, place: Array, count: int, dtype: Dtype) -> dict[Node, Array]:
    """Return the arrays, one for each subtree that ``process`` folds by itself, that lie one after the other."""
    nbytes = count * dtype.itemsize
    return {
        node: place[i * nbytes : (i + 1) * nbytes].view(dtype)
        for i, node in enumerate(group.subtrees[process])
    }


def reduce_shared(
    group: Group, channel: SharedChannel, calls: Sequence[Call], places: Sequence[tuple[int, int]] = ()
) -> Steps:
    """All-reduce of arrays that are too large for the header; ``places``: where the processes say that theirs lie."""
    xs, op = operands(calls), operation(calls[0])
    outs = [flat(call.out, op) for call in calls]
    if min((min(pair) for pair in places), default=-1) >= 0:
        key = (*places, outs[0].size, outs[0].dtype)
        way = group.in_place.get(key)
        if way is None:
            if len(group.in_place) >= _KEPT:
                group.in_place.clear()
            way = group.in_place[key] = InPlace(group, channel, outs[0], places)
        yield from way.steps(op)
    else:
        yield from _reduce_in_stages(group, channel, xs, outs[0], op)
    for out in outs[1:]:
        numpy.copyto(out, outs[0])


def _segments(count: int, size: int) -> list[slice]:
    """Return which elements each process folds."""
    edges = [count * p // size for p in range(size + 1)]
    return [slice(lo, hi) for lo, hi in pairwise(edges)]


def _chunks(segment: slice, itemsize: int) -> Iterator[slice]:
    step = max(1, CHUNK_BYTES // itemsize)
    for lo in range(segment.start, segment.stop, step):
        yield slice(lo, min(lo + step, segment.stop))


class InPlace:
    """All-reduce of large arrays that lie in shared memory, those of each process always in the same places.

    Each process folds a segment of them where they are, then takes the others' segments. ``x`` and ``out`` may be the
    same: of another process's arrays only the own segment is read before all segments are folded, and that one its
    owner does not write until this process has.

    Args:
        like: an array of their size and type.
        places: where ``x`` and ``out`` of each process begin.
    """

    __slots__ = ("_channel", "_chunks", "_folds", "_group", "_out", "_taken")

    def __init__(
        self, group: Group, channel: SharedChannel, like: Array, places: Sequence[tuple[int, int]]
    ) -> None:
        self._group, self._channel = group, channel
        dtype = like.dtype
        sources = [channel.array_of(p, x, like) for p, (x, _) in enumerate(places)]
        results = [channel.array_of(p, y, like) for p, (_, y) in enumerate(places)]
        segments = _segments(like.size, channel.size)
        mine = segments[channel.index]
        self._out = out = results[channel.index]
        self._taken = [
            (out[segment], results[p][segment]) for p, segment in enumerate(segments) if p != channel.index
        ]
        plain = accumulator(dtype) == dtype
        at_once = plain and channel.size == 2  # one pass over memory, whatever its size
        self._chunks = [
            ({(i, i + 1): x[chunk] for (i,), x in zip(group.hosted, sources, strict=True)}, out[chunk])
            for chunk in ([mine] if at_once else _chunks(mine, like.itemsize))
        ]
        self._folds: list[tuple[Array, Array, Array]] | None = None
        """What to reduce in turn: left, right and where to; None in half precision, which is widened first."""
        if plain:
            self._folds = folds = []
            scratch = Scratch()

            def note(left: Array, right: Array, out: Array) -> None:
                folds.append((left, right, out))

            for parts, target in self._chunks:
                scratch.reset()
                known = {node: (x, False) for node, x in parts.items()}
                fold((0, group.size), known, note, partial(scratch.take, target.size, dtype), target)

    def steps(self, op: str) -> Steps:
        """Make one call."""
        self._fold(op)
        yield self._channel.step(), False
        for target, source in self._taken:
            numpy.copyto(target, source)
        yield self._channel.step(), False  # nobody may write an array that another still reads

    def _fold(self, op: str) -> None:
        group = self._group
        if self._folds is None:
            for parts, target in self._chunks:
                group.scratch.reset()
                fold_into(group, {node: (x, False) for node, x in parts.items()}, op, target)
            return
        reduce = ufunc(op, self._out)
        for left, right, target in self._folds:
            group.quietly(reduce, left, right, target)


def _reduce_in_stages(group: Group, channel: SharedChannel, xs: Parts, out: Array, op: str) -> Steps:
    """Put a piece of every array into a stage, fold a segment of it there, and copy all segments out.

    There are two stages, used in turn; a stage is written again only after the step of the next piece, which all make
    when they have copied this one.
    """
    dtype = accumulator(out.dtype)
    step = max(1, channel.stage_bytes // (dtype.itemsize * group.most_subtrees))
    for k, lo in enumerate(range(0, out.size, step)):
        piece = slice(lo, min(lo + step, out.size))
        count = piece.stop - piece.start
        group.scratch.reset()
        stages = [_parts(group, p, channel.stages[p][k & 1], count, dtype) for p in range(channel.size)]
        mine = {node: x[piece] for node, x in xs.items()}
        for node, target in stages[channel.index].items():
            numpy.copyto(target, fold_hosted(group, node, mine, op, dtype))
        yield channel.step(), False
        segments = _segments(count, channel.size)
        first = [
            next(iter(stage.values())) for stage in stages
        ]  # where a process leaves its segment of the result
        for chunk in _chunks(segments[channel.index], dtype.itemsize):
            group.scratch.reset()
            parts = {node: (part[chunk], False) for stage in stages for node, part in stage.items()}
            fold_into(group, parts, op, first[channel.index][chunk])
        yield channel.step(), False
        for p, segment in enumerate(segments):
            round_into(first[p][segment], out[piece][segment])
