"""The handle that one rank has on a group of ranks."""

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy

from disttrain.collectives import nccl
from disttrain.collectives.call import BIT_OPS, DTYPES, NO_TAG, OPS, Call, Tag
from disttrain.collectives.errors import TransportUnavailable
from disttrain.collectives.host import Group, Host
from disttrain.collectives.ledger import Entry, read
from disttrain.collectives.protocol import collective, message
from disttrain.collectives.repeated import Repeated
from disttrain.kernels.arrays import Array, address, get_array_module, is_array, on_gpu, overlap

_SUPPORTED = frozenset(DTYPES)
_AVERAGED = frozenset([numpy.dtype(numpy.float32), numpy.dtype(numpy.float64)])
_HOST_BUCKET_BYTES = 4 << 20
"""What the caches hold; past it an all-reduce costs more than several, and less of it hides behind backward."""
_GPU_BUCKET_BYTES = 25 << 20
"""What NCCL needs to come near the speed of its links; PyTorch's choice too."""


class Work:
    """A call on its way. The arrays given to it must stay untouched until :meth:`wait` has returned."""

    def __init__(self, host: Host, rank: int, call: Call) -> None:
        self._host = host
        self._rank = rank
        self._call = call

    @property
    def done(self) -> bool:
        """Whether the call has completed, or failed; :meth:`wait` then returns, or raises, at once."""
        call = self._call
        return self._host.test(self._rank, call) and (call.passed is None or bool(call.passed.done))

    @property
    def name(self) -> str:
        """The call in words, with its place and its number: what errors call it."""
        return self._call.name

    @property
    def error(self) -> BaseException | None:
        """What :meth:`wait` raises, once that is known."""
        if self._call.error is not None:
            self._host.told.add(self._rank)
        return self._call.error

    def wait(self) -> None:
        """Return once the call has completed on this rank.

        Of arrays on a GPU: once it has its place there. What the caller's current stream is given afterwards comes
        after it; the CPU does not wait.

        Raises:
            CollectiveMismatch: ranks of the group made different calls.
            CollectiveTimeout: some rank did not come within ``WorkerEnv.timeout`` seconds.
            Deadlock: all ranks of this process wait for calls that none of them will make.
            PeerFailed: another rank failed first.
        """
        self._host.finish(self._rank, self._call)
        if self._call.passed is not None:
            self._host.gpu.follow(self._call.passed)


class Communicator:
    """One rank's handle on a group of ranks.

    Every verb is called by all ranks of the group, in the same order, with arrays of the same shape and
    dtype; before anything moves the ranks compare their calls and raise the same ``CollectiveMismatch`` if
    they differ. Arrays are C-contiguous NumPy arrays of bool, (u)int8 to (u)int64, float16, bfloat16, float32
    or float64, or such CuPy arrays on the one GPU that the process uses, the same on all ranks. Nothing is cast or
    divided. Where ``x`` and ``out`` have one shape they may be the same array.
    Each verb has a ``start_`` form that returns a :class:`Work` at once, and raises what :meth:`Work.wait`
    does.

    ``tag``: three numbers that must be equal on all ranks, for callers who can tell a skipped call from a
    made one.
    """

    def __init__(self, group: Group, index: int) -> None:
        self._group = group
        self._host = group.host
        self._world_rank = group.ranks[index]
        self._repeated = Repeated.of(group, self._world_rank)
        self.rank = index
        """This rank's number in the group, from 0."""

    @property
    def size(self) -> int:
        """Number of ranks in the group."""
        return self._group.size

    @property
    def ranks(self) -> tuple[int, ...]:
        """The rank in the world of each rank of the group."""
        return self._group.ranks

    @property
    def transport(self) -> str:
        """Name of the transport that connects the job's processes."""
        return self._host.transport.name

    @property
    def timeout(self) -> float:
        """Seconds that a rank waits in a call, at first as the launcher says; groups split from this one inherit it."""
        return self._group.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._group.timeout = seconds

    def require_nccl(self) -> None:
        """Let arrays on GPUs go over NCCL or not at all, from all groups; by default ``auto`` has another way for them.

        Raises:
            TransportUnavailable: NCCL cannot be used here, or another transport was asked for.
        """
        wanted = self._host.env.transport
        if wanted not in ("auto", "nccl"):
            raise TransportUnavailable(
                f"the job was started with --transport {wanted}; use `disttrain launch --transport nccl`, or auto"
            )
        nccl.find()
        self._host.gpu.transport = "nccl"

    def __repr__(self) -> str:
        return f"<Communicator rank {self.rank} of {self.size}, {self.transport}>"

    def bucket_bytes(self, x: Array) -> int:
        """Return the size past which arrays like ``x`` do not move faster: that of a bucket of gradients."""
        return _GPU_BUCKET_BYTES if on_gpu(x) else _HOST_BUCKET_BYTES

    def empty(self, shape: int | Sequence[int], dtype: Any, *, like: Array | None = None) -> Array:
        """Return a new array of arbitrary contents where calls between processes of one node need no copies.

        It is like any other array, and stays valid when communication has ended. Without memory that processes
        share it is a plain one.

        Args:
            shape: of the array.
            dtype: a NumPy dtype, or what makes one.
            like: an array; if it is on a GPU, the new one is there too.
        """
        if like is not None and on_gpu(like):
            with like.device:
                return get_array_module(like).empty(shape, dtype)
        memory = self._host.transport.memory
        shared = None if memory is None else memory.empty(shape, dtype)
        return numpy.empty(shape, dtype) if shared is None else shared

    def start_all_reduce(
        self, x: Array, out: Array, *, op: str = "sum", tag: Tag = NO_TAG, averaged: int = 0
    ) -> Work:
        """Start :meth:`all_reduce`."""
        return self._start(self._all_reduce(x, out, op, tag, averaged))

    def all_reduce(
        self, x: Array, out: Array, *, op: str = "sum", tag: Tag = NO_TAG, averaged: int = 0
    ) -> None:
        """Write into ``out`` the elementwise ``sum``, ``prod``, ``min`` or ``max`` of ``x`` over all ranks.

        Half precision is reduced in float32 and rounded once (by NCCL, if no order is fixed, in its own way). All
        ranks receive the same bits.

        Args:
            averaged: so many elements at the beginning become weighted averages: their sums are divided by that of
                the element behind them, the ranks' weights, unless it is 0. Each rank has multiplied its elements by
                its weight.

        Raises:
            ValueError: ``averaged`` does not leave an element for the weight, or ``op`` is not ``sum``.
            TypeError: arrays to be averaged are not of float32 or float64, or are on a GPU.
        """
        repeated = self._repeated
        if repeated is not None and out is x and repeated.all_reduce(x, op, tag, averaged):
            return
        call = self._run(self._all_reduce(x, out, op, tag, averaged))
        if repeated is not None:
            repeated.learn(call)

    def start_reduce(
        self, x: Array, out: Array | None, root: int = 0, *, op: str = "sum", tag: Tag = NO_TAG
    ) -> Work:
        """Start :meth:`reduce`."""
        return self._start(self._reduce(x, out, root, op, tag))

    def reduce(
        self, x: Array, out: Array | None, root: int = 0, *, op: str = "sum", tag: Tag = NO_TAG
    ) -> None:
        """As :meth:`all_reduce`, with the result only in ``out`` of rank ``root`` (elsewhere: None)."""
        self._run(self._reduce(x, out, root, op, tag))

    def start_reduce_scatter(self, x: Array, out: Array, *, op: str = "sum", tag: Tag = NO_TAG) -> Work:
        """Start :meth:`reduce_scatter`."""
        return self._start(self._reduce_scatter(x, out, op, tag))

    def reduce_scatter(self, x: Array, out: Array, *, op: str = "sum", tag: Tag = NO_TAG) -> None:
        """Reduce ``x`` over all ranks; rank ``i`` receives the i-th of ``size`` equal parts.

        ``out`` has ``x.size / size`` elements and may be that part of ``x`` itself.
        """
        self._run(self._reduce_scatter(x, out, op, tag))

    def start_all_gather(self, x: Array, out: Array, *, tag: Tag = NO_TAG) -> Work:
        """Start :meth:`all_gather`."""
        return self._start(self._all_gather(x, out, tag))

    def all_gather(self, x: Array, out: Array, *, tag: Tag = NO_TAG) -> None:
        """Write the ``x`` of all ranks into ``out``, one after the other.

        ``out`` has ``size * x.size`` elements, as of shape ``(size, *x.shape)``; ``x`` may be ``out[rank]``.
        """
        self._run(self._all_gather(x, out, tag))

    def start_all_gather_v(self, x: Array, out: Array, counts: Sequence[int], *, tag: Tag = NO_TAG) -> Work:
        """Start :meth:`all_gather_v`."""
        return self._start(self._all_gather_v(x, out, counts, tag))

    def all_gather_v(self, x: Array, out: Array, counts: Sequence[int], *, tag: Tag = NO_TAG) -> None:
        """Write the ``x`` of all ranks, of different sizes, into ``out``, one after the other.

        Args:
            counts: how many elements each rank has, the same on all; ``out`` has as many in all.
        """
        self._run(self._all_gather_v(x, out, counts, tag))

    def start_gather(self, x: Array, out: Array | None, root: int = 0, *, tag: Tag = NO_TAG) -> Work:
        """Start :meth:`gather`."""
        return self._start(self._gather(x, out, root, tag))

    def gather(self, x: Array, out: Array | None, root: int = 0, *, tag: Tag = NO_TAG) -> None:
        """As :meth:`all_gather`, with the result only in ``out`` of rank ``root`` (elsewhere: None)."""
        self._run(self._gather(x, out, root, tag))

    def start_scatter(self, x: Array | None, out: Array, root: int = 0, *, tag: Tag = NO_TAG) -> Work:
        """Start :meth:`scatter`."""
        return self._start(self._scatter(x, out, root, tag))

    def scatter(self, x: Array | None, out: Array, root: int = 0, *, tag: Tag = NO_TAG) -> None:
        """Give rank ``i`` the i-th of ``size`` equal parts of ``x`` of rank ``root`` (elsewhere: None)."""
        self._run(self._scatter(x, out, root, tag))

    def start_broadcast(self, x: Array, root: int = 0, *, tag: Tag = NO_TAG) -> Work:
        """Start :meth:`broadcast`."""
        return self._start(self._broadcast(x, root, tag))

    def broadcast(self, x: Array, root: int = 0, *, tag: Tag = NO_TAG) -> None:
        """Overwrite ``x`` with that of rank ``root``."""
        self._run(self._broadcast(x, root, tag))

    def start_all_to_all(self, x: Array, out: Array, *, tag: Tag = NO_TAG) -> Work:
        """Start :meth:`all_to_all`."""
        return self._start(self._all_to_all(x, out, tag))

    def all_to_all(self, x: Array, out: Array, *, tag: Tag = NO_TAG) -> None:
        """Send the j-th of ``size`` equal parts of ``x`` to rank ``j``; receive rank ``i``'s as part i."""
        self._run(self._all_to_all(x, out, tag))

    def start_all_to_all_v(
        self, x: Array, out: Array, sends: Sequence[int], receives: Sequence[int], *, tag: Tag = NO_TAG
    ) -> Work:
        """Start :meth:`all_to_all_v`."""
        return self._start(self._all_to_all_v(x, out, sends, receives, tag))

    def all_to_all_v(
        self, x: Array, out: Array, sends: Sequence[int], receives: Sequence[int], *, tag: Tag = NO_TAG
    ) -> None:
        """Send consecutive parts of ``x``, of different sizes, to the ranks in turn; receive theirs into ``out``.

        Args:
            sends: how many elements go to each rank.
            receives: how many come from each rank; must be what that rank sends, which is compared first.
        """
        self._run(self._all_to_all_v(x, out, sends, receives, tag))

    def start_send(self, x: Array, to: int, *, tag: Tag = NO_TAG) -> Work:
        """Start :meth:`send`."""
        return self._start(self._send(x, to, tag))

    def send(self, x: Array, to: int, *, tag: Tag = NO_TAG) -> None:
        """Send ``x`` to one rank; returns once it has been received. Only the two ranks take part.

        Two ranks that both :meth:`send` first wait for each other for ever: one of them must ``start_send``.
        """
        self._run(self._send(x, to, tag))

    def start_recv(self, out: Array, source: int, *, tag: Tag = NO_TAG) -> Work:
        """Start :meth:`recv`."""
        return self._start(self._recv(out, source, tag))

    def recv(self, out: Array, source: int, *, tag: Tag = NO_TAG) -> None:
        """Receive into ``out`` what rank ``source`` sends; messages of one rank arrive in the order sent."""
        self._run(self._recv(out, source, tag))

    def start_barrier(self, *, tag: Tag = NO_TAG) -> Work:
        """Start :meth:`barrier`."""
        return self._start(self._barrier(tag))

    def barrier(self, *, tag: Tag = NO_TAG) -> None:
        """Return once every rank of the group has called this."""
        self._run(self._barrier(tag))

    def split(self, color: int | None, key: int = 0) -> "Communicator | None":
        """Return the communicator of the ranks with the same ``color``, ordered by ``key``, then by rank.

        Called by all ranks; ``None`` as color takes no part in any new group and gets ``None``.
        """
        return self._split(color, key, ())

    def split_into(self, groups: Sequence[Sequence[int]]) -> "Communicator | None":
        """Return the communicator of the one of ``groups`` that this rank is in, in its order; else ``None``.

        As :meth:`split`, where each rank knows all groups: the lists are compared, so that no rank takes a group for
        another one.

        Args:
            groups: numbers of ranks of this group, each at most once; the same on all ranks.
        """
        mine = next(((color, ranks) for color, ranks in enumerate(groups) if self.rank in ranks), None)
        color, key = (None, 0) if mine is None else (mine[0], list(mine[1]).index(self.rank))
        return self._split(color, key, tuple(map(tuple, groups)))

    def _split(
        self, color: int | None, key: int, groups: tuple[tuple[int, ...], ...]
    ) -> "Communicator | None":
        wish = numpy.array([color is not None, color or 0, key], numpy.int64)
        call = Call("split", wish, numpy.empty((self.size, 3), numpy.int64), groups=groups)
        self._run(call)
        if call.result is None:
            return None
        group, index = call.result
        return Communicator(group, index)

    def intra_node(self) -> "Communicator":
        """Return the communicator of the ranks of this group that are on the caller's node, in their order."""
        here = self._host.node_of(self._world_rank)
        inside = self.split(here)
        assert inside is not None
        return inside

    def inter_node(self) -> "Communicator":
        """Return the communicator of the ranks that have the caller's number in their :meth:`intra_node`."""
        here = self._host.node_of(self._world_rank)
        before = sum(self._host.node_of(rank) == here for rank in self.ranks[: self.rank])
        between = self.split(before)
        assert between is not None
        return between

    @contextmanager
    def rank0_first(self, what: str = "rank 0 goes first") -> Iterator[None]:
        """Run a block on rank 0, and on the other ranks once that is done: for files that one rank prepares for all.

        The others wait as long as it takes, without a timeout, and say from time to time for what.

        Args:
            what: what rank 0 does, for that line.
        """
        call = Call("rank0_first")
        call.awaited = what
        if self.rank:
            self._run(call)
        yield
        if not self.rank:
            self._run(call)

    def recent_calls(self) -> list[Entry]:
        """Return the last calls of this rank on this group, the latest last: what, where, when made, when ended.

        For measurements, of how communication overlaps with computation say. At most the last 128 calls of the rank
        on all its groups are known.
        """
        (standing,) = [s for s in read(self._host.ledger.memory[:]) if s.rank == self._world_rank]
        return [e for e in standing.entries if e.group == self._group.name]

    def abort(self, reason: str, code: int = 1) -> None:
        """End the whole job at once: all its processes, without cleaning up. ``reason`` goes to stderr."""
        self._host.abort(f"rank {self._world_rank} aborts the job: {reason}", code)

    def close(self) -> None:
        """Free the group. Called by all its ranks; nothing can be called on it afterwards."""
        self._run(Call("close"))

    def _all_reduce(self, x: Array, out: Array, op: str, tag: Tag, averaged: int) -> Call:
        self._check(x, "x", writeable=out is x)
        if out is not x:
            self._check_out(out, x, x.size)
        if averaged:
            if x.dtype not in _AVERAGED or on_gpu(x):
                raise TypeError(
                    f"averages are of float32 and float64 on the CPU, got {x.dtype}{' on a GPU' * on_gpu(x)}; sum, "
                    f"and divide the sum"
                )
            if not 0 < averaged < x.size or op != "sum":
                raise ValueError(
                    f"of {x.size} elements at most {x.size - 1} can be averaged, by a sum, got averaged={averaged} "
                    f"and op {op!r}"
                )
        return Call("all_reduce", x, out, op=_checked_op(op, x), tag=tag, averaged=averaged)

    def _reduce(self, x: Array, out: Array | None, root: int, op: str, tag: Tag) -> Call:
        self._check(x, "x")
        self._check_root(root)
        if self.rank == root:
            self._check_out(out, x, x.size)
        return Call(
            "reduce", x, out if self.rank == root else None, op=_checked_op(op, x), root=root, tag=tag
        )

    def _reduce_scatter(self, x: Array, out: Array, op: str, tag: Tag) -> Call:
        self._check(x, "x")
        if x.size % self.size:
            raise ValueError(
                f"reduce_scatter needs a multiple of {self.size} (ranks) elements, got shape {x.shape}"
            )
        self._check_out(out, x, x.size // self.size)
        return Call("reduce_scatter", x, out, op=_checked_op(op, x), tag=tag)

    def _all_gather(self, x: Array, out: Array, tag: Tag) -> Call:
        self._check(x, "x")
        self._check_out(out, x, x.size * self.size)
        return Call("all_gather", x, out, tag=tag)

    def _all_gather_v(self, x: Array, out: Array, counts: Sequence[int], tag: Tag) -> Call:
        self._check(x, "x")
        counts = _checked_counts("counts", counts, self.size)
        if x.size != counts[self.rank]:
            raise ValueError(
                f"x has {x.size} elements, but counts {list(counts)} says {counts[self.rank]} for rank {self.rank}"
            )
        self._check_sized(out, x, sum(counts), f"counts {list(counts)}")
        return Call("all_gather_v", x, out, tag=tag, receives=counts)

    def _gather(self, x: Array, out: Array | None, root: int, tag: Tag) -> Call:
        self._check(x, "x")
        self._check_root(root)
        if self.rank == root:
            self._check_out(out, x, x.size * self.size)
        return Call("gather", x, out if self.rank == root else None, root=root, tag=tag)

    def _scatter(self, x: Array | None, out: Array, root: int, tag: Tag) -> Call:
        self._check(out, "out", writeable=True)
        self._check_root(root)
        if self.rank == root:
            self._check(x, "x")
            assert x is not None  # for the type checker
            self._check_out(out, x, x.size // self.size if x.size % self.size == 0 else -1)
        return Call("scatter", x if self.rank == root else None, out, like=out, root=root, tag=tag)

    def _broadcast(self, x: Array, root: int, tag: Tag) -> Call:
        self._check(x, "x", writeable=self.rank != root)
        self._check_root(root)
        return Call("broadcast", x, x, root=root, tag=tag)

    def _all_to_all(self, x: Array, out: Array, tag: Tag) -> Call:
        self._check(x, "x")
        if x.size % self.size:
            raise ValueError(
                f"all_to_all needs a multiple of {self.size} (ranks) elements, got shape {x.shape}"
            )
        self._check_out(out, x, x.size)
        return Call("all_to_all", x, out, tag=tag)

    def _all_to_all_v(
        self, x: Array, out: Array, sends: Sequence[int], receives: Sequence[int], tag: Tag
    ) -> Call:
        self._check(x, "x")
        sends = _checked_counts("sends", sends, self.size)
        receives = _checked_counts("receives", receives, self.size)
        if x.size != sum(sends):
            raise ValueError(f"x has {x.size} elements, but sends {list(sends)} says {sum(sends)}")
        if sends[self.rank] != receives[self.rank]:
            raise ValueError(
                f"rank {self.rank} sends itself {sends[self.rank]} elements, but receives "
                f"{receives[self.rank]} from itself"
            )
        self._check_sized(out, x, sum(receives), f"receives {list(receives)}")
        return Call("all_to_all_v", x, out, tag=tag, sends=sends, receives=receives)

    def _send(self, x: Array, to: int, tag: Tag) -> Call:
        self._check(x, "x")
        self._check_peer(to)
        return Call("send/recv", x, None, root=to, tag=tag, pair=(self.rank, to))

    def _recv(self, out: Array, source: int, tag: Tag) -> Call:
        self._check(out, "out", writeable=True)
        self._check_peer(source)
        return Call("send/recv", None, out, like=out, root=self.rank, tag=tag, pair=(source, self.rank))

    def _barrier(self, tag: Tag) -> Call:
        return Call("barrier", tag=tag)

    def _start(self, call: Call) -> Work:
        self._deposit(call)
        if not call.finished:
            self._host.progress.background()
        return Work(self._host, self._world_rank, call)

    def _run(self, call: Call) -> Call:
        self._deposit(call, stay=self._host.baton is None)
        if not call.finished or call.error is not None or call.passed is not None:
            Work(self._host, self._world_rank, call).wait()
        return call

    def _deposit(self, call: Call, stay: bool = False) -> None:
        host = self._host
        if host.baton is not None:
            host.baton.before_call(self._world_rank)
        host.check(self._group)
        call.index = self.rank
        call.generation = host.env.generation
        if on_gpu(call.like):
            call.ready = host.gpu.accept(call.like)
        if call.pair is None:
            self._group.deposit(call, collective, stay)
        else:
            self._group.deposit_message(call, message, stay)

    def _check(self, x: Array | None, name: str, *, writeable: bool = False) -> None:
        if not is_array(x):
            raise TypeError(f"{name} must be a NumPy or a CuPy array, got {type(x).__name__}")
        assert x is not None  # for the type checker
        if x.dtype not in _SUPPORTED:
            raise TypeError(f"{name} has dtype {x.dtype}; supported: {', '.join(map(str, DTYPES))}")
        if not x.flags.c_contiguous:
            raise ValueError(
                f"{name} must be C-contiguous, got shape {x.shape} with strides {x.strides}; "
                f"pass {get_array_module(x).__name__}.ascontiguousarray({name}) and copy the result back where needed"
            )
        if writeable and not (on_gpu(x) or x.flags.writeable):
            raise ValueError(f"{name} is read-only, but the result goes there")

    def _check_out(self, out: Array, x: Array, size: int) -> None:
        self._check_sized(out, x, size, f"x of shape {x.shape} on {self.size} ranks")
        if out is not x and size == x.size and address(x) != address(out) and overlap(x, out):
            raise ValueError("x and out overlap; pass the same array twice, or two that share no memory")

    def _check_sized(self, out: Array, x: Array, size: int, what: str) -> None:
        if out is not x:
            self._check(out, "out", writeable=True)
        elif not (on_gpu(x) or x.flags.writeable):
            raise ValueError("out is read-only, but the result goes there")
        if on_gpu(out) is not on_gpu(x):
            raise TypeError(
                f"x and out must be on one device, and only {'x' if on_gpu(x) else 'out'} is on a GPU"
            )
        if out.dtype != x.dtype:
            raise TypeError(f"x and out must have one dtype, got {x.dtype} and {out.dtype}")
        if out.size != size:
            raise ValueError(f"out must have {size} elements for {what}, got shape {out.shape}")

    def _check_root(self, root: int) -> None:
        if not 0 <= root < self.size:
            raise ValueError(f"root must be a rank of the group, 0 to {self.size - 1}, got {root}")

    def _check_peer(self, peer: int) -> None:
        self._check_root(peer)
        if peer == self.rank:
            raise ValueError(f"rank {peer} cannot send to itself")


def _checked_op(op: str, x: Array) -> str:
    if op in OPS or (op in BIT_OPS and x.dtype.kind in "biu"):
        return op
    if op in BIT_OPS:
        raise TypeError(f"{op} combines the bits of bool and integers, got {x.dtype}")
    raise ValueError(f"op must be one of {', '.join(OPS + BIT_OPS)}, got {op!r}")


def _checked_counts(name: str, counts: Sequence[int], ranks: int) -> tuple[int, ...]:
    whole = tuple(map(operator.index, counts))
    if len(whole) != ranks or min(whole) < 0:
        raise ValueError(
            f"{name} must have a number of elements for each of {ranks} ranks, got {list(counts)}"
        )
    return whole
