"""Start real MPI processes for the tests of this folder, and run test programs in this process."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import hosts
import processes
import pytest

PROGRAMS = Path(__file__).parent / "programs"
ROOT = Path(__file__).parents[2]


def find_mpiexec() -> str | None:
    """The mpiexec of the MPI wheel that this interpreter loads, never just any from PATH."""
    return shutil.which("mpiexec", path=str(Path(sys.executable).parent))


def environment() -> dict[str, str]:
    """What a program of ``programs/`` runs with."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("DISTTRAIN_", "PMI", "OMPI_"))}
    paths = f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'lib'}"
    return environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@pytest.fixture
def mpiexec() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``mpiexec(n, program, *args)`` runs a file of ``programs/`` on ``n`` processes; none survives it.

    ``env`` adds to the environment; ``within`` is the command that starts mpiexec. With the word ``without-mpi`` among
    the arguments there is no MPI, and no mpiexec either.
    """
    path = find_mpiexec()

    def run(
        n: int,
        program: str,
        *args: str,
        timeout: float = 60,
        cwd: Path = PROGRAMS,
        env: dict[str, str] | None = None,
        within: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        program_argv = [sys.executable, "-W", "error", str(PROGRAMS / program), *args]
        if processes.WITHOUT_MPI in args:
            return processes.run(n, [*within, *program_argv], environment() | (env or {}), cwd, timeout)
        if path is None:
            pytest.skip('no mpiexec beside the interpreter; pip install "disttrain[mpi]"')
        command = [*within, path, "-n", str(n), *program_argv]
        job = subprocess.Popen(
            command, env=environment() | (env or {}), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
        try:
            out, err = job.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            job.send_signal(signal.SIGTERM)  # mpiexec ends its ranks; they are not in its process group
            out, err = job.communicate(timeout=10)
            pytest.fail(f"{program} on {n} processes did not end within {timeout} s\n{out}\n{err}")
        return subprocess.CompletedProcess(command, job.returncode, out, err)

    return run


@pytest.fixture
def on_hosts(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``on_hosts([2, 1], program, *args)`` runs a program with 2 processes on one host and 1 on another."""
    path = find_mpiexec()
    if path is None:
        pytest.skip('no mpiexec beside the interpreter; pip install "disttrain[mpi]"')
    if reason := hosts.why_not():
        pytest.skip(reason)

    def run(processes: list[int], program: str, *args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", str(PROGRAMS / program), *args]
        with hosts.Hosts(len(processes), tmp_path) as several:
            return several.mpiexec(path, processes, command, environment(), timeout=60)

    return run


@pytest.fixture
def load_program() -> Callable[[str], ModuleType]:
    """``load_program(name)`` imports a file of ``programs/`` so that its cases can run on threads."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(Path(name).stem, PROGRAMS / name)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
