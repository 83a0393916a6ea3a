"""Which rank the others wait for, and why: for ``disttrain top`` and ``ps``, and for a line of the running job."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from disttrain.collectives.meter import Reading
from disttrain.launcher.report import Slow

STRIDE: Final = 4.0
"""Seconds, at least, over which ranks are compared while a job runs."""
_STEPS: Final = 3  # that every rank makes meanwhile, at least
_STRIDES: Final = 3
"""In so many strides, one after the other, a rank must be slow for the same reason: one that is late once is not."""
_FACTOR: Final = 1.5
"""How many times as long as the others it must take."""
_MATTERS: Final = 0.1
"""Share of the time by which the others must wait more than the slowest rank."""
_LEAST: Final = 0.01


@dataclass(frozen=True)
class Pace:
    """How a rank has spent some seconds: shares of them."""

    rank: int
    data: float
    """In which it waited for its next batch."""
    wait: float
    """In which it waited for other ranks."""

    @property
    def compute(self) -> float:
        return max(0.0, 1.0 - self.data - self.wait)


def find_slowest(paces: Sequence[Pace]) -> Slow | None:
    """Return the rank that the others wait for, None if there is none.

    It is the one that waits least. Why is what it does more of than the others: ``data`` or ``compute``.
    """
    if len(paces) < 2:
        return None
    last = min(paces, key=lambda p: (p.wait, p.rank))
    others = [p for p in paces if p is not last]
    wait = statistics.median(p.wait for p in others)
    if wait - last.wait < _MATTERS:
        return None
    data = statistics.median(p.data for p in others)
    compute = statistics.median(p.compute for p in others)
    by_data = last.data - data > last.compute - compute
    return Slow(
        rank=last.rank,
        factor=round((1.0 - last.wait) / max(1.0 - wait, _LEAST), 1),
        why="data" if by_data else "compute",
        share=round(last.data if by_data else last.compute, 3),
        others=round(data if by_data else compute, 3),
        wait=round(wait, 3),
    )


@dataclass(frozen=True)
class Mark:
    """What a rank had counted at some moment."""

    rank: int
    steps: int
    clock: float
    """Seconds of the monotonic clock of its machine."""
    read: float
    """For how many seconds it had waited for batches."""
    waited: float
    """For how many it had waited for other ranks."""

    @classmethod
    def of(cls, reading: Reading) -> "Mark":
        return cls(reading.rank, reading.steps, reading.clock, reading.read, reading.waited)


class Paces:
    """Compares the ranks of a running generation every few seconds, and finds one that stays behind."""

    def __init__(self) -> None:
        self._look_at = 0.0
        self._marks: list[Sequence[Mark]] = []
        """One more than there have been strides, one after the other, in which the same rank was slow."""
        self._slow: Slow | None = None
        self._told: set[tuple[int, str]] = set()

    @property
    def wait(self) -> float:
        """Seconds until the next look is due."""
        return max(0.0, self._look_at - time.monotonic())

    def look(self, now: Sequence[Mark]) -> Slow | None:
        """Return the rank that is slow and has not been told to be, for that reason; None if there is none.

        Args:
            now: of all ranks, in the same order each time.
        """
        self._look_at = time.monotonic() + STRIDE
        if not all(m.steps for m in now):  # in the first step one compiles for all
            return None
        if not self._marks:
            self._marks = [now]
            return None
        if any(m.steps - b.steps < _STEPS for b, m in zip(self._marks[-1], now, strict=True)):
            return None
        slow = _between(self._marks[-1], now)
        if slow is None or slow.factor < _FACTOR:
            self._marks, self._slow = [now], None
            return None
        if self._slow is not None and (slow.rank, slow.why) != (self._slow.rank, self._slow.why):
            self._marks = self._marks[-1:]
        self._marks.append(now)
        self._slow = slow
        if len(self._marks) <= _STRIDES or (slow.rank, slow.why) in self._told:
            return None
        self._told.add((slow.rank, slow.why))
        return _between(self._marks[0], now)


def _between(before: Sequence[Mark], now: Sequence[Mark]) -> Slow | None:
    paces = []
    for b, m in zip(before, now, strict=True):
        seconds = m.clock - b.clock
        paces.append(Pace(m.rank, (m.read - b.read) / seconds, (m.waited - b.waited) / seconds))
    slow = find_slowest(paces)
    if slow is None:
        return None
    return replace(slow, steps=min(m.steps - b.steps for b, m in zip(before, now, strict=True)))
