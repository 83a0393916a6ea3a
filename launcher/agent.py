"""The launcher's half of a job: has its workers started, on this node and others, watches them, and explains.

One loop in the main thread waits for everything at once: exits (pidfd), messages (ZeroMQ), requests of MPI
(PMI), other nodes (ZeroMQ over TCP), signals from the user. Only the workers' output has a thread of its own.
"""

import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from disttrain.collectives.chaos import Fault, write
from disttrain.collectives.control import Message
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.ledger import Standing
from disttrain.launcher import openmpi, pmi
from disttrain.launcher.backoff import BackOff
from disttrain.launcher.called import read_result, result_file
from disttrain.launcher.commands import Commands, JobFacts
from disttrain.launcher.config import REHEARSAL, ConfigError, LaunchConfig
from disttrain.launcher.control_plane import ControlPlane
from disttrain.launcher.desk import Desk
from disttrain.launcher.logs import LogPump
from disttrain.launcher.node import LocalNode, Order, WorkerState, tell_slow
from disttrain.launcher.pace import Paces
from disttrain.launcher.placement import has_own, table
from disttrain.launcher.report import (
    Attempt,
    Failure,
    Ordered,
    RunReport,
    Slow,
    describe_end,
    describe_positions,
    describe_signal,
    locate,
    name_ranks,
    order,
)
from disttrain.launcher.roster import Roster
from disttrain.launcher.rundir import RunDirectory
from disttrain.launcher.signals import Signals

if TYPE_CHECKING:  # what several hosts need takes longer to load than all else here
    from disttrain.launcher.fleet import Fleet, RemoteNode
    from disttrain.launcher.hosts import Cluster

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
PREEMPTED: Final = 75
"""Exit code of a job that has saved and stopped because of a signal: it wants to be started again (EX_TEMPFAIL)."""
PREEMPTS: Final = (signal.SIGTERM, signal.SIGUSR1)
"""Signals by which batch systems announce that they will take the nodes away."""
STOPPED: Final = 10.0
"""Seconds after which a stopped rank has failed, if others run. Half of it is said first."""
_MOST_ASKED: Final = 8
_SWEEP: Final = 5.0  # seconds that another node may take, once it has answered, to end what is left there
_ANSWER: Final = 2.0  # seconds in which the stack of a rank of another node is to come
_FLUSH: Final = 2.0  # seconds in which its last output is to come


class Agent:
    """Runs one job: on this node alone, or on the nodes of ``cluster``."""

    def __init__(self, config: LaunchConfig, cluster: "Cluster | None" = None) -> None:
        self._config = config
        self._cluster = cluster
        self._fleet: Fleet | None = None
        self._roster: Roster | None = None
        self._signals = Signals(self._take_signal)
        self._stopped_by: signal.Signals | None = None
        self._preempted: signal.Signals | None = None
        """The signal on which the ranks were asked to save and stop."""
        self._stopper = ""
        """Who has stopped the job, for its user."""
        self.results: dict[int, Any] = {}
        """What the function has returned, by rank, if the program is one (``disttrain.launch``)."""
        self._host = socket.gethostname()
        self._selector = selectors.DefaultSelector()
        self._generation = 0
        self._chaos: list[Fault] = []
        """Faults that the ranks are to suffer."""
        self._suffered: list[Ordered] = []
        """What ``--chaos`` has done."""
        self._attempts: list[Attempt] = []
        """The generations that failed and were followed by another."""
        self._back_off = BackOff()
        self._paces = Paces()
        self._slow: list[Slow] = []
        """Ranks that stayed behind the others."""
        self._workers: list[WorkerState] = []
        self._failures: list[Failure] = []
        self._places_shown = False
        self._stopped: list[int] = []
        self._standings: list[Standing] = []
        """Where the ranks were when the generation began to end."""
        self._tell_at = NOTICE
        """After how many seconds of the generation to name the processes that do not connect, next."""
        self._asked: list[WorkerState] = []
        """Those that have been asked where they are, to be named then."""
        self._kill_at: float | None = None
        self._killed = False

    def run(self) -> RunReport:
        """Start the workers, wait for their end, and leave nothing of them behind.

        Raises:
            RuntimeError: the run directory cannot be used, or this is not Linux. Nothing has been started.
            ConfigError: other nodes cannot be reached. No worker has been started.
        """
        if not hasattr(os, "pidfd_open"):
            raise RuntimeError(
                f"disttrain launch needs Linux 5.3 or newer, this is {sys.platform}; use disttrain debug"
            )
        self._started = self._began = time.monotonic()
        restore = self._signals.catch(self._selector)
        try:
            self._directory = RunDirectory()
        except RuntimeError:
            restore()
            raise
        self.directory = self._directory.path
        """Where the report and the logs are, if they are kept."""
        if self._config.call:
            self._call_file.write_text(self._config.call)
        self._logs = LogPump(self._directory.path)
        self._here = LocalNode(
            self._directory,
            self._selector,
            on_exit=self._on_exit,
            notice=lambda text: self._logs.notice(text),
        )
        self._nodes: dict[int, LocalNode | RemoteNode] = {0: self._here}
        self._pmi = self._new_world()
        self._open_mpi: openmpi.World | None = None
        self._control = ControlPlane(
            self._directory.control,
            run=self._directory.run_id,
            generation=0,
            processes=self._config.processes,
        )
        self._selector.register(self._control.fd, selectors.EVENT_READ, self._on_messages)
        self._commands = Commands(
            self._directory.history,
            lambda text: self._logs.notice(text),
            lambda who: self._stop(signal.SIGTERM, who),
            self._facts(),
        )
        self._desk = Desk(self._directory.desk, self._directory.run_id, self._selector, self._commands.answer)
        try:
            if self._cluster is not None:
                self._roster = Roster(self._cluster, self._nodes, lambda text: self._logs.notice(text))
                self._gather(self._cluster, self._roster)
                if self._stopped_by is not None or not self._rehearse():
                    return self._end([])
            others = [] if self._fleet is None else [node.host for node in self._fleet.nodes]
            self._chaos = list(self._config.faults(others))
            while True:
                self._start()
                self._watch()
                stragglers = self._sweep()
                self._finish_logs()
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
        return pmi.PmiServer([share for _, share in self._config.shares], name)

    def _new_open_mpi(self) -> openmpi.World | None:
        """Return the world of ranks that load Open MPI; None if they load another MPI, or need none.

        Raises:
            ConfigError: they are on several nodes.
        """
        if self._config.processes == 1 or self._config.transport == "shm":
            return None
        if (mpiexec := openmpi.find_mpiexec()) is None:
            return None
        if len(self._config.shares) > 1:
            raise ConfigError(
                f"the MPI library here is Open MPI, whose ranks on several nodes only its own mpiexec connects: "
                f"run `{mpiexec} -n {self._config.processes} disttrain launch ...`, or install mpich"
            )
        folder = self._directory.path / f"openmpi{self._generation}"
        world = openmpi.World(mpiexec, self._config.processes, folder)
        self._here.guard(world.pid)
        return world

    def _gather(self, cluster: "Cluster", roster: Roster) -> None:
        """Start the agents of the other nodes and wait for them; find out how many processes each is to run."""
        from disttrain.launcher import preflight
        from disttrain.launcher.fleet import JOIN, Fleet

        others = [(i, h) for i, h in cluster.numbered if i > 0]
        if not others:
            self._share_out(roster)
            return
        self._fleet = Fleet(
            others,
            run=self._directory.run_id,
            selector=self._selector,
            on_report=self._on_report,
            on_exit=self._on_exit,
            on_lost=self._on_lost,
            on_signal=self._signals.take_of_agents,
            on_history=self._commands.keep,
            notice=lambda text: self._logs.notice(text),
            guard=self._here.guard,
        )
        self._nodes |= {node.index: node for node in self._fleet.nodes}
        self._fleet.start(ssh=cluster.ssh, srun=cluster.srun)
        deadline = time.monotonic() + JOIN
        while any(n.facts is None and not n.lost for n in self._fleet.nodes) and self._stopped_by is None:
            self._turn(min(self._fleet.tick(), deadline - time.monotonic()))
            if time.monotonic() > deadline:
                self._fleet.give_up(lambda n: n.facts is None, f"it has not joined within {JOIN:g} s")
        if self._stopped_by is None:
            self._share_out(roster)
            facts = {0: preflight.gather()} if cluster.here else {}
            facts |= {n.index: n.facts for n in self._fleet.nodes if n.facts is not None and not n.lost}
            offsets = [getattr(self._nodes[i], "ahead", 0.0) for i in facts]
            for line in preflight.compare(list(facts.values()), offsets):
                self._logs.notice(f"disttrain: {line}")

    def _rehearse(self) -> bool:
        """Have the ranks of several nodes talk for about a second; return whether they can, and are to go on.

        Nodes that cannot reach each other, or a rank that crawls, are told before the script has begun.
        """
        job = self._config
        if self._fleet is None or not job.rehearse or job.program == REHEARSAL:
            return True
        self._config = LaunchConfig(
            program=REHEARSAL,
            is_module=True,
            processes=job.processes,
            nodes=job.nodes,
            master=job.master,
            transport=job.transport,
            timeout=60.0,
            env=job.env,
        )
        self._generation = -1
        self._start()
        self._watch()
        self._sweep()
        self._finish_logs()
        if self._failures or self._stopped_by is not None:
            what = "the nodes' first all-reduce has failed; " if self._failures else ""
            self._logs.notice(f"disttrain: {what}the script has not been started")
            return False
        self._forget_workers()
        self._config, self._generation = job, 0
        self._logs = LogPump(self._directory.path)
        return True

    def _share_out(self, roster: Roster) -> None:
        """Decide who runs what.

        Raises:
            ConfigError: fewer nodes are there than the job needs, or ``--ranks`` are too few for them.
        """
        nodes = roster.share_out()
        self._config = replace(
            self._config,
            processes=sum(count for _, count in nodes),
            nodes=nodes,
            master=self._fleet.master if self._fleet is not None else "127.0.0.1",
        )

    def _start(self) -> None:
        """Start the workers of this generation."""
        self._began = time.monotonic()
        self._paces = Paces()
        if self._fleet is not None:
            self._fleet.generation = self._generation
        self._pmi = self._new_world()
        self._open_mpi = self._new_open_mpi()
        self._control.begin(self._generation, self._config.processes)
        for env in self._config.placements(
            run_id=self._directory.run_id,
            control=self._directory.control,
            history=os.fspath(self._directory.history),
            generation=self._generation,
        ):
            faults = [f for f in self._chaos if f.rank < self._config.world_size]  # which may have shrunk
            self._spawn(replace(env, chaos=write(faults)))
        self._show_places()
        if self._chaos:
            self._logs.notice(f"disttrain: chaos ordered: {', '.join(map(str, self._chaos))}")
        self._commands.begin(self._facts(), self._workers, self._nodes, self._generation)
        self._logs.start()

    def _facts(self) -> JobFacts:
        job = self._config
        known = self._cluster is None or job.nodes or job.ranks is not None
        return JobFacts(tuple(job.argv), job.program, job.world_size if known else 0, job.processes)

    def _show_places(self) -> None:
        """Show what each process gets, once all nodes have told it, if any of them has something of its own."""
        if self._places_shown or self._generation < 0 or not all(w.place for w in self._workers):
            return
        self._places_shown = True
        if any(has_own(w.place) for w in self._workers):
            lines = table((w.host, w.place) for w in self._workers)
            self._logs.notice("\n".join(f"disttrain: {line}" for line in lines))

    def _spawn(self, env: WorkerEnv) -> None:
        config = self._config
        defaults = config.thread_limits()
        if len(config.shares) == 1:
            defaults["UCX_TLS"] = "self,posix,cma"  # MPICH must not listen on the network
        environ = config.env | {"TORCHELASTIC_MAX_RESTARTS": str(config.max_restarts)}
        world = None
        if config.processes > 1:
            server, world = self._pmi.connect(env.process)
            self._selector.register(server, selectors.EVENT_READ, lambda: self._on_pmi(env.process, server))
        if self._open_mpi is not None:
            defaults |= openmpi.DEFAULTS
            environ |= self._open_mpi.environ(env.process)
        ranks, labelled = range(env.rank, env.rank + env.hosted), env.world_size > 1
        out = self._logs.add(env.process, ranks, to_stderr=False, labelled=labelled)
        err = self._logs.add(env.process, ranks, to_stderr=True, labelled=labelled)
        argv = [*config.argv, str(self._call_file)] if config.call else config.argv
        # With --ranks a GPU is a rank's, not a process's, and all ranks stay.
        without = self._roster.unused(env.node) if self._roster is not None and config.ranks is None else ()
        order = Order(env, tuple(argv), environ, defaults, without)
        self._workers.append(self._nodes[env.node].start(order, out, err, world))

    # -- watching ------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        self._on_messages()  # its descriptor tells edges; there may have been one
        while any(w.running for w in self._workers):
            self._show_places()
            waits = (
                self._look_after_beginning(),
                self._look_for_stopped(),
                self._look_for_slow(),
                self._commands.poll(),
            )
            wait = min((w for w in waits if w is not None), default=None)
            if self._kill_at is not None:
                wait = self._kill_at - time.monotonic()
                if wait <= 0:
                    self._kill()
                    wait = None
            self._turn(wait)
        self._on_messages()
        self._commands.poll()

    def _look_for_stopped(self) -> float | None:
        """Name ranks that are stopped, and give them up in the end; return when to look again, in seconds.

        If all are, somebody has suspended the job, and nothing is wrong.
        """
        if self._kill_at is not None or self._killed:
            return None
        wait = self._here.look_for_stopped()
        running = [w for w in self._workers if w.running]
        if not all(w.stopped for w in running):
            for worker in running:
                self._judge_stopped(worker)
        return wait

    def _judge_stopped(self, worker: WorkerState) -> None:
        if worker.stopped >= STOPPED:
            what = f"was stopped (SIGSTOP) for {worker.stopped:.0f} s while others ran"
            self._fail(worker, what, 128 + signal.SIGSTOP)
        elif worker.stopped >= STOPPED / 2 and not worker.warned:
            worker.warned = True
            self._logs.notice(
                f"disttrain: {name_ranks(worker.ranks)} (host {worker.host}, pid {worker.pid}) is stopped (SIGSTOP); "
                f"the job ends in {STOPPED - worker.stopped:.0f} s unless it goes on (kill -CONT {worker.pid})"
            )

    def _look_for_slow(self) -> float | None:
        """Name a rank that stays behind the others; return when to look again, in seconds."""
        if self._config.world_size == 1 or self._kill_at is not None or self._killed:
            return None
        if self._paces.wait == 0:
            marks = [mark for node in self._nodes.values() for mark in node.marks]
            if len(marks) == self._config.world_size and (slow := self._paces.look(marks)) is not None:
                self._slow.append(replace(slow, generation=self._generation))
                self._logs.notice(tell_slow(slow, self._workers))
        return self._paces.wait

    def _turn(self, wait: float | None) -> None:
        """Deal with what happens within ``wait`` seconds."""
        if self._fleet is not None:
            beat = self._fleet.tick()
            wait = beat if wait is None else min(wait, beat)
        for key, _ in self._selector.select(wait if wait is None else max(wait, 0.0)):
            key.data()

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
        due = min(self._tell_at, limit)
        if waited < due:
            return due - waited
        if not self._asked:
            self._asked = missing[:_MOST_ASKED]
            for worker in self._asked:
                self._nodes[worker.env.node].ask(worker)
        if any(w.stack is None and w.running for w in self._asked) and waited < due + _ANSWER:
            return due + _ANSWER - waited
        self._asked = []
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
            where = f" (host {w.host}, pid {w.pid})" if w.env.node else ""
            what = w.trouble or "has not called connect() or anything that does"
            lines.append(f"  {name_ranks(w.ranks)}{where}: {what}")
            lines += [f"    {frame}" for frame in w.stack or ([] if w.trouble else ["did not answer"])]
        return "\n".join(lines)

    def _on_messages(self) -> None:
        for message in self._control.receive():
            self._on_report(message)

    def _on_report(self, message: Message) -> None:
        worker = self._workers[message["process"]]
        if message["rank"] not in worker.ranks:
            return
        if message["kind"] == "chaos":
            self._on_chaos(message)
            return
        worker.ends[message["rank"]] = message
        if message["code"] != 0:
            what = describe_end(message["error"], message["message"], message["code"])
            self._fail(worker, what, message["code"], message=message)

    def _on_lost(self, node: "RemoteNode", running: list[WorkerState]) -> None:
        """Blame ``node`` for the end of its workers: what others say since then comes of it."""
        if not running or self._stopped_by is not None:
            return
        if not self._failures:
            self._note_standings()
        self._failures.append(
            Failure(
                ranks=tuple(r for w in running for r in w.ranks),
                process=running[0].env.process,
                host=node.host,
                pid=running[0].pid,
                seconds=node.heard - self._started,
                what=f"lost with the host: {node.lost}",
                code=1,
            )
        )
        for worker in running:
            worker.failed = True
        self._kill_at = time.monotonic()

    def _on_chaos(self, message: Message) -> None:
        """Note a fault that was ordered; the ranks of the next generation do not suffer it again."""
        seconds = round(time.monotonic() - self._started, 3)
        self._suffered.append(Ordered(message["fault"], message["rank"], self._generation, seconds))
        for fault in [f for f in self._chaos if str(f) == message["fault"] and f.what != "slow"]:
            self._chaos.remove(fault)
            if fault.what == "cut" and self._fleet is not None:
                self._fleet.cut_off(fault.host)

    def _on_pmi(self, process: int, connection: socket.socket) -> None:
        if not self._pmi.read(process):
            self._selector.unregister(connection)
        if process in self._pmi.aborts:  # it may go on as if nothing were, and expects to be killed
            code = self._pmi.aborts.pop(process)
            self._fail(self._workers[process], f"called MPI_Abort with code {code}", code)

    def _take_signal(self, s: signal.Signals) -> None:
        if self._stopped_by is not None or self._failures:  # asked twice, or ending anyway
            if s != signal.SIGUSR1:
                self._kill_at = time.monotonic()
        elif s not in PREEMPTS or (self._preempted is not None and s == signal.SIGTERM):
            self._stop(s, s.name)
        elif self._preempted is None:
            self._preempt(s)

    def _preempt(self, s: signal.Signals) -> None:
        """Have the ranks save and stop after a step, if the script has said how; else SIGTERM ends the job."""
        refusal = self._commands.preempt(s.name)
        if not refusal:
            self._preempted = s
            self._logs.notice(
                f"disttrain: {s.name}: the ranks save after the next step and stop; Ctrl-C does not wait"
            )
        elif s == signal.SIGTERM:
            self._stop(s, s.name)
        else:
            self._logs.notice(f"disttrain: {s.name} changes nothing: {refusal}")

    def _stop(self, by: signal.Signals, who: str) -> None:
        """End the job because its user wants it: as ``by`` would, on behalf of ``who``."""
        if self._stopped_by is not None:
            return
        self._note_standings()
        self._stopped_by, self._stopper = by, who
        self._kill_at = time.monotonic() + GRACE
        for node in self._nodes.values():
            node.terminate()

    def _on_exit(self, worker: WorkerState) -> None:
        assert worker.status is not None
        if self._killed or self._stopped_by is not None or worker.failed:
            return
        self._on_messages()  # its report came before its end
        missing = [r for r in worker.ranks if r not in worker.ends]
        if worker.failed or (worker.status == 0 and not missing):
            return
        if worker.status < 0:
            what, code = describe_signal(-worker.status, worker.why), 128 - worker.status
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
                host=worker.host,
                pid=worker.pid,
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
        for node in self._nodes.values():
            node.look()
        self._standings = [s for w in self._workers if not w.env.node for s in w.standings()]

    # -- ending --------------------------------------------------------------------------------------------

    def _kill(self) -> None:
        self._kill_at = None
        self._killed = True
        self._stopped = [r for w in self._workers if w.running and not w.failed for r in w.ranks]
        for node in self._nodes.values():
            node.kill()

    def _wants_restart(self) -> bool:
        if (
            not self._failures
            or self._stopped_by is not None
            or self._preempted is not None
            or self._generation >= self._config.max_restarts
        ):
            return False
        if self._roster is None or self._roster.suffices:
            return True
        self._logs.notice(f"disttrain: no restart: fewer than {self._roster.least} nodes are left (--nnodes)")
        return False

    def _prepare_restart(self) -> bool:
        """Say why, forget all of this generation but its failure, and wait if the job fails at once each time.

        Returns:
            Whether the next generation is to start; not if the user has stopped the job meanwhile.
        """
        attempt = self._attempt()
        communicated = any(e.ended is not None and not e.failed for s in self._standings for e in s.entries)
        wait = self._back_off.after(time.monotonic() - self._began, communicated=communicated)
        following = self._generation + 1
        when = f" in {wait:g} s" if wait else ""
        self._logs.notice(
            f"{attempt.explain(self._attempts)}\n"
            f"  restart {following} of {self._config.max_restarts}{when}: generation {following}"
        )
        self._attempts.append(attempt)
        if self._roster is not None:
            self._roster.blame(self._workers[attempt.failures[0].process], self._workers)
        self._forget_workers()
        self._failures, self._stopped, self._standings = [], [], []
        self._kill_at, self._killed, self._tell_at, self._asked = None, False, NOTICE, []
        resume = time.monotonic() + wait
        while self._stopped_by is None and (left := resume - time.monotonic()) > 0:
            self._turn(left)
        if self._stopped_by is not None:
            return False
        self._generation = following
        if self._roster is not None:
            self._share_out(self._roster)
        self._logs = LogPump(self._directory.path, following)
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

    def _end(self, stragglers: list[int]) -> RunReport:
        """Put together what happened."""
        if stragglers and not self._failures and self._stopped_by is None:
            pids = ", ".join(map(str, stragglers[:10]))
            self._logs.notice(
                f"disttrain: ended {len(stragglers)} processes that the script had left (pid {pids})"
            )
        strangers = self._fleet.complaints if self._fleet is not None else []
        for complaint in self._pmi.complaints + self._control.complaints + strangers:
            self._logs.notice(f"disttrain: {complaint}")
        code = 0
        last = self._attempt()
        if last.failures:
            code = last.failures[0].code
        elif self._stopped_by is not None:
            code = 128 + self._stopped_by
            hard = f"; {name_ranks(self._stopped)} had to be killed" if self._stopped else ""
            self._logs.notice(f"disttrain: stopped by {self._stopper}{hard}")
            if any(standing.waited > HUNG for standing in self._standings):
                self._logs.notice("\n".join(describe_positions(last.positions)))
        elif self._preempted is not None and self._commands.stopped_at is not None:
            code = PREEMPTED
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
            stopped_at=self._commands.stopped_at,
            chaos=tuple(self._suffered),
            slow=tuple(self._slow),
            attempts=tuple(self._attempts),
        )
        has_history = self._directory.history.exists()
        if last.failures or self._attempts or self._suffered or has_history:
            self._write_report(report)
        if has_history and not last.failures:
            self._logs.notice(f"disttrain: history of the run in {self._directory.path}")
        explained = last.failures or self._attempts or self._suffered
        if explained and (not self._config.call or code == 0):  # else an exception says it
            self._logs.notice(report.text(self._directory.path))
        if self._config.call and code == 0:
            self.results = self._read_results()
        return report

    def _write_report(self, report: RunReport) -> None:
        try:
            report.write(self._directory.report)
        except OSError as e:  # what has happened is said all the same
            self._logs.notice(f"disttrain: {self._directory.report} could not be written: {e.strerror}")

    def _read_results(self) -> dict[int, Any]:
        """Return what the function has returned, by rank."""
        return {
            rank: read_result(result_file(self._call_file, rank)) for rank in range(self._config.world_size)
        }

    def _with_logs(self, failure: Failure) -> Failure:
        if failure.traceback:
            return failure
        fields = {name: getattr(failure, name) for name in failure.__dataclass_fields__}
        return Failure(**fields | {"log": tuple(self._logs.tail(failure.process))})

    def _sweep(self) -> list[int]:
        """End every process of the job; return those that did not leave by themselves.

        A node that does not answer is waited for until it counts as lost: it may be the cause of all.
        """
        for node in self._nodes.values():
            node.sweep()
        deadline = time.monotonic() + (self._fleet.patience if self._fleet is not None else 0.0) + _SWEEP
        while self._fleet is not None and any(node.swept is None for node in self._nodes.values()):
            self._turn(None)
            if time.monotonic() > deadline:
                self._fleet.give_up(lambda n: n.swept is None, "its agent answers no more")
        if self._failures or self._stopped_by is not None:  # the ledgers of other nodes have come meanwhile
            self._standings += [s for w in self._workers if w.env.node for s in w.standings()]
        return [pid for node in self._nodes.values() for pid in node.swept or ()]

    def _finish_logs(self) -> None:
        deadline = time.monotonic() + _FLUSH
        while self._fleet is not None and self._fleet.printing and time.monotonic() < deadline:
            self._turn(deadline - time.monotonic())
        self._logs.finish()

    def _forget_workers(self) -> None:
        """Release what is held for the workers, which have been killed."""
        self._commands.forget()
        for node in self._nodes.values():
            node.forget()
        for connection in self._pmi.connections:
            self._selector.unregister(connection)
        self._pmi.close()
        if self._open_mpi is not None:
            self._open_mpi.close()
            self._open_mpi = None
        self._workers = []

    def _clean_up(self) -> None:
        """Leave nothing: also the way out if starting or watching has raised."""
        self._forget_workers()
        self._desk.close()
        if self._fleet is not None:
            self._fleet.close()
        self._control.close()
        self._selector.close()
        if self._directory.report.exists():
            self._directory.keep()
        else:
            self._directory.remove()
        self._here.close()
