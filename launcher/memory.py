"""Whether it was the kernel that has killed a process, for want of memory: what its log and its counters say."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

_RECORD: Final = (
    8192  # a record of /dev/kmsg is given whole or not at all (dev-kmsg, in the kernel's documentation)
)
_KILLED: Final = re.compile(r"Killed process (\d+) .*?anon-rss:(\d+)kB")
_NO_LIMIT: Final = 1 << 60


class MemoryWatch:
    """Remembers what the kernel has counted so far, to tell what comes after."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._log = -1
        with suppress(OSError):  # only the superuser may, mostly
            self._log = os.open(root / "dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._log, 0, os.SEEK_END)
        self._killed: dict[int, int] = {}
        self._in_system = self._count("proc/vmstat")
        self._folders: dict[Path, int] = {}
        self.note(os.getpid())

    def note(self, pid: int) -> None:
        """Remember the control group of ``pid``, and what has been counted in it."""
        for folder in self._groups(pid):
            self._folders.setdefault(folder, self._count_in(folder))

    def explain(self, pid: int) -> str:
        """Return how ``pid``, which has been killed, came to its end for want of memory; empty if it did not."""
        self.note(pid)
        self._read_log()
        limits = [limit for folder in self._folders if (limit := self._limit(folder)) < _NO_LIMIT]
        of = f" of its control group, {_size(min(limits))}" if limits else " of the machine"
        if pid in self._killed:
            return f"out of memory: the kernel killed it at {_size(self._killed[pid])}, the limit{of}"
        if any(self._count_in(folder) > before for folder, before in self._folders.items()):
            return f"out of memory: the kernel counts a process killed for the limit{of}"
        if self._log < 0 and not limits and self._count("proc/vmstat") > self._in_system:
            return "probably out of memory: the kernel has killed a process of this machine for it"
        return ""

    def close(self) -> None:
        """Read no more."""
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def _read_log(self) -> None:
        while self._log >= 0:
            try:
                record = os.read(self._log, _RECORD)
            except BrokenPipeError:  # records were overwritten before we read them; the next one follows
                continue
            except OSError:  # that was the last one
                return
            if not record:
                return
            if found := _KILLED.search(record.decode("utf-8", "replace")):
                self._killed[int(found[1])] = int(found[2]) << 10

    def _groups(self, pid: int) -> list[Path]:
        """Return the folders of the memory controller, versions 1 and 2, of a process."""
        found = []
        for line in _read(self._root / f"proc/{pid}/cgroup").splitlines():
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if "memory" in controllers.split(","):
                found.append(self._root / "sys/fs/cgroup/memory" / path.lstrip("/"))
            elif number == "0" and not controllers:
                found.append(self._root / "sys/fs/cgroup" / path.lstrip("/"))
        return [folder for folder in found if self._counters(folder).exists()]

    def _counters(self, folder: Path) -> Path:
        events = folder / "memory.events"
        return events if events.exists() else folder / "memory.oom_control"

    def _count_in(self, folder: Path) -> int:
        return _counter(_read(self._counters(folder)))

    def _count(self, file: str) -> int:
        return _counter(_read(self._root / file))

    def _limit(self, folder: Path) -> int:
        """Return the bytes that the processes in there may have; version 1 has a large number for no limit."""
        text = (_read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")).strip()
        return int(text) if text.isdecimal() else _NO_LIMIT


def _counter(text: str) -> int:
    found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _size(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
