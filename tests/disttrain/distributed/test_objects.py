"""Objects between ranks travel as files do, on ranks that are threads."""

import math

import numpy as np
import pytest

import disttrain as dt
from disttrain import distributed as dist

SIZE = 4


def thing(rank):
    return {"rank": rank, "text": "é" * rank, "list": list(range(50 * rank))}


EVERYTHING = [thing(r) for r in range(SIZE)]


def test_all_gather(world):
    def body(rank):
        everybody = [None] * SIZE
        dist.all_gather_object(everybody, thing(rank))
        assert everybody == EVERYTHING

    world(body)


def test_what_comes_is_what_was_sent(world):
    sent = [{0: (1, 2.5, None), (1, "a"): {3, 4}, "nan": math.inf, b"raw": np.float32(0.5)}, [], ""]

    def body(rank):
        got = [None]
        dist.broadcast_object_list(got if rank else [[*sent, dt.arange(3) + 7]], 0)
        return got[0]

    for *rest, tensor in world(body)[1:]:
        assert rest == sent
        assert tensor.tolist() == [7, 8, 9]


def test_gather(world):
    def body(rank):
        everybody = [None] * SIZE if rank == 2 else None
        dist.gather_object(thing(rank), everybody, 2)
        assert everybody == (EVERYTHING if rank == 2 else None)

    world(body)


def test_broadcast(world):
    def body(rank):
        shared = [{"lr": 0.1}, [1, 2]] if rank == 1 else [None, None]
        dist.broadcast_object_list(shared, src=1)
        assert shared == [{"lr": 0.1}, [1, 2]]

    world(body)


def test_scatter(world):
    def body(rank):
        got = [None]
        dist.scatter_object_list(got, EVERYTHING if rank == 3 else None, 3)
        assert got == [thing(rank)]

    world(body)


def test_send_and_receive(world):
    def body(rank):
        if rank == 0:
            dist.send_object_list(EVERYTHING[:2], 1)
            return
        got = [None, None]
        assert dist.recv_object_list(got, 0) == 0
        assert got == EVERYTHING[:2]

    world(body, 2)


def test_roots_are_numbers_in_the_world(world):
    def body(rank):
        group = dist.new_group([1, 3])
        if rank not in (1, 3):
            with pytest.warns(
                UserWarning, match=r"calls broadcast_object_list\(\) on a group that it is not in"
            ):
                dist.broadcast_object_list([None], 3, group)
            return
        for root in ({"src": 3}, {"group_src": 1}):
            shared, got = [thing(3) if rank == 3 else None], [None]
            dist.broadcast_object_list(shared, group=group, **root)
            assert shared == [thing(3)]
            dist.scatter_object_list(got, ["a", "b"] if rank == 3 else None, group=group, **root)
            assert got == ["a" if rank == 1 else "b"]
        for root in ({"dst": 1}, {"group_dst": 0}):
            everybody = [None, None] if rank == 1 else None
            dist.gather_object(rank, everybody, group=group, **root)
            assert everybody == ([1, 3] if rank == 1 else None)
        if rank == 1:
            dist.send_object_list(["hello"], 3, group)
        else:
            got = [None]
            assert dist.recv_object_list(got, group=group, group_src=0) == 1
            assert got == ["hello"]

    world(body)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: dist.all_gather_object([None], {"net": [object()]}),
            TypeError,
            r"travel between ranks as save\(\) writes them, without code: cannot save .*\['net'\]\[0\]",
        ),
        (lambda: dist.all_gather_object([], 1), ValueError, "a place for each of 1 ranks, got 0"),
        (lambda: dist.gather_object(1), ValueError, "a place for each of 1 ranks, got none"),
        (lambda: dist.scatter_object_list([], [1]), ValueError, "got an empty list"),
        (lambda: dist.recv_object_list([None]), ValueError, "src .* is needed"),
    ],
)
def test_mistakes_are_named(call, error, text):
    with pytest.raises(error, match=text):
        call()
