"""Ctrl-C while a command is still being loaded. Python would show a traceback of the imports, or even lose it there.

Standard library only: it is loaded before all else.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

TEXT: Final = "disttrain: stopped by SIGINT"
CODE: Final = 128 + signal.SIGINT


@contextmanager
def ends_at_once() -> Iterator[None]:
    """Have Ctrl-C end this process with a line and exit code 130, as long as it has nothing to clean up.

    Where Ctrl-C is ignored, or handled already, that stays so. Call it in the main thread.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, f"{TEXT}\n".encode())
    os._exit(CODE)
