"""A PMI-1 server: lets MPICH-family processes find each other, so that ranks need no ``mpiexec``.

The protocol (MPICH, ``src/pmi/src/pmi_v1.c`` and the "simple" PMI wire format) is one line per request,
``cmd=... key=value ...``. Each process inherits one end of a socket pair, named by ``PMI_FD``;
on other nodes the agent there passes the lines on, so that no port is open. Served is what
``MPI_Init``, ``MPI_Finalize`` and ``MPI_Abort`` need; ``MPI_Comm_spawn`` is refused.
"""

import re
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

VARIABLES: Final = (
    "PMI_FD",
    "PMI_PORT",
    "PMI_ID",
    "PMI_RANK",
    "PMI_SIZE",
    "PMI_SPAWNED",
    "PMIX_RANK",
    "PMIX_NAMESPACE",
)
"""What an outer launcher may have left in the environment; a worker must not see it."""

_MAX_LINE: Final = 64 << 10
_MAX_COMPLAINTS: Final = 20


def environ(process: int, processes: int, world: socket.socket) -> dict[str, str]:
    """Return the variables that make ``process`` ask ``world``, which it inherits, for its world."""
    return {"PMI_FD": str(world.fileno()), "PMI_RANK": str(process), "PMI_SIZE": str(processes)}


class PmiServer:
    """The key-value space and the barrier of one MPI world: ``nodes`` has the number of processes of each node."""

    def __init__(self, nodes: Sequence[int], name: str) -> None:
        self.size = sum(nodes)
        self.aborts: dict[int, int] = {}
        """Process → the code that it gave to ``MPI_Abort``."""
        self.complaints: list[str] = []
        self._name = name
        mapping = ",".join(f"({node},1,{size})" for node, size in enumerate(nodes))
        self._values = {"PMI_process_mapping": f"(vector,{mapping})"}
        self._sockets: dict[int, socket.socket] = {}
        self._unread: dict[int, bytes] = {}
        self.begun: set[int] = set()
        """Processes that have come to ``MPI_Init``, which none of them leaves before all have come."""
        self.begun_since = 0.0
        """When the first of them came, by ``time.monotonic()``."""
        self._waiting: set[int] = set()

    @property
    def connections(self) -> list[socket.socket]:
        """The server's ends that are open."""
        return list(self._sockets.values())

    def connect(self, process: int) -> tuple[socket.socket, socket.socket]:
        """Return the server's and the child's end; the caller closes the child's once it has inherited it."""
        server, child = socket.socketpair()
        server.setblocking(False)  # one that asks and never reads must not stop the launcher
        self._sockets[process] = server
        self._unread[process] = b""
        return server, child

    def read(self, process: int) -> bool:
        """Serve what ``process`` asks; return False when its connection has ended (it is closed then)."""
        try:
            data = self._sockets[process].recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        *lines, rest = (self._unread[process] + data).split(b"\n")
        if not data or len(rest) > _MAX_LINE:
            self.close(process)
            return False
        self._unread[process] = rest
        for line in lines:
            self._serve(process, line.decode("utf-8", "replace"))
        return True

    def close(self, process: int | None = None) -> None:
        """Close the connection of ``process``, or all of them."""
        for p in [process] if process is not None else list(self._sockets):
            if p in self._sockets:
                self._sockets.pop(p).close()

    def _say(self, process: int, text: str) -> None:
        with suppress(OSError, KeyError):  # it is gone; its exit tells the rest
            self._sockets[process].sendall(f"{text}\n".encode())

    def _serve(self, process: int, line: str) -> None:
        request = dict(word.partition("=")[::2] for word in line.split(" ") if word)
        match request.get("cmd"):
            case "init":
                if not self.begun:
                    self.begun_since = time.monotonic()
                self.begun.add(process)
                self._say(process, "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0")
            case "get_maxes":
                self._say(process, "cmd=maxes kvsname_max=256 keylen_max=64 vallen_max=1024")
            case "get_appnum":
                self._say(process, "cmd=appnum appnum=0")
            case "get_universe_size":
                self._say(process, f"cmd=universe_size size={self.size}")
            case "get_my_kvsname":
                self._say(process, f"cmd=my_kvsname kvsname={self._name}")
            case "put" if "key" in request and "value=" in line:
                self._values[request["key"]] = line.split("value=", 1)[1]
                self._say(process, "cmd=put_result rc=0 msg=success")
            case "get":
                value = self._values.get(request.get("key", ""))
                found = (
                    "rc=-1 msg=key_not_found value=unknown"
                    if value is None
                    else f"rc=0 msg=success value={value}"
                )
                self._say(process, f"cmd=get_result {found}")
            case "barrier_in":
                self._waiting.add(process)
                if len(self._waiting) == self.size:
                    waiting, self._waiting = self._waiting, set()
                    for p in waiting:
                        self._say(p, "cmd=barrier_out")
            case "finalize":
                self._say(process, "cmd=finalize_ack")
            case "abort":
                code = re.fullmatch(r"-?[0-9]{1,10}", request.get("exitcode", ""))
                self.aborts[process] = int(code[0]) if code else 1
            case command:
                if len(self.complaints) < _MAX_COMPLAINTS:
                    self.complaints.append(
                        f"process {process} asked for {str(command)[:40]!r}, which is not served"
                    )
                self._say(process, f"cmd={command}_result rc=-1 msg=unsupported")
