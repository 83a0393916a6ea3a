"""The transport between processes of one host that needs no MPI: all goes through memory that they share."""

import os
from functools import partial

from disttrain.collectives import pmi
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.errors import TransportUnavailable
from disttrain.collectives.memory import SPARE_BYTES, NodeMemory, Unshared, part_bytes
from disttrain.collectives.output import let_output_be_read
from disttrain.collectives.shared import open_shared
from disttrain.collectives.transport import Channel, Mailbox, exchange_hosts


class ShmTransport:
    """The processes of a job on one host.

    They find each other through the launcher (:mod:`.pmi`), and have no need of it afterwards.

    Raises:
        TransportUnavailable: they are on several hosts, or cannot share memory; says why.
        RuntimeError: other processes were started than the job has.
    """

    name = "shm"
    implementation = "shared memory"

    def __init__(self, env: WorkerEnv) -> None:
        if env.local_world_size != env.world_size:
            raise TransportUnavailable(
                f"the shm transport connects processes of one host, and of the {env.world_size} ranks of this job "
                f"{env.local_world_size} are on this one; use --transport mpi"
            )
        self._connection = pmi.of_process()
        pmi.check_size(self._connection, env)
        gather = partial(self._connection.gather, timeout=env.timeout)
        self.hosts = exchange_hosts(env, gather)
        self.nodes = [0] * env.processes
        try:
            memory = NodeMemory(env.process, gather, part_bytes(env.processes), SPARE_BYTES)
        except Unshared as error:
            raise TransportUnavailable(
                f"the processes of this job share no memory: {error}; use --transport mpi"
            ) from error
        self.memory: NodeMemory | None = memory
        self.world: Channel = open_shared(memory, range(env.processes), gather)

    def open_mailbox(self) -> Mailbox:
        raise TransportUnavailable(
            "a process of this job cannot look at the others through /proc, although it shares memory with them; "
            "look for a script that has closed files which are not its own, or use --transport mpi"
        )

    def abort(self, code: int) -> None:
        let_output_be_read()
        os._exit(code)  # whoever has started the job ends the others

    def close(self) -> None:
        self.world.close()
        self._connection.release()
