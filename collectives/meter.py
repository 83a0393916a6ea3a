"""How far a rank has come, in numbers, and what its user wishes of it: words of the ledger's file.

A rank counts with a few stores a step, and whoever has the file reads, also when the process is stopped or dead. In the
other direction the launcher counts how often it has asked for something; a rank that has done it less often knows
that there is something to do. Nothing is sent.

Standard library only: the launcher reads it.
"""

import mmap
import os
import struct
import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.ledger import (
    PAGE_BYTES,
    PAGE_HEAD_BYTES,
    PAGES_AT,
    TEXTS_AT,
    WAITED,
    WAITS_SINCE,
    is_ours,
    ledger_bytes,
)

_WINDOW_NS: Final = 2_000_000_000
"""Rates are those of the last two windows of this length, or of two steps if these take longer."""
# Words of a rank's page, behind those of the ledger.
_STEPS, _SAMPLES, _DATA, _DATA_SINCE, _LOSS, _HAS_LOSS, _GPU, _CAN_SAVE, _PAUSED, _ACTED_AT = range(5, 15)
_DONE: Final = 15  # three words
_OLDER: Final = 18  # the counts when a window began: time, steps, samples, data, wait
_NEWER: Final = 23
_ENDED: Final = 28  # when, with which exit code, and the number of a text: what has ended it
_HEARD: Final = 31
_PATIENCE_S: Final = 1.0
_WORDS: Final = PAGE_HEAD_BYTES // 8


class Wish(IntEnum):
    """What a user may ask of all ranks, to be done after a step."""

    SAVE = 0
    STOP = 1
    PAUSE = 2


# Words of the file's head, which the launcher writes: how often it has asked.
_ASKED: Final = (2, 3, 5)
_RESUMED: Final = 6
_ENDING: Final = 7


_WISHES: Final = tuple(Wish)


class Meter:
    """Where one rank counts; without a launcher in memory that nobody else reads.

    Args:
        env: the contract of the rank.
        process: that of the process which hosts it.
    """

    def __init__(self, env: WorkerEnv, process: WorkerEnv) -> None:
        self.env = env
        """The contract of the rank; to read it anew takes longer than all that is counted in a step."""
        self.alone = env.world_size == 1
        """Whether there is no other rank to agree with."""
        self._words = memoryview(bytearray(PAGE_HEAD_BYTES)).cast("q")
        self._head = memoryview(bytearray(64)).cast("q")
        size = ledger_bytes(process.hosted)
        if is_ours(process.ledger) and os.fstat(process.ledger).st_size == size:
            memory = memoryview(mmap.mmap(process.ledger, size))
            at = PAGES_AT + (env.rank - process.rank) * PAGE_BYTES
            self._words = memory[at : at + PAGE_HEAD_BYTES].cast("q")
            self._head = memory[:64].cast("q")
        self._loss = self._words.cast("B").cast("d")[_LOSS : _LOSS + 1]
        if not self._words[_NEWER]:
            self._words[_NEWER] = self._words[_OLDER] = time.monotonic_ns()

    # -- what the rank has done ----------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """How many steps the optimizer that steps most often has made."""
        return self._words[_STEPS]

    def stepped(self, steps: int) -> None:
        """Note that an optimizer has made ``steps`` steps in all."""
        words = self._words
        if steps > words[_STEPS]:
            words[_STEPS] = steps
        now = time.monotonic_ns()
        if now - words[_NEWER] > _WINDOW_NS:
            words[_OLDER:_NEWER] = words[_NEWER : _NEWER + 5]
            words[_NEWER] = now
            words[_NEWER + 1] = words[_STEPS]
            words[_NEWER + 2] = words[_SAMPLES]
            words[_NEWER + 3] = words[_DATA]
            words[_NEWER + 4] = words[WAITED]

    def begin_reading(self) -> int:
        """Note that the rank waits for its next batch; return since when."""
        now = self._words[_DATA_SINCE] = time.monotonic_ns()
        return now

    def end_reading(self, since: int, samples: int) -> None:
        """Note that the batch has come, with so many samples."""
        words = self._words
        words[_DATA] += time.monotonic_ns() - since
        words[_DATA_SINCE] = 0
        words[_SAMPLES] += samples

    def note_loss(self, loss: float) -> None:
        """Note the last loss that the script has told."""
        self._loss[0] = loss
        self._words[_HAS_LOSS] = 1

    def note_gpu(self, used: int) -> None:
        """Note how many bytes of GPU memory the rank uses."""
        self._words[_GPU] = used

    # -- what is asked of it -------------------------------------------------------------------------------

    def can_save(self) -> None:
        """Note that the script has said how to save."""
        self._words[_CAN_SAVE] = 1

    def done(self, wish: Wish) -> int:
        """Return how often the rank has done what was wished."""
        return self._words[_DONE + wish]

    @property
    def due(self) -> list[Wish]:
        """What was asked for more often than it was done."""
        head, words = self._head, self._words
        return [wish for wish in _WISHES if head[_ASKED[wish]] > words[_DONE + wish]]

    def do(self, wish: Wish) -> None:
        """Note that the rank has done it, after the step that it has made last."""
        self._words[_ACTED_AT] = self._words[_STEPS]
        self._words[_DONE + wish] += 1

    @property
    def ending(self) -> bool:
        """Whether the launcher is ending the job: a SIGTERM is to be obeyed."""
        return bool(self._head[_ENDING])

    def pause(self) -> None:
        """Return once the last pause has been ended."""
        self._words[_PAUSED] = 1
        while self._head[_RESUMED] < self._words[_DONE + Wish.PAUSE]:
            time.sleep(0.02)
        self._words[_PAUSED] = 0


def ask(descriptor: int, wish: Wish) -> None:
    """Ask the ranks of a ledger's file, as its only writer, for something."""
    _increment(descriptor, _ASKED[wish])


def end(descriptor: int) -> None:
    """Tell the ranks of a ledger's file that the SIGTERM which follows is the launcher's."""
    os.pwrite(descriptor, struct.pack("=q", 1), 8 * _ENDING)


def resume(descriptor: int) -> None:
    """Let the ranks of a ledger's file go on that pause, or are about to."""
    os.pwrite(descriptor, struct.pack("=q", _word(descriptor, _ASKED[Wish.PAUSE])), 8 * _RESUMED)


def _word(descriptor: int, word: int) -> int:
    (number,) = struct.unpack("=q", os.pread(descriptor, 8, 8 * word))
    return int(number)


def _increment(descriptor: int, word: int) -> None:
    os.pwrite(descriptor, struct.pack("=q", _word(descriptor, word) + 1), 8 * word)


def note_end(descriptor: int, code: int, text: int) -> None:
    """Note how the only rank of a ledger's file ends, for whoever attends a job that has no launcher.

    Args:
        code: its exit code, as far as it is known.
        text: the number that :meth:`.Ledger.text` has given for what has ended it.
    """
    os.pwrite(descriptor, struct.pack("=3q", time.monotonic_ns(), code, text), PAGES_AT + 8 * _ENDED)


def note_heard(descriptor: int) -> None:
    """Note in a ledger's file that a failure of its rank or of another one has been told."""
    os.pwrite(descriptor, struct.pack("=q", 1), PAGES_AT + 8 * _HEARD)


def wait_until_heard(descriptor: int) -> None:
    """Wait for a moment until a failure has been told: the end of this process is the end of the others."""
    deadline = time.monotonic() + _PATIENCE_S
    while not _word(descriptor, PAGES_AT // 8 + _HEARD) and time.monotonic() < deadline:
        time.sleep(0.005)


@dataclass(frozen=True)
class End:
    """How a rank has ended, in its own words."""

    at: int
    """Nanoseconds of the monotonic clock."""
    code: int
    what: str
    """``raised ValueError: ...``; empty if nothing has."""


def read_end(descriptor: int) -> End | None:
    """Return what :func:`note_end` has noted; None if nothing."""
    at, code, text = struct.unpack("=3q", os.pread(descriptor, 24, PAGES_AT + 8 * _ENDED))
    texts = os.pread(descriptor, PAGES_AT - TEXTS_AT, TEXTS_AT).decode(errors="replace").split("\n")
    return End(at, code, texts[text] if text >= 0 else "") if at else None


@dataclass(frozen=True)
class Reading:
    """A rank's numbers, as read."""

    rank: int
    steps: int
    seconds: float
    """For which the rates and shares hold: the last few."""
    steps_per_second: float
    samples_per_second: float
    data: float
    """Share of the time in which the rank waited for its next batch."""
    wait: float
    """Share in which it waited for other ranks."""
    reading: float
    """For how many seconds it has waited for the batch that it asked for; 0 if it does not."""
    clock: float
    """When this was read: seconds of the monotonic clock of the rank's machine."""
    read: float
    """For how many seconds it has waited for batches in all."""
    waited: float
    """For how many it has waited for other ranks in all."""
    loss: float | None
    """The last one that the script told."""
    gpu_bytes: int
    can_save: bool
    paused: bool
    done: tuple[int, int, int]
    """How often it has done each :class:`Wish`."""
    acted_at: int
    """After which step it has done one last."""

    @property
    def compute(self) -> float:
        """Share of the time in which it did neither."""
        return max(0.0, 1.0 - self.data - self.wait)


def read_meters(descriptor: int, first: int, hosted: int, now: int | None = None) -> list[Reading]:
    """Return the numbers of the ``hosted`` ranks, from ``first`` on, of a ledger's file.

    Args:
        now: nanoseconds of the monotonic clock of the ledger's machine; needed if that is not this one.
    """
    now = time.monotonic_ns() if now is None else now
    found = []
    for i in range(hosted):
        data = os.pread(descriptor, PAGE_HEAD_BYTES, PAGES_AT + i * PAGE_BYTES)
        words = struct.unpack(f"={_WORDS}q", data)
        (loss,) = struct.unpack_from("=d", data, 8 * _LOSS)
        began, steps, samples, read, waited = words[_OLDER:_NEWER]
        span = max(now - began, 1) if began else 1
        seconds = span / 1e9
        reading = now - words[_DATA_SINCE] if words[_DATA_SINCE] else 0
        waiting = now - words[WAITS_SINCE] if words[WAITS_SINCE] else 0
        found.append(
            Reading(
                rank=first + i,
                steps=words[_STEPS],
                seconds=seconds if began else 0.0,
                steps_per_second=(words[_STEPS] - steps) / seconds,
                samples_per_second=(words[_SAMPLES] - samples) / seconds,
                data=min(1.0, (words[_DATA] - read + reading) / span),
                wait=min(1.0, (words[WAITED] - waited + waiting) / span),
                reading=reading / 1e9,
                clock=now / 1e9,
                read=(words[_DATA] + reading) / 1e9,
                waited=(words[WAITED] + waiting) / 1e9,
                loss=loss if words[_HAS_LOSS] else None,
                gpu_bytes=words[_GPU],
                can_save=bool(words[_CAN_SAVE]),
                paused=bool(words[_PAUSED]),
                done=(words[_DONE], words[_DONE + 1], words[_DONE + 2]),
                acted_at=words[_ACTED_AT],
            )
        )
    return found
