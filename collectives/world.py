"""The world communicator of the calling rank: made at the first ``connect()``, ended by ``shutdown()``."""

import atexit
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import numpy

from disttrain.collectives import stacks
from disttrain.collectives.communicator import Communicator
from disttrain.collectives.control import leave
from disttrain.collectives.env import WorkerEnv, current_env, hosted_rank
from disttrain.collectives.host import Host
from disttrain.collectives.ledger import note_stacks
from disttrain.collectives.meter import note_end, wait_until_heard
from disttrain.collectives.protocol import collective
from disttrain.collectives.select import open_transport
from disttrain.kernels.arrays import Array

_MOST_CHARACTERS = 300
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
    is_bare = env.processes > 1 and not env.control
    if is_bare:
        note_stacks(env.ledger, stacks.answer())
    host = Host(env, transport, threads=threads, on_switch=on_switch)
    if env.rank == 0:
        _logger.info(line)
    if not threads:
        _host = host
    if is_bare:
        _end_with_the_others(host)
        if env.process == 0:
            _have_attended(host)
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
        _note_end(host, 1, f"raised {kind.__qualname__}: {error}")
        host.transport.abort(1)
        leave(1)  # MPI may return before its launcher ends this process, which has nothing to say any more

    sys.excepthook = abort_the_world
    atexit.register(_goodbye_at_exit, host)


def _goodbye_at_exit(host: Host) -> None:
    if host is not _host:
        return
    try:
        shutdown()
    except BaseException as error:
        _note_end(host, 1, f"raised {type(error).__name__}: {error}")
        host.abort(f"{type(error).__name__}: {error}", 1)
        leave(1)
    _note_end(host, 0, "")


def _note_end(host: Host, code: int, what: str) -> None:
    """Leave word for the attendant of rank 0's node."""
    ledger = host.ledger
    if ledger.descriptor < 0 or host.watch is None:
        return
    note_end(ledger.descriptor, code, ledger.text(what[:_MOST_CHARACTERS]) if what else -1)
    if code and any(process == 0 for process, *_ in host.watch.near):
        wait_until_heard(ledger.descriptor)


def _have_attended(host: Host) -> None:
    """Start what shows this job to ``disttrain ps`` and the others: no launcher does."""
    if host.watch is None or host.ledger.descriptor < 0:
        return
    about = {
        "command": sys.argv,
        "world_size": host.env.world_size,
        "processes": host.watch.near,
    }
    letter = os.memfd_create("disttrain letter")
    os.write(letter, json.dumps(about).encode())
    os.lseek(letter, 0, os.SEEK_SET)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "disttrain.launcher.attendant"],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, letter, 0), (os.POSIX_SPAWN_DUP2, nowhere, 1)],
        setsid=True,  # what ends the ranks must not end it before it has said why
    )
    os.close(letter)
    os.close(nowhere)
