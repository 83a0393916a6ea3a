"""One rank's part in one call: what it asks for, the header that is compared, and the words of an error."""

import os
import struct
import sys
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy

from disttrain.collectives.errors import CollectiveMismatch
from disttrain.kernels.arrays import Array

Tag = tuple[int, int, int]
"""(generation, synchronised backward number, bucket), or whatever three numbers must agree on all ranks."""

DTYPES = tuple(
    numpy.dtype(t)
    for t in (
        [
            "bool",
            "uint8",
            "uint16",
            "uint32",
            "uint64",
            "int8",
            "int16",
            "int32",
            "int64",
            "float16",
            "float32",
            "float64",
        ]
        + [ml_dtypes.bfloat16]
    )
)
"""The dtypes that every verb accepts."""

OPS = ("sum", "prod", "min", "max")
"""The reductions. For bool, sum and max are "or", prod and min "and". NaN wins min and max, as in NumPy"""

BIT_OPS = ("band", "bor", "bxor")
"""The reductions bit by bit, of bool and integers."""

VERBS = (
    *("all_reduce", "reduce", "reduce_scatter", "all_gather", "gather", "scatter", "broadcast", "all_to_all"),
    *("barrier", "split", "send/recv", "close", "rank0_first", "all_gather_v", "all_to_all_v"),
)

_DTYPE_CODE = {dtype: i for i, dtype in enumerate(DTYPES)}
_OP_CODE = {"": -1} | {op: i for i, op in enumerate(OPS + BIT_OPS)}
_VERB_CODE = {verb: i for i, verb in enumerate(VERBS)}
_HEADER = struct.Struct("<11q")
HEADER_BYTES = _HEADER.size
RECORD_BYTES = 512
"""Size of the description that each rank sends once headers differ."""

NOT_THE_CALLER = (
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,
    os.path.dirname(numpy.__file__) + os.sep,  # its context managers wrap functions of ours
)
NO_TAG: Tag = (-1, -1, -1)
AT_THE_END = ("the end of the program", 0)
"""The ``source`` of the call that a rank makes by ending."""


class Call:
    """What one rank asked for.

    ``x`` is what it contributes, ``out`` what it receives into, ``like`` what must have one shape and dtype,
    ``pair`` the sender and the receiver of a message (group indices); ``sends`` and ``receives`` how many elements go
    to and come from each rank, where that is not the same for all."""

    __slots__ = (
        *("verb", "x", "out", "like", "op", "root", "tag", "pair", "source", "generation", "number", "index"),
        *("finished", "error", "result", "awaited", "sends", "receives"),
    )

    def __init__(
        self,
        verb: str,
        x: Array | None = None,
        out: Array | None = None,
        *,
        like: Array | None = None,
        op: str = "",
        root: int = -1,
        tag: Tag = NO_TAG,
        pair: tuple[int, int] | None = None,
        sends: Sequence[int] = (),
        receives: Sequence[int] = (),
    ) -> None:
        self.verb = verb
        self.x: Any = x
        self.out: Any = out
        self.like: Any = x if like is None else like
        self.op = op
        self.root = root
        self.tag = tag
        self.pair = pair
        self.sends = tuple(sends)
        self.receives = tuple(receives)
        self.source = _caller()
        self.number = -1
        self.index = -1
        self.generation = 0
        self.finished = False
        self.error: BaseException | None = None
        self.result: Any = None
        self.awaited: str | None = None
        """What rank 0 does for as long as it takes while this call waits for it."""

    def header(self) -> bytes:
        """Return what must be equal on all ranks of the group."""
        dtype, count, shape = -1, 0, 0
        if self.like is not None:
            dtype = _DTYPE_CODE[self.like.dtype]
            if self.sends:  # all_to_all_v: the counts differ, and are compared pair by pair
                pass
            elif self.receives:  # all_gather_v
                count, shape = sum(self.receives), _shape_code(self.receives)
            else:
                count, shape = self.like.size, _shape_code(self.like.shape)
        return _HEADER.pack(
            self.generation,
            self.number,
            *self.tag,
            _VERB_CODE[self.verb],
            _OP_CODE[self.op],
            dtype,
            count,
            shape,
            self.root,
        )

    def record(self) -> bytes:
        """Return the call in words, padded to a fixed size."""
        text = f"{self} at {self.place}".encode()
        return text[:RECORD_BYTES].ljust(RECORD_BYTES, b"\0")

    @property
    def place(self) -> str:
        """``file:line`` of the caller outside this package (and NumPy)."""
        name, line = self.source
        if not line:
            return name
        inside = os.getcwd() + os.sep
        return f"{name.removeprefix(inside)}:{line}"

    def __str__(self) -> str:
        """The call in words, without its place: ``all_reduce(float32, shape (3, 4), op sum)``."""
        words = []
        if self.like is not None:
            words.append(str(self.like.dtype))
            if self.sends:
                words.append(f"sends {_shortened(self.sends)}")
            if self.receives:
                words.append(f"receives {_shortened(self.receives)}")
            else:
                words.append(f"shape {self.like.shape}")
        if self.op:
            words.append(f"op {self.op}")
        if self.root >= 0 and self.verb != "send/recv":
            words.append(f"root {self.root}")
        if self.tag != NO_TAG:
            words.append(f"tag {self.tag}")
        if self.generation:
            words.append(f"generation {self.generation}")
        return f"{self.verb}({', '.join(words)})"


def _shortened(counts: Sequence[int]) -> str:
    """Return the first of some numbers; a record is short."""
    first = ", ".join(map(str, counts[:16]))
    return f"[{first}{', …' if len(counts) > 16 else ''}]"


@lru_cache(maxsize=1024)
def _shape_code(shape: tuple[int, ...]) -> int:
    return zlib.crc32(repr(shape).encode())


def _caller() -> tuple[str, int]:
    frame = first = sys._getframe(2)
    while frame.f_code.co_filename.startswith(NOT_THE_CALLER):
        if frame.f_back is None:
            frame = first
            break
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def name_ranks(ranks: Iterable[int]) -> str:
    """Return ``rank 3`` or ``ranks 0, 2-5``."""
    ordered = sorted(ranks)
    runs: list[list[int]] = []
    for rank in ordered:
        if runs and runs[-1][-1] == rank - 1:
            runs[-1] = [runs[-1][0], rank]
        else:
            runs.append([rank])
    return ("rank " if len(ordered) == 1 else "ranks ") + ", ".join("-".join(map(str, run)) for run in runs)


def mismatch(number: int, ranks: Sequence[int], records: Sequence[bytes]) -> CollectiveMismatch:
    """Return the error that names each distinct call; ``records`` are those of ``ranks``, in that order."""
    made: dict[str, list[int]] = {}
    for rank, record in zip(ranks, records, strict=True):
        made.setdefault(record.rstrip(b"\0").decode(errors="replace"), []).append(rank)
    lines = [f"  {name_ranks(who)}: {what}" for what, who in made.items()]
    return CollectiveMismatch(
        f"{name_ranks(ranks)} made different calls (call number {number} of their group):\n"
        + "\n".join(lines)
        + "\nAll ranks of a group must make the same calls in the same order. No array was changed."
    )
