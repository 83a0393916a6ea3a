"""The agent of one node: starts the workers of a job, watches them, and ends what is left of them.

One loop in the main thread waits for everything at once: exits (pidfd), messages (ZeroMQ), requests of MPI
(PMI), signals from the user. Only the workers' output has a thread of its own.
"""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Final

from disttrain.collectives import stacks
from disttrain.collectives.control import Message
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.ledger import Standing, ledger_file, read, stacks_in
from disttrain.launcher import guardian, pmi
from disttrain.launcher.called import result_file
from disttrain.launcher.config import LaunchConfig
from disttrain.launcher.control_plane import ControlPlane
from disttrain.launcher.logs import LogPump
from disttrain.launcher.report import (
    Attempt,
    Failure,
    RunReport,
    describe_end,
    describe_positions,
    describe_signal,
    locate,
    name_ranks,
    order,
)
from disttrain.launcher.rundir import RunDirectory

GRACE: Final = 2.0
"""Seconds between SIGTERM and SIGKILL when the user stops the job."""
SETTLE_DEATH: Final = 0.1
"""Seconds in which other ranks may also end, after one has died, before they are killed."""
SETTLE_ERROR: Final = 0.3
"""The same after an exception: all ranks often raise it at about the same time."""
SETTLE_FOLLOWER: Final = 1.0
"""The same while all that is known is that a peer failed: its own report is on the way."""
NOTICE: Final = 7.5
"""Seconds after which a process that does not connect is named; again when the time has doubled."""
HUNG: Final = 5.0
"""Seconds in one call after which a job that the user stops is told to have hung, with the place of each rank."""
_MOST_ASKED: Final = 8
BACK_OFF: Final = 1.0
"""Seconds before a restart if the generation before the last one got nowhere either; doubled each time."""
MAX_BACK_OFF: Final = 30.0
GOT_SOMEWHERE: Final = 10.0
"""Seconds after which a generation that failed has not failed at once, even if its ranks never communicated."""
_LEAVING: Final = 0.3  # seconds that helpers of multiprocessing need to see that their parent has gone


@dataclass
class WorkerState:
    """One worker process."""

    env: WorkerEnv
    popen: subprocess.Popen[bytes]
    pidfd: int
    ledger: int
    """Descriptor of the file in which it notes its calls."""
    status: int | None = None
    """Exit status once it has ended, negative for a signal. It stays a zombie until the sweep, so that the
    kernel cannot give its session's number to a stranger."""
    ends: dict[int, Message] = field(default_factory=dict)
    """Rank → the report of its end."""
    failed: bool = False

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(range(self.env.rank, self.env.rank + self.env.hosted))

    @property
    def running(self) -> bool:
        return self.status is None


class Agent:
    """Runs one job on this node."""

    def __init__(self, config: LaunchConfig) -> None:
        self._config = config
        self._signals: list[signal.Signals] = []
        self._stopped_by: signal.Signals | None = None
        self.results: dict[int, Any] = {}
        """What the function has returned, by rank, if the program is one (``disttrain.launch``)."""
        self._host = socket.gethostname()
        self._selector = selectors.DefaultSelector()
        self._generation = 0
        self._attempts: list[Attempt] = []
        """The generations that failed and were followed by another."""
        self._at_once = 0
        """How many generations in a row have failed without getting anywhere."""
        self._workers: list[WorkerState] = []
        self._failures: list[Failure] = []
        self._stopped: list[int] = []
        self._standings: list[Standing] = []
        """Where the ranks were when the generation began to end."""
        self._tell_at = NOTICE
        """After how many seconds of the generation to name the processes that do not connect, next."""
        self._kill_at: float | None = None
        self._killed = False

    def run(self) -> RunReport:
        """Start the workers, wait for their end, and leave nothing of them behind.

        Raises:
            RuntimeError: the run directory cannot be used, or this is not Linux. Nothing has been started.
        """
        if not hasattr(os, "pidfd_open"):
            raise RuntimeError(
                f"disttrain launch needs Linux 5.3 or newer, this is {sys.platform}; use disttrain debug"
            )
        self._started, self._since = time.monotonic(), time.time()
        self._directory = RunDirectory()
        self.directory = self._directory.path
        """Where the report and the logs are, if they are kept."""
        if self._config.call:
            self._call_file.write_text(self._config.call)
        self._logs = LogPump(self._directory.path)
        restore = self._catch_signals()
        self._guardian = self._start_guardian()
        self._pmi = self._new_world()
        self._control = ControlPlane(
            self._directory.control,
            run=self._directory.run_id,
            generation=0,
            processes=self._config.processes,
        )
        self._selector.register(self._control.fd, selectors.EVENT_READ, self._on_messages)
        try:
            while True:
                self._start()
                self._watch()
                stragglers = self._sweep()
                self._logs.finish()
                if not self._wants_restart():
                    return self._end(stragglers)
                if not self._prepare_restart():
                    return self._end([])
        finally:
            self._clean_up()
            restore()

    @property
    def _call_file(self) -> Path:
        return self._directory.path / "call.json"

    # -- starting ------------------------------------------------------------------------------------------

    def _new_world(self) -> pmi.PmiServer:
        """Return the server of a world that knows nothing of the one before."""
        name = f"disttrain_{self._directory.run_id}_{self._generation}"
        return pmi.PmiServer(self._config.processes, name)

    def _start(self) -> None:
        """Start the workers of this generation."""
        self._began = time.monotonic()
        for env in self._config.placements(
            run_id=self._directory.run_id, control=self._directory.control, generation=self._generation
        ):
            self._spawn(env)
        self._logs.start()

    def _catch_signals(self) -> Callable[[], None]:
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        before_fd = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        before: dict[signal.Signals, Any] = {}

        def note(number: int, _: FrameType | None) -> None:
            self._signals.append(signal.Signals(number))

        for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(s) is not signal.SIG_IGN:  # nohup, a shell's background job
                before[s] = signal.signal(s, note)
        self._selector.register(read, selectors.EVENT_READ, lambda: self._on_signals(read))

        def restore() -> None:
            for s, handler in before.items():
                signal.signal(s, handler)
            signal.set_wakeup_fd(before_fd)
            os.close(read)
            os.close(write)

        return restore

    def _start_guardian(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", guardian.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )
        self._guardian = process
        self._tell_guardian(f"run {self._directory.run_id} {self._directory.path}")
        return process

    def _tell_guardian(self, line: str) -> None:
        assert self._guardian.stdin is not None
        try:
            self._guardian.stdin.write(f"{line}\n".encode())
        except OSError:
            self._logs.notice(
                "disttrain: the guardian has died; if the launcher is killed too, look for left processes"
            )

    def _spawn(self, env: WorkerEnv) -> None:
        config = self._config
        environ = {k: v for k, v in os.environ.items() if k not in pmi.VARIABLES}
        environ |= config.thread_limits()
        environ.setdefault("UCX_TLS", "self,posix,cma")  # one node: MPICH must not listen on the network
        ledger = ledger_file(env.hosted)
        environ |= config.env | replace(env, ledger=ledger).to_environ()
        environ["TORCHELASTIC_MAX_RESTARTS"] = str(config.max_restarts)
        ends = [ledger]
        if config.processes > 1:
            server, child = self._pmi.connect(env.process)
            environ |= self._pmi.environ(env.process, child)
            ends.append(child.fileno())
            self._selector.register(server, selectors.EVENT_READ, lambda: self._on_pmi(env.process, server))
        # Several ranks in a process write the prefixes themselves.
        label = f"[{env.rank}]" if env.world_size > 1 and env.hosted == 1 else ""
        name = f"rank{env.rank}" + (f"-{env.rank + env.hosted - 1}" if env.hosted > 1 else "")
        if env.generation:
            name += f"-generation{env.generation}"
        out = self._logs.add(env.process, label, name=name, to_stderr=False)
        err = self._logs.add(env.process, label, name=name, to_stderr=True)
        argv = [*config.argv, str(self._call_file)] if config.call else config.argv
        popen = subprocess.Popen(
            [sys.executable, "-m", "disttrain.launcher.worker", str(os.getpid()), *argv],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            pass_fds=ends,
            start_new_session=True,
        )
        os.close(out)
        os.close(err)
        if config.processes > 1:
            child.close()
        worker = WorkerState(env, popen, os.pidfd_open(popen.pid), ledger)
        self._workers.append(worker)
        self._selector.register(worker.pidfd, selectors.EVENT_READ, lambda: self._on_exit(worker))
        self._tell_guardian(f"session {popen.pid}")

    # -- watching ------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        self._on_messages()  # its descriptor tells edges; there may have been one
        while any(w.running for w in self._workers):
            wait = self._look_after_beginning()
            if self._kill_at is not None:
                wait = self._kill_at - time.monotonic()
                if wait <= 0:
                    self._kill()
                    wait = None
            for key, _ in self._selector.select(wait):
                key.data()
        self._on_messages()

    def _look_after_beginning(self) -> float | None:
        """Name the processes that do not connect while others wait for them; return when to look again, in seconds."""
        begun = self._pmi.begun
        if not 0 < len(begun) < len(self._workers) or self._kill_at is not None or self._killed:
            return None
        missing = [w for w in self._workers if w.env.process not in begun]
        for worker in missing:
            if not worker.running:
                self._fail(worker, "ended without having connected to the others, which wait for it", 1)
                return 0.0
        waited, limit = time.monotonic() - self._pmi.begun_since, self._config.timeout
        if waited < min(self._tell_at, limit):
            return min(self._tell_at, limit) - waited
        self._tell_at = 2 * waited
        self._logs.notice(f"disttrain: {self._who_does_not_connect(missing, waited)}")
        if waited >= limit:
            for worker in missing:
                self._fail(worker, f"did not connect to the others within {limit:g} s (--timeout)", 1)
        return 0.0

    def _who_does_not_connect(self, missing: Sequence[WorkerState], waited: float) -> str:
        here = name_ranks(r for w in self._workers if w not in missing for r in w.ranks)
        away = name_ranks(r for w in missing for r in w.ranks)
        verb = "have" if here.startswith("ranks") else "has"
        lines = [f"{here} {verb} waited {waited:.1f} s for {away} to connect, as every process of a job must"]
        for w in missing[:_MOST_ASKED]:
            stack = stacks_in(os.pread(w.ledger, os.fstat(w.ledger).st_size, 0))
            trouble = stacks.trouble(w.popen.pid)
            frames = [] if trouble else stacks.ask(w.popen.pid, stack).get(0, ["did not answer"])
            lines.append(
                f"  {name_ranks(w.ranks)}: {trouble or 'has not called connect() or anything that does'}"
            )
            lines += [f"    {frame}" for frame in frames]
        return "\n".join(lines)

    def _on_messages(self) -> None:
        for message in self._control.receive():
            worker = self._workers[message["process"]]
            if message["rank"] not in worker.ranks:
                continue
            worker.ends[message["rank"]] = message
            if message["code"] != 0:
                what = describe_end(message["error"], message["message"], message["code"])
                self._fail(worker, what, message["code"], message=message)

    def _on_pmi(self, process: int, connection: socket.socket) -> None:
        if not self._pmi.read(process):
            self._selector.unregister(connection)
        if process in self._pmi.aborts:  # it may go on as if nothing were, and expects to be killed
            code = self._pmi.aborts.pop(process)
            self._fail(self._workers[process], f"called MPI_Abort with code {code}", code)

    def _on_signals(self, fd: int) -> None:
        try:
            os.read(fd, 64)
        except BlockingIOError:
            return
        signals, self._signals = self._signals, []
        for s in signals:
            if self._stopped_by is not None or self._failures:  # asked twice, or ending anyway
                self._kill_at = time.monotonic()
                continue
            self._note_standings()
            self._stopped_by = s
            self._kill_at = time.monotonic() + GRACE
            for pid in self._members():
                guardian.send(pid, [signal.SIGTERM, signal.SIGCONT])

    def _on_exit(self, worker: WorkerState) -> None:
        self._selector.unregister(worker.pidfd)
        os.close(worker.pidfd)
        result = os.waitid(os.P_PID, worker.popen.pid, os.WEXITED | os.WNOWAIT)
        assert result is not None
        worker.status = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        if self._killed or self._stopped_by is not None or worker.failed:
            return
        self._on_messages()  # its report came before its end
        missing = [r for r in worker.ranks if r not in worker.ends]
        if worker.failed or (worker.status == 0 and not missing):
            return
        if worker.status < 0:
            what, code = describe_signal(-worker.status), 128 - worker.status
        else:
            code = worker.status or 1
            what = f"left with code {worker.status} before the end"
        if not missing:
            what += ", after its script had ended"
        self._fail(worker, what, code)

    def _fail(self, worker: WorkerState, what: str, code: int, message: Message | None = None) -> None:
        """Note that ``worker`` has failed, and when the others are to be killed."""
        if self._killed or self._stopped_by is not None:
            return
        if not self._failures:
            self._note_standings()
        traceback = message["traceback"] if message is not None else ""
        follower = message is not None and message["follower"]
        self._failures.append(
            Failure(
                ranks=(message["rank"],) if message is not None else worker.ranks,
                process=worker.env.process,
                host=self._host,
                pid=worker.popen.pid,
                seconds=time.monotonic() - self._started,
                what=what,
                code=(code & 0xFF) or 1,
                traceback=traceback,
                follower=follower,
            )
        )
        worker.failed = True
        wait = SETTLE_DEATH if message is None else SETTLE_FOLLOWER if follower else SETTLE_ERROR
        settle = time.monotonic() + wait
        self._kill_at = settle if self._kill_at is None else min(self._kill_at, settle)
        if all(not w.running or len(w.ends) == w.env.hosted for w in self._workers):
            self._kill_at = time.monotonic()

    def _note_standings(self) -> None:
        self._standings = []
        for worker in self._workers:
            self._standings += read(os.pread(worker.ledger, os.fstat(worker.ledger).st_size, 0))

    # -- ending --------------------------------------------------------------------------------------------

    def _members(self) -> list[int]:
        return guardian.members(self._directory.run_id, [w.popen.pid for w in self._workers])

    def _kill(self) -> None:
        self._kill_at = None
        self._killed = True
        self._stopped = [r for w in self._workers if w.running and not w.failed for r in w.ranks]
        for worker in self._workers:
            if worker.running:  # what they have started, the sweep ends
                guardian.send(worker.popen.pid, [signal.SIGKILL])

    def _wants_restart(self) -> bool:
        return (
            bool(self._failures) and self._stopped_by is None and self._generation < self._config.max_restarts
        )

    def _prepare_restart(self) -> bool:
        """Say why, forget all of this generation but its failure, and wait if the job fails at once each time.

        Returns:
            Whether the next generation is to start; not if the user has stopped the job meanwhile.
        """
        attempt = self._attempt()
        wait = self._back_off()
        following = self._generation + 1
        when = f" in {wait:g} s" if wait else ""
        self._logs.notice(
            f"{attempt.explain(self._attempts)}\n"
            f"  restart {following} of {self._config.max_restarts}{when}: generation {following}"
        )
        self._attempts.append(attempt)
        self._forget_workers()
        self._pmi.close()
        self._failures, self._stopped, self._standings = [], [], []
        self._kill_at, self._killed, self._tell_at = None, False, NOTICE
        resume = time.monotonic() + wait
        while self._stopped_by is None and (left := resume - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                key.data()
        if self._stopped_by is not None:
            return False
        self._generation = following
        self._pmi = self._new_world()
        self._control.begin(following, self._config.processes)
        self._logs = LogPump(self._directory.path)
        return True

    def _attempt(self) -> Attempt:
        """Return how this generation failed."""
        return Attempt(
            generation=self._generation,
            seconds=round(time.monotonic() - self._began, 3),
            failures=order(self._with_logs(f) for f in self._failures),
            stopped=tuple(self._stopped),
            positions=locate(self._standings) if self._config.world_size > 1 else (),
        )

    def _back_off(self) -> float:
        """Return how many seconds to wait: none after a generation that got somewhere, or at the first restart."""
        communicated = any(e.ended is not None and not e.failed for s in self._standings for e in s.entries)
        if communicated or time.monotonic() - self._began >= GOT_SOMEWHERE:
            self._at_once = 0
            return 0.0
        self._at_once += 1
        return 0.0 if self._at_once == 1 else min(BACK_OFF * 2 ** (self._at_once - 2), MAX_BACK_OFF)

    def _end(self, stragglers: list[int]) -> RunReport:
        """Put together what happened."""
        if stragglers and not self._failures and self._stopped_by is None:
            pids = ", ".join(map(str, stragglers[:10]))
            self._logs.notice(
                f"disttrain: ended {len(stragglers)} processes that the script had left (pid {pids})"
            )
        for complaint in self._pmi.complaints + self._control.complaints:
            self._logs.notice(f"disttrain: {complaint}")
        code = 0
        last = self._attempt()
        if last.failures:
            code = last.failures[0].code
        elif self._stopped_by is not None:
            code = 128 + self._stopped_by
            hard = f"; {name_ranks(self._stopped)} had to be killed" if self._stopped else ""
            self._logs.notice(f"disttrain: stopped by {self._stopped_by.name}{hard}")
            if any(standing.waited > HUNG for standing in self._standings):
                self._logs.notice("\n".join(describe_positions(last.positions)))
        report = RunReport(
            run_id=self._directory.run_id,
            generation=self._generation,
            command=tuple(self._config.argv),
            world_size=self._config.world_size,
            seconds=round(time.monotonic() - self._started, 3),
            code=code,
            failures=last.failures,
            stopped=last.stopped if last.failures else (),
            positions=last.positions,
            stopped_by=self._stopped_by.name if self._stopped_by is not None else "",
            attempts=tuple(self._attempts),
        )
        if last.failures or self._attempts:
            report.write(self._directory.report)
            if not self._config.call or code == 0:  # else the text goes into an exception
                self._logs.notice(report.text(self._directory.path))
        if self._config.call and code == 0:
            self.results = self._read_results()
        return report

    def _read_results(self) -> dict[int, Any]:
        """Return what the function has returned; None for a rank that has left it with ``sys.exit(0)``."""
        files = {rank: result_file(self._call_file, rank) for rank in range(self._config.world_size)}
        return {rank: json.loads(f.read_text()) if f.exists() else None for rank, f in files.items()}

    def _with_logs(self, failure: Failure) -> Failure:
        if failure.traceback:
            return failure
        fields = {name: getattr(failure, name) for name in failure.__dataclass_fields__}
        return Failure(**fields | {"log": tuple(self._logs.tail(failure.process))})

    def _sweep(self) -> list[int]:
        """End every process of the job; return those that did not leave by themselves."""
        deadline = time.monotonic() + _LEAVING
        while (left := self._members()) and time.monotonic() < deadline:
            time.sleep(0.005)
        sessions = [w.popen.pid for w in self._workers]
        if deaf := guardian.kill_all(self._directory.run_id, sessions):
            self._logs.notice(f"disttrain: processes {deaf} do not end; the kernel holds them")
        return left

    def _forget_workers(self) -> None:
        """Reap the workers, which have been killed, and release what is held for them."""
        self._tell_guardian("forget")  # once reaped, their numbers may be those of strangers
        for worker in self._workers:
            with suppress(subprocess.TimeoutExpired):  # the kernel holds it; that has been said
                worker.popen.wait(timeout=1.0)
            if worker.running:
                self._selector.unregister(worker.pidfd)
                os.close(worker.pidfd)
            os.close(worker.ledger)
        for connection in self._pmi.connections:
            self._selector.unregister(connection)
        self._workers = []
        guardian.unlink_orphaned_shm(self._since)

    def _clean_up(self) -> None:
        """Leave nothing: also the way out if starting or watching has raised."""
        guardian.kill_all(self._directory.run_id, [w.popen.pid for w in self._workers])
        self._forget_workers()
        self._control.close()
        self._pmi.close()
        self._selector.close()
        if self._directory.report.exists():
            self._directory.keep()
        else:
            self._directory.remove()
        self._tell_guardian("done")
        assert self._guardian.stdin is not None
        self._guardian.stdin.close()
        try:
            self._guardian.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self._guardian.kill()
            self._guardian.wait()
