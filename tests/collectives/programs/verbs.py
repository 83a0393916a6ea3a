"""Every verb, in every dtype, against NumPy. Under mpiexec: on all the worlds that N processes can host."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import gpu_double
import numpy as np

from disttrain.collectives import Communicator, connect, host, mpi, nodes, run_ranks
from disttrain.collectives.call import BIT_OPS, DTYPES, OPS
from disttrain.collectives.env import WorkerEnv

SIZES = (0, 1, 3, 1031)
LARGE = 300_001
"""More than one piece of whatever goes in pieces (as small as :func:`main` makes them), and odd."""

FOLDS: dict[str, Callable[..., Any]] = {
    "sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
}


def data(rank: int, size: int, dtype: np.dtype) -> np.ndarray:
    """What ``rank`` contributes; every rank can compute what every other one has."""
    return _data(rank, size, dtype).copy()


@cache
def _data(rank: int, size: int, dtype: np.dtype) -> np.ndarray:
    rng = np.random.default_rng([rank, size])
    if dtype.kind == "b":
        return rng.integers(0, 2, size).astype(bool)
    if dtype.kind in "iu":
        return rng.integers(0 if dtype.kind == "u" else -100, 100, size).astype(dtype)
    return rng.standard_normal(size).astype(dtype)


def tree(xs: list[np.ndarray], fold: Callable[..., Any]) -> np.ndarray:
    """The fixed binary tree, written as plainly as can be."""
    if len(xs) == 1:
        return xs[0]
    half = 1
    while half * 2 < len(xs):
        half *= 2
    return fold(tree(xs[:half], fold), tree(xs[half:], fold))


@cache
def reduced(size: int, ranks: int, dtype: np.dtype, op: str) -> np.ndarray:
    xs = [data(rank, size, dtype) for rank in range(ranks)]
    if dtype.itemsize == 2 and dtype.kind not in "iu":
        return tree([x.astype(np.float32) for x in xs], FOLDS[op]).astype(dtype)
    return tree(xs, FOLDS[op])


def check_reductions(
    comm: Communicator, dtype: np.dtype, size: int, exact: bool, ops: Sequence[str] = OPS
) -> None:
    x = data(comm.rank, size, dtype)
    exact = exact or dtype.kind in "biu"
    in_tree = exact or comm.transport != "nccl"  # whose own reductions have an order of their own
    for op in ops:
        expected = reduced(size, comm.size, dtype, op)
        out = np.empty_like(x)

        comm.all_reduce(x, out, op=op)

        np.testing.assert_array_equal(x, data(comm.rank, size, dtype))
        compare(out, expected, exact or op not in ("sum", "prod"))
        everyone = np.empty((comm.size, size), dtype)
        comm.all_gather(out, everyone)
        for row in everyone:
            assert row.tobytes() == out.tobytes(), "the ranks got different bits"
        again = x.copy()
        comm.all_reduce(again, again, op=op)
        assert again.tobytes() == out.tobytes(), "in place gives other bits"
        shared, result = comm.empty(size, dtype), comm.empty((size,), dtype)
        shared[:] = x
        comm.all_reduce(shared, result, op=op)
        assert shared.tobytes() == x.tobytes()
        assert result.tobytes() == out.tobytes(), "arrays in shared memory give other bits"

        root = comm.size - 1
        at_root = np.empty_like(x)
        comm.reduce(x, at_root if comm.rank == root else None, root, op=op)
        if comm.rank == root:
            compare(at_root, expected, in_tree)

        wide = data(comm.rank, size * comm.size, dtype)
        part = np.empty_like(x)
        comm.reduce_scatter(wide, part, op=op)
        total = reduced(size * comm.size, comm.size, dtype, op)
        compare(part, total[comm.rank * size : (comm.rank + 1) * size], in_tree)


def compare(out: np.ndarray, expected: np.ndarray, exact: bool) -> None:
    if exact:
        np.testing.assert_array_equal(out, expected)
    else:
        eps = {2: 0.02, 4: 1e-5, 8: 1e-13}[out.dtype.itemsize]
        np.testing.assert_allclose(out.astype(np.float64), expected.astype(np.float64), rtol=eps, atol=eps)


def check_moves(comm: Communicator, dtype: np.dtype, size: int) -> None:
    rank, ranks = comm.rank, comm.size
    x = data(rank, size, dtype)
    all_of_them = np.stack([data(r, size, dtype) for r in range(ranks)])
    out = np.zeros((ranks, size), dtype)

    comm.all_gather(x, out)
    np.testing.assert_array_equal(out, all_of_them)

    in_place = np.zeros((ranks, size), dtype)
    in_place[rank] = x
    comm.all_gather(in_place[rank], in_place)
    np.testing.assert_array_equal(in_place, all_of_them)

    for root in {0, ranks - 1}:
        y = x.copy()
        comm.broadcast(y, root)
        np.testing.assert_array_equal(y, all_of_them[root])

        collected = np.zeros((ranks, size), dtype)
        comm.gather(x, collected if rank == root else None, root)
        if rank == root:
            np.testing.assert_array_equal(collected, all_of_them)

        dealt = np.zeros_like(x)
        comm.scatter(all_of_them[::-1].copy() if rank == root else None, dealt, root)
        np.testing.assert_array_equal(dealt, all_of_them[::-1][rank])

    wide = data(rank, size * ranks, dtype).reshape(ranks, size)
    expected = np.stack([data(r, size * ranks, dtype).reshape(ranks, size)[rank] for r in range(ranks)])
    swapped = np.zeros_like(wide)
    comm.all_to_all(wide, swapped)
    np.testing.assert_array_equal(swapped, expected)
    comm.all_to_all(wide, wide)
    np.testing.assert_array_equal(wide, expected)

    if ranks > 1:
        got = np.zeros_like(x)
        work = comm.start_send(x, (rank + 1) % ranks)
        comm.recv(got, (rank - 1) % ranks)
        work.wait()
        np.testing.assert_array_equal(got, all_of_them[rank - 1])


def check_many_in_flight(comm: Communicator) -> None:
    xs = [data(comm.rank, 50 + k, np.dtype(np.int64)) for k in range(30)]
    outs = [np.empty_like(x) for x in xs]
    works = [comm.start_all_reduce(x, out) for x, out in zip(xs, outs, strict=True)]
    message = np.arange(5) + comm.rank
    got = [np.empty_like(message) for _ in range(comm.size)]
    sends = [comm.start_send(message, r) for r in range(comm.size) if r != comm.rank]
    receives = [comm.start_recv(got[r], r) for r in range(comm.size) if r != comm.rank]
    for work in reversed(works + sends + receives):
        work.wait()
        assert work.done
    for k, out in enumerate(outs):
        np.testing.assert_array_equal(out, reduced(50 + k, comm.size, np.dtype(np.int64), "sum"))
    for r in range(comm.size):
        if r != comm.rank:
            np.testing.assert_array_equal(got[r], np.arange(5) + r)

    polled = np.ones(3)
    work = comm.start_all_reduce(polled, polled)
    while not work.done:
        pass
    work.wait()
    assert polled.tolist() == [comm.size] * 3


def check_groups(comm: Communicator) -> None:
    rank, ranks = comm.rank, comm.size
    parity = comm.split(rank % 2, key=-rank)
    assert parity is not None
    members = [r for r in reversed(range(ranks)) if r % 2 == rank % 2]
    assert parity.ranks == tuple(comm.ranks[r] for r in members)
    assert members[parity.rank] == rank

    halves = comm.split(0 if rank < ranks // 2 else 1)
    assert halves is not None
    without_last = comm.split(None if rank == ranks - 1 else 0)
    assert (without_last is None) == (rank == ranks - 1)

    # Overlapping groups with calls in flight on all of them at once.
    outs = [np.full(4, rank) for _ in range(4)]
    groups = [g for g in (parity, halves, without_last, comm) if g is not None]
    if rank % 2:
        groups.reverse()
    works = {id(g): g.start_all_reduce(out, out) for g, out in zip(groups, outs, strict=False)}
    for group, out in zip(groups, outs, strict=False):
        works[id(group)].wait()
        inside = [comm.ranks.index(r) for r in group.ranks]
        assert out.tolist() == [sum(inside)] * 4

    nested = parity.split(parity.rank // 2)
    assert nested is not None
    nested.barrier()
    nested.close()
    if without_last is not None:
        without_last.close()


def check_large(comm: Communicator, exact: bool) -> None:
    """Arrays of several pieces, ordinary ones and those in memory that the processes share."""
    rank, ranks, dtype = comm.rank, comm.size, np.dtype(np.float32)
    size = LARGE // ranks
    xs = [data(r, size * ranks, dtype).reshape(ranks, size) for r in range(ranks)]
    in_tree = exact or comm.transport != "nccl"
    total = reduced(size * ranks, ranks, dtype, "sum").reshape(ranks, size)

    def ordinary(*shape: int) -> np.ndarray:
        return np.zeros(shape, dtype)

    def shared(*shape: int) -> np.ndarray:
        out = comm.empty(shape, dtype)
        out[...] = 0
        return out

    for make in (ordinary, shared):
        x, wide, part = make(ranks, size), make(ranks, ranks, size), make(size)
        x[...] = xs[rank]

        comm.all_gather(x, wide)
        np.testing.assert_array_equal(wide, xs)
        wide[...] = 0
        wide[rank] = x
        comm.all_gather(wide[rank], wide)
        np.testing.assert_array_equal(wide, xs)
        comm.gather(x, wide if rank == ranks - 1 else None, ranks - 1)
        np.testing.assert_array_equal(wide, xs)
        comm.scatter(wide[0] if rank == 0 else None, part, 0)
        np.testing.assert_array_equal(part, xs[0][rank])
        comm.reduce_scatter(x, part)
        compare(part, total[rank], in_tree)
        comm.reduce(x, wide[0] if rank == 0 else None, 0)
        compare(wide[0], total if rank == 0 else xs[0], in_tree)
        comm.all_to_all(x, wide[0])
        np.testing.assert_array_equal(wide[0], [y[rank] for y in xs])
        comm.all_to_all(x, x)
        np.testing.assert_array_equal(x, wide[0])
        x[...] = xs[rank]
        comm.reduce_scatter(x, x[rank])
        compare(x[rank], total[rank], in_tree)
        x[...] = xs[rank]
        comm.broadcast(x, ranks - 1)
        np.testing.assert_array_equal(x, xs[-1])


def check_averages(comm: Communicator, exact: bool) -> None:
    """Weighted averages: small arrays and those of several pieces, ordinary ones and those that processes share.

    What is behind the weight is summed only.
    """
    rank, ranks, behind = comm.rank, comm.size, 5
    thirds, alike = np.arange(1, ranks + 1) / 3, np.full(ranks, 1 << ranks)
    cases = [(size, w) for size in (1, SIZES[-1]) for w in (thirds, alike, np.zeros(ranks))]
    for name, size, weights in [("float64", *case) for case in cases] + [("float32", LARGE, thirds)]:
        dtype = np.dtype(name)
        rows = [data(r, size + 1 + behind, dtype) for r in range(ranks)]
        for row, weight in zip(rows, weights.astype(dtype), strict=True):
            row[size] = weight
        expected = tree(rows, np.add).copy()
        if expected[size]:
            expected[:size] = expected[:size] / expected[size]
        for x in (np.empty_like(rows[rank]), comm.empty(rows[rank].size, dtype)):
            for out in (comm.empty(x.size, dtype), x, x):  # made again, it goes a shorter way
                x[...] = rows[rank]
                comm.all_reduce(x, out, averaged=size)
                compare(out, expected, exact)
            x[...] = rows[rank]
            comm.start_all_reduce(x, x, averaged=size).wait()
            compare(x, expected, exact)


def check_roots(comm: Communicator) -> None:
    """Every root, of the verbs that have one."""
    rank, ranks, dtype = comm.rank, comm.size, np.dtype(np.int32)
    everyone = np.stack([data(r, 5, dtype) for r in range(ranks)])
    for root in range(ranks):
        at_root = rank == root
        x, part, wide = everyone[rank].copy(), np.zeros(5, dtype), np.zeros((ranks, 5), dtype)
        comm.reduce(x, part if at_root else None, root)
        np.testing.assert_array_equal(part, everyone.sum(0, dtype=dtype) if at_root else 0)
        comm.gather(x, wide if at_root else None, root)
        np.testing.assert_array_equal(wide, everyone if at_root else 0)
        comm.scatter(everyone + dtype.type(root) if at_root else None, part, root)
        np.testing.assert_array_equal(part, everyone[rank] + root)
        comm.broadcast(x, root)
        np.testing.assert_array_equal(x, everyone[root])


def check_uneven(comm: Communicator) -> None:
    """Rank i has i elements, or i + j for rank j; twice as many, and large ones."""
    rank, ranks = comm.rank, comm.size
    for dtype in map(np.dtype, ("int8", "float64")):
        for factor in (0, 1, 2, LARGE // ranks**2):
            counts = [factor * r for r in range(ranks)]
            out = np.zeros(sum(counts), dtype)
            comm.all_gather_v(data(rank, counts[rank], dtype), out, counts)
            np.testing.assert_array_equal(
                out, np.concatenate([data(r, counts[r], dtype) for r in range(ranks)])
            )

            table = [[factor * (i + j) for j in range(ranks)] for i in range(ranks)]
            given = [data(i, sum(table[i]), dtype) for i in range(ranks)]
            receives = [table[i][rank] for i in range(ranks)]
            starts = [sum(table[i][:rank]) for i in range(ranks)]
            expected = [given[i][starts[i] : starts[i] + receives[i]] for i in range(ranks)]
            out = np.zeros(sum(receives), dtype)
            comm.all_to_all_v(given[rank], out, table[rank], receives)
            np.testing.assert_array_equal(out, np.concatenate(expected))
            x = given[rank].copy()
            comm.all_to_all_v(x, x, table[rank], receives)
            np.testing.assert_array_equal(x, np.concatenate(expected))


def check_ring(comm: Communicator) -> None:
    """An array goes once round, and every rank adds itself to it."""
    if comm.size == 1:
        return
    rank, ranks = comm.rank, comm.size
    for size in (0, 1, LARGE):
        x = np.full(size, -1, np.int32)
        if rank:
            comm.recv(x, rank - 1)
            assert (x == rank * (rank - 1) // 2).all()
        else:
            x[...] = 0
        x += rank
        comm.send(x, (rank + 1) % ranks) if rank else comm.start_send(x.copy(), 1)
        if rank == 0:
            comm.recv(x, ranks - 1)
            assert (x == ranks * (ranks - 1) // 2).all()


def check_subgroups(comm: Communicator, exact: bool) -> None:
    """The same verbs within groups of some of the ranks."""
    half = comm.split(comm.rank % 2)
    assert half is not None
    for name in ("bool", "uint8", "bfloat16", "float64"):
        for size in (0, 3, 1031):
            check_reductions(half, np.dtype(name), size, exact, ["sum", "min"])
            check_moves(half, np.dtype(name), size)
    check_roots(half)
    check_uneven(half)
    half.close()


def check_places(comm: Communicator, nodes: Sequence[int]) -> None:
    """``nodes``: of each rank."""
    inside, between = comm.intra_node(), comm.inter_node()
    here = [r for r in range(comm.size) if nodes[r] == nodes[comm.rank]]
    assert inside.ranks == tuple(here)
    place = here.index(comm.rank)
    by_node = [[r for r in range(comm.size) if nodes[r] == node] for node in dict.fromkeys(nodes)]
    assert between.ranks == tuple(sorted(ranks[place] for ranks in by_node if len(ranks) > place))
    for group in (inside, between):
        x = np.array([comm.rank])
        group.all_reduce(x, x)
        assert x[0] == sum(group.ranks)
        group.close()


def check_all(
    comm: Communicator, exact: bool, nodes: Sequence[int] = (), dtypes: Sequence[np.dtype] = DTYPES
) -> str:
    """Run all cases; return a digest of the bits of the reductions of floats.

    Every dtype meets every operation at the largest of ``SIZES``, and one of them at each other size.
    """
    for i, dtype in enumerate(dtypes):
        for j, size in enumerate(SIZES):
            ops = OPS if size == SIZES[-1] else OPS[(i + j) % len(OPS) :][:1]
            if dtype.kind in "biu" and size == 3:
                ops += BIT_OPS
            check_reductions(comm, dtype, size, exact, ops)
        for size in (SIZES[i % len(SIZES)], SIZES[-1]):
            check_moves(comm, dtype, size)
    check_large(comm, exact)
    if isinstance(comm, Communicator):  # and not on a GPU
        check_averages(comm, exact)
    check_roots(comm)
    check_uneven(comm)
    check_ring(comm)
    check_many_in_flight(comm)
    check_groups(comm)
    check_subgroups(comm, exact)
    check_places(comm, nodes or [0] * comm.size)
    comm.barrier()
    return digest(comm, exact)


def digest(comm: Communicator, exact: bool) -> str:
    sha = hashlib.sha256()
    for name in ("float32", "float16"):
        x = data(comm.rank, LARGE, np.dtype(name))
        shared, between = comm.empty(LARGE, name), comm.empty(LARGE, name)
        shared[:] = x
        comm.all_reduce(x, x)
        compare(x, reduced(LARGE, comm.size, np.dtype(name), "sum"), exact)
        comm.all_reduce(shared, between)
        comm.all_reduce(shared, shared)
        assert shared.tobytes() == between.tobytes() == x.tobytes(), "arrays in shared memory give other bits"
        sha.update(x.tobytes())
    return sha.hexdigest()


def layout(ranks: int, processes: int) -> list[range]:
    """Deal ``ranks`` to processes, the first ones get one more where it does not divide."""
    counts = [ranks // processes + (p < ranks % processes) for p in range(processes)]
    starts = np.cumsum([0, *counts])
    return [range(int(starts[p]), int(starts[p + 1])) for p in range(processes)]


def worlds(processes: int) -> list[tuple[int, bool]]:
    """(number of ranks, fixed order) of the worlds that are tried on so many processes."""
    return [(v, fixed) for v in sorted({processes, 4}) if v >= processes for fixed in (False, True)]


def without_shared_memory() -> None:
    """Let a process fail to make its memory, so that all go through MPI."""
    from disttrain.collectives import memory

    def fail(nbytes: int) -> int:
        raise OSError("planted")

    memory._anonymous_file = fail


def nodes_after(word: str, processes: int) -> list[int]:
    """Return the node of each process from ``--nodes 0,0,1,1``; without the word all are on one."""
    if word not in sys.argv:
        return [0] * processes
    return [int(node) for node in sys.argv[sys.argv.index(word) + 1].split(",")]


def run(body: Callable[[Communicator, bool], str], fixed: bool, channel: str) -> str:
    comm = connect()
    assert type(comm._group.channel).__name__ == channel
    return body(gpu_double.wrapped(comm), fixed)


def expected_channel(nodes: list[int], shares: bool) -> str:
    """Return the class of the channel that these processes should get."""
    if not shares or len(set(nodes)) == len(nodes):
        return "MpiChannel"
    return "NodesChannel" if len(set(nodes)) > 1 else "SharedChannel"


def main() -> None:
    started = WorkerEnv.from_environ()
    index, processes = started.process, started.processes
    mpi.PIECE_BYTES, host.PIECE_BYTES, nodes.NETWORK_STAGE_BYTES = 256 << 10, 512 << 10, 1 << 20
    shares = "without-shared-memory" not in sys.argv
    if not shares and index == processes - 1:
        without_shared_memory()
    told = nodes_after("--nodes", processes)  # what we tell it
    hosts = nodes_after("--hosts", processes)  # what MPI finds
    places = [max(pair) for pair in zip(told, hosts, strict=True)]
    channel = expected_channel(places, shares)
    for ranks, fixed in worlds(processes):
        mine = layout(ranks, processes)[index]
        env = WorkerEnv(
            rank=mine.start, world_size=ranks, hosted=len(mine), process=index, processes=processes,
            local_rank=mine.start, local_world_size=ranks, fixed_order=fixed, timeout=30.0, control="none",
            node=told[index], transport=gpu_double.transport(),
        )  # fmt: skip
        of_ranks = [places[p] for p, hosted in enumerate(layout(ranks, processes)) for _ in hosted]
        brief = ranks > processes or "--brief" in sys.argv
        dtypes = [np.dtype(np.float16), np.dtype(np.int64)] if brief else DTYPES
        body = partial(check_all, nodes=of_ranks, dtypes=dtypes) if ranks == processes or fixed else digest
        digests = run_ranks(env, lambda _, f=fixed, b=body: run(b, f, channel))
        assert len(set(digests)) == 1
        if mine.start == 0 and fixed:
            print(ranks, digests[0], flush=True)
    gpu_double.check()


def with_mpi_for_several_worlds(main: Callable[[], None]) -> None:
    """Run ``main`` with an MPI that none of its worlds begins or ends, as it can begin only once."""
    import mpi4py

    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = False
    from mpi4py import MPI

    MPI.Init_thread(MPI.THREAD_MULTIPLE)
    main()
    MPI.Finalize()


if __name__ == "__main__":
    if "without-mpi" in sys.argv:
        main()
    else:
        with_mpi_for_several_worlds(main)
    sys.exit()
