"""Every verb on every transport at 1, 2, 3, 4 and 8 ranks, against NumPy.

Each transport has every dtype that it accepts at some number of ranks, and at the others (``--brief``) two of them.
"""

import pytest
from on_gpu import OnGpu

from disttrain.collectives import connect, run_ranks
from disttrain.collectives.env import WorkerEnv

WITHOUT_MPI = [(2, ["without-mpi"]), *((n, ["--brief", "without-mpi"]) for n in (3, 4, 8))]
"""The same channels, whose processes have found each other in another way."""
THROUGH_MPI = [
    (2, ["without-shared-memory"]),
    *((n, ["--brief", "without-shared-memory"]) for n in (3, 4, 8)),
]
ON_GPU = [
    *[(2, [f"gpu={transport}"]) for transport in ("nccl", "mpi")],
    *[(n, ["--brief", f"gpu={transport}"]) for n in (3, 4) for transport in ("nccl", "mpi")],
    (4, ["--brief", "--nodes", "0,0,1,1", "gpu=mpi"]),
    *[(2, ["--brief", f"gpu={transport}", "without-mpi"]) for transport in ("nccl", "shm")],
]
"""With the stand-in for a GPU (``tests/lib/fake_cupy.py``)."""
SEVERAL_NODES = [
    (2, ["--nodes", "0,1"]),
    (3, ["--brief", "--nodes", "0,1,0"]),
    (4, ["--nodes", "0,0,1,1"]),
    (4, ["--brief", "--nodes", "0,0,0,1"]),
    (8, ["--brief", "--nodes", "0,0,1,1,2,2,2,1"]),
]
"""Nodes of equal size, of different sizes, and such that share a subtree of the ranks."""


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_verbs_on_threads(load_program, ranks):
    verbs = load_program("verbs.py")

    digests = run_ranks(
        WorkerEnv(world_size=ranks, hosted=ranks), lambda _: verbs.check_all(connect(), exact=True)
    )

    assert len(set(digests)) == 1


@pytest.mark.parametrize("ranks", [1, 4])
def test_verbs_on_threads_with_a_gpu(load_program, cupy, ranks):
    verbs = load_program("verbs.py")

    digests = run_ranks(
        WorkerEnv(world_size=ranks, hosted=ranks), lambda _: verbs.check_all(OnGpu(connect()), exact=True)
    )

    assert len(set(digests)) == 1


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (2, []),
        (3, ["--brief"]),
        (4, []),
        (8, ["--brief"]),
        *WITHOUT_MPI,
        *THROUGH_MPI,
        *SEVERAL_NODES,
        *ON_GPU,
    ],
)
def test_verbs_on_processes_and_the_same_bits_as_on_threads(load_program, mpiexec, processes, options):
    verbs = load_program("verbs.py")
    ranks_tried = [ranks for ranks, fixed in verbs.worlds(processes) if fixed]
    expected = {
        ranks: run_ranks(
            WorkerEnv(world_size=ranks, hosted=ranks, fixed_order=True),
            lambda _: verbs.digest(connect(), exact=True),
        )[0]
        for ranks in ranks_tried
    }

    job = mpiexec(processes, "verbs.py", *options, timeout=100)

    assert job.returncode == 0, job.stdout + job.stderr
    if "without-shared-memory" in options:
        assert "the processes of this node share no memory, arrays go through MPI: " in job.stderr
    else:
        assert job.stderr == ""
    assert dict(line.split() for line in job.stdout.splitlines()) == {str(r): d for r, d in expected.items()}
