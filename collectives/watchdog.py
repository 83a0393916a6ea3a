"""A thread that looks after what is in flight on the GPU, where nobody waits on the CPU.

When something there fails, or does not come to an end in time, what the script goes on to compute is wrong. So the
threads of the ranks get the error wherever they are, at their next step in Python, and the communicators are aborted,
which wakes a thread that waits for the GPU. If that does not help (NCCL may not return from it), the job is ended.
"""

import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from disttrain.collectives.call import Call, name_ranks
from disttrain.collectives.errors import CollectiveTimeout
from disttrain.collectives.nccl import Link

_LOOK_S = 0.05
_PATIENCE_S = 10.0
"""How long after an abort a rank may take to notice its error."""


class Flight:
    """Calls whose work has been put into a stream, or is being."""

    __slots__ = ("calls", "event", "link", "ranks", "since")

    def __init__(self, calls: Sequence[Call], ranks: Sequence[int], link: Link | None) -> None:
        self.calls = calls
        """With their arrays, whose memory must not be used for others before."""
        self.ranks = ranks
        self.link = link
        self.since = time.monotonic()
        self.event: Any = None
        """When it is over, once all of it has been put into the stream."""

    @property
    def done(self) -> bool:
        """Whether it is over."""
        return self.event is not None and bool(self.event.done)


class Watchdog:
    """Looks after the flights of one process.

    Args:
        give_up: is called with the error, once, before anything is aborted.
        end_the_job: is called with the reason if ranks do not notice.
    """

    def __init__(self, give_up: Callable[[BaseException], None], end_the_job: Callable[[str], None]) -> None:
        self.links: dict[tuple[int, ...], Link] = {}
        """All communicators of the process, by what they connect for."""
        self.error: BaseException | None = None
        self._give_up = give_up
        self._end_the_job = end_the_job
        self._flights: list[Flight] = []
        self._threads: set[int] = set()
        self._noticed = threading.Event()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stop = False

    def look_after(self, thread: int) -> None:
        """Raise failures in that thread too."""
        self._threads.add(thread)

    def begin(self, flight: Flight) -> Flight:
        """Watch ``flight`` from now on, and keep its arrays until it is over."""
        with self._changed:
            self._flights.append(flight)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="disttrain watchdog", daemon=True)
                self._thread.start()
            self._changed.notify()
        return flight

    def drop(self, flight: Flight) -> None:
        """Watch it no more: it failed on its way."""
        with self._changed:
            self._flights.remove(flight)

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight."""
        with self._changed:
            self._flights = [f for f in self._flights if not f.done]
            return not self._flights

    def close(self) -> None:
        """Stop looking."""
        with self._changed:
            self._stop = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_PATIENCE_S)

    def abort(self) -> None:
        """Abort all communicators, in a thread that nobody waits for."""
        links, self.links = list(self.links.values()), {}
        if not links:
            return

        def run() -> None:
            for link in links:
                link.abort()

        # Whoever drops a communicator that was not aborted may hang: the thread holds them until they are.
        threading.Thread(target=run, name="disttrain abort", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._flights and not self._stop:
                    self._changed.wait()
                if self._stop:
                    return
                self._flights = [f for f in self._flights if not f.done]
                flights = list(self._flights)
            error = self._look(flights)
            if error is not None:
                self._fail(error)
                return
            with self._changed:
                self._changed.wait_for(lambda: self._stop, _LOOK_S)

    def _look(self, flights: Sequence[Flight]) -> BaseException | None:
        for flight in flights:
            call = flight.calls[0]
            waited = time.monotonic() - flight.since
            try:
                if flight.event is not None and flight.link is not None:
                    flight.link.check()
            except Exception as error:
                return type(error)(f"{name_ranks(flight.ranks)} in {call} at {call.place}: {error}")
            if waited > call.group.timeout and not flight.done:
                return CollectiveTimeout(
                    f"{name_ranks(flight.ranks)} waited {waited:.1f} s for the GPU in {call} at {call.place}, which "
                    f"all ranks have begun; look for a process that stopped, or for GPUs that cannot reach each other "
                    f"(NCCL_DEBUG=INFO says more)"
                )
        return None

    def _fail(self, error: BaseException) -> None:
        self.error = error
        self._give_up(error)
        for thread in self._threads:
            _raise_in(thread, error, self._noticed)
        self.abort()
        if not self._noticed.wait(_PATIENCE_S) and not self._stop:
            self._end_the_job(f"{type(error).__name__}: {error}")


def _raise_in(thread: int, error: BaseException, noticed: threading.Event) -> None:
    """Raise ``error`` at the next step of the Python code of ``thread``."""
    kind = type(error)

    def __init__(self: BaseException, *args: object) -> None:
        noticed.set()
        kind.__init__(self, *(args or error.args))

    # Python takes a class here, not an exception, and makes one of it when the thread comes to it.
    twin = type(kind.__name__, (kind,), {"__init__": __init__, "__module__": kind.__module__})
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(twin))
