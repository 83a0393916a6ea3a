"""The agent of every node but the launcher's: ``python -m disttrain.launcher.remote [NAME]``.

It is started over ssh or by the batch system, reads one line of JSON from its standard input (a *letter*: where the
launcher is, and the keys), and does what the launcher says. All decisions are the launcher's. It ends, with all that it
has started, when the launcher says so, when its input ends, or when it has not heard of the launcher for a while.
"""

import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple
from typing import Any, Final

from disttrain.collectives.control import BadMessage, Message
from disttrain.collectives.env import WorkerEnv
from disttrain.launcher import preflight
from disttrain.launcher.control_plane import ControlPlane
from disttrain.launcher.node import LocalNode, Order, WorkerState
from disttrain.launcher.pace import STRIDE
from disttrain.launcher.rundir import RunDirectory
from disttrain.launcher.wire import Keys, Link, LostConnection, Ticket, from_text, pack, to_text

BEAT: Final = 1.0
"""Seconds between two signs of life."""
LOST: Final = 10.0
"""Seconds of silence after which the other side counts as lost."""
_CHUNK: Final = 64 << 10
_HISTORY_CHUNK: Final = 512 << 10


class Remote:
    """This node's part of one job."""

    def __init__(self, letter: dict[str, Any], name: str) -> None:
        index, public, secret = letter["nodes"][name]
        self._link = Link(Ticket(letter["endpoint"], letter["server"], Keys(public, secret), letter["run"]))
        self._selector = selectors.DefaultSelector()
        self._generation = 0
        self._heard = time.monotonic()
        self._ended = ""
        """Why this agent ends; empty while it does not."""
        self._signals: list[int] = []
        self._workers: dict[int, WorkerState] = {}
        self._savers: set[int] = set()
        """Processes whose ranks have all said how to save, as the launcher knows."""
        self._worlds: dict[int, socket.socket] = {}
        self._logs: dict[tuple[int, bool], int] = {}
        self._closing: list[Callable[[], None]] = [self._link.close]
        self._directory = RunDirectory(letter["run"], index)
        self._closing.insert(0, self._directory.remove)
        self._control = ControlPlane(
            self._directory.control, run=letter["run"], generation=0, processes=sys.maxsize
        )
        self._closing.insert(0, self._control.close)
        self._node = LocalNode(
            self._directory,
            self._selector,
            on_exit=self._on_exit,
            notice=lambda text: self._link.send("notice", text=text),
        )

    def run(self) -> str:
        """Serve the launcher to the end; return why it ended, empty if the launcher said so."""
        self._catch_signals()
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ, self._on_input)
        self._selector.register(self._control.fd, selectors.EVENT_READ, self._on_reports)
        for fd in self._link.fds:
            self._selector.register(fd, selectors.EVENT_READ, self._on_messages)
        self._link.send("hello", facts=preflight.gather())
        self._on_messages()
        beat = time.monotonic() + BEAT
        paces_at = 0.0
        try:
            while not self._ended:
                for key, _ in self._selector.select(max(beat - time.monotonic(), 0.0)):
                    key.data()
                # To send can swallow the sign that something is there (zmq_getsockopt, ZMQ_FD); and what has come
                # while this process was stopped counts before its silence does.
                self._on_messages()
                now = time.monotonic()
                if now >= beat and not self._ended:
                    if now - self._heard > LOST:
                        self._ended = f"nothing heard of the launcher for {now - self._heard:.0f} s"
                    self._link.send("beat")
                    self._tell_stopped()
                    self._tell_savers()
                    if now - paces_at >= STRIDE:
                        self._send("paces", -1, marks=[astuple(mark) for mark in self._node.marks])
                        paces_at = now
                    beat = now + BEAT
            return "" if self._ended == "bye" else self._ended
        finally:
            self._node.forget()
            for close in self._closing:
                close()
            self._node.close()

    def _tell_stopped(self) -> None:
        before = {process: worker.stopped for process, worker in self._workers.items()}
        self._node.look_for_stopped()
        for process, worker in self._workers.items():
            if worker.stopped != before[process]:
                self._send("stopped", process, seconds=worker.stopped)

    def _tell_savers(self) -> None:
        """Hand over the ledgers of workers that can save now: a signal asks for that at once, and cannot look first."""
        for process, worker in self._workers.items():
            if process not in self._savers and all(reading.can_save for reading in worker.readings()):
                self._savers.add(process)
                self._send_look(worker)

    def _catch_signals(self) -> None:
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(s, lambda number, _: self._signals.append(number))
        self._selector.register(read, selectors.EVENT_READ, lambda: self._on_signals(read))

    def _on_signals(self, fd: int) -> None:
        with suppress(BlockingIOError):
            os.read(fd, 64)
        signals, self._signals = self._signals, []
        for number in signals:  # what it means is for the launcher to say
            self._link.send("signalled", generation=self._generation, number=number)

    def _on_input(self) -> None:
        if not os.read(sys.stdin.fileno(), _CHUNK):
            self._selector.unregister(sys.stdin.fileno())
            self._ended = self._ended or "the launcher has gone"

    def _on_messages(self) -> None:
        try:
            while messages := self._link.receive():
                self._heard = time.monotonic()
                for message in messages:
                    self._serve(message)
        except (LostConnection, BadMessage) as e:
            self._ended = self._ended or str(e)

    def _serve(self, message: Message) -> None:
        process = message["process"]
        match message["kind"]:
            case "start":
                self._start(message)
            case "pmi":
                self._to_world(process, from_text(message["data"]))
            case "taken":
                if (fd := self._logs.get((process, message["error"]))) is not None:
                    self._watch_log(fd, process, message["error"])
            case "look":
                self._node.look()
                for worker in self._workers.values():
                    self._send_look(worker)
            case "ask":
                self._link.send("beat")  # a worker that does not answer takes a second
                worker = self._workers[process]
                self._node.ask(worker, message["thread"], message["most"], wake=message["wake"])
                self._send("stack", process, trouble=worker.trouble, lines=worker.stack)
            case "wish":
                self._node.wish(message["command"])
            case "terminate":
                self._node.terminate()
            case "kill":
                self._node.kill()
            case "sweep":
                for complaint in self._control.complaints:
                    self._send("notice", -1, text=f"disttrain: {complaint}")
                self._control.complaints.clear()
                self._node.sweep()
                self._send_history()
                self._send("swept", -1, left=self._node.swept)
            case "forget":
                self._forget()
            case "bye":
                self._ended = "bye"
            case "beat":
                pass
            case kind:
                raise AssertionError(f"the launcher has sent {kind!r}")

    def _send_history(self) -> None:
        """Hand over what the ranks of this node have logged, in whole lines."""
        with suppress(FileNotFoundError), open(self._directory.history, "rb") as file:
            while lines := b"".join(file.readlines(_HISTORY_CHUNK)):
                self._send("history", -1, data=to_text(lines))
            self._directory.history.unlink()

    def _send_look(self, worker: WorkerState) -> None:
        data = os.pread(worker.ledger, os.fstat(worker.ledger).st_size, 0)
        self._send(
            "looked",
            worker.env.process,
            clock=time.monotonic_ns(),
            data=pack(data),
            trouble=worker.trouble,
            rss=worker.rss,
            cpu=worker.cpu_seconds,
            gpus=[use and list(astuple(use)) for use in worker.gpu_uses],
        )

    def _send(self, kind: str, process: int, **fields: Any) -> None:
        self._link.send(kind, generation=self._generation, process=process, **fields)

    def _start(self, message: Message) -> None:
        env = WorkerEnv(
            **message["env"]
            | {"control": self._directory.control, "history": os.fspath(self._directory.history)}
        )
        if env.generation != self._generation:
            self._generation = env.generation
            self._control.begin(env.generation, env.processes)
        world = None
        if message["world"]:
            ours, world = socket.socketpair()
            ours.setblocking(False)
            self._worlds[env.process] = ours
            self._selector.register(ours, selectors.EVENT_READ, lambda: self._from_world(env.process))
        order = Order(
            env, tuple(message["argv"]), message["environ"], message["defaults"], message["without"]
        )
        out, err = self._open_log(env.process, error=False), self._open_log(env.process, error=True)
        worker = self._node.start(order, out, err, world)
        self._workers[env.process] = worker
        self._send("started", env.process, pid=worker.pid, place=list(worker.place))

    def _open_log(self, process: int, *, error: bool) -> int:
        read, write = os.pipe()
        self._logs[process, error] = read
        self._watch_log(read, process, error)
        return write

    def _watch_log(self, fd: int, process: int, error: bool) -> None:
        self._selector.register(fd, selectors.EVENT_READ, lambda: self._on_log(fd, process, error))

    def _on_log(self, fd: int, process: int, error: bool) -> None:
        # One chunk of a stream is on its way at a time: a terminal that takes nothing stops the worker's
        # printing, as it does on the launcher's node, and fills no memory.
        data = os.read(fd, _CHUNK)
        self._selector.unregister(fd)
        if not data:
            os.close(fd)
            del self._logs[process, error]
        self._send("log", process, error=error, data=to_text(data))

    def _from_world(self, process: int) -> None:
        try:
            data = self._worlds[process].recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close_world(process)
        self._send("pmi", process, data=to_text(data))

    def _to_world(self, process: int, data: bytes) -> None:
        if process not in self._worlds:
            return  # it has left meanwhile
        if not data:
            self._close_world(process)
            return
        with suppress(OSError):  # it is gone, or takes no answers; its exit tells the rest
            self._worlds[process].sendall(data)

    def _close_world(self, process: int) -> None:
        world = self._worlds.pop(process)
        self._selector.unregister(world)
        world.close()

    def _on_reports(self) -> None:
        for message in self._control.receive():
            self._send("report", message["process"], message=message)

    def _on_exit(self, worker: WorkerState) -> None:
        self._on_reports()  # its report came before its end
        assert worker.status is not None
        self._send("exit", worker.env.process, status=worker.status, why=worker.why)

    def _forget(self) -> None:
        """Drop all that is left of a generation; its processes have been swept."""
        for process in list(self._worlds):
            self._close_world(process)
        for fd in self._logs.values():
            with suppress(KeyError):  # it waits for the launcher to take what it has sent
                self._selector.unregister(fd)
            os.close(fd)
        self._logs.clear()
        self._workers.clear()
        self._savers.clear()
        self._node.forget()


def main(argv: list[str]) -> None:
    with open(
        sys.stdin.fileno(), "rb", buffering=0, closefd=False
    ) as letters:  # nothing may stay in a buffer
        line = letters.readline(1 << 20)
    if not line:
        sys.exit("disttrain: no letter from the launcher; this command is for it to call")
    letter = json.loads(line)
    name = argv[0] if argv else os.environ.get("SLURMD_NODENAME", "")
    os.environ.update(letter["environ"])
    try:
        why = Remote(letter, name).run()
    except (LostConnection, RuntimeError, OSError) as e:
        sys.exit(f"disttrain: {e}")
    if why:
        sys.exit(f"disttrain: {why}; this node's part of the job has been ended")


if __name__ == "__main__":
    main(sys.argv[1:])
