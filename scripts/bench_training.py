"""Time training steps against PyTorch, on the same weights and batches, in one run.

    python scripts/bench_training.py --against torch

Rows: MLPs, LeNet, ResNet-20 and -18, VGG-11, a GPT, a BERT, an LSTM, a GRU and a linear regression, alone and on 2
ranks (against DistributedDataParallel over gloo), one thread per rank. Both sides start from the same weights, see
the same batches and must report the same losses, or the row is an error; "graph" is the step captured by
disttrain.graph(), whose losses must be equal to the last bit. All take turns, also one rank and two, so that what the
machine does meanwhile is the same for all; figures are medians. "scaling" is the time of a step of one rank alone over
that of a step of several ranks with as many samples each. "meeting" is the same for as many processes at once of which
each trains for itself, and waits once a step until all have made their backward: what free communication would have, as
the cores share caches and memory, and none is at all times as fast as the others.

    python scripts/bench_training.py --timeline --models GPT

shows when backward made each bucket of gradients and when its average was there.

    python scripts/bench_training.py --against torch --write docs/benchmarks.md

puts the table into that page, between the two comments that mark its place, and a plot of the ratios beside the page.
It needs matplotlib.
"""

import argparse
import contextlib
import json
import mmap
import os
import resource
import select
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
OURS = "disttrain", "graph"  # eager, and the captured step
MEETING = "meeting"  # as many processes at once: each trains eagerly for itself, and meets the others
MARKS = "<!-- begin: scripts/bench_training.py -->\n", "<!-- end: scripts/bench_training.py -->\n"


def mlp(nn):
    return nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )


def small_mlp(nn):
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def regression(nn):
    return nn.Linear(100, 1)


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


def resnet20(nn):
    class Block(nn.Module):
        def __init__(self, inner, outer, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outer)
            self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outer)
            self.relu = nn.ReLU(inplace=True)
            self.shortcut = nn.Sequential()
            if stride > 1:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)
                )

        def forward(self, x):
            out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            return self.relu(out + self.shortcut(x))

    layers = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    for inner, outer in ((16, 16), (16, 32), (32, 64)):
        layers += [
            Block(inner, outer, 1 if inner == outer else 2),
            Block(outer, outer, 1),
            Block(outer, outer, 1),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def resnet18(nn):
    class Block(nn.Module):
        def __init__(self, inner, outer, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outer)
            self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outer)
            self.shortcut = nn.Sequential()
            if stride > 1:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)
                )

        def forward(self, x):
            out = self.bn2(self.conv2(nn.functional.relu(self.bn1(self.conv1(x)))))
            return nn.functional.relu(out + self.shortcut(x))

    layers = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    for inner, outer in ((64, 64), (64, 128), (128, 256), (256, 512)):
        layers += [Block(inner, outer, 1 if inner == outer else 2), Block(outer, outer, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def vgg11(nn):
    layers, inner = [], 3
    for outer in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"):
        if outer == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.ReLU(inplace=True)]
            inner = outer
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def gpt(nn, vocabulary=256, width=128, heads=4, layers=4, length=128):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

        def forward(self, x):
            b, t, c = x.shape
            q, k, v = (
                self.qkv(self.norm1(x)).view(b, t, 3, heads, c // heads).permute(2, 0, 3, 1, 4).unbind(0)
            )
            y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
            return x + self.mlp(self.norm2(x))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(vocabulary, width)
            self.positions = nn.Parameter(nn.Embedding(length, width).weight.detach().clone())
            self.blocks = nn.Sequential(*[Block() for _ in range(layers)])
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, vocabulary, bias=False)

        def forward(self, x):
            y = self.head(self.norm(self.blocks(self.tokens(x) + self.positions)))
            return y.flatten(0, 1)

    return GPT()


def bert(nn, vocabulary=256, width=128, heads=2, layers=2, length=128):
    class BERT(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(vocabulary, width)
            self.positions = nn.Parameter(nn.Embedding(length, width).weight.detach().clone())
            self.norm = nn.LayerNorm(width)
            layer = nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True
            )
            self.encoder = nn.TransformerEncoder(layer, layers)
            self.head = nn.Linear(width, vocabulary)

        def forward(self, x):
            return self.head(self.encoder(self.norm(self.tokens(x) + self.positions))).flatten(0, 1)

    return BERT()


def recurrent(kind):
    def build(nn):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn = getattr(nn, kind)(100, 50, num_layers=2, batch_first=True)
                self.head = nn.Linear(50, 10)

            def forward(self, x):
                return self.head(self.rnn(x)[0][:, -1])

        return Net()

    return build


def images(rng, shape):
    return rng.standard_normal(shape).astype(np.float32), rng.integers(0, 10, shape[0])


def points(rng, shape):
    return rng.standard_normal(shape).astype(np.float32), rng.standard_normal((shape[0], 1)).astype(
        np.float32
    )


def tokens(rng, shape):
    text = rng.integers(0, 256, (shape[0], shape[1] + 1))
    return text[:, :-1], text[:, 1:].reshape(-1)


MODELS = {
    "MLP 784-128-10, batch 64, SGD": (small_mlp, images, (64, 784), "SGD", {"lr": 1e-2}),
    "MLP 784-1024-1024-10, batch 128, Adam": (mlp, images, (128, 784), "Adam", {"lr": 1e-3}),
    "LeNet 32x32, batch 32, SGD": (lenet, images, (32, 1, 32, 32), "SGD", {"lr": 1e-2, "momentum": 0.9}),
    "ResNet-20 32x32, batch 32, SGD": (
        resnet20,
        images,
        (32, 3, 32, 32),
        "SGD",
        {"lr": 1e-2, "momentum": 0.9},
    ),
    "ResNet-18 32x32, batch 8, SGD": (
        resnet18,
        images,
        (8, 3, 32, 32),
        "SGD",
        {"lr": 1e-3, "momentum": 0.9},
    ),
    "VGG-11 32x32, batch 32, SGD": (vgg11, images, (32, 3, 32, 32), "SGD", {"lr": 1e-2, "momentum": 0.9}),
    "GPT 4x128, T 128, batch 8, AdamW": (gpt, tokens, (8, 128), "AdamW", {"lr": 3e-4}),
    "BERT 2x128, T 128, batch 8, AdamW": (bert, tokens, (8, 128), "AdamW", {"lr": 3e-4}),
    "LSTM 100-50x2, T 20, batch 10, SGD": (recurrent("LSTM"), images, (10, 20, 100), "SGD", {"lr": 1e-2}),
    "GRU 100-50x2, T 20, batch 10, SGD": (recurrent("GRU"), images, (10, 20, 100), "SGD", {"lr": 1e-2}),
    "linear regression of 100, batch 64, SGD": (regression, points, (64, 100), "SGD", {"lr": 1e-2}),
}


def arrays_for(row, rank):
    """Return the weights and this rank's batches: the same on both sides."""
    import disttrain as dt

    build, make_batch, shape, _, _ = MODELS[row]
    rng = np.random.default_rng(0)
    weights = {}
    for name, p in build(dt.nn).named_parameters():
        if p.ndim > 1:
            bound = 1 / np.sqrt(np.prod(p.shape[1:]))
            weights[name] = rng.uniform(-bound, bound, p.shape).astype(np.float32)
        else:  # a bias, or the scale of a normalisation
            weights[name] = np.full(p.shape, float(name.endswith("weight")), np.float32)
    rng = np.random.default_rng(1 + rank)
    return weights, [make_batch(rng, shape) for _ in range(BATCHES)]


def make_step(side, row, world_size, rank, device="cpu", compiled=False, meet=None):
    """Return a function that makes one training step and returns the loss.

    Args:
        side: "torch", "disttrain", or "graph": disttrain with a captured step.
        compiled: ``torch.compile``.
        meet: called after each backward.
    """
    build, _, _, optimizer_name, options = MODELS[row]
    weights, batches = arrays_for(row, rank)
    if side == "torch":
        import torch as lib
        from torch.nn.parallel import DistributedDataParallel

        lib.set_num_threads(1)
    else:
        import disttrain as lib
        from disttrain.nn.parallel import DistributedDataParallel
    model = build(lib.nn)
    model.load_state_dict(model.state_dict() | {k: lib.tensor(v) for k, v in weights.items()})
    model = model.to(device)
    if compiled:
        model = lib.compile(model)
    if world_size > 1:
        lib.distributed.init_process_group("gloo")
        model = DistributedDataParallel(model)
    optimizer = getattr(lib.optim, optimizer_name)(model.parameters(), **options)
    data = [(lib.tensor(x).to(device), lib.tensor(y).to(device)) for x, y in batches]
    loss_fn = (lib.nn.CrossEntropyLoss if batches[0][1].dtype.kind == "i" else lib.nn.MSELoss)()
    count = 0

    def train(x, y, times=None):
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        began = time.monotonic()
        loss.backward()
        if times is not None:
            times += [began, time.monotonic()]
        if meet is not None:
            meet()
        optimizer.step()
        return loss

    if side == "graph":
        train = lib.graph(train)

    def step(*times):
        nonlocal count
        x, y = data[count % BATCHES]
        count += 1
        return train(x, y, *times)

    return step


def meeting(path, rank, size):
    """Return a function that returns once ``size`` processes have called theirs as often; ``path`` is a file of all."""
    with open(path, "r+b") as file:
        counts = memoryview(mmap.mmap(file.fileno(), size * 8)).cast("q")

    def meet():
        counts[rank] += 1
        while min(counts) < counts[rank]:
            os.sched_yield()

    return meet


def worker(side, row, world_size, steps, pipes, apart):
    """Make ``steps`` steps for each line that a pipe brings, and tell in another how long they took.

    Args:
        apart: "" for a rank; else a number: one of several processes that train each for itself.
    """
    rank = int(apart or os.environ.get("RANK", "0"))
    meet = meeting(Path(pipes, "counts"), rank, world_size) if apart else None
    step = make_step(side, row, 1 if apart else world_size, rank, meet=meet)
    losses = [step().item() for _ in range(10)]
    # While it is others' turn nothing runs here: they need the cores. The pipe ends with whoever opened it.
    with open(Path(pipes, str(rank))) as turns:
        for _ in turns:
            times, work = [], []
            for _ in range(steps):
                start, busy = time.perf_counter(), time.process_time()
                loss = step()
                times.append(time.perf_counter() - start)
                work.append(time.process_time() - busy)
            losses.append(loss.item())
            if rank == 0:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on Linux
                found = {"times": times, "work": work, "losses": losses, "peak": peak / 1024}
                Path(pipes, "result").write_text(json.dumps(found) + "\n")


def draw(row, world_size):
    """Print, on rank 0, the median of 20 steps: when buckets were sent while backward ran, and when they were back."""
    import disttrain as dt

    step = make_step("disttrain", row, world_size, int(os.environ["RANK"]))
    spans = []
    for i in range(25):
        times = []
        step(times)
        now = time.monotonic()
        calls = [e for e in dt.collectives.connect().recent_calls() if f" after {i} steps" in e.what]
        calls = [(now - e.seconds, now - e.ended) for e in calls]
        if i >= 5:
            spans.append([times[1] - times[0], *(t - times[0] for span in calls for t in span)])
    if int(os.environ["RANK"]):
        return
    backward, *ends = [statistics.median(ts) * 1e3 for ts in zip(*spans, strict=True)]
    width = 60
    print(f"{row}, rank 0 of {world_size}: backward took {backward:.1f} ms")
    for k, (sent, back) in enumerate(zip(ends[::2], ends[1::2], strict=True)):
        a, b = round(width * sent / backward), max(1, round(width * (back - sent) / backward))
        print(f"  bucket {k:2d} {' ' * a}{'━' * b}{' ' * (width - a - b)} {sent:6.2f} to {back:6.2f} ms")


class Entrant:
    """One side with one number of ranks: processes that train when it is their turn."""

    def __init__(self, side, row, world_size, steps, pipes):
        self.name = f"{side} on {world_size} ranks, {row}"
        pipes.mkdir()
        paths = [pipes / str(rank) for rank in range(world_size)]
        for path in (*paths, pipes / "result"):
            os.mkfifo(path)
        self.turns = [os.open(path, os.O_RDWR | os.O_CLOEXEC) for path in paths]
        self.results = open(pipes / "result", "r+b", buffering=0)  # noqa: SIM115
        launcher, each = [], [""]
        if side == MEETING:
            (pipes / "counts").write_bytes(bytes(8 * world_size))
            side, each = "disttrain", [str(rank) for rank in range(world_size)]
        elif world_size > 1 and side == "torch":
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
        elif world_size > 1:
            launcher = ["-m", "disttrain", "launch", "-n", str(world_size)]
        me = [str(Path(__file__).resolve()), "--worker", side, row, str(world_size), str(steps), str(pipes)]
        env = {**os.environ, **THREADS}
        self.processes = [
            subprocess.Popen([sys.executable, *launcher, *me, apart], env=env) for apart in each
        ]

    def turn(self):
        """Return what rank 0 has found."""
        for turns in self.turns:
            os.write(turns, b"go\n")
        deadline = time.monotonic() + 120
        while not select.select([self.results], [], [], 1)[0]:
            if any(p.poll() is not None for p in self.processes) or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} failed")
        return json.loads(self.results.readline())

    def close(self):
        for turns in self.turns:
            os.close(turns)
        self.results.close()
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait(30)


def measure(row, worlds, sides, steps, turns, clock):
    """Return by (side, world size) the median seconds of a step, the losses and the peak MiB of a process."""
    seconds = {(side, n): [] for n in worlds for side in ([*sides, MEETING] if n > 1 else sides)}
    losses, peaks = {}, {}
    with tempfile.TemporaryDirectory() as pipes, contextlib.ExitStack() as ends:
        entrants = {}
        for side, n in seconds:
            entrants[side, n] = entrant = Entrant(side, row, n, steps, Path(pipes, f"{side}-{n}"))
            ends.callback(entrant.close)
        for turn in range(turns):
            for which, entrant in entrants.items():
                report = entrant.turn()
                losses[which], peaks[which] = report["losses"], report["peak"]
                if turn:  # the first one warms up
                    seconds[which].append(statistics.median(report[clock]))
    return {which: statistics.median(s) for which, s in seconds.items()}, losses, peaks


def pyplot():
    """Return matplotlib's module, set to draw files."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("--write draws a plot: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def page_parts(page):
    """Return what a page has before and after the place of the table."""
    text = page.read_text()
    if any(text.count(mark) != 1 for mark in MARKS) or text.index(MARKS[0]) > text.index(MARKS[1]):
        raise SystemExit(
            f"--write: {page} must have the lines {MARKS[0].strip()} and {MARKS[1].strip()} once"
        )
    return text[: text.index(MARKS[0])], text[text.index(MARKS[1]) :]


def label(side, n):
    return f"{'eager' if side == 'disttrain' else side}, {n} rank{'s' * (n > 1)}"


def means(ratios):
    """Return, for each of our sides and numbers of ranks, the geometric mean of the ratios by (row, side, ranks)."""
    each = {}
    for (_, side, n), ratio in ratios.items():
        each.setdefault((side, n), []).append(ratio)
    return {bar: statistics.geometric_mean(found) for bar, found in sorted(each.items())}


def scaling(seconds, sides, n):
    """Return in words which share of a step's time on ``n`` ranks one alone needs; ``seconds`` by (side, ranks)."""
    shares = ", ".join(f"{seconds[side, 1] / seconds[side, n]:.0%}" for side in sides)
    return f"{shares}; meeting {seconds[OURS[0], 1] / seconds[MEETING, n]:.0%}"


def table(rows, ranks, seconds, peaks, ratios, against):
    """Return a table in Markdown of what was measured, by (row, side, ranks)."""
    sides = [*OURS, against]
    lines = [
        f"| model | ranks | {' | '.join(sides)} | ratio: {', '.join(OURS)} | memory: {', '.join(sides)} | "
        f"scaling: {', '.join(sides)} |",
        "| --- | --- |" + " --- |" * (len(sides) + 3),
    ]
    for row in rows:
        for n in ranks:
            cells = [row if n == ranks[0] else "", str(n)]
            cells += [f"{seconds[row, side, n] * 1e3:.3g} ms" for side in sides]
            cells.append(", ".join(f"{ratios[row, side, n]:.2f}" for side in OURS))
            cells.append(", ".join(f"{peaks[row, side, n]:.0f}" for side in sides) + " MiB")
            of_row = {(side, m): s for (name, side, m), s in seconds.items() if name == row}
            cells.append(scaling(of_row, sides, n) if n > 1 and 1 in ranks else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(path, rows, ratios, against):
    """Draw the ratios, a bar for each of our sides and numbers of ranks."""
    plt, averages = pyplot(), means(ratios)
    height = 0.8 / len(averages)
    figure, axes = plt.subplots(
        figsize=(8, 0.9 + 0.18 * len(rows) * (1 + len(averages))), layout="constrained"
    )
    for i, ((side, n), mean) in enumerate(averages.items()):
        places = [k + (i - (len(averages) - 1) / 2) * height for k in range(len(rows))]
        name = f"{label(side, n)}, geometric mean {mean:.2f}"
        bars = axes.barh(places, [ratios[row, side, n] for row in rows], height, label=name)
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.margins(x=0.1)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel(f"{against}'s time of a training step / disttrain's")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", choices=["torch"], help="measure this peer too, and print the ratio")
    parser.add_argument("--models", nargs="*", help="only rows that have one of these words")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--steps", type=int, default=30, help="steps in one turn")
    parser.add_argument("--turns", type=int, default=9, help="turns of each side; the first is not counted")
    parser.add_argument(
        "--peak-memory", action="store_true", help="print the peak memory of rank 0's process too"
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count the time that rank 0's process computes, not the clock's: where other programs run",
    )
    parser.add_argument(
        "--timeline", action="store_true", help="show how communication overlaps with backward"
    )
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="put the table into this page, a plot beside it"
    )
    parser.add_argument("--draw", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--worker", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turns < 2:
        parser.error(f"--turns must be at least 2, as the first is not counted, got {args.turns}")
    if args.worker:
        side, row, world_size, steps, pipes, apart = args.worker
        return worker(side, row, int(world_size), int(steps), pipes, apart)

    if args.draw:
        return draw(args.draw[0], int(args.draw[1]))
    rows = [row for row in MODELS if any(name in row for name in args.models or [""])]
    if args.timeline:
        for row in rows:
            for n in (n for n in args.ranks if n > 1):
                command = [
                    sys.executable,
                    "-m",
                    "disttrain",
                    "launch",
                    "-n",
                    str(n),
                    str(Path(__file__).resolve()),
                ]
                subprocess.run([*command, "--draw", row, str(n)], env={**os.environ, **THREADS}, check=True)
        return 0

    if args.write:
        if not args.against:
            parser.error("--write needs --against")
        before, after = page_parts(args.write)
        pyplot()
    sides = [*OURS] + ([args.against] if args.against else [])
    print(
        f"{'model':40s} ranks "
        + " ".join(f"{s:>12s}" for s in sides * (1 + args.peak_memory))
        + ("   ratio, of graph" if args.against else "")
    )
    wrong, found, peaks_of, ratios = 0, {}, {}, {}
    clock = "work" if args.processor_time else "times"
    for row in rows:
        seconds, losses, peaks = measure(row, args.ranks, sides, args.steps, args.turns, clock)
        found |= {(row, *entrant): t for entrant, t in seconds.items()}
        peaks_of |= {(row, *entrant): peak for entrant, peak in peaks.items()}
        for n in args.ranks:
            line = f"{row:40s} {n:5d} " + " ".join(f"{seconds[s, n] * 1e3:9.2f} ms" for s in sides)
            if args.peak_memory:
                line += " " + " ".join(f"{peaks[s, n]:8.0f} MiB" for s in sides)
            if losses["graph", n] != losses["disttrain", n]:
                wrong += 1
                line += "   ERROR: the captured step has other losses"
            if args.against:
                ratios |= {(row, s, n): seconds[args.against, n] / seconds[s, n] for s in OURS}
                line += "   " + ", ".join(f"{ratios[row, s, n]:5.2f}" for s in OURS)
                if not np.allclose(losses["disttrain", n][:3], losses[args.against, n][:3], rtol=1e-4):
                    wrong += 1
                    line += (
                        "   ERROR: the losses differ: "
                        + ", ".join(f"{s} {losses[s, n][2]:.6f}" for s in sides)
                        + " at step 3"
                    )
            if n > 1 and 1 in args.ranks:
                line += f"   scaling {scaling(seconds, sides, n)}"
            print(line, flush=True)
    if args.against:
        average = "; ".join(f"{label(*bar)} {mean:.2f}" for bar, mean in means(ratios).items())
        what = "the time that rank 0's process computed" if args.processor_time else "the clock's"
        note = (
            f"ratio: {args.against}'s time / disttrain's, and / that of a captured step; above 1 disttrain is faster. "
            f"Geometric means: {average}. One thread per rank, medians of {args.turns - 1} turns of {args.steps} "
            f"steps, {what}."
        )
        print(note)
        if args.write and not wrong:
            picture = args.write.with_suffix(".png")
            plot(picture, rows, ratios, args.against)
            text = table(rows, args.ranks, found, peaks_of, ratios, args.against)
            shown = f"![ratios of all models]({picture.name})"
            args.write.write_text(
                f"{before}{MARKS[0]}{text}\n\n{note[0].upper()}{note[1:]}\n\n{shown}\n{after}"
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
