"""Asking another process of this node where its Python code is, also while native code holds the interpreter.

Every process lets :mod:`faulthandler` answer a signal, in C, by writing its stacks into an anonymous file; whoever
asks opens that file through ``/proc``. Standard library only: the launcher asks too.
"""

import contextlib
import faulthandler
import os
import re
import signal
import threading
import time
from functools import cache
from typing import Any

from disttrain.collectives.ledger import relative

_FILE = "disttrain stacks"
_NOT_USERS = (
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,
    contextlib.__file__,
    threading.__file__,
    "<frozen ",
)
PATIENCE_S = 1.0
_MOST_FRAMES = 8
_THREAD = re.compile(r"(?:Current thread|Thread) (0x[0-9a-f]+)")
_FRAME = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)')
_STATES = {
    "T": "is stopped (SIGSTOP)",
    "t": "is stopped by a debugger",
    "Z": "has ended",
    "X": "has ended",
}


@cache
def answer() -> int:
    """Let this process answer from now on; return the descriptor of the file that holds the answers, -1 without."""
    if not hasattr(os, "memfd_create"):
        return -1
    descriptor = os.memfd_create(_FILE)
    faulthandler.register(_signal(), file=descriptor, all_threads=True)
    return descriptor


def _signal() -> int:
    return signal.SIGRTMIN + 11


def is_stopped(pid: int) -> bool:
    """Return whether a signal has stopped the process; a debugger does not count."""
    return trouble(pid) == _STATES["T"]


def trouble(pid: int) -> str:
    """Return why the process cannot go on, as far as the kernel knows: ``is stopped (SIGSTOP)``; "" if it can."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return _STATES.get(file.read().rpartition(") ")[2][:1], "")
    except FileNotFoundError:
        return _STATES["X"]
    except OSError as error:
        return f"cannot be asked where it is: {error}"


def ask(pid: int, descriptor: int, *, wake: bool = False, most: int = _MOST_FRAMES) -> dict[int, list[str]]:
    """Return the innermost frames of the user's code in each thread of a process, outermost first.

    Nothing if it does not answer within a second. Threads are known by ``threading.get_ident()``; 0 is the main one.

    Args:
        wake: whether a process that is stopped (SIGSTOP) may run on for the milliseconds that it needs to answer.
        most: frames of a thread.
    """
    path = f"/proc/{pid}/fd/{descriptor}"
    try:
        # A process that is no longer ours has another file there, or none: it must not get the signal.
        with open(path, "rb") as file:
            if _FILE not in os.readlink(path):
                return {}
            file.seek(0, os.SEEK_END)
            os.kill(pid, _signal())
            stopped = wake and trouble(pid) == _STATES["T"]
            if stopped:
                os.kill(pid, signal.SIGCONT)
            try:
                text = _read_on(file)
            finally:
                if stopped:
                    os.kill(pid, signal.SIGSTOP)
    except OSError:
        return {}
    parts = _THREAD.split(text)[1:]  # the main thread is written last
    frames = {
        int(ident, 16): _frames(part, most) for ident, part in zip(parts[::2], parts[1::2], strict=True)
    }
    return frames | {0: next(reversed(frames.values()))} if frames else {}


def _read_on(file: Any) -> str:
    """Return what is written into ``file`` from here on, until nothing more comes."""
    text = b""
    quiet = 0
    deadline = time.monotonic() + PATIENCE_S
    while quiet < 5 and time.monotonic() < deadline:
        more = file.read()
        text += more
        quiet = quiet + 1 if text and not more else 0
        time.sleep(0.002)
    return text.decode(errors="replace")


def _frames(text: str, most: int) -> list[str]:
    found = [match.groups() for match in map(_FRAME.match, text.splitlines()) if match]
    users = [frame for frame in found if not frame[0].startswith(_NOT_USERS)] or found
    return [f"{relative(name)}:{line} in {function}" for name, line, function in reversed(users[:most])]
