"""Time what Python costs: one small operation, its backward, and the import.

    python scripts/bench_overhead.py                    # disttrain alone
    python scripts/bench_overhead.py --against torch

An operation is on 4 floats, so that nearly all of its time is overhead; a backward is one call over a chain of such
operations, divided by their number. The sides take turns; figures are medians.
"""

import argparse
import importlib
import os
import statistics
import subprocess
import sys
import time

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
CHAIN = 100
ROUNDS = 60


def time_operations(lib):
    """Return microseconds of ``x + y`` with gradient, of its backward, and of ``x + y`` without gradient."""
    x, y = lib.ones(4, requires_grad=True), lib.ones(4)
    seed = lib.ones(4)
    begin = time.perf_counter()
    out = x
    for _ in range(CHAIN):
        out = out + y
    middle = time.perf_counter()
    out.backward(seed)
    end = time.perf_counter()
    z = y
    for _ in range(CHAIN):
        z = z + y
    last = time.perf_counter()
    return [1e6 * t / CHAIN for t in (middle - begin, end - middle, last - end)]


def time_import(name):
    """Return the milliseconds until a Python that has NumPy has the library, and its Tensor."""
    code = f"import time, numpy; t = time.perf_counter(); import {name}; {name}.Tensor; print(time.perf_counter() - t)"
    return 1e3 * float(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--against", choices=["torch"], help="measure PyTorch too, in turns")
    options = parser.parse_args()
    names = ["disttrain", *([options.against] if options.against else [])]
    libraries = {name: importlib.import_module(name) for name in names}
    times = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name, lib in libraries.items():
            times[name].append(time_operations(lib))
    imports = {name: [] for name in names}
    for _ in range(5):
        for name in names:
            imports[name].append(time_import(name))

    rows = [
        (label, "µs", {n: statistics.median(t[i] for t in times[n]) for n in names})
        for i, label in enumerate(
            ("add of 4 floats, recorded", "its backward", "add of 4 floats, not recorded")
        )
    ]
    rows.append(("import", "ms", {n: statistics.median(imports[n]) for n in names}))
    for label, unit, figures in rows:
        line = f"{label:32}" + "".join(f"{n} {t:8.2f} {unit}   " for n, t in figures.items())
        if options.against:
            line += f"ratio {figures[options.against] / figures['disttrain']:.2f}"
        print(line.rstrip())


if __name__ == "__main__":
    for variable in THREADS:
        os.environ.setdefault(variable, "1")
    main()
