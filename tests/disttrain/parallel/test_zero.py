"""An optimizer whose state is spread over the ranks: the parameters of the plain one, to the last bit."""

import copy

import numpy as np
import pytest

import disttrain as dt
from disttrain.collectives import CollectiveMismatch, PeerFailed, RankFailed
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.local import run_ranks
from disttrain.errors import UnwrappedModel
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
    "ASGD": {"lr": 0.01},
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


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_are_those_of_the_plain_optimizer(name, size, stage):
    if name == "LAMB" and stage == 2:
        name = "ASGD"  # which treats each element alike

    def body(rank):
        cls, options = getattr(dt.optim, name), OPTIMIZERS[name]
        plain, spread = (DistributedDataParallel(make_model()) for _ in range(2))
        assert_same(
            train(spread, ZeroOptimizer(spread.parameters(), cls, stage=stage, **options), 4),
            train(plain, cls(plain.parameters(), **options), 4),
        )

    world(size, body)


def in_halves(make, steps=3):
    """Train a model in bfloat16 with an optimizer that ``make`` has set up; return the parameters, and that."""
    model = DistributedDataParallel(make_model().to(dt.bfloat16))
    optimizer = make(model.parameters())
    return train_halves(model, optimizer, steps), model, optimizer


def train_halves(model, optimizer, steps):
    rank, size, seen = dt.distributed.get_rank(), dt.distributed.get_world_size(), []
    rows = slice(rank * 16 // size, (rank + 1) * 16 // size)
    for _ in range(steps):
        optimizer.zero_grad()
        (
            (model(dt.tensor(X[rows]).bfloat16()) - dt.tensor(Y[rows]).bfloat16()) ** 2
        ).float().mean().backward()
        optimizer.step()
        seen.append([p.detach().float().numpy() for p in model.parameters()])
    return seen


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_masters_are_kept_where_their_parameters_are_stepped(size, stage):
    def body(rank):
        def with_masters(optimizer):
            optimizer.keep_masters()
            return optimizer

        plain, _, a = in_halves(lambda params: with_masters(dt.optim.Adam(params, lr=1e-3)))
        ours, model, b = in_halves(
            lambda params: with_masters(ZeroOptimizer(params, dt.optim.Adam, stage=stage, lr=1e-3))
        )
        assert_same(ours, plain)
        b.consolidate_state_dict(0)
        if rank == 0:
            whole, theirs = b.state_dict(), a.state_dict()
            assert whole["param_groups"] == theirs["param_groups"]
            for i, state in theirs["state"].items():
                assert state["master"].dtype == dt.float32
                np.testing.assert_array_equal(whole["state"][i]["master"].numpy(), state["master"].numpy())
        _, other, again = in_halves(lambda params: ZeroOptimizer(params, dt.optim.Adam, stage=stage), 0)
        other.load_state_dict(model.state_dict())
        again.load_state_dict(a.state_dict())
        assert_same(train_halves(other, again, 2), train_halves(model, b, 2))

    world(size, body)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_parameters_are_rounded_at_random(size, stage):
    def body(rank):
        def run(seed, masters=False):
            def make(params):
                optimizer = ZeroOptimizer(params, dt.optim.SGD, stage=stage, lr=1e-3)
                if seed is not None:
                    optimizer.round_randomly(seed)
                if masters:
                    optimizer.keep_masters()
                return optimizer

            return in_halves(make)

        seen, _, optimizer = run(7)
        assert_same(run(7)[0], seen)
        for other in (run(8), run(None)):
            assert any((a != b).any() for a, b in zip(other[0][-1], seen[-1], strict=True))
        run(7, masters=True)
        if size == 1:

            def plain(params):
                optimizer = dt.optim.SGD(params, lr=1e-3)
                optimizer.round_randomly(7)
                return optimizer

            assert_same(in_halves(plain)[0], seen)
        assert optimizer.param_groups[0]["rounded_steps"] == 3
        return [p.tobytes() for p in seen[-1]]

    everyone = world(size, body)

    assert all(parameters == everyone[0] for parameters in everyone)


def test_what_an_optimizer_cannot_do_to_halves_is_an_error_on_all_ranks():
    class Own(dt.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

    def body(rank):
        model = DistributedDataParallel(make_model())
        for cls, name in ((dt.optim.Adagrad, "keep_masters"), (Own, "round_randomly")):
            with pytest.raises(TypeError, match=f"{cls.__name__} (cannot keep|has no round_randomly)"):
                getattr(ZeroOptimizer(model.parameters(), cls), name)()
        with pytest.raises(ValueError, match="a seed of 64 bits"):
            ZeroOptimizer(model.parameters(), dt.optim.SGD, lr=0.1).round_randomly(-1)

    world(8, body)


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


@pytest.mark.parametrize("stage", [1, 2])
def test_groups_and_schedules(stage):
    def body(rank):
        def run(make):
            model = DistributedDataParallel(make_model())
            first, last = model.module[0].parameters(), model.module[2].parameters()
            optimizer = make([{"params": first, "lr": 0.5}, {"params": last}])
            scheduler = dt.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            return train(model, optimizer, 4, scheduler), [g["lr"] for g in optimizer.param_groups]

        ours = run(lambda groups: ZeroOptimizer(groups, dt.optim.SGD, stage=stage, lr=0.1, momentum=0.9))
        theirs = run(lambda groups: dt.optim.SGD(groups, lr=0.1, momentum=0.9))
        assert_same(ours[0], theirs[0])
        assert ours[1] == theirs[1]

    world(2, body)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_group_that_comes_later(stage):
    def body(rank):
        def run(make):
            model = DistributedDataParallel(make_model())
            optimizer = make(model.module[0].parameters())
            before = train(model, optimizer, 2)
            optimizer.add_param_group({"params": list(model.module[2].parameters()), "lr": 0.3})
            return before + train(model, optimizer, 2)

        assert_same(
            run(lambda params: ZeroOptimizer(params, dt.optim.Adam, stage=stage, lr=0.01)),
            run(lambda params: dt.optim.Adam(params, lr=0.01)),
        )

    world(3, body)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("to", [0, 1])
def test_the_consolidated_state_is_that_of_the_plain_optimizer_and_either_continues_the_other(to, stage):
    def body(rank):
        plain, spread, again = (DistributedDataParallel(make_model()) for _ in range(3))
        a = dt.optim.Adam(plain.parameters(), lr=0.01)
        b = ZeroOptimizer(spread.parameters(), dt.optim.Adam, stage=stage, lr=0.01)
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

        c = ZeroOptimizer(again.parameters(), dt.optim.Adam, stage=3 - stage, lr=7.0)
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


def test_each_rank_keeps_its_part_of_gradients_and_state():
    def body(rank):
        model = DistributedDataParallel(make_model(), bucket_cap_mb=1e-4)
        optimizer = ZeroOptimizer(model.parameters(), dt.optim.Adam, stage=2)
        train(model, optimizer, 2)
        kept = (
            [p.grad.numel() for p in model.parameters()],
            [s["exp_avg"].numel() for s in optimizer.optim.state.values()],
        )
        optimizer.zero_grad()
        assert all(p.grad is None for p in model.parameters())
        assert all(bucket.message is None for bucket in model._buckets)  # no whole gradients
        return kept

    numbers = [p.numel() for p in make_model().parameters()]
    shares = world(3, body)
    assert [sum(parts) for parts in zip(*[grads for grads, _ in shares], strict=True)] == numbers
    for grads, state in shares:
        assert grads == state
        assert sum(grads) <= sum(numbers) / 3 + 2


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("order", [2.0, 1.0, float("inf")])
def test_clipping_sees_all_of_the_gradients(order, stage):
    def body(rank):
        def run(make):
            model = DistributedDataParallel(make_model())
            optimizer = make(model.parameters())
            norms = []
            for _ in range(3):
                optimizer.zero_grad()
                rows = slice(rank * 16 // 3, (rank + 1) * 16 // 3)
                loss = ((model(dt.tensor(X[rows])) - dt.tensor(Y[rows])) ** 2).mean()
                loss.backward(weight=rows.stop - rows.start)
                norms.append(dt.nn.utils.clip_grad_norm_(model.parameters(), 0.3, order).item())
                optimizer.step()
            return norms, [p.detach().numpy() for p in model.parameters()]

        ours = run(lambda params: ZeroOptimizer(params, dt.optim.SGD, stage=stage, lr=0.1))
        theirs = run(lambda params: dt.optim.SGD(params, lr=0.1))
        assert ours[0] == theirs[0]
        assert_same([ours[1]], [theirs[1]])

    world(3, body)


@pytest.mark.parametrize("kind", [dt.float16, dt.float64])
def test_accumulated_gradients_and_parameters_that_some_ranks_do_not_use(kind):
    class Branches(dt.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (dt.nn.Linear(5, 3) for _ in range(4))
            self.d.weight.requires_grad_(False)

        def forward(self, x):
            return self.d(dt.ones(5, dtype=x.dtype)) + (self.a(x) if dt.distributed.get_rank() else self.b(x))

    def body(rank):
        def run(make):
            dt.manual_seed(0)
            model = DistributedDataParallel(Branches().to(kind))
            optimizer = make(model.parameters())
            x, y = dt.tensor(X[rank::3]).to(kind), dt.tensor(X[rank::2]).to(kind)
            for step in range(4):
                with model.no_sync():
                    model(x).square().mean().backward(weight=1 + rank)
                model(y).square().mean().backward(weight=2)
                optimizer.step()
                if step != 1:  # else the next gradients are added to the average
                    optimizer.zero_grad()
            return [p.detach().numpy() for p in model.parameters()]

        ours = run(lambda params: ZeroOptimizer(params, dt.optim.SGD, stage=2, lr=0.1))
        theirs = run(lambda params: dt.optim.SGD(params, lr=0.1))
        assert_same([ours], [theirs])

    world(3, body)


def test_a_step_that_cannot_be_made_leaves_the_next_ones_right():
    def body(rank):
        def run(stage, fails):
            model = DistributedDataParallel(make_model(), nonfinite="skip")
            optimizer = ZeroOptimizer(model.parameters(), dt.optim.Adam, stage=stage, lr=0.1)
            train(model, optimizer, 1)
            if fails:
                optimizer.zero_grad()
                x = dt.tensor(X[:4] * (np.nan if rank else 1))
                model(x).mean().backward()
                assert all(p.grad is None for p in model.parameters())
                optimizer.zero_grad()
                out = model(dt.tensor(X[:4]))

                def fail(_):
                    raise ValueError("planted")

                if rank:
                    model.module[0].weight.register_hook(fail)
                with pytest.raises(ValueError if rank else PeerFailed, match="planted"):
                    out.mean().backward()
                model.module[0].weight._hooks.popitem() if rank else None
            return train(model, optimizer, 2)

        assert_same(run(2, True), run(1, False))

    world(2, body)


def test_what_stage_2_refuses():
    def body(rank):
        params = list(make_model().parameters())
        with pytest.raises(ValueError, match=r"stage must be 1 or 2, got 3; .* FullyShardedDataParallel"):
            ZeroOptimizer(params, dt.optim.SGD, stage=3)
        with pytest.raises(ValueError, match="DistributedDataParallel over the same ranks"):
            ZeroOptimizer(params, dt.optim.SGD, stage=2)
        model = DistributedDataParallel(make_model())
        with pytest.raises(ValueError, match="LAMB looks at whole parameters"):
            ZeroOptimizer(model.parameters(), dt.optim.LAMB, stage=2)
        optimizer = ZeroOptimizer(model.parameters(), dt.optim.SGD, stage=2, lr=0.1)
        with pytest.raises(RuntimeError, match="needs whole ones"):
            model.register_comm_hook(None, print)
        with model.no_sync():
            model(dt.tensor(X)).mean().backward()
        with pytest.raises(UnwrappedModel, match="not this rank's part of the average"):
            optimizer.step()

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
