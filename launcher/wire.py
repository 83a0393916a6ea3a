"""The line between the agents of a job's nodes: ZeroMQ over TCP, encrypted, and open to the job's own agents alone.

CURVE (RFC 26) with a key pair per job and one per node, made by the launcher; ZAP (RFC 27) admits the keys of this
job's nodes and tells from the key which node is speaking. The launcher listens on one port that the system has
chosen, at the address that leads to its nodes. Messages are JSON of the closed list :data:`KINDS`.
"""

import base64
import errno
import ipaddress
import socket
import zlib
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import zmq
import zmq.constants
import zmq.utils.monitor
import zmq.utils.z85

from disttrain.collectives.control import (
    MAX_BYTES,
    VERSION,
    BadMessage,
    Kinds,
    Message,
    decode,
    encode,
)

KINDS: Final[Kinds] = {
    # From an agent to the launcher. ``process`` is -1 where a message is about no process.
    "hello": {"facts": dict},  # what ``disttrain.launcher.preflight`` compares
    "beat": {},  # both ways, once a second: it lives and its loop turns
    "started": {"pid": int, "place": list},  # its line of the table of who gets what
    "exit": {"status": int, "why": str},  # of a worker, negative for a signal; and why it was killed
    "stopped": {"seconds": float},  # for how long a worker has been; 0 once it goes on
    "report": {"message": dict},  # what a worker has sent to the control plane of its node
    "log": {"error": bool, "data": str},  # bytes of stdout or stderr in base64; none at the end
    # A worker: monotonic nanoseconds, its ledger in base64 of zlib, and what ``WorkerState`` has beside it.
    "looked": {"clock": int, "data": str, "trouble": str, "rss": int, "cpu": float, "gpus": list},
    "paces": {"marks": list},  # the fields of ``disttrain.launcher.pace.Mark`` for each of its ranks
    "stack": {"trouble": str, "lines": list},  # why a worker cannot go on, and where it is in its Python code
    "history": {"data": str},  # lines that ranks have logged, in base64
    "swept": {"left": list},  # pids that had not ended by themselves
    "notice": {"text": str},  # for the user
    "signalled": {"number": int},  # the batch system wants the job to end
    # From the launcher to an agent.
    "start": {"env": dict, "argv": list, "environ": dict, "defaults": dict, "without": list, "world": bool},
    "taken": {"error": bool},  # the "log" is where it belongs; the next may come
    "look": {},
    "ask": {"thread": int, "most": int, "wake": bool},  # for the stack: ``disttrain.collectives.stacks.ask``
    "wish": {"command": str},  # of the ranks: one of ``disttrain.launcher.node.WISHES``
    "terminate": {},
    "kill": {},
    "sweep": {},
    "forget": {},
    "bye": {},
    # Both ways: bytes between a worker and the PMI server, in base64; none at the end.
    "pmi": {"data": str},
}

HANDSHAKE: Final = (
    15_000  # ms that a peer may take to show its key; thousands that come at once wait for each other
)
_MAX_COMPLAINTS: Final = 20
_REFUSED: Final = {
    zmq.constants.Event.HANDSHAKE_FAILED_AUTH,
    zmq.constants.Event.HANDSHAKE_FAILED_PROTOCOL,
    zmq.constants.Event.HANDSHAKE_FAILED_NO_DETAIL,
}


class Keys(NamedTuple):
    """A CURVE key pair in Z85 (40 characters each)."""

    public: str
    secret: str

    @classmethod
    def make(cls) -> "Keys":
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())


def to_text(data: bytes) -> str:
    """Return bytes as they travel in a message."""
    return base64.b64encode(data).decode()


def from_text(text: str) -> bytes:
    """Return what :func:`to_text` was given.

    Raises:
        BadMessage: it is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as e:
        raise BadMessage(f"no base64: {e}") from None


def pack(data: bytes) -> str:
    """Return a ledger, which is mostly zeros, as it travels in a message."""
    return to_text(zlib.compress(data, 1))


def unpack(text: str, size: int) -> bytes:
    """Return the ``size`` bytes that :func:`pack` was given.

    Raises:
        BadMessage: it is not, or of another size.
    """
    try:
        data = zlib.decompressobj().decompress(from_text(text), size + 1)
    except zlib.error as e:
        raise BadMessage(f"not compressed: {e}") from None
    if len(data) != size:
        raise BadMessage(f"unpacks to another size than {size}")
    return data


def address_towards(host: str) -> str:
    """Return the address of this machine from which it speaks to ``host``; nothing is sent.

    Raises:
        OSError: ``host`` cannot be resolved, or there is no way to it.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    except UnicodeError as error:
        raise OSError(errno.EINVAL, f"no name of a host: {error}") from error
    with socket.socket(family, kind) as s:
        s.connect(address)
        found: str = s.getsockname()[0]
    return found


def _waits(s: "zmq.Socket[bytes]") -> bool:
    """Return whether there is something to receive."""
    return bool(int(s.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


class Hub:
    """The launcher's end: a port at each of ``addresses``, usually one, for the nodes whose keys it has made.

    ``fds`` become readable when something *may* have come (edge-triggered: drain with :meth:`receive`).
    """

    def __init__(self, *, run: str, nodes: int) -> None:
        self.refused = 0
        """Number of peers without a key of this job."""
        self.bad = 0
        """Number of messages from nodes of this job that were no messages, or not theirs to send."""
        self.complaints: list[str] = []
        """Why, for the first few."""
        self.server = Keys.make()
        self.nodes = [Keys.make() for _ in range(nodes)]
        self._run = run
        self._known = {zmq.utils.z85.decode(keys.public): i for i, keys in enumerate(self.nodes)}
        self._routes: dict[int, bytes] = {}
        self._endpoints: dict[str, str] = {}
        self._context = zmq.Context()
        self._zap = self._context.socket(zmq.REP)
        self._zap.linger = 0
        self._zap.bind("inproc://zeromq.zap.01")
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 200  # ms: a farewell should still leave
        self._socket.curve_server = True
        self._socket.curve_secretkey = self.server.secret.encode()
        self._socket.zap_domain = run.encode()
        self._socket.sndhwm = self._socket.rcvhwm = 0  # every exchange is bounded: one "log" at a time
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE)
        # All nodes come at once, and one whose request to connect is dropped tries again much later.
        self._socket.setsockopt(zmq.BACKLOG, 4096)
        self._monitor = self._socket.get_monitor_socket(sum(_REFUSED))
        self.fds = [int(s.getsockopt(zmq.FD)) for s in (self._socket, self._zap, self._monitor)]

    def listen(self, address: str) -> str:
        """Return the endpoint at ``address``, of this machine, opening it if it is new."""
        if address not in self._endpoints:
            ip = ipaddress.ip_address(address.partition("%")[0])
            host = f"[{address}]" if ip.version == 6 else address
            self._socket.setsockopt(zmq.IPV6, ip.version == 6)
            self._socket.bind(f"tcp://{host}:*")
            self._endpoints[address] = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        return self._endpoints[address]

    def receive(self) -> list[tuple[int, Message]]:
        """Return what the nodes have sent: pairs of node and message, in order."""
        messages: list[tuple[int, Message]] = []
        while True:
            self._admit()
            self._count_refused()
            try:
                sender, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                if _waits(self._zap):
                    continue
                return messages
            node = int(str(frames[-1].get("User-Id"))) if frames else -1
            try:
                if len(frames) != 1:
                    raise BadMessage(f"{len(frames)} frames instead of 1")
                message = decode(bytes(frames[0].buffer), KINDS)
                if message["run"] != self._run:
                    raise BadMessage(f"of run {message['run'][:40]!r}, this is run {self._run}")
            except BadMessage as e:
                self.complain(node, e)
                continue
            self._routes[node] = bytes(sender.buffer)
            messages.append((node, message))

    def complain(self, node: int, why: BadMessage) -> None:
        """Count a message that ``node`` should not have sent."""
        self.bad += 1
        if len(self.complaints) < _MAX_COMPLAINTS:
            self.complaints.append(f"ignored a message of node {node}: {why}")

    def send(self, node: int, kind: str, *, generation: int, process: int = -1, **fields: Any) -> None:
        """Send a message to ``node``, which has said hello; one that has gone misses it."""
        message = {"v": VERSION, "kind": kind, "run": self._run, "generation": generation, "process": process}
        if node in self._routes:
            self._socket.send_multipart([self._routes[node], encode(message | fields, KINDS)])

    def _admit(self) -> None:
        """Answer libzmq's questions: may the holder of this key come in?"""
        while _waits(self._zap):
            version, sequence, _, _, _, mechanism, *credentials = self._zap.recv_multipart()
            node = self._known.get(credentials[0]) if mechanism == b"CURVE" and credentials else None
            verdict = (b"400", b"not a key of this job", b"") if node is None else (b"200", b"", b"%d" % node)
            self._zap.send_multipart([version, sequence, *verdict, b""])

    def _count_refused(self) -> None:
        while _waits(self._monitor):
            event = zmq.utils.monitor.parse_monitor_message(self._monitor.recv_multipart())
            self.refused += event["event"] in _REFUSED

    def close(self) -> None:
        """Close the port."""
        self._socket.disable_monitor()
        for s in (self._monitor, self._socket, self._zap):
            s.close()
        self._context.term()


class LostConnection(Exception):
    """The launcher cannot be reached (any more); the text says why."""


@dataclass(frozen=True)
class Ticket:
    """What an agent must know to reach the launcher."""

    endpoint: str
    server: str
    """The launcher's public key."""
    keys: Keys
    run: str


class Link:
    """An agent's end. It connects once: a connection that breaks has lost messages, and is the end of the job."""

    def __init__(self, ticket: Ticket) -> None:
        self._ticket = ticket
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 1000  # ms: the last words should still leave
        self._socket.curve_serverkey = ticket.server.encode()
        self._socket.curve_publickey = ticket.keys.public.encode()
        self._socket.curve_secretkey = ticket.keys.secret.encode()
        self._socket.sndhwm = self._socket.rcvhwm = 0
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        self._socket.setsockopt(zmq.IPV6, 1)
        self._socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self._monitor = self._socket.get_monitor_socket(
            sum(_REFUSED) | zmq.constants.Event.DISCONNECTED | zmq.constants.Event.CLOSED
        )
        self._socket.connect(ticket.endpoint)
        self.fds = [int(s.getsockopt(zmq.FD)) for s in (self._socket, self._monitor)]

    def receive(self) -> list[Message]:
        """Return what the launcher has sent, in order.

        Raises:
            LostConnection: it does not accept this key, or is gone.
            BadMessage: something else sits at the endpoint.
        """
        messages = []
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            message = decode(b"".join(frames), KINDS)
            if message["run"] != self._ticket.run:
                raise BadMessage(f"of run {message['run'][:40]!r}")
            messages.append(message)
        while not messages and _waits(self._monitor):
            event = zmq.utils.monitor.parse_monitor_message(self._monitor.recv_multipart())["event"]
            where = self._ticket.endpoint.removeprefix("tcp://")
            if event in _REFUSED:
                raise LostConnection(f"the job at {where} does not accept this key")
            if event == zmq.constants.Event.CLOSED:
                raise LostConnection(f"the launcher at {where} cannot be reached; is there a firewall?")
            raise LostConnection(f"the connection to the launcher at {where} has broken")
        return messages

    def send(self, kind: str, *, generation: int = 0, process: int = -1, **fields: Any) -> None:
        """Send a message to the launcher.

        Raises:
            BadMessage: it does not fit the schema, or is too long.
        """
        common = {"v": VERSION, "kind": kind, "run": self._ticket.run, "process": process}
        self._socket.send(encode(common | {"generation": generation} | fields, KINDS))

    def close(self) -> None:
        """Close the connection."""
        self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()
        self._context.term()
