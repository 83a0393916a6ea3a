"""What the workers print: whole lines with the rank in front, on the terminal and in one file per process."""

import os
import re
import selectors
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO, Final, TextIO

_CHUNK: Final = 64 << 10
_MAX_LINE: Final = 1 << 20
_MAX_FILE: Final = 32 << 20
"""Bytes of a log file before it becomes ``.1`` (and the ``.1`` before it is dropped)."""
_TAIL: Final = 40  # a dump of a crash with its frames
_LIVE_INTERVAL: Final = 0.05
_LABEL: Final = 6  # columns for "[123] "
_ESCAPE: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_COLOURS: Final = (36, 33, 32, 35, 34, 31)  # cyan, yellow, green, magenta, blue, red


@dataclass
class _Stream:
    """One pipe of one process: its unfinished line, and where finished ones go."""

    fd: int
    process: int
    prefix: bytes
    to_stderr: bool
    rest: bytes = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that ``data`` completes; of one redrawn with carriage returns, its last state."""
        *lines, rest = (self.rest + data).split(b"\n")
        if not data:  # the end: what is there is a line
            lines, rest = ([rest] if rest else []), b""
        elif len(rest) > _MAX_LINE:
            lines, rest = [*lines, rest], b""
        if b"\r" in rest:
            head, _, last = rest.rpartition(b"\r")
            rest = last or head.rpartition(b"\r")[2] + b"\r"
        self.rest = rest
        return [line.rstrip(b"\r").rpartition(b"\r")[2] for line in lines]


@dataclass
class _LogFile:
    path: Path
    size: int = 0
    file: IO[bytes] | None = None
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL))

    def write(self, lines: list[bytes]) -> None:
        self.tail.extend(line.decode("utf-8", "replace") for line in lines[-_TAIL:])
        if self.file is None or self.size > _MAX_FILE:
            if self.file is not None:
                self.close()
                self.path.replace(self.path.with_suffix(".log.1"))
            self.file, self.size = open(self.path, "wb", buffering=0), 0  # noqa: SIM115
        data = b"".join(line + b"\n" for line in lines)
        self.file.write(data)
        self.size += len(data)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class LogPump(threading.Thread):
    """Reads the workers' pipes in a thread of its own: a stuck terminal does not stop the supervision.

    On a terminal an unfinished line (a progress bar) is shown as it grows, and never mixed with other lines;
    elsewhere only finished lines are written. Output that nobody takes (a closed pipe, a full disk) is
    dropped and counted.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(name="disttrain-logs", daemon=True)
        self.dropped = 0
        """Number of lines that could not be written to the terminal or to a file."""
        self._directory = directory
        self._streams: dict[int, _Stream] = {}
        self._files: dict[int, _LogFile] = {}
        self._outputs = {False: _bytes_of(sys.stdout), True: _bytes_of(sys.stderr)}
        self._terminal = {e: out.isatty() for e, out in self._outputs.items()}
        self._closed: set[bool] = set()
        self._colour = "NO_COLOR" not in os.environ
        self._lock = threading.Lock()
        self._live: tuple[bool, bytes] | None = None
        self._live_at = 0.0
        self._wake_read, self._wake_write = os.pipe()

    def add(self, process: int, label: str, *, name: str, to_stderr: bool) -> int:
        """Return the child's end of a new pipe, before :meth:`start`; its lines get ``label`` in front."""
        read, write = os.pipe()
        prefix = f"{label} ".encode() if label else b""
        if label and self._terminal[to_stderr] and self._colour:
            prefix = f"\x1b[{_COLOURS[process % len(_COLOURS)]}m{label}\x1b[0m ".encode()
        self._streams[read] = _Stream(read, process, prefix, to_stderr)
        self._files.setdefault(process, _LogFile(self._directory / f"{name}.log"))
        return write

    def tail(self, process: int) -> list[str]:
        """Return the last lines that ``process`` printed."""
        return list(self._files[process].tail)

    def notice(self, text: str) -> None:
        """Write lines of the launcher itself, to stderr."""
        with self._lock:
            self._write(True, [line.encode() for line in text.split("\n")], b"")

    def run(self) -> None:
        selector = selectors.DefaultSelector()
        for fd in self._streams:
            selector.register(fd, selectors.EVENT_READ)
        selector.register(self._wake_read, selectors.EVENT_READ)
        while self._streams:
            ready = selector.select()
            for key, _ in ready:
                if key.fd == self._wake_read:
                    return
                stream = self._streams[key.fd]
                data = os.read(key.fd, _CHUNK)
                lines = stream.feed(data)
                with self._lock:
                    if lines:
                        self._keep(stream.process, lines)
                        self._write(stream.to_stderr, lines, stream.prefix)
                    self._show_live(stream)
                if not data:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    del self._streams[key.fd]

    def finish(self, timeout: float = 2.0) -> None:
        """Wait until all pipes have ended, at most ``timeout`` seconds, and close the files."""
        self.join(timeout)
        os.write(self._wake_write, b".")
        self.join(0.2)
        if self.is_alive():
            return  # the terminal takes nothing; a daemon thread holds nobody up
        for file in self._files.values():
            file.close()
        for fd in (self._wake_read, self._wake_write, *self._streams):
            os.close(fd)

    def _keep(self, process: int, lines: list[bytes]) -> None:
        try:
            self._files[process].write(lines)
        except OSError:  # a full disk must not end the run
            self.dropped += len(lines)

    def _write(self, to_stderr: bool, lines: list[bytes], prefix: bytes) -> None:
        erase = b"\r\x1b[K" if self._live is not None else b""
        self._live = None
        self._emit(to_stderr, erase + b"".join(prefix + line + b"\n" for line in lines), len(lines))

    def _show_live(self, stream: _Stream) -> None:
        text = stream.rest.rstrip(b"\r")
        if (
            not text
            or not self._terminal[stream.to_stderr]
            or time.monotonic() - self._live_at < _LIVE_INTERVAL
        ):
            return
        self._live_at = time.monotonic()
        self._live = (stream.to_stderr, text)
        columns = os.get_terminal_size(self._outputs[stream.to_stderr].fileno()).columns or 80
        self._emit(stream.to_stderr, b"\r\x1b[K" + stream.prefix + _fit(text, columns - _LABEL), 0)

    def _emit(self, to_stderr: bool, data: bytes, lines: int) -> None:
        if to_stderr in self._closed:
            self.dropped += lines
            return
        try:
            self._outputs[to_stderr].write(data)
            self._outputs[to_stderr].flush()
        except (OSError, ValueError):
            self._closed.add(to_stderr)
            self.dropped += lines
            self._discard(to_stderr)

    def _discard(self, to_stderr: bool) -> None:
        """Send what a buffer still holds nowhere: Python flushes it at exit, and would exit with 120."""
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._outputs[to_stderr].fileno())


class _Encoded:
    """A text stream that takes bytes: a notebook's has none below it."""

    def __init__(self, target: TextIO) -> None:
        self._target = target
        self.flush, self.isatty, self.fileno = target.flush, target.isatty, target.fileno

    def write(self, data: bytes) -> None:
        self._target.write(data.decode("utf-8", "replace"))


def _bytes_of(stream: TextIO) -> BinaryIO | _Encoded:
    below = getattr(stream, "buffer", None)
    return _Encoded(stream) if below is None else below


def _fit(text: bytes, columns: int) -> bytes:
    """Return ``text`` so that it does not wrap, which could not be erased; if it is too long, without colours."""
    shown = _ESCAPE.sub("", text.decode("utf-8", "replace"))
    return text if len(shown) <= columns else shown[: max(columns, 10)].encode()
