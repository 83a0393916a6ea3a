"""Driving the operations in flight of one process: each is a generator that yields what it waits for.

Operations of one *lane* (a group, or one direction between two ranks) run one after the other; lanes run side
by side. Whoever waits drives all of them, holding one lock, so MPI is never entered by two threads at a time;
a background thread drives while operations are in flight and nobody waits. While the other ranks have not
come yet the driver sleeps and leaves the core to whoever computes; once they have, it polls. The background thread
sleeps the longest: who computes polls too, whenever it starts another operation, and loses no core by that.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Sequence
from enum import Enum
from typing import Any

from disttrain.collectives.call import Call
from disttrain.collectives.errors import CollectiveError
from disttrain.collectives.transport import Request

Wait = tuple[Request, bool]
"""Something in flight, and whether it waits for another rank to come (so that sleeping is in order)."""
Steps = Generator[Wait, None, None]

_SPIN_S = 200e-6
"""A rank that comes this soon is met without the cost of a sleep."""
_AT_ONCE = 16
"""So often we look before we yield the core, which costs more than to look."""
_SLEEP_SHARE, _SLEEP_MAX_S = 0.02, 2e-3
"""After that a sleep is this share of the time waited so far: it delays no call by more."""
_NAP_SHARE, _NAP_MIN_S, _NAP_MAX_S = 0.25, 1e-3, 10e-3
"""The same where nobody waits, and where to wake costs somebody the core and the interpreter."""


class Operation:
    """One collective, or one message, on its way: the calls of this process's ranks and the steps to go."""

    __slots__ = ("calls", "lane", "over", "patient", "since", "steps", "test")

    def __init__(self, lane: Hashable, calls: Sequence[Call], steps: Steps) -> None:
        self.lane = lane
        self.calls = calls
        self.steps = steps
        self.test: Request | None = None
        self.patient = False
        self.over = False
        self.since = 0.0
        """When it began to wait for what it waits for, by ``time.monotonic()``; 0 before it has begun."""

    def wait(self, test: Request, patient: bool) -> None:
        """Go on once ``test`` says so; ``patient``: that is up to another rank."""
        self.test = test
        self.patient = patient
        self.since = time.monotonic()

    def finish(self, error: BaseException | None) -> None:
        """Mark the calls as finished, each with an error of its own: they are raised in different threads."""
        self.over = True
        for call in self.calls:
            call.finish(None if error is None else _copy(error))


class Pace(Enum):
    """What one round of polling found."""

    IDLE = "nothing is in flight"
    MOVED = "something advanced"
    PATIENT = "all wait for other ranks"
    BUSY = "data is moving"


class Progress:
    """The operations in flight of one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        """Held by whoever enters MPI."""
        self._inbox: deque[Operation] = deque()
        self._lanes: dict[Hashable, deque[Operation]] = {}
        self._abandoned: list[Operation] = []
        """Those that timed out or were cut off: a late peer may still write into their arrays, which are not freed."""
        self._waiting = 0
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._stop = False

    @property
    def active(self) -> bool:
        """Whether anything is in flight."""
        with self.lock:  # not while an operation is on its way from the inbox to its lane
            return self._some()

    def _some(self) -> bool:
        return bool(self._inbox or self._lanes)

    def submit(self, operation: Operation) -> None:
        """Queue ``operation`` behind those of its lane and start it if it is the first."""
        self._inbox.append(operation)
        if self.lock.acquire(blocking=False):  # else whoever holds it sees the inbox before it sleeps
            try:
                self._poll()
            finally:
                self.lock.release()
        if self._thread is not None and self._some() and not self._waiting:
            self._wake.set()

    def enter(self) -> bool:
        """Take the lock if nobody has it and nothing is in flight; the caller has to release it."""
        if self._inbox or self._lanes or not self.lock.acquire(False):
            return False
        if self._inbox or self._lanes:  # came in between
            self.lock.release()
            return False
        return True

    def take(self, operation: Operation) -> None:
        """Drive ``operation`` from now on, the only one in flight; the caller holds the lock."""
        self._lanes[operation.lane] = deque([operation])

    def run(self, lane: Hashable, calls: Sequence[Call], steps: Steps) -> None:
        """:meth:`submit`, and stay with the operation for a moment if nothing else is in flight.

        A call that the other ranks make at the same time is over before the machinery of lanes would have begun.
        """
        if not self.enter():
            self.submit(Operation(lane, calls, steps))
            return
        try:
            wait = advance(steps)
            if wait is not None:
                operation = Operation(lane, calls, steps)
                operation.wait(*wait)
                self.take(operation)
                return
            for call in calls:
                call.finish()
        except Exception as error:
            Operation(lane, calls, steps).finish(error)
        except BaseException as error:
            self.interrupt(Operation(lane, calls, steps), error)
            raise
        finally:
            self.lock.release()

    def poll(self) -> None:
        """Advance what can be advanced now."""
        with self.lock:
            self._poll()

    def heads(self) -> list[Operation]:
        """Return the operations that have begun and have not ended."""
        with self.lock:
            return [lane[0] for lane in self._lanes.values() if lane and lane[0].since]

    def abandon(self, operation: Operation, since: float, error: BaseException) -> bool:
        """Fail ``operation`` and all behind it, which are out of step with their peers for good.

        Returns:
            Whether that has been done: not if it has moved on since ``since``.
        """
        with self.lock:
            lane = self._lanes.get(operation.lane)
            if not lane or lane[0] is not operation or operation.since != since:
                return False
            if self._advance(operation):
                if operation.over:
                    lane.popleft()
                return False
            del self._lanes[operation.lane]
            self._abandoned.append(operation)
            lane += [late for late in self._inbox if late.lane == operation.lane]
            self._inbox = deque(late for late in self._inbox if late.lane != operation.lane)
            for late in lane:
                late.finish(error)
            return True

    def background(self) -> None:
        """Keep what is in flight going while nobody waits for it."""
        if not self.active:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="disttrain communication", daemon=True)
            self._thread.start()
        self._wake.set()

    def drive(self, ready: Callable[[], Any]) -> None:
        """Advance operations in this thread until ``ready()``."""
        with self.lock:
            self._waiting += 1
            self._wake.clear()
        pause = _Pause()
        try:
            while True:
                with self.lock:
                    pace = self._poll()
                if ready():
                    return
                pause(pace)
        finally:
            with self.lock:
                self._waiting -= 1
                if not self._waiting and self._thread is not None and self._some():
                    self._wake.set()

    def close(self) -> None:
        """Stop the background thread."""
        self._stop = True
        if self._thread is not None:
            self._wake.set()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        pause = _Pause(background=True)
        while True:
            if not self._wake.is_set():
                self._wake.wait()
                pause(Pace.MOVED)
                pause(Pace.PATIENT)  # whoever has woken us has just polled
            if self._stop:
                return
            with self.lock:
                pace = self._poll()
                if pace is Pace.IDLE:
                    self._wake.clear()
                    if self._inbox or self._stop:  # came after the poll, before the clear
                        self._wake.set()
            pause(pace)

    def _poll(self) -> Pace:
        while self._inbox:
            operation = self._inbox.popleft()
            self._lanes.setdefault(operation.lane, deque()).append(operation)
        if not self._lanes:
            return Pace.IDLE
        moved = busy = False
        for key, lane in list(self._lanes.items()):
            while lane:
                operation = lane[0]
                try:
                    if not self._advance(operation):
                        busy |= not operation.patient
                        break
                finally:
                    if operation.over:
                        lane.popleft()
                moved = True
            if not lane:
                del self._lanes[key]
        return Pace.MOVED if moved else Pace.BUSY if busy else Pace.PATIENT

    def _advance(self, operation: Operation) -> bool:
        """Advance an operation, the first of its lane, by one step; return whether it did."""
        try:
            if operation.test is not None and not operation.test():
                return False
            operation.wait(*next(operation.steps))
        except StopIteration:
            operation.finish(None)
        except Exception as error:
            operation.finish(error)
        except BaseException as error:
            self.interrupt(operation, error)
            raise
        return True

    def interrupt(self, operation: Operation, error: BaseException) -> None:
        """Fail ``operation``, which a Ctrl-C has cut off between two steps: its group is out of step for good."""
        self._abandoned.append(operation)
        operation.finish(error)
        for call in operation.calls:
            call.group.broken = CollectiveError(f"{type(error).__name__} has cut off {call.name}")
            call.group.host.told.add(call.group.ranks[call.index])  # it is raised in the rank's own thread


class _Pause:
    """How long to stay away between two polls: a yield of the core, or a sleep that grows.

    Args:
        background: whether nobody waits for what is polled.
    """

    def __init__(self, *, background: bool = False) -> None:
        self._background = background
        self._quiet_since = time.monotonic()

    def __call__(self, pace: Pace) -> None:
        now = time.monotonic()
        if pace is Pace.MOVED or pace is Pace.IDLE:
            self._quiet_since = now
            return
        waited = now - self._quiet_since
        if pace is Pace.PATIENT and self._background:
            time.sleep(min(max(waited * _NAP_SHARE, _NAP_MIN_S), _NAP_MAX_S))
        elif waited < _SPIN_S or (pace is Pace.BUSY and not self._background):
            os.sched_yield()
        else:
            time.sleep(min(waited * _SLEEP_SHARE, _SLEEP_MAX_S))


def comes_soon(test: Request) -> bool:
    """Return whether what is waited for comes in a moment."""
    for _ in range(_AT_ONCE):
        if test():
            return True
    until = time.monotonic() + _SPIN_S
    while time.monotonic() < until:
        os.sched_yield()
        if test():
            return True
    return False


def advance(steps: Steps) -> Wait | None:
    """Take ``steps`` as long as what each waits for comes in a moment; return what does not, None at the end."""
    for wait in steps:
        if not comes_soon(wait[0]):
            return wait
    return None


def _copy(error: BaseException) -> BaseException:
    try:
        twin = type(error)(*error.args)
    except Exception:  # a constructor of other arguments: share the object, only its traceback gets mixed
        return error
    # Where ours were raised says nothing to a user; where others were may be all there is.
    twin.__cause__ = error.__cause__ if isinstance(error, CollectiveError) else error
    return twin
