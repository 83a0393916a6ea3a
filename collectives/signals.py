"""Signals that announce the end of a job to its ranks: the launcher decides what they mean for all of them.

Standard library only.
"""

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Final

_RANK: Final = os.getpid()


def forward(number: int, frame: FrameType | None) -> None:
    """Pass a signal on to the launcher, as SIGUSR1; a child of the rank, which has inherited this, obeys it."""
    if os.getpid() == _RANK:
        os.kill(os.getppid(), signal.SIGUSR1)
        return
    _obey(number)


def forward_sigterm(is_ending: Callable[[], bool]) -> None:
    """Pass SIGTERM on too, unless the script handles it. Once the job ``is_ending`` the launcher sends it: obey."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if is_ending():
            _obey(number)
        forward(number, frame)

    signal.signal(signal.SIGTERM, handle)


def _obey(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
