"""Asking another process of this node where its Python code is, also while native code holds the interpreter.

Every process lets :mod:`faulthandler` answer a signal, in C, by writing its stacks into an anonymous file; whoever
asks opens that file through ``/proc``.
"""

import faulthandler
import os
import re
import signal
import time
from typing import Any

import numpy

from disttrain.collectives.call import NOT_THE_CALLER

_SIGNAL = signal.SIGRTMIN + 11
_PATIENCE_S = 1.0
_MOST_FRAMES = 8
_FRAME = re.compile(r'  File "(.*)", line (\d+|\?\?\?) in (.*)')
_STATES = {"T": "is stopped (SIGSTOP)", "t": "is stopped by a debugger", "Z": "has ended", "X": "has ended"}


class Stacks:
    """What the processes of a group on one node can ask each other.

    Args:
        comm: an MPI communicator over the processes; all of them make this together.
    """

    def __init__(self, comm: Any) -> None:
        self._descriptor = os.memfd_create("disttrain stacks")
        faulthandler.register(_SIGNAL, file=self._descriptor, all_threads=True)
        self._everyone = numpy.empty((comm.Get_size(), 2), numpy.int64)
        comm.Allgather(numpy.array([os.getpid(), self._descriptor], numpy.int64), self._everyone)

    def ask(self, process: int) -> list[str]:
        """Return lines on where the main thread of ``process`` is, outermost first, or why that cannot be said."""
        pid, descriptor = self._everyone[process].tolist()
        try:
            state = _state(pid)
            if state in _STATES:
                return [_STATES[state]]
            # A process that is no longer ours has another file there, or none: it must not get the signal.
            with open(f"/proc/{pid}/fd/{descriptor}", "rb") as file:
                if "disttrain stacks" not in os.readlink(f"/proc/{pid}/fd/{descriptor}"):
                    return ["has been replaced by another program"]
                file.seek(0, os.SEEK_END)
                os.kill(pid, _SIGNAL)
                text = _read_on(file)
        except OSError as error:
            return [f"cannot be asked where it is: {error}"]
        return _frames(text) or [f"did not answer within {_PATIENCE_S:g} s"]


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(") ")[2][:1]


def _read_on(file: Any) -> str:
    """Return what is written into ``file`` from here on, until nothing more comes."""
    text = b""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        more = file.read()
        if text and not more:
            break
        text += more
        time.sleep(0.02)
    return text.decode(errors="replace")


def _frames(text: str) -> list[str]:
    """Return the innermost frames of the user's code in the main thread, which is written last."""
    threads = re.split(r"\n\n?(?=(?:Current thread|Thread) 0x)", text)
    found = [match.groups() for match in map(_FRAME.match, threads[-1].splitlines()) if match]
    inside = os.getcwd() + os.sep
    users = [frame for frame in found if not frame[0].startswith(NOT_THE_CALLER)] or found
    return [
        f"{name.removeprefix(inside)}:{line} in {function}"
        for name, line, function in reversed(users[:_MOST_FRAMES])
    ]
