"""Reading the tensors of one checkpoint, each verified."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from types import TracebackType

import numpy as np

from disttrain import dtypes
from disttrain.checkpoint.manifest import Manifest, name_in_file
from disttrain.checkpoint.states import Wanted
from disttrain.checkpoint.tensorfile import TensorFile
from disttrain.errors import FileDamaged
from disttrain.kernels.arrays import Array


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
        results: dict[str, Array] = {}
        made: dict[Wanted, Array] = {}
        for w in wanted:
            found = self.manifest.find(w.name)
            if found is None:
                raise KeyError(w.name)
            real, t = found
            key = Wanted(real, w.span)
            if key in made:
                results[w.name] = made[key]
                continue
            begin, end = (0, t.size) if w.span is None else w.span
            touched = [p for p in t.pieces if max(p.begin, begin) < min(p.end, end)]
            for p in touched:
                self.file(p.file)  # before memory is taken for it
            if len(touched) == 1 and (touched[0].begin, touched[0].end) == (0, t.size) == (begin, end):
                p = touched[0]
                out = self.file(p.file).read(real, p.sha256)
            else:
                out = np.empty(end - begin, t.dtype.numpy)
                for p in touched:
                    low, high = max(p.begin, begin), min(p.end, end)
                    part = self.file(p.file).read(
                        name_in_file(real, p.begin, p.end, t.size), p.sha256, low - p.begin, high - p.begin
                    )
                    out[low - begin : high - begin] = part
            made[key] = results[w.name] = out.reshape(t.shape if w.span is None else -1)
        return results
