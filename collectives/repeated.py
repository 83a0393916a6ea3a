"""All-reduces that a rank has made before: the short way, of small arrays and of those in shared memory.

What happens is what :mod:`disttrain.collectives.protocol` does, and the other processes cannot tell the difference;
but the arrays' checks, their places in shared memory, and the words for header and ledger are known from the first
time, and a call that the others make at the same time needs no generator, and no object of its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy

from disttrain.collectives.call import Call, Form, Tag, caller, made
from disttrain.collectives.host import Group
from disttrain.collectives.ledger import Page
from disttrain.collectives.progress import Operation, Steps, Wait, comes_soon
from disttrain.collectives.protocol import after_headers
from disttrain.collectives.reduction import divide, ufunc
from disttrain.collectives.shared import SharedChannel
from disttrain.collectives.shared_reduce import Enclosed, places_of
from disttrain.kernels.arrays import Array

_KEPT = 64
"""How many kinds of calls are known at a time."""


class _Known(NamedTuple):
    """What calls with one operation, shape and dtype have in common."""

    form: Form
    enclosed: tuple[Enclosed, Enclosed] | None
    """Beside each of the two headers; None if the arrays are too large for that, and have to be in shared memory."""
    places_told: bool
    """Whether the header tells where the array lies, if that is in shared memory."""
    reduce: Callable[..., Array]


class Repeated:
    """The short way of the one rank that this process has in a group.

    Args:
        rank: its number in the world.
    """

    def __init__(self, group: Group, channel: SharedChannel, rank: int) -> None:
        self._group, self._channel, self._rank = group, channel, rank
        self._known: dict[tuple[str, tuple[int, ...], Any, int], _Known] = {}

    @classmethod
    def of(cls, group: Group, rank: int) -> "Repeated | None":
        """Return the short way of ``rank`` in ``group``; None if there is none."""
        channel = group.channel
        if not isinstance(channel, SharedChannel) or len(group.here) > 1 or group.host.baton is not None:
            return None
        return cls(group, channel, rank)

    def learn(self, call: Call) -> None:
        """Take the short way from now on for calls like this one, which has ended well, if there is one."""
        x = call.x
        if call.out is not x or type(x) is not numpy.ndarray or x.dtype.kind == "b":
            return
        first, second = (places_of(self._group, self._channel, slot, x.size, x.dtype) for slot in (0, 1))
        enclosed = None if first is None or second is None else (first, second)
        if self._channel.memory.offset_of(x) < 0 if first is None else first.total.dtype != x.dtype:
            return
        if len(self._known) >= _KEPT:
            self._known.clear()
        places_told = first is None or first.may_stay
        key = call.op, x.shape, x.dtype, call.averaged
        self._known[key] = _Known(call.form, enclosed, places_told, ufunc(call.op, x))

    def all_reduce(self, x: Array, op: str, tag: Tag, averaged: int) -> bool:
        """Reduce ``x`` in place as an earlier call did; return whether that could be: else nothing was done."""
        known = self._known.get((op, x.shape, x.dtype, averaged)) if type(x) is numpy.ndarray else None
        group = self._group
        host = group.host
        if known is None or group.broken is not None or host.failure is not None:
            return False
        place = self._channel.memory.offset_of(x) if known.places_told else -1
        if known.enclosed is None and place < 0:
            return False
        flags = x.flags
        if not (flags.c_contiguous and flags.writeable) or not host.progress.enter():
            return False
        try:
            call = self._reduce(known, x, place, op, tag, averaged)
        finally:
            host.progress.lock.release()
        if call is not None:
            host.finish(self._rank, call)
        return True

    def _reduce(self, known: _Known, x: Array, place: int, op: str, tag: Tag, averaged: int) -> Call | None:
        """Return the call if it has still to be waited for, or if the ranks do not agree."""
        group, channel = self._group, self._channel
        source = caller(4)
        number, page, entry = group.note(tag, source, known.form)
        flat = x if x.ndim == 1 else x.reshape(-1)
        enclosed: Enclosed | None = None
        steps: Steps | None = None
        try:
            if known.places_told:
                channel.offer(place, place)
                if averaged:
                    channel.weigh(flat[averaged])
            if known.enclosed is not None:
                enclosed = known.enclosed[channel.headers & 1]
                if place < 0:
                    enclosed.target[...] = flat
            header = made(group.host.env.generation, number, tag) + known.form.compared
            request, everyone = channel.gather_headers(header)
            wait: Wait | None = None if comes_soon(request) else (request, True)
            if wait is None and everyone == header * channel.size:
                told = channel.offered() if known.places_told else channel.nowhere
                if enclosed is not None and told == channel.nowhere:
                    *others, (left, right, _) = enclosed.steps
                    for step in others:
                        group.quietly(known.reduce, *step)
                    group.quietly(known.reduce, left, right, flat)
                    if averaged:
                        divide(group, flat[:averaged], flat[averaged])
                    page.end(entry, failed=False)
                    return None
                in_place = group.in_place.get(told + known.form.compared)
                if in_place is not None:
                    in_place.reduce()
                    request = channel.step()
                    if comes_soon(request):
                        page.end(entry, failed=False)
                        return None
                    steps, wait = _nothing(), (request, True)
        except BaseException as error:
            call = self._call(x, op, tag, averaged, source, number, page, entry)
            group.host.progress.interrupt(Operation(id(group), [call], _nothing()), error)
            raise
        call = self._call(x, op, tag, averaged, source, number, page, entry)
        if steps is None:
            steps = after_headers(group, [call], enclosed, header, everyone)
        operation = Operation(id(group), [call], steps)
        if wait is not None:
            operation.wait(*wait)
        group.host.progress.take(operation)
        return call

    def _call(
        self,
        x: Array,
        op: str,
        tag: Tag,
        averaged: int,
        source: tuple[str, int],
        number: int,
        page: Page,
        entry: int,
    ) -> Call:
        """Return the call that has been noted as ``entry``."""
        group = self._group
        call = Call("all_reduce", x, x, op=op, tag=tag, averaged=averaged)
        call.source, call.number, call.generation = source, number, group.host.env.generation
        call.index, call.group, call.page, call.entry = group.here[0], group, page, entry
        return call


def _nothing() -> Steps:
    """Return the steps of a call that is over once what it waits for has come."""
    yield from ()
