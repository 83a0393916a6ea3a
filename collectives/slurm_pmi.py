"""Between MPI and the PMI server of ``srun --mpi=pmi2``, which takes what is longer than 1,024 bytes for two requests.

The server tells MPI that a value may have 1,024 bytes, and reads as many of the whole request, with its command and
key (``handle_pmi1_cmd`` of Slurm's plugin, seen in 22.05): whether a world begins depends on how well the addresses of
its processes can be packed, which differs from run to run. Here MPI is told of a limit that leaves room.

This file is also the program that does so, a process of its own for each rank: MPI_Init holds the interpreter.
"""

import os
import re
import select
import socket
import sys
from collections.abc import Mapping
from typing import Final

_REQUEST: Final = 1024
"""Bytes that the server reads of a request."""
_ROOM: Final = 160
"""Bytes of a request beside its value: names of 64 bytes for the key and about 30 for the step."""


def is_server(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process's PMI server is Slurm's: it names the job step."""
    step = f"{environ.get('SLURM_JOB_ID')}.{environ.get('SLURM_STEP_ID')}"
    return environ.get("PMI_FD", "").isdecimal() and environ.get("PMI_JOBID") == step


def stand_between() -> None:
    """Have MPI, which has not begun yet, talk with the server through this program; ``PMI_FD`` names it then."""
    server = int(os.environ["PMI_FD"])
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.set_inheritable(True)
    nothing = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    program = [sys.executable, "-I", "-S", __file__, str(theirs.fileno()), str(server)]
    pid = os.posix_spawn(
        sys.executable,
        program,
        os.environ,
        file_actions=[*nothing, (os.POSIX_SPAWN_CLOSE, ours.fileno())],
    )
    os.waitpid(pid, 0)  # its child stays, so that the script has no child that it does not know
    theirs.close()
    os.close(server)
    os.environ["PMI_FD"] = str(ours.detach())


def shorten(answer: bytes) -> bytes:
    """Return an answer of the server with room for the request in the length of a value."""

    def less(found: re.Match[bytes]) -> bytes:
        return b"%s%d" % (found[1], min(int(found[2]), _REQUEST - _ROOM))

    return re.sub(rb"(\bvallen_max=)(\d+)", less, answer) if answer.startswith(b"cmd=maxes ") else answer


def relay(mpi: int, server: int) -> None:
    """Pass on what the two say, a line at a time, until one of them is gone."""
    unread = {mpi: b"", server: b""}
    other = {mpi: server, server: mpi}
    while True:
        ready, _, _ = select.select(list(unread), [], [])
        for fd in ready:
            try:
                data = os.read(fd, 1 << 16)
                if not data:
                    return
                *lines, unread[fd] = (unread[fd] + data).split(b"\n")
                for line in lines:
                    os.write(other[fd], (shorten(line) if fd == server else line) + b"\n")
            except ConnectionError:
                return


if __name__ == "__main__":
    if os.fork() == 0:
        relay(*map(int, sys.argv[1:]))
    os._exit(0)
