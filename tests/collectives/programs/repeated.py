"""Each rank makes the same all-reduces again and again, and now and then another rank does otherwise."""

import json
import sys
import time

import ml_dtypes
import numpy as np
import pytest

from disttrain.collectives import CollectiveMismatch, connect

OPS = {"sum": np.add, "prod": np.multiply, "min": np.minimum, "max": np.maximum, "bxor": np.bitwise_xor}


def expect(comm, parts, op):
    """Fold along the fixed tree of the ranks, as the sums of floats depend on the order."""
    while len(parts) > 1:
        pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
        with np.errstate(all="ignore"):
            parts = [OPS[op](*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return parts[0]


def check(comm, shape, dtype, op, k, x=None):
    """Args: x: where to put what this rank has."""

    def part(rank):
        return np.random.default_rng([rank, k]).integers(1, 9, shape).astype(dtype)

    if x is None:
        x = part(comm.rank)
    else:
        x[...] = part(comm.rank)
    comm.all_reduce(x, x, op=op, tag=(0, k, 0))
    wanted = expect(comm, [part(rank) for rank in range(comm.size)], op)
    assert x.dtype == wanted.dtype
    assert x.tobytes() == np.ascontiguousarray(wanted).tobytes(), (shape, dtype, op, k)


def right(comm):
    for k in range(6):
        for shape in [(1,), (), (0,), (3, 5), (16384,)]:
            check(comm, shape, np.float32, "sum", k)
        check(comm, (7,), np.float64, "min", k)
        check(comm, (7,), np.int16, "bxor", k)
        check(comm, (7,), ml_dtypes.bfloat16, "sum", k)
        check(comm, (2, 2), np.int64, "prod", k)


def in_place(comm):
    """Arrays in shared memory, two of a kind; in some calls one rank is late, or has its array elsewhere."""
    shapes = [(5000,), (3, 2730), (150, 200), (1 << 18,)]
    for dtype, op in [(np.float32, "sum"), (np.int64, "max"), (ml_dtypes.bfloat16, "sum")]:
        for shape in shapes:
            arrays = [comm.empty(shape, dtype) for _ in range(2)]
            for k in range(8):
                one = comm.rank == k % comm.size
                if k > 4 and one:
                    time.sleep(0.02)
                check(comm, shape, dtype, op, k, None if k in (3, 5) and one else arrays[k % 2])


def in_and_out(comm):
    """Some ranks reduce in place, some from one array to another, in shared memory or not, at any offset."""
    rng = np.random.default_rng(comm.rank)
    for dtype, count in [(np.float32, 9000), (np.float64, 5001), (np.uint8, 40_000), (np.float32, 100_003)]:
        whole = [comm.empty(count + 64, dtype), comm.empty(count + 64, dtype), np.empty(count + 64, dtype)]
        for k in range(12):
            start, first, second = rng.integers(0, [64, 3, 3])
            x, out = whole[first][start : start + count], whole[second][start : start + count]
            parts = [
                np.random.default_rng([r, k]).integers(1, 9, count).astype(dtype) for r in range(comm.size)
            ]
            x[...] = parts[comm.rank]
            work = comm.start_all_reduce(x, out)
            check(comm, (6000,), np.float32, "sum", k)
            work.wait()
            assert out.tobytes() == expect(comm, parts, "sum").astype(dtype).tobytes(), (dtype, count, k)
            assert first == second or x.tobytes() == parts[comm.rank].tobytes()


def quiet(comm):
    for _ in range(3):
        x = np.array([3e38, np.inf, np.nan], np.float32)
        comm.all_reduce(x, x)
        assert np.isinf(x[:2]).all()
        assert np.isnan(x[2])


def late(comm):
    for k in range(4):
        if comm.rank == k % comm.size:
            time.sleep(0.02)
        check(comm, (5,), np.float32, "sum", k)


def behind_others(comm):
    """With calls in flight that were started before, and from two groups in turn."""
    half = comm.split(comm.rank % 2)
    for k in range(4):
        y = np.ones(100_000, np.float32)
        work = comm.start_all_reduce(y, y)
        check(comm, (5,), np.float32, "sum", k)
        check(half, (5,), np.float32, "max", k)
        work.wait()
        assert (y == comm.size).all()
    half.close()


def refused(comm):
    x = np.ones((4, 4), np.float32)
    comm.all_reduce(x, x)
    frozen = np.ones((4, 4), np.float32)
    frozen.flags.writeable = False
    for wrong, words in [(x.T, "C-contiguous"), (frozen, "read-only")]:
        with pytest.raises(ValueError, match=words):
            comm.all_reduce(wrong, wrong)
    comm.all_reduce(x, x)
    assert (x == comm.size**2).all()


def noted(comm):
    x = np.ones(3, np.float32)
    for k in range(3):
        comm.all_reduce(x, x, tag=(9, k, 9))
    calls = comm.recent_calls()[-3:]
    assert [f"tag (9, {k}, 9)" in call.what for k, call in enumerate(calls)] == [True] * 3
    assert all(call.ended is not None and not call.failed and "repeated.py" in call.place for call in calls)
    assert [call.number for call in calls] == list(range(calls[0].number, calls[0].number + 3))


def mismatch(comm):
    """The last rank is a step behind in its third call: all are told, and no array has changed."""
    x = np.ones(3, np.float32)
    for k in range(3):
        before = x.copy()
        try:
            comm.all_reduce(x, x, tag=(0, k - (k == 2 and comm.rank == comm.size - 1), 0))
        except CollectiveMismatch as error:
            assert k == 2
            assert (x == before).all()
            return str(error)
    raise AssertionError("the mismatch was not found")


def main():
    comm = connect()
    for case in (right, in_place, in_and_out, quiet, late, behind_others, refused, noted):
        case(comm)
    text = mismatch(comm)
    again = np.ones(3, np.float32)
    comm.all_reduce(again, again)  # the group can still be used
    assert (again == comm.size).all()
    if comm.rank == 0:
        print(json.dumps(text))


if __name__ == "__main__":
    sys.exit(main())
