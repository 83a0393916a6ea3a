"""Asking another process of this node where its Python code is, also while native code holds the interpreter.

Every process lets :mod:`faulthandler` answer a signal, in C, by writing the stack of the thread that gets it into an
anonymous file; whoever asks opens that file through ``/proc``. A thread answers for itself alone: the frames of one
that runs on meanwhile cannot be read safely. Standard library only: the launcher asks too.
"""

import contextlib
import ctypes
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
MOST_FRAMES = 8
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
    descriptor = new_file()
    if descriptor >= 0:
        answer_into(descriptor)
    return descriptor


def new_file() -> int:
    """Return the descriptor of a new file for answers, -1 where the system has none: for a child that is to answer."""
    return os.memfd_create(_FILE) if hasattr(os, "memfd_create") else -1


def answer_into(descriptor: int) -> None:
    """Let this process answer into a file that :func:`new_file` has made."""
    faulthandler.register(_signal(), file=descriptor, all_threads=False)


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


def ask(
    pid: int, descriptor: int, thread: int = 0, *, wake: bool = False, most: int = MOST_FRAMES
) -> list[str]:
    """Return the innermost frames of the user's code in a thread of a process, outermost first.

    Nothing if it does not answer within a second.

    Args:
        thread: its ``threading.get_native_id()``; 0 is the main one.
        wake: whether a process that is stopped (SIGSTOP) may run on for the milliseconds that it needs to answer.
        most: frames of a thread.
    """
    path = f"/proc/{pid}/fd/{descriptor}"
    try:
        # A process that is no longer ours has another file there, or none: it must not get the signal.
        with open(path, "rb") as file:
            if _FILE not in os.readlink(path):
                return []
            file.seek(0, os.SEEK_END)
            _send(pid, thread or pid)
            stopped = wake and trouble(pid) == _STATES["T"]
            if stopped:
                os.kill(pid, signal.SIGCONT)
            try:
                text = _read_on(file)
            finally:
                if stopped:
                    os.kill(pid, signal.SIGSTOP)
    except OSError:
        return []
    return _frames(text, most)


def _send(pid: int, thread: int) -> None:
    """Send the signal to one thread of a process.

    Raises:
        OSError: there is no such thread, or it cannot be asked: a C library without ``tgkill`` (glibc before 2.30).
    """
    tgkill = getattr(ctypes.CDLL(None, use_errno=True), "tgkill", None)
    if tgkill is None:
        raise OSError("the C library has no tgkill()")
    if tgkill(pid, thread, int(_signal())) != 0:
        raise OSError(ctypes.get_errno(), f"thread {thread} of process {pid}")


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
