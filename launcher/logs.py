"""What the workers print: whole lines with the rank in front, on the terminal and in one file per process."""

import os
import re
import selectors
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, BinaryIO, Final, TextIO

from disttrain.launcher.fold import Line, fold, label

_CHUNK: Final = 64 << 10
_MAX_LINE: Final = 1 << 20
_MAX_FILE: Final = 32 << 20
"""Bytes of a log file before it becomes ``.1`` (and the ``.1`` before it is dropped)."""
_TAIL: Final = 40  # a dump of a crash with its frames
_LIVE_INTERVAL: Final = 0.05
_LABEL: Final = 6  # columns for "[123] "
_HOLD: Final = 0.05
"""Seconds that a line waits for other ranks to print the same."""
_MAX_HELD: Final = 512
_OF_RANK: Final = re.compile(rb"\[(\d+)\] ?(.*)", re.DOTALL)
"""How a process that hosts several ranks prints their lines."""
_ESCAPE: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_COLOURS: Final = (36, 33, 32, 35, 34, 31)  # cyan, yellow, green, magenta, blue, red
_SHARED: Final = 1  # bold: the same of several ranks


@dataclass
class _Stream:
    """One pipe of one process: its unfinished line, and where finished ones go."""

    fd: int
    process: int
    ranks: tuple[int, ...]
    to_stderr: bool
    rest: bytes = b""

    def of_ranks(self, lines: Sequence[bytes]) -> list[Line]:
        """Return lines with the rank that has printed each; none for what several ranks in a process share."""
        if len(self.ranks) == 1:
            return [Line(self.ranks, self.to_stderr, line) for line in lines]
        found = []
        for line in lines:
            match = _OF_RANK.fullmatch(line)
            if match is not None and int(match[1]) in self.ranks:
                found.append(Line((int(match[1]),), self.to_stderr, match[2]))
            else:
                found.append(Line((), self.to_stderr, line))
        return found

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

    def write(self, lines: list[bytes]) -> None:
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
    elsewhere only finished lines are written. A line that several ranks print at about the same time is shown once;
    the files have all. Output that nobody takes (a closed pipe, a full disk) is
    dropped and counted.
    """

    def __init__(self, directory: Path, generation: int = 0) -> None:
        super().__init__(name="disttrain-logs", daemon=True)
        self.dropped = 0
        """Number of lines that could not be written to the terminal or to a file."""
        self._directory = directory
        self._suffix = f"-generation{generation}" if generation else ""
        self._streams: dict[int, _Stream] = {}
        self._files: dict[str, _LogFile] = {}
        self._tails: dict[int, deque[str]] = {}
        self._held: list[Line] = []
        """Lines that are still to be shown."""
        self._held_since = 0.0
        """When the first of them came."""
        self._labelled = False
        self._outputs = {False: _bytes_of(sys.stdout), True: _bytes_of(sys.stderr)}
        self._terminal = {e: out.isatty() for e, out in self._outputs.items()}
        self._closed: set[bool] = set()
        self._colour = "NO_COLOR" not in os.environ
        self._lock = threading.Lock()
        self._live: tuple[bool, bytes] | None = None
        self._live_at = 0.0
        self._wake_read, self._wake_write = os.pipe()

    def add(self, process: int, ranks: Sequence[int], *, to_stderr: bool, labelled: bool) -> int:
        """Return the child's end of a new pipe, before :meth:`start`.

        Args:
            ranks: those that the process hosts. If they are several, it puts ``[rank]`` before their lines itself.
            labelled: whether their lines are shown with their numbers.
        """
        read, write = os.pipe()
        self._streams[read] = _Stream(read, process, tuple(ranks), to_stderr)
        self._tails.setdefault(process, deque(maxlen=_TAIL))
        self._labelled = labelled
        return write

    def tail(self, process: int) -> list[str]:
        """Return the last lines that ``process`` printed."""
        return list(self._tails[process])

    def notice(self, text: str) -> None:
        """Write lines of the launcher itself, to stderr."""
        with self._lock:
            self._release()
            self._write(
                True, b"".join(line.encode() + b"\n" for line in text.split("\n")), text.count("\n") + 1
            )

    def run(self) -> None:
        selector = selectors.DefaultSelector()
        for fd in self._streams:
            selector.register(fd, selectors.EVENT_READ)
        selector.register(self._wake_read, selectors.EVENT_READ)
        while self._streams:
            for key, _ in selector.select(self._patience()):
                if key.fd == self._wake_read:
                    return
                stream = self._streams[key.fd]
                data = os.read(key.fd, _CHUNK)
                lines = stream.feed(data)
                with self._lock:
                    if lines:
                        self._take(stream, lines)
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
        with self._lock:
            self._release()
        for file in self._files.values():
            file.close()
        for fd in (self._wake_read, self._wake_write, *self._streams):
            os.close(fd)

    def _take(self, stream: _Stream, lines: list[bytes]) -> None:
        """Keep lines, and show them, or hold them for a moment where other ranks may print the same."""
        self._tails[stream.process].extend(line.decode("utf-8", "replace") for line in lines[-_TAIL:])
        told = stream.of_ranks(lines)
        by_rank: dict[tuple[int, ...], list[bytes]] = {}
        for line in told:
            by_rank.setdefault(line.ranks, []).append(line.text)
        for ranks, texts in by_rank.items():
            self._keep(ranks or stream.ranks, texts)
        if not self._held:
            self._held_since = time.monotonic()
        self._held += told
        if not self._labelled or len(self._held) > _MAX_HELD:
            self._release()

    def _keep(self, ranks: tuple[int, ...], lines: list[bytes]) -> None:
        name = f"rank{ranks[0]}" + (f"-{ranks[-1]}" if len(ranks) > 1 else "") + self._suffix
        file = self._files.setdefault(name, _LogFile(self._directory / f"{name}.log"))
        try:
            file.write(lines)
        except OSError:  # a full disk must not end the run
            self.dropped += len(lines)

    def _patience(self) -> float | None:
        """Show what has been held long enough; return for how many seconds the rest may still be."""
        with self._lock:
            left = self._held_since + _HOLD - time.monotonic()
            if self._held and left <= 0:
                self._release()
            return left if self._held else None

    def _release(self) -> None:
        """Show all that is held."""
        held, self._held = self._held, []
        lines = fold(held) if self._labelled else held
        for to_stderr, some in groupby(lines, lambda line: line.to_stderr):
            texts = [self._prefix(line.ranks, to_stderr) + line.text + b"\n" for line in some]
            self._write(to_stderr, b"".join(texts), len(texts))

    def _prefix(self, ranks: tuple[int, ...], to_stderr: bool) -> bytes:
        if not self._labelled or not ranks:
            return b""
        if not (self._terminal[to_stderr] and self._colour):
            return f"{label(ranks)} ".encode()
        colour = _COLOURS[ranks[0] % len(_COLOURS)] if len(ranks) == 1 else _SHARED
        return f"\x1b[{colour}m{label(ranks)}\x1b[0m ".encode()

    def _write(self, to_stderr: bool, data: bytes, lines: int) -> None:
        erase = b"\r\x1b[K" if self._live is not None else b""
        self._live = None
        self._emit(to_stderr, erase + data, lines)

    def _show_live(self, stream: _Stream) -> None:
        text = stream.rest.rstrip(b"\r")
        if (
            not text
            or not self._terminal[stream.to_stderr]
            or time.monotonic() - self._live_at < _LIVE_INTERVAL
        ):
            return
        self._release()
        self._live_at = time.monotonic()
        self._live = (stream.to_stderr, text)
        prefix = self._prefix(stream.ranks, stream.to_stderr) if len(stream.ranks) == 1 else b""
        columns = os.get_terminal_size(self._outputs[stream.to_stderr].fileno()).columns or 80
        self._emit(stream.to_stderr, b"\r\x1b[K" + prefix + _fit(text, columns - _LABEL), 0)

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
