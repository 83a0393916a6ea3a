"""The ledger: the last calls of each rank that a process hosts, in memory that others of its node can read.

A rank notes each call when it makes it, waits in it and leaves it; nothing is sent, and nothing is waited for. Whoever
has to explain a job reads it: another process of the node through ``/proc``, and the launcher, which has made the
file, also when the process is stopped, busy or dead.

Standard library only: the launcher reads it.
"""

import json
import mmap
import os
import struct
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

LENGTH: Final = 128
"""Calls of a rank that are kept. A power of two."""
TOKEN_BYTES: Final = 16
NO_TAG: Final = (-1, -1, -1)
_OF_BUCKET: Final = 1 << 62
"""Marks a tag that :func:`bucket_tag` made."""
_FILE: Final = "disttrain ledger"
_DIMS: Final = 6
"""Of an array with more dimensions the first ones are noted."""
# began and ended (ns of the monotonic clock; 0: not yet, negative: failed), number, tag, group, file, line
_FRONT: Final = struct.Struct("=qqqqqqiii")
# root, sender and receiver, verb, operation, dtype, dimensions, shape
_FORM: Final = struct.Struct(f"=iiibbbb{8 * _DIMS}s")
_RECORD_BYTES: Final = 128
_HEAD_BYTES: Final = 4096
_STACKS_AT: Final = 32
_TABLES_AT: Final = 64
TEXTS_AT: Final = _HEAD_BYTES
_TEXTS_BYTES: Final = 64 << 10
PAGES_AT: Final = TEXTS_AT + _TEXTS_BYTES
PAGE_HEAD_BYTES: Final = 256
"""Of the page of a rank; the words behind :data:`WAITS_SINCE` are those of ``disttrain.collectives.meter``."""
PAGE_BYTES: Final = PAGE_HEAD_BYTES + LENGTH * _RECORD_BYTES
WAITED: Final = 3
"""The word of a page that says for how many ns the rank has waited for calls in all."""
WAITS_SINCE: Final = 4
"""Since when it waits, in ns of the monotonic clock; 0 while it does not."""
_SENDS: Final = 0
_RECEIVES: Final = 1
_UNKNOWN: Final = "?"


def bucket_tag(model: int, bucket: int, steps: int, dealt: tuple[int, int] | None) -> tuple[int, int, int]:
    """Return the tag of a bucket of gradients: where its rank is, which must be where the others are.

    A rank that has left out a backward, or made one too many, has made other numbers of steps or has another batch,
    and is found out before its gradients meet those of another step.

    Args:
        model: number of the parallel wrapper.
        bucket: number of the bucket in it.
        steps: how often an optimizer has stepped the wrapper's parameters.
        dealt: (epoch, batch) of the DataLoader, if the loader deals the batches to the ranks.
    """
    batch = -1 if dealt is None else dealt[0] << 32 | dealt[1]
    return _OF_BUCKET | model << 32 | bucket, steps, batch


def _tag_words(tag: Sequence[int]) -> str:
    which, steps, batch = tag
    if which < _OF_BUCKET:
        return f"tag {which if (steps, batch) == NO_TAG[1:] else tuple(tag)}"  # of a message it is one number
    model, bucket = (which ^ _OF_BUCKET) >> 32, which & 0xFFFFFFFF
    words = f"bucket {bucket} of model {model} after {steps} steps"
    return words if batch < 0 else f"{words}, batch {batch & 0xFFFFFFFF} of epoch {batch >> 32}"


def describe(
    verb: str,
    dtype: str,
    extent: str,
    *,
    op: str = "",
    root: int = -1,
    tag: Sequence[int] = NO_TAG,
    generation: int = 0,
    message: str = "",
    averaged: int = 0,
) -> str:
    """Return a call in words: ``all_reduce(float32, shape (3, 4), op sum)``.

    Args:
        dtype: "" if the call has no array.
        extent: ``shape (3, 4)``, or how much goes to and comes from each rank.
        message: for the two ends of a message: ``to 3`` or ``from 0``, in place of the root.
        averaged: how many elements of a sum are divided by the ranks' weights.
    """
    words = [dtype, extent] if dtype else []
    if op:
        words.append(f"op {op}")
    if message:
        words.append(message)
    elif root >= 0:
        words.append(f"root {root}")
    if tuple(tag) != NO_TAG:
        words.append(_tag_words(tag))
    if generation:
        words.append(f"generation {generation}")
    if averaged:
        words.append(f"{averaged} averaged")
    return f"{verb}({', '.join(words)})"


def relative(file: str) -> str:
    """Return the path from the working directory, if the file is inside."""
    return file.removeprefix(os.getcwd() + os.sep)


def place(file: str, line: int) -> str:
    """Return ``file:line``; without a line the text as it is."""
    return f"{relative(file)}:{line}" if line else file


def ledger_file(hosted: int) -> int:
    """Return the descriptor of a new, empty and nameless file for the ledger of ``hosted`` ranks."""
    descriptor = os.memfd_create(_FILE)
    os.ftruncate(descriptor, ledger_bytes(hosted))
    return descriptor


def ledger_bytes(hosted: int) -> int:
    """Return the size of the file for ``hosted`` ranks."""
    return PAGES_AT + hosted * PAGE_BYTES


def note_stacks(descriptor: int, stacks: int) -> None:
    """Note in a ledger, before its process has begun it, where the process writes its stacks when it is asked."""
    if is_ours(descriptor):
        os.pwrite(descriptor, struct.pack("=q", stacks), _STACKS_AT)


def stacks_in(data: bytes) -> int:
    """Return the descriptor that :func:`note_stacks` has noted, -1 if none."""
    (found,) = struct.unpack_from("=q", data, _STACKS_AT)
    return found or -1


class Page:
    """Where one rank notes its calls."""

    def __init__(self, ledger: "Ledger", at: int, thread: int) -> None:
        self._ledger = ledger
        self._memory = ledger.memory
        self._words = memoryview(ledger.memory)[at : at + PAGE_BYTES].cast("q")
        self._at = at + PAGE_HEAD_BYTES
        self.made = 0
        self.set_thread(thread)

    def set_thread(self, native_id: int) -> None:
        """Say which thread is the rank's."""
        self._words[2] = native_id

    def enter(self, number: int, tag: Sequence[int], source: tuple[str, int], group: int, form: bytes) -> int:
        """Note that the rank makes a call; return as which entry.

        Args:
            number: of the call in its group.
            source: file and line.
            group: of :meth:`Ledger.text`.
            form: of :func:`noted`.
        """
        entry = self.made
        at = self._at + entry % LENGTH * _RECORD_BYTES
        file, line = source
        memory = self._memory
        _FRONT.pack_into(
            memory, at, time.monotonic_ns(), 0, number, *tag, group, self._ledger.text(file), line
        )
        memory[at + _FRONT.size : at + _FRONT.size + _FORM.size] = form
        self.made = self._words[0] = entry + 1
        return entry

    def end(self, entry: int, *, failed: bool) -> None:
        """Note that the call has ended; a reader knows it by its number in the order of this rank's calls."""
        if self.made - entry <= LENGTH:
            now = time.monotonic_ns()
            where = (PAGE_HEAD_BYTES + entry % LENGTH * _RECORD_BYTES) // 8 + 1
            self._words[where] = -now if failed else now

    def wait(self, entry: int) -> None:
        """Note that the rank cannot go on before its call number ``entry`` has ended; -1: that it goes on."""
        words = self._words
        now = time.monotonic_ns()
        words[1] = entry + 1
        if entry >= 0:
            words[WAITS_SINCE] = now
        else:
            words[WAITED] += now - words[WAITS_SINCE]
            words[WAITS_SINCE] = 0


class Ledger:
    """The ledger of this process.

    Args:
        ranks: those that it hosts.
        tables: the words that calls are written with: ``verbs``, ``ops`` and ``dtypes`` in the order of their
            codes, and the ``generation``.
        descriptor: of a file that the launcher has made and reads, -1 if there is none.
    """

    def __init__(self, ranks: range, tables: Mapping[str, Any], descriptor: int = -1) -> None:
        size = ledger_bytes(len(ranks))
        self.descriptor = -1
        """Of the file, where the system has such files; open as long as this object lives."""
        self.memory: mmap.mmap
        if is_ours(descriptor) and os.fstat(descriptor).st_size == size:
            self.descriptor = descriptor
        elif hasattr(os, "memfd_create"):
            self.descriptor = ledger_file(len(ranks))
            weakref.finalize(self, os.close, self.descriptor)
        self.memory = mmap.mmap(self.descriptor, size)
        self.token = os.urandom(TOKEN_BYTES)
        """What another process knows this file by."""
        self._texts: dict[str, int] = {}
        self._end_of_texts = TEXTS_AT
        written = json.dumps({**tables, "first": ranks.start, "hosted": len(ranks)}).encode()
        if len(written) > _HEAD_BYTES - _TABLES_AT:
            raise ValueError(
                f"the tables of a ledger may have {_HEAD_BYTES - _TABLES_AT} bytes: {len(written)}"
            )
        self.memory[_TABLES_AT : _TABLES_AT + len(written)] = written
        self.memory[:TOKEN_BYTES] = self.token
        self.pages = {r: Page(self, PAGES_AT + i * PAGE_BYTES, 0) for i, r in enumerate(ranks)}
        """Where each hosted rank notes its calls."""

    def text(self, text: str) -> int:
        """Return the number under which ``text`` is written down; -1 if there is no room left."""
        number = self._texts.get(text)
        if number is None:
            number = self._texts[text] = self._write(text)
        return number

    def _write(self, text: str) -> int:
        data = text.encode(errors="replace").replace(b"\n", b"?") + b"\n"
        end = self._end_of_texts + len(data)
        if end > TEXTS_AT + _TEXTS_BYTES:
            return -1
        self.memory[self._end_of_texts : end] = data  # before its number is used anywhere
        self._end_of_texts = end
        return len(self._texts)


def noted(
    verb: int,
    op: int,
    dtype: int,
    shape: tuple[int, ...],
    root: int,
    sends: bool,
    pair: tuple[int, int] | None,
) -> bytes:
    """Return what a record holds of a call, but for when and where it was made.

    Args:
        verb: as ``op`` and ``dtype``, the number in the tables that the ledger has begun with; -1 for none.
        sends: which end of the message it is, if it is between a ``pair``.
    """
    source, target = (-1, -1) if pair is None else pair
    if pair is not None:
        root = _SENDS if sends else _RECEIVES
    dims = struct.pack(f"={len(shape[:_DIMS])}q", *shape[:_DIMS])
    return _FORM.pack(root, source, target, verb, op, dtype, len(shape), dims)


def is_ours(descriptor: int) -> bool:
    """Return whether the launcher's descriptor is what it was: the variable is inherited further than the file."""
    try:
        return descriptor >= 0 and _FILE in os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return False


@dataclass(frozen=True)
class Entry:
    """One call of a rank, as read."""

    group: str
    number: int
    what: str
    place: str
    pair: tuple[int, int] | None
    seconds: float
    """Since it was made."""
    ended: float | None
    """Seconds since it ended; None while it has not."""
    failed: bool

    def __str__(self) -> str:
        return f"{self.what} at {self.place} (call {self.number} of {self.group})"


@dataclass(frozen=True)
class Standing:
    """What a rank has called, as read."""

    rank: int
    thread: int
    """``threading.get_native_id()`` of the rank; 0 if it is not known yet."""
    entries: tuple[Entry, ...]
    """The last calls, the latest last."""
    waits: Entry | None
    """The call that the rank cannot go on without."""
    turn: Entry | None
    """The call that has ended, but the rank has still to wait for its turn among those of its process."""

    def has_made(self, group: str, number: int, pair: tuple[int, int] | None) -> bool:
        """Return whether the rank has come to that call."""
        return any(e.group == group and e.pair == pair and e.number >= number for e in self.entries)

    @property
    def waited(self) -> float:
        """For how many seconds the rank has been in the call that it waits for, at most."""
        return 0.0 if self.waits is None else self.waits.seconds

    @property
    def words(self) -> tuple[str, float, str]:
        """Where the rank is: words, a number of seconds, words. The number is 0 where the second ones are empty."""
        if self.waits is not None:
            return "for ", self.waits.seconds, f" s in {self.waits}"
        if self.turn is not None:
            return "waits since ", self.turn.ended or 0.0, f" s for its turn in its process after {self.turn}"
        if not self.entries:
            return "has made no call", 0.0, ""
        in_flight = [e for e in self.entries if e.ended is None]
        if in_flight:
            first, *rest = in_flight
            more = f" and {len(rest)} more" if rest else ""
            return "waits for no call; since ", first.seconds, f" s in flight: {first}{more}"
        last = self.entries[-1]
        how = "failed" if last.failed else "ended"
        return f"in no call; its last, {last}, {how} ", last.ended or 0.0, " s ago"

    def __str__(self) -> str:
        return say(self.words)


def say(words: tuple[str, float, str]) -> str:
    """Return :attr:`Standing.words` as one text: ``for 3.1 s in barrier() at train.py:7 (call 3 of the world)``."""
    before, seconds, after = words
    return f"{before}{seconds:.1f}{after}" if after else before


def read(data: bytes, now: int | None = None, latest: int = LENGTH) -> list[Standing]:
    """Return what the ranks have noted in a ledger with these contents.

    A process that has not connected yet has noted nothing: the list is empty. The ranks may go on meanwhile.

    Args:
        now: nanoseconds of the monotonic clock of the ledger's machine; needed if that is not this one.
        latest: how many of the last calls to read, beside the one that the rank waits for.
    """
    if len(data) < PAGES_AT or not any(data[:TOKEN_BYTES]):
        return []
    tables = json.loads(data[_TABLES_AT:_HEAD_BYTES].rstrip(b"\0"))
    texts = data[TEXTS_AT:PAGES_AT].decode(errors="replace").split("\n")[:-1]
    now = time.monotonic_ns() if now is None else now
    found = []
    for i in range(tables["hosted"]):
        page = data[PAGES_AT + i * PAGE_BYTES :][:PAGE_BYTES]
        made, waits, thread = struct.unpack_from("=3q", page)
        known = range(max(0, made - LENGTH), made)
        entries = list(_entries(page, known[-latest:], tables, texts, now))
        waited = None
        if waits - 1 in known:
            (waited,) = _entries(page, range(waits - 1, waits), tables, texts, now)
        found.append(
            Standing(
                rank=tables["first"] + i,
                thread=thread,
                entries=tuple(entries),
                waits=waited if waited is not None and waited.ended is None else None,
                turn=waited if waited is not None and waited.ended is not None else None,
            )
        )
    return found


def _entries(
    page: bytes, which: range, tables: Mapping[str, Any], texts: Sequence[str], now: int
) -> Iterator[Entry]:
    for k in which:
        at = PAGE_HEAD_BYTES + k % LENGTH * _RECORD_BYTES
        began, ended, number, *tag, group, file, line = _FRONT.unpack_from(page, at)
        root, source, target, verb, op, dtype, ndim, dims = _FORM.unpack_from(page, at + _FRONT.size)
        shape = struct.unpack(f"={min(ndim, _DIMS)}q", dims[: 8 * min(ndim, _DIMS)])
        name = tables["verbs"][verb]
        pair = None
        message = ""
        if source >= 0:
            pair = (source, target)
            name, message = ("send", f"to {target}") if root == _SENDS else ("recv", f"from {source}")
        yield Entry(
            group=texts[group] if 0 <= group < len(texts) else _UNKNOWN,
            number=number,
            what=describe(
                name,
                tables["dtypes"][dtype] if dtype >= 0 else "",
                f"shape {shape}",
                op=tables["ops"][op] if op >= 0 else "",
                root=root,
                tag=tag,
                generation=tables["generation"],
                message=message,
            ),
            place=place(texts[file] if 0 <= file < len(texts) else _UNKNOWN, line),
            pair=pair,
            seconds=(now - began) / 1e9,
            ended=None if ended == 0 else (now - abs(ended)) / 1e9,
            failed=ended < 0,
        )
