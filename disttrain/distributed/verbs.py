"""What all ranks of a group do together, by PyTorch's names, on Tensors.

A tensor may have any strides: what is not row-major goes through a copy. A rank outside of ``group`` does nothing and
gets ``None``. ``src`` and ``dst`` are numbers in the world, ``group_src`` and ``group_dst`` numbers in the group.
"""

from __future__ import annotations

import enum
import functools
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import accumulate, pairwise
from typing import Any, TypeVar, cast

import numpy as np

from disttrain import collectives
from disttrain.collectives.call import name_ranks
from disttrain.collectives.communicator import Communicator
from disttrain.collectives.errors import CollectiveTimeout
from disttrain.distributed.groups import ProcessGroup, communicator_of, get_rank, group_rank, outside, seconds
from disttrain.distributed.work import Work, until
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.modes import current_tape
from disttrain.tensors import Tensor

_Verb = TypeVar("_Verb", bound=Callable[..., Any])


def _replayed(verb: _Verb) -> _Verb:
    """Let a captured step make the call anew at each replay; refuse one that is not waited for at once."""

    @functools.wraps(verb)
    def call(*args: Any, **kwargs: Any) -> Any:
        tape = current_tape()
        if tape is None:
            return verb(*args, **kwargs)
        work = tape.call(verb, args, kwargs)
        if work is not None:
            tape.refuse("a call with async_op=True is waited for later; leave async_op out")
        return None

    return cast(_Verb, call)


class ReduceOp(enum.Enum):
    """How ``all_reduce`` and its like combine elements."""

    SUM = "sum"
    PRODUCT = "prod"
    MIN = "min"
    MAX = "max"
    AVG = "avg"
    BAND = "band"
    """Bit by bit, as the next two: of bool and integers."""
    BOR = "bor"
    BXOR = "bxor"
    PREMUL_SUM = "premul_sum"
    """Refused: multiply the tensor, then ``SUM``."""


@_replayed
def all_reduce(
    tensor: Tensor, op: ReduceOp = ReduceOp.SUM, group: ProcessGroup | None = None, async_op: bool = False
) -> Work | None:
    """Reduce ``tensor`` over all ranks, in place.

    Raises:
        CollectiveMismatch: ranks called it with different shapes, types or operations.
    """
    return all_reduce_coalesced([tensor], op, group, async_op)


@_replayed
def all_reduce_coalesced(
    tensors: Sequence[Tensor],
    op: ReduceOp = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """:func:`all_reduce` of several tensors at once."""
    if stays_out(group, "all_reduce"):
        return None
    comm, xs = communicator_of(group), [flat(tensor) for tensor in tensors]

    def finish() -> None:
        for tensor, x in zip(tensors, xs, strict=True):
            write(tensor, _averaged(x, op, comm))
            _mark(tensor)

    return done([comm.start_all_reduce(x, x, op=_name(op)) for x in xs], async_op, finish, tensors)


def _mark(tensor: Tensor) -> None:
    """Note that a gradient is equal on all ranks: an optimizer may step on it."""
    same: Tensor | None = tensor
    while same is not None:  # `all_reduce(p.grad.data)` and `all_reduce(p.grad.view(-1))` average p.grad
        same._synchronized = True
        base = same._base
        same = same._twin if base is None or base.numel() != same.numel() else base


@_replayed
def reduce(
    tensor: Tensor,
    dst: int | None = None,
    op: ReduceOp = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
    group_dst: int | None = None,
) -> Work | None:
    """Reduce ``tensor`` over all ranks, in place on rank ``dst`` (0 by default); the others keep theirs."""
    if stays_out(group, "reduce"):
        return None
    comm, x, root = communicator_of(group), flat(tensor), group_rank(group, "dst", dst, group_dst, 0)
    out = get_array_module(x).empty_like(x) if comm.rank == root else None

    def finish() -> None:
        if out is not None:
            write(tensor, _averaged(out, op, comm))

    return done([comm.start_reduce(x, out, root, op=_name(op))], async_op, finish, [tensor])


@_replayed
def broadcast(
    tensor: Tensor,
    src: int | None = None,
    group: ProcessGroup | None = None,
    async_op: bool = False,
    group_src: int | None = None,
) -> Work | None:
    """Overwrite ``tensor`` with that of rank ``src``."""
    if stays_out(group, "broadcast"):
        return None
    comm, x, root = communicator_of(group), flat(tensor), group_rank(group, "src", src, group_src)

    def finish() -> None:
        if comm.rank != root:
            write(tensor, x)

    return done([comm.start_broadcast(x, root)], async_op, finish, [tensor])


@_replayed
def all_gather(
    tensor_list: list[Tensor],
    tensor: Tensor,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Write the tensors of all ranks into ``tensor_list``, which has one of the right shape for each rank.

    The shapes may differ from rank to rank; then every rank's list must say so.
    """
    return all_gather_coalesced([tensor_list], [tensor], group, async_op)


@_replayed
def all_gather_coalesced(
    output_tensor_lists: Sequence[list[Tensor]],
    input_tensor_list: Sequence[Tensor],
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """:func:`all_gather` of several tensors at once."""
    if stays_out(group, "all_gather"):
        return None
    comm = communicator_of(group)
    calls, results = [], []
    for tensor_list, tensor in zip(output_tensor_lists, input_tensor_list, strict=True):
        x = flat(tensor)
        _check_list("all_gather", tensor_list, comm.size, x)
        counts = [t.numel() for t in tensor_list]
        out = get_array_module(x).empty(sum(counts), x.dtype)
        if set(counts) == {x.size}:
            calls.append(comm.start_all_gather(x, out))
        else:
            calls.append(comm.start_all_gather_v(x, out, counts))
        results.append((tensor_list, parts(out, counts)))

    def finish() -> None:
        for tensor_list, arrays in results:
            _write_all(tensor_list, arrays)

    return done(calls, async_op, finish, [t for tensor_list in output_tensor_lists for t in tensor_list])


@_replayed
def all_gather_into_tensor(
    output_tensor: Tensor,
    input_tensor: Tensor,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Write the tensors of all ranks one after the other into ``output_tensor``."""
    if stays_out(group, "all_gather_into_tensor"):
        return None
    out = flat(output_tensor)
    call = communicator_of(group).start_all_gather(flat(input_tensor), out)
    return done([call], async_op, lambda: write(output_tensor, out), [output_tensor])


@_replayed
def all_gather_single(
    output_tensor: Tensor,
    input_tensor: Tensor,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """:func:`all_gather_into_tensor` by its newer name."""
    return all_gather_into_tensor(output_tensor, input_tensor, group, async_op)


@_replayed
def reduce_scatter(
    output: Tensor,
    input_list: Sequence[Tensor],
    op: ReduceOp = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Reduce each tensor of ``input_list`` over all ranks; rank ``i`` receives the i-th in ``output``.

    The shapes in the list may differ, in the same way on all ranks.
    """
    if stays_out(group, "reduce_scatter"):
        return None
    comm, out = communicator_of(group), flat(output)
    _check_list("reduce_scatter", input_list, comm.size, out)
    xs = [flat(tensor).reshape(-1) for tensor in input_list]
    if len({x.size for x in xs}) == 1:
        calls = [comm.start_reduce_scatter(get_array_module(out).concatenate(xs), out, op=_name(op))]
    else:
        calls = [
            comm.start_reduce(x, out if i == comm.rank else None, i, op=_name(op)) for i, x in enumerate(xs)
        ]
    return done(calls, async_op, lambda: write(output, _averaged(out, op, comm)), [output])


@_replayed
def reduce_scatter_tensor(
    output: Tensor,
    input: Tensor,
    op: ReduceOp = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Reduce ``input`` over all ranks; rank ``i`` receives the i-th equal part in ``output``."""
    if stays_out(group, "reduce_scatter_tensor"):
        return None
    comm, out = communicator_of(group), flat(output)
    call = comm.start_reduce_scatter(flat(input), out, op=_name(op))
    return done([call], async_op, lambda: write(output, _averaged(out, op, comm)), [output])


@_replayed
def reduce_scatter_single(
    output: Tensor,
    input: Tensor,
    op: ReduceOp = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """:func:`reduce_scatter_tensor` by its newer name."""
    return reduce_scatter_tensor(output, input, op, group, async_op)


@_replayed
def gather(
    tensor: Tensor,
    gather_list: list[Tensor] | None = None,
    dst: int | None = None,
    group: ProcessGroup | None = None,
    async_op: bool = False,
    group_dst: int | None = None,
) -> Work | None:
    """Write the tensors of all ranks, of one shape, into ``gather_list`` of rank ``dst`` (0 by default)."""
    if stays_out(group, "gather"):
        return None
    comm, x, root = communicator_of(group), flat(tensor), group_rank(group, "dst", dst, group_dst, 0)
    targets: Sequence[Tensor] = []
    out = None
    if comm.rank == root:
        targets = _check_list("gather", gather_list, comm.size, x, same=x.size)
        out = get_array_module(x).empty((comm.size, x.size), x.dtype)

    def finish() -> None:
        if out is not None:
            _write_all(targets, out)

    return done([comm.start_gather(x, out, root)], async_op, finish, targets)


@_replayed
def scatter(
    tensor: Tensor,
    scatter_list: list[Tensor] | None = None,
    src: int | None = None,
    group: ProcessGroup | None = None,
    async_op: bool = False,
    group_src: int | None = None,
) -> Work | None:
    """Write the i-th tensor of ``scatter_list`` of rank ``src`` (0 by default) into ``tensor`` of rank ``i``."""
    if stays_out(group, "scatter"):
        return None
    comm, out, root = communicator_of(group), flat(tensor), group_rank(group, "src", src, group_src, 0)
    x = None
    if comm.rank == root:
        given = _check_list("scatter", scatter_list, comm.size, out, same=out.size)
        x = get_array_module(out).concatenate([flat(t).reshape(-1) for t in given])
    return done([comm.start_scatter(x, out, root)], async_op, lambda: write(tensor, out), [tensor])


@_replayed
def all_to_all(
    output_tensor_list: list[Tensor],
    input_tensor_list: list[Tensor],
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Send the j-th tensor of the input list to rank ``j``; receive rank ``i``'s as the i-th of the output list.

    Raises:
        CollectiveMismatch: a rank expects another number of elements than it is sent.
    """
    if stays_out(group, "all_to_all"):
        return None
    comm = communicator_of(group)
    xs = [flat(t).reshape(-1) for t in _check_list("all_to_all", input_tensor_list, comm.size)]
    _check_list("all_to_all", output_tensor_list, comm.size, xs[0])
    x = get_array_module(xs[0]).concatenate(xs)
    receives = [t.numel() for t in output_tensor_list]
    out = get_array_module(x).empty(sum(receives), x.dtype)
    call = comm.start_all_to_all_v(x, out, [x.size for x in xs], receives)
    return done(
        [call], async_op, lambda: _write_all(output_tensor_list, parts(out, receives)), output_tensor_list
    )


@_replayed
def all_to_all_single(
    output: Tensor,
    input: Tensor,
    output_split_sizes: Sequence[int] | None = None,
    input_split_sizes: Sequence[int] | None = None,
    group: ProcessGroup | None = None,
    async_op: bool = False,
) -> Work | None:
    """Send the j-th part of ``input`` to rank ``j``; receive rank ``i``'s as part i of ``output``.

    Args:
        output_split_sizes: rows (of the first axis) that come from each rank; equal parts by default.
        input_split_sizes: rows that go to each rank; likewise.

    Raises:
        CollectiveMismatch: a rank expects another number of elements than it is sent.
    """
    if stays_out(group, "all_to_all_single"):
        return None
    comm, x, out = communicator_of(group), flat(input), flat(output)
    if output_split_sizes is None and input_split_sizes is None:
        call = comm.start_all_to_all(x, out)
    else:
        sends = _elements("input_split_sizes", input, input_split_sizes, comm.size)
        receives = _elements("output_split_sizes", output, output_split_sizes, comm.size)
        call = comm.start_all_to_all_v(x, out, sends, receives)
    return done([call], async_op, lambda: write(output, out), [output])


def _elements(name: str, tensor: Tensor, rows: Sequence[int] | None, ranks: int) -> list[int]:
    """Return how many elements of ``tensor`` each rank has, from how many rows."""
    shape = tuple(tensor.shape)
    if not shape:
        raise ValueError("all_to_all_single() splits the first axis, and the tensor has none")
    if not rows:
        if shape[0] % ranks:
            raise ValueError(f"{shape[0]} rows do not divide among {ranks} ranks; give {name}")
        rows = [shape[0] // ranks] * ranks
    if len(rows) != ranks or sum(rows) != shape[0]:
        raise ValueError(
            f"{name} must be {ranks} numbers (ranks) with the sum {shape[0]} (rows), got {list(rows)}"
        )
    return [n * (tensor.numel() // max(1, shape[0])) for n in rows]


@_replayed
def barrier(
    group: ProcessGroup | None = None,
    async_op: bool = False,
    device_ids: Any = None,
    timeout: timedelta | None = None,
) -> Work | None:
    """Return once every rank of the group has called this.

    Raises:
        CollectiveTimeout: a rank did not come within ``timeout``.
    """
    if stays_out(group, "barrier"):
        return None
    work = Work([communicator_of(group).start_barrier()], lambda: None, [])
    if async_op:
        return work
    work.wait(timeout)
    return None


@_replayed
def monitored_barrier(
    group: ProcessGroup | None = None,
    timeout: timedelta | float | None = None,
    wait_all_ranks: bool = False,
) -> None:
    """Return once every rank of the group has called this, or raise on all that came, naming those that did not.

    The group cannot be used any more after that.

    Args:
        timeout: how long rank 0 of the group waits for the others; by default as long as in any call.
        wait_all_ranks: accepted; all ranks that stayed away are named anyway.

    Raises:
        CollectiveTimeout: with the numbers of the ranks (in the world) that did not come in time.
    """
    if stays_out(group, "monitored_barrier"):
        return
    comm = communicator_of(group)
    limit = comm.timeout if timeout is None else seconds(timeout)
    away = np.zeros(comm.size, np.uint8)
    if comm.rank == 0:
        coming = {r: comm.start_recv(np.empty(1, np.uint8), r) for r in range(1, comm.size)}
        until(lambda: all(work.done for work in coming.values()), limit)
        here = [r for r, work in coming.items() if work.done]
        away[[r for r in coming if r not in here]] = 1
        answers = [comm.start_send(away, r) for r in here]
        for work in answers:
            work.wait()
    elif comm.rank:
        came = comm.start_send(np.zeros(1, np.uint8), 0)
        answer = comm.start_recv(away, 0)
        # Rank 0 may have come later, and then waits as long itself.
        if not until(lambda: answer.done and came.done, 2 * limit):
            away[0] = 1
    if away.any():
        ranks = name_ranks(comm.ranks[i] for i in np.flatnonzero(away))
        raise CollectiveTimeout(
            f"{ranks} did not come to monitored_barrier() within {limit:g} s; look there for an error, or raise timeout"
        )


def stays_out(group: Any, name: str) -> bool:
    """Return whether this rank is outside of ``group``, and warn as PyTorch does."""
    if not outside(group):
        return False
    warnings.warn(
        f"rank {get_rank()} calls {name}() on a group that it is not in: nothing is done", stacklevel=3
    )
    return True


def done(
    calls: Sequence[collectives.Work], async_op: bool, finish: Callable[[], None], tensors: Sequence[Tensor]
) -> Work | None:
    """Return the work on its way, or wait for it."""
    work = Work(calls, finish, tensors)
    if async_op:
        return work
    work.wait()
    return None


def flat(tensor: Tensor) -> Array:
    """Return the tensor's memory if it is row-major, else a copy that is.

    Raises:
        TypeError: it is no tensor.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"a tensor is needed, got {type(tensor).__name__}")
    return get_array_module(tensor._array).ascontiguousarray(tensor._array)


def write(tensor: Tensor, array: Array) -> None:
    """Give ``tensor`` the elements of ``array``, which may be its own memory."""
    if array is not tensor._array:
        tensor._array[...] = array.reshape(tensor._array.shape)
    tensor._version_counter[0] += 1


def _write_all(tensors: Sequence[Tensor], arrays: Sequence[Array]) -> None:
    for tensor, array in zip(tensors, arrays, strict=True):
        write(tensor, array)


def parts(array: Array, counts: Sequence[int]) -> list[Array]:
    """Return consecutive parts of a flat array."""
    return [array[lo:hi] for lo, hi in pairwise(accumulate(counts, initial=0))]


def _name(op: ReduceOp) -> str:
    if op is ReduceOp.PREMUL_SUM:
        raise ValueError("ReduceOp.PREMUL_SUM is not in disttrain: multiply the tensor, then use SUM")
    if not isinstance(op, ReduceOp):
        raise TypeError(f"op must be a ReduceOp, got {op!r}")
    return "sum" if op is ReduceOp.AVG else op.value


def _averaged(x: Array, op: ReduceOp, comm: Communicator) -> Array:
    if op is ReduceOp.AVG:
        x[...] = (x / x.dtype.type(comm.size)).astype(x.dtype)
    return x


def _check_list(
    name: str,
    tensors: Sequence[Tensor] | None,
    size: int,
    like: Array | None = None,
    same: int | None = None,
) -> Sequence[Tensor]:
    """Return ``tensors``, one for each of ``size`` ranks, of the type of ``like`` and with ``same`` elements each."""
    if tensors is None or len(tensors) != size:
        raise ValueError(
            f"{name}() needs one tensor for each of {size} ranks, got "
            f"{'none' if tensors is None else len(tensors)}"
        )
    for tensor in tensors:
        if like is not None and tensor._array.dtype != like.dtype:
            raise TypeError(
                f"{name}() needs tensors of one dtype, got {tensor._array.dtype} and {like.dtype}"
            )
        if same is not None and tensor.numel() != same:
            raise ValueError(f"{name}() needs {same} elements in each tensor, got {tensor.numel()}")
    return tensors
