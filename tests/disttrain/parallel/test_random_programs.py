"""Random models, trained by random programs, sharded at random: the losses, norms and parameters of plain averaging."""

import random
from contextlib import contextmanager

import numpy as np
import pytest

import disttrain as dt
from disttrain import nn
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.local import run_ranks
from disttrain.distributed.fsdp import (
    BackwardPrefetch,
    FSDPModule,
    FullyShardedDataParallel,
    ShardingStrategy,
    fully_shard,
)
from disttrain.distributed.fsdp.wrap import CustomPolicy
from disttrain.nn.parallel import DistributedDataParallel
from disttrain.parallel.zero import ZeroOptimizer

WAYS = ["wrapped", "wrapped, gathered late", "wrapped, kept", "in place", "ZeRO 1", "ZeRO 2"]
OPTIMIZERS = ["SGD", "Adam", "AdamW", "RMSprop", "ASGD", "Lion"]


class Tree(nn.Module):
    """Calls its children in a random order, some often and some never; layers may belong to several trees."""

    def __init__(self, rng, depth, pool):
        super().__init__()
        self.layer = nn.Linear(6, 6) if not pool or rng.random() < 0.8 else rng.choice(pool)
        if rng.random() < 0.3:
            self.layer = nn.Sequential(self.layer, nn.BatchNorm1d(6))
        else:
            pool.append(self.layer)
        children = rng.randint(0, 2) if depth else 0
        self.inside = nn.ModuleList([Tree(rng, depth - 1, pool) for _ in range(children)])
        self.calls = [rng.randrange(children) for _ in range(rng.randint(0, 3))] if children else []
        self.own = nn.Parameter(dt.zeros(rng.randint(1, 9)), requires_grad=rng.random() < 0.5)
        self.uses_own = rng.random() < 0.5
        if rng.random() < 0.2:
            for p in self.layer.parameters():
                p.requires_grad_(False)
        self.layer_first = rng.random() < 0.5

    def forward(self, x):
        if self.layer_first:
            x = dt.tanh(self.layer(x))
        for i in self.calls:
            x = x + self.inside[i](x)
        if not self.layer_first:
            x = dt.tanh(self.layer(x))
        return x * (1 + self.own.sum()) if self.uses_own else x


class Program:
    """What a seed says."""

    def __init__(self, seed):
        rng = random.Random(seed)
        self.size = rng.choice([2, 3, 4, 5])
        self.kind = rng.choice([dt.float64, dt.float32, dt.float16])
        self.way = rng.choice(WAYS)
        self.optimizer = getattr(dt.optim, rng.choice(OPTIMIZERS))
        self.seeds = [rng.random() for _ in range(3)]

    def model(self):
        dt.manual_seed(0)
        model = Tree(random.Random(self.seeds[0]), 3, [])
        model.own.requires_grad_()
        model.uses_own = True
        return model.to(self.kind)

    def shard(self, model):
        if self.way.startswith("ZeRO"):
            return DistributedDataParallel(model)
        rng = random.Random(self.seeds[1])
        units = [
            m
            for m in model.modules()
            if not isinstance(m, nn.ModuleList) and m is not model and rng.random() < 0.6
        ]
        if self.way == "in place":
            for unit in reversed(units):  # the inner ones first
                fully_shard(unit, reshard_after_forward=rng.random() < 0.7)
            return fully_shard(model)
        kept, late = self.way.endswith("kept"), self.way.endswith("late")
        return FullyShardedDataParallel(
            model,
            auto_wrap_policy=CustomPolicy(lambda m: m in units),
            backward_prefetch=None if late else BackwardPrefetch.BACKWARD_PRE,
            sharding_strategy=ShardingStrategy.SHARD_GRAD_OP if kept else None,
        )

    def train(self, model, rank, stage=0):
        """Return all losses and norms, and the state at the end."""
        rng = random.Random(self.seeds[2])
        params = [p for p in model.parameters() if p.requires_grad]
        if stage:
            optimizer = ZeroOptimizer(params, self.optimizer, stage=stage, lr=0.01)
        else:
            optimizer = self.optimizer(params, lr=0.01)
        seen = []

        def backward(x, weight):
            out = model(x)
            loss = (out.float() if self.kind is dt.float16 else out).square().mean()
            loss.backward(weight=weight)
            seen.append(loss.item())

        for step in range(4):
            x = np.random.default_rng((step, rank)).standard_normal((rng.randint(2, 6), 6))
            x = dt.tensor(x).to(self.kind)
            weights = [rng.randint(0, 3) for _ in range(self.size)]
            weight = weights[rank] if rng.random() < 0.5 else None
            if rng.random() < 0.3:
                with apart(model):
                    backward(x, weight)
            backward(x, weight)
            if rng.random() < 0.5:
                seen.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
            optimizer.step()
            if rng.random() < 0.8:
                optimizer.zero_grad()
            if rng.random() < 0.3:
                with dt.no_grad():
                    seen.append(float(model.eval()(x).sum()))
                model.train()
        state = {name.removeprefix("module."): t.numpy().copy() for name, t in model.state_dict().items()}
        return seen, state


@contextmanager
def apart(model):
    """Only accumulate."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(False)
        yield
        model.set_requires_gradient_sync(True)
    else:
        with model.no_sync():
            yield


@pytest.mark.parametrize("seed", range(40))
def test_random_programs(seed):
    program = Program(seed)

    def body(rank):
        expected, plain = program.train(DistributedDataParallel(program.model()), rank)
        stage = int(program.way[-1]) if program.way.startswith("ZeRO") else 0
        seen, state = program.train(program.shard(program.model()), rank, stage)
        np.testing.assert_array_equal(seen, expected)
        assert list(state) == list(plain)
        for name, value in plain.items():
            np.testing.assert_array_equal(state[name], value, err_msg=name)

    env = WorkerEnv(
        world_size=program.size, hosted=program.size, local_world_size=program.size, fixed_order=True
    )
    run_ranks(env, body)
