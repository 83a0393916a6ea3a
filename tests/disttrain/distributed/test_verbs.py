"""PyTorch's names for what all ranks of a group do, on ranks that are threads."""

import re
from datetime import timedelta

import numpy as np
import pytest

import disttrain as dt
from disttrain import distributed as dist
from disttrain.collectives import CollectiveMismatch, CollectiveTimeout, RankFailed

SIZE = 4
SHAPES = [(), (0,), (1,), (3,), (2, 3), (5, 7)]
VIEWS = {
    "as it is": lambda t: t,
    "transposed": lambda t: t.transpose(0, -1) if t.dim() else t,
    "every second": lambda t: dt.cat([t, t], -1)[..., ::2] if t.dim() else t,
    "expanded from": lambda t: t.flip(0) if t.dim() else t,
}


def whole(rank, shape, dtype=np.int64):
    return np.arange(int(np.prod(shape)), dtype=dtype).reshape(shape) + 100 * rank


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("async_op", [False, True])
def test_every_verb_on_every_shape_and_stride(world, shape, view, async_op):
    """What the rows of memory are does not matter: only what the tensor shows."""

    def call(verb, *args, **kwargs):
        work = verb(*args, async_op=async_op, **kwargs)
        assert (work is not None) is async_op
        if work is not None:
            work.wait()
            assert work.is_completed()
            assert work.is_success()

    def body(rank):
        given = [view(dt.tensor(whole(r, shape))).numpy().copy() for r in range(SIZE)]

        def mine():
            return view(dt.tensor(whole(rank, shape)))

        t = mine()
        call(dist.all_reduce, t)
        np.testing.assert_array_equal(t.numpy(), sum(given))
        t = mine()
        call(dist.reduce, t, 2)
        np.testing.assert_array_equal(t.numpy(), sum(given) if rank == 2 else given[rank])
        t = mine()
        call(dist.broadcast, t, 1)
        np.testing.assert_array_equal(t.numpy(), given[1])
        outs = [dt.zeros_like(mine()) for _ in range(SIZE)]
        call(dist.all_gather, outs, mine())
        np.testing.assert_array_equal([o.numpy() for o in outs], given)
        stacked = dt.zeros(SIZE, *mine().shape, dtype=dt.int64)
        call(dist.all_gather_into_tensor, stacked, mine())
        np.testing.assert_array_equal(stacked.numpy(), given)
        outs = [view(dt.zeros(shape, dtype=dt.int64)) for _ in range(SIZE)]
        call(dist.gather, mine(), outs if rank == 3 else None, 3)
        if rank == 3:
            np.testing.assert_array_equal([o.numpy() for o in outs], given)
        out = view(dt.zeros(shape, dtype=dt.int64))
        call(
            dist.scatter, out, [view(dt.tensor(whole(r, shape))) for r in range(SIZE)] if rank == 0 else None
        )
        np.testing.assert_array_equal(out.numpy(), given[rank])
        inputs = [mine() + 1000 * r for r in range(SIZE)]
        call(dist.reduce_scatter, out, inputs)
        np.testing.assert_array_equal(out.numpy(), sum(given) + SIZE * 1000 * rank)
        call(dist.reduce_scatter_tensor, out, dt.stack(inputs))
        np.testing.assert_array_equal(out.numpy(), sum(given) + SIZE * 1000 * rank)
        outs = [view(dt.zeros(shape, dtype=dt.int64)) for _ in range(SIZE)]
        call(dist.all_to_all, outs, inputs)
        np.testing.assert_array_equal([o.numpy() for o in outs], [g + 1000 * rank for g in given])
        swapped = dt.zeros(SIZE, *mine().shape, dtype=dt.int64)
        call(dist.all_to_all_single, swapped, dt.stack(inputs))
        np.testing.assert_array_equal(swapped.numpy(), [g + 1000 * rank for g in given])
        call(dist.barrier)

    world(body)


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
@pytest.mark.parametrize("dtype", [dt.float32, dt.float64, dt.float16, dt.bfloat16], ids=str)
def test_reductions(world, op, expected, dtype):
    def body(rank):
        t, r = dt.full((2, 3), float(rank + 1), dtype=dtype), dt.full((3,), float(rank + 1), dtype=dtype)
        s = dt.zeros(3, dtype=dtype)
        dist.all_reduce(t, op=op)
        dist.reduce(r, 1, op=op)
        dist.reduce_scatter(s, [dt.full((3,), float(rank + 1), dtype=dtype)] * SIZE, op=op)
        return t.float().numpy().copy(), r.float().numpy().copy(), s.float().numpy().copy()

    for rank, (t, r, s) in enumerate(world(body)):
        np.testing.assert_array_equal(t, np.full((2, 3), expected))
        np.testing.assert_array_equal(r, np.full(3, expected if rank == 1 else rank + 1))
        np.testing.assert_array_equal(s, np.full(3, expected))


@pytest.mark.parametrize(
    ("op", "fold"),
    [
        (dist.ReduceOp.BAND, np.bitwise_and),
        (dist.ReduceOp.BOR, np.bitwise_or),
        (dist.ReduceOp.BXOR, np.bitwise_xor),
    ],
)
@pytest.mark.parametrize("dtype", [dt.int32, dt.uint8, dt.bool], ids=str)
def test_bitwise_reductions(world, op, fold, dtype):
    given = [dt.tensor(np.random.default_rng(r).integers(0, 100, 50)).to(dtype) for r in range(SIZE)]

    def body(rank):
        t = given[rank].clone()
        dist.all_reduce(t, op=op)
        return t.numpy().copy()

    for t in world(body):
        np.testing.assert_array_equal(t, fold.reduce([g.numpy() for g in given]))


def test_operations_that_cannot_be_are_refused():
    with pytest.raises(TypeError, match="band combines the bits of bool and integers, got float32"):
        dist.all_reduce(dt.ones(2), dist.ReduceOp.BAND)
    with pytest.raises(
        ValueError, match=r"PREMUL_SUM is not in disttrain: multiply the tensor, then use SUM"
    ):
        dist.all_reduce(dt.ones(2), dist.ReduceOp.PREMUL_SUM)
    with pytest.raises(TypeError, match="op must be a ReduceOp, got 'sum'"):
        dist.all_reduce(dt.ones(2), "sum")
    with pytest.raises(TypeError, match="a tensor is needed, got ndarray"):
        dist.all_reduce(np.ones(2))


@pytest.mark.parametrize("even", [True, False])
def test_gathering_tensors_of_different_sizes(world, even):
    shapes = [(2, 3)] * SIZE if even else [(0, 3), (2, 3), (1, 3), (4, 3)]

    def body(rank):
        outs = [dt.zeros(shape, dtype=dt.int64) for shape in shapes]
        dist.all_gather(outs, dt.tensor(whole(rank, shapes[rank])))
        for r, out in enumerate(outs):
            np.testing.assert_array_equal(out.numpy(), whole(r, shapes[r]))

    world(body)


def test_scattering_sums_of_different_sizes(world):
    def body(rank):
        out = dt.zeros(rank, dtype=dt.int64)
        dist.reduce_scatter(out, [dt.tensor(whole(rank, (r,))) for r in range(SIZE)], dist.ReduceOp.MAX)
        np.testing.assert_array_equal(out.numpy(), whole(SIZE - 1, (rank,)))

    world(body)


def test_all_to_all_of_different_sizes(world):
    """Rank i sends i + j rows to rank j."""

    def body(rank):
        sends = [rank + j for j in range(SIZE)]
        x = whole(rank, (sum(sends), 2))
        out = dt.zeros(sum(sends), 2, dtype=dt.int64)
        dist.all_to_all_single(out, dt.tensor(x), sends, sends)
        rows = []
        for i in range(SIZE):
            start = sum(i + j for j in range(rank))
            rows.append(whole(i, (sum(i + j for j in range(SIZE)), 2))[start : start + i + rank])
        np.testing.assert_array_equal(out.numpy(), np.concatenate(rows))

        outs = [dt.zeros(i + rank, dtype=dt.int64) for i in range(SIZE)]
        dist.all_to_all(outs, [dt.full((rank + j,), 10 * rank + j) for j in range(SIZE)])
        assert [o.tolist() for o in outs] == [[10 * i + rank] * (i + rank) for i in range(SIZE)]

    world(body)


def test_what_is_sent_and_what_is_expected_must_agree(world):
    def body(rank):
        sends = [1, 2] if rank == 0 else [1, 1]
        receives = [1, 1]
        dist.all_to_all_single(dt.zeros(2), dt.zeros(sum(sends)), receives, sends)

    with pytest.raises(RankFailed) as failed:
        world(body, 2)

    assert isinstance(failed.value.exception, CollectiveMismatch)
    said = str(failed.value.exception)
    assert re.search(
        r"rank 0: all_to_all_v\(float32, sends \[1, 2\], receives \[1, 1\]\) at .*\.py:\d+", said
    )
    assert re.search(
        r"rank 1: all_to_all_v\(float32, sends \[1, 1\], receives \[1, 1\]\) at .*\.py:\d+", said
    )


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: dist.all_gather([dt.zeros(1)] * 2, dt.zeros(1)),
            ValueError,
            "one tensor for each of 1 ranks, got 2",
        ),
        (
            lambda: dist.all_gather([dt.zeros(1).int()], dt.zeros(1)),
            TypeError,
            "tensors of one dtype, got int32 and float32",
        ),
        (lambda: dist.all_gather([dt.zeros(2)], dt.zeros(1)), ValueError, r"counts \[2\] says 2 for rank 0"),
        (lambda: dist.gather(dt.zeros(1)), ValueError, "one tensor for each of 1 ranks, got none"),
        (
            lambda: dist.scatter(dt.zeros(1), [dt.zeros(2)]),
            ValueError,
            "needs 1 elements in each tensor, got 2",
        ),
        (
            lambda: dist.all_to_all_single(dt.zeros(2), dt.zeros(2), [1], None),
            ValueError,
            r"output_split_sizes must be 1 numbers \(ranks\) with the sum 2 \(rows\), got \[1\]",
        ),
        (lambda: dist.broadcast(dt.zeros(2)), ValueError, "src .* or group_src .* is needed"),
        (lambda: dist.broadcast(dt.zeros(2), 0, group_src=0), ValueError, "not both"),
        (lambda: dist.broadcast(dt.zeros(2), 1), ValueError, "rank 1 of the world is not in the group"),
        (lambda: dist.broadcast(dt.zeros(2), group_src=-1), ValueError, "ranks 0 to 0, got -1"),
    ],
)
def test_mistakes_are_named(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_roots_are_numbers_in_the_world(world):
    """As in PyTorch; ``group_src`` and ``group_dst`` count within the group."""

    def body(rank):
        group = dist.new_group([1, 3])
        if rank not in (1, 3):
            return
        for named, counted in ((1, 0), (3, 1)):
            for root in ({"src": named}, {"group_src": counted}):
                t = dt.tensor([rank])
                dist.broadcast(t, group=group, **root)
                assert t.item() == named
                dist.scatter(
                    t, [dt.tensor([7]), dt.tensor([8])] if rank == named else None, group=group, **root
                )
                assert t.item() == (7 if rank == 1 else 8)
            for root in ({"dst": named}, {"group_dst": counted}):
                t = dt.tensor([rank])
                dist.reduce(t, group=group, **root)
                assert t.item() == (4 if rank == named else rank)
                outs = [dt.tensor([0]), dt.tensor([0])] if rank == named else None
                dist.gather(dt.tensor([rank]), outs, group=group, **root)
                assert outs is None or [o.item() for o in outs] == [1, 3]
        with pytest.raises(
            ValueError, match=r"rank 0 of the world is not in the group, which has ranks \[1, 3\]"
        ):
            dist.broadcast(dt.tensor([0]), 0, group)

    world(body)


def test_several_at_once(world):
    def body(rank):
        tensors = [dt.full((k,), float(rank)) for k in range(5)]
        dist.all_reduce_coalesced(tensors)
        assert [t.tolist() for t in tensors] == [[6.0] * k for k in range(5)]
        lists = [[dt.zeros(k) for _ in range(SIZE)] for k in range(3)]
        work = dist.all_gather_coalesced(lists, [dt.full((k,), float(rank)) for k in range(3)], async_op=True)
        assert len(work.result()) == 3 * SIZE
        assert [[t.tolist() for t in ts] for ts in lists] == [
            [[float(r)] * k for r in range(SIZE)] for k in range(3)
        ]

    world(body)


def test_thirty_calls_outstanding_and_waited_for_backwards(world):
    def body(rank):
        tensors = [dt.full((2, k + 1), rank + k).t() for k in range(30)]
        works = [dist.all_reduce(t, async_op=True) for t in tensors]
        for work in reversed(works):
            assert work.wait()
        for k, t in enumerate(tensors):
            np.testing.assert_array_equal(t.numpy(), np.full((k + 1, 2), 6 + SIZE * k))

    world(body)


def test_what_a_failed_call_says(world):
    def body(rank):
        work = dist.all_reduce(dt.zeros(3 if rank else 4), async_op=True)
        with pytest.raises(CollectiveMismatch):
            work.wait()
        assert work.is_completed()
        assert not work.is_success()
        assert isinstance(work.exception(), CollectiveMismatch)
        with pytest.raises(CollectiveMismatch):
            work.get_future().wait()

    world(body)


def test_waiting_with_a_limit(world):
    def body(rank):
        if rank:
            return
        with pytest.raises(CollectiveTimeout, match=r"not completed within 0\.01 s"):
            dist.barrier(timeout=timedelta(milliseconds=10))
        raise LookupError("the end of the test: nobody comes to the barrier")

    with pytest.raises(RankFailed, match="the end of the test"):
        world(body, 2)


def test_a_barrier_names_the_ranks_that_stay_away(world):
    said = {}

    def body(rank):
        dist.monitored_barrier(timeout=timedelta(seconds=30))
        if rank in (1, 2):
            try:
                dist.barrier()  # somewhere else than the others
            finally:
                return  # noqa: B012
        try:
            dist.monitored_barrier(timeout=timedelta(milliseconds=50))
        except CollectiveTimeout as error:
            said[rank] = str(error)
        if rank == 3:
            raise LookupError("the end of the test")

    with pytest.raises(RankFailed, match="the end of the test"):
        world(body)

    expected = "ranks 1-2 did not come to monitored_barrier() within 0.05 s; look there for an error, or raise timeout"
    assert said == {0: expected, 3: expected}


def test_alone_everything_is_there():
    t = dt.tensor([1.0, 2.0])
    dist.all_reduce(t)
    dist.broadcast(t, 0)
    dist.barrier()
    dist.monitored_barrier()

    assert t.tolist() == [1, 2]
    assert (dist.get_rank(), dist.get_world_size()) == (0, 1)
