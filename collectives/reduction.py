"""The reductions of one process: of the arrays of the ranks that it hosts, along the fixed tree."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy

from disttrain.collectives.call import Call
from disttrain.collectives.host import Group
from disttrain.collectives.tree import Node, fold, nested
from disttrain.kernels.arrays import Array, address, copy_into, get_array_module, on_gpu
from disttrain.kernels.buckets import fold_tree

_UFUNCS = {
    "sum": "add",
    "prod": "multiply",
    "min": "minimum",
    "max": "maximum",
    "band": "bitwise_and",
    "bor": "bitwise_or",
    "bxor": "bitwise_xor",
}
"""The function of NumPy and of CuPy for each operation."""
_OF_BOOL = {"sum": "max", "prod": "min", "min": "min", "max": "max"}

CHUNK_BYTES = 256 << 10
"""How much is folded at a time: what the caches hold of the arrays of all."""

Dtype = Any
"""``numpy.dtype`` of any kind."""


Parts = dict[Node, Array]
"""Flat arrays of the ranks that something hosts, or of subtrees of them; rank i alone is the subtree (i, i + 1)."""


def fold_hosted(group: Group, node: Node, xs: Parts, op: str, dtype: Dtype) -> Array:
    """Return a subtree of which ``xs`` has all parts, reduced in ``dtype`` (one of ``xs`` if it is there already)."""
    whole = xs.get(node)
    if whole is not None and whole.dtype == dtype:
        return whole
    lo, hi = node
    below = {part: x for part, x in xs.items() if lo <= part[0] and part[1] <= hi}
    take = partial(group.scratch.take, next(iter(xs.values())).size, dtype)
    if _adds_at_once(op, below.values()):
        total = take()
        fold_tree(nested(node, below), total)
        return total
    return fold_along(node, {part: widened(group, x) for part, x in below.items()}, op, take)


def fold_along(
    node: Node,
    parts: dict[Node, tuple[Array, bool]],
    op: str,
    take: Callable[[], Array],
    out: Array | None = None,
) -> Array:
    """:func:`.tree.fold` by the name of an operation; return the result."""
    with numpy.errstate(all="ignore"):  # overflow and NaN are results here, for the caller to look at
        return fold(node, parts, ufunc(op, next(iter(parts.values()))[0]), take, out)[0]


def ufunc(op: str, x: Array) -> Callable[..., Any]:
    """Return the function ``f(left, right, out=...)`` of an operation on arrays of the library of ``x``."""
    function: Callable[..., Any] = getattr(get_array_module(x), _UFUNCS[op])
    return function


def fold_into(group: Group, parts: dict[Node, tuple[Array, bool]], op: str, out: Array) -> None:
    """Write into ``out`` the fold of the whole tree.

    Args:
        group: of whose tree it is.
        parts: the known subtrees: (flat array of the type of ``out`` or of that which it accumulates in, whether it is
            scratch that may be overwritten).
        op: the operation.
        out: where the result goes; it may be the memory of one of the parts.
    """
    if _adds_at_once(op, [x for x, _ in parts.values()]):
        fold_tree(nested((0, group.size), {node: x for node, (x, _) in parts.items()}), out)
        return
    dtype = accumulator(out.dtype)
    parts = {node: (x, ours) if x.dtype == dtype else widened(group, x) for node, (x, ours) in parts.items()}
    take = partial(group.scratch.take, out.size, dtype)
    total = fold_along((0, group.size), parts, op, take, out if out.dtype == dtype else None)
    if total is not out:
        round_into(total, out)


def _adds_at_once(op: str, xs: Iterable[Array]) -> bool:
    """Return whether one kernel can add up all of ``xs``: floats on a GPU, of one type."""
    first, *rest = xs
    return (
        op == "sum"
        and on_gpu(first)
        and first.dtype.kind in "fV"
        and all(x.dtype == first.dtype for x in rest)
    )


def widened(group: Group, x: Array) -> tuple[Array, bool]:
    """Return ``x`` in the type that it is accumulated in, and whether that is scratch."""
    dtype = accumulator(x.dtype)
    if x.dtype == dtype:
        return x, False
    wide = group.scratch.take(x.size, dtype)
    copy_into(wide, x)
    return wide, True


def operation(call: Call) -> str:
    """Return the operation on the arrays as :func:`flat` sees them: bool is reduced as bytes of 0 and 1."""
    return _OF_BOOL.get(call.op, call.op) if call.x.dtype.kind == "b" else call.op


def operands(calls: Sequence[Call]) -> Parts:
    """Return what each rank hosted here contributes."""
    return {(call.index, call.index + 1): flat(call.x, call.op) for call in calls}


def flat(x: Array, op: str = "") -> Array:
    """Return ``x`` with one axis; bool as bytes if it is to be reduced."""
    line = x if x.ndim == 1 else x.reshape(-1)
    return line.view(numpy.uint8) if op and line.dtype.kind == "b" else line


def copy_flat(x: Array, out: Array) -> None:
    """Copy ``x`` into the flat ``out``, unless it is the same memory already."""
    line = x.reshape(-1)
    if address(line) != address(out):
        copy_into(out, line)


def average(group: Group, calls: Sequence[Call]) -> None:
    """Divide what a call has summed by the sum of the ranks' weights, if it is to be averaged."""
    for call in calls:
        if call.averaged:
            out = flat(call.out)
            divide(group, out[: call.averaged], out[call.averaged])


def divide(group: Group, x: Array, total: Any) -> None:
    """Divide ``x`` in place by a number of its type, unless that is 0."""
    if total in (0, 1):
        return
    if math.frexp(total)[0] == 0.5:  # a power of two: the same bits in less than half the time
        group.quietly(numpy.multiply, x, 1 / total, x)
    else:
        group.quietly(numpy.divide, x, total, x)


def accumulator(dtype: Dtype) -> Dtype:
    """Return the dtype in which ``dtype`` is reduced: half precision in float32, rounded once at the end."""
    return numpy.dtype(numpy.float32) if dtype.itemsize == 2 and dtype.kind not in "iu" else dtype


def round_into(total: Array, out: Array) -> None:
    """Write ``total`` into ``out``, which may be of a narrower type."""
    with numpy.errstate(all="ignore"):
        get_array_module(out).copyto(out, total, casting="unsafe")
