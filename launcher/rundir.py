"""The run directory: sockets, logs and the report of one job, readable by its user alone.

``$XDG_RUNTIME_DIR/disttrain/RUN_ID`` or, where that is not set, ``<temporary folder>/disttrain-UID/RUN_ID``.
A running launcher holds a lock in it; the kernel drops the lock however the launcher ends, so what is not
locked is left over.
"""

import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from disttrain.launcher.guardian import kill_all, unlink_orphaned_shm

KEEP_REPORTS: Final = 10
"""Number of run directories of failed jobs that stay; older ones go at the next start."""
_MAX_SOCKET_PATH: Final = 107  # sun_path of unix(7), less the final zero


class RunDirectory:
    """A fresh, locked directory for one job, or for the part of job ``run_id`` on its node ``node``."""

    def __init__(self, run_id: str = "", node: int = 0) -> None:
        base = base_directory()
        with _locked(base / ".lock"):
            _sweep(base)
            self.run_id = run_id or secrets.token_hex(6)
            self.node = node
            # Two nodes may share the folder: a home on the network, or a machine that plays several.
            self.path = base / (f"{self.run_id}.{node}" if node else self.run_id)
            try:
                self.path.mkdir(mode=0o700)
                self._lock = _lock(self.path / "lock", fcntl.LOCK_EX)
                os.write(self._lock, str(os.getpid()).encode())
            except OSError as e:
                shutil.rmtree(self.path, ignore_errors=True)
                raise RuntimeError(
                    f"the run directory {self.path} cannot be made: {e.strerror}; make room, or set XDG_RUNTIME_DIR or "
                    f"TMPDIR to another folder"
                ) from None
        self.control = f"ipc://{self.path}/control"
        if len(os.fsencode(self.path / "control")) > _MAX_SOCKET_PATH:
            self.remove()
            raise RuntimeError(
                f"{self.path} is too long a path for a socket (at most {_MAX_SOCKET_PATH} bytes); "
                f"set XDG_RUNTIME_DIR or TMPDIR to a shorter folder"
            )

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def history(self) -> Path:
        """What ranks log and users ask for, as JSON lines; there once there is something in it."""
        return self.path / "history.jsonl"

    @property
    def desk(self) -> Path:
        """The socket where the running job is asked and told."""
        return self.path / "desk"

    def remove(self) -> None:
        """Remove the directory with all it holds."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def keep(self) -> None:
        """Leave logs and report where they are, for the user; the sockets go."""
        for entry in self.path.iterdir():
            if stat.S_ISSOCK(entry.lstat().st_mode):
                entry.unlink()
        os.close(self._lock)


def base_directory() -> Path:
    """Return the folder of all run directories of this user, made if need be.

    Raises:
        RuntimeError: it belongs to somebody else or others may write into it.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        base = Path(runtime) / "disttrain"
    else:
        base = Path(tempfile.gettempdir()) / f"disttrain-{os.getuid()}"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = base.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise RuntimeError(
            f"{base} must be a directory that only you can enter (owner {info.st_uid}, mode "
            f"{stat.S_IMODE(info.st_mode):o}); remove it, or set XDG_RUNTIME_DIR to a folder of your own"
        )
    return base


def _lock(path: Path, how: int) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, how)
    except OSError:
        os.close(fd)
        raise
    return fd


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = _lock(path, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(fd)


def _sweep(base: Path) -> None:
    """Clean up after launchers that are gone without having done so, and drop the oldest reports."""
    reports = []
    for path in base.iterdir():
        if not path.is_dir():
            continue
        try:
            os.close(_lock(path / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB))
        except OSError:
            continue  # its launcher lives
        if (path / "report.json").exists():
            reports.append(path)
            continue
        run_id, _, node = path.name.partition(".")
        kill_all(run_id, int(node or 0), [])
        unlink_orphaned_shm((path / "lock").stat().st_ctime)
        shutil.rmtree(path, ignore_errors=True)
    reports.sort(key=lambda p: p.stat().st_mtime)
    for path in reports[:-KEEP_REPORTS]:
        shutil.rmtree(path, ignore_errors=True)
