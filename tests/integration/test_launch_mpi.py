"""Worlds of real MPI processes under ``disttrain launch``: they form, they fail, and nothing of them is left."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from folded import unfold

pytest.importorskip("mpi4py")
pytestmark = pytest.mark.mpi

ROOT = Path(__file__).resolve().parents[2]
PROMISED = 2.0  # seconds from a failure to the end of the job


@pytest.fixture
def launch(tmp_path):
    jobs = []

    def launch(script: str, *options: str) -> subprocess.Popen[str]:
        (tmp_path / "script.py").write_text(textwrap.dedent(script))
        job = subprocess.Popen(
            [sys.executable, "-m", "disttrain", "launch", *options, "script.py"],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        jobs.append(job)
        return job

    yield launch
    for job in jobs:
        job.kill()  # the guardian does the rest
        job.communicate()


def read_until_all_ready(job: subprocess.Popen[str], ranks: int) -> dict[int, list[str]]:
    """Return rank → the words after "ready" of each rank."""
    assert job.stdout is not None
    words = {}
    while len(words) < ranks:
        line = job.stdout.readline()
        assert line, job.communicate()[1]
        label, ready, *rest = line.split()
        assert ready == "ready"
        words[int(label.strip("[]"))] = rest
    return words


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_the_processes_form_one_world(launch, processes):
    job = launch(
        """
        from mpi4py import MPI
        world = MPI.COMM_WORLD
        print(world.rank, world.size, world.allreduce(world.rank))
        """,
        "-n", str(processes),
    )  # fmt: skip

    out, err = job.communicate(timeout=20)

    assert (job.returncode, err) == (0, "")
    total = sum(range(processes))
    assert sorted(out.splitlines()) == [f"[{r}] {r} {processes} {total}" for r in range(processes)]


def test_mpi_may_be_started_late_or_not_at_all(launch):
    job = launch(
        """
        import os, pathlib
        pathlib.Path("first" + os.environ["RANK"]).touch()
        while len(list(pathlib.Path().glob("first*"))) < 2:
            pass
        from mpi4py import MPI
        MPI.COMM_WORLD.Barrier()
        MPI.Finalize()
        print("done")
        """,
        "-n", "2",
    )  # fmt: skip

    out, err = job.communicate(timeout=20)

    assert (job.returncode, err) == (0, "")
    assert sorted(unfold(out).splitlines()) == ["[0] done", "[1] done"]


IN_A_COLLECTIVE = """
    import os, re, signal
    from mpi4py import MPI
    world = MPI.COMM_WORLD
    window = MPI.Win.Allocate_shared(1 << 20, 1, comm=world)  # shared memory beside MPI's own
    names = set(re.findall(r"/dev/shm/(mpich\\S*)", open("/proc/self/maps").read()))
    print("ready", os.getpid(), *names, flush=True)
    world.Barrier()
    if world.rank == 1:
        {fault}
    world.Barrier()  # the others are stuck here
    """


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("raise ValueError('bad batch')", 1, "raised ValueError: bad batch"),
        ("raise SystemExit(3)", 3, "left with exit code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "was killed by SIGKILL"),
        ("os._exit(0)", 1, "left with code 0 before the end"),
        ("world.Abort(5)", 5, "called MPI_Abort with code 5"),
    ],
)
def test_a_failure_ends_ranks_that_are_stuck_in_mpi(launch, fault, code, said):
    job = launch(IN_A_COLLECTIVE.format(fault=fault), "-n", "3")
    words = read_until_all_ready(job, 3)

    _, err = job.communicate(timeout=PROMISED)

    assert job.returncode == code
    report = err[err.index("disttrain: ") :]
    assert report.startswith("disttrain: rank 1 (host ")
    assert said in report.splitlines()[0]
    assert_gone(words)


def test_a_launcher_that_is_killed_leaves_no_shared_memory(launch):
    job = launch(IN_A_COLLECTIVE.format(fault="signal.pause()"), "-n", "2")
    words = read_until_all_ready(job, 2)

    job.send_signal(signal.SIGKILL)
    job.wait()

    deadline = time.monotonic() + PROMISED
    while time.monotonic() < deadline and (running(words) or left_in_shm(words)):
        os.sched_yield()
    assert_gone(words)


def running(words: dict[int, list[str]]) -> list[str]:
    """Return the pids that run; a zombie, which has no memory map, waits for the system's init only."""

    def runs(pid: str) -> bool:
        try:
            return Path(f"/proc/{pid}/maps").read_bytes() != b""
        except OSError:
            return False

    return [pid for pid, *_ in words.values() if runs(pid)]


def left_in_shm(words: dict[int, list[str]]) -> set[str]:
    return {n for _, *names in words.values() for n in names} & set(os.listdir("/dev/shm"))


def assert_gone(words: dict[int, list[str]]) -> None:
    assert running(words) == []
    assert left_in_shm(words) == set()


def test_ranks_of_ours_over_mpi(launch):
    pytest.importorskip("disttrain.collectives.world")
    job = launch(
        """
        import numpy as np
        from disttrain.collectives import connect
        comm = connect()
        x = np.full(3, float(comm.rank + 1))
        comm.all_reduce(x, x)
        print(comm.rank, comm.size, x[0])
        """,
        "-n", "3", "--ranks", "4",
    )  # fmt: skip

    out, err = job.communicate(timeout=20)

    assert job.returncode == 0
    assert err.startswith("disttrain: communicating over mpi, ")
    assert err.count("\n") == 1
    assert sorted(out.splitlines()) == [f"[{r}] {r} 4 10.0" for r in range(4)]
