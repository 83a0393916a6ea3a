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
@pytest.mark.parametrize(
    ("processes", "transport"),
    [
        (n, transport)
        for n in (2, 3, 4, 8)
        for transport in ("shared", "shm", "mpi", "nodes")
        if (n, transport) != (2, "nodes")  # two nodes of one process each are nothing but MPI
    ],
)
def test_on_processes(mpiexec, processes, transport):
    halves = ",".join(str(int(p >= processes // 2)) for p in range(processes))
    options = {
        "shared": [],
        "shm": ["without-mpi"],
        "mpi": ["without-shared-memory"],
        "nodes": ["--nodes", halves],
    }[transport]
    job = mpiexec(
        processes, "random_programs.py", "0", "60" if processes < 8 else "15", *options, timeout=110
    )

    assert job.returncode == 0, job.stdout + job.stderr


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("processes", "options"),
    [*[(n, [f"gpu={way}"]) for n in (2, 3, 4) for way in ("nccl", "mpi")], (3, ["gpu=nccl", "without-mpi"])],
)
def test_on_the_gpus_of_processes(mpiexec, processes, options):
    """With the stand-in for GPUs, whose streams dawdle so that nothing is there before it is waited for."""
    env = {"FAKE_GPU_JITTER_S": "0.001"}

    job = mpiexec(processes, "random_programs.py", "0", "30", *options, timeout=110, env=env)

    assert job.returncode == 0, job.stdout + job.stderr
