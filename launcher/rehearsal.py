"""The ranks before the first step: about a second of all-reduces, and who is slow. A program of the launcher's own.

``python -m disttrain.launcher.rehearsal [report]``, as ranks; with ``report`` rank 0 tells all it has measured, else
only what stands out.
"""

import logging
import os
import sys
import time

import numpy

from disttrain.collectives import Communicator, connect

_SECONDS = 0.4  # for each of small arrays, large arrays, and computing
_LARGE = 1 << 20  # float32 elements
_SLOW = 3.0  # times the median that stands out


def _time_all_reduce(world: Communicator, elements: int) -> float:
    """Return the seconds that an all-reduce of so many float32 takes, the same on all ranks."""
    array = world.empty((elements,), numpy.float32)
    array[:] = 1.0
    count = 1
    while True:  # as often as it takes; rank 0's clock decides for all
        world.barrier()
        start = time.perf_counter()
        for _ in range(count):
            world.all_reduce(array, array, op="max")
        took = numpy.array([time.perf_counter() - start])
        world.broadcast(took, 0)
        if took[0] > _SECONDS / 2:
            return float(took[0]) / count
        count = max(count + 1, int(count * min(10.0, _SECONDS / max(took[0], 1e-6))))


def _time_computing() -> float:
    """Return the seconds of a product of matrices: the best of several, so that only what is always slow counts."""
    a = numpy.ones((256, 256), dtype=numpy.float32)
    end = time.perf_counter() + _SECONDS
    best = float("inf")
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return best


def main(report: bool) -> None:
    if not report:
        logging.getLogger("disttrain").setLevel(logging.WARNING)  # the script will tell how ranks communicate
    world = connect()
    mine = numpy.array([_time_computing()])
    everyone = numpy.empty((world.size, 1))
    world.all_gather(mine, everyone)
    small, large = _time_all_reduce(world, 1), _time_all_reduce(world, _LARGE)
    median = float(numpy.median(everyone))
    if mine[0] > _SLOW * median:
        host = os.uname().nodename
        print(
            f"disttrain: rank {world.rank} on {host} computes {mine[0] / median:.1f} times slower than the median"
        )
    if report and world.rank == 0:
        rate = _LARGE * 4 / large / 1e9
        print(
            f"all-reduce over {world.size} ranks: 4 bytes in {small * 1e6:.0f} us, 4 MiB at {rate:.2f} GB/s"
        )
        print(f"a product of two 256 x 256 matrices: {median * 1e6:.0f} us (median of the ranks)")


if __name__ == "__main__":
    main(sys.argv[1:] == ["report"])
