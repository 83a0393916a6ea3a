"""Norms of gradients that are spread over the ranks: the bits that they would have in one place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain.kernels.arrays import Array
from disttrain.kernels.optim import CHUNK, sum_of_squares, sums_of_squares
from disttrain.nn.utils.clip_grad import share

if TYPE_CHECKING:
    from disttrain.parallel.spread import Shard


def shares_of_spread(parts: list[Array], shards: list[Shard], order: float) -> list[float]:
    """Return what each of several arrays adds to a norm, see :func:`.clip_grad.share`. All ranks call it.

    Args:
        parts: this rank's part of each, float32 or float64.
        shards: how each is spread.
        order: of the norm.
    """
    groups: dict[int, list[int]] = {}
    for i, shard in enumerate(shards):
        groups.setdefault(id(shard.comm), []).append(i)
    found = [0.0] * len(parts)
    for where in groups.values():
        of_group = _of_group([parts[i] for i in where], [shards[i] for i in where], order)
        for i, one in zip(where, of_group, strict=True):
            found[i] = one
    return found


def _of_group(parts: list[Array], shards: list[Shard], order: float) -> list[float]:
    if order == 2.0:
        return _squares([p.reshape(-1) for p in parts], shards)
    if order in (0.0, math.inf):
        mine = np.array([share(p, order) for p in parts])
        shards[0].comm.all_reduce(mine, mine, op="max")
        return mine.tolist()  # type: ignore[no-any-return]
    return [share(shard.gather(p), order) for p, shard in zip(parts, shards, strict=True)]


def _squares(parts: list[Array], shards: list[Shard]) -> list[float]:
    """Return the sums of squares, added up in the chunks of :func:`.sum_of_squares`.

    A chunk is added up by the rank on which it begins, to which the others that have some of it send that.
    """
    comm = shards[0].comm
    heads = _exchange_heads(parts, shards)
    sums: list[Array] = []
    for i, (part, shard) in enumerate(zip(parts, shards, strict=True)):
        begin, end = shard.bounds[comm.rank]
        first = _next_chunk(begin)
        if first >= end:
            continue
        last = (end - 1) // CHUNK * CHUNK
        stop = min(last + CHUNK, math.prod(shard.shape))
        pieces = [part[last - begin :]]
        for other in range(comm.rank + 1, comm.size):
            b, e = shard.bounds[other]
            if b < min(e, stop):
                pieces.append(heads[other][i][: stop - b])
        sums.append(sums_of_squares(part[first - begin : last - begin]))
        sums.append(np.array([sum_of_squares(np.concatenate(pieces))]))
    counts = [[len(range(_next_chunk(b), e, CHUNK)) for b, e in shard.bounds] for shard in shards]
    longest = max(map(sum, zip(*counts, strict=True)))
    everyone = np.zeros((comm.size, longest))
    if longest:
        mine = everyone[comm.rank]
        flat = np.concatenate([np.zeros(0), *sums])
        mine[: flat.size] = flat
        comm.all_gather(mine, everyone)
    begins = [0] * comm.size
    found = []
    for of_array in counts:
        total = 0.0
        for r, n in enumerate(of_array):
            for one in everyone[r, begins[r] : begins[r] + n].tolist():
                total += one
            begins[r] += n
        found.append(total)
    return found


def _next_chunk(begin: int) -> int:
    return -(-begin // CHUNK) * CHUNK


def _exchange_heads(parts: list[Array], shards: list[Shard]) -> list[list[Any]]:
    """Return, by rank and array, the elements at the begin of the rank's part whose chunk begins on an earlier rank."""
    comm = shards[0].comm
    kinds = [part.dtype for part in parts]
    lengths = [[max(0, min(_next_chunk(b), e) - b) for b, e in shard.bounds] for shard in shards]
    heads: list[list[Any]] = [[None] * len(parts) for _ in range(comm.size)]
    for kind in dict.fromkeys(kinds):
        of_kind = [i for i, k in enumerate(kinds) if k == kind]
        longest = max(sum(lengths[i][r] for i in of_kind) for r in range(comm.size))
        if not longest:
            continue
        everyone = np.zeros((comm.size, longest), kind)
        mine = everyone[comm.rank]
        flat = np.concatenate([parts[i][: lengths[i][comm.rank]] for i in of_kind])
        mine[: flat.size] = flat
        comm.all_gather(mine, everyone)
        for r in range(comm.size):
            begin = 0
            for i in of_kind:
                heads[r][i] = everyone[r, begin : begin + lengths[i][r]]
                begin += lengths[i][r]
    return heads
