"""Random programs of collectives: every rank derives the same program from a seed, and NumPy says what must come out.

``random_programs.py FIRST LAST [without-shared-memory] [--nodes 0,0,1,1]`` under mpiexec, or ``run(comm, seed)`` on
threads.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gpu_double
import numpy as np

from disttrain.collectives import Communicator, connect
from disttrain.collectives.call import BIT_OPS, DTYPES, OPS
from disttrain.collectives.env import WorkerEnv

SIZES = (0, 1, 2, 3, 7, 64, 255, 1000, 4097, 20_000)
LARGE = (150_000, 400_001)
STEPS = 12
FOLDS: dict[str, Callable[..., Any]] = {
    "sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
}
VERBS = (
    "all_reduce", "all_reduce", "all_reduce", "reduce", "reduce_scatter", "all_gather", "gather", "scatter",
    "broadcast", "all_to_all", "all_gather_v", "all_to_all_v", "barrier", "ring", "messages",
)  # fmt: skip


def values(rng: np.random.Generator, size: int, dtype: np.dtype) -> np.ndarray:
    """Small whole numbers: sums of them are exact in every type and order."""
    if dtype.kind == "b":
        return rng.integers(0, 2, size).astype(bool)
    low = 0 if dtype.kind == "u" else -3
    return rng.integers(low, 4, size).astype(dtype)


def fold(xs: list[np.ndarray], op: str) -> np.ndarray:
    half = xs[0].dtype.itemsize == 2 and xs[0].dtype.kind not in "iu"
    xs = [x.astype(np.float32) for x in xs] if half else xs
    out = xs[0].copy()
    for x in xs[1:]:
        out = FOLDS[op](out, x).astype(out.dtype)
    return out


class Program:
    """One seed's program, as one rank runs it."""

    def __init__(self, world: Communicator, seed: int) -> None:
        self.rng = np.random.default_rng(seed)  # the same decisions on all ranks
        self.own = np.random.default_rng([seed, world.rank])
        self.world = world
        self.pending: list[tuple[Any, Callable[[], None]]] = []
        self.groups: list[Communicator | None] = [world]

    def run(self) -> None:
        for _ in range(STEPS):
            self.step()
            if self.rng.random() < 0.3:
                self.settle()
        self.settle()
        for group in self.groups[:0:-1]:
            if group is not None:
                group.close()

    def settle(self) -> None:
        """Wait for all that is in flight, in any order, and compare."""
        for i in self.own.permutation(len(self.pending)):
            work, check = self.pending[i]
            work.wait()
            check()
        self.pending.clear()

    def array(self, comm: Communicator, shape: Any, dtype: np.dtype, shared: bool) -> np.ndarray:
        return comm.empty(shape, dtype) if shared else np.empty(shape, dtype)

    def step(self) -> None:
        rng = self.rng
        if rng.random() < 0.15 and len(self.groups) < 4:
            colors = rng.integers(0, 3, self.world.size)
            keys = rng.integers(0, 100, self.world.size)
            color = int(colors[self.world.rank])
            self.groups.append(self.world.split(None if color == 2 else color, int(keys[self.world.rank])))
            return
        which = int(rng.integers(len(self.groups)))
        verb = VERBS[rng.integers(len(VERBS))]
        dtype = DTYPES[rng.integers(len(DTYPES))]
        ops = OPS if dtype.kind not in "biu" else OPS + BIT_OPS
        op = ops[rng.integers(len(ops))]
        size = int(rng.choice(LARGE if rng.random() < 0.08 else SIZES))
        later = bool(rng.random() < 0.5)
        shared, in_place = (bool(self.own.random() < 0.5) for _ in range(2))  # not the same on all ranks
        seed, chosen = int(rng.integers(1 << 30)), float(rng.random())
        comm = self.groups[which]
        if comm is None:
            return  # this rank is in none of the groups of that split; all ranks have drawn the same numbers
        root = int(chosen * comm.size)
        self.call(comm, verb, dtype, op, size, root, seed, shared, in_place, later)

    def call(
        self, comm: Communicator, verb: str, dtype: np.dtype, op: str, size: int, root: int, seed: int, shared: bool,
        in_place: bool, later: bool,
    ) -> None:  # fmt: skip
        ranks, rank = comm.size, comm.rank
        rows = size // ranks if verb in ("reduce_scatter", "scatter", "all_to_all") else size
        wide = verb in ("reduce_scatter", "scatter", "all_to_all")
        given = [
            values(np.random.default_rng([seed, comm.ranks[r]]), rows * (ranks if wide else 1), dtype)
            for r in range(ranks)
        ]
        x = self.array(comm, given[rank].shape, dtype, shared)
        x[...] = given[rank]

        def out_of(shape: Any, may_be_x: bool) -> np.ndarray:
            return x if in_place and may_be_x else self.array(comm, shape, dtype, shared)

        def expect(out: np.ndarray, expected: np.ndarray) -> Callable[[], None]:
            def check() -> None:
                np.testing.assert_array_equal(out, expected.astype(dtype).reshape(out.shape))
                if out is not x and verb != "broadcast":
                    np.testing.assert_array_equal(x, given[rank])

            return check

        if verb == "all_reduce":
            out = out_of(x.shape, True)
            work, check = comm.start_all_reduce(x, out, op=op), expect(out, fold(given, op))
        elif verb == "reduce":
            out = out_of(x.shape, True) if rank == root else None
            work = comm.start_reduce(x, out, root, op=op)
            check = expect(out, fold(given, op)) if out is not None else expect(x.copy(), given[rank])
        elif verb == "reduce_scatter":
            out = self.array(comm, (rows,), dtype, shared)
            total = fold(given, op).reshape(ranks, rows)[rank]
            work, check = comm.start_reduce_scatter(x, out, op=op), expect(out, total)
        elif verb == "all_gather":
            out = self.array(comm, (ranks, rows), dtype, shared)
            work, check = comm.start_all_gather(x, out), expect(out, np.concatenate(given))
        elif verb == "gather":
            out = self.array(comm, (ranks, rows), dtype, shared) if rank == root else None
            work = comm.start_gather(x, out, root)
            check = expect(out, np.concatenate(given)) if out is not None else expect(x.copy(), given[rank])
        elif verb == "scatter":
            out = self.array(comm, (rows,), dtype, shared)
            work = comm.start_scatter(x if rank == root else None, out, root)
            check = expect(out, given[root].reshape(ranks, rows)[rank])
        elif verb == "broadcast":
            work, check = comm.start_broadcast(x, root), expect(x, given[root])
        elif verb == "all_to_all":
            out = out_of(x.shape, True)
            parts = [g.reshape(ranks, rows)[rank] for g in given]
            work, check = comm.start_all_to_all(x, out), expect(out, np.concatenate(parts))
        elif verb == "all_gather_v":
            counts = [rows * r // ranks for r in range(ranks)]
            out = self.array(comm, (sum(counts),), dtype, shared)
            work = comm.start_all_gather_v(x[: counts[rank]], out, counts)
            check = expect(out, np.concatenate([g[:n] for g, n in zip(given, counts, strict=True)]))
        elif verb == "all_to_all_v":
            share = size // (2 * ranks)
            table = [[share * ((i + 2 * j) % 3) for j in range(ranks)] for i in range(ranks)]
            starts = [sum(table[i][:rank]) for i in range(ranks)]
            receives = [table[i][rank] for i in range(ranks)]
            out = self.array(comm, (sum(receives),), dtype, shared)
            work = comm.start_all_to_all_v(x[: sum(table[rank])], out, table[rank], receives)
            parts = [g[a : a + n] for g, a, n in zip(given, starts, receives, strict=True)]
            check = expect(out, np.concatenate(parts))
        elif verb == "ring" and ranks > 1:
            out = self.array(comm, x.shape, dtype, shared)
            sent = comm.start_send(x, (rank + 1) % ranks)
            got = comm.start_recv(out, (rank - 1) % ranks)
            self.pending.append((sent, lambda: None))
            work, check = got, expect(out, given[rank - 1])
        elif verb == "messages" and ranks > 1:
            # Several from one rank to another: they come in the order sent.
            other = (root + 1) % ranks
            for k in range(3):
                if rank == root:
                    self.pending.append((comm.start_send(x + x.dtype.type(k), other), lambda: None))
                elif rank == other:
                    out = self.array(comm, x.shape, dtype, shared)
                    expected = given[root] + dtype.type(k)
                    self.pending.append((comm.start_recv(out, root), expect(out, expected)))
            return
        else:
            work, check = comm.start_barrier(), lambda: None
        if later:
            self.pending.append((work, check))
        else:
            work.wait()
            check()


def run(world: Communicator, seed: int) -> None:
    """Run the program of ``seed``; the message of a failure has the seed."""
    try:
        Program(world, seed).run()
    except AssertionError as error:
        raise AssertionError(f"seed {seed} on rank {world.rank} of {world.size}: {error}") from error


def main() -> None:
    if "without-shared-memory" in sys.argv:
        from disttrain.collectives import memory

        def fail(nbytes: int) -> int:
            raise OSError("planted")

        memory._anonymous_file = fail
    if "--nodes" in sys.argv:
        nodes = sys.argv[sys.argv.index("--nodes") + 1].split(",")
        env = WorkerEnv.from_environ()
        os.environ.update(replace(env, node=int(nodes[env.process])).to_environ())
    world = gpu_double.wrapped(connect())
    for seed in range(int(sys.argv[1]), int(sys.argv[2])):
        run(world, seed)
    gpu_double.check()


if __name__ == "__main__":
    main()
