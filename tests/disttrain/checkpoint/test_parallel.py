"""Saved by any number of ranks in any parallel wrapper, loaded by any other: the run goes on with the same bits."""

import itertools
import os

import numpy as np
import pytest

import disttrain as dt
from disttrain import nn
from disttrain.checkpoint.manifest import Manifest
from disttrain.collectives import RankFailed
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.local import run_ranks
from disttrain.distributed.fsdp import FullyShardedDataParallel, fully_shard
from disttrain.distributed.fsdp.wrap import ModuleWrapPolicy
from disttrain.errors import CheckpointMismatch
from disttrain.nn.parallel import DistributedDataParallel
from disttrain.parallel.zero import ZeroOptimizer

X = np.random.default_rng(0).standard_normal((16, 6))
Y = np.random.default_rng(1).standard_normal((16, 6))


def world(size, body):
    return run_ranks(WorkerEnv(world_size=size, hosted=size, local_world_size=size, fixed_order=True), body)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(6, 11)
        self.down = nn.Linear(11, 6)
        self.register_buffer("calls", dt.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x + self.down(dt.tanh(self.up(x)))


class Net(nn.Module):
    """Two blocks and a layer whose weight is tied to the first."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.last = nn.Linear(6, 6)
        self.last.weight = self.first.weight

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def make_net():
    dt.manual_seed(3)
    return Net().double()


def by_layer(net):
    return FullyShardedDataParallel(net, auto_wrap_policy=ModuleWrapPolicy({Block}))


def in_place(net):
    for block in net.blocks:
        fully_shard(block)
    return fully_shard(net)


def adam(params):
    return dt.optim.AdamW(params, lr=0.01, amsgrad=True)


WAYS = {
    "replicated": (DistributedDataParallel, adam),
    "ZeRO 1": (
        DistributedDataParallel,
        lambda p: ZeroOptimizer(p, dt.optim.AdamW, stage=1, lr=0.01, amsgrad=True),
    ),
    "ZeRO 2": (
        DistributedDataParallel,
        lambda p: ZeroOptimizer(p, dt.optim.AdamW, stage=2, lr=0.01, amsgrad=True),
    ),
    "sharded": (by_layer, adam),
    "in place": (in_place, adam),
}


def build(way):
    wrap, optimizer = WAYS[way]
    model = wrap(make_net())
    return model, optimizer(model.parameters())


def train(model, optimizer, steps):
    """Make steps on the ranks' shares of the rows: whole sums, so that any number of ranks has the same gradients."""
    rank, size = dt.distributed.get_rank(), dt.distributed.get_world_size()
    for step in steps:
        optimizer.zero_grad()
        rows = slice(rank * 16 // size, (rank + 1) * 16 // size)
        ((model(dt.tensor(X[rows])) - dt.tensor(Y[rows] * (1 + step))) ** 2).mean().backward()
        optimizer.step()


def state_of(model):
    return {n.removeprefix("module."): v.numpy().copy() for n, v in model.state_dict().items()}


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


@pytest.mark.parametrize(("saved_by", "loaded_by"), list(itertools.product(WAYS, WAYS)))
def test_a_run_goes_on_with_the_same_bits_in_another_way(tmp_path, saved_by, loaded_by):
    def first(rank):
        model, optimizer = build(saved_by)
        train(model, optimizer, range(3))
        dt.checkpoint.save(tmp_path, step=3, model=model, optimizer=optimizer)
        train(model, optimizer, range(3, 5))  # while it is written
        dt.checkpoint.close()
        return state_of(model)

    def second(rank):
        model, optimizer = build(loaded_by)
        loaded = dt.checkpoint.load(tmp_path, model=model, optimizer=optimizer)
        assert loaded.step == 3
        train(model, optimizer, range(3, 5))
        return state_of(model)

    expected, found = world(2, first), world(2, second)

    for state in found:
        assert_same(state, expected[0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("ranks", "others"), [(1, 4), (4, 1), (3, 2), (2, 8)])
def test_another_number_of_ranks_has_the_same_numbers(tmp_path, way, ranks, others):
    def first(rank):
        model, optimizer = build(way)
        train(model, optimizer, range(2))
        dt.checkpoint.save(tmp_path, step=2, model=model, optimizer=optimizer)
        dt.checkpoint.close()
        return state_of(model)

    def second(rank):
        model, optimizer = build(way)
        dt.checkpoint.load(tmp_path, model=model, optimizer=optimizer, random=False)
        dt.checkpoint.save(tmp_path, step=3, model=model, optimizer=optimizer)
        dt.checkpoint.close()
        return state_of(model)

    expected, found = world(ranks, first)[0], world(others, second)

    for state in found:
        assert_same(state, expected)
    before, after = (
        dt.checkpoint.read(tmp_path / name)["optimizer"] for name in ("00001-step-2", "00002-step-3")
    )
    assert before["state"].keys() == after["state"].keys()
    for name, values in before["state"].items():
        assert set(values) == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
        for key, value in values.items():
            np.testing.assert_array_equal(value.numpy(), after["state"][name][key].numpy())


def test_what_all_ranks_have_is_written_once_and_split(tmp_path):
    def body(rank):
        model, optimizer = build("replicated")
        train(model, optimizer, range(1))
        dt.checkpoint.save(tmp_path, step=1, model=model, optimizer=optimizer)
        dt.checkpoint.close()
        return sum(p.nbytes for p in model.parameters())

    (of_model, *_) = world(4, body)

    path = tmp_path / "00001-step-1"
    sizes = [os.path.getsize(path / f"part-{rank:05}.safetensors") for rank in range(4)]
    manifest = Manifest.read(str(path))
    headers = sum(sizes) - sum(t.nbytes for t in manifest.tensors.values())
    assert sum(t.nbytes for t in manifest.tensors.values()) < 4.2 * of_model  # with three moments each
    assert 0 < headers < 20_000
    assert max(sizes) < 2 * min(sizes)
    assert manifest.aliases == {"model/last.weight": "model/first.weight"}


def test_each_rank_of_a_sharded_run_writes_its_part(tmp_path):
    def body(rank):
        model, optimizer = build("sharded")
        train(model, optimizer, range(1))
        dt.checkpoint.save(tmp_path, step=1, model=model, optimizer=optimizer)
        dt.checkpoint.close()

    world(3, body)

    manifest = Manifest.read(str(tmp_path / "00001-step-1"))
    files = {p.file for t in manifest.tensors.values() for p in t.pieces}
    assert len(files) == 3
    assert any(len(t.pieces) > 1 for t in manifest.tensors.values())


def test_random_numbers_go_on_on_each_rank(tmp_path):
    def first(rank):
        dt.manual_seed(5)
        dt.rand(rank + 1)
        for _ in range(rank):
            dt.rand(1)
        dt.checkpoint.save(tmp_path, step=0)
        dt.checkpoint.close()
        return dt.rand(3).tolist()

    def second(rank):
        dt.checkpoint.load(tmp_path, random=True)
        return dt.rand(3).tolist()

    expected = world(2, first)

    assert world(2, second) == expected
    more = world(3, second)
    assert more[:2] == expected
    assert more[2] not in expected


def test_a_load_that_does_not_fit_one_rank_changes_none(tmp_path):
    def body(rank):
        model, optimizer = build("replicated")
        train(model, optimizer, range(1))
        dt.checkpoint.save(tmp_path, step=1, model=model, optimizer=optimizer, scheduler=Odd())
        dt.checkpoint.close()
        train(model, optimizer, range(1, 2))
        before = state_of(model), optimizer.state_dict()["state"][0]["exp_avg"].tolist()
        with pytest.raises(CheckpointMismatch, match="scheduler: not on rank 1"):
            dt.checkpoint.load(
                tmp_path, model=model, optimizer=optimizer, scheduler=Odd(refuses=rank == 1), random=True
            )
        assert_same(state_of(model), before[0])
        assert optimizer.state_dict()["state"][0]["exp_avg"].tolist() == before[1]

    world(2, body)


class Odd:
    def __init__(self, refuses=False):
        self.refuses = refuses

    def state_dict(self):
        return {"a": 1}

    def load_state_dict(self, state):
        if self.refuses and state == {"a": 1}:
            self.refuses = False
            raise ValueError("not on rank 1")


def test_ranks_that_hold_different_models_are_told(tmp_path):
    def body(rank):
        dt.checkpoint.save(tmp_path, step=1, model=nn.Linear(3, 2 + rank))

    with pytest.raises(RankFailed, match="differs on ranks \\[1\\] and 0 in names, types or shapes"):
        world(2, body)
