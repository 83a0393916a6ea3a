"""One rank's part in one call: what it asks for, the header that is compared, and the words of an error."""

import contextlib
import math
import os
import struct
import sys
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import ml_dtypes
import numpy

from disttrain.collectives.errors import CollectiveMismatch
from disttrain.collectives.ledger import NO_TAG as _NO_TAG
from disttrain.collectives.ledger import Page, describe, noted, place
from disttrain.kernels.arrays import Array, on_gpu

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

_ON_GPU = 1 << 8
_DTYPE_CODE = {dtype: i for i, dtype in enumerate(DTYPES)}
_OP_CODE = {"": -1} | {op: i for i, op in enumerate(OPS + BIT_OPS)}
_VERB_CODE = {verb: i for i, verb in enumerate(VERBS)}
_MADE = struct.Struct("<5q")
_FORM = struct.Struct("<6q")
HEADER_BYTES = _MADE.size + _FORM.size
RECORD_BYTES = 512
"""Size of the description that each rank sends once headers differ."""

NOT_THE_CALLER = (
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,
    os.path.dirname(numpy.__file__) + os.sep,  # its context managers wrap functions of ours
    contextlib.__file__,  # calls ours
)
NO_TAG: Tag = _NO_TAG
AT_THE_END = ("the end of the program", 0)
"""The ``source`` of the call that a rank makes by ending."""


class Call:
    """What one rank asked for.

    ``x`` is what it contributes, ``out`` what it receives into, ``like`` what must have one shape and dtype,
    ``pair`` the sender and the receiver of a message (group indices); ``sends`` and ``receives`` how many elements go
    to and come from each rank, where that is not the same for all; ``groups`` the ranks of each group that a split
    makes, where all ranks know them; ``averaged`` how many elements of a sum are divided by the one behind them."""

    number = -1
    index = -1
    generation = 0
    finished = False
    error: BaseException | None = None
    result: Any = None
    ready: Any = None
    """Of arrays on a GPU: the event after which they may be read and written, made by the caller."""
    passed: Any = None
    """Of arrays on a GPU: the event after which the call is over there; ``finished`` says that this is known."""
    awaited: str | None = None
    """What rank 0 does for as long as it takes while this call waits for it."""
    group: Any = None
    page: Page | None = None
    """Where it is noted in the ledger, and there as which ``entry``."""
    entry = -1

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
        sends: tuple[int, ...] = (),
        receives: tuple[int, ...] = (),
        groups: tuple[tuple[int, ...], ...] = (),
        averaged: int = 0,
    ) -> None:
        self.verb = verb
        self.x: Any = x
        self.out: Any = out
        if like is None:
            like = x
        self.like: Any = like
        self.op = op
        self.root = root
        self.tag = tag
        self.pair = pair
        self.sends = sends
        self.receives = receives
        self.groups = groups
        self.averaged = averaged
        self.source = caller()
        if like is None:
            self.form = _form(verb, op, None, (), root, x is not None, pair, averaged)
        else:
            self.form = _form(verb, op, like.dtype, like.shape, root, x is not None, pair, averaged)

    def finish(self, error: BaseException | None = None) -> None:
        """Mark the call as over, and what it failed with."""
        self.error = error
        if error is not None and self.group is not None:
            self.group.host.failed.setdefault(self.group.ranks[self.index], self)
        if self.page is not None:
            self.page.end(self.entry, failed=error is not None)
        self.finished = True

    def header(self) -> bytes:
        """Return what must be equal on all ranks of the group."""
        first = made(self.generation, self.number, self.tag)
        if self.ready is None and not self.receives and not self.groups:
            return first + self.form.compared
        verb, op, dtype, count, shape, root = _FORM.unpack(self.form.compared)
        if self.ready is not None:
            dtype += _ON_GPU
        if self.sends:  # all_to_all_v: the counts differ, and are compared pair by pair
            count, shape = 0, 0
        elif self.receives:  # all_gather_v
            count, shape = sum(self.receives), _code(self.receives)
        elif self.groups:
            shape = _code(self.groups)
        return first + _FORM.pack(verb, op, dtype, count, shape, root)

    def record(self) -> bytes:
        """Return the call in words, padded to a fixed size; too long a path loses its beginning."""
        what, where = f"{self} at ".encode(), self.place.encode()
        if len(what) + len(where) > RECORD_BYTES:
            where = b"..." + where[len(what) + 3 - RECORD_BYTES :]
        return (what + where)[:RECORD_BYTES].ljust(RECORD_BYTES, b"\0")

    @property
    def place(self) -> str:
        """``file:line`` of the caller outside this package (and NumPy)."""
        return place(*self.source)

    @property
    def name(self) -> str:
        """The call in words, with its place and its number in the group: what errors and notices call it."""
        return f"{self} at {self.place} (call {self.number} of {self.group.name})"

    def __str__(self) -> str:
        """The call in words, without its place: ``all_reduce(float32, shape (3, 4), op sum)``."""
        verb, message = self.verb, ""
        if self.pair is not None:
            source, target = self.pair
            verb, message = ("send", f"to {target}") if self.x is not None else ("recv", f"from {source}")
        extent = []
        if self.sends:
            extent.append(f"sends {_shortened(self.sends)}")
        if self.receives:
            extent.append(f"receives {_shortened(self.receives)}")
        elif self.groups:
            extent.append(
                f"groups {', '.join(map(_shortened, self.groups[:8]))}{', …' * (len(self.groups) > 8)}"
            )
        elif self.like is not None:
            extent.append(f"shape {self.like.shape}")
        return describe(
            verb,
            "" if self.like is None else f"{self.like.dtype}{' on the GPU' * on_gpu(self.like)}",
            ", ".join(extent),
            op=self.op,
            root=self.root,
            tag=self.tag,
            generation=self.generation,
            message=message,
            averaged=self.averaged,
        )


def _shortened(counts: Sequence[int]) -> str:
    """Return the first of some numbers; a record is short."""
    first = ", ".join(map(str, counts[:16]))
    return f"[{first}{', …' if len(counts) > 16 else ''}]"


def _code(numbers: tuple[Any, ...]) -> int:
    return zlib.crc32(repr(numbers).encode())


def made(generation: int, number: int, tag: Tag) -> bytes:
    """Return the first part of a header: which call it is."""
    return _MADE.pack(generation, number, *tag)


class Form(NamedTuple):
    """What calls that are made alike have in common, as it is written down for others."""

    compared: bytes
    """The second part of the header: what is called."""
    noted: bytes
    """The part of the record in the ledger."""


@lru_cache(maxsize=1024)
def _form(
    verb: str,
    op: str,
    dtype: Any,
    shape: tuple[int, ...],
    root: int,
    sends: bool,
    pair: tuple[int, int] | None,
    averaged: int,
) -> Form:
    which, how = _VERB_CODE[verb], _OP_CODE[op]
    of = -1 if dtype is None else _DTYPE_CODE[dtype]
    extent = (0, 0) if dtype is None else (math.prod(shape), _code((shape, averaged)))
    return Form(_FORM.pack(which, how, of, *extent, root), noted(which, how, of, shape, root, sends, pair))


def caller(above: int = 2) -> tuple[str, int]:
    """Return file and line of the call outside this package; that many frames ``above`` are surely inside it."""
    frame = first = sys._getframe(above)
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
