"""Files of tensors in the safetensors format, written from memory as it is and read piece by piece.

The ``safetensors`` package reads what is written here. It is not used because its writer neither syncs nor streams, and
its reader maps files into memory, where a file that is cut while it is read is a SIGBUS. What a header says is checked
against the size of the file before any memory is taken for it.
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from disttrain import dtypes
from disttrain.checkpoint.checksums import LENGTH, Checksum
from disttrain.checkpoint.files import open_to_read, set_direct
from disttrain.checkpoint.memory import new_block, new_memory
from disttrain.errors import FileDamaged
from disttrain.kernels.arrays import Array

MAX_HEADER: Final = 100_000_000
"""Bytes of a header at most; the limit of the safetensors package."""
_NAMES: Final = {
    dtypes.bool_: "BOOL",
    dtypes.uint8: "U8",
    dtypes.int8: "I8",
    dtypes.int16: "I16",
    dtypes.int32: "I32",
    dtypes.int64: "I64",
    dtypes.float16: "F16",
    dtypes.bfloat16: "BF16",
    dtypes.float32: "F32",
    dtypes.float64: "F64",
}
_DTYPES: Final = {name: kind for kind, name in _NAMES.items()}
BLOCK: Final = 4 << 20
"""Bytes at a time: they are still in the cache when their checksum is computed and they are copied."""
_PAGE: Final = mmap.PAGESIZE
_METADATA: Final = "__metadata__"


@dataclass(frozen=True)
class Entry:
    """A tensor in a file."""

    dtype: dtypes.dtype
    shape: tuple[int, ...]
    begin: int
    """Where it begins in the file, in bytes."""

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        size: int = math.prod(self.shape) * self.dtype.itemsize
        return size


def layout(arrays: Mapping[str, Any]) -> list[str]:
    """Return the names in the order in which the tensors lie in a file: so that each is aligned."""
    return sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))


def header(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """Return the beginning of a file: what its tensors are, and what else there is to say.

    Args:
        arrays: by name.
        metadata: what else the header says.
    """
    said: dict[str, Any] = {_METADATA: dict(metadata)}
    end = 0
    for name in layout(arrays):
        begin, end = end, end + arrays[name].nbytes
        kind = dtypes.of(arrays[name])
        said[name] = {
            "dtype": _NAMES[kind],
            "shape": list(arrays[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(said, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def encode(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> Iterator[Any]:
    """Yield the buffers that make a file: the header, then C-contiguous arrays on the host as they are."""
    yield header(arrays, metadata)
    for name in layout(arrays):
        yield as_bytes(arrays[name])


def encode_hashed(
    arrays: Mapping[str, Array], metadata: Callable[[Mapping[str, str]], Mapping[str, str]]
) -> tuple[Iterator[Any], Callable[[], bytes]]:
    """Return the buffers that make a file, and a function that gives its header once they are written.

    Args:
        arrays: by name, C-contiguous and on the host.
        metadata: of the header, as a function of the checksum of each array; always as long.
    """
    sums = dict.fromkeys(arrays, "0" * LENGTH)
    preliminary = header(arrays, metadata(sums))

    def chunks() -> Iterator[Any]:
        yield preliminary
        for name in layout(arrays):
            data = as_bytes(arrays[name])
            found = Checksum()
            for begin in range(0, len(data), BLOCK):
                found.update(data[begin : begin + BLOCK])
                yield data[begin : begin + BLOCK]
            sums[name] = found.text

    return chunks(), lambda: header(arrays, metadata(sums))


def as_bytes(array: Array) -> memoryview:
    """Return the memory of a C-contiguous array on the host."""
    return memoryview(array.reshape(-1).view(np.uint8))


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object; for ``json.loads(object_pairs_hook=)``.

    Raises:
        ValueError: a name is there twice.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name is there twice")
    return made


class Window:
    """Where a thread reads files, a block at a time: small tensors that lie side by side cost one read.

    Args:
        nbytes: of a block, at most :data:`BLOCK`.
    """

    def __init__(self, nbytes: int = BLOCK) -> None:
        self._block = new_block(min(-(-nbytes // _PAGE) * _PAGE + _PAGE, BLOCK))
        self._file: TensorFile | None = None
        self._begin = self._end = 0

    def at(self, file: TensorFile, begin: int) -> Array:
        """Return what a file has from byte ``begin`` on, as far as it was read at once; nothing behind its end."""
        if file is not self._file or not self._begin <= begin < self._end:
            self._file, self._begin = file, begin - begin % _PAGE
            self._end = self._begin  # should reading fail
            self._end += file.read_block(self._block.data, self._begin)
        return self._block[begin - self._begin : self._end - self._begin]


class TensorFile:
    """A safetensors file, open to be read; by several threads too, each with a window of its own.

    Args:
        path: of the file.
        display: what to call it in errors; the path by default.

    Raises:
        FileDamaged: it is no such file, or its header and its size do not agree.
        OSError: it cannot be read.
    """

    def __init__(self, path: str, display: str = "") -> None:
        self.display = display or path
        self._direct = False
        try:
            self._file = open_to_read(path)
        except ValueError as error:
            raise FileDamaged(str(error)) from None
        try:
            self.size = os.fstat(self._file).st_size
            self.metadata, self.entries = self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> tuple[dict[str, str], dict[str, Entry]]:
        start = os.pread(self._file, 9, 0)
        length = int.from_bytes(start[:8], "little")
        if len(start) < 9 or length > min(self.size - 8, MAX_HEADER) or start[8:] != b"{":
            raise FileDamaged(
                f"{self.display} is no safetensors file, or its beginning is damaged or cut off: it has {self.size} "
                f"bytes and no header that fits"
            )
        try:
            header = json.loads(self._read(8, length), object_pairs_hook=unique_keys)
            metadata = header.pop(_METADATA, {})
            if not all(type(v) is str for v in metadata.values()):
                raise ValueError("its metadata are no texts")
            entries = {name: _entry(said, 8 + length) for name, said in header.items()}
            end = 8 + length
            for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].nbytes)):
                if entry.begin != end:
                    raise ValueError(f"{name!r:.80} begins at byte {entry.begin}, where {end} was expected")
                end += entry.nbytes
            if end != self.size:
                raise ValueError(f"the tensors end at byte {end} of {self.size}")
        except RecursionError:
            raise FileDamaged(f"{self.display} is damaged: its header is nested too deep") from None
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise FileDamaged(f"{self.display} is damaged: its header is wrong ({error!s:.200})") from None
        return metadata, entries

    def _read(self, begin: int, count: int) -> bytes:
        found = b""
        while len(found) < count:
            more = os.pread(self._file, count - len(found), begin + len(found))
            if not more:
                raise FileDamaged(self._cut(begin + len(found)))
            found += more
        return found

    def _cut(self, at: int) -> str:
        return f"{self.display} was cut at byte {at} of {self.size} while it was read"

    def go_past_cache(self) -> None:
        """Read from the disk into our memory from now on, unless the page cache has the tensors already.

        The kernel then takes no memory for pages of the file, and copies none: the disk is what takes the time. For
        who reads much of a file that nobody beside him reads.
        """
        if not _is_cached(self._file, self.size // 2):
            self._direct = set_direct(self._file, True)

    def read_block(self, out: memoryview, begin: int) -> int:
        """Read bytes from ``begin`` on; both begin where a page does. Return how many there were.

        Raises:
            OSError: they cannot be read.
        """
        direct = self._direct
        try:
            return os.preadv(self._file, [out], begin)
        except OSError as error:
            if error.errno != errno.EINVAL or not direct:
                raise
        # A file system with other wishes: the usual way reads it.
        self._direct = False
        set_direct(self._file, False)
        return os.preadv(self._file, [out], begin)

    def read(
        self,
        name: str,
        checksum: str | None,
        begin: int = 0,
        end: int | None = None,
        out: Array | None = None,
        window: Window | None = None,
    ) -> Array:
        """Return the elements ``begin`` to ``end`` of a tensor on one axis, or all of it in its shape.

        All of it is read and verified in any case; memory is taken for what is returned.

        Args:
            name: of the tensor; it is in :attr:`entries`.
            checksum: of it; ``None`` if nobody knows it.
            begin: the first element wanted.
            end: the last one, and one more; ``None`` for all.
            out: where to put them, in bytes; by default into new memory.
            window: of this thread, which has read what lies before the tensor; by default a new one.

        Raises:
            FileDamaged: these are not the numbers that were written.
        """
        entry = self.entries[name]
        size = entry.dtype.itemsize
        low, high = begin * size, (math.prod(entry.shape) if end is None else end) * size
        wanted = new_memory(high - low) if out is None else out
        found = None if checksum is None else Checksum(checksum)
        window = window or Window(entry.nbytes)
        at = 0
        while at < entry.nbytes:
            chunk = window.at(self, entry.begin + at)[: entry.nbytes - at]
            if not len(chunk):
                raise FileDamaged(self._cut(entry.begin + at))
            if found is not None:
                found.update(chunk.data)
            first, last = max(at, low), min(at + len(chunk), high)
            if first < last:
                wanted[first - low : last - low] = chunk[first - at : last - at]
            at += len(chunk)
        if found is not None and found.text != checksum:
            raise FileDamaged(
                f"{self.display}: checksum differs for tensor {name!r:.200}: these are not the saved numbers"
            )
        if entry.dtype is dtypes.bool_ and wanted.size and wanted.max() > 1:
            raise FileDamaged(f"{self.display}: tensor {name!r:.200} of bool holds other bytes than 0 and 1")
        array = wanted.view(entry.dtype.numpy)
        return array.reshape(entry.shape) if end is None else array

    def close(self) -> None:
        """Let the file go."""
        os.close(self._file)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_cached(file: int, at: int) -> bool:
    """Return whether the page cache has what a file has there, as far as that can be known."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)  # or the question makes the kernel read ahead
    try:
        return os.preadv(file, [bytearray(1)], at, os.RWF_NOWAIT) > 0
    except OSError:  # it would have to wait, or the file system cannot tell
        return False
    finally:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_SEQUENTIAL)


def _entry(said: Any, data: int) -> Entry:
    """Return what a header says of a tensor, its lengths consistent.

    Raises:
        ValueError, TypeError, LookupError: it makes no sense.
    """
    kind, shape, (begin, end) = _DTYPES.get(said["dtype"]), said["shape"], said["data_offsets"]
    if set(said) != {"dtype", "shape", "data_offsets"} or kind is None:
        raise ValueError(f"{said!r:.100} describes no tensor of a known type")
    check_shape(shape)
    if type(begin) is not int or type(end) is not int or begin < 0:
        raise ValueError(f"the offsets {said['data_offsets']!r:.60} are no places in a file")
    entry = Entry(kind, tuple(shape), data + begin)
    if end - begin != entry.nbytes:
        raise ValueError(f"{kind.name} of shape {shape} has {entry.nbytes} bytes, not {end - begin}")
    return entry


def check_shape(shape: Sequence[Any]) -> None:
    """Raise ValueError if this is no shape of an array."""
    if not isinstance(shape, list | tuple) or len(shape) > 64 or any(type(n) is not int for n in shape):
        raise ValueError(f"{shape!r:.60} is no shape")
    if any(not 0 <= n < 1 << 63 for n in shape) or math.prod(n for n in shape if n) >= 1 << 60:
        raise ValueError(f"no array has the shape {shape!r:.60}")
