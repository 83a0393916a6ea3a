"""Time a checkpoint against what the machine does with the same bytes: a copy in memory, a file to and from the disk.

    python scripts/bench_checkpoint.py                  # 500 MB, in the temporary folder
    python scripts/bench_checkpoint.py --dir /data      # on another disk

Each turn measures in one process, one after the other: copies of the bytes to new memory, and to memory that was used
before; the stalls of two background saves, of which the first takes new memory for its copy, as the first one of a job
does; a plain file of them, written with one fsync and put in the place of the one before, and a save that is waited
for, which removes the one before too; the plain file read into memory that was used before, and a load into a model in
a job that has saved; the plain file read into new memory, and a load in a job that has not saved, which takes new
memory too. Before each read the files are dropped from the page cache. Figures are medians of the turns; each is
compared with that of the same turn which does as much: copies and reads with those to memory of the same kind.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import disttrain as dt
from disttrain import nn

CHUNK = 4 << 20
LAYERS = 16


def make_model(megabytes: int) -> nn.Module:
    """Return a model of so many bytes, in matrices of the sizes that networks have."""
    width = int((megabytes * 1e6 / 4 / LAYERS) ** 0.5)
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(LAYERS)))


def forget(folder: Path) -> None:
    """Drop the files of a folder from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def seconds(action, *arguments) -> float:
    start = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - start


def write_plain(path: Path, memory: np.ndarray) -> None:
    new = path.with_suffix(".new")
    with new.open("wb", buffering=0) as file:
        for begin in range(0, len(memory), CHUNK):
            file.write(memory[begin : begin + CHUNK].data)
        os.fsync(file.fileno())
    new.replace(path)


def read_plain(path: Path, memory: np.ndarray) -> None:
    with path.open("rb", buffering=0) as file:
        begin = 0
        while count := file.readinto(memory[begin : begin + CHUNK].data):
            begin += count


def turn(folder: Path, model: nn.Module, memory: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Return the seconds of everything, once."""
    plain, run = folder / "plain", folder / "run"

    def save(step: int, background: bool) -> None:
        dt.checkpoint.save(run, step=step, model=model, keep_last=1, background=background)

    def load() -> None:
        dt.checkpoint.load(run, model=model)

    found = {"first copy": seconds(memory.copy), "copy": seconds(np.copyto, other, memory)}
    for what in ("first stall", "stall"):
        found[what] = seconds(save, 1, True)
        dt.checkpoint.wait()
    found["plain write"] = seconds(write_plain, plain, memory)
    found["save"] = seconds(save, 2, False)
    forget(folder)
    found["plain read"] = seconds(read_plain, plain, other)
    forget(folder)
    found["load"] = seconds(load)
    dt.checkpoint.close()  # and the memory of the copy is gone
    forget(folder)
    found["first plain read"] = seconds(lambda: read_plain(plain, np.empty_like(memory)))
    forget(folder)
    found["first load"] = seconds(load)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where to write; the temporary folder by default")
    args = parser.parse_args()
    model = make_model(args.megabytes)
    nbytes = sum(p.numel() * 4 for p in model.parameters())
    memory = np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)
    other = np.zeros_like(memory)
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        folder = Path(name)
        turn(folder, model, memory, other)  # memory is taken, code is loaded
        turns = [turn(folder, model, memory, other) for _ in range(args.turns)]
        dt.checkpoint.close()
    peers = {"save": "plain write", "load": "plain read", "first load": "first plain read"}
    peers |= {"stall": "copy", "first stall": "first copy"}
    for what in turns[0]:
        took = statistics.median(each[what] for each in turns)
        line = f"{what:16} {1000 * took:8.1f} ms {nbytes / took / 1e9:7.2f} GB/s"
        peer = peers.get(what)
        if peer and "copy" in peer:
            line += f"  {statistics.median(each[what] / each[peer] for each in turns):6.2f} times the {peer}"
        elif peer:
            share = statistics.median(each[peer] / each[what] for each in turns)
            line += f"  {100 * share:5.0f} % of the disk's"
        print(line)


if __name__ == "__main__":
    main()
