"""Reading the tensors of one checkpoint, each verified."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from disttrain import dtypes
from disttrain.checkpoint.manifest import Manifest, Piece, Stored, name_in_file
from disttrain.checkpoint.memory import Arena, new_memory, padded
from disttrain.checkpoint.states import Span, Wanted
from disttrain.checkpoint.tensorfile import TensorFile, Window
from disttrain.collectives.env import current_env
from disttrain.errors import FileDamaged
from disttrain.kernels.arrays import Array

_MANY: Final = 8 << 20
"""Bytes from which on threads share the reading, past the page cache if no other rank here reads the same."""
_THREADS: Final = 4
"""So that the disk has more to do while checksums are computed and tensors are copied."""


@dataclass(eq=False)
class _Job:
    """A tensor to be read, or some of its elements."""

    name: str
    tensor: Stored
    span: Span | None
    kept: bool = False
    """Whether it needs memory of its own."""
    out: Array | None = None
    """Where its bytes go; new memory if nothing is said."""

    @property
    def begin(self) -> int:
        return 0 if self.span is None else self.span[0]

    @property
    def end(self) -> int:
        return self.tensor.size if self.span is None else self.span[1]

    @property
    def nbytes(self) -> int:
        size: int = (self.end - self.begin) * self.tensor.dtype.itemsize
        return size

    @property
    def pieces(self) -> list[Piece]:
        """Those that have some of its elements."""
        return [p for p in self.tensor.pieces if max(p.begin, self.begin) < min(p.end, self.end)]

    @property
    def array(self) -> Array:
        """What has been read: a whole tensor in its shape, elements of one on one axis."""
        if self.out is None:
            raise RuntimeError(f"{self.name} has not been read")
        return self.out.view(self.tensor.dtype.numpy).reshape(self.tensor.shape if self.span is None else -1)

    def name_of(self, piece: Piece) -> str:
        """Return what a piece is called in its file."""
        return name_in_file(self.name, piece.begin, piece.end, self.tensor.size)


class Reader:
    """One checkpoint, open to be read.

    Args:
        path: of the checkpoint.
        memory: into which tensors are read that somebody copies, as far as it goes; none by default.

    Raises:
        FileDamaged: the manifest is not there, or not as it was written.
        OSError: it cannot be read.
    """

    def __init__(self, path: str, memory: Arena | None = None) -> None:
        self.path = path
        self._memory = Arena() if memory is None else memory
        self.manifest = Manifest.read(path)
        self._opened: dict[str, TensorFile] = {}
        self._expected: dict[str, dict[str, tuple[dtypes.dtype, tuple[int, ...]]]] = {
            file: {} for file in self.manifest.files
        }
        for name, t in self.manifest.tensors.items():
            for p in t.pieces:
                whole = (p.begin, p.end) == (0, t.size)
                shape = t.shape if whole else (p.end - p.begin,)
                self._expected[p.file][name_in_file(name, p.begin, p.end, t.size)] = (t.dtype, shape)

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._opened.values():
            file.close()
        self._opened.clear()

    def file(self, name: str) -> TensorFile:
        """Return one of the files, whose header is what the manifest says.

        Raises:
            FileDamaged: it is not, or the file is missing.
        """
        if name in self._opened:
            return self._opened[name]
        display = f"file {name} of step {self.manifest.step} ({self.path})"
        try:
            opened = TensorFile(os.path.join(self.path, name), display)
        except FileNotFoundError:
            raise FileDamaged(f"{display} is missing") from None
        with contextlib.ExitStack() as stack:
            stack.callback(opened.close)
            found = {n: (e.dtype, e.shape) for n, e in opened.entries.items()}
            if opened.size != self.manifest.files[name]:
                raise FileDamaged(
                    f"{display} has {opened.size} bytes, the manifest says {self.manifest.files[name]}"
                )
            if opened.metadata.get("id") != self.manifest.id:
                raise FileDamaged(f"{display} is of another save than the manifest")
            if found != self._expected[name]:
                differing = sorted(n for n, _ in found.items() ^ self._expected[name].items())
                raise FileDamaged(f"{display} has other tensors than the manifest says: {differing[:5]}")
            stack.pop_all()
        self._opened[name] = opened
        return opened

    def read(self, wanted: Iterable[Wanted]) -> dict[str, Array]:
        """Return tensors, or their elements that are wanted, by name; of a whole one in its shape.

        Raises:
            FileDamaged: some is not what was written.
            KeyError: there is no such tensor.
        """
        asked = list(wanted)
        jobs: dict[tuple[str, Span | None], _Job] = {}
        for w in asked:
            real = self.manifest.find(w.name)
            if real is None:
                raise KeyError(w.name)
            jobs.setdefault((real[0], w.span), _Job(*real, w.span)).kept |= not w.copied
        ordered = sorted(jobs.values(), key=self._place)  # which opens the files, before memory is taken
        for job in ordered:
            if not job.kept and padded(job.nbytes) <= self._memory.room:
                job.out = self._memory.take(job.nbytes)
        total = sum(job.nbytes for job in ordered)
        stop = threading.Event()
        if total >= _MANY:
            if current_env().local_world_size == 1:
                for file in self._opened.values():
                    file.go_past_cache()
            shares = _split(ordered, _THREADS)
            with ThreadPoolExecutor(len(shares), "reading") as pool:
                list(pool.map(self._read_all, shares, [stop] * len(shares)))
        else:
            self._read_all(ordered, stop)
        return {w.name: jobs[self.manifest.aliases.get(w.name, w.name), w.span].array for w in asked}

    def _place(self, job: _Job) -> tuple[str, int]:
        """Return where in which file it begins; all files that it is in are open then."""
        places = [(p.file, self.file(p.file).entries[job.name_of(p)].begin) for p in job.pieces]
        return places[0] if places else ("", 0)

    def _read_all(self, jobs: list[_Job], stop: threading.Event) -> None:
        """Read one after the other; any thread may. All stop when one cannot go on."""
        window = Window(sum(p.size * job.tensor.dtype.itemsize for job in jobs for p in job.pieces))
        for job in jobs:
            if stop.is_set():
                return
            try:
                self._read(job, window)
            except BaseException:
                stop.set()
                raise

    def _read(self, job: _Job, window: Window) -> None:
        size = job.tensor.dtype.itemsize
        if job.out is None:
            job.out = new_memory(job.nbytes)
        for p in job.pieces:
            low, high = max(p.begin, job.begin), min(p.end, job.end)
            out = job.out[(low - job.begin) * size : (high - job.begin) * size]
            self.file(p.file).read(job.name_of(p), p.checksum, low - p.begin, high - p.begin, out, window)


def _split(jobs: list[_Job], parts: int) -> list[list[_Job]]:
    """Divide jobs, in their order, in so many lists of about as many bytes, each a stretch of a file or of several."""
    shares: list[list[_Job]] = [[] for _ in range(parts)]
    total, at = max(1, sum(job.nbytes for job in jobs)), 0
    for job in jobs:
        shares[min(parts - 1, at * parts // total)].append(job)
        at += job.nbytes
    return shares
