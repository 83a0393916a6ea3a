"""Nothing left behind: ending what a job started, and the small process that does it if the launcher cannot.

Runs as a file of its own, ``python -I -S guardian.py``, with nothing but the standard library, so that it is
up within a few milliseconds. It reads lines: ``run ID NODE DIRECTORY`` and ``session SID``; ``forget`` drops the
sessions, as their generation has ended. ``done`` means that the launcher has cleaned up by itself; the end of the
input without it, that the launcher is dead.
"""

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterable

MARKS = ("DISTTRAIN_RUN_ID", "DISTTRAIN_NODE")
"""Environment variables that every process of a job inherits, also one that has left its session."""
_SHM = re.compile(r"/dev/shm/((?:mpich_|sm_segment\.|vader_segment\.|disttrain_)[^/\s]*)")
_LEAVING = (
    0.1  # seconds for helpers, like multiprocessing's, to see that their parent has gone and to tidy up
)


def members(run_id: str, node: int, sessions: Iterable[int]) -> list[int]:
    """Return the pids, zombies left out, in one of ``sessions`` or with run and node in their environment."""
    wanted = set(sessions)
    marks = {f"{name}={value}".encode() for name, value in zip(MARKS, (run_id, node), strict=True)}
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
                    if not marks.issubset(f.read().split(b"\0")):
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


def kill_all(run_id: str, node: int, sessions: Iterable[int], timeout: float = 2.0) -> list[int]:
    """SIGKILL every process of the job on its node until none is found; return those left after ``timeout`` s."""
    deadline = time.monotonic() + timeout
    while left := members(run_id, node, sessions):
        if time.monotonic() > deadline:
            return left
        for pid in left:
            send(pid, [signal.SIGKILL])
        time.sleep(0.002)
    return []


def unlink_orphaned_shm(since: float) -> None:
    """Remove MPI's and our segments in /dev/shm that were made after ``since`` and that no process maps any more.

    A killed process cannot remove its segments, and nobody can ask it for their names; but a segment that nobody
    maps is of no use to anybody.

    Args:
        since: seconds since the epoch; a little slack is added for the kernel's coarser clock.
    """
    found = set()
    for entry in os.scandir("/dev/shm"):
        info = entry.stat(follow_symlinks=False)
        if _SHM.match(entry.path) and info.st_uid == os.getuid() and info.st_ctime >= since - 1.0:
            found.add(entry.name)
    if not found:
        return
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/maps", encoding="utf-8", errors="replace") as f:
                found -= set(_SHM.findall(f.read()))
        except OSError:
            continue
    for name in found:
        try:
            os.unlink(f"/dev/shm/{name}")
        except OSError:
            continue


def main() -> None:
    for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, signal.SIG_IGN)
    run_id = node = directory = ""
    since = time.time()
    sessions: list[int] = []
    for line in sys.stdin:
        match line.rstrip("\n").split(" ", 3):
            case ["run", run_id, node, directory]:
                pass
            case ["session", sid]:
                sessions.append(int(sid))
            case ["forget"]:
                sessions.clear()
            case ["done"]:
                return
    if not run_id:
        return
    time.sleep(_LEAVING)
    kill_all(run_id, int(node), sessions, timeout=10.0)
    unlink_orphaned_shm(since)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
