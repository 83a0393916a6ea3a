"""What goes wrong between ranks, one case per function: ``faults.py CASE`` under mpiexec, or on threads."""

import ctypes
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from disttrain.collectives import (
    CollectiveError,
    CollectiveMismatch,
    Communicator,
    RankFailed,
    connect,
    memory,
    peers,
    rank0_first,
    run_ranks,
    watch,
)
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.shared_reduce import InPlace

AWAY_S = 4.0 if {"far", "far-pairs"} & set(sys.argv) else 1.2
"""How long a rank stays away. Whoever has to ask takes longer to name it."""


def other_op(comm: Communicator, x: np.ndarray) -> None:
    comm.all_reduce(x, x, op="sum" if comm.rank else "max")


def other_shape(comm: Communicator, x: np.ndarray) -> None:
    y = np.zeros((2, 3) if comm.rank else (3, 2))
    comm.all_reduce(y, y)


def other_count(comm: Communicator, x: np.ndarray) -> None:
    y = np.zeros(3 if comm.rank else 4)
    comm.broadcast(y)


def other_dtype(comm: Communicator, x: np.ndarray) -> None:
    y = np.zeros(4, np.float32 if comm.rank else np.int32)
    comm.all_reduce(y, y)


def other_average(comm: Communicator, x: np.ndarray) -> None:
    comm.all_reduce(x, x, averaged=2 if comm.rank else 1)


def other_root(comm: Communicator, x: np.ndarray) -> None:
    comm.broadcast(x, root=min(comm.rank, 1))


def other_verb(comm: Communicator, x: np.ndarray) -> None:
    if comm.rank:
        comm.all_reduce(x, x)
    else:
        comm.barrier()


def other_order(comm: Communicator, x: np.ndarray) -> None:
    y = np.zeros(7)
    first, second = (x, y) if comm.rank else (y, x)
    works = [comm.start_all_reduce(first, first), comm.start_all_reduce(second, second)]
    try:
        works[0].wait()
    finally:
        # The second pair differs too; both calls are over on all ranks before the next case.
        expect(works[1].wait)


def other_tag(comm: Communicator, x: np.ndarray) -> None:
    comm.all_gather(x[:1], np.zeros(comm.size), tag=(0, 1, min(comm.rank, 1)))


def split_or_barrier(comm: Communicator, x: np.ndarray) -> None:
    if comm.rank:
        comm.barrier()
    else:
        comm.split(0)


def message_of_other_dtype(comm: Communicator, x: np.ndarray) -> None:
    if comm.rank == 0:
        comm.send(np.zeros(3, np.float32), 1)
    elif comm.rank == 1:
        comm.recv(np.zeros(3), 0)
    else:
        raise CollectiveMismatch("not for this rank: rank 0: rank 1:")


def skipped_call(comm: Communicator, x: np.ndarray) -> None:
    if comm.rank == 0:
        comm.all_reduce(x, x, tag=(0, 7, 1))
    comm.all_reduce(x, x, tag=(0, 7, 2))


def message_of_other_shape(comm: Communicator, x: np.ndarray) -> None:
    if comm.rank == 0:
        comm.send(np.zeros(3), 1)
    elif comm.rank == 1:
        comm.recv(np.zeros(4), 0)
    else:
        raise CollectiveMismatch("not for this rank: rank 0: rank 1:")


MISMATCHES = (other_op, other_shape, other_count, other_dtype, other_average, other_root, other_verb, other_order,
              other_tag, split_or_barrier, message_of_other_shape, message_of_other_dtype, skipped_call)  # fmt: skip


class Later:
    """A communicator whose calls are started, and waited for once they are done."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm

    def __getattr__(self, name: str) -> Any:
        start = getattr(self._comm, f"start_{name}", None)
        if start is None:
            return getattr(self._comm, name)

        def call(*args: Any, **options: Any) -> None:
            work = start(*args, **options)
            while not work.done:
                pass
            work.wait()

        return call


def expect(call: Callable[[], None]) -> str:
    try:
        call()
    except CollectiveMismatch as error:
        return str(error)
    raise AssertionError("no mismatch was found")


def check_all_mismatches(world: Communicator) -> list[dict[str, str]]:
    """Return the texts of :func:`check_mismatches` in the world, there for later, and in a group."""
    group = world.split(world.rank % 2 if world.size >= 4 else 0, -world.rank)
    assert group is not None
    return [check_mismatches(world), check_mismatches(Later(world)), check_mismatches(group)]  # type: ignore[arg-type]


def check_mismatches(comm: Communicator) -> dict[str, str]:
    """Return the text of the error by case, after checking that nothing was summed and the group works."""
    texts = {}
    for case in MISMATCHES:
        if case is skipped_call:
            continue
        x = np.full(4, float(comm.rank))
        texts[case.__name__] = expect(lambda c=case, x=x: c(comm, x))
        assert x.tolist() == [comm.rank] * 4, "a mismatched call changed an array"
        total = np.ones(1)
        comm.all_reduce(total, total)
        assert total.tolist() == [comm.size], "the group does not work after a mismatch"
    # Rank 0 raises in the call that the others skip, they in their next one.
    x = np.ones(4)
    texts["skipped_call"] = expect(lambda: skipped_call(comm, x))
    return texts


def report(rank: int, value: object) -> None:
    """Leave what a rank has to say in a file: mpiexec mixes their lines."""
    unfinished = Path(sys.argv[2]) / f"unfinished{rank}"
    unfinished.write_text(json.dumps(value))
    unfinished.rename(unfinished.with_name(f"rank{rank}"))


def mismatch() -> None:
    comm = connect()
    report(comm.rank, check_all_mismatches(comm))


def leave_together(reports: int) -> None:
    """Leave without a goodbye once so many ranks have reported: mpiexec kills the others when one leaves."""
    while len(list(Path(sys.argv[2]).glob("rank*"))) < reports:
        time.sleep(0.01)
    os._exit(0)


def mixed() -> None:
    """Two ranks on each process."""
    env = WorkerEnv.from_environ()
    env = replace(
        env, rank=2 * env.process, hosted=2, world_size=2 * env.processes, local_world_size=2 * env.processes
    )
    run_ranks(env, lambda rank: report(rank, check_all_mismatches(connect())))


def crossed() -> None:
    """Two ranks on each of two processes, and each waits for another one."""
    watch.NOTICE_S = 0.3
    env = WorkerEnv.from_environ()
    env = replace(env, rank=2 * env.process, hosted=2, world_size=4, local_world_size=4, timeout=2.0)

    def body(rank: int) -> None:
        world = connect()
        if rank in (1, 3):
            world.recv(np.zeros(1), 3 - rank)
        world.barrier()

    try:
        run_ranks(env, body)
    except RankFailed as failure:
        report(env.process, str(failure))
    leave_together(2)


def late_message() -> None:
    os.environ.update(replace(WorkerEnv.from_environ(), timeout=0.3).to_environ())
    comm = connect()
    if comm.rank < 2:
        try:
            comm.recv(np.zeros(1), 1 - comm.rank)
        except CollectiveError as error:
            report(comm.rank, str(error))
    leave_together(2)


def timeout() -> None:
    os.environ.update(replace(WorkerEnv.from_environ(), timeout=0.3).to_environ())
    comm = connect()
    other = comm.split(0)
    assert other is not None
    mine = comm if comm.rank == 0 else other
    texts = []
    for _ in range(2):  # the second call finds the group broken, at once
        try:
            mine.barrier()
        except CollectiveError as error:
            texts.append(f"{type(error).__name__}: {error}")
    report(comm.rank, texts)
    leave_together(comm.size)


def interrupted() -> None:
    """Ctrl-C in the middle of a call, when the others are there: in the first one, and in one that was made before."""
    comm = connect()
    texts = []
    reduce = InPlace.reduce

    def reduce_and_be_interrupted(way: InPlace) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        reduce(way)

    for before in (0, 2):
        part = comm.split(0)
        assert part is not None
        part.timeout = 0.3
        x = part.empty(20_000, np.float32)
        for _ in range(before):
            part.all_reduce(x, x)
        if comm.rank == 1:
            InPlace.reduce = reduce_and_be_interrupted  # type: ignore[method-assign]
            try:
                part.all_reduce(x, x)
            except KeyboardInterrupt:
                texts.append("interrupted")
            InPlace.reduce = reduce  # type: ignore[method-assign]
        for _ in range(2):  # who was interrupted must not take part again: its part of the sum is missing
            try:
                part.all_reduce(x, x)
            except CollectiveError as error:
                texts.append(f"{type(error).__name__}: {error}".splitlines()[0])
    report(comm.rank, texts)
    comm.barrier()  # the world is as it was


def late_in_a_group() -> None:
    """Two groups time out; the world goes on and ends as ever."""
    comm = connect()
    texts = []
    for _ in range(2):
        part = comm.split(0)
        assert part is not None
        part.timeout = 0.3
        if comm.rank == 0:
            try:
                if texts:
                    part.recv(np.ones(3), 1)
                else:
                    part.all_reduce(np.ones(3), np.ones(3))
            except CollectiveError as error:
                texts.append(str(error))
    comm.barrier()
    report(comm.rank, texts)


def uncaught() -> None:
    comm = connect()
    if comm.rank == 1:
        raise LookupError("the planted error")
    comm.barrier()


def system_exit() -> None:
    comm = connect()
    if comm.rank == 1:
        sys.exit(3)
    comm.barrier()


def early_end() -> None:
    comm = connect()
    if comm.rank == 0:
        comm.barrier()


def killed() -> None:
    comm = connect()
    part = comm.split(comm.rank // 2)
    assert part is not None
    x = np.zeros(1 << 20)
    part.all_reduce(x, x)
    comm.all_gather(x[: 1 << 17], x[: comm.size << 17])
    comm.barrier()
    os.kill(os.getpid(), signal.SIGKILL)


def clean() -> None:
    comm = connect()
    assert connect() is comm
    x = np.full(2, comm.rank)
    comm.all_reduce(x, x, op="max")
    report(comm.rank, [comm.rank, comm.size, comm.transport, x.tolist()])


def stays_away(how: Callable[[], None]) -> None:
    """The last rank does something else for a while before it comes."""
    watch.NOTICE_S = 0.3
    comm = connect()
    x = np.ones(3)
    comm.all_reduce(x, x)
    if comm.rank == comm.size - 1:
        how()
    comm.all_reduce(x, x)
    comm.barrier()


def sleep_over_the_data() -> None:
    time.sleep(AWAY_S)


def hold_the_interpreter() -> None:
    """In C, without releasing Python's lock, in a call that goes on after a signal."""
    read, write = os.pipe()
    if os.fork() == 0:
        time.sleep(AWAY_S)
        os.write(write, b"!")
        os._exit(0)
    ctypes.PyDLL(None).read(read, ctypes.create_string_buffer(1), 1)


def stop_and_be_woken() -> None:
    pid = os.getpid()
    if os.fork() == 0:
        time.sleep(AWAY_S)
        os.kill(pid, signal.SIGCONT)
        os._exit(0)
    os.kill(pid, signal.SIGSTOP)


def sleeps() -> None:
    stays_away(sleep_over_the_data)


def holds() -> None:
    stays_away(hold_the_interpreter)


def stops() -> None:
    stays_away(stop_and_be_woken)


def sends_late() -> None:
    watch.NOTICE_S = 0.3
    comm = connect()
    if comm.rank == 0:
        comm.recv(np.zeros(3), 1)
    else:
        sleep_over_the_data()
        comm.send(np.ones(3), 0)


def first() -> None:
    """Rank 0 prepares longer than any timeout, and the others see what it made."""
    os.environ.update(replace(WorkerEnv.from_environ(), timeout=0.2).to_environ())
    watch.NOTICE_S = 0.3
    logging.getLogger("disttrain").setLevel(logging.INFO)
    logging.basicConfig(format="%(message)s")
    path = Path(sys.argv[2]) / "made"
    with rank0_first("making the file"):
        if connect().rank == 0:
            time.sleep(1.0)
            path.write_text("by rank 0")
        assert path.read_text() == "by rank 0"


def evaluates() -> None:
    """Rank 0 goes on alone, for longer than any timeout, after the others have ended."""
    os.environ.update(replace(WorkerEnv.from_environ(), timeout=0.2).to_environ())
    watch.NOTICE_S = 0.3
    comm = connect()
    comm.barrier()
    if comm.rank == 0:
        time.sleep(1.5)
        print("evaluated")


def use_up_what_is_shared(comm: Communicator) -> list[np.ndarray]:
    """Take all of a rank's part but 1 to 2 MiB, too little for a channel; free again once nobody has the result."""
    memory = comm._host.transport.memory
    assert memory is not None
    taken = []
    for nbytes in (1 << 30, 1 << 20):
        with suppress(MemoryError):
            while True:
                taken.append(memory.take(nbytes))
    taken.pop()
    return taken


def no_room() -> None:
    """Rank 1 has used up its part of the memory that the processes share: all are told, and groups are made later."""
    comm = connect()
    taken = use_up_what_is_shared(comm) if comm.rank == 1 else []
    try:
        comm.split(0)
        raise AssertionError("a group was made without memory")
    except MemoryError as error:
        report(comm.rank, str(error))
    taken.clear()
    comm.barrier()
    group = comm.split(0)
    assert group is not None
    x = np.ones(3)
    group.all_reduce(x, x)
    assert set(x.tolist()) == {comm.size}


def no_room_on_a_node() -> None:
    """Rank 1 has used up its part of the memory of its node: a new group goes through MPI."""
    comm = connect()
    taken = use_up_what_is_shared(comm) if comm.rank == 1 else []
    group = comm.split(0)
    assert group is not None
    x = group.empty(100_000, np.float32)
    x[...] = comm.rank
    group.all_reduce(x, x)
    assert set(x.tolist()) == {sum(range(comm.size))}
    taken.clear()
    group.close()


def wrong_world() -> None:
    os.environ.update(WorkerEnv(world_size=3, local_world_size=3, processes=3).to_environ())
    try:
        connect()
    except RuntimeError as error:
        report(int(os.environ["PMI_RANK"]), str(error))
    leave_together(2)


def beside_mpi() -> None:
    """A script that uses MPI itself, before and after it has connected."""
    from mpi4py import MPI

    before = MPI.COMM_WORLD.allreduce(1)
    comm = connect()
    x = np.ones(1)
    comm.all_reduce(x, x)
    report(comm.rank, [comm.transport, before, x[0], MPI.COMM_WORLD.allreduce(1)])


def without_shared_memory() -> None:
    def fail(nbytes: int) -> int:
        raise OSError("planted")

    memory._anonymous_file = fail


def as_if_on_other_nodes(processes: int) -> None:
    """As if each node had so many processes, and they saw nothing of those elsewhere."""
    read = peers.Peers._read
    mine = WorkerEnv.from_environ().process // processes
    peers.Peers._read = lambda self, process: read(self, process) if process // processes == mine else None
    peers.Peers.host_of = lambda self, process: f"node{process // processes}"


if __name__ == "__main__":
    if "without-shared-memory" in sys.argv:
        without_shared_memory()
    if "far" in sys.argv:
        as_if_on_other_nodes(1)
    if "far-pairs" in sys.argv:
        as_if_on_other_nodes(2)
    globals()[sys.argv[1]]()
