"""The workers on one machine: starting them, hearing of their ends, and ending all that is left of them."""

import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Final

from disttrain.collectives import stacks
from disttrain.collectives.control import Message
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.ledger import Standing, ledger_file, read, stacks_in
from disttrain.collectives.meter import Reading, Wish, ask, end, read_meters, resume
from disttrain.launcher import gpus, guardian, pmi
from disttrain.launcher.config import THREAD_COUNTS
from disttrain.launcher.gpus import Gpu, GpuUse
from disttrain.launcher.memory import MemoryWatch
from disttrain.launcher.pace import Mark
from disttrain.launcher.placement import Machine, Place
from disttrain.launcher.report import Slow
from disttrain.launcher.rundir import RunDirectory

WISHES: Final = {"save": (Wish.SAVE,), "stop": (Wish.STOP,), "pause": (Wish.PAUSE,), "resume": ()}
"""What a user may ask of all ranks, and what is asked of them then."""
LOOK: Final = 1.0
"""Seconds between two looks at which workers are stopped."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_LEAVING: Final = 0.3  # seconds that helpers of multiprocessing need to see that their parent has gone


@dataclass(frozen=True)
class Order:
    """What one worker is to be."""

    env: WorkerEnv
    argv: tuple[str, ...]
    """The program as the worker's command line has it."""
    environ: Mapping[str, str]
    """Variables that it gets."""
    defaults: Mapping[str, str]
    """Variables that it gets unless the node's environment has them."""
    without: Sequence[int] = ()
    """GPUs that no worker gets any more, by their places among those of the node that can be seen."""


@dataclass
class WorkerState:
    """One worker process, on this machine or on another."""

    env: WorkerEnv
    host: str
    ledger: int
    """Descriptor of the file in which it notes its calls; of another machine's, a copy as of the last look."""
    pid: int = 0
    """0 until another machine has told it."""
    place: tuple[str, ...] = ()
    """What it has of its machine, :attr:`.Place.words`; nothing until another machine has told it."""
    looked_at: int | None = None
    """When the copy of its ledger was made: nanoseconds of its machine's monotonic clock."""
    status: int | None = None
    """Exit status once it has ended, negative for a signal. On its machine it stays a zombie until the sweep, so
    that the kernel cannot give its session's number to a stranger."""
    ends: dict[int, Message] = field(default_factory=dict)
    """Rank → the report of its end."""
    why: str = ""
    """Why it was killed, if that is known."""
    stopped: float = 0.0
    """For how many seconds it has been seen to be stopped."""
    warned: bool = False
    """Whether the user has been told so."""
    failed: bool = False
    trouble: str = ""
    """Why it could not go on when it was looked at: ``is stopped (SIGSTOP)``; "" if it could."""
    rss: int = 0
    """Bytes of memory that it used then."""
    cpu_seconds: float = 0.0
    """Seconds of processor time that it had used by then."""
    gpus: tuple[Gpu, ...] = ()
    """Those of its ranks, if it runs on this machine."""
    gpu_uses: tuple[GpuUse | None, ...] = ()
    """How busy the GPU of each of its ranks was; nothing if they have none."""
    stack: list[str] | None = None
    """Where it was in its Python code when it was asked last; None while the answer is on its way."""

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(range(self.env.rank, self.env.rank + self.env.hosted))

    @property
    def running(self) -> bool:
        return self.status is None

    def standings(self) -> list[Standing]:
        """Return where its ranks are."""
        data = os.pread(self.ledger, os.fstat(self.ledger).st_size, 0)
        return read(data, self.looked_at)

    def readings(self) -> list[Reading]:
        """Return how far its ranks have come."""
        return read_meters(self.ledger, self.env.rank, self.env.hosted, self.looked_at)

    def ask(self, thread: int, most: int, *, wake: bool) -> None:
        """Note where it is in its Python code, if it runs on this machine: :func:`.stacks.ask`."""
        self.trouble = stacks.trouble(self.pid)
        descriptor = stacks_in(os.pread(self.ledger, os.fstat(self.ledger).st_size, 0))
        self.stack = []
        if wake or not self.trouble:
            self.stack = stacks.ask(self.pid, descriptor, thread, wake=wake, most=most)

    def look(self) -> None:
        """Note how it is, if it runs on this machine."""
        self.trouble = stacks.trouble(self.pid)
        try:
            with open(f"/proc/{self.pid}/statm") as file:
                self.rss = int(file.read().split()[1]) * _PAGE
            with open(f"/proc/{self.pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:  # it has just ended
            return
        self.cpu_seconds = (int(fields[11]) + int(fields[12])) / _TICKS

    def look_at_gpus(self) -> None:
        """Note how busy its GPUs are, if it runs on this machine."""
        self.gpu_uses = tuple(map(gpus.use, self.gpus))


def tell_slow(slow: Slow, workers: Sequence[WorkerState]) -> str:
    """Return the line that names a slow rank, one of those of ``workers``."""
    worker = next(w for w in workers if slow.rank in w.ranks)
    return f"disttrain: rank {slow.rank} (host {worker.host}, pid {worker.pid}) takes {slow}"


@contextmanager
def _bound(place: Place) -> Iterator[None]:
    """Have the calling thread, and so the children that it starts, run on the cores of ``place`` only."""
    if not place.bound:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, place.cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Workers:
    """Processes of this machine that are ranks: what can be known of them, and asked of them after a step."""

    def __init__(self, workers: Sequence[WorkerState] = ()) -> None:
        self._workers = list(workers)
        self._gpus_at = -math.inf

    def look(self) -> None:
        """Bring up to date what is known of the workers; their ledgers always are."""
        for worker in self._workers:
            worker.look()
        if time.monotonic() - self._gpus_at >= LOOK:  # the driver takes milliseconds for each
            self._gpus_at = time.monotonic()
            for worker in self._workers:
                worker.look_at_gpus()

    def ask(
        self, worker: WorkerState, thread: int = 0, most: int = stacks.MOST_FRAMES, *, wake: bool = False
    ) -> None:
        """Find out where a worker is in its Python code; its ``stack`` says it then."""
        worker.ask(thread, most, wake=wake)

    @property
    def marks(self) -> list[Mark]:
        """What its ranks have counted."""
        return [Mark.of(reading) for worker in self._workers for reading in worker.readings()]

    def wish(self, command: str) -> None:
        """Ask the ranks for one of :data:`WISHES`; they do it after a step."""
        for worker in self._workers:
            for wish in WISHES[command]:
                ask(worker.ledger, wish)
            if command in ("resume", "stop"):  # to stop, a paused job makes one more step
                resume(worker.ledger)


class LocalNode(Workers):
    """The workers of this machine. ``on_exit`` is called, from the selector's loop, as each of them ends."""

    def __init__(
        self,
        directory: RunDirectory,
        selector: selectors.BaseSelector,
        *,
        on_exit: Callable[[WorkerState], None],
        notice: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.host = socket.gethostname()
        self.swept: list[int] | None = None
        """After :meth:`sweep`, the processes that had not left by themselves."""
        self._directory = directory
        self._selector = selector
        self._on_exit = on_exit
        self._notice = notice
        self._since = time.time()
        self._machine = Machine.look()
        self._memory = MemoryWatch()
        self._looked_at = 0.0
        self._popens: dict[int, subprocess.Popen[bytes]] = {}
        self._pidfds: dict[int, int] = {}
        self._guardian = subprocess.Popen(
            [sys.executable, "-I", "-S", guardian.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )
        self._tell_guardian(f"run {directory.run_id} {directory.node} {directory.path}")

    def _tell_guardian(self, line: str) -> None:
        assert self._guardian.stdin is not None
        try:
            self._guardian.stdin.write(f"{line}\n".encode())
        except OSError:
            self._notice(
                "disttrain: the guardian has died; if the launcher is killed too, look for left processes"
            )

    def guard(self, pid: int) -> None:
        """Have the guardian end the session of ``pid``, a child of ours, should this process die."""
        self._tell_guardian(f"session {pid}")

    def start(self, order: Order, out: int, err: int, world: socket.socket | None) -> WorkerState:
        """Start a worker that prints to ``out`` and ``err`` and asks ``world`` for its MPI world.

        The three descriptors are the worker's then: they are closed here.
        """
        env = order.env
        ledger = ledger_file(env.hosted)
        environ = {k: v for k, v in os.environ.items() if k not in pmi.VARIABLES}
        limits = {name: order.defaults[name] for name in THREAD_COUNTS if name in order.defaults}
        defaults = {name: value for name, value in order.defaults.items() if name not in limits}
        environ = {**defaults, **environ, **order.environ, **replace(env, ledger=ledger).to_environ()}
        inherited = [ledger]
        if world is not None:
            environ |= pmi.environ(env.process, env.processes, world)
            inherited.append(world.fileno())
        machine = self._machine.without(order.without)
        if machine is not self._machine:
            environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.name for gpu in machine.gpus)
        place = machine.place(env, environ, limits)
        environ |= place.variables
        with _bound(place):
            popen = subprocess.Popen(
                [sys.executable, "-m", "disttrain.launcher.worker", str(os.getpid()), *order.argv],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                pass_fds=inherited,
                start_new_session=True,
            )
        os.close(out)
        os.close(err)
        if world is not None:
            world.close()
        worker = WorkerState(env, self.host, ledger, popen.pid, place.words, gpus=place.gpus)
        self._workers.append(worker)
        self._popens[popen.pid] = popen
        pidfd = self._pidfds[popen.pid] = os.pidfd_open(popen.pid)
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._reap(worker))
        self.guard(popen.pid)
        return worker

    def _reap(self, worker: WorkerState) -> None:
        pidfd = self._pidfds.pop(worker.pid)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        result = os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        assert result is not None
        worker.status = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        if worker.status == -signal.SIGKILL:
            worker.why = self._memory.explain(worker.pid)
        self._on_exit(worker)

    def look_for_stopped(self) -> float:
        """Note for how long each worker has been stopped; return in how many seconds to look again."""
        now = time.monotonic()
        if now - self._looked_at < LOOK:
            return self._looked_at + LOOK - now
        # Time in which this process was stopped too, with the job, does not count.
        passed, self._looked_at = min(now - self._looked_at, 2 * LOOK), now
        for worker in self._workers:
            if worker.running and stacks.is_stopped(worker.pid):
                worker.stopped += passed
            else:
                worker.stopped, worker.warned = 0.0, False
        return LOOK

    def terminate(self) -> None:
        """Ask every process of the job to end."""
        for worker in self._workers:
            end(worker.ledger)
        for pid in self._members():
            guardian.send(pid, [signal.SIGTERM, signal.SIGCONT])

    def kill(self) -> None:
        """End the workers at once; what they have started, the sweep ends."""
        for worker in self._workers:
            if worker.running:
                guardian.send(worker.pid, [signal.SIGKILL])

    def _members(self) -> list[int]:
        return guardian.members(self._directory.run_id, self._directory.node, [w.pid for w in self._workers])

    def sweep(self) -> None:
        """End every process of the job on this machine."""
        deadline = time.monotonic() + _LEAVING
        while (left := self._members()) and time.monotonic() < deadline:
            time.sleep(0.005)
        if deaf := self._kill_all():
            self._notice(f"disttrain: processes {deaf} do not end; the kernel holds them")
        self.swept = left

    def _kill_all(self) -> list[int]:
        return guardian.kill_all(self._directory.run_id, self._directory.node, [w.pid for w in self._workers])

    def forget(self) -> None:
        """Reap the workers, which have been killed, and release what is held for them."""
        self._kill_all()
        self._tell_guardian("forget")  # once reaped, their numbers may be those of strangers
        for worker in self._workers:
            with suppress(subprocess.TimeoutExpired):  # the kernel holds it; that has been said
                self._popens.pop(worker.pid).wait(timeout=1.0)
            if (pidfd := self._pidfds.pop(worker.pid, None)) is not None:
                self._selector.unregister(pidfd)
                os.close(pidfd)
            os.close(worker.ledger)
        self._workers = []
        self.swept = None
        guardian.unlink_orphaned_shm(self._since)

    def close(self) -> None:
        """Send the guardian home; all that it would clean up has been."""
        self._memory.close()
        self._tell_guardian("done")
        assert self._guardian.stdin is not None
        self._guardian.stdin.close()
        try:
            self._guardian.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self._guardian.kill()
            self._guardian.wait()
