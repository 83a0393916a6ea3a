"""Where a running job is asked and told: a socket file in its run directory, which only its user can enter.

A question is one line of JSON of a closed list of kinds (:data:`QUESTIONS`), and so is the answer; nothing is ever
evaluated. ``disttrain.launcher.jobs`` is the other side.
"""

import json
import os
import selectors
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from disttrain.collectives.control import BadMessage, Message, decode

MAX_QUESTION: Final = 4096
"""Bytes of one question."""
_MAX_CALLERS: Final = 32
_CHUNK: Final = 64 << 10

_COMMON: Final[Mapping[str, type]] = {"v": int, "kind": str, "run": str}
QUESTIONS: Final[Mapping[str, Mapping[str, type]]] = {
    # What are the job and its ranks, and how far have they come?
    "status": {},
    # Where is a rank of another node in its Python code? Asked ``again`` until the answer is ``done``.
    "stack": {"rank": int, "again": bool},
    # Do something after a step: "save", "stop", "pause" or "resume".
    "ctl": {"command": str},
    # End the job now, as SIGTERM does.
    "kill": {},
}
ANSWERS: Final[Mapping[str, Mapping[str, type]]] = {
    "status": {"job": dict, "ranks": list},
    "stack": {"done": bool, "lines": list},
    # Whether it is being done; if not, why not; if so, how often each rank will have done it then.
    "reply": {"done": bool, "text": str, "number": int},
    "bad": {"text": str},
}


def decode_question(data: bytes) -> Message:
    """Return the question in ``data``, which may be anything anybody sent.

    Raises:
        BadMessage: too long, no JSON, too deep, or not of the schema.
    """
    if len(data) > MAX_QUESTION:
        raise BadMessage(f"more than {MAX_QUESTION} bytes")
    return decode(data, QUESTIONS, _COMMON)


def decode_answer(data: bytes) -> Message:
    """Return the answer of a launcher in ``data``.

    Raises:
        BadMessage: no JSON, too deep, or not of the schema.
    """
    return decode(data, ANSWERS, _COMMON)


class Desk:
    """Takes questions in the launcher's loop, and never waits for whoever asks.

    Args:
        path: of the socket file; its folder is the user's alone.
        run: the id of the job, which every question names.
        selector: of the launcher's loop; its entries' data are functions to be called.
        answer: what answers a question, at once.
    """

    def __init__(
        self,
        path: Path,
        run: str,
        selector: selectors.BaseSelector,
        answer: Callable[[Message], dict[str, Any]],
    ) -> None:
        self.bad = 0
        """Number of questions that made no sense."""
        self._path, self._run, self._selector, self._answer = path, run, selector, answer
        self._callers: dict[socket.socket, _Caller] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._listener.setblocking(False)
        self._listener.bind(os.fspath(path))
        os.chmod(path, 0o600)
        self._listener.listen(_MAX_CALLERS)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        """Hang up, and remove the socket's file."""
        for connection in list(self._callers):
            self._drop(connection)
        self._selector.unregister(self._listener)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it has gone already, or there are no descriptors left: it may come again
            return
        connection.setblocking(False)
        if len(self._callers) == _MAX_CALLERS:  # whoever has been here longest
            self._drop(next(iter(self._callers)))
        self._callers[connection] = _Caller()
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._serve(connection))

    def _serve(self, connection: socket.socket) -> None:
        caller = self._callers[connection]
        try:
            if caller.unsent:
                caller.unsent = caller.unsent[connection.send(caller.unsent) :]
            else:
                data = connection.recv(_CHUNK)
                if not data:
                    self._drop(connection)
                    return
                caller.unread += data
            while not caller.unsent and b"\n" in caller.unread:
                line, _, caller.unread = caller.unread.partition(b"\n")
                answer = self._reply(line)
                caller.unsent = answer[connection.send(answer) :]
        except BlockingIOError:
            return
        except OSError:
            self._drop(connection)
            return
        if len(caller.unread) > MAX_QUESTION and not caller.unsent:
            self.bad += 1
            self._drop(connection)
            return
        event = selectors.EVENT_WRITE if caller.unsent else selectors.EVENT_READ
        self._selector.modify(connection, event, lambda: self._serve(connection))

    def _reply(self, line: bytes) -> bytes:
        try:
            question = decode_question(line)
            if question["run"] != self._run:
                raise BadMessage(f"for run {question['run'][:40]!r}, this is {self._run}")
            answer = self._answer(question)
        except BadMessage as error:
            self.bad += 1
            answer = {"kind": "bad", "text": str(error)}
        common = {"v": 1, "run": self._run}
        return json.dumps(common | answer, separators=(",", ":")).encode() + b"\n"

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._callers[connection]
        connection.close()


class _Caller:
    """What has come from a caller and makes no line yet, and what it has still to be sent."""

    def __init__(self) -> None:
        self.unread = b""
        self.unsent = b""
