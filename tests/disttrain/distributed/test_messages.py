"""PyTorch's names for messages from rank to rank, on ranks that are threads."""

import numpy as np
import pytest

import disttrain as dt
from disttrain import distributed as dist
from disttrain.collectives import CollectiveMismatch, RankFailed

SIZE = 4


def test_a_ring(world):
    def body(rank):
        right, left = (rank + 1) % SIZE, (rank - 1) % SIZE
        sent = dist.isend(dt.tensor([[rank, 1], [2, 3]]).t(), right)
        got = dt.zeros(2, 2, dtype=dt.int64).t()
        assert dist.recv(got, left) == left
        sent.wait()
        assert got.tolist() == [[left, 2], [1, 3]]
        with pytest.raises(RuntimeError, match="for irecv"):
            sent.source_rank()

    world(body)


def test_messages_arrive_in_the_order_sent(world):
    def body(rank):
        if rank == 0:
            works = [dist.isend(dt.full((3,), k), 1, tag=k) for k in range(30)]
        else:
            tensors = [dt.zeros(3, dtype=dt.int64) for _ in range(30)]
            works = [dist.irecv(t, 0, tag=k) for k, t in enumerate(tensors)]
        for work in reversed(works):
            work.wait()
        if rank == 1:
            np.testing.assert_array_equal([t.numpy() for t in tensors], np.arange(30)[:, None].repeat(3, 1))
            assert works[0].source_rank() == 0

    world(body, 2)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_batch_in_any_order(world, reverse):
    def body(rank):
        right, left = (rank + 1) % SIZE, (rank - 1) % SIZE
        got = dt.zeros(2)
        ops = [dist.P2POp(dist.isend, dt.full((2,), float(rank)), right), dist.P2POp(dist.irecv, got, left)]
        for work in dist.batch_isend_irecv(ops[::-1] if reverse and rank % 2 else ops):
            work.wait()
        assert got.tolist() == [left, left]

    world(body)


def test_peers_are_numbers_in_the_world(world):
    def body(rank):
        group = dist.new_group([1, 3])
        t = dt.tensor([rank])
        if rank not in (1, 3):
            with pytest.warns(UserWarning, match="a group that it is not in"):
                assert dist.recv(t, 1, group) == -1
            with pytest.warns(UserWarning, match="a group that it is not in"):
                assert dist.send(t, 1, group) is None
            return
        if rank == 1:
            dist.send(t, 3, group)
            dist.send(t + 1, group=group, group_dst=1)
        else:
            assert dist.recv(t, group=group, group_src=0) == 1
            assert t.item() == 1
            assert dist.recv(t, 1, group) == 1
            assert t.item() == 2
        peer = 4 - rank
        op = dist.P2POp(dist.isend if rank == 1 else dist.irecv, t, group=group, group_peer=rank == 1)
        assert (op.peer, op.group_peer) == (peer, int(rank == 1))
        assert repr(op) == f"P2POp({'isend' if rank == 1 else 'irecv'}, peer {peer}, [1], disttrain.int64)"
        for work in dist.batch_isend_irecv([op]):
            work.wait()

    world(body)


def test_tags_must_agree_and_are_named_if_they_were_given(world):
    def body(rank):
        if rank == 0:
            dist.send(dt.ones(1), 1)
        else:
            dist.recv(dt.ones(1), 0, tag=6)

    with pytest.raises(RankFailed) as failed:
        world(body, 2)

    assert isinstance(failed.value.exception, CollectiveMismatch)
    text = str(failed.value.exception)
    assert "rank 0: send(float32, shape (1,), to 1) at " in text
    assert "rank 1: recv(float32, shape (1,), from 0, tag 6) at " in text


def test_a_negative_tag_is_refused(world):
    def body(rank):
        with pytest.raises(RuntimeError, match="tag of a message must not be negative, got -1"):
            dist.isend(dt.ones(1), 1 - rank, tag=-1)

    world(body, 2)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: dist.recv(dt.ones(1)), "recv.. needs src"),
        (lambda: dist.send(dt.ones(1)), "dst .* or group_dst .* is needed"),
        (lambda: dist.send(dt.ones(1), 0), "rank 0 cannot send to itself"),
        (lambda: dist.P2POp(dist.send, dt.ones(1), 0), "op must be isend or irecv"),
        (lambda: dist.batch_isend_irecv([]), "at least one P2POp"),
    ],
)
def test_mistakes_are_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()
