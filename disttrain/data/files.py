"""Data sets in plain files: arrays, tables and token streams, read where a sample needs them.

Files are read by position, not mapped: a file that gets shorter under a mapping ends the process without a word, a
short read is an error that names file, offset, sample and rank.
"""

from __future__ import annotations

import csv
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from disttrain.collectives.env import current_env
from disttrain.data.dataset import Dataset
from disttrain.errors import SampleDamaged
from disttrain.kernels.arrays import Array
from disttrain.tensors import Tensor

StrPath = str | os.PathLike[str]


class Part:
    """A file as it was when it was found, which is opened at the first read.

    Raises:
        FileNotFoundError: there is none.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        found = os.stat(path)
        self.size = found.st_size
        self._known = (found.st_size, found.st_mtime_ns)
        self._descriptor = -1

    def read(self, offset: int, nbytes: int, sample: int) -> bytes:
        """Return ``nbytes`` bytes from ``offset`` on.

        Args:
            sample: for which sample; for the error.

        Raises:
            SampleDamaged: the file has changed, is gone or is too short.
        """
        if self._descriptor < 0:
            try:
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise self.damaged(f"cannot be opened any more: {error.strerror}", offset, sample) from error
        now = os.fstat(self._descriptor)
        if (now.st_size, now.st_mtime_ns) != self._known:
            raise self.damaged(
                f"was changed while it was in use: it had {self._known[0]} bytes, and has {now.st_size}",
                offset,
                sample,
            )
        data = os.pread(self._descriptor, nbytes, offset)
        if len(data) != nbytes:
            raise self.damaged(f"ends {nbytes - len(data)} bytes too early", offset, sample)
        return data

    def damaged(self, what: str, offset: int, sample: int) -> SampleDamaged:
        """Return the error that says so, with the place."""
        return SampleDamaged(
            f"{self.path} {what} (sample {sample}, offset {offset}, rank {current_env().rank})"
        )

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        if "_descriptor" in self.__dict__:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": -1}


class NumpyDataset(Dataset[Any]):
    """Samples are the rows of ``.npy`` files of the same length: ``(tensor of row i of each, …)``, or one alone.

    Rows are read when they are asked for, so the files may be larger than memory.

    Args:
        paths: the files, of a dtype that a Tensor has, in C order.
        transform: applied to the sample.

    Raises:
        FileDamaged: a file is no ``.npy`` file, shorter than its header says, or holds Python objects.
        TypeError: no Tensor has the dtype of a file.
        ValueError: the files have different lengths.
    """

    def __init__(self, *paths: StrPath, transform: Callable[[Any], Any] | None = None) -> None:
        if not paths:
            raise ValueError("NumpyDataset needs at least one file")
        self._arrays = [_Rows(path) for path in paths]
        lengths = [len(rows) for rows in self._arrays]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"the files of a NumpyDataset need the same number of rows, got "
                f"{dict(zip(map(str, paths), lengths, strict=True))}"
            )
        self.transform = transform

    def __getitem__(self, index: Any) -> Any:
        i = _position(index, len(self))
        sample = [Tensor._of(rows[i]) for rows in self._arrays]
        sample_ = sample[0] if len(sample) == 1 else tuple(sample)
        return sample_ if self.transform is None else self.transform(sample_)

    def __len__(self) -> int:
        return len(self._arrays[0])


class _Rows:
    """The rows of a ``.npy`` file."""

    def __init__(self, path: StrPath) -> None:
        self._part = Part(path)
        try:
            with open(path, "rb") as file:
                version = np.lib.format.read_magic(file)
                read = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }.get(version)
                if read is None:
                    raise ValueError(f"version {version} of the format is not known")
                shape, in_columns, self._dtype = read(file)
                self._begin = file.tell()
        except (ValueError, EOFError) as error:
            raise SampleDamaged(f"{path} is no .npy file: {error}") from error
        if self._dtype.hasobject:
            raise SampleDamaged(f"{path} holds Python objects, which would be unpickled; save plain numbers")
        if not shape or (in_columns and len(shape) > 1):
            raise SampleDamaged(
                f"{path} must have rows in C order, got shape {shape}{' in Fortran order' * in_columns}; save "
                f"numpy.ascontiguousarray(array)"
            )
        try:
            Tensor._of(np.empty(0, self._dtype.newbyteorder("="))).dtype  # noqa: B018 - looks it up
        except TypeError as error:
            raise TypeError(f"{path}: {error}") from None
        self._count, self._shape = shape[0], shape[1:]
        self._row_bytes = int(np.prod(self._shape, dtype=np.int64)) * self._dtype.itemsize
        if self._begin + self._count * self._row_bytes > self._part.size:
            raise SampleDamaged(
                f"{path} has {self._part.size} bytes, and shape {shape} of {self._dtype} needs "
                f"{self._begin + self._count * self._row_bytes}"
            )

    def __getitem__(self, i: int) -> Array:
        data = bytearray(self._part.read(self._begin + i * self._row_bytes, self._row_bytes, i))
        row = np.frombuffer(data, self._dtype).reshape(self._shape)
        return row if self._dtype.isnative else row.astype(self._dtype.newbyteorder("="))

    def __len__(self) -> int:
        return self._count


class CSVDataset(Dataset[Any]):
    """Samples are ``(numbers, target)`` of the lines of a CSV file, read once: float32 of shape (columns,).

    Args:
        path: a UTF-8 file with a first line of names.
        target: the column to predict; ``None``: samples are the numbers alone.
        columns: the other columns to use; by default all, in the file's order.
        classes: the target is a class: samples have its number (int64) in :attr:`classes`, its sorted values. By
            default where not all targets are numbers.
        transform: applied to the numbers.

    Raises:
        ValueError: a column is not there.
        FileDamaged: a line has another number of columns, or no number where one is needed; names the line.
    """

    def __init__(
        self,
        path: StrPath,
        target: str | None = None,
        columns: Sequence[str] | None = None,
        *,
        classes: bool | None = None,
        transform: Callable[[Tensor], Any] | None = None,
    ) -> None:
        with open(path, newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            names = next(lines, None)
            if not names:
                raise SampleDamaged(f"{path} is empty; a CSV file begins with the names of its columns")
            wanted = list(columns) if columns is not None else [n for n in names if n != target]
            for name in [*wanted, *([] if target is None else [target])]:
                if name not in names:
                    raise ValueError(f"{path} has no column {name!r}; it has {', '.join(names)}")
            places = [names.index(name) for name in wanted]
            rows: list[list[float]] = []
            targets: list[str] = []
            for line in lines:
                if not line:
                    continue
                if len(line) != len(names):
                    raise SampleDamaged(
                        f"{path}, line {lines.line_num}: {len(line)} columns, but the first line names {len(names)}"
                    )
                try:
                    rows.append([float(line[i]) for i in places])
                except ValueError:
                    which = next(i for i in places if not _is_number(line[i]))
                    raise SampleDamaged(
                        f"{path}, line {lines.line_num}: column {names[which]!r} is {line[which]!r:.80}, which is no "
                        f"number; name the columns to use, or clean the file"
                    ) from None
                if target is not None:
                    targets.append(line[names.index(target)])
        self.columns = wanted
        """Names of the numbers."""
        self.features = Tensor._of(np.array(rows, np.float32).reshape(len(rows), len(wanted)))
        """All numbers: float32, (lines, columns)."""
        self.targets: Tensor | None = None
        """All targets: int64 (classes) or float32, (lines,)."""
        self.classes: list[str] = []
        """The classes in the order of their numbers, if the target is one."""
        if target is not None:
            if classes is None:
                classes = not all(map(_is_number, targets))
            if classes:
                self.classes = sorted(set(targets), key=lambda t: (not _is_number(t), _number(t), t))
                number = {name: i for i, name in enumerate(self.classes)}
                self.targets = Tensor._of(np.array([number[t] for t in targets], np.int64))
            else:
                self.targets = Tensor._of(np.array([_number(t) for t in targets], np.float32))
        self.transform = transform

    def __getitem__(self, index: Any) -> Any:
        i = _position(index, len(self))
        numbers: Any = self.features[i]
        if self.transform is not None:
            numbers = self.transform(numbers)
        return numbers if self.targets is None else (numbers, self.targets[i])

    def __len__(self) -> int:
        return self.features._array.shape[0]  # type: ignore[no-any-return]


class TokenDataset(Dataset[tuple[Tensor, Tensor]]):
    """Samples for language models: ``(tokens, the tokens that follow)``, both int64 of shape (length,).

    A sample begins every ``stride`` tokens of a file; none reaches over its end.

    Args:
        paths: files of tokens, one after the other without a header (as nanoGPT's ``train.bin``), in the machine's
            byte order; or several such files.
        length: tokens of a sample.
        dtype: of a token in the file.
        stride: tokens from one sample to the next; by default ``length``, so that each token is predicted once.

    Raises:
        ValueError: length or stride is not positive, or no file has ``length + 1`` tokens.
        FileDamaged: a file's size is no multiple of a token's.
    """

    def __init__(
        self,
        paths: StrPath | Sequence[StrPath],
        length: int,
        dtype: Any = "uint16",
        stride: int | None = None,
    ) -> None:
        stride = length if stride is None else stride
        if length < 1 or stride < 1:
            raise ValueError(f"length and stride must be positive, got {length} and {stride}")
        self.length = length
        self.stride = stride
        self._dtype = np.dtype(dtype)
        if self._dtype.kind not in "iu":
            raise ValueError(f"tokens are integers, got dtype {self._dtype}")
        files = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        self._parts = [Part(path) for path in files]
        counts = []
        for part in self._parts:
            tokens, rest = divmod(part.size, self._dtype.itemsize)
            if rest:
                raise SampleDamaged(
                    f"{part.path} has {part.size} bytes, which is no whole number of {self._dtype} tokens"
                )
            counts.append(max(0, (tokens - 1 - length) // stride + 1))
        self._ends: list[int] = list(accumulate(counts))
        if not self._ends or not self._ends[-1]:
            raise ValueError(
                f"no file has {length + 1} tokens of {self._dtype}: {', '.join(map(str, files))}"
            )

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        window = self._windows([index])[0]
        return Tensor._of(window[:-1]), Tensor._of(window[1:].copy())

    def collated(self, indices: Sequence[int]) -> list[Tensor]:
        """Return what ``default_collate`` makes of these samples."""
        windows = self._windows(indices)
        return [Tensor._of(np.ascontiguousarray(w)) for w in (windows[:, :-1], windows[:, 1:])]

    def _windows(self, indices: Sequence[int]) -> Array:
        """Return the tokens of the samples, and the one behind each: int64, (samples, length + 1)."""
        windows = np.empty((len(indices), self.length + 1), np.int64)
        nbytes = (self.length + 1) * self._dtype.itemsize
        for row, index in zip(windows, indices, strict=True):
            i = _position(index, len(self))
            which = bisect_right(self._ends, i)
            first = (i - (self._ends[which - 1] if which else 0)) * self.stride
            data = self._parts[which].read(first * self._dtype.itemsize, nbytes, i)
            row[...] = np.frombuffer(data, self._dtype)
        return windows

    def __len__(self) -> int:
        return self._ends[-1]


def _position(index: Any, length: int) -> int:
    i = int(index)
    if not -length <= i < length:
        raise IndexError(f"index {i} is out of range for {length} samples")
    return i % length


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(text: str) -> float:
    return float(text) if _is_number(text) else 0.0
