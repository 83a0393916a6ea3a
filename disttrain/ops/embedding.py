"""Rows of a table by number."""

from typing import Any

import numpy as np

from disttrain.kernels import buffers
from disttrain.kernels.arrays import on_gpu, to_host
from disttrain.kernels.embedding import add_rows, fill_rows
from disttrain.ops.activation import widen
from disttrain.ops.types import Array, Result, call, get_array_module, no_vjp

_SMALL = 4096
"""Below this many elements NumPy takes rows as quickly as a compiled kernel."""


def embedding(
    weight: Array, indices: Array, *, padding_idx: int | None = None, by_frequency: bool = False
) -> Result:
    """Return ``weight[indices]``, of shape ``(*indices.shape, D)``.

    Args:
        weight: the table, (V, D).
        indices: integers in [0, V), any shape.
        padding_idx: the row that gets no gradient, as in ``torch.nn.functional.embedding``; may be negative.
        by_frequency: divide the gradient of each row by the number of its indices.

    Raises:
        RuntimeError: ``indices`` are not integers, or the table is no matrix.
        IndexError: an index is out of range; names it and its place.
        ValueError: ``padding_idx`` is out of range.
    """
    if weight.ndim != 2:
        raise RuntimeError(f"embedding: weight must be (V, D), got shape {weight.shape}")
    if indices.dtype.kind not in "iu":
        raise RuntimeError(f"embedding: indices must be integers, got {indices.dtype}")
    rows = weight.shape[0]
    if padding_idx is not None:
        if not -rows <= padding_idx < rows:
            raise ValueError(f"embedding: padding_idx must be in [{-rows}, {rows}), got {padding_idx}")
        padding_idx %= rows
    if on_gpu(weight):
        check_range(indices, rows, "embedding: index")
        out = weight.take(indices, axis=0)
    else:
        out = buffers.empty((*indices.shape, weight.shape[1]), weight.dtype)
        if out.size < _SMALL or not fill_rows(weight, indices, out):
            check_range(indices, rows, "embedding: index")
            # Other modes check the range again, row by row.
            weight.take(indices, axis=0, out=out, mode="clip")
    return out, (indices, rows, padding_idx, by_frequency), embedding_vjp


def embedding_vjp(
    g: Any, needs: tuple[bool, ...], indices: Any, rows: int, padding_idx: int | None, by_frequency: bool
) -> tuple[Any, ...]:
    if not needs[0]:
        return None, None
    if by_frequency:
        g = g * call(inverse_frequency, indices, rows=rows, like=g.dtype)
    return call(embedding_grad, g, indices, rows=rows, padding_idx=padding_idx), None


def inverse_frequency(indices: Array, *, rows: int, like: Any) -> Result:
    """Return for each index 1 over how often it occurs, of shape ``(*indices.shape, 1)``."""
    xp = get_array_module(indices)
    counts = xp.bincount(buffers.convert(indices.reshape(-1), np.int64), minlength=rows)
    kind = like if isinstance(like, np.dtype) else like.numpy
    return (1 / counts[indices])[..., None].astype(kind), (), no_vjp


def bag_maximum(rows: Array, bags: Array, *, count: int) -> Result:
    """Return the largest of the rows of each bag, elementwise; 0 for a bag without rows.

    Args:
        rows: (M, D).
        bags: the bag of each row, (M,), not descending.
        count: number of bags.
    """
    xp = get_array_module(rows)
    winners = xp.full((count, rows.shape[1]), -1, np.int64)
    begins = np.searchsorted(bags, np.arange(count + 1))
    for b in np.flatnonzero(begins[1:] > begins[:-1]):
        winners[b] = xp.argmax(rows[begins[b] : begins[b + 1]], 0) + begins[b]
    return _take_winners(rows, winners), (winners, rows.shape), bag_maximum_vjp


def _take_winners(rows: Array, winners: Array) -> Array:
    xp = get_array_module(rows)
    if not len(rows):
        return buffers.zeros(winners.shape, rows.dtype, rows)
    return xp.where(winners >= 0, xp.take_along_axis(rows, xp.maximum(winners, 0), 0), rows.dtype.type(0))


def bag_maximum_vjp(g: Any, needs: tuple[bool, ...], winners: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    return call(spread_to_winners, g, winners, shape=shape), None


def spread_to_winners(g: Array, winners: Array, *, shape: tuple[int, ...]) -> Result:
    """Return zeros of ``shape`` with ``g`` where the winners came from."""
    out = buffers.zeros(shape, g.dtype, g)
    some = winners >= 0
    columns = np.broadcast_to(np.arange(winners.shape[1]), winners.shape)
    out[winners[some], columns[some]] = g[some]  # bags have no row in common: no two writes meet
    return out, (winners,), spread_to_winners_vjp


def spread_to_winners_vjp(h: Any, needs: tuple[bool, ...], winners: Any) -> tuple[Any, ...]:
    return call(pick_winners, h, winners), None


def pick_winners(rows: Array, winners: Array) -> Result:
    """Return the elements of ``rows`` that ``winners`` name, 0 for -1."""
    return _take_winners(rows, winners), (winners, rows.shape), bag_maximum_vjp


def embedding_grad(g: Array, indices: Array, *, rows: int, padding_idx: int | None) -> Result:
    """Return the gradient of the table: ``g`` (..., D) added up by index, in the order of the indices."""
    size = g.shape[-1]
    flat = widen(g).reshape(-1, size)
    skip = -1 if padding_idx is None else padding_idx
    out = add_rows(flat, buffers.convert(indices.reshape(-1), np.int64), rows, skip)
    return buffers.convert(out, g.dtype), (indices, padding_idx), embedding_grad_vjp


def embedding_grad_vjp(
    h: Any, needs: tuple[bool, ...], indices: Any, padding_idx: int | None
) -> tuple[Any, ...]:
    if not needs[0]:
        return None, None
    rows = call(embedding, h, indices, padding_idx=padding_idx)
    if padding_idx is not None:
        rows = rows * (indices != padding_idx).reshape(*indices.shape, 1)
    return rows, None


def check_range(indices: Array, size: int, what: str, ignore: int | None = None) -> bool:
    """Check that each index is in [0, size) or equals ``ignore``; return whether all are in [0, size).

    Raises:
        IndexError: names the first index that is not, its place and the range.
    """
    xp = get_array_module(indices)
    if not indices.size:
        return True
    if int(indices.view(f"u{indices.itemsize}").max()) < size:  # where what is negative is large
        return True
    bad = (indices < 0) | (indices >= size)
    if ignore is not None:
        bad &= indices != ignore
    if not bool(bad.any()):
        return False
    place = np.unravel_index(int(xp.argmax(bad)), indices.shape)
    value = int(to_host(indices)[place])
    where = ", ".join(str(int(i)) for i in place)
    also = "" if ignore is None else f" or {ignore} (ignored)"
    raise IndexError(f"{what} {value} at position [{where}] is out of range: must be in [0, {size}){also}")
