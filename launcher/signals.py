"""Signals to the launcher, each event once, whoever else was told of it."""

import math
import os
import selectors
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

ONE_EVENT: Final = 2.0
"""Seconds within which a signal of an agent and the same one of this process's own are of one event."""
_CAUGHT: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Signals:
    """Hands signals to ``take`` in the main loop: those to this process, and those that agents pass on.

    A batch system tells the agents and the launcher of one event.
    """

    def __init__(self, take: Callable[[signal.Signals], None]) -> None:
        self._take = take
        self._came: list[signal.Signals] = []
        self._known: set[signal.Signals] = set()
        """What this process has been sent itself."""
        self._passed_on: dict[signal.Signals, float] = {}
        """When agents have passed a signal on, by the monotonic clock."""

    def catch(self, selector: selectors.BaseSelector) -> Callable[[], None]:
        """Note signals from now on, and take them when ``selector`` says so; return what undoes it."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        before_fd = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        before: dict[signal.Signals, Any] = {}
        for s in _CAUGHT:
            if signal.getsignal(s) is not signal.SIG_IGN:  # nohup, a shell's background job
                before[s] = signal.signal(s, self.note)

        def on_wakeup() -> None:
            try:
                os.read(read, 64)
            except BlockingIOError:
                return
            self.take_noted()

        selector.register(read, selectors.EVENT_READ, on_wakeup)

        def restore() -> None:
            for s, handler in before.items():
                signal.signal(s, handler)
            signal.set_wakeup_fd(before_fd)
            os.close(read)
            os.close(write)

        return restore

    def note(self, number: int, _: FrameType | None = None) -> None:
        """Remember a signal to this process, in whatever is going on."""
        self._came.append(signal.Signals(number))

    def take_noted(self) -> None:
        """Take what this process was sent, unless agents have just passed on the same."""
        came, self._came = self._came, []
        for s in came:
            first = s not in self._known
            self._known.add(s)
            if not first or time.monotonic() - self._passed_on.get(s, -math.inf) > ONE_EVENT:
                self._take(s)

    def take_of_agents(self, number: int) -> None:
        """Take what agents have been sent, unless this process was sent the same."""
        s = signal.Signals(number)
        self._passed_on[s] = time.monotonic()
        if s not in self._known:
            self._take(s)
