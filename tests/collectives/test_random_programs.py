"""Hundreds of random programs of collectives, on threads and on processes, against NumPy."""

import pytest

from disttrain.collectives import connect, run_ranks
from disttrain.collectives.env import WorkerEnv


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_on_threads(load_program, ranks):
    programs = load_program("random_programs.py")

    def body(rank):
        for seed in range(60):
            programs.run(connect(), seed)

    run_ranks(WorkerEnv(world_size=ranks, hosted=ranks, local_world_size=ranks, fixed_order=True), body)


@pytest.mark.mpi
@pytest.mark.parametrize("processes", [2, 3, 4, 8])
@pytest.mark.parametrize("options", [[], ["without-shared-memory"]], ids=["shared", "mpi"])
def test_on_processes(mpiexec, processes, options):
    job = mpiexec(
        processes, "random_programs.py", "0", "60" if processes < 8 else "15", *options, timeout=110
    )

    assert job.returncode == 0, job.stdout + job.stderr
