"""The world, groups of ranks, and who is who in them; and the signatures of PyTorch."""

import inspect
import re
from datetime import timedelta

import pytest

import disttrain as dt
from disttrain import distributed as dist
from disttrain.collectives import CollectiveMismatch, TransportUnavailable, connect

SIZE = 4
OUTSIDE = dist.GroupMember.NON_GROUP_MEMBER


def test_the_process_group_is_the_launchers(world):
    def body(rank):
        assert not dist.is_initialized()
        dist.init_process_group("GLOO", rank=rank, world_size=SIZE, timeout=timedelta(seconds=7))
        assert dist.is_initialized()
        assert (dist.get_rank(), dist.get_world_size(), dist.get_backend()) == (rank, SIZE, "local")
        assert connect().timeout == 7
        with pytest.raises(ValueError, match=f"started rank {rank} of 4, not rank -1 of 7"):
            dist.init_process_group(world_size=7)
        with pytest.raises(ValueError, match="backend must be one of"):
            dist.init_process_group("smoke signals")
        with pytest.raises(ValueError, match="timeout must be positive, got 0:00:00"):
            dist.init_process_group(timeout=timedelta(0))
        with pytest.raises(TransportUnavailable, match="connected by local, not by mpi"):
            dist.init_process_group("mpi")
        dist.destroy_process_group()
        assert not dist.is_initialized()

    world(body)


def test_the_world_is_a_group(world):
    def body(rank):
        whole = dist.group.WORLD
        assert whole is dist.group.WORLD is dist.GroupMember.WORLD
        assert isinstance(whole, dist.ProcessGroup)
        assert (whole.rank(), whole.size(), whole.name()) == (rank, SIZE, "local")
        assert dist.get_process_group_ranks(None) == dist.get_process_group_ranks(whole) == [0, 1, 2, 3]
        t = dt.tensor([rank])
        dist.all_reduce(t, group=whole)
        assert t.item() == 6

    world(body)


def test_groups(world):
    def body(rank):
        group = dist.new_group([3, 1], timeout=timedelta(seconds=5), group_desc="odd")
        assert (group == OUTSIDE) == (rank in (0, 2))
        t = dt.tensor([float(rank)])
        if rank in (0, 2):
            with pytest.warns(
                UserWarning, match=rf"rank {rank} calls all_reduce\(\) on a group that it is not in"
            ):
                assert dist.all_reduce(t, group=group) is None
            assert t.item() == rank
            assert (dist.get_rank(group), dist.get_world_size(group)) == (-1, -1)
            with pytest.raises(ValueError, match=f"rank {rank} is not in the group"):
                dist.get_process_group_ranks(group)
            return
        dist.all_reduce(t, group=group)
        assert t.item() == 4
        assert (dist.get_rank(group), dist.get_world_size(group)) == (rank // 2, 2)
        assert dist.get_process_group_ranks(group) == [1, 3]
        assert [dist.get_global_rank(group, i) for i in (0, 1)] == [1, 3]
        assert [dist.get_group_rank(group, r) for r in (1, 3)] == [0, 1]
        assert group.communicator.timeout == 5
        assert connect().timeout == 1800
        with pytest.raises(
            ValueError, match=r"rank 0 of the world is not in the group, which has ranks \[1, 3\]"
        ):
            dist.get_group_rank(group, 0)
        with pytest.raises(ValueError, match="ranks 0 to 1, got 2"):
            dist.get_global_rank(group, 2)
        dist.destroy_process_group(group)

    world(body)


def test_the_order_of_a_group(world):
    def body(rank):
        as_given = dist.new_group([2, 0, 3], sort_ranks=False)
        return rank == 1 or (dist.get_rank(as_given), dist.get_process_group_ranks(as_given))

    assert world(body) == [(1, [2, 0, 3]), True, (0, [2, 0, 3]), (2, [2, 0, 3])]


def test_ranks_that_name_other_members_are_told_of_all(world):
    def body(rank):
        with pytest.raises(CollectiveMismatch) as caught:
            dist.new_group([0, 1] if rank == 1 else [0])
        return str(caught.value)

    said = world(body)

    assert len(set(said)) == 1
    assert re.search(
        r"  ranks 0, 2-3: split\(int64, groups \[0\]\) at .*test_groups.py:\d+\n"
        r"  rank 1: split\(int64, groups \[0, 1\]\) at .*test_groups.py:\d+\n",
        said[0],
    )


def test_subgroups(world):
    def body(rank):
        mine, made = dist.new_subgroups(2)
        assert [g == OUTSIDE for g in made] == [rank >= 2, rank < 2]
        assert made[rank // 2] is mine
        t = dt.tensor([rank])
        dist.all_reduce(t, group=mine)
        assert t.item() == (1 if rank < 2 else 5)

        whole, _ = dist.new_subgroups()  # a node
        assert dist.get_process_group_ranks(whole) == [0, 1, 2, 3]

        mine, made = dist.new_subgroups_by_enumeration([[0, 2], [1]])
        assert (mine is None) == (rank == 3)
        assert len(made) == 2
        if mine is not None:
            assert dist.get_process_group_ranks(mine) == [[0, 2], [1]][rank % 2]

        of_three = dist.new_group([0, 1, 3])
        if rank == 2:
            return
        split = dist.split_group(of_three, [[0, 2], [1]])  # numbers in the parent
        assert dist.get_process_group_ranks(split) == ([1] if rank == 1 else [0, 3])
        assert (dist.split_group(of_three, [[0, 1]]) is None) == (rank == 3)

    world(body)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: dist.new_group([0, 0]), ValueError, "each at most once, got rank 0 twice"),
        (lambda: dist.new_group([1]), ValueError, r"groups must have ranks 0 to 0, .* got \[\[1\]\]"),
        (lambda: dist.new_group(backend="pigeons"), ValueError, "backend must be one of"),
        (
            lambda: dist.new_group([0], use_local_synchronization=True),
            NotImplementedError,
            "let all ranks of the world call it",
        ),
        (lambda: dist.new_subgroups(2), ValueError, "must divide the number of ranks, 1, got 2"),
        (lambda: dist.new_subgroups_by_enumeration([]), ValueError, "groups must have ranks 0 to 0"),
        (lambda: dist.split_group(), ValueError, "groups must have ranks 0 to 0"),
        (
            lambda: dist.all_reduce(dt.ones(1), group=[0]),
            TypeError,
            "must be a process group or None, got list",
        ),
    ],
)
def test_mistakes_are_named(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_a_wrapper_and_an_optimizer_take_a_process_group(world):
    from disttrain.parallel.zero import ZeroOptimizer

    def body(rank):
        mine, _ = dist.new_subgroups(2)
        model = dt.nn.parallel.DistributedDataParallel(dt.nn.Linear(1, 1, bias=False), process_group=mine)
        optimizer = ZeroOptimizer(model.parameters(), dt.optim.SGD, lr=1.0, process_group=mine)
        with dt.no_grad():
            model.module.weight.zero_()
        (model(dt.full((1, 1), float(rank))).sum()).backward()
        optimizer.step()
        return model.module.weight.item()

    assert world(body) == [-0.5, -0.5, -2.5, -2.5]


def test_inquiries():
    assert dist.is_backend_available("gloo")
    assert dist.is_backend_available("NCCL") is dist.is_nccl_available()
    assert not dist.is_backend_available("ucc")
    assert (dist.is_ucc_available(), dist.is_xccl_available()) == (False, False)
    assert dist.get_default_backend_for_device("cpu") == dist.Backend.GLOO == "gloo"
    assert dist.get_default_backend_for_device("cuda") == dist.Backend("NCCL") == "nccl"
    assert dist.default_pg_timeout == timedelta(minutes=30)
    assert dist.get_node_local_rank() == 0


def test_what_is_absent_says_so():
    with pytest.raises(
        AttributeError, match=r"disttrain\.distributed\.TCPStore is PyTorch's, not in disttrain"
    ):
        dist.TCPStore


def test_functions_have_pytorchs_signatures():
    torch = pytest.importorskip("torch.distributed", reason="compares with torch")
    ours = {n: f for n in dist.__all__ if inspect.isfunction(f := getattr(dist, n))}
    assert len(ours) > 50

    for name, function in ours.items():
        theirs = inspect.signature(getattr(torch, name)).parameters.values()
        expected = [(p.name, p.kind, str(p.default)) for p in theirs if not p.name.startswith("_")]
        mine = inspect.signature(function).parameters.values()
        got = [(p.name, p.kind, str(p.default).replace("ReduceOp.", "RedOpType.")) for p in mine]
        said = [(n, k, d.strip("<>").split(":")[0]) for n, k, d in got]
        assert said == [(n, k, d.strip("<>").split(":")[0]) for n, k, d in expected], name
