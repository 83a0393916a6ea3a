"""Which transport connects the processes of a job, and why."""

from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.errors import TransportUnavailable
from disttrain.collectives.transport import Transport

TRANSPORTS = ("auto", "local", "mpi", "nccl")


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

        nccl.load()
    if wanted == "local" and env.processes > 1:
        raise TransportUnavailable(
            f"the local transport connects ranks of one process, and this job has {env.processes} processes; "
            f"use mpi (or auto), or run all ranks in one process with `disttrain debug`"
        )
    if wanted != "auto":
        return wanted, "asked for"
    if env.processes == 1:
        return "local", "all ranks are in one process"
    return "mpi", f"NumPy arrays between {env.processes} processes"


def open_transport(env: WorkerEnv) -> tuple[Transport, str]:
    """Return the connected transport for ``env`` and one line that says what it is and why."""
    name, why = choose(env)
    if name == "local" or env.processes == 1:
        from disttrain.collectives.local import LocalTransport

        local = LocalTransport(env)
        local.name = name
        return local, f"communicating over {name} ({why})"
    from disttrain.collectives.mpi import MpiTransport

    mpi = MpiTransport(env)
    mpi.name = name
    also = " for GPU arrays and mpi for others" if name == "nccl" else ""
    return mpi, f"communicating over {name}{also}, {mpi.implementation} ({why})"
