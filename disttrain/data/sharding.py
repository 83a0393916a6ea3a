"""Who gets which part of an epoch: pure arithmetic on positions in an order that all ranks know.

Step ``t`` deals the positions ``[t * B * R, (t + 1) * B * R)`` of the epoch to ``R`` ranks, ``B`` to each, in
rank order. The last step may hold fewer; it is split as evenly as can be and the first ranks get one more. So
every position is dealt exactly once, and all ranks make the same number of steps.
"""

from __future__ import annotations


def steps(n: int, batch_size: int, ranks: int, drop_last: bool = False) -> int:
    """Return how many steps every rank makes in an epoch of ``n`` samples."""
    per_step = batch_size * ranks
    return n // per_step if drop_last else -(-n // per_step)


def share(n: int, batch_size: int, ranks: int, rank: int, step: int) -> range:
    """Return the positions that ``rank`` gets in ``step``; none if the last step is too small."""
    start = step * batch_size * ranks
    each, more = divmod(min(batch_size * ranks, n - start), ranks)
    first = start + rank * each + min(rank, more)
    return range(first, first + each + (rank < more))
