"""Processes on several hosts: shared memory on each, MPI over a network between them."""

import pytest

from disttrain.collectives import connect, run_ranks
from disttrain.collectives.env import WorkerEnv

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("processes", [[2, 2], [1, 2]])
def test_verbs_and_the_same_bits_as_on_threads(load_program, on_hosts, processes):
    verbs = load_program("verbs.py")
    ranks_tried = [ranks for ranks, fixed in verbs.worlds(sum(processes)) if fixed]
    expected = {
        str(ranks): run_ranks(
            WorkerEnv(world_size=ranks, hosted=ranks, fixed_order=True),
            lambda _: verbs.digest(connect(), exact=True),
        )[0]
        for ranks in ranks_tried
    }
    nodes = ",".join(str(node) for node, n in enumerate(processes) for _ in range(n))

    job = on_hosts(processes, "verbs.py", "--brief", "--hosts", nodes)

    assert (job.returncode, job.stderr) == (0, ""), job.stdout
    assert dict(line.split() for line in job.stdout.splitlines()) == expected


def test_a_group_for_which_a_host_has_no_room_goes_through_mpi_on_all(on_hosts):
    job = on_hosts([2, 2], "faults.py", "no_room_on_a_node")

    assert (job.returncode, job.stdout) == (0, "")
    assert job.stderr == (
        "a group of 4 processes goes through MPI: the memory that the processes of a node share is used up\n"
    )
