"""One fixed binary tree over the ranks of a group, so that a sum has the same bits whoever computes it.

The tree over ranks ``[lo, hi)`` splits at the largest power of two below its width. A process that hosts
some of the ranks folds the largest subtrees it has in full (:func:`cover`); whoever has all the partial
results folds the rest (:func:`fold`). Every rounding happens at the same node of the same tree in either
case.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from disttrain.kernels.arrays import Array

Node = tuple[int, int]
"""A subtree: the ranks ``lo`` to ``hi - 1`` of the group."""


def split(lo: int, hi: int) -> int:
    """Return where the subtree of two or more ranks ``[lo, hi)`` divides."""
    return lo + (1 << ((hi - lo - 1).bit_length() - 1))


def cover(size: int, members: Collection[int]) -> list[Node]:
    """Return, in order, the largest subtrees of the tree over ``size`` ranks that have ``members`` only."""

    def visit(lo: int, hi: int) -> list[Node]:
        inside = sum(lo <= m < hi for m in members)
        if inside == 0:
            return []
        if inside == hi - lo:
            return [(lo, hi)]
        mid = split(lo, hi)
        return visit(lo, mid) + visit(mid, hi)

    return visit(0, size)


def fold(
    node: Node,
    parts: Mapping[Node, tuple[Array, bool]],
    ufunc: Callable[..., Any],
    take: Callable[[], Array],
    out: Array | None = None,
) -> tuple[Array, bool]:
    """Reduce ``parts`` along the tree below ``node``; return the result and whether its memory is scratch.

    Args:
        parts: the known subtrees: (flat array, whether it is scratch that may be overwritten).
        ufunc: ``ufunc(left, right, out=...)``.
        take: returns a new scratch array of the same length.
        out: where the last step writes, if there is a step; it may be the memory of one of the parts.
    """
    if node in parts:
        return parts[node]
    lo, hi = node
    mid = split(lo, hi)
    left, left_is_scratch = fold((lo, mid), parts, ufunc, take)
    right, right_is_scratch = fold((mid, hi), parts, ufunc, take)
    if out is None:
        target = left if left_is_scratch else right if right_is_scratch else take()
    else:
        target = out
    ufunc(left, right, out=target)
    return target, out is None


def nested(node: Node, parts: Mapping[Node, Any]) -> Any:
    """Return the tree below ``node`` as pairs of pairs, with ``parts`` in the place of the subtrees that are known."""
    if node in parts:
        return parts[node]
    lo, hi = node
    mid = split(lo, hi)
    return nested((lo, mid), parts), nested((mid, hi), parts)


def is_leaf(node: Node) -> bool:
    """Return whether the subtree is one rank."""
    return node[1] - node[0] == 1
