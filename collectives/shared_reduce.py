"""All-reduce between processes that share memory: each reads the others' arrays where they are.

Every sum is taken along the fixed tree, so its bits do not depend on the path: small arrays travel with the header,
arrays in shared memory are reduced in place, and others go through the stages, piece by piece. Which way it is follows
from the call and from what the processes tell with their headers, and is the same on all of them.
"""

from collections.abc import Callable, Iterator, Sequence
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
    average,
    divide,
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

_STAY_BYTES = 8 << 10
"""Past it one meeting more costs less than a copy, so that small arrays in shared memory stay where they are."""
_KEPT = 64
"""How many sizes and types of small arrays a group keeps the places of, and how many arrays in shared memory."""


Fold = tuple[Array, Array, Array]
"""Two flat arrays, and where what they are reduced to goes."""


class Enclosed:
    """The places of small arrays of one size and type, beside one of the two headers, and how they are folded."""

    __slots__ = ("may_stay", "steps", "target", "targets", "total")

    def __init__(self, group: Group, channel: SharedChannel, place: int, count: int, dtype: Dtype) -> None:
        wide = accumulator(dtype)
        by_process = [_parts(group, p, channel.small[p][place], count, wide) for p in range(channel.size)]
        self.targets = by_process[channel.index]
        """Where this process puts the sums of the subtrees that it folds by itself."""
        self.target = next(iter(self.targets.values()))
        """The first of them: the only one if this process has one rank."""
        self.total = numpy.empty(count, wide)
        parts = {node: part for parts in by_process for node, part in parts.items()}
        self.steps = _folds(group, parts, lambda: numpy.empty(count, wide), self.total)
        self.may_stay = self.total.nbytes > _STAY_BYTES and wide == dtype and group.size == channel.size > 1
        """Whether an array that is in shared memory is left there, and its process tells with the header where."""


def _folds(group: Group, parts: Parts, take: Callable[[], Array], out: Array) -> list[Fold]:
    """Return what to reduce in turn, so that the last result, which goes to ``out``, is that of the whole tree."""
    folds: list[Fold] = []

    def note(left: Array, right: Array, out: Array) -> None:
        folds.append((left, right, out))

    fold((0, group.size), {node: (part, False) for node, part in parts.items()}, note, take, out)
    return folds


def places_of(group: Group, channel: SharedChannel, slot: int, count: int, dtype: Dtype) -> Enclosed | None:
    """Return the places of arrays of ``count`` elements of ``dtype`` beside a header; None if they are not small."""
    key = (slot, count, dtype)
    enclosed: Enclosed | None = group.enclosed.get(key)
    if enclosed is None:
        if count * accumulator(dtype).itemsize * group.most_subtrees > SMALL_BYTES:
            return None
        if len(group.enclosed) >= _KEPT:
            group.enclosed.clear()
        enclosed = group.enclosed[key] = Enclosed(group, channel, slot, count, dtype)
    return enclosed


def enclose(group: Group, channel: SharedChannel, calls: Sequence[Call]) -> Enclosed | None:
    """Put the arrays beside the header that is sent next if they are small, and return their places there.

    Of larger ones the header tells where they are, and of small ones too if they stay there.
    """
    x = flat(calls[0].x, calls[0].op)
    enclosed = places_of(group, channel, channel.headers & 1, x.size, x.dtype)
    several = len(calls) > 1
    if enclosed is None or enclosed.may_stay:
        offset_of = channel.memory.offset_of
        if calls[0].averaged:
            channel.weigh(x[calls[0].averaged])
        x_at, out_at = (-1, -1) if several else (offset_of(calls[0].x), offset_of(calls[0].out))
        stays = min(x_at, out_at) >= 0
        channel.offer(*(x_at, out_at) if stays else (-1, -1))
        if enclosed is None or stays:
            return enclosed
    if not several:
        enclosed.target[...] = x
        return enclosed
    if any((y.x.size, y.x.dtype) != (x.size, calls[0].x.dtype) for y in calls):
        return None  # a mismatch, as will be found
    xs, op = operands(calls), operation(calls[0])
    for node, target in enclosed.targets.items():
        numpy.copyto(target, fold_hosted(group, node, xs, op, enclosed.total.dtype))
    return enclosed


def reduce_small(group: Group, channel: SharedChannel, calls: Sequence[Call], enclosed: Enclosed) -> Steps:
    """All-reduce of small arrays, once the headers are there and with them the arrays, or where these have stayed."""
    told = channel.offered() if enclosed.may_stay else channel.nowhere
    if told == channel.nowhere:
        _reduce_enclosed(group, calls, enclosed)
        average(group, calls)
        return
    (call,) = calls
    x_at, _ = channel.places(told)[channel.index]
    _in_place(group, channel, call, channel.or_beside(told)).reduce()
    yield channel.step(), True
    if x_at < 0:
        flat(call.out, call.op)[...] = enclosed.target


def _reduce_enclosed(group: Group, calls: Sequence[Call], enclosed: Enclosed) -> None:
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


def reduce_shared(group: Group, channel: SharedChannel, calls: Sequence[Call], told: bytes = b"") -> Steps:
    """All-reduce of arrays that are too large for the header; ``told``: where the processes say that theirs lie."""
    if told and min(map(min, channel.places(told))) >= 0:
        _in_place(group, channel, calls[0], told).reduce()
        yield channel.step(), True
        return
    xs, op = operands(calls), operation(calls[0])
    outs = [flat(call.out, op) for call in calls]
    yield from _reduce_in_stages(group, channel, xs, outs[0], op)
    for out in outs[1:]:
        numpy.copyto(out, outs[0])
    average(group, calls)


def _in_place(group: Group, channel: SharedChannel, call: Call, places: bytes) -> "InPlace":
    """Return how calls like ``call`` are made of arrays in these places."""
    key = places + call.form.compared
    way: InPlace | None = group.in_place.get(key)
    if way is None:
        if len(group.in_place) >= _KEPT:
            group.in_place.clear()
        like, op = flat(call.out, call.op), operation(call)
        way = group.in_place[key] = InPlace(group, channel, like, channel.places(places), op, call.averaged)
    return way


def _segments(count: int, size: int) -> list[slice]:
    """Return which elements each process folds."""
    edges = [count * p // size for p in range(size + 1)]
    return [slice(lo, hi) for lo, hi in pairwise(edges)]


def _chunks(segment: slice, itemsize: int) -> Iterator[slice]:
    step = max(1, CHUNK_BYTES // itemsize)
    for lo in range(segment.start, segment.stop, step):
        yield slice(lo, min(lo + step, segment.stop))


class InPlace:
    """All-reduce of arrays that are in shared memory, those of each process always in the same places.

    Each process folds a segment of them where they are and writes the result into the arrays of all. Nobody else reads
    or writes that segment meanwhile, so ``x`` and ``out`` may be the same.

    Args:
        like: an array of their size and type.
        places: where ``x`` and ``out`` of each process begin.
        op: of :func:`.reduction.operation`.
        averaged: see :meth:`.Communicator.all_reduce`.
    """

    __slots__ = ("_channel", "_group", "_op", "_pieces", "_reduce", "_total", "_weights")

    def __init__(
        self,
        group: Group,
        channel: SharedChannel,
        like: Array,
        places: Sequence[tuple[int, int]],
        op: str,
        averaged: int,
    ) -> None:
        self._group, self._channel, self._op, self._reduce = group, channel, op, ufunc(op, like)
        sources = [channel.array_of(p, x, like) for p, (x, _) in enumerate(places)]
        results = [channel.array_of(p, out, like) for p, (_, out) in enumerate(places)]
        self._pieces: list[tuple[Parts | list[Fold], Array, Array, list[Array]]] = []
        """What to fold, where to, what of that to divide by the weights, and where else the result goes.

        Half precision is widened first, call by call."""
        scratch = Scratch()
        for piece in _chunks(_segments(like.size, channel.size)[channel.index], like.itemsize):
            scratch.reset()
            target, *others = (results[p][piece] for p in (channel.index, *group.others))
            parts = {(i, i + 1): x[piece] for (i,), x in zip(group.hosted, sources, strict=True)}
            plain = accumulator(like.dtype) == like.dtype
            take = partial(scratch.take, target.size, like.dtype)
            folds = _folds(group, parts, take, target) if plain else parts
            self._pieces.append((folds, target, target[: max(0, averaged - piece.start)], others))
        self._weights = numpy.empty((channel.size, 1), like.dtype)
        """By process. They come with the headers: in the arrays they may be summed already when we look."""
        self._total: list[Fold] = []
        if averaged:
            parts = {(i, i + 1): weight for (i,), weight in zip(group.hosted, self._weights, strict=True)}
            self._total = _folds(group, parts, lambda: numpy.empty(1, like.dtype), numpy.empty(1, like.dtype))

    def reduce(self) -> None:
        """Do this process's part of a call. The call is over once all have done theirs."""
        group = self._group
        weight = None
        if self._total:
            self._weights[:, 0] = self._channel.weights()
            for left, right, target in self._total:
                group.quietly(self._reduce, left, right, target)
            weight = target[0]
        for folds, total, averaged, others in self._pieces:
            if isinstance(folds, dict):
                group.scratch.reset()
                fold_into(group, {node: (x, False) for node, x in folds.items()}, self._op, total)
            else:
                for left, right, target in folds:
                    group.quietly(self._reduce, left, right, target)
            if weight is not None:
                divide(group, averaged, weight)
            for other in others:
                other[...] = total


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
