"""Python objects between ranks, by PyTorch's names. They travel as ``save()`` writes them, never as pickles."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from disttrain.collectives.communicator import Communicator
from disttrain.distributed.groups import ProcessGroup, communicator_of, get_global_rank, group_rank
from disttrain.distributed.verbs import parts, stays_out
from disttrain.kernels.arrays import Array
from disttrain.serialization import load, save


def all_gather_object(object_list: list[Any], obj: Any, group: ProcessGroup | None = None) -> None:
    """Write the objects of all ranks into ``object_list``, one for each rank.

    Raises:
        TypeError: an object that :func:`disttrain.save` cannot write.
    """
    if stays_out(group, "all_gather_object"):
        return
    comm, mine = communicator_of(group), _encode(obj)
    _check_length("all_gather_object", object_list, comm.size)
    lengths = _lengths(comm, mine)
    out = np.empty(sum(lengths), np.uint8)
    comm.all_gather_v(mine, out, lengths)
    object_list[:] = [_decode(part) for part in parts(out, lengths)]


def gather_object(
    obj: Any,
    object_gather_list: list[Any] | None = None,
    dst: int | None = None,
    group: ProcessGroup | None = None,
    group_dst: int | None = None,
) -> None:
    """Write the objects of all ranks into ``object_gather_list`` of rank ``dst`` (0 by default).

    Raises:
        TypeError: an object that :func:`disttrain.save` cannot write.
    """
    if stays_out(group, "gather_object"):
        return
    comm, root, mine = communicator_of(group), group_rank(group, "dst", dst, group_dst, 0), _encode(obj)
    if comm.rank == root:
        _check_length("gather_object", object_gather_list, comm.size)
    lengths = _lengths(comm, mine)
    if comm.rank != root:
        comm.send(mine, root)
        return
    assert object_gather_list is not None  # for the type checker
    buffers = [np.empty(n, np.uint8) for n in lengths]
    works = [comm.start_recv(buffers[i], i) for i in range(comm.size) if i != root]
    buffers[root] = mine
    for work in works:
        work.wait()
    object_gather_list[:] = map(_decode, buffers)


def broadcast_object_list(
    object_list: list[Any],
    src: int | None = None,
    group: ProcessGroup | None = None,
    device: Any = None,
    group_src: int | None = None,
) -> None:
    """Overwrite the objects in ``object_list`` with those of rank ``src`` (0 by default), which has as many.

    Raises:
        TypeError: an object that :func:`disttrain.save` cannot write.
    """
    if stays_out(group, "broadcast_object_list"):
        return
    comm, root = communicator_of(group), group_rank(group, "src", src, group_src, 0)
    data = _encode(object_list) if comm.rank == root else np.empty(0, np.uint8)
    length = np.array([data.size])
    comm.broadcast(length, root)
    buffer = data if comm.rank == root else np.empty(int(length[0]), np.uint8)
    comm.broadcast(buffer, root)
    if comm.rank != root:
        _fill("broadcast_object_list", object_list, _decode(buffer))


def scatter_object_list(
    scatter_object_output_list: list[Any],
    scatter_object_input_list: list[Any] | None = None,
    src: int | None = None,
    group: ProcessGroup | None = None,
    group_src: int | None = None,
) -> None:
    """Write the i-th object of rank ``src`` (0 by default) into the first place of rank i's output list.

    Raises:
        TypeError: an object that :func:`disttrain.save` cannot write.
    """
    if stays_out(group, "scatter_object_list"):
        return
    comm, root = communicator_of(group), group_rank(group, "src", src, group_src, 0)
    if not scatter_object_output_list:
        raise ValueError("scatter_object_output_list must have a place for the object, got an empty list")
    length = np.zeros(1, np.int64)
    if comm.rank != root:
        comm.scatter(None, length, root)
        buffer = np.empty(int(length[0]), np.uint8)
        comm.recv(buffer, root)
    else:
        given = _check_length("scatter_object_list", scatter_object_input_list, comm.size)
        encoded = [_encode(obj) for obj in given]
        comm.scatter(np.array([x.size for x in encoded]), length, root)
        works = [comm.start_send(x, i) for i, x in enumerate(encoded) if i != root]
        for work in works:
            work.wait()
        buffer = encoded[root]
    scatter_object_output_list[0] = _decode(buffer)


def send_object_list(
    object_list: list[Any],
    dst: int | None = None,
    group: ProcessGroup | None = None,
    device: Any = None,
    group_dst: int | None = None,
    use_batch: bool = False,
) -> None:
    """Send objects to rank ``dst``; returns once they have been received.

    Raises:
        TypeError: an object that :func:`disttrain.save` cannot write.
    """
    if stays_out(group, "send_object_list"):
        return
    comm, target, data = (
        communicator_of(group),
        group_rank(group, "dst", dst, group_dst),
        _encode(object_list),
    )
    comm.send(np.array([data.size]), target)
    comm.send(data, target)


def recv_object_list(
    object_list: list[Any],
    src: int | None = None,
    group: ProcessGroup | None = None,
    device: Any = None,
    group_src: int | None = None,
    use_batch: bool = False,
) -> int:
    """Overwrite the objects in ``object_list`` with those that rank ``src`` sends, as many; return its number.

    Raises:
        ValueError: no ``src``, or another number of objects.
    """
    if stays_out(group, "recv_object_list"):
        return -1
    comm, source = communicator_of(group), group_rank(group, "src", src, group_src)
    length = np.empty(1, np.int64)
    comm.recv(length, source)
    buffer = np.empty(int(length[0]), np.uint8)
    comm.recv(buffer, source)
    _fill("recv_object_list", object_list, _decode(buffer))
    return get_global_rank(group, source)


def _encode(obj: Any) -> Array:
    file = io.BytesIO()
    try:
        save(obj, file)
    except TypeError as error:
        raise TypeError(
            f"objects travel between ranks as save() writes them, without code: {error}"
        ) from None
    return np.frombuffer(file.getvalue(), np.uint8).copy()


def _decode(data: Array) -> Any:
    return load(io.BytesIO(data.tobytes()))


def _lengths(comm: Communicator, mine: Array) -> list[int]:
    """Return the number of bytes that each rank has."""
    lengths = np.empty(comm.size, np.int64)
    comm.all_gather(np.array([mine.size]), lengths)
    found: list[int] = lengths.tolist()
    return found


def _check_length(name: str, objects: Sequence[Any] | None, size: int) -> Sequence[Any]:
    if objects is None or len(objects) != size:
        raise ValueError(
            f"{name}() needs a list with a place for each of {size} ranks, got "
            f"{'none' if objects is None else len(objects)}"
        )
    return objects


def _fill(name: str, objects: list[Any], come: Sequence[Any]) -> None:
    if len(objects) != len(come):
        raise ValueError(f"{name}() got {len(come)} objects for a list of {len(objects)}")
    objects[:] = come
