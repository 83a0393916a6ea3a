"""Ranks as threads of one process, exactly one running at a time, in an order that never changes.

A rank runs until it must wait in a collective; then the baton goes to the next rank, in rank order, that can
go on. If none can and nothing is in flight that could change this, the ranks are in a deadlock, and that is
proven.
"""

import threading
from collections.abc import Callable

from disttrain.collectives.call import Call, name_ranks
from disttrain.collectives.errors import Deadlock, PeerFailed
from disttrain.collectives.progress import Progress


def _closed_gate() -> threading.Lock:
    """A lock that opens for one thread at each ``release()``: five times as fast as a semaphore."""
    gate = threading.Lock()
    gate.acquire()
    return gate


class Baton:
    """Who may run. All methods but :meth:`start` are called by the thread of a hosted rank."""

    def __init__(
        self, ranks: range, progress: Progress, on_switch: Callable[[int], None] | None = None
    ) -> None:
        self.running: int | None = None
        self.failed: tuple[int, BaseException] | None = None
        """The first rank that raised, and what."""
        self._ranks = ranks
        self._progress = progress
        self._on_switch = on_switch
        self._turn = {rank: _closed_gate() for rank in ranks}
        self._waits_for: dict[int, Call | None] = dict.fromkeys(ranks)
        self._finished: set[int] = set()
        self._deadlock = ""

    def start(self) -> None:
        """Let the first rank run."""
        self._turn[self._ranks[0]].release()

    def enter(self, rank: int) -> None:
        """Wait for the first turn of ``rank``."""
        self._turn[rank].acquire()
        self._resume(rank)

    def wait(self, rank: int, call: Call) -> None:
        """Let others run until ``call`` has finished.

        Raises:
            Deadlock: no rank of this process can ever go on.
            PeerFailed: another rank of this process failed.
        """
        if call.finished:
            return
        self.check()
        self._waits_for[rank] = call
        self._pass_on(rank)
        self._waits_for[rank] = None
        if not call.finished:
            self.check()

    def offer(self, rank: int) -> None:
        """Let every other rank that can run do so before ``rank`` goes on."""
        if self.failed is None:
            self._pass_on(rank)

    def leave(self, rank: int, error: BaseException | None) -> None:
        """``rank`` has returned, or raised ``error``."""
        if error is not None and self.failed is None:
            self.failed = (rank, error)
        self._finished.add(rank)
        if len(self._finished) < len(self._ranks):
            self._pass_on(rank)

    def check(self) -> None:
        """Raise if a rank of this process has failed, so that a call made now could never complete."""
        if self._deadlock:
            raise Deadlock(self._deadlock)
        if self.failed is not None:
            rank, error = self.failed
            raise PeerFailed(f"rank {rank} failed with {type(error).__name__}: {error}")

    def _pass_on(self, rank: int) -> None:
        chosen = self._next(rank)
        if chosen is None:
            if self._progress.active:
                self._progress.drive(lambda: self._next(rank) is not None or not self._progress.active)
            chosen = self._next(rank)  # again: what was in flight may have come to its end in between
        if chosen is None:
            self._deadlock = self._explain()
            if rank not in self._finished:
                return
            chosen = next(r for r in self._ranks if r not in self._finished)
        elif self._progress.active and chosen != rank:
            self._progress.background()
        if chosen == rank:
            return
        self._turn[chosen].release()
        if rank not in self._finished:
            self._turn[rank].acquire()
            self._resume(rank)

    def _next(self, rank: int) -> int | None:
        """Return the first rank after ``rank``, cyclically and ``rank`` last, that can go on."""
        first = rank - self._ranks[0] + 1
        for offset in range(len(self._ranks)):
            candidate = self._ranks[(first + offset) % len(self._ranks)]
            if candidate in self._finished:
                continue
            call = self._waits_for[candidate]
            if call is None or call.finished or self.failed is not None or self._deadlock:
                return candidate
        return None

    def _resume(self, rank: int) -> None:
        self.running = rank
        if self._on_switch is not None:
            self._on_switch(rank)

    def _explain(self) -> str:
        lines: dict[str, list[int]] = {}
        for rank in self._ranks:
            call = self._waits_for[rank]
            what = "finished" if rank in self._finished or call is None else f"in {call.name}"
            lines.setdefault(what, []).append(rank)
        return (
            "deadlock: no rank of this process can go on, each waits for a call that another never makes:\n"
            + "\n".join(f"  {name_ranks(who)}: {what}" for what, who in lines.items())
            + "\nAll ranks of a group must make the same calls in the same order."
        )
