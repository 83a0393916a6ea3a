"""PyTorch's names (``torch.distributed``) on Tensors, over ``disttrain.collectives``.

Objects travel as JSON, never as pickles.
"""

from __future__ import annotations

import enum
import importlib.util
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import collectives, context, devices, missing
from disttrain.collectives.communicator import Communicator
from disttrain.collectives.env import current_env
from disttrain.collectives.errors import TransportUnavailable
from disttrain.futures import Future
from disttrain.kernels.arrays import Array
from disttrain.parallel.buckets import GradBucket as GradBucket
from disttrain.tensors import Tensor

ProcessGroup = Communicator
"""A group of ranks."""


class ReduceOp(enum.Enum):
    """How ``all_reduce`` and its like combine elements."""

    SUM = "sum"
    PRODUCT = "prod"
    MIN = "min"
    MAX = "max"
    AVG = "avg"


class Work:
    """An operation that was started with ``async_op=True``."""

    def __init__(self, work: Any, finish: Callable[[], None], results: Sequence[Tensor] = ()) -> None:
        self._work = work
        self._finish: Callable[[], None] | None = finish
        self._results = list(results)

    def wait(self) -> bool:
        """Return once the result is there."""
        self._work.wait()
        if self._finish is not None:
            self._finish()
            self._finish = None
        return True

    def is_completed(self) -> bool:
        """Return whether :meth:`wait` would return at once."""
        return bool(self._work.done)

    def result(self) -> list[Tensor]:
        """Return the tensors that hold the result, once it is there."""
        self.wait()
        return self._results

    def get_future(self) -> Future:
        """Return the future of :meth:`result`; it makes progress where somebody waits for it or asks it."""
        future = Future()

        def advance(wait: bool) -> None:
            if not wait and not self.is_completed():
                return
            try:
                result = self.result()
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        future._advance = advance
        return future


_BACKENDS = (None, "auto", "gloo", "mpi", "local", "nccl")


def init_process_group(
    backend: str | None = None,
    init_method: str | None = None,
    timeout: Any = None,
    world_size: int = -1,
    rank: int = -1,
    store: Any = None,
    group_name: str = "",
    pg_options: Any = None,
    device_id: Any = None,
) -> None:
    """Connect the ranks of the job. All that is needed to find them comes from the launcher.

    Args:
        backend: ``None``, ``"auto"`` and ``"gloo"`` take the transport that the launcher chose; ``"mpi"``,
            ``"local"`` and ``"nccl"`` insist on that one.
        world_size: if given, must be the number of ranks that the launcher started; so must ``rank``.

    Raises:
        ValueError: an unknown backend, or a world size or rank that is not the launcher's.
        TransportUnavailable: ranks are connected by another transport than the one insisted on.
    """
    if backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {_BACKENDS}, got {backend!r}")
    env = current_env()
    if world_size not in (-1, env.world_size) or rank not in (-1, env.rank):
        raise ValueError(
            f"the launcher started rank {env.rank} of {env.world_size}, not rank {rank} of {world_size}; "
            f"start the script with `disttrain launch -n {max(world_size, 1)}`"
        )
    group = collectives.connect()
    if backend in ("mpi", "local", "nccl") and group.transport != backend and group.size > 1:
        raise TransportUnavailable(
            f"the ranks are connected by {group.transport}, not by {backend}; "
            f"use `disttrain launch --transport {backend}`"
        )
    context.current().initialized = True


def destroy_process_group(group: ProcessGroup | None = None) -> None:
    """End the use of a group; of the default group at the end of the script."""
    if group is None:
        context.current().initialized = False
    else:
        group.close()


def is_available() -> bool:
    """Return True: collectives are always there, in a world of one at least."""
    return True


def is_gloo_available() -> bool:
    """Return True: ``"gloo"`` takes whatever connects ranks on the CPU."""
    return True


def is_mpi_available() -> bool:
    """Return whether mpi4py is installed."""
    return importlib.util.find_spec("mpi4py") is not None


def is_nccl_available() -> bool:
    """Return whether a GPU can be used."""
    return devices.is_available()


def is_initialized() -> bool:
    """Return whether ``init_process_group`` has run on this rank."""
    return context.current().initialized


def is_torchelastic_launched() -> bool:
    """Return whether a launcher started this process."""
    return bool(current_env().run_id)


def get_rank(group: ProcessGroup | None = None) -> int:
    """Return the number of this rank in the group (the world by default)."""
    return current_env().rank if group is None else group.rank


def get_world_size(group: ProcessGroup | None = None) -> int:
    """Return the number of ranks of the group (the world by default)."""
    return current_env().world_size if group is None else group.size


def get_backend(group: ProcessGroup | None = None) -> str:
    """Return the name of the transport that connects the ranks."""
    return _group(group).transport


def _group(group: ProcessGroup | None) -> Communicator:
    return collectives.connect() if group is None else group


def new_group(ranks: Sequence[int] | None = None, timeout: Any = None, backend: str | None = None) -> Any:
    """Return the group of ``ranks`` (all by default); all ranks of the world must call it. ``None`` for outsiders."""
    world = collectives.connect()
    inside = ranks is None or world.rank in ranks
    order = 0 if ranks is None or not inside else list(ranks).index(world.rank)
    return world.split(0 if inside else None, order)


def _finish(call: Any, async_op: bool, finish: Callable[[], None], *results: Tensor) -> Work | None:
    work = Work(call, finish, results)
    if async_op:
        return work
    work.wait()
    return None


def _flat(tensor: Tensor) -> Array:
    """Return the tensor's memory if it is row-major, else a copy that is."""
    return np.ascontiguousarray(tensor._array)


def _write(tensor: Tensor, array: Array) -> None:
    if array is not tensor._array:
        tensor._array[...] = array.reshape(tensor._array.shape)
    tensor._version_counter[0] += 1


def all_reduce(
    tensor: Tensor, op: ReduceOp = ReduceOp.SUM, group: ProcessGroup | None = None, async_op: bool = False
) -> Work | None:
    """Reduce ``tensor`` over all ranks, in place.

    Raises:
        CollectiveMismatch: ranks called it with different shapes, types or operations.
    """
    comm, x = _group(group), _flat(tensor)

    def finish() -> None:
        if op is ReduceOp.AVG:
            x[...] = (x / x.dtype.type(comm.size)).astype(x.dtype)
        _write(tensor, x)
        same: Tensor | None = tensor
        while same is not None:  # `all_reduce(p.grad.data)` and `all_reduce(p.grad.view(-1))` average p.grad
            same._synchronized = True
            base = same._base
            same = same._twin if base is None or base.numel() != same.numel() else base

    return _finish(comm.start_all_reduce(x, x, op=_op(op)), async_op, finish, tensor)


def _op(op: ReduceOp) -> str:
    return "sum" if op is ReduceOp.AVG else op.value


def reduce(
    tensor: Tensor,
    dst: int = 0,
    op: ReduceOp = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Reduce ``tensor`` over all ranks, in place on rank ``dst``; the others keep theirs."""
    comm, x = _group(group), _flat(tensor)
    out = np.empty_like(x) if comm.rank == dst else None

    def finish() -> None:
        if out is not None:
            _write(tensor, (out / out.dtype.type(comm.size)).astype(out.dtype) if op is ReduceOp.AVG else out)

    return _finish(comm.start_reduce(x, out, dst, op=_op(op)), async_op, finish, tensor)


def broadcast(
    tensor: Tensor, src: int = 0, group: ProcessGroup | None = None, async_op: bool = False
) -> Work | None:
    """Overwrite ``tensor`` with that of rank ``src``."""
    x = _flat(tensor)
    return _finish(_group(group).start_broadcast(x, src), async_op, lambda: _write(tensor, x), tensor)


def all_gather(
    tensor_list: list[Tensor], tensor: Tensor, group: ProcessGroup | None = None, async_op: bool = False
) -> Work | None:
    """Write the tensors of all ranks (of one shape) into ``tensor_list``, which has one of that shape per rank."""
    comm, x = _group(group), _flat(tensor)
    _check_list("all_gather", tensor_list, comm.size)
    out = np.empty((comm.size, *x.shape), x.dtype)

    def finish() -> None:
        for t, part in zip(tensor_list, out, strict=True):
            _write(t, part)

    return _finish(comm.start_all_gather(x, out), async_op, finish, *tensor_list)


def _check_list(name: str, tensors: Sequence[Tensor] | None, size: int) -> None:
    if tensors is None or len(tensors) != size:
        raise ValueError(
            f"{name}() needs one tensor for each of {size} ranks, got "
            f"{'none' if tensors is None else len(tensors)}"
        )


def all_gather_into_tensor(
    output_tensor: Tensor, input_tensor: Tensor, group: ProcessGroup | None = None, async_op: bool = False
) -> Work | None:
    """Write the tensors of all ranks one after the other into ``output_tensor``."""
    out = _flat(output_tensor)
    return _finish(
        _group(group).start_all_gather(_flat(input_tensor), out),
        async_op,
        lambda: _write(output_tensor, out),
        output_tensor,
    )


def reduce_scatter_tensor(
    output: Tensor,
    input: Tensor,
    op: ReduceOp = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Reduce ``input`` over all ranks; rank ``i`` receives the i-th equal part in ``output``."""
    comm, out = _group(group), _flat(output)

    def finish() -> None:
        _write(output, (out / out.dtype.type(comm.size)).astype(out.dtype) if op is ReduceOp.AVG else out)

    return _finish(comm.start_reduce_scatter(_flat(input), out, op=_op(op)), async_op, finish, output)


def gather(
    tensor: Tensor,
    gather_list: list[Tensor] | None = None,
    dst: int = 0,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Write the tensors of all ranks into ``gather_list`` of rank ``dst``."""
    comm, x = _group(group), _flat(tensor)
    here = comm.rank == dst
    if here:
        _check_list("gather", gather_list, comm.size)
    out = np.empty((comm.size, *x.shape), x.dtype) if here else None

    def finish() -> None:
        for t, part in zip(gather_list or (), out if out is not None else (), strict=False):
            _write(t, part)

    return _finish(comm.start_gather(x, out, dst), async_op, finish, *(gather_list or ()))


def scatter(
    tensor: Tensor,
    scatter_list: list[Tensor] | None = None,
    src: int = 0,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Write the i-th tensor of ``scatter_list`` of rank ``src`` into ``tensor`` of rank ``i``."""
    comm, out = _group(group), _flat(tensor)
    x = None
    if comm.rank == src:
        _check_list("scatter", scatter_list, comm.size)
        x = np.stack([t._array for t in scatter_list or ()])
    return _finish(comm.start_scatter(x, out, src), async_op, lambda: _write(tensor, out), tensor)


def all_to_all_single(
    output: Tensor, input: Tensor, group: ProcessGroup | None = None, async_op: bool = False
) -> Work | None:
    """Send the j-th equal part of ``input`` to rank ``j``; receive rank ``i``'s as part i of ``output``."""
    out = _flat(output)
    return _finish(
        _group(group).start_all_to_all(_flat(input), out), async_op, lambda: _write(output, out), output
    )


def send(tensor: Tensor, dst: int, group: ProcessGroup | None = None) -> None:
    """Send ``tensor`` to rank ``dst``; returns once it has been received."""
    _group(group).send(_flat(tensor), dst)


def recv(tensor: Tensor, src: int, group: ProcessGroup | None = None) -> int:
    """Receive into ``tensor`` what rank ``src`` sends; returns ``src``."""
    x = _flat(tensor)
    _group(group).recv(x, src)
    _write(tensor, x)
    return src


def isend(tensor: Tensor, dst: int, group: ProcessGroup | None = None) -> Work:
    """Start :func:`send`."""
    return Work(_group(group).start_send(_flat(tensor), dst), lambda: None, [tensor])


def irecv(tensor: Tensor, src: int, group: ProcessGroup | None = None) -> Work:
    """Start :func:`recv`."""
    x = _flat(tensor)
    return Work(_group(group).start_recv(x, src), lambda: _write(tensor, x), [tensor])


def barrier(group: ProcessGroup | None = None) -> None:
    """Return once every rank of the group has called this."""
    _group(group).barrier()


def _encode(obj: Any) -> Array:
    try:
        return np.frombuffer(json.dumps(obj).encode(), np.uint8).copy()
    except TypeError as error:
        raise TypeError(
            f"objects travel between ranks as JSON: {error}; send tensors with the other calls"
        ) from None


def all_gather_object(object_list: list[Any], obj: Any, group: ProcessGroup | None = None) -> None:
    """Write the objects of all ranks into ``object_list``, one for each rank.

    Raises:
        TypeError: an object that JSON cannot say.
    """
    comm, mine = _group(group), _encode(obj)
    _check_list("all_gather_object", object_list, comm.size)
    lengths = np.empty(comm.size, np.int64)
    comm.all_gather(np.array([mine.size]), lengths)
    longest = int(lengths.max())
    padded, out = np.zeros(longest, np.uint8), np.empty((comm.size, longest), np.uint8)
    padded[: mine.size] = mine
    comm.all_gather(padded, out)
    for i, n in enumerate(lengths):
        object_list[i] = json.loads(out[i, :n].tobytes())


def broadcast_object_list(object_list: list[Any], src: int = 0, group: ProcessGroup | None = None) -> None:
    """Overwrite the objects in ``object_list`` with those of rank ``src``.

    Raises:
        TypeError: an object that JSON cannot say.
    """
    comm = _group(group)
    data = _encode(object_list) if comm.rank == src else np.zeros(0, np.uint8)
    length = np.array([data.size])
    comm.broadcast(length, src)
    buffer = data if comm.rank == src else np.empty(int(length[0]), np.uint8)
    comm.broadcast(buffer, src)
    object_list[:] = json.loads(buffer.tobytes())


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
