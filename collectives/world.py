"""The world communicator of the calling rank: made at the first ``connect()``, ended by ``shutdown()``."""

import atexit
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import numpy

from disttrain.collectives.communicator import Communicator
from disttrain.collectives.env import WorkerEnv, current_env, hosted_rank
from disttrain.collectives.host import Host
from disttrain.collectives.protocol import collective
from disttrain.collectives.select import open_transport
from disttrain.kernels.arrays import Array

_logger = logging.getLogger("disttrain")
_host: Host | None = None
"""The host of a process whose main thread is its only rank."""


def connect() -> Communicator:
    """Return the communicator of the calling rank over all ranks of the job; the first call connects them.

    Every rank of the job must call it. Not started by a launcher, this is a world of one rank.

    Raises:
        TransportUnavailable: the transport that the job asks for cannot work here.
        RuntimeError: the processes that MPI connected are not those of the job.
    """
    env = current_env()
    rank = hosted_rank()
    host: Host | None = _host if rank is None else rank.host
    if host is None:
        if env.hosted > 1:
            raise RuntimeError(
                f"this process hosts {env.hosted} ranks; start them as threads with "
                f"disttrain.collectives.local.run_ranks"
            )
        host = open_host(env, threads=False)
    if env.rank not in host.communicators:
        host.communicators[env.rank] = Communicator(host.world, env.rank)
    communicator: Communicator = host.communicators[env.rank]
    return communicator


def empty(shape: int | Sequence[int], dtype: Any = numpy.float32) -> Array:
    """Return a new array that processes of one node exchange without copies: :meth:`.Communicator.empty`.

    Connects if this rank has not yet; every rank of the job must call it then.
    """
    return connect().empty(shape, dtype)


def rank0_first(what: str = "rank 0 goes first") -> AbstractContextManager[None]:
    """Run a block on rank 0 before the other ranks run it: :meth:`.Communicator.rank0_first` of the world."""
    return connect().rank0_first(what)


def shutdown() -> None:
    """End communication at the normal end of a job. Every rank must come here, with nothing left to wait for.

    Does nothing if this process never connected (or its ranks were threads: ``run_ranks`` does it for them).

    Raises:
        CollectiveMismatch: other ranks are still in a collective, so this one ended too early.
    """
    if _host is not None:
        close_host(_host, failed=False)


def open_host(env: WorkerEnv, *, threads: bool, on_switch: Callable[[int], None] | None = None) -> Host:
    """Connect this process to the others of the job. ``threads``: its ranks will be threads of the caller."""
    global _host
    transport, line = open_transport(env)
    host = Host(env, transport, threads=threads, on_switch=on_switch)
    if env.rank == 0:
        _logger.info(line)
    if not threads:
        _host = host
    if env.processes > 1 and not env.control:
        _end_with_the_others(host)
    return host


def close_host(host: Host, *, failed: bool) -> None:
    """Say goodbye to the other processes, unless a rank of this one failed: then nobody waits for anybody."""
    global _host
    if host is _host:
        _host = None
    if failed:
        host.stop()
        return
    host.close(collective)


def _end_with_the_others(host: Host) -> None:
    """Without our launcher nobody else ends the world when one process does: MPI would wait for ever."""
    previous = sys.excepthook

    def abort_the_world(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        previous(kind, error, traceback)
        sys.stdout.flush()
        sys.stderr.flush()
        host.transport.abort(1)

    sys.excepthook = abort_the_world
    atexit.register(_goodbye_at_exit, host)


def _goodbye_at_exit(host: Host) -> None:
    if host is not _host:
        return
    try:
        shutdown()
    except BaseException as error:
        host.abort(f"{type(error).__name__}: {error}", 1)
