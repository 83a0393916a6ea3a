"""Time training steps against PyTorch, on the same weights and batches, in one run.

    python scripts/bench_training.py --against torch

Rows: an MLP 784-1024-1024-10 (batch 128, Adam) and LeNet on 32x32 (batch 32, SGD), alone and on 2 ranks (against
DistributedDataParallel over gloo), one thread per rank. Both sides start from the same weights, see the same
batches and must report the same losses, or the row is an error. The two sides take turns; figures are medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

THREADS = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}
BATCHES = 8  # different ones, in turn


def mlp(nn):
    return nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )


def lenet(nn):
    return nn.Sequential(
        nn.Conv2d(1, 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


MODELS = {
    "MLP 784-1024-1024-10, batch 128, Adam": (mlp, (128, 784), "Adam", {"lr": 1e-3}),
    "LeNet 32x32, batch 32, SGD": (lenet, (32, 1, 32, 32), "SGD", {"lr": 1e-2, "momentum": 0.9}),
}


def arrays_for(row, rank):
    """Return the weights and this rank's batches: the same on both sides."""
    import disttrain as dt

    build, shape, _, _ = MODELS[row]
    rng = np.random.default_rng(0)
    weights = {}
    for name, p in build(dt.nn).state_dict().items():
        bound = 1 / np.sqrt(np.prod(p.shape[1:]) or 1)
        weights[name] = rng.uniform(-bound, bound, p.shape).astype(np.float32)
    rng = np.random.default_rng(1 + rank)
    batches = [
        (rng.standard_normal(shape).astype(np.float32), rng.integers(0, 10, shape[0])) for _ in range(BATCHES)
    ]
    return weights, batches


def make_step(side, row, world_size, rank):
    """Return a function that makes one training step and returns the loss."""
    build, _, optimizer_name, options = MODELS[row]
    weights, batches = arrays_for(row, rank)
    if side == "torch":
        import torch as lib
        from torch.nn.parallel import DistributedDataParallel

        lib.set_num_threads(1)
    else:
        import disttrain as lib
        from disttrain.nn.parallel import DistributedDataParallel
    model = build(lib.nn)
    model.load_state_dict({k: lib.tensor(v) for k, v in weights.items()})
    if world_size > 1:
        lib.distributed.init_process_group("gloo")
        model = DistributedDataParallel(model)
    optimizer = getattr(lib.optim, optimizer_name)(model.parameters(), **options)
    data = [(lib.tensor(x), lib.tensor(y)) for x, y in batches]
    loss_fn = lib.nn.CrossEntropyLoss()
    count = 0

    def step():
        nonlocal count
        x, y = data[count % BATCHES]
        count += 1
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def worker(side, row, world_size, steps, turns_at):
    """Make ``steps`` steps whenever a line comes in on stdin (rank 0 is asked; a file tells the others)."""
    rank = int(os.environ.get("RANK", "0"))
    step = make_step(side, row, world_size, rank)
    losses = [step().item() for _ in range(10)]
    turn = 0
    while True:
        go = Path(turns_at, f"{side}-{turn}")
        while not go.exists():
            time.sleep(0.002)
        text = go.read_text()
        if text == "stop":
            return
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            loss = step()
            times.append(time.perf_counter() - start)
        losses.append(loss.item())
        if rank == 0:
            result = Path(turns_at, f"{side}-{turn}.result")
            result.with_suffix(".part").write_text(json.dumps({"times": times, "losses": losses}))
            result.with_suffix(".part").rename(result)
        turn += 1


def start(side, row, world_size, steps, turns_at):
    me = [str(Path(__file__).resolve()), "--worker", side, row, str(world_size), str(steps), turns_at]
    env = {**os.environ, **THREADS}
    if world_size == 1:
        command = [sys.executable, *me]
    elif side == "torch":
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={world_size}",
            *me,
        ]
    else:
        command = [sys.executable, "-m", "disttrain", "launch", "-n", str(world_size), *me]
    return subprocess.Popen(command, env=env)


def measure(row, world_size, sides, steps, turns):
    """Return the median seconds of a step and the losses of each side, which take turns."""
    seconds = {side: [] for side in sides}
    losses = {}
    with tempfile.TemporaryDirectory() as turns_at:
        workers = {side: start(side, row, world_size, steps, turns_at) for side in sides}
        try:
            for turn in range(turns):
                for side in sides:
                    tell(turns_at, side, turn, "go")
                    result = Path(turns_at, f"{side}-{turn}.result")
                    deadline = time.monotonic() + 120
                    while not result.exists():
                        if workers[side].poll() is not None or time.monotonic() > deadline:
                            raise RuntimeError(f"{side} failed at {row!r} on {world_size} ranks")
                        time.sleep(0.002)
                    report = json.loads(result.read_text())
                    losses[side] = report["losses"]
                    if turn:  # the first one warms up
                        seconds[side].append(statistics.median(report["times"]))
            for side in sides:
                tell(turns_at, side, turns, "stop")
                workers[side].wait(30)
        finally:
            for process in workers.values():
                if process.poll() is None:
                    process.terminate()
                    process.wait(30)
    return {side: statistics.median(s) for side, s in seconds.items()}, losses


def tell(turns_at, side, turn, text):
    path = Path(turns_at, f"{side}-{turn}")
    path.with_suffix(".part").write_text(text)
    path.with_suffix(".part").rename(path)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", choices=["torch"], help="measure this peer too, and print the ratio")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--steps", type=int, default=30, help="steps in one turn")
    parser.add_argument("--turns", type=int, default=9, help="turns of each side; the first is not counted")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        side, row, world_size, steps, turns_at = args.worker
        return worker(side, row, int(world_size), int(steps), turns_at)

    sides = ["disttrain"] + ([args.against] if args.against else [])
    print(
        f"{'model':40s} ranks " + " ".join(f"{s:>12s}" for s in sides) + ("   ratio" if args.against else "")
    )
    wrong = 0
    for row in MODELS:
        for world_size in args.ranks:
            seconds, losses = measure(row, world_size, sides, args.steps, args.turns)
            line = f"{row:40s} {world_size:5d} " + " ".join(f"{seconds[s] * 1e3:9.2f} ms" for s in sides)
            if args.against:
                line += f"   {seconds[args.against] / seconds['disttrain']:5.2f}"
                if not np.allclose(losses["disttrain"][:10], losses[args.against][:10], rtol=1e-4):
                    wrong += 1
                    line += (
                        "   ERROR: the losses differ: "
                        + ", ".join(f"{s} {losses[s][9]:.6f}" for s in sides)
                        + " at step 10"
                    )
            print(line, flush=True)
    if args.against:
        print(
            f"ratio: {args.against}'s time / disttrain's; above 1 disttrain is faster. One thread per rank, "
            f"medians of {args.turns - 1} turns of {args.steps} steps."
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
