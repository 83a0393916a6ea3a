"""How long to wait before a job is started again."""

from typing import Final

FIRST: Final = 1.0
"""Seconds of the first wait; doubled each time."""
MOST: Final = 30.0
GOT_SOMEWHERE: Final = 10.0
"""Seconds after which a generation that failed has not failed at once, even if its ranks never communicated."""


class BackOff:
    """Waits longer and longer for a job that fails at once, each time; any other is started again without a wait."""

    def __init__(self) -> None:
        self._at_once = 0

    def after(self, seconds: float, *, communicated: bool) -> float:
        """Return how many seconds to wait after a generation that failed after ``seconds``."""
        if communicated or seconds >= GOT_SOMEWHERE:
            self._at_once = 0
            return 0.0
        self._at_once += 1
        return 0.0 if self._at_once == 1 else min(FIRST * 2 ** (self._at_once - 2), MOST)
