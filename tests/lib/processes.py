"""A job of processes that find each other without MPI: children of the test, served by the launcher's PMI server.

What ``mpiexec`` does for tests of MPI, this does where there is none; nothing but the standard library is needed.
"""

import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from disttrain.launcher.pmi import PmiServer, environ

WITHOUT_MPI = "without-mpi"
"""The word among a program's arguments by which a test asks for this."""
_NO_MPI = 'raise ImportError("this test does without MPI", name="mpi4py")\n'
_SETTLE_S = 0.5
"""How long the others may take to end by themselves once one has failed."""


def run(
    n: int, command: Sequence[str], env: dict[str, str], cwd: Path, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run ``n`` processes of one job, in which ``mpi4py`` cannot be imported, and return how they ended.

    When one fails, the others are killed, and its exit code is that of the job.

    Raises:
        TimeoutError: they did not end in time; with what they have said.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "mpi4py.py").write_text(_NO_MPI)
        out, err = (stack.enter_context(open(folder / name, "w+b")) for name in ("out", "err"))
        server, selector = PmiServer([n], "test"), stack.enter_context(selectors.DefaultSelector())
        stack.callback(server.close)
        jobs: list[subprocess.Popen[bytes]] = []
        for rank in range(n):
            ours, theirs = server.connect(rank)
            selector.register(ours, selectors.EVENT_READ, rank)
            mine = env | environ(rank, n, theirs) | {"MPI_LOCALRANKID": str(rank), "MPI_LOCALNRANKS": str(n)}
            mine["PYTHONPATH"] = os.pathsep.join((str(folder), env["PYTHONPATH"]))
            job = subprocess.Popen(
                command, env=mine, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
            theirs.close()
            jobs.append(job)
            stack.callback(_end, job)
        code = _serve(server, selector, jobs, time.monotonic() + timeout)
        for job in jobs:
            _end(job)
        said = [Path(file.name).read_text() for file in (out, err)]
    if code is None:
        raise TimeoutError(f"no end within {timeout} s\n" + "\n".join(said))
    return subprocess.CompletedProcess(list(command), code, *said)


def _serve(
    server: PmiServer,
    selector: selectors.BaseSelector,
    jobs: Sequence[subprocess.Popen[bytes]],
    deadline: float,
) -> int | None:
    """Answer the processes until all have ended; return the exit code of the first that failed, None after too long."""
    code = 0
    while None in [job.poll() for job in jobs]:
        if time.monotonic() > deadline:
            return code or None
        for key, _ in selector.select(0.01):
            if not server.read(key.data):
                selector.unregister(key.fileobj)
        failed = [job.returncode for job in jobs if job.returncode]
        if failed and not code:
            code = failed[0]
            deadline = min(deadline, time.monotonic() + _SETTLE_S)
    return code or next((job.returncode for job in jobs if job.returncode), 0)


def _end(job: subprocess.Popen[bytes]) -> None:
    if job.poll() is None:
        os.killpg(job.pid, signal.SIGKILL)
    job.wait()
