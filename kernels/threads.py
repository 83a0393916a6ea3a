"""How many threads an operation may use, and the large kernels spread over them.

Results do not depend on the number: a part of the work is a stretch of rows, images or outputs, and whatever is summed
is summed by one thread in the order that it has alone.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_NAMES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_PART = 1 << 22
"""Multiplications from which a thread is worth waking: some 100 microseconds."""

_chosen = 0


def threads() -> int:
    """Return how many threads one operation may use.

    As :func:`set_threads` has set, else as ``OMP_NUM_THREADS`` was when this was first asked, else one for each core.
    """
    return _chosen or set_threads(of_environment())


def set_threads(n: int) -> int:
    """Let operations use ``n`` threads, 1 or more; return it."""
    global _chosen
    _chosen = n
    return n


def of_environment() -> int:
    """Return the number that the BLAS library reads when it is loaded: of ``OMP_NUM_THREADS``, else of the cores."""
    for name in _NAMES:
        value = os.environ.get(name, "")
        if value.isdigit() and int(value):
            return int(value)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(work: Callable[[int, int], None], size: int, cost: int) -> None:
    """Call ``work(first, last)`` on stretches that together are ``range(size)``, in as many threads as are of use.

    Args:
        work: mostly a compiled kernel, which releases the GIL; it must not call this function.
        size: how much there is, 0 or more.
        cost: multiplications of each of them.

    Raises:
        Exception: what ``work`` raises, once all stretches have ended.
    """
    n = threads()
    if n > 1:
        n = min(n, size, size * cost // _PART)
    if n <= 1:
        work(0, size)
        return
    bounds = [size * i // n for i in range(n + 1)]
    pool = _pool(os.getpid(), threads() - 1)
    others = [pool.submit(work, *stretch) for stretch in itertools.pairwise(bounds[1:])]
    try:
        work(0, bounds[1])
    finally:
        for other in others:
            other.exception()  # waits, and raises nothing
    for other in others:
        other.result()


@functools.lru_cache(maxsize=1)
def _pool(process: int, n: int) -> ThreadPoolExecutor:
    """Return ``n`` threads. A forked process has none of its parent's and makes its own."""
    from concurrent.futures import (
        ThreadPoolExecutor,  # only where there are several cores: it takes time to import
    )

    return ThreadPoolExecutor(n, "kernels")
