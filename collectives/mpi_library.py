"""The MPI library that mpi4py loads: whether it can serve this process, and what to see to around its start."""

import contextlib
import logging
import os
from typing import Any, Final

from disttrain.collectives.env import WorkerEnv, starter
from disttrain.collectives.errors import TransportUnavailable

CURE: Final = "Start the job with `disttrain launch`, or with the mpiexec that belongs to that library"
_SHM: Final = "/dev/shm/"
_SHARED: Final = "self,posix,cma"
_SYSTEM_V: Final = "self,sysv,cma"
"""What UCX is told; the launcher tells the first to scripts that use MPI themselves."""
_MIB: Final = 1 << 20
_logger = logging.getLogger("disttrain")


def load() -> Any:
    """Return mpi4py's module, with a library of MPI that is not initialised yet (unless somebody has done it).

    Raises:
        TransportUnavailable: mpi4py or an MPI library is missing.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError, OSError) as error:
        raise TransportUnavailable(
            f'there is no MPI library ({error}); install one with `pip install "disttrain[mpi]"`'
        ) from error
    return MPI


def name_of(mpi: Any) -> str:
    """Return the name and version of the library, in one line."""
    return " ".join(mpi.Get_library_version().splitlines()[0].strip("\0").split())


def check_starter(mpi: Any) -> None:
    """Find out before ``MPI_Init`` that it would end the process without a word on the cause.

    Raises:
        RuntimeError: Open MPI's mpiexec has started this process, and the library is another one.
    """
    started_by, (vendor, _) = starter(), mpi.get_vendor()
    if started_by == "Open MPI" and vendor != started_by:
        raise RuntimeError(
            f"this process was started by {started_by}'s mpiexec, and it loaded {name_of(mpi)}, which finds no other "
            f"process that way. {CURE}"
        )


def choose_shared_memory(mpi: Any, env: WorkerEnv) -> None:
    """Tell MPICH by what means the processes of one node exchange messages, from the size of ``/dev/shm``.

    It does not look itself: without room there a process ends with SIGBUS. (Our own shared memory needs no room there,
    and Open MPI looks.) The whole size counts, not what is free, so that all processes choose alike.

    Raises:
        TransportUnavailable: there is too little for any of them.
    """
    if mpi.get_vendor()[0] != "MPICH" or not os.path.isdir(_SHM):
        return
    processes = -(-env.local_world_size // env.hosted)
    one_node = env.local_world_size == env.world_size
    info = os.statvfs(_SHM)
    size = info.f_blocks * info.f_frsize
    read_only = bool(info.f_flag & os.ST_RDONLY)
    # Measured with MPICH 5: 1.1 MiB for each process, and 4.2 more where messages go through it too.
    needed = (2 + 1.1 * processes) * _MIB
    if read_only or 0 < size < needed:  # 0 is a tmpfs without a limit, which UCX does not know
        raise TransportUnavailable(
            f"MPICH needs {needed / _MIB:.1f} MiB in {_SHM} for {processes} processes of a node, and it "
            f"{'is read-only' if read_only else f'has {size / _MIB:.3g} MiB'}; start the container with "
            f"--shm-size=1g or --ipc=host, or on one host use --transport shm, which needs none there"
        )
    if not one_node or os.environ.get("UCX_TLS", _SHARED) != _SHARED:
        return
    if size >= (16 + 6 * processes) * _MIB:
        # Shared memory only: MPICH would else listen on every network interface.
        os.environ["UCX_TLS"] = _SHARED
        return
    os.environ["UCX_TLS"] = _SYSTEM_V
    if env.process == 0:
        _logger.warning(
            "%s has %.3g MiB, which is little for the messages of %d processes: they go through System V memory "
            "(--shm-size=1g makes a container's larger)", _SHM, size / _MIB, processes,
        )  # fmt: skip


def unlink_shared_memory(comm: Any) -> None:
    """Remove the names of MPICH's shared memory, which stays mapped: a killed job then leaves nothing behind.

    All processes have mapped it when MPI_Init has returned, and the barrier says that it has, everywhere.
    """
    comm.Barrier()
    if not os.path.exists("/proc/self/maps"):  # macOS
        return
    with open("/proc/self/maps") as maps:
        mapped = {line[line.index(_SHM) :].rstrip("\n") for line in maps if _SHM + "mpich_" in line}
    for path in mapped:
        with contextlib.suppress(FileNotFoundError):  # another process of this node was first
            os.unlink(path)
