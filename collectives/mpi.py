"""The MPI transport: one MPI process per process of the job, non-blocking calls, no half precision types."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy

from disttrain.collectives import mpi_library, slurm_pmi
from disttrain.collectives.control import MAX_BYTES
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.errors import PeerFailed, TransportUnavailable
from disttrain.collectives.memory import SPARE_BYTES, NodeMemory, Unshared, part_bytes
from disttrain.collectives.output import let_output_be_read
from disttrain.collectives.transport import Channel, Gather, Mailbox, Request, exchange_hosts
from disttrain.kernels.arrays import Array

PIECE_BYTES = 4 << 20
"""Larger messages go in pieces: MPI counts to 2**31 at most, and one piece is on its way while another is copied."""
_logger = logging.getLogger("disttrain")


class MpiChannel:
    """A channel over an MPI communicator whose ranks are in the order of the job's processes."""

    def __init__(self, mpi: Any, comm: Any) -> None:
        self.index: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self._mpi = mpi
        self._comm = comm

    def gather_headers(self, mine: bytes) -> tuple[Request, bytearray]:
        everyone = bytearray(len(mine) * self.size)
        byte = self._mpi.BYTE
        request = self._comm.Iallgather([mine, len(mine), byte], [everyone, len(mine), byte])
        return self._tested(request.Test), everyone

    def all_reduce(self, x: Array, op: str) -> Request:
        return self._tested(self._comm.Iallreduce(self._mpi.IN_PLACE, x, getattr(self._mpi, op.upper())).Test)

    def exchange(
        self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]], lane: int = 0
    ) -> Request:
        byte = self._mpi.BYTE
        requests = [self._comm.Irecv([x, x.nbytes, byte], p, lane) for p, x in _pieces(receives)]
        requests += [self._comm.Isend([x, x.nbytes, byte], p, lane) for p, x in _pieces(sends)]
        if len(requests) == 1:
            return self._tested(requests[0].Test)
        return self._tested(lambda: self._mpi.Request.Testall(requests))

    def _tested(self, test: Request) -> Request:
        def has_completed() -> bool:
            try:
                return test()
            except self._mpi.Exception as error:
                raise PeerFailed(
                    f"another process went away in the middle of a transfer ({error})"
                ) from error

        return has_completed

    def narrow(self, processes: Sequence[int]) -> tuple[Request, Callable[[], Channel]]:
        # MPI has no non-blocking form of this, and two groups may be split at the same time in one order here
        # and in the other order there: each blocks a thread of its own.
        some = self._comm.Get_group().Incl(processes)
        made: Future[Channel] = Future()

        def make() -> None:
            try:
                made.set_result(self._make(self._comm.Create_group(some), processes))
            except BaseException as error:
                made.set_exception(error)

        threading.Thread(target=make, name="disttrain split", daemon=True).start()
        return made.done, made.result

    def _make(self, comm: Any, processes: Sequence[int]) -> Channel:
        return MpiChannel(self._mpi, comm)

    def leave(self) -> Request:
        return self._tested(self._comm.Ibarrier().Test)

    def close(self) -> None:
        self._comm.Free()


def gather_over(mpi: Any, comm: Any) -> Gather:
    """Return what tells bytes to all processes of ``comm``."""

    def gather(mine: bytes) -> list[bytes]:
        everyone = bytearray(len(mine) * comm.Get_size())
        comm.Allgather([mine, len(mine), mpi.BYTE], [everyone, len(mine), mpi.BYTE])
        return [bytes(everyone[i : i + len(mine)]) for i in range(0, len(everyone), len(mine))]

    return gather


class MpiMailbox:
    """Letters over an MPI communicator of their own."""

    def __init__(self, mpi: Any, comm: Any) -> None:
        self._mpi = mpi
        self._comm = comm
        self._letter = bytearray(MAX_BYTES)
        self._sent: list[Any] = []
        self._expect()

    def _expect(self) -> None:
        self._next = self._comm.Irecv([self._letter, len(self._letter), self._mpi.BYTE], self._mpi.ANY_SOURCE)

    def send(self, process: int, data: bytes) -> None:
        self._sent = [(letter, request) for letter, request in self._sent if not request.Test()]
        self._sent.append((data, self._comm.Isend([data, len(data), self._mpi.BYTE], process)))

    def receive(self) -> bytes | None:
        status = self._mpi.Status()
        if not self._next.Test(status):
            return None
        data = bytes(self._letter[: status.Get_count(self._mpi.BYTE)])
        self._expect()
        return data

    def close(self) -> None:
        self._next.Cancel()
        self._next.Wait()
        self._comm.Free()


class MpiTransport:
    """The processes of a job as one MPI world.

    Raises:
        TransportUnavailable: mpi4py or an MPI library is missing.
        RuntimeError: MPI connected other processes than the job has.
    """

    name = "mpi"

    def __init__(self, env: WorkerEnv) -> None:
        self._mpi = mpi = mpi_library.load()
        self._finalize = not mpi.Is_initialized()
        if self._finalize:
            mpi_library.check_starter(mpi)
            mpi_library.choose_shared_memory(mpi, env)
            if slurm_pmi.is_server():
                slurm_pmi.stand_between()
            mpi.Init_thread(mpi.THREAD_MULTIPLE)
            mpi_library.unlink_shared_memory(mpi.COMM_WORLD)
        if mpi.Query_thread() < mpi.THREAD_MULTIPLE:
            raise TransportUnavailable(
                "MPI was initialised for fewer threads than MPI_THREAD_MULTIPLE; let disttrain initialise it "
                "(connect before anything else calls MPI), or use an MPI library that has it"
            )
        self.implementation = mpi_library.name_of(mpi)
        size = mpi.COMM_WORLD.Get_size()
        if size != env.processes:
            raise RuntimeError(
                f"MPI connected {size} process{'es' * (size > 1)}, but the job has {env.processes}: "
                f"this process was started by another MPI than the one it loaded ({self.implementation}). "
                f"{mpi_library.CURE}"
            )
        self._comm = mpi.COMM_WORLD.Split(0, env.process)
        self.hosts = exchange_hosts(env, gather_over(mpi, self._comm))
        self.memory: NodeMemory | None = None
        self.nodes: list[int] = []
        self.world = self._connect(env)

    def _connect(self, env: WorkerEnv) -> Channel:
        """Return the channel over all processes: through shared memory inside a node, through MPI between nodes."""
        from disttrain.collectives.nodes import Home, connect

        size, index = self._comm.Get_size(), self._comm.Get_rank()
        machine = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        node = machine.Split(env.node)
        first = numpy.array([index], numpy.int64)
        node.Bcast(first)  # the node goes by the lowest of its processes
        everyone = numpy.empty((size, 2), numpy.int64)
        self._comm.Allgather(numpy.array([first[0], node.Get_rank()], numpy.int64), everyone)
        firsts, places = everyone.T.tolist()
        self.nodes = [sorted(set(firsts)).index(first) for first in firsts]
        reason = ""
        home: Home | None = None
        if len(set(firsts)) < size:
            try:
                gather = gather_over(self._mpi, node)
                self.memory = NodeMemory(node.Get_rank(), gather, part_bytes(node.Get_size()), SPARE_BYTES)
                home = Home(self.nodes, places, self.memory)
            except Unshared as error:
                reason = str(error)
            if self._any(not home):
                home = self.memory = None
        node.Free()
        machine.Free()
        if home is not None:
            return connect(self._mpi, self._comm, home)
        if reason and index == first[0]:
            _logger.warning("the processes of this node share no memory, arrays go through MPI: %s", reason)
        return MpiChannel(self._mpi, self._comm)

    def _any(self, mine: bool) -> bool:
        """Return whether it is so for any process."""
        found = numpy.array([mine], numpy.int64)
        self._comm.Allreduce(self._mpi.IN_PLACE, found, self._mpi.MAX)
        return bool(found[0])

    def open_mailbox(self) -> Mailbox:
        return MpiMailbox(self._mpi, self._comm.Dup())

    def abort(self, code: int) -> None:
        let_output_be_read()
        self._mpi.COMM_WORLD.Abort(code)

    def close(self) -> None:
        self.world.close()
        if not isinstance(self.world, MpiChannel):
            self._comm.Free()
        if self._finalize and not self._mpi.Is_finalized():
            self._mpi.Finalize()


def _pieces(arrays: Sequence[tuple[int, Array]]) -> Iterator[tuple[int, Array]]:
    """Yield the bytes of flat arrays in pieces, of which MPI can count the bytes; nothing of empty arrays."""
    for process, x in arrays:
        data = x.view(numpy.uint8)
        for lo in range(0, data.size, PIECE_BYTES):
            yield process, data[lo : lo + PIECE_BYTES]
