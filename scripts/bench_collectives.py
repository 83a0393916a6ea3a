"""Time all-reduce between processes of one node, against PyTorch's gloo and against bare NumPy, in one run.

    python scripts/bench_collectives.py                    # disttrain, and two bare processes
    python scripts/bench_collectives.py --against gloo     # and PyTorch over gloo

Columns: ``any`` reduces ordinary arrays, ``shared`` those of ``collectives.empty()`` (gradient buckets are such),
``fixed`` ordinary ones with ``--ranks`` (the fixed tree), ``bare`` is two NumPy processes that add halves of arrays in
shared memory, copy the other's half and wait in a loop for each other, three times. All in float32, in place.
The sides take turns; figures are medians of the slowest rank of each call.
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

ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
SIZES = [4, 1 << 10, 16 << 10, 64 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20]
SIDES = ("any", "shared", "fixed", "bare", "gloo")


def calls(nbytes):
    """Return how many calls of this size make one turn."""
    return max(12, min(300, (64 << 20) // nbytes))


def measure(reduce, barrier, arrays):
    """Return, by size, the seconds of each call on this rank."""
    seconds = {}
    for nbytes in SIZES:
        x = arrays(nbytes // 4)
        seconds[nbytes] = []
        for k in range(calls(nbytes) + 3):
            x[...] = 1
            barrier()
            start = time.perf_counter()
            reduce(x)
            if k >= 3:
                seconds[nbytes].append(time.perf_counter() - start)
    return seconds


def of_disttrain(side):
    from disttrain import collectives

    comm = collectives.connect()
    arrays = comm.empty if side == "shared" else np.empty
    return comm.rank, measure(
        lambda x: comm.all_reduce(x, x), comm.barrier, lambda count: arrays(count, np.float32)
    )


def of_gloo(rank, folder):
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/gloo", rank=rank, world_size=2)
    seconds = measure(distributed.all_reduce, distributed.barrier, lambda count: torch.empty(count))
    distributed.destroy_process_group()  # else its threads may end the process
    return seconds


def of_bare(rank, folder):
    """Two processes, three passes over memory: add one half of both arrays, copy the other half."""
    memory = np.memmap(Path(folder, "bare"), np.uint8, "r+")
    counters = [memory[64 * r : 64 * r + 8].view(np.int64) for r in range(2)]
    step = 0

    def meet():
        nonlocal step
        step += 1
        counters[rank][0] = step
        while counters[1 - rank][0] < step:
            os.sched_yield()

    def reduce(x):
        count = x.size
        mine, other = (slice(0, count // 2), slice(count // 2, count))[:: 1 - 2 * rank]
        peer = places[1 - rank][:count]
        meet()
        np.add(x[mine], peer[mine], out=x[mine])
        meet()
        np.copyto(x[other], peer[other])
        meet()

    places = [np.asarray(memory)[4096 + r * max(SIZES) :][: max(SIZES)].view(np.float32) for r in range(2)]
    return measure(reduce, meet, lambda count: places[rank][:count])


def worker(side, rank, folder):
    if side == "gloo":
        seconds = of_gloo(rank, folder)
    elif side == "bare":
        seconds = of_bare(rank, folder)
    else:
        rank, seconds = of_disttrain(side)
    Path(folder, f"rank{rank}").write_text(json.dumps(seconds))


def run(side):
    """Return, by size, the median over the calls of the seconds of the slower rank."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        with open(Path(folder, "bare"), "wb") as memory:
            memory.truncate(4096 + 2 * max(SIZES))
        me = [str(Path(__file__).resolve()), "--worker", side]
        env = {**os.environ, **ENVIRONMENT}
        if side in ("gloo", "bare"):
            commands = [[sys.executable, *me, str(rank), folder] for rank in range(2)]
        else:
            fixed = ["--ranks", "2"] if side == "fixed" else []
            commands = [[sys.executable, "-m", "disttrain", "launch", "-n", "2", *fixed, *me, "0", folder]]
        jobs = [subprocess.Popen(command, env=env) for command in commands]
        try:
            if sum(job.wait(300) for job in jobs):
                raise RuntimeError(f"{side} failed")
        finally:
            for job in jobs:
                if job.poll() is None:
                    job.terminate()
                    job.wait(30)
        ranks = [json.loads(Path(folder, f"rank{rank}").read_text()) for rank in range(2)]
    return {
        nbytes: statistics.median(map(max, ranks[0][str(nbytes)], ranks[1][str(nbytes)])) for nbytes in SIZES
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", choices=["gloo"], help="measure this peer too, and print the ratios")
    parser.add_argument("--turns", type=int, default=3, help="turns of each side")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        side, rank, folder = args.worker
        return worker(side, int(rank), folder)

    sides = [side for side in SIDES if side != "gloo" or args.against]
    found = {side: {nbytes: [] for nbytes in SIZES} for side in sides}
    for _ in range(args.turns):
        for side in sides:
            for nbytes, seconds in run(side).items():
                found[side][nbytes].append(seconds)
    medians = {side: {n: statistics.median(s) for n, s in by_size.items()} for side, by_size in found.items()}
    ratios = [("gloo", side) for side in ("any", "shared")] if args.against else []
    print(
        f"{'bytes':>10s} "
        + " ".join(f"{side:>10s}" for side in sides)
        + "".join(
            f"{peer + '/' + side:>13s}" for peer, side in [*ratios, ("bare", "shared"), ("fixed", "any")]
        )
    )
    for nbytes in SIZES:
        line = f"{nbytes:10d} " + " ".join(f"{medians[side][nbytes] * 1e6:7.1f} us" for side in sides)
        for peer, side in [*ratios, ("bare", "shared"), ("fixed", "any")]:
            line += f"{medians[peer][nbytes] / medians[side][nbytes]:13.2f}"
        print(line, flush=True)
    print("a/b: the time of a over that of b. 2 processes, float32, medians of the slower rank.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
