"""Fully sharded parameters on ranks that are threads: the losses and parameters of DistributedDataParallel."""

import copy
import gc
import tracemalloc

import numpy as np
import pytest

import disttrain as dt
from disttrain import nn
from disttrain.collectives import CollectiveMismatch, RankFailed
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.local import run_ranks
from disttrain.distributed.fsdp import (
    BackwardPrefetch,
    FSDPModule,
    FullStateDictConfig,
    FullyShardedDataParallel,
    MixedPrecision,
    OptimStateKeyType,
    ShardingStrategy,
    StateDictType,
    fully_shard,
)
from disttrain.distributed.fsdp.wrap import ModuleWrapPolicy, always_wrap_policy
from disttrain.nn.parallel import DistributedDataParallel
from disttrain.parallel.zero import ZeroOptimizer

SIZES = [1, 2, 3, 4]
X = np.random.default_rng(0).standard_normal((16, 6))
Y = np.random.default_rng(1).standard_normal((16, 6))
OPTIMIZERS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "Adam": {"lr": 0.01, "amsgrad": True},
    "RMSprop": {"lr": 0.01, "centered": True},
    "ASGD": {"lr": 0.01},
    "Rprop": {"lr": 0.01},
}


def world(size, body):
    return run_ranks(WorkerEnv(world_size=size, hosted=size, local_world_size=size, fixed_order=True), body)


class Block(nn.Module):
    """A layer of its own and a frozen one."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 11)
        self.down = nn.Linear(11, 6)
        self.down.bias.requires_grad_(False)

    def forward(self, x):
        return x + self.down(dt.tanh(self.up(self.norm(x))))


class Net(nn.Module):
    """Blocks, one of them called twice and one never, a batch norm, and a weight that two modules have."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.norm = nn.BatchNorm1d(6)
        self.unused = nn.Linear(6, 2)
        self.last = nn.Linear(6, 6)
        self.last.weight = self.first.weight

    def forward(self, x):
        x = self.first(x)
        for block in (self.blocks[0], self.blocks[1], self.blocks[0]):
            x = block(x)
        return self.last(self.norm(self.blocks[2](x)))


def make(model=Net):
    dt.manual_seed(0)
    return model().double()


def wrap_plain(model):
    return DistributedDataParallel(model)


def wrap_whole(model):
    return FullyShardedDataParallel(model)


def wrap_auto(model):
    return FullyShardedDataParallel(model, auto_wrap_policy=always_wrap_policy, backward_prefetch=None)


def wrap_kept(model):
    return FullyShardedDataParallel(
        model, auto_wrap_policy=always_wrap_policy, sharding_strategy=ShardingStrategy.SHARD_GRAD_OP
    )


def wrap_by_hand(model):
    model.blocks[0] = FullyShardedDataParallel(model.blocks[0])
    model.last = FullyShardedDataParallel(model.last)
    return FullyShardedDataParallel(model)


def wrap_in_place(model):
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


WRAPS = [wrap_whole, wrap_auto, wrap_kept, wrap_by_hand, wrap_in_place]


def state_of(model):
    return {name.removeprefix("module."): t.numpy().copy() for name, t in model.state_dict().items()}


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def rows_of(rank, size):
    return slice(rank * 16 // size, (rank + 1) * 16 // size)


def loss_of(model, rows, scale=1):
    return ((model(dt.tensor(X[rows])) - scale * dt.tensor(Y[rows])) ** 2).mean()


def step(model, optimizer, rank, size, scale=1):
    optimizer.zero_grad()
    loss = loss_of(model, rows_of(rank, size), scale)
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("wrap", WRAPS)
def test_losses_and_parameters_are_those_of_data_parallelism(wrap, size):
    def body(rank):
        def run(wrap):
            model = wrap(make())
            optimizer = dt.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
            return [step(model, optimizer, rank, size, 1 + i) for i in range(4)], state_of(model)

        losses, state = run(wrap)
        expected, plain = run(wrap_plain)
        assert losses == expected
        assert_same(state, plain)

    world(size, body)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_that_treat_each_element_alike(name):
    def body(rank):
        def run(wrap):
            model = wrap(make())
            params = [p for p in model.parameters() if p.requires_grad]
            groups = [{"params": params[:3], "lr": 0.05}, {"params": params[3:]}]
            optimizer = getattr(dt.optim, name)(groups, **OPTIMIZERS[name])
            for i in range(3):
                step(model, optimizer, rank, 3, 1 + i)
            return state_of(model)

        assert_same(run(wrap_auto), run(wrap_plain))

    world(3, body)


@pytest.mark.parametrize("kind", [dt.float16, dt.bfloat16, dt.float32])
def test_other_types(kind):
    def body(rank):
        def run(wrap):
            model = wrap(make().to(kind))
            optimizer = dt.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
            x = dt.tensor(X[rows_of(rank, 3)]).to(kind)
            for _ in range(3):
                optimizer.zero_grad()
                model(x).square().mean().backward(weight=len(x))
                optimizer.step()
            return {name: a.astype(np.float64) for name, a in state_of(model).items()}

        assert_same(run(wrap_auto), run(wrap_plain))

    world(3, body)


def test_parameters_of_several_types_in_one_unit():
    def body(rank):
        def run(wrap):
            model = make()
            model.first.float()
            model.last.bias.data = model.last.bias.data.float()
            first, last = model.first, model.last
            model.forward = lambda x: last(first(x.float())).double()
            model = wrap(model)
            optimizer = dt.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
            for i in range(3):
                step(model, optimizer, rank, 2, 1 + i)
            return state_of(model)

        assert_same(run(wrap_whole), run(wrap_plain))

    world(2, body)


@pytest.mark.parametrize("wrap", WRAPS)
def test_uneven_batches_count_in_proportion(wrap):
    cuts = [0, 7, 7, 9, 16]

    def body(rank):
        def run(wrap):
            model = wrap(make().eval())
            optimizer = dt.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
            for _ in range(2):
                optimizer.zero_grad()
                rows = slice(cuts[rank], cuts[rank + 1])
                loss_of(model, rows).backward(weight=rows.stop - rows.start)
                optimizer.step()
            return state_of(model)

        assert_same(run(wrap), run(wrap_plain))

    world(4, body)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("wrap", WRAPS)
def test_accumulated_gradients(wrap, size):
    """Under no_sync; without; over gradients that nobody has cleared; and after a pass that was thrown away."""

    def body(rank):
        parts = np.array_split(np.arange(16), 2 * size)[2 * rank : 2 * rank + 2]

        def run(wrap):
            model = wrap(make())
            optimizer = dt.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)

            def accumulate(*weights):
                if isinstance(model, FSDPModule):
                    model.set_requires_gradient_sync(False)
                    loss_of(model, parts[0]).backward(weight=weights[0] if weights else None)
                    model.set_requires_gradient_sync(True)
                else:
                    with model.no_sync():
                        loss_of(model, parts[0]).backward(weight=weights[0] if weights else None)
                loss_of(model, parts[1], 2).backward(weight=weights[1] if weights else None)

            accumulate()
            optimizer.step()
            optimizer.zero_grad()
            accumulate(1 + rank, 3 - rank)
            optimizer.step()  # and do not clear
            loss_of(model, parts[0]).backward()
            loss_of(model, parts[1]).backward()
            optimizer.step()
            accumulate()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            (loss_of(model, parts[0]) + loss_of(model, parts[1])).backward()
            optimizer.step()
            return state_of(model)

        assert_same(run(wrap), run(wrap_plain))

    world(size, body)


def test_whether_a_backward_averages_is_said_by_its_forward():
    def body(rank):
        def run(wrap):
            model = wrap(make())
            optimizer = dt.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
            with model.no_sync():
                loss = loss_of(model, rows_of(rank, 2))
            loss.backward()
            loss = loss_of(model, rows_of(rank, 2), 2)
            with model.no_sync():
                loss.backward()
            optimizer.step()
            return state_of(model)

        assert_same(run(wrap_auto), run(wrap_plain))

    world(2, body)


def test_a_step_after_no_sync_alone_is_refused():
    def body(rank):
        model = wrap_auto(make())
        optimizer = dt.optim.SGD(model.parameters(), lr=0.1)
        with model.no_sync():
            loss_of(model, slice(0, 4)).backward()
        optimizer.step()

    with pytest.raises(RankFailed, match=r"UnwrappedModel.*only accumulated on this rank, under no_sync"):
        world(2, body)


class Branches(nn.Module):
    """Ranks use other parameters of one unit."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        return self.a(x) if dt.distributed.get_rank() == 0 else self.b(x)


def test_parameters_that_some_ranks_or_all_did_not_use():
    def body(rank):
        def run(wrap):
            model = wrap(make(Branches))
            optimizer = dt.optim.Adam(model.parameters(), lr=0.01)
            for i in range(3):
                step(model, optimizer, rank, 3, 1 + i)
            assert [p.grad is None for p in model.parameters()] == [False] * 4 + [True] * 2
            return state_of(model)

        assert_same(run(wrap_whole), run(wrap_plain))

    world(3, body)


class Choice(nn.Module):
    """Units of which backward reaches another one on each rank."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        return self.c(a if dt.distributed.get_rank() == 0 else b)


def test_units_that_the_backward_of_some_ranks_does_not_reach():
    def body(rank):
        def run(wrap):
            model = wrap(make(Choice))
            optimizer = dt.optim.Adam(model.parameters(), lr=0.01)
            for i in range(3):
                step(model, optimizer, rank, 2, 1 + i)
            return state_of(model)

        def wrap_units(model):
            for unit in (model.a, model.b, model.c):
                fully_shard(unit)
            return fully_shard(model)

        assert_same(run(wrap_units), run(wrap_plain))

    world(2, body)


def test_modules_that_only_some_ranks_call_are_a_mismatch():
    def body(rank):
        model = make(Choice)
        for unit in (model.a, model.b, model.c):
            fully_shard(unit)
        model.forward = lambda x: model.c((model.a if dt.distributed.get_rank() == 0 else model.b)(x))
        fully_shard(model)
        loss_of(model, slice(0, 4)).backward()

    with pytest.raises(RankFailed, match="CollectiveMismatch"):
        world(2, body)


def test_a_network_of_other_layers():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 6)
            self.lstm = nn.LSTM(6, 6, batch_first=True)
            self.attention = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True)
            self.conv = nn.Conv1d(6, 6, 3, padding=1)

        def forward(self, i):
            x = self.attention(self.lstm(self.embedding(i))[0])
            return self.conv(x.transpose(1, 2))

    def body(rank):
        def run(wrap):
            model = wrap(make(Other))
            optimizer = dt.optim.Adam(model.parameters(), lr=0.01)
            tokens = dt.tensor(np.random.default_rng(rank).integers(0, 10, (3, 5)))
            for _ in range(3):
                optimizer.zero_grad()
                model(tokens).square().mean().backward()
                optimizer.step()
            return state_of(model)

        expected = run(wrap_plain)
        assert_same(run(wrap_whole), expected)
        assert_same(run(wrap_auto), expected)

    world(3, body)


class Product(dt.autograd.Function):
    """A user's own operation that keeps a parameter for its backward."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w.T, x.T @ g


class Own(nn.Linear):
    def forward(self, x):
        return Product.apply(x, self.weight) + self.bias


def test_a_function_that_keeps_a_parameter():
    def body(rank):
        def run(wrap):
            model = wrap(make(lambda: nn.Sequential(Own(6, 6), nn.Tanh(), Own(6, 6))))
            optimizer = dt.optim.Adam(model.parameters(), lr=0.01)
            return [step(model, optimizer, rank, 3) for _ in range(3)], state_of(model)

        ours, theirs = run(wrap_auto), run(wrap_plain)
        assert ours[0] == theirs[0]
        assert_same(ours[1], theirs[1])

    world(3, body)


LAYERS = {
    "linear": (lambda: nn.Linear(200, 200), (2, 200)),
    "conv": (lambda: nn.Conv2d(32, 32, 3), (1, 32, 4, 4)),
    "lstm": (lambda: nn.LSTM(60, 60), (2, 1, 60)),
    "attention": (lambda: nn.TransformerEncoderLayer(64, 4, 256, 0.0), (2, 1, 64)),
    "function": (lambda: Own(200, 200), (2, 200)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_graphs_keep_no_whole_parameters(name):
    layer, shape = LAYERS[name]

    def body(rank):
        model = nn.Sequential(layer(), nn.Identity())
        fully_shard(model[0])
        fully_shard(model)
        out = model(dt.ones(shape).requires_grad_())
        out = out[0] if isinstance(out, tuple) else out
        (unit,) = [m.__dict__["_unit"] for m in model[0].modules() if "_unit" in m.__dict__]
        assert not unit.here
        kept = sum(entry.bytes for entry in dt.memory.saved(out).entries if not entry.is_leaf)
        out.sum().backward()
        return kept, sum(4 * flat.bucket.begins[-1] for flat in unit.flats)

    for kept, whole in world(2, body):
        assert kept < whole / 4


def test_a_checkpointed_unit_is_computed_again():
    def body(rank):
        def run(wrap):
            model = make()
            blocks = list(model.blocks)
            model = wrap(model)
            inner = model if isinstance(model, FSDPModule) else model.module
            inner.forward = lambda x: inner.last(
                dt.utils.checkpoint.checkpoint(blocks[1], inner.first(x), use_reentrant=False)
            )
            optimizer = dt.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
            losses = [step(model, optimizer, rank, 2) for _ in range(3)]
            return losses, state_of(model)

        ours, theirs = run(wrap_in_place), run(wrap_plain)
        assert ours[0] == theirs[0]
        assert_same(ours[1], theirs[1])

    world(2, body)


def test_two_passes_over_one_graph_and_gradients_of_inputs():
    def body(rank):
        def run(wrap):
            model = wrap(make())
            x = dt.tensor(X[rows_of(rank, 2)]).requires_grad_()
            out = model(x).square().mean()
            (g,) = dt.autograd.grad(out, x, retain_graph=True)
            out.backward(retain_graph=True)
            out.backward()
            optimizer = dt.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
            optimizer.step()
            return {"x": g.numpy(), "x.grad": x.grad.numpy(), **state_of(model)}

        assert_same(run(wrap_auto), run(wrap_plain))

    world(2, body)


def test_a_backward_that_raises_leaves_no_trace():
    def body(rank):
        def run(wrap, fails):
            model = wrap(make().eval())
            optimizer = dt.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
            step(model, optimizer, rank, 2)
            if fails:
                optimizer.zero_grad()
                x = dt.tensor(X[:4])

                def fail(g):
                    raise ValueError("planted")

                out = model(x)
                inner = next(p for p in model.parameters() if p.requires_grad)
                handle = inner.register_hook(fail)
                with pytest.raises(ValueError, match="planted"):
                    out.mean().backward()
                handle.remove()
            step(model, optimizer, rank, 2)
            return state_of(model)

        assert_same(run(wrap_auto, True), run(wrap_plain, False))

    world(2, body)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("order", [2.0, 1.0, 3.0, float("inf"), 0.0])
def test_clipping_sees_all_of_the_gradients(order, size):
    class Large(nn.Module):
        """Parameters over many chunks of a sum of squares, some of them of one."""

        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 4099), nn.Linear(4099, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.c(self.b(self.a(x)))

    def body(rank):
        def run(wrap):
            model = wrap(make(Large))
            params = list(model.parameters())
            norms = []
            optimizer = dt.optim.SGD(params, lr=0.1)
            for _ in range(2):
                optimizer.zero_grad()
                loss_of(model, rows_of(rank, size)).backward()
                norms.append(nn.utils.get_total_norm([p.grad for p in params], order).item())
                if isinstance(model, FullyShardedDataParallel):
                    norms.append(model.clip_grad_norm_(0.1, order).item())
                else:
                    norms.append(nn.utils.clip_grad_norm_(params, 0.1, order).item())
                norms.append(nn.utils.clip_grad_norm_(params, 0.05, order).item())
                optimizer.step()
            return norms, state_of(model)

        expected = run(wrap_plain)
        for wrap in (wrap_whole, wrap_auto):
            norms, state = run(wrap)
            assert norms == expected[0]
            assert_same(state, expected[1])

    world(size, body)


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all():
    def body(rank):
        model = wrap_whole(make(Choice))
        optimizer = dt.optim.SGD(model.parameters(), lr=0.1)
        scaler = dt.amp.GradScaler("cpu", init_scale=4.0)
        scaler.scale(loss_of(model, rows_of(rank, 2))).backward()
        before = state_of(model)
        last = list(model.parameters())[-1]  # the first in memory: on rank 0
        assert (last.numel() > 0) == (rank == 0)
        if rank == 0:
            last.grad[0] = float("nan")
        scaler.step(optimizer)
        scaler.update()
        assert_same(state_of(model), before)
        return scaler.get_scale()

    assert world(2, body) == [2.0, 2.0]


@pytest.mark.parametrize("wrap", WRAPS)
def test_names_objects_and_parts(wrap):
    def body(rank):
        model = make()
        names = [name for name, _ in model.named_parameters()]
        keys = list(model.state_dict())
        buffers = [name for name, _ in model.named_buffers()]
        objects = list(model.parameters())
        numbers = [p.numel() for p in objects]
        wrapped = wrap(model)
        assert [name for name, _ in wrapped.named_parameters()] == names
        assert [name for name, _ in wrapped.named_buffers()] == buffers
        assert list(wrapped.state_dict()) == keys
        assert all(a is b for a, b in zip(wrapped.parameters(), objects, strict=True))
        assert wrapped.get_parameter("first.weight") is objects[0]
        assert wrapped.first is model.first
        with FullyShardedDataParallel.summon_full_params(wrapped):
            assert [p.numel() for p in wrapped.parameters()] == numbers
        return numbers, [p.numel() for p in wrapped.parameters()]

    results = world(3, body)
    whole = results[0][0]
    assert [sum(parts) for parts in zip(*[part for _, part in results], strict=True)] == whole
    for _, part in results:
        assert sum(part) <= sum(whole) / 3 + 2 * len(whole)


def test_whole_parameters_for_a_while():
    def body(rank):
        model = wrap_auto(make())
        summon = FullyShardedDataParallel.summon_full_params
        with summon(model):
            for p in model.parameters():
                p.data.fill_(2.0)
        with summon(model, writeback=False):
            for p in model.parameters():
                assert (p == 2).all()
                p.data.zero_()
        model.apply(lambda m: isinstance(m, nn.LayerNorm) and nn.init.constant_(m.weight, 5.0))
        assert (model.first.weight == 2).all()
        loss_of(model, slice(0, 4)).backward()
        part = model.module.first.bias.grad
        with summon(model, with_grads=True):
            g = model.module.first.bias.grad
            assert g.shape == (6,)
            g *= 3
        assert model.module.first.bias.grad is part
        with pytest.raises(NotImplementedError, match="writeback=False"), summon(model, rank0_only=True):
            pass
        return part.numpy().copy(), g.numpy() * 1, {k: v.numpy() for k, v in model.state_dict().items()}

    for part, g, state in world(2, body):
        np.testing.assert_array_equal(part, g[: len(part)] if part.size == 6 else part)
        assert (state["blocks.1.norm.weight"] == 5).all()
        assert (state["last.weight"] == 2).all()


def test_a_model_changed_in_its_forward_keeps_the_change():
    class Normed(nn.Linear):
        def forward(self, x):
            with dt.no_grad():
                self.weight /= self.weight.norm()
            return super().forward(x)

    def body(rank):
        def run(wrap):
            model = wrap(make(lambda: nn.Sequential(Normed(6, 6), nn.Linear(6, 6))))
            with dt.no_grad():
                model(dt.tensor(X))
            return state_of(model)

        assert_same(run(wrap_auto), run(wrap_plain))

    world(2, body)


# ---------------------------------------------------------------------------------------------- state dicts


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_run_goes_from_plain_to_sharded_to_plain(wrap):
    F = FullyShardedDataParallel

    def body(rank):
        def plain():
            model = DistributedDataParallel(make())
            return model, dt.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)

        model, optimizer = plain()
        for _ in range(6):
            step(model, optimizer, rank, 2)
        expected = state_of(model)

        model, optimizer = plain()
        for _ in range(2):
            step(model, optimizer, rank, 2)
        sharded = wrap(make())
        sharded_optimizer = dt.optim.Adam([p for p in sharded.parameters() if p.requires_grad], lr=7.0)
        sharded.load_state_dict(model.module.state_dict())
        F.optim_state_dict_to_load(sharded, sharded_optimizer, optimizer.state_dict(), load_directly=True)
        for _ in range(2):
            step(sharded, sharded_optimizer, rank, 2)
        named = F.optim_state_dict(sharded, sharded_optimizer)
        assert set(named["state"]) <= {name for name, _ in sharded.named_parameters()}

        again = wrap(make())  # sharded to sharded, by names
        again_optimizer = dt.optim.Adam([p for p in again.parameters() if p.requires_grad], lr=7.0)
        again.load_state_dict(sharded.state_dict())
        again_optimizer.load_state_dict(F.optim_state_dict_to_load(again, again_optimizer, named))
        step(again, again_optimizer, rank, 2)

        model, optimizer = plain()
        model.module.load_state_dict(again.state_dict())
        by_number = F.rekey_optim_state_dict(
            F.optim_state_dict(again, again_optimizer),
            OptimStateKeyType.PARAM_ID,
            again,
            optim=again_optimizer,
        )
        optimizer.load_state_dict(by_number)
        step(model, optimizer, rank, 2)
        assert_same(state_of(model), expected)

    world(2, body)


def test_states_on_rank_0_only_and_in_parts():
    F = FullyShardedDataParallel

    def body(rank):
        model = wrap_auto(make())
        optimizer = dt.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
        step(model, optimizer, rank, 3)
        whole = state_of(model)
        with F.state_dict_type(model, StateDictType.FULL_STATE_DICT, FullStateDictConfig(rank0_only=True)):
            on_one = state_of(model)
        with F.state_dict_type(model, StateDictType.SHARDED_STATE_DICT):
            parts = {k: v.clone() for k, v in model.state_dict().items()}
            of_optimizer = F.optim_state_dict(model, optimizer)
        assert F.get_state_dict_type(model).state_dict_type is StateDictType.FULL_STATE_DICT
        full = F.full_optim_state_dict(model, optimizer)
        assert bool(full) == (rank == 0)
        if rank == 0:
            assert_same(on_one, whole)
            assert full["state"]["first.weight"]["exp_avg"].shape == (6, 6)
        else:
            assert on_one == {}
        assert sum(parts[name].numel() for name, _ in model.named_parameters()) < 200

        again = wrap_auto(make())
        other = dt.optim.Adam([p for p in again.parameters() if p.requires_grad], lr=0.01)
        again.load_state_dict(parts)
        F.optim_state_dict_to_load(again, other, of_optimizer, load_directly=True)
        assert_same(state_of(again), whole)
        step(model, optimizer, rank, 3)
        step(again, other, rank, 3)
        assert_same(state_of(again), state_of(model))
        with pytest.raises(RuntimeError, match="FULL_STATE_DICT needs a FullStateDictConfig"):
            F.set_state_dict_type(
                model, StateDictType.FULL_STATE_DICT, dt.distributed.fsdp.ShardedStateDictConfig()
            )

    world(3, body)


def test_states_that_do_not_fit():
    def body(rank):
        model = wrap_auto(make())
        before = state_of(model)
        state = {k: v.clone() for k, v in model.state_dict().items()}
        state["first.weight"] = dt.zeros(5, 6)
        with pytest.raises(RuntimeError, match=r"size mismatch for first.weight: given \(5, 6\).*\(6, 6\)"):
            model.load_state_dict(state)
        del state["first.weight"]
        with pytest.raises(RuntimeError, match=r'Missing key.*"first.weight"'):
            model.load_state_dict(state)
        with pytest.raises(NotImplementedError, match="assign=True"):
            model.load_state_dict(before, assign=True)
        assert_same(state_of(model), before)
        optimizer = dt.optim.Adam(model.parameters())
        other = {"state": {}, "param_groups": [{"params": [0]}]}
        with pytest.raises(ValueError, match=r"groups of \[1\] parameters, the optimizer of"):
            FullyShardedDataParallel.optim_state_dict_to_load(model, optimizer, other)

    world(2, body)


# ---------------------------------------------------------------------------------------------- memory


def deep(width=128, layers=8):
    return nn.Sequential(*[nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(layers)])


def test_what_is_held_between_steps_is_spread_over_the_ranks():
    def train():
        model = FullyShardedDataParallel(make(lambda: deep(320)), auto_wrap_policy=always_wrap_policy)
        optimizer = dt.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            model(dt.ones(2, 320, dtype=dt.float64)).square().mean().backward()
            optimizer.step()
        return model, optimizer

    def body(rank):
        train()  # compiles
        dt.distributed.barrier()
        if rank == 0:
            gc.collect()
            tracemalloc.start()
        dt.distributed.barrier()
        model, optimizer = train()
        dt.distributed.barrier()
        if rank == 0:
            gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        dt.distributed.barrier()
        if rank == 0:
            tracemalloc.stop()
        state = sum(t.nbytes for s in optimizer.state.values() for t in s.values())
        return held, sum(p.nbytes + p.grad.nbytes for p in model.parameters()), state

    once = sum(p.nbytes for p in make(lambda: deep(320)).parameters())
    results = world(4, body)

    for _, mine, state in results:  # parameters and gradients, and Adam's two moments
        assert mine <= 2 * once / 4 * 1.05
        assert state <= 2 * once / 4 * 1.05
    assert results[0][0] <= 4 * once * 1.1  # of four ranks together; the rest is what sums are made in


def test_two_units_are_whole_at_a_time():
    unit, layers, size = 256 * 257 * 8, 12, 2
    peaks = []

    def body(rank):
        model = FullyShardedDataParallel(
            make(lambda: deep(256, layers)), auto_wrap_policy=ModuleWrapPolicy({nn.Linear})
        )
        for measured in (False, True):
            for p in model.parameters():
                p.grad = None
            dt.distributed.barrier()
            if rank == 0 and measured:
                gc.collect()
                tracemalloc.start()
            dt.distributed.barrier()
            model(dt.ones(2, 256, dtype=dt.float64)).square().mean().backward()
            dt.distributed.barrier()
        if rank == 0:
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()

    world(size, body)

    # Of each rank: two units' parameters, two units' gradients, and one gradient on its way to its place.
    assert peaks[0] <= size * 5.5 * unit
    assert layers > 2 * 5.5


def test_the_next_unit_is_on_its_way_before_it_is_needed():
    def body(rank):
        def run(prefetch):
            layers = [nn.Linear(6, 6) for _ in range(4)]
            model = nn.Sequential(*layers).double()
            events = []
            wrapped = FullyShardedDataParallel(
                model, auto_wrap_policy=always_wrap_policy, backward_prefetch=prefetch
            )
            names = {id(layer.__dict__["_unit"].flats[0]): i for i, layer in enumerate(layers)}
            for layer in layers:
                flat = layer.__dict__["_unit"].flats[0]
                start = flat.start_gather

                def gather(flat=flat, start=start):
                    if flat.whole is None:
                        events.append(("gather", names[id(flat)]))
                    start()

                flat.start_gather = gather
                layer.register_forward_pre_hook(
                    lambda *_, flat=flat: events.append(("forward", names[id(flat)]))
                )
                layer.register_full_backward_pre_hook(
                    lambda *_, flat=flat: events.append(("backward", names[id(flat)]))
                )
            for _ in range(2):
                events.clear()
                wrapped(dt.tensor(X[:4])).mean().backward()
            return events

        early = run(BackwardPrefetch.BACKWARD_PRE)
        for i in range(3):
            assert early.index(("gather", i + 1)) < early.index(("forward", i + 1))
            assert early.index(("gather", i + 1)) < early.index(("forward", i)) + 1
        last = early[early.index(("forward", 3)) :]
        late = run(None)[early.index(("forward", 3)) :]
        for i in range(3):
            assert last.index(("gather", i)) < last.index(("backward", i + 1))
            assert late.index(("gather", i)) > late.index(("backward", i + 1))

    world(2, body)


# ---------------------------------------------------------------------------------------------- refusals


def test_what_is_refused():
    def body(rank):
        for strategy in (ShardingStrategy.NO_SHARD, ShardingStrategy.HYBRID_SHARD):
            with pytest.raises(NotImplementedError, match="use FULL_SHARD or SHARD_GRAD_OP"):
                FullyShardedDataParallel(make(), sharding_strategy=strategy)
        with pytest.raises(NotImplementedError, match=r"convert the module before, with \.to\(dtype\)"):
            FullyShardedDataParallel(make(), mixed_precision=MixedPrecision(param_dtype=dt.float16))
        with pytest.raises(NotImplementedError, match="param_init_fn"):
            FullyShardedDataParallel(make(), param_init_fn=print)
        with pytest.raises(ValueError, match=r"ModuleList has no forward\(\) of its own"):
            fully_shard(make().blocks)
        model = fully_shard(make())
        with pytest.raises(ValueError, match="sharded already"):
            FullyShardedDataParallel(model)
        for name in ("LAMB", "LARS", "LBFGS"):
            with pytest.raises(ValueError, match=f"{name} looks at whole parameters"):
                getattr(dt.optim, name)(model.parameters(), lr=0.1)
        with pytest.raises(NotImplementedError, match="create_graph=True does not go through sharded"):
            loss_of(model, slice(0, 4)).backward(create_graph=True)
        model.float()
        with pytest.raises(RuntimeError, match="convert the module first, then shard it"):
            model(dt.tensor(X))

    world(2, body)


def test_copies_are_refused():
    def body(rank):
        for wrap in (wrap_auto, wrap_in_place):
            with pytest.raises(TypeError, match="cannot be copied by one; copy the module before"):
                copy.deepcopy(wrap(make()))

    world(2, body)


def test_a_part_of_the_model_alone_and_then_all_of_it():
    def body(rank):
        def run(wrap):
            model = wrap(make())
            block = getattr(model, "module", model).blocks[0]
            optimizer = dt.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
            with dt.no_grad():
                alone = block(dt.tensor(X))
            losses = [step(model, optimizer, rank, 2) for _ in range(2)]
            return {"alone": alone.numpy(), "losses": np.array(losses), **state_of(model)}

        assert_same(run(wrap_in_place), run(wrap_plain))

    world(2, body)


def test_what_averages_already_is_refused():
    def body(rank):
        model = make(Choice)
        with pytest.raises(ValueError, match="use a plain one"):
            ZeroOptimizer(fully_shard(make(Choice)).parameters(), dt.optim.SGD)
        with pytest.raises(ValueError, match="sharded module, which averages its gradients"):
            DistributedDataParallel(fully_shard(make(Choice)))
        DistributedDataParallel(model)
        with pytest.raises(ValueError, match="DistributedDataParallel averages parameters of the module"):
            FullyShardedDataParallel(model)
        with pytest.raises(
            NotImplementedError, match=r"FSDPModule.set_gradient_divide_factor .* scale the loss"
        ):
            fully_shard(make(Choice)).set_gradient_divide_factor(2)
        with pytest.raises(NotImplementedError, match="DistributedDataParallel takes communication hooks"):
            wrap_whole(make(Choice)).register_comm_hook(None, print)

    world(2, body)


def test_units_by_hand_under_fsdp2():
    def body(rank):
        model = wrap_in_place(make())
        block = model.blocks[0]
        assert isinstance(block, FSDPModule)
        assert isinstance(block, Block)
        unit = block.__dict__["_unit"]
        block.unshard()
        assert unit.here
        block.reshard()
        assert not unit.here
        block.unshard(async_op=True).wait()
        block.set_reshard_after_forward(False)
        out = loss_of(model, rows_of(rank, 2))
        assert unit.here
        assert not model.blocks[1].__dict__["_unit"].here
        out.backward()
        assert not unit.here

    world(2, body)


def test_models_that_differ_are_a_mismatch():
    def body(rank):
        FullyShardedDataParallel(nn.Linear(6, 6 + rank))

    with pytest.raises(RankFailed) as e:
        world(2, body)
    assert isinstance(e.value.__cause__, CollectiveMismatch)


def test_parameters_are_those_of_rank_0_and_ignored_ones_stay():
    def body(rank):
        dt.manual_seed(rank)
        model = make(lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)))
        with dt.no_grad():
            model[0].weight += rank
            model[1].running_mean += rank
            model[2].weight += rank
        sharded = FullyShardedDataParallel(model, ignored_modules=[model[2]])
        return {k: v.numpy() for k, v in sharded.state_dict().items()}, rank

    (first, _), (second, _) = world(2, body)
    for name in first:
        if not name.startswith("2."):
            np.testing.assert_array_equal(first[name], second[name])
    assert (second["2.weight"] != first["2.weight"]).any()


def test_pytorchs_places_are_the_same():
    fsdp = dt.distributed.fsdp
    assert fsdp.FullyShardedDataParallel is FullyShardedDataParallel
    assert fsdp.fully_sharded_data_parallel.FullyShardedDataParallel is FullyShardedDataParallel
    assert fsdp.api.ShardingStrategy is ShardingStrategy
    assert fsdp.wrap.always_wrap_policy is always_wrap_policy
    assert fsdp.sharded_grad_scaler.ShardedGradScaler is dt.amp.GradScaler
