"""Keeping the ranks' copies of a model equal, and seeing that they are."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from disttrain import context
from disttrain.collectives.call import name_ranks
from disttrain.errors import ReplicasDiffer
from disttrain.kernels.arrays import to_host
from disttrain.random import current_generator
from disttrain.tensors import Tensor

if TYPE_CHECKING:
    from disttrain.collectives.communicator import Communicator
    from disttrain.nn.module import Module


def agree(comm: Communicator) -> int:
    """Return rank 0's number of a new wrapper; take its seed, which orders data sets, as ranks may seed differently."""
    rank = context.current()
    told = np.array([rank.wrappers, current_generator().initial_seed()], np.uint64)
    rank.wrappers += 1
    comm.broadcast(told)
    number, rank.order_seed = (int(word) for word in told)
    return number


def take_from(comm: Communicator, root: int, tensors: list[Tensor]) -> None:
    """Overwrite tensors with those of rank ``root``."""
    for kind in dict.fromkeys(t._array.dtype for t in tensors):
        same = [t for t in tensors if t._array.dtype == kind]
        flat = np.concatenate([t._array.reshape(-1) for t in same])
        comm.broadcast(flat, root)
        begin = 0
        for t in same:
            t._array[...] = flat[begin : begin + t._array.size].reshape(t._array.shape)
            t._version_counter[0] += 1
            begin += t._array.size


def compare_fingerprints(module: Module, comm: Communicator, forwards: int) -> None:
    """Compare a checksum of every parameter over the ranks.

    Args:
        module: of all ranks alike.
        forwards: how many it has made; for the text.

    Raises:
        ReplicasDiffer: on all ranks alike, if one has other parameters.
    """
    named = list(module.named_parameters())
    mine = np.array(
        [zlib.crc32(np.ascontiguousarray(to_host(p._array)).tobytes()) for _, p in named], np.uint32
    )
    everyone = np.empty((comm.size, mine.size), np.uint32)
    comm.all_gather(mine, everyone)
    differ = (everyone != everyone[0]).any(0)
    if not differ.any():
        return
    first = int(differ.argmax())
    ranks: dict[int, list[int]] = {}
    for rank, fingerprint in zip(comm.ranks, everyone[:, first].tolist(), strict=True):
        ranks.setdefault(fingerprint, []).append(rank)
    most, *odd = sorted(ranks.values(), key=len, reverse=True)
    if len(most) > len(odd[0]):
        where = f"on {name_ranks(rank for group in odd for rank in group)} it is not what it is on the others"
    else:
        where = f"alike only on {' and on '.join(map(name_ranks, [most, *odd]))}"
    raise ReplicasDiffer(
        f"before forward {forwards + 1}, {int(differ.sum())} of {len(named)} parameters differ between the "
        f"ranks; the first is {named[first][0]!r}, {where}. Look for code that changes parameters on some ranks only"
    )
