"""What goes wrong on the GPUs of several processes, a case per function: ``gpu_faults.py CASE gpu=nccl`` under mpiexec.

A rank tells what it saw on stdout; the process that a fault is planted in says nothing.
"""

import logging
import os
import signal
import sys
import threading
from dataclasses import replace
from typing import Any

import fake_cupy
import gpu_double
import numpy as np

from disttrain.collectives import CollectiveError, CollectiveMismatch, TransportUnavailable, connect, watchdog
from disttrain.collectives.env import WorkerEnv


def started(**options: Any) -> Any:
    """Return the world on GPUs, with these options of the contract."""
    env = replace(WorkerEnv.from_environ(), control="none", **options)
    os.environ.update(env.to_environ())
    return connect()


def ones(count: int = 4) -> Any:
    return sys.modules["cupy"].asarray(np.ones(count, np.float32))


def say(comm: Any, error: BaseException) -> None:
    print(f"rank {comm.rank}: {type(error).__name__}: {error}", flush=True)


def stay() -> None:
    """Do nothing, as a process that is stopped does."""
    os.kill(os.getpid(), signal.SIGSTOP)


def stops_in_flight() -> None:
    """The last process stops when all have agreed on the call, and its part never comes."""
    comm = started(timeout=1.0)
    x = ones()
    comm.all_reduce(x, x)
    x.get()
    if comm.rank == comm.size - 1:
        fake_cupy.NcclCommunicator.allReduce = lambda *_: stay()
    try:
        comm.all_reduce(x, x)
        x.get()  # waits for the GPU, in native code
        while True:  # and it is there that the error comes
            threading.Event().wait(0.01)
    except CollectiveError as error:
        say(comm, error)
    try:
        comm.all_reduce(x, x)
    except CollectiveError as error:
        say(comm, error)
    os._exit(0)


def leaves_in_flight() -> None:
    """The last process aborts what all have agreed on."""
    comm = started(timeout=60.0)
    x = ones()
    comm.all_reduce(x, x)
    x.get()
    if comm.rank == comm.size - 1:

        def leave(self: Any, *_: object) -> None:
            self.abort()
            stay()

        fake_cupy.NcclCommunicator.allReduce = leave
    try:
        comm.all_reduce(x, x)
        x.get()
        while True:
            threading.Event().wait(0.01)
    except CollectiveError as error:
        say(comm, error)
    os._exit(0)


def stops_and_nobody_listens() -> None:
    """As before, but the abort hangs, and the script sits in native code."""
    watchdog._PATIENCE_S = 0.5
    comm = started(timeout=0.5)
    x = ones()
    comm.all_reduce(x, x)
    x.get()
    if comm.rank == comm.size - 1:
        fake_cupy.NcclCommunicator.allReduce = lambda *_: stay()
    comm.all_reduce(x, x)
    x.get()


def fails_to_begin() -> None:
    """NCCL refuses a call on one process."""
    comm = started(timeout=20.0)
    x = ones()
    comm.all_reduce(x, x)
    x.get()
    if comm.rank == 0:
        fake_cupy.Library.ncclAllReduce = lambda *_: 6
        try:
            comm.all_reduce(x, x)
        except CollectiveError as error:
            say(comm, error)
        try:
            comm.all_reduce(x, x)
        except CollectiveError as error:
            say(comm, error)
        os._exit(0)
    comm.all_reduce(x, x)
    x.get()


def refused() -> None:
    """NCCL is insisted on, and cannot be had."""
    comm = started()
    comm.require_nccl()
    x = ones()
    try:
        comm.all_reduce(x, x)
    except TransportUnavailable as error:
        say(comm, error)
    total = np.ones(2)
    comm.all_reduce(total, total)
    assert total.tolist() == [comm.size] * 2, "arrays of the host do not go either"


def on_one_host_and_one_gpu() -> None:
    """One rank's array is on the GPU, the other's is not."""
    comm = started()
    x = ones() if comm.rank else np.ones(4, np.float32)
    try:
        comm.all_reduce(x, x)
    except CollectiveMismatch as error:
        say(comm, error)
    y = ones()
    comm.all_reduce(y, y)
    assert y.get().tolist() == [comm.size] * 4


def told() -> None:
    """Two groups, in both of which arrays go the same way."""
    logging.getLogger("disttrain").setLevel(logging.INFO)
    logging.basicConfig(format="%(message)s")
    comm = started()
    for group in (comm, comm.split(0)):
        x = ones()
        group.all_reduce(x, x)
        x.get()


def dropped() -> None:
    """Nobody keeps what is given in calls that are in flight, nor waits for them; results come in order."""
    comm = started()
    outs = [ones(1000) for _ in range(50)]
    for out in outs:
        comm.start_all_reduce(ones(1000), out)
        ones(1000)  # takes the memory of what was given, if that is free
    x = ones(1000)
    comm.all_reduce(x, x)
    for out in (*outs, x):
        assert set(out.get()) == {comm.size}


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    gpu_double.check()
