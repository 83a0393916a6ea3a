"""Trains one model in several parallel ways; rank 0 prints a line for each: its name, a hash of all it computed."""

import hashlib
from functools import partial

import numpy as np

import disttrain as dt
from disttrain import nn
from disttrain.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from disttrain.distributed.fsdp.wrap import ModuleWrapPolicy
from disttrain.nn.parallel import DistributedDataParallel
from disttrain.parallel.zero import ZeroOptimizer

TOKENS, WIDTH = 50, 48
POLICY = ModuleWrapPolicy({nn.TransformerEncoderLayer, nn.LSTM})


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        self.layers = nn.ModuleList(
            [nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.1, batch_first=True) for _ in range(3)]
        )
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.head = nn.Linear(WIDTH, TOKENS, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        x, _ = self.lstm(x)
        return self.head(self.norm(x.transpose(1, 2)).transpose(1, 2))


def in_place(model, **options):
    for layer in model.layers:
        fully_shard(layer)
    return fully_shard(model, reshard_after_forward=False, **options)


WRAPS = {
    "plain": DistributedDataParallel,
    "whole": FullyShardedDataParallel,
    "by layer": partial(FullyShardedDataParallel, auto_wrap_policy=POLICY),
    "gradients": partial(
        FullyShardedDataParallel,
        auto_wrap_policy=POLICY,
        sharding_strategy=ShardingStrategy.SHARD_GRAD_OP,
    ),
    "in place": in_place,
}


def train(wrap, stage=0):
    dt.manual_seed(1)
    model = wrap(Model(), nonfinite="skip")
    if stage:
        optimizer = ZeroOptimizer(model.parameters(), dt.optim.AdamW, stage=stage, lr=1e-2)
    else:
        optimizer = dt.optim.AdamW(model.parameters(), lr=1e-2)
    data = dt.data.TensorDataset(dt.tensor(np.random.default_rng(0).integers(0, TOKENS, (37, 9))))
    seen = hashlib.sha256()
    for epoch in range(2):
        for i, (tokens,) in enumerate(dt.data.DataLoader(data, batch_size=3, shuffle=True)):
            optimizer.zero_grad()
            logits = model(tokens[:, :-1])
            if (epoch, i, dt.distributed.get_rank()) == (1, 1, 1):
                logits.register_hook(lambda g: g * float("nan"))  # the step is left out on all ranks
            loss = nn.functional.cross_entropy(logits.reshape(-1, TOKENS), tokens[:, 1:].reshape(-1))
            loss.backward()
            seen.update(nn.utils.clip_grad_norm_(model.parameters(), 0.5).numpy().tobytes())
            optimizer.step()
            total = loss.detach() * len(tokens) if len(tokens) else dt.zeros(())
            dt.distributed.all_reduce(total)
            seen.update(total.numpy().tobytes())
    for value in model.state_dict().values():
        if not value.isfinite().all():
            raise SystemExit("a step that is not finite was made")
        seen.update(value.numpy().tobytes())
    return seen.hexdigest()


RUNS = {name: (wrap, 0) for name, wrap in WRAPS.items()}
RUNS |= {f"ZeRO {stage}": (DistributedDataParallel, stage) for stage in (1, 2)}
for name, run in RUNS.items():
    digest = train(*run)
    if dt.distributed.get_rank() == 0:
        print(name, digest, flush=True)
