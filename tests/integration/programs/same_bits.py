"""Trains a CNN, a transformer and an LSTM for two epochs each; prints the loss of each step and a hash of all state.

    same_bits.py [--epochs FIRST LAST] [--save DIR] [--resume DIR] [--autocast]

With Dropout, BatchNorm over a rank and over all ranks, clipping, a scheduler, and an uneven last batch.
"""

import argparse
import hashlib

import disttrain as dt
from disttrain import nn
from disttrain.data import DataLoader, TensorDataset
from disttrain.nn.parallel import DistributedDataParallel


class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 5), nn.SyncBatchNorm(6), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 12, 5, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.AvgPool2d(2),
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(192, 10),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(17, 24)
        layer = nn.TransformerEncoderLayer(24, 4, 48, dropout=0.1, batch_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.layers(self.embed(x), mask=mask, is_causal=True)[:, -1])


class LSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(6, 20, num_layers=2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(20, 10)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def samples(name):
    """Return 75 samples: not a multiple of four ranks' batches."""
    g = dt.Generator().manual_seed(1)
    x = {
        "cnn": lambda: dt.randn(75, 1, 28, 28, generator=g),
        "transformer": lambda: dt.randint(0, 17, (75, 12), generator=g),
        "lstm": lambda: dt.randn(75, 9, 6, generator=g),
    }[name]()
    return TensorDataset(x, dt.randint(0, 10, (75,), generator=g))


def hashed(model, optimizer):
    state = hashlib.sha256()
    of_parameters = optimizer.state_dict()["state"].values()
    for t in [*model.state_dict().values(), *(v for values in of_parameters for v in values.values())]:
        state.update(t.detach().numpy().tobytes())
    return state.hexdigest()[:16]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, nargs=2, default=[0, 2])
    parser.add_argument("--save")
    parser.add_argument("--resume")
    parser.add_argument("--autocast", action="store_true", help="forward in mixed precision, with bfloat16")
    args = parser.parse_args()
    rank = dt.distributed.get_rank()
    for name, build in {"cnn": CNN, "transformer": Transformer, "lstm": LSTM}.items():
        dt.manual_seed(3)
        model = DistributedDataParallel(build())
        optimizer = dt.optim.AdamW(model.parameters(), lr=1e-2)
        scheduler = dt.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
        if args.resume:
            saved = dt.load(f"{args.resume}/{name}.pt")
            model.module.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            scheduler.load_state_dict(saved["scheduler"])
            dt.set_rng_state(dt.load(f"{args.resume}/{name}-rng-{rank}.pt"))
        loader = DataLoader(samples(name), batch_size=8, shuffle=True)
        for epoch in range(*args.epochs):
            loader.set_epoch(epoch)
            for x, y in loader:
                optimizer.zero_grad()
                with dt.autocast("cpu", enabled=args.autocast):
                    loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                scheduler.step()
                if rank == 0:
                    print(f"={name} {epoch} {float(loss).hex()} {float(norm).hex()}", flush=True)
        if rank == 0:
            print(f"={name} {hashed(model.module, optimizer)}", flush=True)
        if args.save:
            if rank == 0:
                state = {"model": model.module, "optimizer": optimizer, "scheduler": scheduler}
                dt.save({k: v.state_dict() for k, v in state.items()}, f"{args.save}/{name}.pt")
            dt.save(dt.get_rng_state(), f"{args.save}/{name}-rng-{rank}.pt")


if __name__ == "__main__":
    main()
