"""The running jobs of a user, as others than their launchers see them: found, asked and told.

``disttrain ps``, ``top``, ``stack``, ``logs``, ``kill`` and ``ctl`` are built on this.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from disttrain.collectives.control import MAX_BYTES, VERSION, BadMessage, Message
from disttrain.launcher.desk import decode_answer
from disttrain.launcher.rundir import base_directory

PATIENCE: Final = 2.0
"""Seconds that a launcher may take to answer."""


class JobError(Exception):
    """A job that is not there, or does not answer: what to do is in the text."""


@dataclass(frozen=True)
class Job:
    """A run directory."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def running(self) -> bool:
        """Whether its launcher lives: it holds a lock as long."""
        try:
            fd = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(fd)

    def launcher(self) -> int | None:
        """Return the pid of its launcher, None if it cannot be known."""
        try:
            return int((self.path / "lock").read_text())
        except (OSError, ValueError):
            return None

    def ask(self, kind: str, **fields: Any) -> Message:
        """Ask the launcher.

        Raises:
            JobError: there is no answer, or the launcher is of another version.
        """
        question = {"v": VERSION, "kind": kind, "run": self.id, **fields}
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(PATIENCE)
                connection.connect(os.fspath(self.path / "desk"))
                connection.sendall(json.dumps(question).encode() + b"\n")
                line = _read_line(connection)
            answer = decode_answer(line)
        except (OSError, BadMessage) as error:
            raise JobError(f"the launcher of job {self.id} does not answer: {error}") from None
        if answer["kind"] == "bad":
            raise JobError(f"the launcher of job {self.id} does not understand: {answer['text']}")
        return answer


def _read_line(connection: socket.socket) -> bytes:
    parts = []
    size = 0
    deadline = time.monotonic() + PATIENCE
    while True:
        data = connection.recv(1 << 16)
        parts.append(data)
        size += len(data)
        if data.endswith(b"\n"):
            return b"".join(parts)
        if not data:
            raise BadMessage("it has hung up")
        if size > MAX_BYTES or time.monotonic() > deadline:
            raise BadMessage(f"no end after {size} bytes")


def all_jobs() -> list[Job]:
    """Return the jobs that run, and the ended ones that have left logs; the oldest first.

    Raises:
        JobError: the folder of run directories cannot be used.
    """
    try:
        base = base_directory()
    except RuntimeError as error:
        raise JobError(str(error)) from None
    found = []
    for path in base.iterdir():
        if "." in path.name:  # another node's part of a job, on a machine that plays several
            continue
        try:
            found.append(((path / "lock").stat().st_ctime, Job(path)))
        except OSError:  # no run directory, or it has just gone
            continue
    return [job for _, job in sorted(found, key=lambda pair: (pair[0], pair[1].id))]


def running_jobs() -> list[Job]:
    """Return the jobs that run, the oldest first.

    Raises:
        JobError: the folder of run directories cannot be used.
    """
    return [job for job in all_jobs() if job.running]


def find(name: str | None, *, ended: bool = False) -> Job:
    """Return the job whose id begins with ``name``; without a name the only one that runs.

    Args:
        ended: whether it may have ended.

    Raises:
        JobError: no such job, or several.
    """
    jobs = all_jobs()
    running = [job for job in jobs if job.running]
    fitting = [job for job in (jobs if ended and name else running) if job.id.startswith(name or "")]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise JobError(f"which job? There are {_names(fitting)}; name one (disttrain ps)")
    gone = [job for job in jobs if job not in running and (ended or (name and job.id.startswith(name)))]
    left = f"; ended, with logs: {_names(gone)}" if gone else ""
    others = f"; those that do: {_names(running)}" if running else ""
    raise JobError(f"no job {f'{name!r} ' if name else ''}runs here{others}{left}")


def _names(jobs: Sequence[Job]) -> str:
    return ", ".join(job.id for job in jobs)
