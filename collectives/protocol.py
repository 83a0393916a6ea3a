"""What ranks do together, written once for all transports: agree on the call, then move and reduce.

Each verb is a generator over the calls of the ranks that this process hosts; it yields what it waits for.
``P`` processes, ``V`` ranks; ranks are group indices throughout.
"""

from collections.abc import Callable, Sequence

import numpy

from disttrain.collectives import moves, node_moves, on_gpu, shared_moves
from disttrain.collectives.call import HEADER_BYTES, RECORD_BYTES, Call, mismatch
from disttrain.collectives.host import Group
from disttrain.collectives.nodes import NodesChannel
from disttrain.collectives.progress import Steps
from disttrain.collectives.reduction import average, flat
from disttrain.collectives.shared import SMALL_BYTES, SharedChannel
from disttrain.collectives.shared_reduce import Enclosed, enclose, reduce_shared, reduce_small
from disttrain.kernels.arrays import Array

_UNEQUAL = b"\xff" * HEADER_BYTES


def collective(group: Group, calls: Sequence[Call]) -> Steps:
    """Agree with all ranks of the group on the call, then do it."""
    if calls[0].ready is not None:
        yield from _agree(group, calls)
        if calls[0].verb == "all_to_all_v":
            yield from _agree_on_counts(group, calls)
        yield from on_gpu.collective(group, calls, _move)
        return
    group.scratch.reset()
    verb, channel = calls[0].verb, group.channel
    if isinstance(channel, SharedChannel) and verb == "all_reduce":
        enclosed = enclose(group, channel, calls)
        header = _header(calls)
        request, everyone = channel.gather_headers(header)
        yield request, True
        yield from after_headers(group, calls, enclosed, header, everyone)
        return
    if isinstance(channel, SharedChannel) and verb == "broadcast" and calls[0].out.nbytes <= SMALL_BYTES:
        yield from shared_moves.broadcast_enclosed(group, channel, calls, _agree(group, calls))
        return
    yield from _agree(group, calls)
    if verb == "all_to_all_v":
        yield from _agree_on_counts(group, calls)
    yield from _move(group, calls)
    average(group, calls)


def after_headers(
    group: Group, calls: Sequence[Call], enclosed: Enclosed | None, header: bytes, everyone: bytearray
) -> Steps:
    """Go on with an all-reduce between processes that share memory: ``everyone``'s headers are there.

    Raises:
        CollectiveMismatch: on every rank alike, if one is not as this process's ``header``.
    """
    channel = group.channel
    assert isinstance(channel, SharedChannel)
    if everyone != header * channel.size or header is _UNEQUAL:
        yield from _disagree(group, calls)
    if enclosed is not None:
        yield from reduce_small(group, channel, calls, enclosed)
    else:
        yield from reduce_shared(group, channel, calls, channel.offered())


def _move(group: Group, calls: Sequence[Call]) -> Steps:
    """Do what all ranks of the group have agreed on."""
    verb, channel = calls[0].verb, group.channel
    if isinstance(channel, SharedChannel) and verb == "all_reduce":
        yield from reduce_shared(group, channel, calls)  # of copies in other memory
        return
    if isinstance(channel, SharedChannel) and verb in shared_moves.VERBS:
        steps = shared_moves.VERBS[verb]
    elif isinstance(channel, NodesChannel) and verb in node_moves.VERBS:
        steps = node_moves.VERBS[verb]
    elif verb in moves.VERBS:
        steps = moves.VERBS[verb]
    elif verb in _VERBS:
        steps = _VERBS[verb]
    else:  # to have come is all
        return
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
        if calls[0].ready is not None:
            yield from on_gpu.message(group, calls)
            return
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
    if call.ready is not None:
        yield from on_gpu.message(group, calls, lane)
        return
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
    header = _header(calls)
    size = group.channel.size
    if size > 1:
        request, everyone = group.channel.gather_headers(header)
        yield request, True
        if everyone != header * size or header is _UNEQUAL:
            yield from _disagree(group, calls)
    elif header is _UNEQUAL:
        raise mismatch(calls[0].number, group.ranks, [call.record() for call in calls])


def _header(calls: Sequence[Call]) -> bytes:
    """Return what the calls of the ranks here have in common, or what says that they differ."""
    header = calls[0].header()
    if len(calls) > 1 and any(call.header() != header for call in calls[1:]):
        return _UNEQUAL
    return header


def _agree_on_counts(group: Group, calls: Sequence[Call]) -> Steps:
    """Compare what each rank sends with what the others expect of it.

    Raises:
        CollectiveMismatch: on every rank alike, if they differ.
    """
    table = numpy.empty((group.size, 2, group.size), numpy.int64)
    for call in calls:
        table[call.index] = call.sends, call.receives
    yield moves.gather_rows(group, list(table.reshape(group.size, -1))), False
    if (table[:, 0] != table[:, 1].T).any():
        yield from _disagree(group, calls)


def _disagree(group: Group, calls: Sequence[Call]) -> Steps:
    """Tell all ranks what each of them has called, and raise it."""
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


def _split(group: Group, calls: Sequence[Call]) -> Steps:
    """Gather (color, key) of all ranks and make the new groups; ``result`` is (group, index) or None."""
    shared = isinstance(group.channel, SharedChannel)
    yield from (shared_moves if shared else moves).VERBS["all_gather"](group, calls)
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
        path = (*group.path, calls[0].number)
        made = Group(group.host, [group.ranks[i] for i in indices], made_channel(), hosted, path)
        made.timeout = group.timeout
        for k in made.here:
            new[indices[k]] = (made, k)
    for call in calls:
        call.result = new.get(call.index)


def _close(group: Group, calls: Sequence[Call]) -> Steps:
    world = group is group.host.world  # which the transport closes
    if group.on_gpu and not world:
        yield on_gpu.settled(group), False
    yield group.channel.leave(), False
    if not world:
        if group.on_gpu:
            on_gpu.close(group)
        group.channel.close()
    group.broken = ValueError("it was closed")


_VERBS: dict[str, Callable[[Group, Sequence[Call]], Steps]] = {"split": _split, "close": _close}


def _bytes(data: bytes) -> Array:
    return numpy.frombuffer(data, numpy.uint8)
