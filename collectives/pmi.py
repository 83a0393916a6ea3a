"""The processes of a job tell each other what they have to know to connect, through the server that has started them.

This is a client of PMI-1, the protocol by which processes of the MPICH family find each other: a table of keys and
values and a barrier, a line for each request, over a socket that every process inherits. ``disttrain launch`` serves it
(``disttrain.launcher.pmi``), and so does MPICH's ``mpiexec``. It also lets the launcher know which processes have
not come.
"""

import atexit
import os
import select
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache

from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.errors import CollectiveTimeout, PeerFailed, TransportUnavailable

_CURE = "Start the job with `disttrain launch`"


class Pmi:
    """This process's connection to the server.

    Args:
        environ: ``PMI_FD`` names the connection, ``PMI_RANK`` and ``PMI_SIZE`` the process and their number.

    Raises:
        TransportUnavailable: this process has no such connection, or nobody is at its other end.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        numbers = [environ.get(name, "") for name in ("PMI_FD", "PMI_RANK", "PMI_SIZE")]
        if not all(number.isdecimal() for number in numbers):
            raise TransportUnavailable(
                f"the processes of this job cannot find each other without MPI: whoever has started them did not say "
                f"how (PMI_FD is {environ.get('PMI_FD', 'not set')}). {_CURE}, or use --transport mpi"
            )
        self._socket, self.index, self.size = map(int, numbers)
        self._unread = b""
        self._deadline = 0.0
        self._gathered = 0
        self._in_use = False
        try:
            self._ask("init pmi_version=1 pmi_subversion=1", "response_to_init")
            self._table = self._ask("get_my_kvsname", "my_kvsname")["kvsname"]
        except (OSError, PeerFailed) as error:
            raise TransportUnavailable(
                f"whoever has started this process does not answer ({error}). {_CURE}"
            ) from error

    def gather(self, mine: bytes, timeout: float) -> list[bytes]:
        """Tell ``mine``, at most 512 bytes, to all processes of the job and return theirs, once all have come here.

        Raises:
            CollectiveTimeout: that took longer than ``timeout`` seconds.
            PeerFailed: a process connects in another way, or the server has gone.
        """
        self._in_use = True
        self._deadline = time.monotonic() + timeout
        key = f"disttrain-{self._gathered}"
        self._gathered += 1
        self._ask(f"put kvsname={self._table} key={key}-{self.index} value={mine.hex()}", "put_result")
        self._ask("barrier_in", "barrier_out")
        return [mine if p == self.index else self._get(f"{key}-{p}", p) for p in range(self.size)]

    def release(self) -> None:
        """Note that the world for which this was needed has come to a good end."""
        self._in_use = False

    def finalize(self) -> None:
        """Tell the server that the end of this process is no failure, unless its world has not come to a good end."""
        mpi = sys.modules.get("mpi4py.MPI")
        if self._in_use or (mpi is not None and mpi.Is_initialized()):  # that says it itself, later
            return
        with suppress(OSError, PeerFailed, CollectiveTimeout):  # it has gone, or MPI has told it
            self._deadline = time.monotonic() + 1.0
            self._ask("finalize", "finalize_ack")

    def _get(self, key: str, process: int) -> bytes:
        found = self._ask(f"get kvsname={self._table} key={key}", "get_result")
        if found.get("rc") != "0":
            raise PeerFailed(
                f"process {process} of the job does not connect as process {self.index} does; "
                f"all of them need the same --transport and the same packages"
            )
        return bytes.fromhex(found["value"])

    def _ask(self, request: str, answer: str) -> dict[str, str]:
        """Send a request and return the words of its answer."""
        os.write(self._socket, f"cmd={request}\n".encode())
        while b"\n" not in self._unread:
            self._wait()
            data = os.read(self._socket, 4096)
            if not data:
                raise PeerFailed("the launcher of this job has gone")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        words = dict(word.partition("=")[::2] for word in line.decode().split())
        if words.get("cmd") != answer:
            raise PeerFailed(f"the launcher of this job answers {line.decode()!r} to {request!r}")
        return words

    def _wait(self) -> None:
        left = self._deadline - time.monotonic() if self._deadline else None
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(None if left is None else max(0.0, left) * 1000):
            raise CollectiveTimeout(
                "not all processes of the job have connected in time (--timeout); look for one that stopped, or that "
                "never calls connect() or anything that does"
            )


@cache
def of_process() -> Pmi:
    """Return the connection of this process, of which there is one for good."""
    connection = Pmi()
    atexit.register(connection.finalize)
    return connection


def check_size(connection: Pmi, env: WorkerEnv) -> None:
    """Find out whether the server's processes are those of the job.

    Raises:
        RuntimeError: they are not.
    """
    if (connection.index, connection.size) != (env.process, env.processes):
        raise RuntimeError(
            f"this is process {env.process} of {env.processes} of the job, and process {connection.index} of "
            f"{connection.size} for whoever has started it. {_CURE}"
        )
