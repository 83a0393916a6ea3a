"""The contract between the launcher and a worker: the only reader and writer of its environment variables.

Standard library only, so that the launcher can import it without loading arrays.
"""

import os
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from disttrain.collectives.ledger import ledger_file

_PREFIX = "DISTTRAIN_"
_MPI_VARIABLES = (
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""),
)
"""Rank, size, rank on the node, ranks of the node: as Open MPI, the MPICH family and srun set them.

What srun says comes last, and counts also where it has connected nobody (``--mpi=none``): that is found then.
"""


@dataclass(frozen=True)
class WorkerEnv:
    """What one process of a job needs to know to find the others, and which ranks it hosts.

    A *rank* is a logical worker. A process hosts ``hosted`` consecutive ranks, beginning with ``rank``; more
    than one under ``--ranks`` and in debug mode, where ranks are threads.
    """

    rank: int = 0
    """First (usually the only) rank that this process hosts."""
    world_size: int = 1
    """Number of ranks of the job."""
    hosted: int = 1
    """Number of ranks that this process hosts."""
    process: int = 0
    """Index of this process among the job's processes."""
    processes: int = 1
    """Number of processes of the job."""
    local_rank: int = 0
    """``rank``, counted on this node."""
    local_world_size: int = 1
    """Number of ranks on this node."""
    node: int = 0
    """Index of this process's node among the job's nodes. MPI's own word on what is one machine counts too."""
    fixed_order: bool = False
    """Reduce in the one fixed binary tree, whatever hosts the ranks (``--ranks``, debug mode)."""
    transport: str = "auto"
    """``auto``, ``local``, ``shm``, ``mpi`` or ``nccl``."""
    run_id: str = ""
    """Names everything that the job leaves on a machine; empty outside the launcher."""
    generation: int = 0
    """How often the job has been restarted."""
    control: str = ""
    """ZeroMQ endpoint of the launcher's control plane; empty outside the launcher."""
    master: str = "127.0.0.1"
    """Address of the first node: ``MASTER_ADDR`` of scripts for torchrun."""
    timeout: float = 1800.0
    """Seconds that a rank waits in a collective."""
    ledger: int = -1
    """Descriptor of the file in which the process notes its calls for the launcher; -1 if it makes one itself."""
    chaos: str = ""
    """Faults that the ranks are to suffer (``--chaos``), as ``disttrain.collectives.chaos`` reads them."""
    history: str = ""
    """File to which ranks append what their script logs, as JSON lines; empty if there is none."""
    schedule: int = -1
    """Seed of the order in which ranks that are threads run; -1 for the order of their numbers."""
    audit: str = ""
    """Folder in which ranks record what they compute (``disttrain audit``); empty if they do not."""
    audit_steps: int = 0
    """How many optimizer steps they make then."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank <= self.rank + self.hosted <= self.world_size or self.hosted < 1:
            raise ValueError(
                f"a process of {self.world_size} ranks cannot host ranks "
                f"{self.rank} to {self.rank + self.hosted - 1}; start the job with `disttrain launch`"
            )

    def to_environ(self) -> dict[str, str]:
        """Return the variables that :meth:`from_environ` reads, and those that torchrun exports."""
        ours = {
            _PREFIX + k.upper(): str(int(v) if isinstance(v, bool) else v) for k, v in asdict(self).items()
        }
        return ours | self.of_rank(self.rank).torchrun_environ()

    def torchrun_environ(self) -> dict[str, str]:
        """Return ``RANK``, ``WORLD_SIZE`` and the others that a PyTorch script reads."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "GROUP_RANK": str(self.node),
            "MASTER_ADDR": self.master,
            "MASTER_PORT": "0",
            "TORCHELASTIC_RUN_ID": self.run_id,
            "TORCHELASTIC_RESTART_COUNT": str(self.generation),
        }

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> "WorkerEnv":
        """Read the contract; without one, that of a bare ``mpiexec`` or ``srun``; else a world of one.

        Raises:
            RuntimeError: some variables of the contract are set and others are missing or no numbers.
        """
        if _PREFIX + "WORLD_SIZE" not in environ:
            return cls._from_mpi(environ)
        values = {}
        for name, field in cls.__dataclass_fields__.items():
            text = environ.get(_PREFIX + name.upper())
            if text is None:
                raise RuntimeError(
                    f"{_PREFIX}{name.upper()} is not set, but {_PREFIX}WORLD_SIZE is; "
                    f"start the job with `disttrain launch`"
                )
            try:
                values[name] = bool(int(text)) if field.type is bool else field.type(text)  # type: ignore[operator]
            except ValueError:
                raise RuntimeError(
                    f"{_PREFIX}{name.upper()} must be {field.type}, got {text!r}; "
                    f"start the job with `disttrain launch`"
                ) from None
        return cls(**values)  # type: ignore[arg-type]

    @classmethod
    def _from_mpi(cls, environ: Mapping[str, str]) -> "WorkerEnv":
        for names in _MPI_VARIABLES:
            rank, size, local_rank, local_size = (environ.get(name, "") for name in names)
            if not (rank.isdecimal() and size.isdecimal() and int(size) > 1):
                continue
            return cls(
                rank=int(rank),
                world_size=int(size),
                process=int(rank),
                processes=int(size),
                local_rank=int(local_rank) if local_rank.isdecimal() else int(rank),
                # Unknown is not "all of them": ranks of other nodes are then looked for too.
                local_world_size=int(local_size) if local_size.isdecimal() else 1,
                transport=environ.get(_PREFIX + "TRANSPORT", "auto"),
                ledger=_own_ledger(),
            )
        return cls()

    def of_rank(self, rank: int) -> "WorkerEnv":
        """Return the same contract as seen by one of the hosted ranks."""
        values = asdict(self)
        values["local_rank"] += rank - self.rank
        return WorkerEnv(**values | {"rank": rank, "hosted": 1})


class HostedRank:
    """A rank that is a thread, and what belongs to it rather than to the process.

    The threads that it starts belong to it too (:func:`hosted_rank` is what they inherit).
    """

    __slots__ = ("context", "env", "host", "in_main_thread")

    def __init__(
        self,
        env: WorkerEnv,
        host: Any = None,
        in_main_thread: Callable[[Callable[[], Any]], Any] | None = None,
    ) -> None:
        self.env = env
        self.host = host
        """The ``Host`` that connects it to the other ranks."""
        self.in_main_thread = in_main_thread
        """Has a function called in the main thread of the process, where Ctrl-C interrupts it."""
        self.context: Any = None
        """What the library keeps for the rank (``disttrain.context``)."""


_hosted_rank: ContextVar[HostedRank | None] = ContextVar("hosted_rank", default=None)


def starter(environ: Mapping[str, str] = os.environ) -> str:
    """Return whose mpiexec has started this process, without our launcher: ``"Open MPI"``, or ``""`` for others."""
    theirs = _MPI_VARIABLES[0][1] in environ and _PREFIX + "WORLD_SIZE" not in environ
    return "Open MPI" if theirs else ""


@cache
def _own_ledger() -> int:
    """Return the descriptor of a ledger's file that this process makes, as there is no launcher that has."""
    return ledger_file(1) if hasattr(os, "memfd_create") else -1


def current_env() -> WorkerEnv:
    """Return the contract of the calling rank: of its thread if ranks are threads, else of the process."""
    rank = _hosted_rank.get()
    return WorkerEnv.from_environ() if rank is None else rank.env


def hosted_env() -> WorkerEnv | None:
    """Return the contract of the calling thread's rank if ranks are threads, else ``None``."""
    rank = _hosted_rank.get()
    return None if rank is None else rank.env


def hosted_rank() -> HostedRank | None:
    """Return the rank that the calling thread is, or was started by, if ranks are threads."""
    return _hosted_rank.get()


def enter_rank(rank: HostedRank | None) -> None:
    """Make the calling thread (and the context copied from it) that of ``rank``."""
    _hosted_rank.set(rank)
