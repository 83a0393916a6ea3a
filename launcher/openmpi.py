"""Worlds of Open MPI, whose ranks only its own ``mpiexec`` can connect.

That ``mpiexec``, the one beside the library, is started with a placeholder for each rank. A placeholder hands over the
variables by which its rank finds Open MPI's server (PMIx), and waits. The launcher then starts the rank itself with
these variables: so it is a direct child, as with every other MPI.

This file is also the placeholder: ``python -I -S openmpi.py FOLDER``.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

_THEIRS = re.compile(r"(PMIX|OMPI|PRTE|OPAL|PMI)_\w+")
_PATIENCE = 20.0  # seconds in which mpiexec is to have started the placeholders
_QUIET = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    # How many processes there are, and on which cores, the launcher decides.
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
}
DEFAULTS = {"OMPI_MCA_btl": "self,sm", "OMPI_MCA_pml": "ob1"}
"""What ranks of one node get unless they are set: shared memory, and no search for networks, which takes a second."""

_PROBE = r"""
import re
from mpi4py import rc
rc.initialize = False
from mpi4py import MPI
if MPI.Get_library_version().startswith("Open MPI"):
    print(re.search(r"(/\S*/libmpi\.so\S*)", open("/proc/self/maps").read())[1])
"""


def find_mpiexec(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the ``mpiexec`` of the Open MPI that ranks would load; None if they would load another MPI, or none.

    Raises:
        RuntimeError: it is not where it should be, beside the library.
    """
    if find_spec("mpi4py") is None:
        return None
    abi = environ.get("MPI4PY_MPIABI", "")
    if abi.startswith(("mpich", "impi")) or (
        not abi and (_is_installed("mpich") or _is_installed("impi-rt"))
    ):
        return None
    if _is_installed("openmpi"):
        library = Path(sys.prefix) / "lib" / "libmpi.so"
    else:  # one of the system's, or none: only who loads it knows
        asked = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=60)
        if not asked.stdout.strip():
            return None
        library = Path(asked.stdout.strip())
    for folder in library.resolve().parents:
        for name in ("mpiexec.openmpi", "mpiexec"):
            if os.access(folder / "bin" / name, os.X_OK):
                return str(folder / "bin" / name)
    raise RuntimeError(
        f"ranks load Open MPI from {library}, but there is no mpiexec beside it; install that too"
    )


def _is_installed(name: str) -> bool:
    from importlib import metadata

    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


class World:
    """An ``mpiexec`` with ``size`` placeholders. Its files are in ``folder``, which is the user's alone.

    Raises:
        RuntimeError: they did not start; the text is what ``mpiexec`` said.
    """

    def __init__(self, mpiexec: str, size: int, folder: Path) -> None:
        self._folder, self._size = folder, size
        folder.mkdir()
        placeholder = [sys.executable, "-I", "-S", os.path.realpath(__file__), str(folder)]
        self._popen = subprocess.Popen(
            [mpiexec, "-n", str(size), *placeholder],
            env={**os.environ, **_QUIET, "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self._popen.pid
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not all(self._letter(rank).exists() for rank in range(self._size)):
            if self._popen.poll() is not None or time.monotonic() > deadline:
                self._end()
                assert self._popen.stdout is not None
                said = self._popen.stdout.read().decode(errors="replace").strip()
                self.close()
                raise RuntimeError(f"Open MPI's mpiexec has not started its processes: {said}")
            time.sleep(0.005)

    def _letter(self, rank: int) -> Path:
        return self._folder / f"rank{rank}.json"

    def environ(self, rank: int) -> dict[str, str]:
        """Return the variables that make a process this rank of the world."""
        variables: dict[str, str] = json.loads(self._letter(rank).read_text())
        return variables

    def close(self) -> None:
        """End ``mpiexec`` and the placeholders, and remove their files."""
        self._end()
        assert self._popen.stdout is not None
        self._popen.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGTERM)
        try:
            self._popen.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._popen.wait()


def hold_place(folder: str) -> None:
    """Be a placeholder until ``mpiexec`` ends it."""
    theirs = {name: value for name, value in os.environ.items() if _THEIRS.fullmatch(name)}
    rank = os.environ["OMPI_COMM_WORLD_RANK"]
    unfinished = os.path.join(folder, f"unfinished{rank}")
    with open(unfinished, "w", encoding="utf-8") as file:
        json.dump(theirs, file)
    os.rename(unfinished, os.path.join(folder, f"rank{rank}.json"))
    parent = os.getppid()
    while os.getppid() == parent:  # the launcher ends mpiexec, and mpiexec this
        time.sleep(1.0)


if __name__ == "__main__":
    hold_place(sys.argv[1])
