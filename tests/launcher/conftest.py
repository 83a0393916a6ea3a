"""Real jobs through the real command line, and a check that nothing of them is left."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from folded import unfold

ROOT = Path(__file__).resolve().parents[2]


class Job:
    """A running command with everything that it has started."""

    def __init__(self, command: list[str], folder: Path, runtime: Path, **environ: str) -> None:
        self.mark = f"DISTTRAIN_TEST={uuid.uuid4().hex}"
        self.runtime = runtime
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("DISTTRAIN_", "PMI_"))}
        name, value = self.mark.split("=")
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=keep
            | {
                "PYTHONPATH": str(ROOT),
                "XDG_RUNTIME_DIR": str(runtime),
                "PYTHONWARNINGS": "error",
                name: value,
            }
            | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.out = ""
        self._ahead: dict[bool, list[str]] = {False: [], True: []}
        """Lines that have been read with the one that was waited for: those of other ranks that printed the same."""

    def wait_for(self, pattern: str, *, on_stderr: bool = False) -> re.Match[str]:
        """Read the job's output up to a line that matches ``pattern``; one of several ranks is a line of each."""
        stream = self.process.stderr if on_stderr else self.process.stdout
        assert stream is not None
        ahead = self._ahead[on_stderr]
        seen = ""
        while True:
            if not ahead:
                ahead += unfold(stream.readline()).splitlines(keepends=True)
            if not ahead:
                raise AssertionError(f"no line matches {pattern!r} in:\n{seen}\n{self.end()[2]}")
            line = ahead.pop(0)
            seen += line
            if not on_stderr:
                self.out += line
            if match := re.search(pattern, line):
                return match

    @property
    def unfolded(self) -> str:
        """What has been read of its output, with lines of several ranks written once for each."""
        return unfold(self.out)

    def end(self, within: float = 20.0) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr, unfolded; nothing of the job may be left then.

        Raises:
            subprocess.TimeoutExpired: the job has not ended ``within`` seconds.
        """
        out, err = self.process.communicate(timeout=within)
        self.out += "".join(self._ahead[False]) + out
        err = "".join(self._ahead[True]) + err
        self.assert_nothing_left()
        return self.process.returncode, unfold(self.out), unfold(err)

    def members(self) -> list[int]:
        """Return every process that has inherited this job's mark."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                if self.mark.encode() in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    found.append(int(name))
            except OSError:
                continue
        return found

    def assert_nothing_left(self, within: float = 0.0) -> None:
        deadline = time.monotonic() + within
        while (self.members() or self.sockets()) and time.monotonic() < deadline:
            os.sched_yield()
        assert self.members() == []
        assert self.sockets() == []

    def sockets(self) -> list[Path]:
        return [p for p in self.runtime.rglob("*") if p.is_socket()]

    def run_directories(self) -> list[Path]:
        return [p for p in (self.runtime / "disttrain").iterdir() if p.is_dir()]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        deadline = time.monotonic() + 2.0
        while self.members() and time.monotonic() < deadline:  # the guardian ends them
            os.sched_yield()
        for pid in self.members():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


Start = Callable[..., Job]
Tool = Callable[..., tuple[int, str, str]]


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A folder for run directories; pytest's own has too long a name for a socket."""
    path = Path(tempfile.mkdtemp(prefix="dt-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def start(tmp_path: Path, runtime: Path) -> Iterator[Start]:
    """Write ``script.py`` and start a command on it: ``start(text, "launch", "-n", "2", args=("x",))``.

    Without a text the command stands as it is. It is one of disttrain's, unless ``by`` says what else to run.
    """
    jobs = []
    ours = (sys.executable, "-m", "disttrain")

    def start(
        script: str | None,
        *command: str,
        args: tuple[str, ...] = (),
        by: Sequence[str] = ours,
        **environ: str,
    ) -> Job:
        if script is not None:
            (tmp_path / "script.py").write_text(textwrap.dedent(script))
            command = (*command, "script.py")
        jobs.append(Job([*by, *command, *args], tmp_path, runtime, **environ))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()


@pytest.fixture
def tool(runtime: Path) -> Tool:
    """Run a command on the jobs of this test: exit code, stdout and stderr."""

    def tool(*command: str, within: float = 20.0) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "disttrain", *command],
            env=os.environ | {"XDG_RUNTIME_DIR": str(runtime), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=within,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    return tool
