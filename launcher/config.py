"""What the user asked for, checked: the configuration of one job."""

import math
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from disttrain.collectives.chaos import BadChaos, Fault, parse
from disttrain.collectives.env import WorkerEnv
from disttrain.launcher import gpus

TRANSPORTS: Final = ("auto", "local", "shm", "mpi", "nccl")
REHEARSAL: Final = "disttrain.launcher.rehearsal"
"""The program of ours that ranks of several nodes run first."""
THREAD_COUNTS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Variables that the launcher sets where there are several processes, unless they are set."""


class ConfigError(ValueError):
    """A wrong option: what it was, and what to write instead."""


@dataclass(frozen=True)
class LaunchConfig:
    """One job: which program, on how many processes and ranks, and how they talk.

    Raises:
        ConfigError: an argument cannot be; the text says which, its value, and the cure.
    """

    program: str
    """Path of a script, or the dotted name of a module."""
    args: tuple[str, ...] = ()
    """What the program sees in ``sys.argv[1:]``."""
    is_module: bool = False
    compat: bool = False
    """Whether ``import torch`` in the program means disttrain."""
    processes: int = 1
    """Processes of all nodes together."""
    nodes: tuple[tuple[int, int], ...] = ()
    """Index of each node and its number of processes; nothing for all of them on this one."""
    rehearse: bool = True
    """Whether ranks of several nodes first talk for a second, before the program is started."""
    master: str = "127.0.0.1"
    """Address of the first node, for scripts that ask for ``MASTER_ADDR``."""
    ranks: int | None = None
    """Number of ranks, if another than ``processes``; reductions then go in one fixed order."""
    transport: str = "auto"
    timeout: float = 1800.0
    """Seconds that a rank waits in a collective."""
    max_restarts: int = 0
    """How often all ranks are started again after a failure."""
    chaos: str = ""
    """Faults that the ranks are to suffer."""
    chaos_seed: int = 0
    call: str = ""
    """The function that the program calls, as JSON, if ``disttrain.launch`` started it."""
    schedule: int = -1
    """Seed of the order in which ranks that are threads run; -1 for the order of their numbers."""
    audit: str = ""
    """Folder in which the ranks record what they compute; empty if they do not."""
    audit_steps: int = 0
    """How many optimizer steps they make then."""
    env: dict[str, str] = field(default_factory=dict)
    """Variables that the workers get beside those of the launcher."""

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ConfigError(f"-n must be at least 1, got {self.processes}; try -n 2")
        if self.ranks is not None:
            _check_ranks(self.ranks, self.processes)
        if self.transport not in TRANSPORTS:
            raise ConfigError(f"--transport must be one of {', '.join(TRANSPORTS)}; got {self.transport!r}")
        if self.transport == "local" and self.processes > 1:
            raise ConfigError(
                f"--transport local connects ranks of one process, got -n {self.processes}; "
                f"use -n 1 --ranks {self.processes}, or --transport auto"
            )
        if self.transport == "nccl":
            _check_gpus(dict(self.shares).get(0, 0))  # other nodes have their own
        if self.max_restarts < 0:
            raise ConfigError(
                f"--max-restarts must be 0 or more, got {self.max_restarts}; 0 ends the job at its first failure"
            )
        if not 0 < self.timeout < math.inf:
            raise ConfigError(f"--timeout must be a positive number of seconds, got {self.timeout:g}")
        check_program(self.program, is_module=self.is_module)

    @property
    def world_size(self) -> int:
        return self.processes if self.ranks is None else self.ranks

    @property
    def argv(self) -> list[str]:
        """The program as the worker's command line has it."""
        options = [*(["--compat"] if self.compat else []), *(["-m"] if self.is_module else [])]
        return [*options, *self.program_argv]

    @property
    def program_argv(self) -> list[str]:
        """The program and its arguments."""
        return [self.program, *self.args]

    def placements(
        self, *, run_id: str, control: str, history: str = "", generation: int = 0
    ) -> list[WorkerEnv]:
        """Return the contract of each process: consecutive ranks, the first processes one more if need be."""
        each, more = divmod(self.world_size, self.processes)
        hosted = [each + (process < more) for process in range(self.processes)]
        places = []
        process = rank = 0
        for node, share in self.shares:
            of_node = hosted[process : process + share]
            first = rank
            for here in of_node:
                places.append(
                    WorkerEnv(
                        rank=rank,
                        world_size=self.world_size,
                        hosted=here,
                        process=process,
                        processes=self.processes,
                        local_rank=rank - first,
                        local_world_size=sum(of_node),
                        node=node,
                        fixed_order=self.ranks is not None,
                        transport=self.transport,
                        run_id=run_id,
                        generation=generation,
                        control=control,
                        history=history,
                        master=self.master,
                        timeout=self.timeout,
                        schedule=self.schedule,
                        audit=self.audit,
                        audit_steps=self.audit_steps,
                    )
                )
                process += 1
                rank += here
        return places

    @property
    def shares(self) -> tuple[tuple[int, int], ...]:
        """Index of each node and its number of processes."""
        return self.nodes or ((0, self.processes),)

    def faults(self, hosts: Collection[str] = ()) -> tuple[Fault, ...]:
        """Return what ``chaos`` orders. ``hosts`` are those of the job, but for the launcher's own.

        Raises:
            ConfigError: an item is wrong.
        """
        try:
            return parse(self.chaos, self.world_size, self.chaos_seed, hosts)
        except BadChaos as e:
            raise ConfigError(str(e)) from None

    def thread_limits(self) -> dict[str, str]:
        """Return the thread counts for processes that share cores, or whose results must be equal.

        A process that gets cores of its own gets as many threads: :meth:`.Machine.place`.
        """
        if self.processes == 1 and self.ranks is None:
            return {}
        return {name: "1" for name in THREAD_COUNTS if name not in os.environ}


def _check_gpus(processes: int) -> None:
    count = count_gpus()
    if count < processes:
        raise ConfigError(
            f"--transport nccl needs a GPU for each process, got -n {processes} and {count or 'no'} visible GPU"
            f"{'s' * (count != 1)}; use -n gpu (--ranks puts several ranks into a process), or --transport auto"
        )


def _check_ranks(ranks: int, processes: int) -> None:
    if ranks < 1 or ranks & (ranks - 1):
        below = 1 << max(ranks, 1).bit_length() - 1
        raise ConfigError(
            f"the number of ranks must be a power of two, got {ranks}; try {below} or {2 * below}"
        )
    if ranks < processes:
        raise ConfigError(
            f"--ranks {ranks} is fewer than the {processes} processes of -n; "
            f"use -n {ranks} or fewer, or more --ranks"
        )


def check_program(program: str, *, is_module: bool) -> None:
    """Refuse a script that cannot be read. A module is looked up by the worker, whose path decides.

    Raises:
        ConfigError: no such file, a directory, or not readable.
    """
    if is_module:
        if not all(part.isidentifier() for part in program.split(".")):
            raise ConfigError(
                f"-m needs the dotted name of a module, got {program!r}; try -m package.module, or drop -m"
            )
        return
    path = Path(program)
    if path.is_dir():
        inside = path / "__main__.py"
        hint = f"name the script, for example {inside}" if inside.exists() else "name the script inside it"
        raise ConfigError(f"{program!r} is a directory; {hint}")
    if not path.exists():
        raise ConfigError(f"there is no script {program!r} in {os.getcwd()}; check the path")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"the script {program!r} cannot be read; check its permissions (chmod u+r)")


def parse_nproc(text: str) -> int:
    """Return the number of processes that ``-n`` asks for: a number, ``auto``, ``cpu`` or ``gpu``.

    Raises:
        ConfigError: neither of these, below 1, or ``gpu`` where no GPU is visible.
    """
    if text == "cpu":
        return len(os.sched_getaffinity(0))
    if text == "gpu":
        count = count_gpus()
        if count == 0:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            why = f"CUDA_VISIBLE_DEVICES={visible!r}" if visible is not None else "there is no /dev/nvidia*"
            raise ConfigError(f"-n gpu: no GPU is visible ({why}); use -n cpu or a number")
        return count
    if text == "auto":
        return count_gpus() or parse_nproc("cpu")
    try:
        number = int(text)
    except ValueError:
        raise ConfigError(f"-n must be a number, auto, cpu or gpu; got {text!r}") from None
    if number < 1:
        raise ConfigError(f"-n must be at least 1, got {number}; try -n 2")
    return number


def count_gpus() -> int:
    """Return how many NVIDIA GPUs a process started from here would see, without loading CUDA."""
    return len(gpus.visible())


def parse_env(pairs: Iterable[str]) -> dict[str, str]:
    """Return ``--env`` options as a dictionary.

    Raises:
        ConfigError: no ``=``, an empty name, or a variable that the launcher itself sets.
    """
    ours = WorkerEnv().to_environ().keys()
    env = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name or "\0" in pair:
            raise ConfigError(f"--env must be NAME=VALUE, got {pair!r}; try --env OMP_NUM_THREADS=2")
        if name in ours:
            raise ConfigError(f"--env {pair}: {name} is set by the launcher for each rank; leave it out")
        env[name] = value
    return env
