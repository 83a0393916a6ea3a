"""Data sets packed into tar files in the layout of WebDataset, with an index: any sample by one read.

A sample is the members of one shard that share a *key*, their path up to the first dot of the file's name; what is
behind the dot is the *field*: ``cats/0001.jpg`` and ``cats/0001.cls`` are the fields ``jpg`` and ``cls`` of the sample
``cats/0001``. The index, ``index.npz`` beside the shards, says where each field lies, how long it is, and its CRC-32.
"""

from __future__ import annotations

import io
import itertools
import json
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from disttrain.data.dataset import Dataset
from disttrain.data.files import Part, StrPath
from disttrain.data.sampler import epoch_order
from disttrain.errors import FileDamaged, SampleDamaged
from disttrain.kernels.arrays import Array
from disttrain.whole_files import replacing

INDEX: Final = "index.npz"
_VERSION: Final = 1
_OPEN: Final = 64
"""Shards that stay open."""
_IMAGES: Final = ("jpg", "jpeg", "png", "webp", "bmp", "ppm", "gif")
_NUMBERS: Final = ("cls", "cls2", "class", "index", "inx", "id")
_TEXTS: Final = ("txt", "text", "transcript")
_FROM_1980: Final = 315532800
"""Time of all members, so that equal data make equal shards."""


def decode(field: str, data: bytes) -> Any:
    """Return what a field holds, by the end of its name as WebDataset decodes it; what is not known stays bytes.

    ``jpg`` and other images: a ``PIL.Image`` in RGB; ``npy``: an array; ``json``: what it says; ``cls`` and other
    numbers: an int; ``txt``: a string. Nothing is unpickled.

    Raises:
        ValueError, OSError: it holds something else.
    """
    kind = field.rpartition(".")[2].lower()
    if kind in _IMAGES:
        from PIL import Image

        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    if kind == "npy":
        return np.load(io.BytesIO(data), allow_pickle=False)
    if kind == "json":
        return json.loads(data)
    if kind in _NUMBERS:
        return int(data)
    if kind in _TEXTS:
        return data.decode()
    return data


@dataclass(frozen=True)
class Index:
    """Where the fields of all samples are; F fields, N samples."""

    shards: list[str]
    """File names."""
    shard_bytes: Array
    """int64, by shard."""
    fields: list[str]
    keys: list[str]
    """By sample."""
    shard: Array
    """int64, (N,): which shard holds the sample."""
    offsets: Array
    """int64, (N, F): where a field begins in its shard; -1 if the sample has none of that name."""
    sizes: Array
    """int64, (N, F)."""
    checksums: Array
    """uint32, (N, F): CRC-32."""

    def save(self, folder: Path) -> None:
        """Write it beside the shards, whole or not at all."""
        keys = [key.encode() for key in self.keys]
        with replacing(folder / INDEX) as file:
            np.savez(
                file,
                version=np.array(_VERSION),
                shards=np.array(self.shards),
                shard_bytes=self.shard_bytes,
                fields=np.array(self.fields),
                keys=np.frombuffer(b"".join(keys), np.uint8),
                key_ends=np.cumsum([len(key) for key in keys], dtype=np.int64),
                shard=self.shard,
                offsets=self.offsets,
                sizes=self.sizes,
                checksums=self.checksums,
            )

    @classmethod
    def load(cls, folder: Path) -> Index:
        """Read what :meth:`save` has written.

        Raises:
            FileNotFoundError: there is no index.
            FileDamaged: it does not hold what it should.
        """
        path = folder / INDEX
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no {INDEX} in {folder}; make it by: disttrain data index {folder}"
            )
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                if int(file["version"]) != _VERSION:
                    raise FileDamaged(
                        f"{path} is of version {int(file['version'])}, and this disttrain reads {_VERSION}; "
                        f"make it anew: disttrain data index {folder}"
                    )
                joined, ends = file["keys"].tobytes(), [0, *file["key_ends"].tolist()]
                index = cls(
                    file["shards"].tolist(),
                    file["shard_bytes"].astype(np.int64, casting="safe"),
                    file["fields"].tolist(),
                    [joined[a:b].decode() for a, b in itertools.pairwise(ends)],
                    file["shard"].astype(np.int64, casting="safe"),
                    file["offsets"].astype(np.int64, casting="safe"),
                    file["sizes"].astype(np.int64, casting="safe"),
                    file["checksums"].astype(np.uint32, casting="safe"),
                )
        except FileDamaged:
            raise
        except Exception as error:  # of what kind, depends on which bytes are wrong
            raise FileDamaged(
                f"{path} is damaged ({error}); make it anew: disttrain data index {folder}"
            ) from error
        index._check(path)
        return index

    def _check(self, path: Path) -> None:
        """Refuse what would read outside of the shards."""
        count, fields = len(self.keys), len(self.fields)
        tables = (self.offsets, self.sizes, self.checksums)
        wrong = ""
        if any(not name or Path(name).name != name for name in self.shards):
            wrong = "a shard's name is no name of a file in the folder"
        elif (
            len(self.shards) != len(self.shard_bytes)
            or self.shard.shape != (count,)
            or any(table.shape != (count, fields) for table in tables)
        ):
            wrong = "its parts have different lengths"
        elif count and (self.shard.min() < 0 or self.shard.max() >= len(self.shards)):
            wrong = "a sample is in a shard that is not named"
        elif ((self.offsets < -1) | (self.sizes < 0)).any():
            wrong = "an offset or a size is negative"
        elif count and (self.offsets > self.shard_bytes[self.shard][:, None] - self.sizes).any():
            wrong = "a field reaches over the end of its shard"
        if wrong:
            raise FileDamaged(f"{path} is damaged: {wrong}; make it anew: disttrain data index {path.parent}")


class TarDataset(Dataset[Any]):
    """Samples of tar shards in the layout of WebDataset, by number, in any order.

    Args:
        folder: of shards with an index; ``disttrain data pack`` makes both, ``disttrain data index`` an index of
            shards that there are.
        fields: what makes a sample, a tuple of these fields; alternatives are separated by ``;`` as in
            ``("jpg;png", "cls")``. By default samples are dicts of all that they have, with ``"__key__"``.
        transform: applied to the first of ``fields``; without ``fields`` to the dict.
        target_transform: applied to the second one.
        decode: make values of the bytes of each field, as :func:`decode` does; else they stay bytes.
        verify: compare the CRC-32 of what is read.
        skip_damaged: a DataLoader goes on without damaged samples, and says which; else they are an error.

    Raises:
        FileNotFoundError: there is no index, or a shard is missing.
        FileDamaged: the index is damaged, or a shard is not as long as when it was indexed.
        ValueError: a sample has none of the alternatives of a field.
    """

    def __init__(
        self,
        folder: StrPath,
        fields: Sequence[str] | None = None,
        *,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        decode: bool = True,
        verify: bool = True,
        skip_damaged: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self._index = index = Index.load(self.folder)
        self._parts: list[Part | None] = []
        self._opened: OrderedDict[int, Part] = OrderedDict()
        for name, nbytes in zip(index.shards, index.shard_bytes.tolist(), strict=True):
            self._parts.append(self._find(name, nbytes, skip_damaged))
        self._chosen: list[Array] | None = None
        """For each of ``fields``, the column of the index by sample."""
        if fields is not None:
            self._chosen = [self._choose(field.split(";")) for field in fields]
        if target_transform is not None and (fields is None or len(fields) < 2):
            raise ValueError("target_transform is for the second of the fields; name at least two")
        self.transform = transform
        self.target_transform = target_transform
        self._decode = decode
        self._verify = verify
        self._skip = skip_damaged

    def _find(self, name: str, nbytes: int, skip: bool) -> Part | None:
        path = self.folder / name
        try:
            part = Part(path)
        except FileNotFoundError:
            if skip:
                return None
            raise FileNotFoundError(f"shard {path} is missing, which the index names") from None
        if part.size != nbytes and not skip:
            raise FileDamaged(
                f"shard {path} has {part.size} bytes, and had {nbytes} when it was indexed; get it again, or make "
                f"the index anew: disttrain data index {self.folder}"
            )
        return part

    def _choose(self, names: list[str]) -> Array:
        index = self._index
        chosen = np.full(len(index.keys), -1)
        for name in reversed(names):
            if name in index.fields:
                column = index.fields.index(name)
                chosen[index.offsets[:, column] >= 0] = column
        if (chosen < 0).any():
            sample = int((chosen < 0).argmax())
            raise ValueError(
                f"sample {index.keys[sample]!r} of {self.folder} has no field {' or '.join(map(repr, names))}; it "
                f"has {', '.join(n for n, at in zip(index.fields, index.offsets[sample], strict=True) if at >= 0)}"
            )
        return chosen

    def key(self, index: int) -> str:
        """Return the key of a sample."""
        return self._index.keys[index]

    def __getitem__(self, index: Any) -> Any:
        i = int(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"index {i} is out of range for {len(self)} samples")
        i %= len(self)
        if self._chosen is None:
            columns = np.flatnonzero(self._index.offsets[i] >= 0).tolist()
            sample = {"__key__": self._index.keys[i]}
            sample |= {self._index.fields[column]: self.read(i, column) for column in columns}
            return sample if self.transform is None else self.transform(sample)
        values = [self.read(i, int(column[i])) for column in self._chosen]
        for at, transform in enumerate((self.transform, self.target_transform)):
            if transform is not None:
                values[at] = transform(values[at])
        return tuple(values)

    def read(self, sample: int, column: int) -> Any:
        """Return a field of a sample.

        Args:
            sample: its number, from 0.
            column: number of the field.

        Raises:
            SampleDamaged: it is not what was indexed; names shard, offset, sample and rank.
        """
        index = self._index
        shard, offset = int(index.shard[sample]), int(index.offsets[sample, column])
        field = index.fields[column]
        try:
            part = self._open(shard, sample)
            data = part.read(offset, int(index.sizes[sample, column]), sample)
            if self._verify and zlib.crc32(data) != index.checksums[sample, column]:
                raise part.damaged(f"is damaged in field {field!r} of {index.keys[sample]!r}", offset, sample)
            if not self._decode:
                return data
            try:
                return decode(field, data)
            except (ValueError, OSError) as error:
                raise part.damaged(
                    f"has a field {field!r} of {index.keys[sample]!r} that cannot be decoded: {error}",
                    offset,
                    sample,
                ) from error
        except SampleDamaged as error:
            error.skipped = self._skip
            raise

    def _open(self, shard: int, sample: int) -> Part:
        part = self._parts[shard]
        if part is None:
            raise SampleDamaged(
                f"{self.folder / self._index.shards[shard]} is missing (sample {sample}, "
                f"{self._index.keys[sample]!r})"
            )
        self._opened[shard] = part
        self._opened.move_to_end(shard)
        if len(self._opened) > _OPEN:
            self._opened.popitem(last=False)[1].close()
        return part

    def __len__(self) -> int:
        return len(self._index.keys)

    def verify(self) -> Iterator[SampleDamaged]:
        """Read all of it, and yield what is damaged."""
        for sample in range(len(self)):
            for column in np.flatnonzero(self._index.offsets[sample] >= 0).tolist():
                try:
                    self.read(sample, column)
                except SampleDamaged as error:
                    yield error


def build_index(folder: StrPath) -> Index:
    """Index the tar files of a folder, in the order of their names, and write the index beside them.

    Raises:
        FileNotFoundError: there is no tar file.
        FileDamaged: one is damaged, or has two members of one name; names it.
    """
    folder = Path(folder)
    shards = sorted(path for path in folder.iterdir() if path.suffix == ".tar" and path.is_file())
    if not shards:
        raise FileNotFoundError(f"there is no .tar file in {folder}")
    found: list[tuple[int, str, dict[str, tuple[int, int, int]]]] = []
    for number, path in enumerate(shards):
        samples: dict[str, dict[str, tuple[int, int, int]]] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if not member.isfile():
                        continue
                    key, field = split_name(member.name)
                    if not field:
                        continue
                    fields = samples.setdefault(key, {})
                    if field in fields:
                        raise FileDamaged(f"shard {path} has two members {member.name!r}")
                    content = tar.extractfile(member)
                    data = b"" if content is None else content.read()
                    if len(data) != member.size:
                        raise FileDamaged(f"shard {path} ends within {member.name!r}")
                    fields[field] = member.offset_data, member.size, zlib.crc32(data)
        except (tarfile.TarError, OSError) as error:
            raise FileDamaged(f"shard {path} is no whole tar file: {error}") from error
        found += [(number, key, fields) for key, fields in samples.items()]
    names = sorted({field for _, _, fields in found for field in fields})
    absent = (-1, 0, 0)
    table = np.array(
        [[fields.get(name, absent) for name in names] for _, _, fields in found], np.int64
    ).reshape(len(found), len(names), 3)
    index = Index(
        [path.name for path in shards],
        np.array([path.stat().st_size for path in shards], np.int64),
        names,
        [key for _, key, _ in found],
        np.array([number for number, _, _ in found], np.int64),
        table[..., 0],
        table[..., 1],
        table[..., 2].astype(np.uint32),
    )
    index.save(folder)
    return index


def split_name(name: str) -> tuple[str, str]:
    """Return the key and the field of a member of a shard; no field for what begins with a dot or has none."""
    folder, _, file = name.rpartition("/")
    stem, _, field = file.partition(".")
    if not stem:
        return "", ""
    return f"{folder}/{stem}" if folder else stem, field


def pack(
    source: StrPath, target: StrPath, *, shard_bytes: int = 256 << 20, shuffle: int | None = None
) -> Index:
    """Pack a folder of files into shards, and index them.

    Files of one key are a sample. If ``source`` holds folders and no files, each folder is a class, as for
    ``ImageFolder``: samples get a field ``cls`` with its number in the order of the names, and ``classes.json`` beside
    the shards lists them.

    Args:
        source: the folder.
        target: a new or empty folder.
        shard_bytes: begin a new shard past so many bytes.
        shuffle: seed of a random order of the samples; by default that of their names.

    Raises:
        ValueError: there is no sample, ``target`` is not empty, or a file would be in two samples.
    """
    source, target = Path(source), Path(target)
    if shard_bytes < 1:
        raise ValueError(f"a shard needs a positive size, got {shard_bytes} bytes")
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise ValueError(f"{target} is not empty; give a new folder")
    classes = _classes(source)
    samples = _samples(source, classes)
    if not samples:
        raise ValueError(f"there is no file with a name like key.field in {source}")
    keys = sorted(samples)
    if shuffle is not None:
        keys = [keys[i] for i in epoch_order(len(keys), shuffle, 0).tolist()]
    if classes:
        (target / "classes.json").write_text(json.dumps(classes))

    def members(share: list[str]) -> Iterator[tuple[str, bytes]]:
        for key in share:
            for field, path in sorted(samples[key].items()):
                yield f"{key}.{field}", path.read_bytes()
            if classes:
                yield f"{key}.cls", str(classes.index(key.partition("/")[0])).encode()

    for number, share in enumerate(_shares(keys, samples, shard_bytes)):
        _write_shard(target / f"{number:06d}.tar", members(share))
    return build_index(target)


def _classes(source: Path) -> list[str]:
    entries = [entry for entry in source.iterdir() if not entry.name.startswith(".")]
    return sorted(entry.name for entry in entries) if all(entry.is_dir() for entry in entries) else []


def _samples(source: Path, classes: list[str]) -> dict[str, dict[str, Path]]:
    samples: dict[str, dict[str, Path]] = {}
    for path in sorted(source.rglob("*")):
        if not path.is_file():
            continue
        key, field = split_name(path.relative_to(source).as_posix())
        if not field or any(part.startswith(".") for part in path.relative_to(source).parts):
            continue
        fields = samples.setdefault(key, {})
        if field in fields or (classes and field == "cls"):
            raise ValueError(
                f"{path} would be field {field!r} of {key!r} a second time; give it another name"
            )
        fields[field] = path
    return samples


def _shares(
    keys: Sequence[str], samples: dict[str, dict[str, Path]], shard_bytes: int
) -> Iterator[list[str]]:
    """Yield the keys of each shard."""
    share: list[str] = []
    size = 0
    for key in keys:
        share.append(key)
        size += sum(path.stat().st_size for path in samples[key].values())
        if size >= shard_bytes:
            yield share
            share, size = [], 0
    if share:
        yield share


def _write_shard(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a shard, whole or not at all."""
    with (
        replacing(path) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), _FROM_1980
            tar.addfile(member, io.BytesIO(data))
