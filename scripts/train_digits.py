"""Learn to read handwritten digits: 1,797 real ones of the UCI set, 8x8 pixels.

python scripts/train_digits.py                                   one process
disttrain launch -n 2 scripts/train_digits.py                    two processes
disttrain launch --ranks 4 -n 2 scripts/train_digits.py          four ranks on two processes: the same bits
disttrain debug -n 4 scripts/train_digits.py                     ... as on any number of them

With --checkpoints DIR it goes on where it was, whatever stopped it, with the same losses to the last bit:

disttrain launch -n 2 --max-restarts 3 scripts/train_digits.py --checkpoints run
"""

import argparse

import disttrain as dt
import disttrain.nn.functional as F
from disttrain import nn
from disttrain.data import DataLoader
from disttrain.data.datasets import Digits
from disttrain.nn.parallel import DistributedDataParallel


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10)
        )

    def forward(self, x: dt.Tensor) -> dt.Tensor:
        return self.layers(x)


class CNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(32 * 2 * 2, 10)

    def forward(self, x: dt.Tensor) -> dt.Tensor:
        return self.head(self.dropout(self.features(x).flatten(1)))


def evaluate(model: nn.Module, loader: DataLoader) -> float:
    """Return the share of right answers over the samples of all ranks."""
    model.eval()
    counts = dt.zeros(2, dtype=dt.int64)
    with dt.no_grad():
        for images, labels in loader:
            counts += dt.tensor([int((model(images).argmax(1) == labels).sum()), len(labels)])
    dt.distributed.all_reduce(counts)
    right, seen = counts.tolist()
    return right / seen


def show_progress(epoch: int, epochs: int, done: int, steps: int, loss: float) -> None:
    width = 30
    filled = width * done // steps
    bar = "━" * filled + " " * (width - filled)
    print(f"\repoch {epoch:2d}/{epochs} {bar} loss {loss:.4f}", end="\n" if done == steps else "", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=["mlp", "cnn"], default="cnn")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=32, help="samples of one step of one rank")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes that load data, per rank")
    parser.add_argument("--losses", action="store_true", help="print the loss of every step, exactly")
    parser.add_argument("--save", metavar="FILE", help="write the trained state dict")
    parser.add_argument(
        "--checkpoints", metavar="DIR", help="go on from the latest there, and write new ones"
    )
    parser.add_argument("--every", type=int, default=20, help="steps from one checkpoint to the next")
    args = parser.parse_args()

    dt.distributed.init_process_group()
    first = dt.distributed.get_rank() == 0
    dt.manual_seed(args.seed)
    train = DataLoader(Digits(train=True), batch_size=args.batch_size, shuffle=True, num_workers=args.workers)
    test = DataLoader(Digits(train=False), batch_size=256)

    model = DistributedDataParallel(CNN() if args.model == "cnn" else MLP())
    optimizer = dt.optim.Adam(model.parameters(), lr=args.lr)
    scheduler = dt.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.epochs)

    run = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": train}
    step = 0

    def save() -> None:
        dt.checkpoint.save(args.checkpoints, step=step, **run)

    if args.checkpoints:
        last = dt.checkpoint.load(args.checkpoints, **run)
        step = last.step if last is not None else 0
        dt.on_save(save)

    for epoch in range(train.epoch + 1, args.epochs + 1):
        model.train()
        for images, labels in train:
            step += 1
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            if args.checkpoints and step % args.every == 0:
                save()
            in_epoch = step - (epoch - 1) * len(train)
            if first and args.losses:
                print(f"{epoch} {in_epoch} {loss.item().hex()}")
            elif first:
                show_progress(epoch, args.epochs, in_epoch, len(train), loss.item())
        scheduler.step()

    accuracy = evaluate(model, test)
    if first:
        print(f"accuracy on {len(test.dataset)} held-out digits: {accuracy:.2%}")
        if args.save:
            dt.save(model.module.state_dict(), args.save)
    dt.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
