"""The other processes of a job as a process sees them: what their ranks have called, and where they are.

Those of its node are looked at through ``/proc``, so that they need not do anything, and may be stopped or busy.
"""

import os
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from disttrain.collectives import stacks
from disttrain.collectives.ledger import TOKEN_BYTES, Ledger, Standing, read
from disttrain.collectives.transport import Channel

_ADDRESS = struct.Struct(f"=qqq{TOKEN_BYTES}s64s")
_MOST_LINES = 12
_MOST_CHARACTERS = 400


@dataclass(frozen=True)
class Question:
    """Whether ranks of one process have come to a call, and where they are if not."""

    process: int
    ranks: tuple[int, ...]
    group: str
    number: int
    pair: tuple[int, int] | None
    stacks: bool
    """Whether to interrupt a process whose ranks have not come, for their stacks."""


@dataclass(frozen=True)
class Where:
    """Where one rank is."""

    rank: int
    came: bool
    """It has made the call that was asked for."""
    waits_here: bool
    """It waits in that call."""
    waits: bool
    """It waits in some call."""
    trouble: str = ""
    """Why it cannot go on, or is not known: ``is stopped (SIGSTOP)``."""
    lines: tuple[str, ...] = ()
    """What it does, in words, and the innermost frames of its Python code."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"lines": [line[:_MOST_CHARACTERS] for line in self.lines[:_MOST_LINES]]}

    @classmethod
    def from_json(cls, fields: Any) -> "Where":
        """Return what :meth:`to_json` has made.

        Raises:
            ValueError: the fields are not those of this class.
        """
        try:
            where = cls(**fields | {"lines": tuple(fields["lines"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the place of a rank: {error}") from None
        kinds = (int, bool, bool, bool, str, tuple)
        if tuple(map(type, vars(where).values())) != kinds or any(
            type(line) is not str for line in where.lines
        ):
            raise ValueError("not the place of a rank: a field of another type")
        return where


def unknown(rank: int, why: str) -> Where:
    """Return that nothing is known of ``rank``, as if it had not come."""
    return Where(rank, came=False, waits_here=False, waits=False, trouble=why)


class Peers:
    """The processes of a job and how each can be looked at; all of them make this together."""

    def __init__(self, channel: Channel, ledger: Ledger) -> None:
        mine = _ADDRESS.pack(
            os.getpid(), ledger.descriptor, stacks.answer(), ledger.token, os.uname().nodename.encode()[:64]
        )
        everyone = _gather(channel, mine)
        self._addresses = [_ADDRESS.unpack_from(everyone, p * _ADDRESS.size) for p in range(channel.size)]
        self._ledger = ledger
        self.near = [p for p in range(channel.size) if self._read(p) is not None]
        """The processes that can be looked at from here, this one among them."""
        nears = _gather(channel, struct.pack("=q", len(self.near)))
        counts = struct.unpack(f"={channel.size}q", nears)
        self.all_near = all(count == channel.size for count in counts)
        """Whether all processes can look at all others."""

    def host_of(self, process: int) -> str:
        """Return the name of the machine of a process."""
        name: bytes = self._addresses[process][4]
        return name.rstrip(b"\0").decode(errors="replace")

    def address_of(self, process: int) -> tuple[int, int]:
        """Return the pid of a process and its descriptor of its ledger."""
        pid, descriptor, *_ = self._addresses[process]
        return pid, descriptor

    def look(self, question: Question) -> list[Where]:
        """Return where the ranks of a near process are."""
        pid, _, descriptor, *_ = self._addresses[question.process]
        data = self._read(question.process)
        if data is None:
            return [unknown(rank, stacks.trouble(pid) or "has ended") for rank in question.ranks]
        standings = {s.rank: s for s in read(data)}
        trouble = stacks.trouble(pid)
        found = []
        for rank in question.ranks:
            standing = standings[rank]
            came = standing.has_made(question.group, question.number, question.pair)
            lines = [str(standing)]
            if question.stacks and not came and not trouble:
                lines += stacks.ask(pid, descriptor, standing.thread) or [_silence()]
            found.append(
                Where(
                    rank,
                    came=came,
                    waits_here=_waits_here(standing, question),
                    waits=standing.waits is not None,
                    trouble=trouble,
                    lines=tuple(lines),
                )
            )
        return found

    def _read(self, process: int) -> bytes | None:
        """Return the ledger of a process, or None if it is not there for us to see."""
        pid, descriptor, _, token, _ = self._addresses[process]
        try:
            # On another machine, or after its end, these numbers are those of any file: a pipe, or one without an end.
            opened = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(opened, "rb") as file:
                return file.read() if os.pread(opened, len(token), 0) == token else None
        except OSError:
            return None


def _silence() -> str:
    return f"did not answer within {stacks.PATIENCE_S:g} s"


def _waits_here(standing: Standing, question: Question) -> bool:
    waits = standing.waits
    return waits is not None and (waits.group, waits.number, waits.pair) == (
        question.group,
        question.number,
        question.pair,
    )


def _gather(channel: Channel, mine: bytes) -> bytes:
    request, everyone = channel.gather_headers(mine)
    while not request():
        os.sched_yield()
    return bytes(everyone)


def by_process(ranks: Sequence[int], process_of: dict[int, int]) -> dict[int, list[int]]:
    """Return ``ranks`` by the process that hosts them."""
    found: dict[int, list[int]] = {}
    for rank in ranks:
        found.setdefault(process_of[rank], []).append(rank)
    return found
