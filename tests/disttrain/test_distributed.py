"""PyTorch's names for collectives, on ranks that are threads."""

import numpy as np
import pytest

import disttrain as dt
from disttrain import distributed as dist
from disttrain.collectives import TransportUnavailable
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.local import run_ranks

SIZE = 4


def world(body, size=SIZE):
    return run_ranks(WorkerEnv(world_size=size, hosted=size, local_world_size=size, fixed_order=True), body)


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (dist.ReduceOp.SUM, 10),
        (dist.ReduceOp.PRODUCT, 24),
        (dist.ReduceOp.MIN, 1),
        (dist.ReduceOp.MAX, 4),
        (dist.ReduceOp.AVG, 2.5),
    ],
)
def test_all_reduce(op, expected):
    def body(rank):
        t = dt.full((2, 3), float(rank + 1)).t()  # not row-major
        work = dist.all_reduce(t, op=op, async_op=True)
        work.wait()
        assert work.is_completed()
        return t.numpy().copy()

    for result in world(body):
        np.testing.assert_array_equal(result, np.full((3, 2), expected))


def test_the_other_verbs():
    def body(rank):
        one = dt.tensor([rank, rank + 10])
        b = one.clone()
        dist.broadcast(b, src=2)
        assert b.tolist() == [2, 12]
        parts = [dt.zeros(2, dtype=dt.int64) for _ in range(SIZE)]
        dist.all_gather(parts, one)
        assert [p.tolist() for p in parts] == [[r, r + 10] for r in range(SIZE)]
        flat = dt.zeros(2 * SIZE, dtype=dt.int64)
        dist.all_gather_into_tensor(flat, one)
        assert flat.tolist() == [v for r in range(SIZE) for v in (r, r + 10)]
        out = dt.zeros(1, dtype=dt.int64)
        dist.reduce_scatter_tensor(out, dt.arange(SIZE))
        assert out.item() == SIZE * rank
        r = one.clone()
        dist.reduce(r, dst=1)
        assert r.tolist() == ([6, 46] if rank == 1 else one.tolist())
        gathered = [dt.zeros(2, dtype=dt.int64) for _ in range(SIZE)] if rank == 3 else None
        dist.gather(one, gathered, dst=3)
        assert rank != 3 or [g.tolist() for g in gathered] == [[r, r + 10] for r in range(SIZE)]
        s = dt.zeros(2, dtype=dt.int64)
        dist.scatter(s, [dt.tensor([r, -r]) for r in range(SIZE)] if rank == 0 else None, src=0)
        assert s.tolist() == [rank, -rank]
        a = dt.zeros(SIZE, dtype=dt.int64)
        dist.all_to_all_single(a, dt.arange(SIZE) + 100 * rank)
        assert a.tolist() == [100 * r + rank for r in range(SIZE)]
        right, left = (rank + 1) % SIZE, (rank - 1) % SIZE
        sent = dist.isend(dt.tensor([rank]), right)
        got = dt.zeros(1, dtype=dt.int64)
        assert dist.recv(got, left) == left
        sent.wait()
        assert got.item() == left
        dist.barrier()

    world(body)


def test_objects_travel_as_json():
    def body(rank):
        everybody = [None] * SIZE
        dist.all_gather_object(everybody, {"rank": rank, "text": "é" * rank})
        assert everybody == [{"rank": r, "text": "é" * r} for r in range(SIZE)]
        shared = [{"lr": 0.1}, [1, 2]] if rank == 1 else [None, None]
        dist.broadcast_object_list(shared, src=1)
        assert shared == [{"lr": 0.1}, [1, 2]]

    world(body)
    with pytest.raises(TypeError, match="travel between ranks as JSON"):
        dist.all_gather_object([None], object())


def test_groups():
    def body(rank):
        group = dist.new_group([3, 1])
        assert (group is None) == (rank in (0, 2))
        if group is not None:
            t = dt.tensor([float(rank)])
            dist.all_reduce(t, group=group)
            assert t.item() == 4
            return dist.get_rank(group), dist.get_world_size(group)
        return None

    assert world(body) == [None, (1, 2), None, (0, 2)]


def test_the_process_group_is_the_launchers():
    def body(rank):
        assert not dist.is_initialized()
        dist.init_process_group("gloo", rank=rank, world_size=SIZE)
        assert dist.is_initialized()
        assert (dist.get_rank(), dist.get_world_size(), dist.get_backend()) == (rank, SIZE, "local")
        with pytest.raises(ValueError, match=f"started rank {rank} of 4, not rank -1 of 7"):
            dist.init_process_group(world_size=7)
        with pytest.raises(ValueError, match="backend must be one of"):
            dist.init_process_group("smoke signals")
        with pytest.raises(TransportUnavailable, match="connected by local, not by mpi"):
            dist.init_process_group("mpi")
        dist.destroy_process_group()
        assert not dist.is_initialized()

    world(body)


def test_alone_everything_is_there():
    t = dt.tensor([1.0, 2.0])
    dist.all_reduce(t)
    dist.broadcast(t, 0)
    dist.barrier()

    assert t.tolist() == [1, 2]
    assert (dist.get_rank(), dist.get_world_size()) == (0, 1)


def test_lists_of_the_wrong_length_are_refused():
    with pytest.raises(ValueError, match="one tensor for each of 1 ranks, got 2"):
        dist.all_gather([dt.zeros(1), dt.zeros(1)], dt.zeros(1))
