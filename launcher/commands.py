"""What the user asks of a running job: how it is, and to save, stop, pause or go on after a step."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from disttrain.collectives.control import BadMessage, Message
from disttrain.collectives.ledger import Standing, read, stacks_in
from disttrain.collectives.meter import Reading, Wish
from disttrain.launcher import gpus
from disttrain.launcher.node import WISHES, Workers, WorkerState
from disttrain.launcher.report import name_ranks

if TYPE_CHECKING:
    from disttrain.launcher.fleet import RemoteNode

POLL: Final = 0.05
"""Seconds between two looks at whether the ranks have done what was asked of them."""
_POLL_OTHERS: Final = 0.5
"""The same where ledgers have to come from other nodes."""
_DONE: Final = {"save": "saved", "stop": "stopped", "pause": "paused", "resume": "resumed"}
_MAX_CALL: Final = 400
_MOST_FRAMES: Final = 64


@dataclass(frozen=True)
class JobFacts:
    """What a job is."""

    command: tuple[str, ...]
    script: str
    world_size: int
    """0 while it depends on nodes that have not joined yet."""
    processes: int


class Commands:
    """Answers questions about a job, and passes wishes on to its ranks through their ledgers' files.

    Args:
        history: the file in which each command and its effect is noted.
        notice: says something to the user on the job's terminal.
        kill: ends the job.
        about: what the job is, as far as that is known before its ranks have begun.
    """

    def __init__(
        self, history: Path, notice: Callable[[str], None], kill: Callable[[str], None], about: JobFacts
    ) -> None:
        self.stopped_at: int | None = None
        """After which step the ranks have stopped because they were asked to."""
        self._history, self._notice, self._kill = history, notice, kill
        self._started = time.monotonic()
        self._about = about
        self._workers: Sequence[WorkerState] = ()
        self._nodes: Mapping[int, Workers | RemoteNode] = {}
        self._generation = 0
        self._asked = dict.fromkeys(Wish, 0)
        """How often the ranks of this generation have been asked."""
        self._pending: list[str] = []
        """Commands that have still to be done."""
        self._on_behalf: dict[str, str] = {}
        """Command → who asked for it last."""

    def begin(
        self,
        about: JobFacts,
        workers: Sequence[WorkerState],
        nodes: Mapping[int, "Workers | RemoteNode"],
        generation: int,
    ) -> None:
        """Speak of these workers from now on, which run on these nodes."""
        self._about, self._workers, self._nodes, self._generation = about, workers, nodes, generation
        self._asked = dict.fromkeys(Wish, 0)

    def forget(self) -> None:
        """Speak of no workers any more: these are gone, with what is known of them."""
        for command in self._pending:
            self._note(command, "lost: the ranks ended first")
        self._pending, self._workers, self._nodes = [], (), {}

    def answer(self, question: Message) -> dict[str, Any]:
        """Return the answer to a question."""
        match question["kind"]:
            case "status":
                self._look()
                return {"kind": "status", "job": self._job(), "ranks": self._ranks()}
            case "stack":
                return self._stack(question["rank"], again=question["again"])
            case "kill":
                self._note("kill", "asked")
                self._kill("disttrain kill")
                return {"kind": "reply", "done": True, "text": "", "number": 0}
            case _:
                refusal = self.ask(question["command"])
                number = self._number(question["command"])
                return {"kind": "reply", "done": not refusal, "text": refusal, "number": number}

    def _stack(self, rank: int, *, again: bool) -> dict[str, Any]:
        worker = next((w for w in self._workers if rank in w.ranks), None)
        if worker is None:
            raise BadMessage(f"there is no rank {rank} now")
        if not again:
            threads = {s.rank: s.thread for s in worker.standings()}
            self._nodes[worker.env.node].ask(worker, threads.get(rank, 0), _MOST_FRAMES, wake=True)
        return {"kind": "stack", "done": worker.stack is not None, "lines": worker.stack or []}

    # -- commands ------------------------------------------------------------------------------------------

    def preempt(self, by: str) -> str:
        """Ask all ranks to save and stop, on behalf of the signal ``by``; return why not, "" if they will."""
        return self._why_not("save") or self.ask("stop", by)

    def ask(self, command: str, by: str = "") -> str:
        """Ask all ranks for what ``save``, ``stop``, ``pause`` or ``resume`` mean; return why not, "" if it is done.

        What has been asked for, and is not done yet, is not asked for again.

        Args:
            by: on whose behalf, if it is not that of ``disttrain ctl``.
        """
        if command not in _DONE:
            refusal = f"there is no command {command[:40]!r}; it is {', '.join(_DONE)}"
        elif command in self._pending:
            return ""
        else:
            refusal = self._why_not(command)
        self._note(command[:40], f"refused: {refusal}" if refusal else "asked")
        if refusal:
            return refusal
        for wish in WISHES[command]:
            self._asked[wish] += 1
        for node in self._nodes.values():
            node.wish(command)
        self._pending.append(command)
        self._on_behalf[command] = by or f"`disttrain ctl {command}`"
        self.poll()  # ranks that step fast have done it already
        return ""

    def poll(self) -> float | None:
        """Note which commands have been done; return in how many seconds to look again, None if none is left."""
        if not self._pending:
            return None
        self._look()
        for command in list(self._pending):
            readings = self._read()
            if not self._is_done(command, readings):
                continue
            self._pending.remove(command)
            step = max(r.acted_at for r in readings)
            where = "" if command == "resume" else f" after step {step}"
            if command == "stop":
                self.stopped_at = step
            self._note(command, "done", step)
            self._notice(f"disttrain: {_DONE[command]}{where}, as asked by {self._on_behalf[command]}")
        return (POLL if len(self._nodes) == 1 else _POLL_OTHERS) if self._pending else None

    def _why_not(self, command: str) -> str:
        readings = self._read()
        if not any(w.running for w in self._workers):
            return "no rank runs now"
        if "stop" in self._pending or self.stopped_at is not None:
            return "the job is about to stop"
        is_paused = "pause" in self._pending or any(r.paused for r in readings)
        if command == "resume" and not is_paused:
            return "the job is not paused"
        if command == "pause" and is_paused:
            return "the job is paused already"
        if command == "pause" and len(readings) < self._about.world_size:
            return "ranks on other nodes, which mpiexec or srun has started, could not be told to go on"
        if command == "save":
            if is_paused:
                return "the job is paused; resume it first"
            cannot = [r.rank for r in readings if not r.can_save]
            if cannot:
                return f"the script has not said how: no dt.on_save(callback) has been called on {name_ranks(cannot)}"
        return ""

    def _is_done(self, command: str, readings: Sequence[Reading]) -> bool:
        if command == "resume":
            return not any(r.paused for r in readings)
        return all(r.done[wish] >= self._asked[wish] for r in readings for wish in WISHES[command])

    def _number(self, command: str) -> int:
        return max((self._asked[wish] for wish in WISHES.get(command, ())), default=0)

    def _read(self) -> list[Reading]:
        return [reading for worker in self._workers for reading in worker.readings()]

    def _look(self) -> None:
        for node in self._nodes.values():
            node.look()

    def _note(self, command: str, what: str, step: int | None = None) -> None:
        """Write a command and what became of it into the run's history."""
        entry: dict[str, Any] = {
            "time": round(time.time(), 3),
            "generation": self._generation,
            "command": command,
            "what": what,
        }
        if step is not None:
            entry["step"] = step
        self.keep(json.dumps(entry, separators=(",", ":")).encode() + b"\n")

    def keep(self, lines: bytes) -> None:
        """Write lines into the run's history."""
        try:
            with open(self._history, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.write(lines)
        except OSError as error:  # a full disk must not end the run
            self._notice(f"disttrain: the history of the run is not complete: {error}")

    # -- status --------------------------------------------------------------------------------------------

    def _job(self) -> dict[str, Any]:
        about = self._about
        return {
            "command": list(about.command),
            "script": about.script,
            "pid": os.getpid(),
            "seconds": round(time.monotonic() - self._started, 1),
            "generation": self._generation,
            "world_size": about.world_size,
            "processes": about.processes,
            "nodes": len(self._nodes),
            "pending": list(self._pending),
            "gpus": gpus.trouble(),
        }

    def _ranks(self) -> list[dict[str, Any]]:
        return [rank for worker in self._workers for rank in _describe(worker)]


def _describe(worker: WorkerState) -> list[dict[str, Any]]:
    """Return what is known of the ranks of a process: the fields of their readings, and some more."""
    data = os.pread(worker.ledger, os.fstat(worker.ledger).st_size, 0)
    standings = {s.rank: s for s in read(data, worker.looked_at, latest=1)}
    process = {
        "process": worker.env.process,
        "node": worker.env.node,
        "host": worker.host,
        "pid": worker.pid,
        "stacks": stacks_in(data),
        "rss": worker.rss,
        "cpu_seconds": worker.cpu_seconds,
    }
    trouble = worker.trouble if worker.running else _end_of(worker)
    found = []
    for i, reading in enumerate(worker.readings()):
        standing = standings.get(reading.rank)
        gpu = worker.gpu_uses[i] if i < len(worker.gpu_uses) else None
        state, call = _place(reading, standing)
        found.append(
            asdict(reading)
            | process
            | {
                "done": list(reading.done),
                "compute": reading.compute,
                "thread": standing.thread if standing is not None else 0,
                "state": trouble or state,
                "call": call[:_MAX_CALL],
                "gpu": gpu and asdict(gpu),
            }
        )
    return found


def _end_of(worker: WorkerState) -> str:
    return "has ended" if worker.status == 0 else "has failed"


def _place(reading: Reading, standing: Standing | None) -> tuple[str, str]:
    """Return the state of a rank in a word or two, and the call that it is in, or that is on its way."""
    call = ""
    if standing is not None:
        last = standing.waits or standing.turn or next(iter(standing.entries[-1:]), None)
        if last is not None and (last.ended is None or standing.turn is not None):
            call = str(last)
    if reading.paused:
        return "paused", ""
    if standing is not None and standing.waits is not None:
        return f"waits {standing.waited:.1f} s", call
    if standing is not None and standing.turn is not None:
        return "waits for its turn", call
    if reading.reading:
        return f"reads data {reading.reading:.1f} s", call
    return "runs", call
