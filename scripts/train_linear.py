"""Fit a line to noisy points of y = 3 x + 2.

python scripts/train_linear.py                      one process
disttrain launch -n 2 scripts/train_linear.py       two, each with half of every batch
disttrain debug -n 2 scripts/train_linear.py        two ranks as threads of one process
"""

import argparse

import disttrain as dt
from disttrain import nn
from disttrain.data import DataLoader, TensorDataset
from disttrain.nn.parallel import DistributedDataParallel


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.1)
    args = parser.parse_args()

    dt.manual_seed(0)
    points = dt.Generator().manual_seed(1)  # a stream of its own, so that all ranks see the same points
    x = dt.rand(256, 1, generator=points) * 2 - 1
    y = 3 * x + 2 + 0.1 * dt.randn(256, 1, generator=points)
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)

    model = DistributedDataParallel(nn.Linear(1, 1))
    optimizer = dt.optim.SGD(model.parameters(), lr=args.lr)
    loss_fn = nn.MSELoss()

    for epoch in range(args.epochs):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), targets)
            loss.backward()
            optimizer.step()
        if dt.distributed.get_rank() == 0 and (epoch + 1) % 5 == 0:
            print(f"epoch {epoch + 1:3d}  loss {loss.item():.4f}")

    if dt.distributed.get_rank() == 0:
        line = model.module
        print(f"y = {line.weight.item():.3f} x + {line.bias.item():.3f}")


if __name__ == "__main__":
    main()
