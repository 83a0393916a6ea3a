"""Files of tensors that other programs have written: PyTorch's, safetensors of Hugging Face, NumPy's ``.npz``.

Nothing in them is run, and no more memory is taken than the file has bytes (of a compressed ``.npz``: than it says it
unpacks to, at most what its compression can do).
"""

from __future__ import annotations

import errno
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, Final, cast

import numpy as np
from numpy.lib import format as npy

from disttrain import dtypes
from disttrain.checkpoint.files import open_to_read
from disttrain.checkpoint.tensorfile import TensorFile, Window, unique_keys
from disttrain.checkpoint.unpickler import CONTAINERS, Call, Unpickler
from disttrain.devices import device as Device
from disttrain.errors import FileDamaged
from disttrain.kernels.arrays import Array
from disttrain.tensors import Size, Tensor

_INDEX: Final = "model.safetensors.index.json"
_SINGLE: Final = "model.safetensors"
_MAX_INDEX: Final = 100_000_000
_MAGIC: Final = 0x1950A86A20F9469CFC6C
_PROTOCOL: Final = 1001
_MAX_RATIO: Final = 1100
"""Deflate makes at most about 1,032 bytes of one."""
_BROKEN_ZIP: Final = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    EOFError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)
_STORAGES: Final = {
    "DoubleStorage": dtypes.float64,
    "FloatStorage": dtypes.float32,
    "HalfStorage": dtypes.float16,
    "BFloat16Storage": dtypes.bfloat16,
    "LongStorage": dtypes.int64,
    "IntStorage": dtypes.int32,
    "ShortStorage": dtypes.int16,
    "CharStorage": dtypes.int8,
    "ByteStorage": dtypes.uint8,
    "BoolStorage": dtypes.bool_,
}


def read_foreign(path: str | os.PathLike[str]) -> Any:
    """Return what a file of another program holds, in host memory.

    * ``.pt``, ``.pth`` of ``torch.save`` (the zip form and the older one): tensors in dicts, OrderedDicts, lists,
      tuples and sets, with numbers, texts, dtypes, sizes and devices. Anything else in it is refused by name.
    * ``.safetensors``, or a folder or ``model.safetensors.index.json`` of a model that is in several of them: tensors
      by name.
    * ``.npz``: arrays by name, as tensors where a Tensor can have the type.

    What a file is, it says itself; its name does not matter. Links are followed.

    Args:
        path: of the file or folder.

    Raises:
        FileDamaged: it is none of these, damaged, or holds what is not allowed.
        OSError: it cannot be read.
    """
    name = os.path.realpath(os.fspath(path))
    if os.path.isdir(name):
        inside = [f for f in (_INDEX, _SINGLE) if os.path.exists(os.path.join(name, f))]
        if not inside:
            raise FileDamaged(f"{os.fspath(path)} is a folder without {_INDEX} and without {_SINGLE}")
        name = os.path.realpath(os.path.join(name, inside[0]))
        folder = os.fspath(path)
        return _read_sharded(folder, name) if inside[0] == _INDEX else _read_safetensors(name)
    try:
        file = open_to_read(name)
    except ValueError as error:
        raise FileDamaged(str(error)) from None
    with open(file, "rb") as opened:
        start = opened.read(9)
        opened.seek(0)
        if start[:2] == b"PK":
            return _read_zip(name, opened)
        if start[:1] == b"\x80" and start[1:2] <= b"\x05" and start[8:9] != b"{":
            return _read_old_torch(name, opened.read())
    if start[:1] == b"{" and os.fspath(path).endswith(".json"):
        return _read_sharded(os.path.dirname(os.path.abspath(os.fspath(path))), name)
    return _read_safetensors(name)


# ------------------------------------------------------------------------------------------- safetensors


def _read_safetensors(path: str) -> dict[str, Tensor]:
    with TensorFile(path) as file:
        return _tensors(file, file.entries)


def _tensors(file: TensorFile, names: Iterable[str]) -> dict[str, Tensor]:
    window = Window(file.size)
    return {name: Tensor._of(file.read(name, None, window=window)) for name in names}


def _read_sharded(folder: str, index: str) -> dict[str, Tensor]:
    with open(open_to_read(index), "rb") as file:
        if os.fstat(file.fileno()).st_size > _MAX_INDEX:
            raise FileDamaged(f"{index} is larger than {_MAX_INDEX} bytes")
        text = file.read()
    try:
        where = json.loads(text, object_pairs_hook=unique_keys)["weight_map"]
        homes: dict[str, list[str]] = {}
        for name, home in where.items():
            if type(home) is not str or home != os.path.basename(home) or not home.endswith(".safetensors"):
                raise ValueError(f"{name!r:.60} is in {home!r:.60}, which is no file beside it")
            homes.setdefault(home, []).append(name)
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise FileDamaged(f"{index} is damaged ({type(error).__name__}: {error!s:.200})") from None
    found: dict[str, Tensor] = {}
    for home, names in homes.items():
        try:
            file_of = TensorFile(os.path.realpath(os.path.join(folder, home)), home)
        except FileNotFoundError:
            raise FileDamaged(f"{index} names {home!r:.80}, which is missing") from None
        with file_of as file:
            lacking = [name for name in names if name not in file.entries]
            if lacking:
                raise FileDamaged(f"{home} lacks {lacking[:5]}, which {index} says it has")
            found |= _tensors(file, names)
    return found


# ------------------------------------------------------------------------------------------- zip: .pt and .npz


class _Clamped:
    """A file of which nobody asks for more than there is: ``read(n)`` takes memory for ``n`` bytes first."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self.seek = file.seek
        self.tell = file.tell
        self.seekable = file.seekable
        self.close = file.close

    def read(self, count: int = -1) -> bytes:
        """Return the next bytes."""
        rest = max(0, self._size - self._file.tell())
        return self._file.read(rest if count < 0 else min(count, rest))


def _read_zip(path: str, file: BinaryIO) -> Any:
    try:
        with zipfile.ZipFile(cast(BinaryIO, _Clamped(file))) as archive:
            names = [info.filename for info in archive.infolist()]
            if len(set(names)) < len(names):
                raise FileDamaged(f"{path} holds a name twice")
            pickles = [name for name in names if name.endswith("/data.pkl") or name == "data.pkl"]
            if len(pickles) == 1:
                size = os.fstat(file.fileno()).st_size
                return _ZipOfTorch(path, archive, pickles[0].removesuffix("data.pkl"), size).read()
            if names and all(name.endswith(".npy") for name in names):
                return {name.removesuffix(".npy"): _read_npy(path, archive, name) for name in names}
    except _BROKEN_ZIP as error:
        if isinstance(error, FileDamaged):
            raise
        raise FileDamaged(f"{path} is damaged: {error!s:.200}") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # of an offset that is none
            raise
        raise FileDamaged(f"{path} is damaged: it refers to places outside of it") from None
    raise FileDamaged(f"{path} is a zip archive, but neither a file of torch.save() nor of numpy.savez()")


def _read_npy(path: str, archive: zipfile.ZipFile, name: str) -> Any:
    info = archive.getinfo(name)
    if info.file_size > _MAX_RATIO * max(info.compress_size, 1):
        raise FileDamaged(f"{path}: {name!r:.80} says that it has {info.file_size} bytes, which cannot be")
    with archive.open(info) as file:
        version = npy.read_magic(file)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if read_header is None:
            raise FileDamaged(f"{path}: {name!r:.80} has the npy version {version}, which is not read")
        shape, columns, kind = read_header(file)
        if kind.hasobject:
            raise FileDamaged(
                f"{path}: {name!r:.80} holds Python objects, which are pickles and can run code"
            )
        if math.prod(shape) * kind.itemsize != info.file_size - file.tell():
            raise FileDamaged(f"{path}: {name!r:.80} has other bytes than its shape {shape} says")
        content = bytearray(file.read())  # and verifies the checksum
    array = np.frombuffer(content, kind).reshape(shape, order="F" if columns else "C")
    try:
        dtypes.of(array)
    except TypeError:
        return array
    return Tensor._of(array)


# ------------------------------------------------------------------------------------------- PyTorch's pickles


class _Storage:
    """The memory of tensors, by its place in the file."""

    def __init__(self, kind: dtypes.dtype | None, data: Array | None) -> None:
        self.kind = kind
        """None if each tensor says its own."""
        self.data = data
        """Its bytes; none in a first pass that only looks for the end of a pickle."""


def _names(rebuild: Callable[..., Any]) -> dict[str, Any]:
    """Return what a pickle of PyTorch's may name."""
    names = dict(CONTAINERS)
    names |= {f"torch {name}": kind for name, kind in _STORAGES.items()}
    names |= {"torch.storage UntypedStorage": None, "torch UntypedStorage": None}
    names |= {f"torch {d.name}": d for d in dtypes.ALL}
    names["torch bool"] = dtypes.bool_
    names["torch Size"] = Call(lambda sizes: Size(sizes))
    names["torch device"] = Call(lambda *args: Device(*args))
    v2 = Call(
        lambda storage, offset, size, stride, *rest: rebuild(storage, offset, size, stride, None, *rest[2:])
    )
    names["torch._utils _rebuild_tensor"] = v2
    names["torch._utils _rebuild_tensor_v2"] = v2
    names["torch._utils _rebuild_tensor_v3"] = Call(
        lambda storage, offset, size, stride, grad, hooks, kind, *metadata: rebuild(
            storage, offset, size, stride, kind, *metadata
        )
    )
    names["torch._utils _rebuild_parameter"] = Call(lambda data, *_: data)
    names["torch._utils _rebuild_parameter_with_state"] = Call(lambda data, *_: data)
    return names


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, kind: Any, metadata: Any = None) -> Any:
    """Return a tensor that shares the memory of its storage, as it did."""
    if not isinstance(storage, _Storage):
        raise TypeError("a tensor without a storage")
    kind = storage.kind if kind is None else kind
    if not isinstance(kind, dtypes.dtype):
        raise TypeError(f"a tensor of type {kind!r:.60}")
    if metadata:
        raise ValueError(f"a tensor with {metadata!r:.60}: conjugate or negative views are not read")
    if type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride) or len(size) > 64:
        raise ValueError(f"a tensor of size {size!r:.60} and stride {stride!r:.60}")
    if any(type(n) is not int or not 0 <= n < 1 << 60 for n in (offset, *size, *stride)):
        raise ValueError(f"a tensor of size {size!r:.60}, stride {stride!r:.60} and offset {offset!r:.30}")
    if storage.data is None:
        return None
    memory = storage.data.view(kind.numpy)
    count = math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if count else offset
    if last >= memory.size + (count == 0):
        raise ValueError(f"a tensor of size {size} ends at element {last} of a storage of {memory.size}")
    if count > memory.size:
        raise ValueError(
            f"a tensor of size {size} repeats the {memory.size} elements of its storage; save a contiguous() copy"
        )
    if kind is dtypes.bool_ and memory.size and memory.view(np.uint8).max() > 1:
        raise ValueError("a tensor of bool with other bytes than 0 and 1")
    strides = [s * kind.itemsize for s in stride]
    return Tensor._of(np.ndarray(size, kind.numpy, memory, offset * kind.itemsize, strides))


def _said_of_storage(said: Any) -> tuple[dtypes.dtype | None, str, int]:
    """Return type, key and number of elements of a storage, of what a pickle says of it."""
    if type(said) is not tuple or len(said) < 5 or said[0] != "storage" or type(said[4]) is not int:
        raise ValueError(f"{said!r:.80} is no storage")
    kind, key, count = said[1], said[2], said[4]
    if not (kind is None or isinstance(kind, dtypes.dtype)) or type(key) is not str or count < 0:
        raise ValueError(f"{said!r:.80} is no storage")
    if len(said) > 5 and said[5] is not None:
        raise ValueError(
            "a storage that is a view of another, of a very old PyTorch; save it again with a newer one"
        )
    return kind, key, count


class _ZipOfTorch:
    """What ``torch.save`` writes: a zip archive, not compressed, with a pickle and a file for each storage."""

    def __init__(self, path: str, archive: zipfile.ZipFile, prefix: str, size: int) -> None:
        self._path = path
        self._archive = archive
        self._prefix = prefix
        self._storages: dict[str, _Storage] = {}
        self._left = size
        """Bytes that may still be read: entries that overlap do not make more of them."""

    def read(self) -> Any:
        names = set(self._archive.namelist())
        if f"{self._prefix}constants.pkl" in names:
            raise FileDamaged(f"{self._path} is TorchScript, a program; save a state dict with torch.save()")
        if f"{self._prefix}byteorder" in names and self._bytes("byteorder") != b"little":
            raise FileDamaged(f"{self._path} was written on a machine of another byte order")
        pickle = self._bytes("data.pkl")
        return Unpickler(pickle, 0, _names(_rebuild), self._storage, self._path).load()

    def _bytes(self, name: str) -> bytes:
        info = self._archive.getinfo(self._prefix + name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > self._left:
            raise FileDamaged(f"{self._path} is damaged: {name!r:.80} is compressed, or longer than the file")
        self._left -= info.file_size
        return self._archive.read(info)

    def _storage(self, said: Any) -> _Storage:
        kind, key, count = _said_of_storage(said)
        if key not in self._storages:
            data = np.frombuffer(bytearray(self._bytes(f"data/{key}")), np.uint8)
            self._storages[key] = _Storage(kind, data)
        found = self._storages[key]
        if found.kind is not kind or (found.data is not None and found.data.size != count * _itemsize(kind)):
            raise ValueError(f"storage {key!r:.40} is of another size or type than it says")
        return found


def _itemsize(kind: dtypes.dtype | None) -> int:
    return 1 if kind is None else int(kind.itemsize)


def _read_old_torch(path: str, content: bytes) -> Any:
    """Read what ``torch.save`` wrote before 1.6: pickles one after the other, then the storages."""

    def refuse(said: Any) -> Any:
        raise ValueError("a reference where there is none")

    at = 0
    heads = []
    for expected in (_MAGIC, _PROTOCOL, None):
        head = Unpickler(content, at, {}, refuse, path)
        heads.append(head.load())
        at = head.end
        if expected not in (None, heads[-1]):
            raise FileDamaged(
                f"{path} is a pickle, but not of torch.save(); pickles are not read: they can run code"
            )
    if type(heads[2]) is not dict or heads[2].get("little_endian") is not True:
        raise FileDamaged(f"{path} was written on a machine of another byte order")
    said: dict[str, tuple[dtypes.dtype | None, int]] = {}

    def note(of: Any) -> _Storage:
        kind, key, count = _said_of_storage(of)
        if said.setdefault(key, (kind, count)) != (kind, count):
            raise ValueError(f"storage {key!r:.40} is of two sizes or types")
        return _Storage(kind, None)

    # The storages come after the pickle that needs them: the first pass finds where it ends.
    first = Unpickler(content, at, _names(_rebuild), note, path)
    first.load()
    keys = Unpickler(content, first.end, {}, refuse, path)
    order, place = keys.load(), keys.end
    if type(order) is not list or set(map(str, order)) != set(said) or len(order) != len(said):
        raise FileDamaged(f"{path} is damaged: it has other storages than its tensors need")
    storages: dict[str, _Storage] = {}
    for key in order:
        kind, count = said[key]
        begin, size = place + 8, count * _itemsize(kind)
        if int.from_bytes(content[place:begin], "little") != count or begin + size > len(content):
            raise FileDamaged(
                f"{path} is damaged: it is cut, or storage {key!r:.40} has another size than it says"
            )
        place = begin + size
        storages[key] = _Storage(kind, np.frombuffer(bytearray(content[begin:place]), np.uint8))
    if place != len(content):
        raise FileDamaged(f"{path} is damaged: {len(content) - place} bytes are left at its end")
    return Unpickler(content, at, _names(_rebuild), lambda of: storages[of[2]], path).load()
