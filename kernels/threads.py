"""How many threads an operation may use."""

import os

_NAMES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def threads() -> int:
    """Return how many threads one operation may use: ``OMP_NUM_THREADS``, else the number of cores."""
    for name in _NAMES:
        value = os.environ.get(name, "")
        if value.isdigit() and int(value):
            return int(value)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
