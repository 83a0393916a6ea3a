"""The other nodes of a job, as the launcher sees them: agents started over ssh or by ``srun``, and their workers.

A :class:`RemoteNode` answers to what :class:`~disttrain.launcher.node.LocalNode` answers to: the launcher decides alike
for all of its workers, wherever they run.
"""

import json
import os
import re
import selectors
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import NoneType
from typing import Any, Final

from disttrain.collectives.control import REPORTS, BadMessage, Message, check
from disttrain.collectives.ledger import ledger_file
from disttrain.collectives.stacks import MOST_FRAMES
from disttrain.launcher.config import ConfigError
from disttrain.launcher.gpus import GpuUse
from disttrain.launcher.hosts import Host
from disttrain.launcher.node import Order, WorkerState
from disttrain.launcher.pace import Mark
from disttrain.launcher.placement import HEADINGS
from disttrain.launcher.preflight import Facts
from disttrain.launcher.remote import BEAT, LOST
from disttrain.launcher.wire import Hub, address_towards, from_text, to_text, unpack

SSH: Final = (
    "ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=2 -o ServerAliveCountMax=3 "
    "-o ExitOnForwardFailure=no"
)
"""How a node is reached unless ``--ssh`` says otherwise: it never asks, and notices a dead link within 6 s."""
JOIN: Final = 60.0
"""Seconds within which the agents of all nodes must be there."""
_LOCAL: Final = re.compile(
    r"CUDA_VISIBLE_DEVICES|DBUS_\w+|DISPLAY|HOME|HOST|HOSTNAME|LOGNAME|MAIL|OLDPWD|PWD|SHELL|SHLVL|SSH_\w+|TEMP|TERM"
    r"|TMP|TMPDIR|USER|XAUTHORITY|XDG_\w+|_"
)
"""Variables that belong to a machine or a login, and do not travel to the other nodes."""

_MOST_PLACE: Final = 4096
"""Characters of what is said of one thing that a process has: its cores, say."""
_GPU_USES: Final = ([str, float, int, int], [str, NoneType, int, int])
"""The fields of :class:`~disttrain.launcher.gpus.GpuUse`."""


@dataclass
class _Starter:
    """A running ``ssh`` or ``srun`` that holds agents."""

    popen: subprocess.Popen[bytes]
    nodes: list["RemoteNode"]
    label: str
    fds: list[int]
    """What the loop watches: its end and what it prints."""
    unfinished: bytes = b""


class RemoteNode:
    """A node whose agent is another process, usually on another machine."""

    def __init__(self, fleet: "Fleet", index: int, host: Host) -> None:
        self.index = index
        self.name = host.name
        self.wanted = host.slots
        self.host = host.name
        """Its own name for itself, once it has said hello."""
        self.facts: Facts | None = None
        self.ahead = 0.0
        """Seconds that its clock is ahead of ours."""
        self.heard = time.monotonic()
        self.lost = ""
        """Why it is gone; empty while it is not."""
        self.is_cut = False
        """Whether what goes to and fro is to be dropped, as on a link that is cut."""
        self.swept: list[int] | None = None
        self.marks: list[Mark] = []
        """What its ranks had counted a few seconds ago."""
        self._fleet = fleet
        self._workers: dict[int, WorkerState] = {}
        self._worlds: dict[int, socket.socket] = {}
        self._outputs: dict[tuple[int, bool], int] = {}
        self._unwritten: dict[int, bytes] = {}

    # -- what the launcher wants of it ---------------------------------------------------------------------

    def start(self, order: Order, out: int, err: int, world: socket.socket | None) -> WorkerState:
        """Have a worker started: :meth:`.LocalNode.start`."""
        process = order.env.process
        worker = WorkerState(order.env, self.host, ledger_file(order.env.hosted))
        self._workers[process] = worker
        for error, fd in ((False, out), (True, err)):
            os.set_blocking(fd, False)
            self._outputs[process, error] = fd
        if world is not None:
            world.setblocking(False)
            self._worlds[process] = world
            self._fleet.selector.register(world, selectors.EVENT_READ, lambda: self._from_server(process))
        self._send(
            "start",
            process,
            env=asdict(order.env),
            argv=list(order.argv),
            environ=dict(order.environ),
            defaults=dict(order.defaults),
            without=list(order.without),
            world=world is not None,
        )
        return worker

    def ask(
        self, worker: WorkerState, thread: int = 0, most: int = MOST_FRAMES, *, wake: bool = False
    ) -> None:
        """Ask where a worker is in its Python code; its ``stack`` is None until the answer has come."""
        worker.stack = None
        self._send("ask", worker.env.process, thread=thread, most=most, wake=wake)

    def look(self) -> None:
        """Ask for the ledgers; they come while the loop turns, before any answer to a later request."""
        self._send("look")

    def wish(self, command: str) -> None:
        """Ask the ranks of this node: :meth:`.LocalNode.wish`."""
        self._send("wish", command=command)

    def terminate(self) -> None:
        """Ask every process of the job on this node to end."""
        self._send("terminate")

    def kill(self) -> None:
        """End the workers at once."""
        self._send("kill")

    def sweep(self) -> None:
        """Have every process of the job ended; ``swept`` is set when that is done."""
        if self.lost:
            self.swept = []
        else:
            self._send("sweep")

    @property
    def printing(self) -> bool:
        """Whether output of its workers may still come."""
        return bool(self._outputs) and not self.lost

    def forget(self) -> None:
        """Release what is held for the workers, which have been swept."""
        self._send("forget")
        self._drop()
        for worker in self._workers.values():
            os.close(worker.ledger)
        self._workers.clear()
        self.marks = []
        self.swept = None

    def close(self) -> None:
        """Send its agent home."""
        self._send("bye")

    # -- what it says --------------------------------------------------------------------------------------

    def serve(self, message: Message) -> None:
        """Take a message of its agent.

        Raises:
            BadMessage: it is not for an agent to send.
        """
        if self.lost or self.is_cut:
            return
        self.heard = time.monotonic()
        process = message["process"]
        kind = message["kind"]
        if kind == "beat":
            self._send("beat")
        elif kind == "hello":
            self._hello(message["facts"])
        elif kind == "notice":
            self._fleet.notice(f"{message['text']} (host {self.host})")
        elif kind == "signalled":
            self._fleet.take_signal(message["number"])
        elif kind == "history":
            self._fleet.on_history(from_text(message["data"]))
        elif kind == "swept":
            self.swept = [pid for pid in message["left"] if type(pid) is int]
        elif kind == "paces" and message["generation"] == self._fleet.generation:
            self._note_marks(message["marks"])
        elif message["generation"] != self._fleet.generation or process not in self._workers:
            return  # of workers that have been forgotten meanwhile
        elif kind == "log":
            self._print(process, message["error"], from_text(message["data"]))
        elif kind == "pmi":
            self._to_server(process, from_text(message["data"]))
        else:
            self._of_worker(kind, self._workers[process], message)

    def _hello(self, facts: Facts) -> None:
        if self.facts is not None:
            raise BadMessage("a second hello")
        clock, host = facts.get("clock"), facts.get("host")
        if type(clock) is not float or type(host) is not str or type(facts.get("cores")) is not int:
            raise BadMessage("a hello without host, clock and cores")
        self.ahead = clock - time.time()
        self.host = host
        self.facts = facts

    def _note_marks(self, marks: list[Any]) -> None:
        wanted = [int, int, float, float, float]
        if not all(type(mark) is list and [type(x) for x in mark] == wanted for mark in marks):
            raise BadMessage("paces of another form")
        self.marks = [Mark(*mark) for mark in marks]

    def _of_worker(self, kind: str, worker: WorkerState, message: Message) -> None:
        if kind == "started":
            worker.pid, worker.place = message["pid"], _place(message["place"])
        elif kind == "looked":
            data = unpack(message["data"], os.fstat(worker.ledger).st_size)
            os.pwrite(worker.ledger, data, 0)
            worker.looked_at = message["clock"]
            worker.trouble, worker.rss = message["trouble"], message["rss"]
            worker.cpu_seconds = message["cpu"]
            worker.gpu_uses = tuple(map(_gpu_use, message["gpus"]))
        elif kind == "stack":
            if not all(type(line) is str for line in message["lines"]):
                raise BadMessage("a stack that is not of text")
            worker.trouble, worker.stack = message["trouble"], message["lines"]
        elif kind == "stopped":
            worker.stopped = message["seconds"]
            worker.warned &= bool(worker.stopped)
        elif kind == "report":
            report = message["message"]
            check(report)
            if report["kind"] not in REPORTS or report["process"] != worker.env.process:
                raise BadMessage(f"a report {report['kind']!r} of process {report['process']}")
            self._fleet.on_report(report)
        elif kind == "exit":
            if worker.running:
                worker.status, worker.why = message["status"], message["why"]
                self._fleet.on_exit(worker)
        else:
            raise BadMessage(f"{kind!r} is not for the launcher")

    # -- the output and the PMI requests of its workers ----------------------------------------------------

    def _print(self, process: int, error: bool, data: bytes) -> None:
        fd = self._outputs.get((process, error))
        if fd is None or fd in self._unwritten:
            raise BadMessage("output that was not asked for")
        if not data:
            os.close(self._outputs.pop((process, error)))
            return
        self._unwritten[fd] = data
        self._fleet.selector.register(fd, selectors.EVENT_WRITE, lambda: self._write(process, error, fd))
        self._write(process, error, fd)

    def _write(self, process: int, error: bool, fd: int) -> None:
        try:
            written = os.write(fd, self._unwritten[fd])
        except BlockingIOError:
            return
        except OSError:  # the reader of the logs has gone
            written = len(self._unwritten[fd])
        self._unwritten[fd] = self._unwritten[fd][written:]
        if not self._unwritten[fd]:
            del self._unwritten[fd]
            self._fleet.selector.unregister(fd)
            self._send("taken", process, error=error)

    def _from_server(self, process: int) -> None:
        try:
            data = self._worlds[process].recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close_world(process)
        self._send("pmi", process, data=to_text(data))

    def _to_server(self, process: int, data: bytes) -> None:
        if process not in self._worlds:
            return
        if not data:
            self._close_world(process)
            return
        with suppress(OSError):  # the server closes a connection that asks too much
            self._worlds[process].sendall(data)

    def _close_world(self, process: int) -> None:
        world = self._worlds.pop(process)
        self._fleet.selector.unregister(world)
        world.close()

    # -- its end -------------------------------------------------------------------------------------------

    def lose(self, why: str) -> list[WorkerState]:
        """Give it up; return those of its workers that were running."""
        self.lost = why
        self.swept = []
        self._drop()
        running = [w for w in self._workers.values() if w.running]
        for worker in running:
            worker.status = -9
        return running

    def _drop(self) -> None:
        for fd in self._unwritten:
            self._fleet.selector.unregister(fd)
        self._unwritten.clear()
        for fd in self._outputs.values():
            os.close(fd)
        self._outputs.clear()
        for process in list(self._worlds):
            self._close_world(process)

    def _send(self, kind: str, process: int = -1, **fields: Any) -> None:
        if not self.lost and not self.is_cut:
            self._fleet.hub.send(
                self.index, kind, generation=self._fleet.generation, process=process, **fields
            )


def _place(words: list[Any]) -> tuple[str, ...]:
    """Return what a process has of its machine, as its agent has sent it."""
    if not (len(words) == len(HEADINGS) - 1 and all(type(w) is str and len(w) <= _MOST_PLACE for w in words)):
        raise BadMessage("a place in another form")
    return tuple(words)


def _gpu_use(fields: Any) -> GpuUse | None:
    """Return the use of a GPU that an agent has sent; None if it does not know it."""
    if fields is None:
        return None
    if not (type(fields) is list and [type(x) for x in fields] in _GPU_USES):
        raise BadMessage("the use of a GPU in another form")
    return GpuUse(*fields)


class Fleet:
    """All nodes of a job but the launcher's own."""

    patience: Final = LOST
    """Seconds after which a node that is silent counts as lost."""

    def __init__(
        self,
        hosts: Sequence[tuple[int, Host]],
        *,
        run: str,
        selector: selectors.BaseSelector,
        on_report: Callable[[Message], None],
        on_exit: Callable[[WorkerState], None],
        on_lost: Callable[[RemoteNode, list[WorkerState]], None],
        on_signal: Callable[[int], None],
        on_history: Callable[[bytes], None],
        notice: Callable[[str], None],
        guard: Callable[[int], None],
    ) -> None:
        self.generation = 0
        self.selector = selector
        self.on_report, self.on_exit, self.notice = on_report, on_exit, notice
        self.on_history = on_history
        self._on_lost, self._on_signal, self._guard = on_lost, on_signal, guard
        self._signalled: set[int] = set()
        self._look_at = 0.0
        self._run = run
        self.master = ""
        """Address of the first node."""
        self.hub = Hub(run=run, nodes=1 + max(index for index, _ in hosts))
        self.nodes = [RemoteNode(self, index, host) for index, host in hosts]
        self._by_index = {node.index: node for node in self.nodes}
        self._hosts = dict(hosts)
        self._starters: list[_Starter] = []
        for fd in self.hub.fds:
            selector.register(fd, selectors.EVENT_READ, self.receive)

    def start(self, *, ssh: str, srun: bool) -> None:
        """Start the agents.

        Raises:
            ConfigError: the command is not there.
        """
        groups = [self.nodes] if srun else [[node] for node in self.nodes]
        for group in groups:
            names = [node.name for node in group]
            # ssh joins its words for a shell on the other side; srun passes them on.
            agent = [sys.executable, "-m", "disttrain.launcher.remote"]
            if srun:
                command = [*_srun(names), *agent]
            else:
                path = (
                    f"env PYTHONPATH={shlex.quote(os.environ['PYTHONPATH'])} "
                    if "PYTHONPATH" in os.environ
                    else ""
                )
                there = f"cd {shlex.quote(os.getcwd())} && exec {path}{shlex.join([*agent, names[0]])}"
                command = [*shlex.split(ssh), names[0], there]
            self._start(command, group, srun=srun)

    def _start(self, command: list[str], group: list[RemoteNode], *, srun: bool) -> None:
        host = self._hosts[group[0].index]
        try:
            address = address_towards(host.reached_at)
        except OSError as e:
            for node in group:
                self._lose(node, f"it cannot be reached: {e.strerror}; check its name")
            return
        letter = {
            "endpoint": self.hub.listen(address),
            "server": self.hub.server.public,
            "run": self._run,
            "nodes": {n.name: [n.index, *self.hub.nodes[n.index]] for n in group},
            # srun takes the environment along by itself, and adds what belongs to each node.
            "environ": {} if srun else {k: v for k, v in os.environ.items() if not _LOCAL.fullmatch(k)},
        }
        self.master = self.master or (address if self.nodes[0].index == 1 else host.reached_at)
        try:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the launcher alone
                bufsize=0,
            )
        except OSError as e:
            raise ConfigError(f"cannot start {command[0]!r}: {e.strerror}; see --ssh") from None
        self._guard(popen.pid)
        assert popen.stdin is not None
        assert popen.stdout is not None
        pidfd, said = os.pidfd_open(popen.pid), popen.stdout.fileno()
        starter = _Starter(popen, group, host.name if len(group) == 1 else command[0], [said, pidfd])
        self._starters.append(starter)
        self.selector.register(said, selectors.EVENT_READ, lambda: self._on_said(starter, said))
        self.selector.register(pidfd, selectors.EVENT_READ, lambda: self._on_end(starter, pidfd))
        with suppress(BrokenPipeError):  # it has ended already; that is heard of
            popen.stdin.write(json.dumps(letter).encode() + b"\n")

    def receive(self) -> None:
        """Take what the nodes have sent."""
        # Until nothing comes: to send, in between, can swallow the sign that more is there (zmq_getsockopt, ZMQ_FD).
        while messages := self.hub.receive():
            for index, message in messages:
                try:
                    self._by_index[index].serve(message)
                except BadMessage as e:
                    self.hub.complain(index, e)

    def tick(self) -> float:
        """Take what has come and give up nodes that are silent; return the seconds until that is due again."""
        self.receive()  # first, what has waited: this process may have been stopped itself
        now = time.monotonic()
        if now >= self._look_at:
            for node in self.nodes:
                silent = now - node.heard
                if silent > LOST and node.facts is not None and not node.lost:
                    self._lose(
                        node, f"nothing heard of it for {silent:.0f} s (switched off, cut off or frozen)"
                    )
            self._look_at = now + BEAT
        return self._look_at - now

    @property
    def complaints(self) -> list[str]:
        """What has come to the port that should not have."""
        refused = self.hub.refused
        what = f"refused {refused} connection{'s' * (refused > 1)} without a key of this job"
        return [*([what] if refused else []), *self.hub.complaints]

    def take_signal(self, number: int) -> None:
        """Pass on what a batch system has sent to agents: once, as it sends it to all of them."""
        if number not in self._signalled:
            self._signalled.add(number)
            self._on_signal(number)

    @property
    def printing(self) -> bool:
        """Whether output of the workers may still come."""
        return any(node.printing for node in self.nodes)

    def cut_off(self, host: str) -> None:
        """Neither hear of a host any more nor send to it: ``--chaos cut:HOST@STEP``."""
        for node in self.nodes:
            node.is_cut |= node.host == host

    def give_up(self, hopeless: Callable[[RemoteNode], bool], why: str) -> None:
        """Count the nodes that are ``hopeless`` as lost."""
        for node in self.nodes:
            if not node.lost and hopeless(node):
                self._lose(node, why)

    def _on_said(self, starter: _Starter, fd: int) -> None:
        """Show what ``ssh`` or an agent has to say for itself."""
        data = os.read(fd, 1 << 16)
        *lines, starter.unfinished = (starter.unfinished + data).split(b"\n")
        if not data:
            self._unwatch(starter, fd)
            lines, starter.unfinished = [starter.unfinished] if starter.unfinished else [], b""
        for line in lines:
            self.notice(f"[{starter.label}] {line.decode(errors='replace').rstrip()}")

    def _on_end(self, starter: _Starter, pidfd: int) -> None:
        self._unwatch(starter, pidfd)
        os.close(pidfd)
        self.receive()
        code = starter.popen.wait()
        for node in starter.nodes:
            if not node.lost:
                why = f"its connection has ended (exit code {code})"
                silent = time.monotonic() - node.heard
                if node.facts is not None and silent > 3 * BEAT:  # it gave us up before we gave it up
                    why = f"nothing heard of it for {silent:.0f} s, then {why}"
                self._lose(node, why)

    def _unwatch(self, starter: _Starter, fd: int) -> None:
        starter.fds.remove(fd)
        self.selector.unregister(fd)

    def _lose(self, node: RemoteNode, why: str) -> None:
        self._on_lost(node, node.lose(why))

    def close(self) -> None:
        """Send the agents home, and end what does not go."""
        for node in self.nodes:
            node.close()
        deadline = time.monotonic() + 2.0
        for starter in self._starters:
            assert starter.popen.stdin is not None
            assert starter.popen.stdout is not None
            starter.popen.stdin.close()
            if any(node.lost for node in starter.nodes):
                starter.popen.kill()
            try:
                starter.popen.wait(timeout=max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                starter.popen.kill()
                starter.popen.wait()
            for fd in list(starter.fds):
                self._unwatch(starter, fd)
                if fd != starter.popen.stdout.fileno():
                    os.close(fd)
            starter.popen.stdout.close()
        for fd in self.hub.fds:
            self.selector.unregister(fd)
        self.hub.close()


def _srun(names: Sequence[str]) -> list[str]:
    """Return the command that starts one agent on each of the nodes of this Slurm job, with all that they have."""
    count = str(len(names))
    return [
        "srun",
        f"--nodes={count}",
        f"--ntasks={count}",
        "--ntasks-per-node=1",
        f"--nodelist={','.join(names)}",
        "--overlap",
        "--cpu-bind=none",
        "--mem=0",
        "--mpi=none",
        "--kill-on-bad-exit=0",  # one lost node is for the launcher to deal with
        "--quiet",
    ]
