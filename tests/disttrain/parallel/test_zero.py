"""An optimizer whose state is spread over the ranks: the parameters of the plain one, to the last bit."""

import copy

import numpy as np
import pytest

import disttrain as dt
from disttrain.collectives import CollectiveMismatch, RankFailed
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.local import run_ranks
from disttrain.nn.parallel import DistributedDataParallel
from disttrain.parallel.zero import ZeroOptimizer

X = np.random.default_rng(0).standard_normal((16, 5))
Y = np.random.default_rng(1).standard_normal((16, 3))
OPTIMIZERS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "Adam": {"lr": 0.01, "amsgrad": True},
    "AdamW": {"lr": 0.01},
    "RMSprop": {"lr": 0.01, "centered": True},
    "LAMB": {"lr": 0.01},
    "NAdam": {"lr": 0.01},
}


def world(size, body):
    return run_ranks(WorkerEnv(world_size=size, hosted=size, local_world_size=size, fixed_order=True), body)


def make_model():
    dt.manual_seed(0)
    return dt.nn.Sequential(dt.nn.Linear(5, 8), dt.nn.Tanh(), dt.nn.Linear(8, 3)).double()


def train(model, optimizer, steps, scheduler=None):
    """Make steps on the ranks' shares of the rows; return the parameters after each."""
    rank, size = dt.distributed.get_rank(), dt.distributed.get_world_size()
    seen = []
    for step in range(steps):
        optimizer.zero_grad()
        rows = slice(rank * 16 // size, (rank + 1) * 16 // size)
        ((model(dt.tensor(X[rows])) - dt.tensor(Y[rows] * (1 + step))) ** 2).mean().backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        seen.append([p.detach().numpy().copy() for p in model.parameters()])
    return seen


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_are_those_of_the_plain_optimizer(name, size):
    def body(rank):
        cls, options = getattr(dt.optim, name), OPTIMIZERS[name]
        plain, spread = (DistributedDataParallel(make_model()) for _ in range(2))
        assert_same(
            train(spread, ZeroOptimizer(spread.parameters(), cls, **options), 4),
            train(plain, cls(plain.parameters(), **options), 4),
        )

    world(size, body)


def test_each_rank_keeps_its_share_of_the_state():
    def body(rank):
        model = DistributedDataParallel(make_model())
        optimizer = ZeroOptimizer(model.parameters(), dt.optim.Adam)
        train(model, optimizer, 1)
        return (
            [] if optimizer.optim is None else [s["exp_avg"].numel() for s in optimizer.optim.state.values()]
        )

    shares = world(2, body)

    assert sorted(n for share in shares for n in share) == sorted(
        p.numel() for p in make_model().parameters()
    )
    assert max(map(sum, shares)) <= 43  # of 75, in whole parameters
    assert sum(map(bool, world(8, body))) == 4  # more ranks than parameters


def test_groups_and_schedules():
    def body(rank):
        def run(make):
            model = DistributedDataParallel(make_model())
            first, last = model.module[0].parameters(), model.module[2].parameters()
            optimizer = make([{"params": first, "lr": 0.5}, {"params": last}])
            scheduler = dt.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            return train(model, optimizer, 4, scheduler), [g["lr"] for g in optimizer.param_groups]

        ours = run(lambda groups: ZeroOptimizer(groups, dt.optim.SGD, lr=0.1, momentum=0.9))
        theirs = run(lambda groups: dt.optim.SGD(groups, lr=0.1, momentum=0.9))
        assert_same(ours[0], theirs[0])
        assert ours[1] == theirs[1]

    world(2, body)


def test_a_group_that_comes_later():
    def body(rank):
        def run(make):
            model = DistributedDataParallel(make_model())
            optimizer = make(model.module[0].parameters())
            before = train(model, optimizer, 2)
            optimizer.add_param_group({"params": list(model.module[2].parameters()), "lr": 0.3})
            return before + train(model, optimizer, 2)

        assert_same(
            run(lambda params: ZeroOptimizer(params, dt.optim.Adam, lr=0.01)),
            run(lambda params: dt.optim.Adam(params, lr=0.01)),
        )

    world(3, body)


@pytest.mark.parametrize("to", [0, 1])
def test_the_consolidated_state_is_that_of_the_plain_optimizer_and_either_continues_the_other(to):
    def body(rank):
        plain, spread, again = (DistributedDataParallel(make_model()) for _ in range(3))
        a = dt.optim.Adam(plain.parameters(), lr=0.01)
        b = ZeroOptimizer(spread.parameters(), dt.optim.Adam, lr=0.01)
        train(plain, a, 3)
        train(spread, b, 3)
        b.consolidate_state_dict(to)
        if rank != to:
            with pytest.raises(RuntimeError, match=r"spread over 2 ranks; call consolidate_state_dict"):
                b.state_dict()
        else:
            ours, theirs = b.state_dict(), a.state_dict()
            assert ours["param_groups"] == theirs["param_groups"]
            assert ours["state"].keys() == theirs["state"].keys()
            for i, state in theirs["state"].items():
                assert ours["state"][i].keys() == state.keys()
                for k, v in state.items():
                    np.testing.assert_array_equal(np.asarray(ours["state"][i][k]), np.asarray(v))

        c = ZeroOptimizer(again.parameters(), dt.optim.Adam, lr=7.0)
        c.load_state_dict(copy.deepcopy(a.state_dict()))
        again.load_state_dict(plain.state_dict())
        assert_same(train(again, c, 2), train(plain, a, 2))

    world(2, body)


def test_a_closure_is_called_once():
    def body(rank):
        model = DistributedDataParallel(make_model())
        optimizer = ZeroOptimizer(model.parameters(), dt.optim.SGD, lr=0.1)
        calls = []

        def closure():
            calls.append(1)
            optimizer.zero_grad()
            loss = model(dt.tensor(X)).square().mean()
            loss.backward()
            return loss

        before = model.module[0].weight.detach().clone()
        loss = optimizer.step(closure)
        assert loss.item() > 0
        assert len(calls) == 1
        assert not dt.equal(before, model.module[0].weight)

    world(2, body)


def test_what_is_refused():
    def body(rank):
        params = list(make_model().parameters())
        with pytest.raises(ValueError, match="LBFGS looks at all parameters at once"):
            ZeroOptimizer(params, dt.optim.LBFGS)
        with pytest.raises(NotImplementedError, match="overlap_with_ddp"):
            ZeroOptimizer(params, dt.optim.SGD, overlap_with_ddp=True)
        with pytest.raises(CollectiveMismatch):
            ZeroOptimizer(params[: 1 + rank], dt.optim.SGD)
        optimizer = ZeroOptimizer(params, dt.optim.SGD, lr=0.1)
        params[0].sum().backward()
        optimizer.step()  # nobody averaged the gradient

    with pytest.raises(RankFailed, match="UnwrappedModel"):
        world(2, body)


def test_pytorchs_name_is_the_same():
    assert dt.distributed.optim.ZeroRedundancyOptimizer is ZeroOptimizer
