"""Reading the tensors of one checkpoint, each verified."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final

import numpy as np

from disttrain import dtypes
from disttrain.checkpoint.manifest import Manifest, Piece, Stored, name_in_file
from disttrain.checkpoint.states import Wanted
from disttrain.checkpoint.tensorfile import TensorFile
from disttrain.errors import FileDamaged
from disttrain.kernels.arrays import Array

_MANY: Final = 8 << 20
"""Bytes from which on threads share the reading: what takes the time is the checksums, of which each has its own."""
_MOST_THREADS: Final = 4


class Reader:
    """One checkpoint, open to be read.

    Args:
        path: of the checkpoint.
        manifest: of it, if it has been read.

    Raises:
        FileDamaged: the manifest is not there, or not as it was written.
        OSError: it cannot be read.
    """

    def __init__(self, path: str, manifest: Manifest | None = None) -> None:
        self.path = path
        self.manifest = Manifest.read(path) if manifest is None else manifest
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
        found: dict[Wanted, tuple[str, Stored]] = {}
        for w in asked:
            real = self.manifest.find(w.name)
            if real is None:
                raise KeyError(w.name)
            found[Wanted(real[0], w.span)] = real
        touched = {w: _touched(t, w.span) for w, (_, t) in found.items()}
        for pieces in touched.values():
            for p in pieces:
                self.file(p.file)  # before memory is taken for it
        several = len(found) > 1 and sum(t.nbytes for _, t in found.values()) >= _MANY
        if several:
            with ThreadPoolExecutor(_threads(), "reading") as pool:
                try:
                    made = dict(
                        zip(found, pool.map(self._read, found.values(), found, touched.values()), strict=True)
                    )
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        else:
            made = {w: self._read(found[w], w, touched[w]) for w in found}
        return {w.name: made[Wanted(self.manifest.aliases.get(w.name, w.name), w.span)] for w in asked}

    def _read(self, stored: tuple[str, Stored], w: Wanted, touched: Sequence[Piece]) -> Array:
        """Return one of them; any thread may."""
        name, t = stored
        begin, end = (0, t.size) if w.span is None else w.span
        if len(touched) == 1 and (touched[0].begin, touched[0].end) == (0, t.size) == (begin, end):
            out = self.file(touched[0].file).read(name, touched[0].checksum)
        else:
            out = np.empty(end - begin, t.dtype.numpy)
            for p in touched:
                low, high = max(p.begin, begin), min(p.end, end)
                part = self.file(p.file).read(
                    name_in_file(name, p.begin, p.end, t.size), p.checksum, low - p.begin, high - p.begin
                )
                out[low - begin : high - begin] = part
        return out.reshape(t.shape if w.span is None else -1)


def _touched(t: Stored, span: tuple[int, int] | None) -> list[Piece]:
    """Return the pieces in which there is something of the elements ``span``."""
    begin, end = (0, t.size) if span is None else span
    return [p for p in t.pieces if max(p.begin, begin) < min(p.end, end)]


def _threads() -> int:
    """Return how many threads read, while checksums are computed: no more than this process may use processors."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_THREADS)
