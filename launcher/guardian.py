"""Nothing left behind: ending what a job started, and the small process that does it if the launcher cannot.

Runs as a file of its own, ``python -I -S guardian.py``, with nothing but the standard library, so that it is
up within a few milliseconds. It reads lines: ``run ID DIRECTORY``, ``session SID``, ``shm NAME``. ``done``
means that the launcher has cleaned up by itself; the end of the input without it, that the launcher is dead.
"""

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterable

MARK = "DISTTRAIN_RUN_ID"
"""The environment variable that every process of a job inherits, also one that has left its session."""
_SHM = re.compile(r"/dev/shm/((?:mpich_|psm_|disttrain)[^/\s]*)")


def members(run_id: str, sessions: Iterable[int]) -> list[int]:
    """Return the pids, zombies left out, in one of ``sessions`` or with ``run_id`` in their environment."""
    wanted = set(sessions)
    mark = f"{MARK}={run_id}".encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as f:
                # After the last ")", as a command may hold any: state, ppid, pgrp, session (proc(5)).
                state, _, _, session = f.read().rpartition(b")")[2].split()[:4]
            if state in b"ZX":
                continue
            if int(session) not in wanted:
                with open(f"/proc/{name}/environ", "rb") as f:
                    if mark not in f.read().split(b"\0"):
                        continue
        except OSError:  # it has just ended, or is another user's
            continue
        found.append(int(name))
    return found


def send(pid: int, signals: Iterable[int]) -> None:
    """Send ``signals`` to ``pid``, if it is still there."""
    for s in signals:
        try:
            os.kill(pid, s)
        except (ProcessLookupError, PermissionError):
            return


def kill_all(run_id: str, sessions: Iterable[int], timeout: float = 2.0) -> list[int]:
    """SIGKILL every process of the job until none is found; return those left after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while left := members(run_id, sessions):
        if time.monotonic() > deadline:
            return left
        for pid in left:
            send(pid, [signal.SIGKILL])
        time.sleep(0.002)
    return []


def mapped_shm(pid: int) -> set[str]:
    """Return the names in /dev/shm that ``pid`` maps and that are MPI's, Python's or ours."""
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as f:
            return set(_SHM.findall(f.read()))
    except OSError:
        return set()


def unlink_shm(names: Iterable[str]) -> None:
    """Remove ``names`` from /dev/shm, as far as they are still there and ours."""
    for name in names:
        try:
            os.unlink(f"/dev/shm/{os.path.basename(name)}")
        except OSError:
            continue


def main() -> None:
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, signal.SIG_IGN)
    run_id = directory = ""
    sessions: list[int] = []
    shm: list[str] = []
    for line in sys.stdin:
        match line.rstrip("\n").split(" ", 2):
            case ["run", run_id, directory]:
                pass
            case ["session", sid]:
                sessions.append(int(sid))
            case ["shm", name]:
                shm.append(name)
            case ["done"]:
                return
    if not run_id:
        return
    kill_all(run_id, sessions, timeout=10.0)
    unlink_shm(shm)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
