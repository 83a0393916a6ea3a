"""What a checkpoint says of itself: ``manifest.json``, written last, with the checksum of every tensor and its own."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from disttrain import dtypes
from disttrain.checkpoint.checksums import is_checksum
from disttrain.checkpoint.files import open_to_read
from disttrain.checkpoint.tensorfile import MAX_HEADER, check_shape, unique_keys
from disttrain.errors import FileDamaged

NAME: Final = "manifest.json"
FORMAT: Final = "disttrain.checkpoint"
VERSION: Final = 2
_READ: Final = (1, 2)
"""Versions that are read; they differ in the kind of the tensors' checksums alone."""
_PART: Final = re.compile(r"part-\d{5}\.safetensors")


def part_name(rank: int) -> str:
    """Return the file of the tensors that a rank has written."""
    return f"part-{rank:05}.safetensors"


@dataclass(frozen=True)
class Piece:
    """Some elements of a tensor, in the order of its memory, and where they are."""

    file: str
    begin: int
    end: int
    checksum: str

    @property
    def size(self) -> int:
        """How many elements."""
        return self.end - self.begin


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint."""

    dtype: dtypes.dtype
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    """One after the other; together they are all of it."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        size: int = self.size * self.dtype.itemsize
        return size


def name_in_file(name: str, begin: int, end: int, size: int) -> str:
    """Return what a piece is called in its file: the tensor's name, with a range if it is not all of it."""
    return name if (begin, end) == (0, size) else f"{name}[{begin}:{end}]"


@dataclass
class Manifest:
    """All that a checkpoint is, but for the numbers in its tensors."""

    id: str
    """Drawn anew for each save; its files have it too."""
    step: int
    time: float
    """Seconds since 1970."""
    world_size: int
    generation: int
    metric: float | None
    mode: str
    """``min`` or ``max``: which metric is better."""
    stall: float
    """Seconds for which this save held up the training: the snapshot."""
    seconds: float
    """Seconds from the beginning of the save to this manifest."""
    parts: dict[str, Any]
    """By the name it was saved under: what each object is, as ``serialization.describe`` says it."""
    random: list[list[int]]
    """Of each rank its generator: seed, stream and draw."""
    tensors: dict[str, Stored] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    """Names of tensors that are others under another name (tied weights)."""
    files: dict[str, int] = field(default_factory=dict)
    """Their sizes in bytes."""

    def encode(self) -> bytes:
        """Return the content of the file."""
        content = {
            "id": self.id,
            "step": self.step,
            "time": self.time,
            "world_size": self.world_size,
            "generation": self.generation,
            "metric": None if self.metric is None else float(self.metric).hex(),
            "mode": self.mode,
            "stall": self.stall,
            "seconds": self.seconds,
            "parts": self.parts,
            "random": self.random,
            "tensors": {
                name: {
                    "dtype": t.dtype.name,
                    "shape": list(t.shape),
                    "pieces": [[p.file, p.begin, p.end, p.checksum] for p in t.pieces],
                }
                for name, t in self.tensors.items()
            },
            "aliases": self.aliases,
            "files": self.files,
        }
        head = {"format": FORMAT, "version": VERSION, "sha256": _digest(content)}
        return json.dumps(head | {"content": content}, allow_nan=False, separators=(",", ":")).encode()

    @classmethod
    def read(cls, folder: str) -> Manifest:
        """Read that of a checkpoint.

        Raises:
            FileDamaged: it is not there, or not as it was written.
            OSError: it cannot be read.
        """
        path = os.path.join(folder, NAME)
        try:
            file = open_to_read(path)
        except FileNotFoundError:
            raise FileDamaged(f"{folder} has no {NAME}: it is no checkpoint, or damaged") from None
        except ValueError as error:
            raise FileDamaged(str(error)) from None
        with open(file, "rb") as opened:
            size = os.fstat(file).st_size
            if size > MAX_HEADER:
                raise FileDamaged(f"{path} has {size} bytes; a manifest has at most {MAX_HEADER}")
            text = opened.read(size)
        try:
            return cls._decode(json.loads(text, object_pairs_hook=unique_keys), path)
        except FileDamaged:
            raise
        except RecursionError:
            raise FileDamaged(f"{path} is damaged: it is nested too deep") from None
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise FileDamaged(f"{path} is damaged ({type(error).__name__}: {error!s:.200})") from None

    @classmethod
    def _decode(cls, head: Any, path: str) -> Manifest:
        if head["format"] != FORMAT:
            raise ValueError(f"its format is {head['format']!r:.40}, not {FORMAT!r}")
        if head["version"] not in _READ:
            raise FileDamaged(
                f"{path} has format version {head['version']!r:.20}, and this version of disttrain reads up to "
                f"{VERSION}; it is newer, or damaged"
            )
        content = head["content"]
        if _digest(content) != head["sha256"]:
            raise ValueError("its checksum differs")
        metric = content["metric"]
        made = cls(
            id=_of(str, content["id"]),
            step=_of(int, content["step"]),
            time=float(content["time"]),
            world_size=_of(int, content["world_size"]),
            generation=_of(int, content["generation"]),
            metric=None if metric is None else float.fromhex(metric),
            mode=_of(str, content["mode"]),
            stall=float(content["stall"]),
            seconds=float(content["seconds"]),
            parts=_of(dict, content["parts"]),
            random=[[_of(int, n) for n in state] for state in content["random"]],
            tensors={name: _stored(said) for name, said in content["tensors"].items()},
            aliases={_of(str, k): _of(str, v) for k, v in content["aliases"].items()},
            files={_of(str, k): _of(int, v) for k, v in content["files"].items()},
        )
        made._check()
        return made

    def _check(self) -> None:
        for file in self.files:
            if _PART.fullmatch(file) is None:
                raise ValueError(f"{file!r:.80} is no name of a file of a checkpoint")
        for name, t in self.tensors.items():
            for piece in t.pieces:
                if piece.file not in self.files:
                    raise ValueError(f"tensor {name!r:.80} is in {piece.file!r:.80}, which is not listed")
            check_cover(name, t)
        for alias, name in self.aliases.items():
            if alias in self.tensors or name not in self.tensors:
                raise ValueError(f"{alias!r:.80} cannot be another name of {name!r:.80}")

    def find(self, name: str) -> tuple[str, Stored] | None:
        """Return the tensor with this name, which may be another name of it."""
        real = self.aliases.get(name, name)
        found = self.tensors.get(real)
        return None if found is None else (real, found)

    def names(self, prefix: str) -> list[str]:
        """Return the names of tensors that begin with ``prefix``, other names too, without it."""
        return [n[len(prefix) :] for n in (*self.tensors, *self.aliases) if n.startswith(prefix)]

    @property
    def nbytes(self) -> int:
        """Bytes of all files of tensors."""
        return sum(self.files.values())


def check_cover(name: str, t: Stored) -> None:
    """Raise ValueError if the pieces are not all of the tensor, one after the other."""
    edges = [0, *[p.end for p in t.pieces]]
    starts = [p.begin for p in t.pieces]
    if not t.pieces or starts != edges[:-1] or edges[-1] != t.size or any(b < a for a, b in pairwise(edges)):
        spans = [(p.begin, p.end) for p in t.pieces[:8]]
        raise ValueError(f"tensor {name!r:.80} has {t.size} elements, but its pieces are {spans}")


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":")).encode()
    ).hexdigest()


def _stored(said: Any) -> Stored:
    check_shape(said["shape"])
    pieces = []
    for file, begin, end, checksum in said["pieces"]:
        if not is_checksum(checksum) or type(begin) is not int or type(end) is not int:
            raise ValueError(f"{[file, begin, end, checksum]!r:.100} is no piece of a tensor")
        pieces.append(Piece(_of(str, file), begin, end, checksum))
    return Stored(dtypes.BY_NAME[said["dtype"]], tuple(said["shape"]), tuple(pieces))


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r:.60} is no {kind.__name__}")
    return value
