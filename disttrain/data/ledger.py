"""The sample ledger: which samples a run has used, and the proof that each epoch used every sample once.

A rank notes two things of an epoch. *Where*: the positions of its batches in the order of the epoch, which repeat at a
fixed distance, so that a run of any length is a few numbers. *What*: a hash of the samples that were handed out, in any
order: the sum of 128 pseudo-random bits of each (epoch, sample), an additive multiset hash (Clarke et al., "Incremental
Multiset Hash Functions and Their Application to Memory Integrity Checking", 2003). Both add up over ranks and restarts.
Positions that cover an epoch once, and a hash that is the one of all samples, are the proof; positions that do not are
listed, with the samples that were there.

A checkpoint holds the ledgers of all ranks, so the ledger of a run that goes on from it tells of the steps that its
parameters have seen: what was done after the checkpoint and lost is not in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby, pairwise
from typing import Any, Final, NamedTuple

import numpy as np

from disttrain.data.sampler import epoch_order

Ints = np.ndarray[Any, np.dtype[np.int64]]
_WORD: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15
_BLOCK: Final = 4096
"""Samples that are hashed at once: a batch only adds its indices to a list."""
_MOST: Final = 1 << 34
"""Samples of a data set, and blocks of positions, that a ledger from a file may speak of."""


class Blocks(NamedTuple):
    """Positions ``first + k * stride + [0, length)`` for ``k`` below ``times``."""

    first: int
    length: int
    stride: int
    times: int


def sample_hash(epoch: int, samples: Ints) -> tuple[int, int]:
    """Return the hash of samples of an epoch, in any order: two sums modulo 2**64.

    The bits of a sample are those of SplitMix64 (Steele et al., "Fast splittable pseudorandom number generators", 2014)
    at its place in two streams that belong to the epoch.
    """
    sums = [0, 0]
    for begin in range(0, len(samples), _BLOCK):
        steps = (samples[begin : begin + _BLOCK].astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
        for word in (0, 1):
            stream = _mixed(np.array([2 * epoch + word + 1], np.uint64) * np.uint64(_GOLDEN))
            sums[word] += int(_mixed(steps + stream).sum())
    return sums[0] & _WORD, sums[1] & _WORD


def _mixed(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mix the bits of ``x`` in place."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    return x


@dataclass
class Use:
    """What was used of the epochs from ``begin`` to before ``end``: of each the same positions."""

    begin: int
    end: int
    blocks: list[Blocks] = field(default_factory=list)
    """Empty where a sampler of the user's gives the order: then there are no positions that all ranks share."""
    count: int = 0
    """Samples, of all these epochs."""
    left_out: int = 0
    """How many of them a batch did without, since they are damaged and the data set skips those."""
    dropped: int = 0
    """Positions at the end of an epoch that ``drop_last`` leaves to nobody."""
    hash: tuple[int, int] = (0, 0)
    _waiting: list[Sequence[int]] = field(default_factory=list, repr=False)
    """Batches that are not in the hash yet."""
    _number: int = field(default=0, repr=False)
    """Samples in them."""

    def add(self, first: int | None, samples: Sequence[int], used: int) -> None:
        """Note a batch of the epoch ``begin``.

        Args:
            first: its first position; ``None`` in an order of the user's.
            samples: their indices.
            used: how many are in the batch.
        """
        count = len(samples)
        if first is not None:
            self._extend(first, count)
        self.count += count
        self.left_out += count - used
        self._waiting.append(samples)
        self._number += count
        if self._number >= _BLOCK:
            self.settle()

    def _extend(self, first: int, length: int) -> None:
        if self.blocks:
            last = self.blocks[-1]
            stride = first - last.first if last.times == 1 else last.stride
            if length == last.length and first == last.first + last.times * stride and stride >= length:
                self.blocks[-1] = Blocks(last.first, length, stride, last.times + 1)
                return
        self.blocks.append(Blocks(first, length, length, 1))

    def settle(self) -> None:
        """Let the hash be of all batches.

        Raises:
            TypeError, ValueError: an index is no integer.
        """
        waiting, self._waiting, self._number = self._waiting, [], 0
        if waiting:
            self._join(sample_hash(self.begin, np.fromiter(chain.from_iterable(waiting), np.int64)))

    def _join(self, other: tuple[int, int]) -> None:
        self.hash = ((self.hash[0] + other[0]) & _WORD, (self.hash[1] + other[1]) & _WORD)

    def take(self, other: Use) -> None:
        """Add what ``other`` has used: of the same epochs (another rank, or a restart), or of those that follow."""
        self.settle()
        other.settle()
        self._join(other.hash)
        self.count += other.count
        self.left_out += other.left_out
        if (self.begin, self.end) == (other.begin, other.end):
            self.blocks = _layers([*self.blocks, *other.blocks])
            self.dropped = max(self.dropped, other.dropped)
        self.end = other.end

    def followed_by(self, other: Use) -> bool:
        """Return whether ``other`` is the same use of the epochs after these."""
        same = (self.end, self.blocks, self.dropped) == (other.begin, other.blocks, other.dropped)
        return same and self.count * (other.end - other.begin) == other.count * (self.end - self.begin)

    def encode(self) -> dict[str, Any]:
        """Return it for JSON."""
        self.settle()
        return {
            "epochs": [self.begin, self.end],
            "blocks": [list(each) for each in self.blocks],
            "count": self.count,
            "left_out": self.left_out,
            "dropped": self.dropped,
            "hash": "{:016x}{:016x}".format(*self.hash),
        }

    @classmethod
    def decode(cls, told: dict[str, Any], samples: int) -> Use:
        """Return what :meth:`encode` told of a data set of ``samples``.

        Raises:
            ValueError: it makes no sense.
        """
        (begin, end), text = told["epochs"], told["hash"]
        blocks = [Blocks(*each) for each in told["blocks"]]
        numbers = [begin, end, told["count"], told["left_out"], told["dropped"], *chain.from_iterable(blocks)]
        if not all(type(n) is int and n >= 0 for n in numbers) or end <= begin or len(text) != 32:
            raise ValueError(f"a ledger of samples says {told!r:.200}, which makes no sense")
        for each in blocks:
            last = each.first + (each.times - 1) * each.stride + each.length
            if not (0 < each.length <= each.stride and each.times > 0 and last <= samples < _MOST):
                raise ValueError(f"a ledger of {samples} samples has no positions {tuple(each)}")
        hash_ = int(text[:16], 16), int(text[16:], 16)
        return cls(begin, end, blocks, told["count"], told["left_out"], told["dropped"], hash_)


class SampleLedger:
    """What one rank has used, and before a restart all of them; ``DataLoader.ledger``.

    ``dt.checkpoint.save(loader=…)`` and ``load`` keep it with the run; ``disttrain data ledger`` tells what it says.
    """

    def __init__(self) -> None:
        self.uses: list[Use] = []

    def open(self, epoch: int) -> Use:
        """Return where the batches of an epoch are noted."""
        self.uses.append(Use(epoch, epoch + 1))
        return self.uses[-1]

    def close(self, use: Use) -> None:
        """Take note that an epoch has ended: one that was as the one before it needs no room of its own."""
        before = next((other for other in self.uses if other is not use and other.followed_by(use)), None)
        if before is not None:
            before.take(use)
            self.uses = [other for other in self.uses if other is not use]

    def state_dict(self) -> list[dict[str, Any]]:
        """Return what this rank has used, for JSON; the ledger of a job is those of all ranks, in any order."""
        return [use.encode() for use in self.uses]

    def load_state_dict(self, state: Iterable[dict[str, Any]], samples: int) -> None:
        """Be the ledger of all whose states these are; one rank of a job has it, the others begin with none.

        Args:
            state: of all ranks, one after the other.
            samples: of the data set.

        Raises:
            ValueError: it makes no sense.
        """
        self.uses = merged(Use.decode(told, samples) for told in state)


def merged(uses: Iterable[Use]) -> list[Use]:
    """Return the same uses in as few as can be, in the order of epochs: of all ranks, before and after restarts.

    What is given is used for it.
    """
    result: list[Use] = []
    for _, group in groupby(sorted(uses, key=_epochs), _epochs):
        whole, *others = group
        whole.settle()
        whole.blocks = _layers(whole.blocks)
        for use in others:
            whole.take(use)
        if result and result[-1].followed_by(whole):
            result[-1].take(whole)
        else:
            result.append(whole)
    return result


def _epochs(use: Use) -> tuple[int, int]:
    return use.begin, use.end


def _layers(blocks: list[Blocks]) -> list[Blocks]:
    """Return the same positions as intervals: those that are there at all, then those there twice, and so on."""
    if not blocks:
        return []
    starts = np.sort(np.concatenate([b.first + b.stride * np.arange(b.times) for b in blocks]))
    ends = np.sort(np.concatenate([b.first + b.length + b.stride * np.arange(b.times) for b in blocks]))
    edges = np.union1d(starts, ends)
    depth = np.searchsorted(starts, edges, "right") - np.searchsorted(ends, edges, "right")
    found = []
    for layer in range(1, int(depth.max()) + 1):
        turns = edges[np.flatnonzero(np.diff(depth >= layer, prepend=False))].tolist()
        found += [Blocks(a, b - a, b - a, 1) for a, b in zip(turns[::2], turns[1::2], strict=True)]
    return found


class Irregular(NamedTuple):
    """Positions ``[begin, end)`` of the epochs ``[first, last)``, used once too often, or not at all."""

    first: int
    last: int
    begin: int
    end: int


@dataclass
class Account:
    """What the ledgers of all ranks say of a run.

    Args:
        samples: of the data set.
        epoch: that the run is in.
        uses: of all ranks.
        position: how many samples of that epoch were used; ``None`` if a sampler of the user's gives the order.
        seed: of the order; ``None`` if it is by index.
    """

    samples: int
    epoch: int
    uses: list[Use]
    position: int | None
    seed: int | None
    repeats: list[Irregular] = field(default_factory=list)
    gaps: list[Irregular] = field(default_factory=list)
    wrong: list[tuple[int, int]] = field(default_factory=list)
    """Epochs, from and to before, in which other samples were used than should have been."""

    def __post_init__(self) -> None:
        self.uses = merged(self.uses)
        self.wrong = [_epochs(use) for use in self.uses if not self._agrees(use)]
        if self.position is not None:
            self._compare(self.position)

    def _compare(self, position: int) -> None:
        edges = {0, self.epoch, self.epoch + 1, *chain.from_iterable(map(_epochs, self.uses))}
        ordered = sorted(edges)
        for begin, end in pairwise(ordered):
            here = [use for use in self.uses if use.begin <= begin < use.end]
            dropped = max((use.dropped for use in here), default=0)
            last = position if begin == self.epoch else self.samples - dropped
            layers = _layers([each for use in here for each in use.blocks])
            repeats, gaps = _deviations(layers, last)
            self.repeats += [Irregular(begin, end, *each) for each in repeats]
            self.gaps += [Irregular(begin, end, *each) for each in gaps]

    @property
    def whole(self) -> bool:
        """Whether each sample was used once in every epoch so far."""
        return not (self.repeats or self.gaps or self.wrong)

    @property
    def left_out(self) -> int:
        """How many samples were damaged and skipped."""
        return sum(use.left_out for use in self.uses)

    def order(self, epoch: int) -> Ints:
        """Return the samples in the order of an epoch."""
        return np.arange(self.samples) if self.seed is None else epoch_order(self.samples, self.seed, epoch)

    def names(self, part: Irregular) -> list[int]:
        """Return the samples at some positions, in the first of their epochs."""
        named: list[int] = self.order(part.first)[part.begin : part.end].tolist()
        return named

    def _agrees(self, use: Use) -> bool:
        """Return whether the hash is that of the samples that should have been used."""
        if self.position is None and use.begin >= self.epoch:  # nobody knows which of an epoch that goes on
            return True
        everything = [Blocks(0, self.samples, self.samples, 1)]
        blocks = everything if self.position is None else use.blocks
        expected = Use(use.begin, use.end)
        for epoch in range(use.begin, use.end):
            order = (
                np.arange(self.samples) if blocks == everything else self.order(epoch)
            )  # the hash knows no order
            for each in blocks:
                expected._join(sample_hash(epoch, order[each.first : each.first + each.length]))
        return expected.hash == use.hash

    def lines(self, most: int = 20) -> Iterator[str]:
        """Yield what there is to say: the proof, or the first ``most`` repeats and gaps, with their samples."""
        if self.whole:
            yield f"each sample was used once: {self._extent()}"
        irregular = [("used again", r) for r in self.repeats] + [("never used", g) for g in self.gaps]
        irregular.sort(key=lambda each: each[1])
        for what, part in irregular[:most]:
            named = self.names(part)
            samples = ", ".join(map(str, named[:8])) + ", ..." * (len(named) > 8)
            where = f"the positions {part.begin} to {part.end - 1}"
            count = f"{len(named)} sample{'s' * (len(named) > 1)}"
            yield f"{_words(part.first, part.last)}: {what}: {count} at {where} ({samples})"
        if len(irregular) > most:
            yield f"and {len(irregular) - most} more of this kind"
        for begin, end in self.wrong[:most]:
            yield _words(begin, end) + (
                f": not each of {self.samples} samples was used once; a sampler dealt them, so which cannot be told"
                if self.position is None
                else ": the samples that were handed out are not those at the positions that were noted"
            )
        if self.left_out:
            n = self.left_out
            yield (
                "1 sample is damaged, and was left out of its batch"
                if n == 1
                else f"{n} samples are damaged, and were left out of their batches"
            )

    def _extent(self) -> str:
        past = f"{_words(0, self.epoch)} of {self.samples} samples" if self.epoch else ""
        now = f"{self.position} samples of epoch {self.epoch}" if self.position or not past else ""
        dropped = sum(use.dropped * (use.end - use.begin) for use in self.uses)
        unused = f", without {dropped} that drop_last left over" if dropped else ""
        return " and ".join(filter(None, (past, now))) + unused


def _words(begin: int, end: int) -> str:
    return f"epoch {begin}" if end == begin + 1 else f"epochs {begin} to {end - 1}"


def _deviations(layers: list[Blocks], last: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the positions that are there too often, and those below ``last`` that are missing."""
    repeats: list[tuple[int, int]] = []
    gaps: list[tuple[int, int]] = []
    reached = 0
    first_layer = True
    for each in layers:
        begin, end = each.first, each.first + each.length
        first_layer = first_layer and begin >= reached
        if not first_layer:
            repeats.append((begin, end))
            continue
        if reached < begin:
            gaps.append((reached, begin))
        if end > last:  # used before its time: it will come again
            repeats.append((max(begin, last), end))
        reached = end
    if reached < last:
        gaps.append((reached, last))
    return repeats, [(a, min(b, last)) for a, b in gaps if a < last]
