"""The control plane of a job without a launcher: ``mpiexec -n 4 python train.py``, or ``srun``.

Rank 0 starts this program when the ranks connect. It has a run directory as a launcher has, so that ``disttrain ps``,
``top``, ``stack``, ``ctl`` and ``kill`` know the job; it reads the ledgers of the ranks on its node, says which rank
has failed first and where the others were then, and ends when they have ended. It neither starts nor restarts anything,
and sees no ranks of other nodes.
"""

import json
import os
import selectors
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.ledger import is_ours
from disttrain.collectives.meter import End, note_heard, read_end
from disttrain.launcher.commands import Commands, JobFacts
from disttrain.launcher.desk import Desk
from disttrain.launcher.gpus import Gpu, visible
from disttrain.launcher.guardian import send
from disttrain.launcher.node import Workers, WorkerState, tell_slow
from disttrain.launcher.pace import Paces
from disttrain.launcher.report import Attempt, Failure, RunReport, Slow, locate, name_ranks
from disttrain.launcher.rundir import RunDirectory

_GRACE: Final = 2.0
"""Seconds between SIGTERM and SIGKILL for ``disttrain kill``."""
_LISTEN: Final = 0.1
"""Seconds between two looks at whether a rank has failed: it waits until that has been said."""
_MAX_LETTER: Final = 1 << 20


class Attendant:
    """Attends the ranks of one job on this node.

    Args:
        about: what rank 0 has written: the ``command``, the ``world_size``, and for each of the ``processes`` of this
            node its number, pid and descriptor of its ledger.

    Raises:
        RuntimeError: the run directory cannot be used.
    """

    def __init__(self, about: dict[str, Any]) -> None:
        self._started = time.monotonic()
        self._directory = RunDirectory()
        self._selector = selectors.DefaultSelector()
        self._facts = JobFacts(
            tuple(about["command"]), about["command"][0], about["world_size"], about["world_size"]
        )
        self._failed: Attempt | None = None
        self._slow: list[Slow] = []
        self._stopped_by = ""
        """Who has had the job ended, for its user."""
        self._kill_at: float | None = None
        self._gone: list[WorkerState] = []
        """Those that have ended, and not well."""
        self._workers: list[WorkerState] = []
        for process, pid, descriptor in about["processes"]:
            with suppress(OSError):  # it has just ended
                self._attend(process, pid, descriptor)
        node = Workers(self._workers)
        self._node, self._paces = node, Paces()
        self._commands = Commands(self._directory.history, _say, self._end, self._facts)
        self._commands.begin(self._facts, self._workers, {0: node}, 0)
        self._desk = Desk(self._directory.desk, self._directory.run_id, self._selector, self._commands.answer)

    def _attend(self, process: int, pid: int, descriptor: int) -> None:
        size = self._facts.world_size
        ledger = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
        if not is_ours(ledger):  # the number is another process's by now
            os.close(ledger)
            return
        env = WorkerEnv(rank=process, world_size=size, process=process, processes=size, ledger=ledger)
        worker = WorkerState(env, socket.gethostname(), ledger, pid, gpus=_gpus_of(pid))
        pidfd = os.pidfd_open(pid)
        self._workers.append(worker)
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._on_exit(worker, pidfd))

    def run(self) -> None:
        """Serve until all ranks have ended."""
        try:
            while any(worker.running for worker in self._workers):
                waits = [_LISTEN, self._commands.poll(), self._look_for_slow()]
                if self._kill_at is not None:
                    waits.append(max(0.0, self._kill_at - time.monotonic()))
                for key, _ in self._selector.select(min((w for w in waits if w is not None), default=None)):
                    key.data()
                gone = [w for w in self._workers if w.status and w not in self._gone]
                self._gone += gone
                if gone:
                    self._fail(*gone)
                if self._kill_at is not None and time.monotonic() >= self._kill_at:
                    self._send(signal.SIGKILL)
                    self._kill_at = None
                if any((end := read_end(w.ledger)) is not None and end.code for w in self._workers):
                    self._fail(self._workers[0])
            self._commands.poll()
        finally:
            self._desk.close()
            self._leave()

    def _on_exit(self, worker: WorkerState, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        end = read_end(worker.ledger)
        worker.status = end.code if end is not None else -1

    def _fail(self, worker: WorkerState, *others: WorkerState) -> None:
        """Say who has failed: the first that has said so, else ``worker``, the first that is gone.

        Args:
            others: that are gone too: mpiexec kills them within a millisecond, and nothing tells who was the first.
        """
        if self._failed is not None or self._stopped_by:
            return
        said: list[tuple[End, WorkerState]] = [
            (end, w) for w in self._workers if (end := read_end(w.ledger)) is not None and end.code != 0
        ]
        end, worker = min(said, key=lambda pair: pair[0].at, default=(None, worker))
        unseen = self._facts.world_size - len(self._workers)
        silent = "has ended without a word: it was killed, or has left with os._exit()"
        if others:
            silent += f"; or {name_ranks(r for w in others for r in w.ranks)} did, gone at the same moment"
        if unseen:
            silent += (
                f", or because of one of the {unseen} ranks on other nodes, which cannot be seen from here"
            )
        failure = Failure(
            ranks=worker.ranks,
            process=worker.env.process,
            host=worker.host,
            pid=worker.pid,
            seconds=round(time.monotonic() - self._started, 3),
            what=end.what if end is not None else silent,
            code=end.code if end is not None else 1,
        )
        standings = [s for w in self._workers for s in w.standings()]
        self._failed = Attempt(0, failure.seconds, (failure,), positions=locate(standings))
        _say(self._failed.text())
        for w in self._workers:
            note_heard(w.ledger)

    def _look_for_slow(self) -> float | None:
        if self._paces.wait == 0 and (slow := self._paces.look(self._node.marks)) is not None:
            self._slow.append(slow)
            _say(tell_slow(slow, self._workers))
        return self._paces.wait

    def _end(self, by: str) -> None:
        """End the job, for its user; whoever has started it is told by its ranks' end."""
        if not self._stopped_by:
            _say(f"disttrain: stopped by {by}")
            self._stopped_by = by
            self._kill_at = time.monotonic() + _GRACE
            self._send(signal.SIGTERM, signal.SIGCONT)

    def _send(self, *signals: signal.Signals) -> None:
        for worker in self._workers:
            if worker.running:
                send(worker.pid, signals)

    def _leave(self) -> None:
        """Leave a report if there is something to tell, else nothing."""
        failures = self._failed.failures if self._failed is not None else ()
        if not failures and not self._directory.history.exists():
            self._directory.remove()
            return
        report = RunReport(
            run_id=self._directory.run_id,
            generation=0,
            command=self._facts.command,
            world_size=self._facts.world_size,
            seconds=round(time.monotonic() - self._started, 3),
            code=failures[0].code if failures else 0,
            failures=failures,
            positions=self._failed.positions if self._failed is not None else (),
            stopped_at=self._commands.stopped_at,
            slow=tuple(self._slow),
        )
        report.write(self._directory.report)
        self._directory.keep()


def _gpus_of(pid: int) -> tuple[Gpu, ...]:
    """Return the GPU of a rank that others have started, by its environment; nothing if it has none."""
    words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="surrogateescape").split("\0")
    environ = dict(word.partition("=")[::2] for word in words)
    local = WorkerEnv.from_environ(environ).local_rank
    return visible(environ)[local : local + 1]


def _say(text: str) -> None:
    """Print a line where rank 0 prints; whoever has read that may have gone."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def main() -> None:
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # what rank 0 has inherited of mpiexec
    about = json.loads(sys.stdin.buffer.read(_MAX_LETTER))
    for s in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):  # for the ranks; this ends with them
        signal.signal(s, signal.SIG_IGN)
    try:
        attendant = Attendant(about)
    except RuntimeError as e:
        sys.exit(f"disttrain: disttrain ps will not know this job: {e}")
    attendant.run()


if __name__ == "__main__":
    main()
