"""Ranks that load Open MPI: direct children too, in the world of the mpiexec beside the library."""

import os
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from disttrain.launcher import openmpi

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("DISTTRAIN_TEST_OPEN_MPI", "")

Launch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def launch(tmp_path: Path, runtime: Path) -> Launch:
    """``launch(script, *options)`` runs a job where Open MPI is installed."""
    if not PYTHON:
        pytest.skip("set DISTTRAIN_TEST_OPEN_MPI to an interpreter that has disttrain's needs and openmpi")

    def launch(script: str, *options: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "script.py").write_text(textwrap.dedent(script))
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("DISTTRAIN_", "OMPI_", "PMI"))}
        return subprocess.run(
            [PYTHON, "-m", "disttrain", "launch", *options, "script.py"],
            cwd=tmp_path,
            env=keep | {"PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(runtime)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return launch


def assert_nothing_left(runtime: Path, before: set[str]) -> None:
    mark = os.fsencode(runtime)
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            assert mark not in Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
    assert {n for n in os.listdir("/dev/shm") if n.startswith("sm_segment")} <= before


def segments() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("sm_segment")}


def test_without_mpi_nobody_looks_for_a_library(monkeypatch):
    monkeypatch.setattr(openmpi, "find_spec", lambda _: None)
    monkeypatch.setattr(openmpi, "_is_installed", lambda _: pytest.fail("asked for a library of MPI"))

    assert openmpi.find_mpiexec({}) is None


@pytest.mark.parametrize("abi", ["mpich", "impi"])
def test_another_mpi_that_was_chosen_needs_no_mpiexec(abi):
    assert openmpi.find_mpiexec({"MPI4PY_MPIABI": abi}) is None


def test_what_mpiexec_says_is_told_if_it_starts_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="has not started its processes"):
        openmpi.World("/bin/false", 2, tmp_path / "world")

    assert not (tmp_path / "world").exists()


def test_ranks_of_open_mpi_are_one_world(launch, runtime):
    before = segments()

    done = launch(
        """
        import os
        import disttrain as dt
        from disttrain import distributed as dist
        dist.init_process_group()
        total = dt.ones(1)
        dist.all_reduce(total)
        print(dist.get_rank(), total.item(), open(f"/proc/{os.getppid()}/cmdline").read().split(chr(0))[2:4])
        """,
        *("-n", "2"),
    )

    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"[{r}] {r} 2.0 ['disttrain', 'launch']" for r in (0, 1)]
    assert "Open MPI" in done.stderr
    assert_nothing_left(runtime, before)


def test_a_killed_rank_of_open_mpi_is_named_and_the_job_restarted(launch, runtime):
    before = segments()

    done = launch(
        """
        import os
        import disttrain as dt
        from disttrain import distributed as dist
        dist.init_process_group()
        total = dt.ones(1)
        dist.all_reduce(total)
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and dist.get_rank() == 1:
            os.kill(os.getpid(), 9)
        dist.all_reduce(total)
        print("whole", total.item())
        """,
        *("-n", "2", "--max-restarts", "1"),
    )

    assert done.returncode == 0, done.stderr
    assert "whole 4.0" in done.stdout
    assert "was killed by SIGKILL" in done.stderr
    assert_nothing_left(runtime, before)
