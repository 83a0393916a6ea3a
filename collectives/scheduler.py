"""Ranks as threads of one process, exactly one running at a time, in an order that never changes.

A rank runs until it must wait in a collective; then the baton goes to the next rank, in rank order, that can
go on. With a seed it may also go on at each call, and to any rank that can, drawn by the seed: the same seed gives
the same order. If none can go on and nothing is in flight that could change this, the ranks are in a deadlock, and
that is proven.
"""

import os
import random
import sys
import threading
from collections.abc import Callable
from types import FrameType

from disttrain.collectives.call import Call, name_ranks
from disttrain.collectives.errors import Deadlock, PeerFailed
from disttrain.collectives.progress import Progress


def _closed_gate() -> threading.Lock:
    """A lock that opens for one thread at each ``release()``: five times as fast as a semaphore."""
    gate = threading.Lock()
    gate.acquire()
    return gate


class Baton:
    """Who may run. All methods but :meth:`start` are called by the thread of a hosted rank.

    Args:
        seed: of the order; below 0 it is that of the ranks.
        on_switch: called with the rank that is about to run, in its thread.
    """

    def __init__(
        self,
        ranks: range,
        progress: Progress,
        seed: int = -1,
        on_switch: Callable[[int], None] | None = None,
    ) -> None:
        self.running: int | None = None
        self.failed: tuple[int, BaseException] | None = None
        """The first rank that raised, and what."""
        self._ranks = ranks
        self._progress = progress
        self._on_switch = on_switch
        self._turn = {rank: _closed_gate() for rank in ranks}
        self._waits_for: dict[int, Call | None] = dict.fromkeys(ranks)
        self.finished: set[int] = set()
        """The ranks that have returned or raised."""
        self._deadlock = ""
        self._drawn = random.Random(seed) if seed >= 0 else None
        self.threads: dict[int, int] = {}
        """``threading.get_ident()`` of each rank."""
        self._pid = os.getpid()

    def start(self) -> None:
        """Let the first rank run."""
        first = self._ranks[0] if self._drawn is None else self._drawn.choice(self._ranks)
        self._turn[first].release()

    def enter(self, rank: int) -> None:
        """Wait for the first turn of ``rank``, whose thread the caller is."""
        self.threads[rank] = threading.get_ident()
        self._turn[rank].acquire()
        self._resume(rank)

    def wait(self, rank: int, call: Call) -> None:
        """Let others run until ``call`` has finished.

        Raises:
            Deadlock: no rank of this process can ever go on.
            PeerFailed: another rank of this process failed.
            RuntimeError: the caller is not the thread of the rank, but one that it has started, or a fork.
        """
        if call.finished:
            return
        self._check_thread(rank, call)
        self.check()
        self._check_imports(rank, call)
        self._waits_for[rank] = call
        self._pass_on(rank)
        self._waits_for[rank] = None
        if not call.finished:
            self.check()

    def offer(self, rank: int) -> None:
        """Let every other rank that can run do so before ``rank`` goes on."""
        if self.failed is None and threading.get_ident() == self.threads[rank]:
            self._pass_on(rank)

    def before_call(self, rank: int) -> None:
        """Let others run before ``rank`` makes a call, if the seed says so."""
        if self._drawn is not None and not self._is_importing():
            self.offer(rank)

    def leave(self, rank: int, error: BaseException | None) -> None:
        """``rank`` has returned, or raised ``error``."""
        if error is not None and self.failed is None:
            self.failed = (rank, error)
        self.finished.add(rank)
        if len(self.finished) < len(self._ranks):
            self._pass_on(rank)

    def check(self) -> None:
        """Raise if a rank of this process has failed, so that a call made now could never complete."""
        if self._deadlock:
            raise Deadlock(self._deadlock)
        if self.failed is not None:
            rank, error = self.failed
            raise PeerFailed(f"rank {rank} failed with {type(error).__name__}: {error}")

    def _check_thread(self, rank: int, call: Call) -> None:
        if os.getpid() != self._pid:
            who = f"a fork of rank {rank}"
        elif threading.get_ident() != self.threads[rank]:
            who = f"a thread that rank {rank} has started"
        else:
            return
        raise RuntimeError(
            f"{who} cannot wait in {call.name}: where ranks are threads of one process, only the rank's own thread "
            f"can wait for the others; make the call there, or give each rank a process (disttrain launch -n "
            f"{len(self._ranks)})"
        )

    def _check_imports(self, rank: int, call: Call) -> None:
        """Refuse to wait inside an import: the other ranks would wait for Python's lock on it, and nobody see it."""
        if (module := self._is_importing()) and len(self.finished) + 1 < len(self._ranks):
            raise Deadlock(
                f"rank {rank} is in {call.name} while it imports {module}, which the other ranks of this process "
                f"cannot import before; make the call after the import, for example in a function"
            )

    def _is_importing(self) -> str:
        """Return the file that the calling thread is importing; "" if none."""
        frame: FrameType | None = sys._getframe(1)
        inner = ""
        while frame is not None:
            name = frame.f_code.co_filename
            if name == "<frozen importlib._bootstrap>":
                return inner or "a module"
            if frame.f_code.co_name == "<module>":
                inner = name
            frame = frame.f_back
        return ""

    def _pass_on(self, rank: int) -> None:
        chosen = self._choose(rank)
        if chosen is None:
            if self._progress.active:
                self._progress.drive(lambda: self._next(rank) is not None or not self._progress.active)
            chosen = self._choose(rank)  # again: what was in flight may have come to its end in between
        if chosen is None:
            self._deadlock = self._explain()
            if rank not in self.finished:
                return
            chosen = next(r for r in self._ranks if r not in self.finished)
        elif self._progress.active and chosen != rank:
            self._progress.background()
        if chosen == rank:
            return
        self._turn[chosen].release()
        if rank not in self.finished:
            self._turn[rank].acquire()
            self._resume(rank)

    def _choose(self, rank: int) -> int | None:
        """Return the rank that goes on when ``rank`` stops: the next one, or one drawn; None if none can."""
        if self._drawn is None:
            return self._next(rank)
        able = [r for r in self._ranks if self._can_go_on(r)]
        return self._drawn.choice(able) if able else None

    def _next(self, rank: int) -> int | None:
        """Return the first rank after ``rank``, cyclically and ``rank`` last, that can go on."""
        first = rank - self._ranks[0] + 1
        for offset in range(len(self._ranks)):
            candidate = self._ranks[(first + offset) % len(self._ranks)]
            if self._can_go_on(candidate):
                return candidate
        return None

    def _can_go_on(self, rank: int) -> bool:
        if rank in self.finished:
            return False
        call = self._waits_for[rank]
        return call is None or call.finished or self.failed is not None or bool(self._deadlock)

    def _resume(self, rank: int) -> None:
        self.running = rank
        if self._on_switch is not None:
            self._on_switch(rank)

    def _explain(self) -> str:
        lines: dict[str, list[int]] = {}
        for rank in self._ranks:
            call = self._waits_for[rank]
            what = "finished" if rank in self.finished or call is None else f"in {call.name}"
            lines.setdefault(what, []).append(rank)
        return (
            "deadlock: no rank of this process can go on, each waits for a call that another never makes:\n"
            + "\n".join(f"  {name_ranks(who)}: {what}" for what, who in lines.items())
            + "\nAll ranks of a group must make the same calls in the same order."
        )
