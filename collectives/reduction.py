"""The reductions of one process: of the arrays of the ranks that it hosts, along the fixed tree."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy

from disttrain.collectives.call import Call
from disttrain.collectives.host import Group
from disttrain.collectives.tree import Node, fold
from disttrain.kernels.arrays import Array

UFUNCS: dict[str, Callable[..., Any]] = {
    "sum": numpy.add,
    "prod": numpy.multiply,
    "min": numpy.minimum,
    "max": numpy.maximum,
}
_OF_BOOL = {"sum": "max", "prod": "min", "min": "min", "max": "max"}

CHUNK_BYTES = 256 << 10
"""How much is folded at a time: what the caches hold of the arrays of all."""

Dtype = Any
"""``numpy.dtype`` of any kind."""


def fold_hosted(group: Group, node: Node, xs: dict[int, Array], op: str, dtype: Dtype) -> Array:
    """Return a subtree of ranks that are all hosted here, reduced (one rank: its own array)."""
    lo, hi = node
    if hi - lo == 1 and xs[lo].dtype == dtype:
        return xs[lo]
    leaves: dict[Node, tuple[Array, bool]] = {}
    for i in range(lo, hi):
        leaves[i, i + 1] = widened(group, xs[i])
    count = xs[lo].size
    return fold_along(node, leaves, op, partial(group.scratch.take, count, dtype))


def fold_along(
    node: Node,
    parts: dict[Node, tuple[Array, bool]],
    op: str,
    take: Callable[[], Array],
    out: Array | None = None,
) -> Array:
    """:func:`.tree.fold` by the name of an operation; return the result."""
    with numpy.errstate(all="ignore"):  # overflow and NaN are results here, for the caller to look at
        return fold(node, parts, UFUNCS[op], take, out)[0]


def fold_into(group: Group, parts: dict[Node, tuple[Array, bool]], op: str, out: Array) -> None:
    """Write into ``out`` the fold of the whole tree; ``parts`` are in the type that it accumulates in."""
    dtype = accumulator(out.dtype)
    take = partial(group.scratch.take, out.size, dtype)
    total = fold_along((0, group.size), parts, op, take, out if out.dtype == dtype else None)
    if total is not out:
        round_into(total, out)


def widened(group: Group, x: Array) -> tuple[Array, bool]:
    """Return ``x`` in the type that it is accumulated in, and whether that is scratch."""
    dtype = accumulator(x.dtype)
    if x.dtype == dtype:
        return x, False
    wide = group.scratch.take(x.size, dtype)
    numpy.copyto(wide, x)
    return wide, True


def operation(call: Call) -> str:
    """Return the operation on the arrays as :func:`flat` sees them: bool is reduced as bytes of 0 and 1."""
    return _OF_BOOL[call.op] if call.x.dtype == bool else call.op


def operands(calls: Sequence[Call]) -> dict[int, Array]:
    """Return what each rank hosted here contributes, by index."""
    return {call.index: flat(call.x, call.op) for call in calls}


def flat(x: Array, op: str = "") -> Array:
    """Return ``x`` with one axis; bool as bytes if it is to be reduced."""
    line = x.reshape(-1)
    return line.view(numpy.uint8) if op and line.dtype == bool else line


def copy_flat(x: Array, out: Array) -> None:
    """Copy ``x`` into the flat ``out``, unless it is the same memory already."""
    line = x.reshape(-1)
    if line.__array_interface__["data"][0] != out.__array_interface__["data"][0]:
        numpy.copyto(out, line)


def accumulator(dtype: Dtype) -> Dtype:
    """Return the dtype in which ``dtype`` is reduced: half precision in float32, rounded once at the end."""
    return numpy.dtype(numpy.float32) if dtype.itemsize == 2 and dtype.kind not in "iu" else dtype


def round_into(total: Array, out: Array) -> None:
    """Write ``total`` into ``out``, which may be of a narrower type."""
    with numpy.errstate(all="ignore"):
        numpy.copyto(out, total, casting="unsafe")
