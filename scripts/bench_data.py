"""Time data loading against PyTorch's DataLoader: the same data sets, batch sizes and workers, in one run.

    python scripts/bench_data.py                    # disttrain alone
    python scripts/bench_data.py --against torch    # and PyTorch, with the ratios
    python scripts/bench_data.py --against torch --processor-time

Rows: data sets of tensors (``tensors``), of small and of large arrays made sample by sample (``small``, ``large``),
and of JPEG files that Pillow decodes and crops (``images``), read with 0, 1 and 2 workers. The sides take turns, each
in a process of its own; figures are medians of the turns: the milliseconds of a batch, and those from the beginning of
the epoch to the first batch. With ``--processor-time`` the milliseconds of a batch are those that the process and its
workers computed in the epoch, which other programs on the machine change less. The sum of all labels must be the same
on both sides, or the row is an error.
"""

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
WORKERS = (0, 1, 2)


class Arrays:
    """Samples are (array of float32, label), each array made when it is asked for."""

    def __init__(self, count, shape):
        self.noise = np.random.default_rng(0).standard_normal(shape, np.float32)
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.noise + np.float32(index), index % 10


class Images:
    """Samples are (cropped and normalised image, label) of JPEG files in memory."""

    def __init__(self, count):
        from PIL import Image

        self.files = []
        random = np.random.default_rng(0)
        for _ in range(16):
            file = io.BytesIO()
            small = Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8))
            small.resize((256, 256), Image.Resampling.BICUBIC).save(file, "JPEG")
            self.files.append(file.getvalue())
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        from PIL import Image

        image = Image.open(io.BytesIO(self.files[index % len(self.files)])).convert("RGB")
        pixels = np.asarray(image.crop((16, 16, 240, 240)), np.float32).transpose(2, 0, 1)
        return np.ascontiguousarray(pixels) / np.float32(255), index % 10


def loader_of(side, row, workers):
    if side == "torch":
        import torch
        from torch.utils.data import DataLoader, TensorDataset

        torch.set_num_threads(1)
        tensor = torch.from_numpy
    else:
        from disttrain import from_numpy as tensor
        from disttrain.utils.data import DataLoader, TensorDataset
    count, size = {"tensors": (8192, 64), "small": (4096, 64), "large": (256, 16), "images": (192, 16)}[row]
    if row == "tensors":
        x = np.random.default_rng(0).standard_normal((count, 1, 28, 28), np.float32)
        data = TensorDataset(tensor(x), tensor(np.arange(count) % 10))
    elif row == "small":
        data = Arrays(count, (3, 8, 8))
    elif row == "large":
        data = Arrays(count, (3, 224, 224))
    else:
        data = Images(count)
    return DataLoader(data, size, shuffle=True, num_workers=workers)


def computed():
    """Return the seconds that this process and its workers that have ended computed."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def worker(side, row, workers):
    """Print the seconds to the first batch, of a batch after it, computed for one, and the sum of all labels."""
    loader = loader_of(side, row, workers)
    next(iter(loader))  # what is imported and made once
    before = computed()
    start = time.perf_counter()
    batches = iter(loader)
    labels = int(next(batches)[1].sum())
    first = time.perf_counter()
    count = 0
    for x, y in batches:
        labels += int(y.sum())
        count += 1
        if x.shape[0] < 1:
            raise RuntimeError("an empty batch")
    each = (time.perf_counter() - first) / count
    print(json.dumps([first - start, each, (computed() - before) / (count + 1), labels]))


def run(side, row, workers):
    command = [sys.executable, os.path.abspath(__file__), "--worker", side, row, str(workers)]
    done = subprocess.run(
        command, env={**os.environ, **THREADS}, stdout=subprocess.PIPE, check=True, timeout=300
    )
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", choices=["torch"], help="measure this peer too, and print the ratios")
    parser.add_argument("--turns", type=int, default=3, help="turns of each side")
    parser.add_argument("--rows", nargs="+", default=["tensors", "small", "large", "images"])
    parser.add_argument("--processor-time", action="store_true", help="time that is computed in a batch")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        side, row, workers = args.worker
        worker(side, row, int(workers))
        return 0
    sides = ["disttrain", *([args.against] if args.against else [])]
    print(f"{'row':>8s} {'workers':>7s} " + " ".join(f"{side + ', ms':>14s}" for side in sides), end="")
    print(f"{'ratio':>7s}" * (len(sides) > 1) + " | first batch, ms" + f"{'ratio':>16s}" * (len(sides) > 1))
    wrong = False
    for row in args.rows:
        for workers in WORKERS:
            found = {side: [] for side in sides}
            for _ in range(args.turns):
                for side in sides:
                    found[side].append(run(side, row, workers))
            wrong |= len({labels for turns in found.values() for *_, labels in turns}) > 1
            first, each = (
                {side: statistics.median(turn[k] for turn in turns) * 1e3 for side, turns in found.items()}
                for k in (0, 2 if args.processor_time else 1)
            )
            line = f"{row:>8s} {workers:7d} " + " ".join(f"{each[side]:14.3f}" for side in sides)
            if args.against:
                line += f"{each['torch'] / each['disttrain']:7.2f}"
            line += " | " + " ".join(f"{first[side]:8.2f}" for side in sides)
            if args.against:
                line += f"{first['torch'] / first['disttrain']:7.2f}"
            print(line, flush=True)
    if args.against:
        print("ratio: PyTorch's time over disttrain's.")
    if wrong:
        print("error: the two sides did not read the same samples", file=sys.stderr)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
