"""``disttrain warmup``: compile the CPU kernels of usual networks ahead of the first run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click

from disttrain import nn, optim
from disttrain.functions.random import rand, randint
from disttrain.kernels import jit
from disttrain.nn import functional as F
from disttrain.tensors import Tensor


def _mlp() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 10)), rand(64, 784)


def _cnn() -> tuple[nn.Module, Tensor]:
    layers = nn.Sequential(
        nn.Conv2d(1, 16, 5),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.Conv2d(32, 16, 1),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(144, 10),
    )
    return layers, rand(32, 1, 28, 28)


def _images() -> tuple[nn.Module, Tensor]:
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    return layers, rand(8, 3, 32, 32)


class _Transformer(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(64, 64)
        self.layer = nn.TransformerEncoderLayer(64, 2, 128, 0.1, "gelu", batch_first=True, norm_first=True)
        self.head = nn.Linear(64, 10)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if self.causal else None
        return self.head(self.layer(self.tokens(x), mask, is_causal=self.causal).mean(1))  # type: ignore[no-any-return]


class _Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.rnn = kind(64, 48, 2)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][-1])  # type: ignore[no-any-return]


_NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "MLP": _mlp,
    "CNN": _cnn,
    "images": _images,
    "transformer": lambda: (_Transformer(False), randint(0, 64, (4, 32))),
    "causal transformer": lambda: (_Transformer(True), randint(0, 64, (4, 32))),
    "LSTM": lambda: (_Recurrent(nn.LSTM), rand(12, 8, 64)),
    "GRU": lambda: (_Recurrent(nn.GRU), rand(12, 8, 64)),
}
_OPTIMIZERS: tuple[Callable[[Any], optim.Optimizer], ...] = (
    lambda params: optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=1e-4),
    lambda params: optim.Adam(params),
    lambda params: optim.AdamW(params),
)


def run(say: Callable[[str], None]) -> list[str]:
    """Make steps of small networks of all usual kinds; return the names of the kernels that had to be compiled.

    Args:
        say: is told how far it is.
    """
    before = len(jit.compiled)
    for name, make in _NETWORKS.items():
        known, start = len(jit.compiled), time.perf_counter()
        model, x = make()
        target = randint(0, 10, (len(model(x)),))
        for make_optimizer in _OPTIMIZERS if name == "MLP" else _OPTIMIZERS[:1]:
            optimizer = make_optimizer(model.parameters())
            F.cross_entropy(model(x), target).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        model(x)
        say(f"{name}: {len(jit.compiled) - known} kernels, {time.perf_counter() - start:.1f} s")
    return jit.compiled[before:]


@click.command()
def warmup() -> None:
    """Compile the CPU kernels of usual networks ahead of the first run.

    They are kept on disk for this kind of processor, and ranks that begin together compile nothing twice.
    """
    start = time.perf_counter()
    made = run(click.echo)
    click.echo(
        f"compiled {len(made)} kernels in {time.perf_counter() - start:.1f} s; later runs load them from disk"
    )
