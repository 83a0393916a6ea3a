"""Which transport connects the processes of a job, and why."""

from typing import TYPE_CHECKING

from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.errors import TransportUnavailable
from disttrain.collectives.transport import Transport

if TYPE_CHECKING:
    from disttrain.collectives.mpi import MpiTransport
    from disttrain.collectives.shm import ShmTransport

TRANSPORTS = ("auto", "local", "shm", "mpi", "nccl")


def choose(env: WorkerEnv) -> tuple[str, str]:
    """Return the name of the transport for ``env`` and the reason, in words.

    It is that of NumPy arrays and of what ranks tell each other. Under ``auto`` arrays on GPUs go over NCCL where the
    processes can (``nccl.refusal``), which is known when the first of them comes.

    Raises:
        ValueError: there is no transport of that name.
        TransportUnavailable: the transport that was asked for by name cannot serve this job.
    """
    wanted = env.transport
    if wanted not in TRANSPORTS:
        raise ValueError(f"transport must be one of {', '.join(TRANSPORTS)}, got {wanted!r}")
    if wanted == "nccl":
        from disttrain.collectives import nccl

        nccl.find()
    if wanted == "local" and env.processes > 1:
        raise TransportUnavailable(
            f"the local transport connects ranks of one process, and this job has {env.processes} processes; "
            f"use auto, or run all ranks in one process with `disttrain debug`"
        )
    if wanted != "auto":
        return wanted, "asked for"
    if env.processes == 1:
        return "local", "all ranks are in one process"
    name, why_not = choose_of_host(env)
    return name, f"NumPy arrays between {env.processes} processes{why_not}"


def choose_of_host(env: WorkerEnv) -> tuple[str, str]:
    """Return the transport of what is not on a GPU, ``mpi`` or ``shm``, and why it is not the first of them.

    Raises:
        TransportUnavailable: processes are on several hosts, and there is no MPI.
    """
    from disttrain.collectives import mpi_library

    try:
        mpi_library.load()
    except TransportUnavailable as error:
        if env.local_world_size != env.world_size:
            raise
        return "shm", f"; {error}"
    return "mpi", ""


def open_transport(env: WorkerEnv) -> tuple[Transport, str]:
    """Return the connected transport for ``env`` and one line that says what it is and why."""
    name, why = choose(env)
    if name == "local" or env.processes == 1:
        from disttrain.collectives.local import LocalTransport

        local = LocalTransport(env)
        local.name = name
        return local, f"communicating over {name} ({why})"
    host, also = name, ""
    if name == "nccl":
        host, why_not = choose_of_host(env)
        also = f" for GPU arrays and {host} for others"
        why += why_not
    made = _open(host, env)
    made.name = name
    return made, f"communicating over {name}{also}, {made.implementation} ({why})"


def _open(name: str, env: WorkerEnv) -> "MpiTransport | ShmTransport":
    if name == "shm":
        from disttrain.collectives.shm import ShmTransport

        return ShmTransport(env)
    from disttrain.collectives.mpi import MpiTransport

    return MpiTransport(env)
