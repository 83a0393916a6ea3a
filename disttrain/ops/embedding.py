"""Rows of a table by number."""

from typing import Any

import numpy as np

from disttrain.kernels.arrays import to_host
from disttrain.kernels.embedding import add_rows
from disttrain.ops.activation import widen
from disttrain.ops.types import Array, Result, call, get_array_module


def embedding(weight: Array, indices: Array, *, padding_idx: int | None = None) -> Result:
    """Return ``weight[indices]``, of shape ``(*indices.shape, D)``.

    Args:
        weight: the table, (V, D).
        indices: integers in [0, V), any shape.
        padding_idx: the row that gets no gradient, as in ``torch.nn.functional.embedding``; may be negative.

    Raises:
        TypeError: ``indices`` are not integers.
        IndexError: an index is out of range; names it and its place.
        ValueError: the table is no matrix, or ``padding_idx`` is out of range.
    """
    if weight.ndim != 2:
        raise ValueError(f"embedding: weight must be (V, D), got shape {weight.shape}")
    if indices.dtype.kind not in "iu":
        raise TypeError(f"embedding: indices must be integers, got {indices.dtype}")
    rows = weight.shape[0]
    if padding_idx is not None:
        if not -rows <= padding_idx < rows:
            raise ValueError(f"embedding: padding_idx must be in [{-rows}, {rows}), got {padding_idx}")
        padding_idx %= rows
    check_range(indices, rows, "embedding: index")
    return weight[indices], (indices, rows, padding_idx), embedding_vjp


def embedding_vjp(
    g: Any, needs: tuple[bool, ...], indices: Any, rows: int, padding_idx: int | None
) -> tuple[Any, ...]:
    gw = call(embedding_grad, g, indices, rows=rows, padding_idx=padding_idx) if needs[0] else None
    return gw, None


def embedding_grad(g: Array, indices: Array, *, rows: int, padding_idx: int | None) -> Result:
    """Return the gradient of the table: ``g`` (..., D) added up by index, in the order of the indices."""
    size = g.shape[-1]
    flat = widen(g).reshape(-1, size)
    skip = -1 if padding_idx is None else padding_idx
    out = add_rows(flat, indices.reshape(-1).astype(np.int64, copy=False), rows, skip)
    return out.astype(g.dtype, copy=False), (indices, padding_idx), embedding_grad_vjp


def embedding_grad_vjp(
    h: Any, needs: tuple[bool, ...], indices: Any, padding_idx: int | None
) -> tuple[Any, ...]:
    if not needs[0]:
        return None, None
    rows = call(embedding, h, indices, padding_idx=padding_idx)
    if padding_idx is not None:
        rows = rows * (indices != padding_idx).reshape(*indices.shape, 1)
    return rows, None


def check_range(indices: Array, size: int, what: str, ignore: int | None = None) -> None:
    """Check that each index is in [0, size) or equals ``ignore``.

    Raises:
        IndexError: names the first index that is not, its place and the range.
    """
    xp = get_array_module(indices)
    if not indices.size:
        return
    if int(indices.min()) >= 0 and int(indices.max()) < size:
        return
    bad = (indices < 0) | (indices >= size)
    if ignore is not None:
        bad &= indices != ignore
    if not bool(bad.any()):
        return
    place = np.unravel_index(int(xp.argmax(bad)), indices.shape)
    value = int(to_host(indices)[place])
    where = ", ".join(str(int(i)) for i in place)
    also = "" if ignore is None else f" or {ignore} (ignored)"
    raise IndexError(f"{what} {value} at position [{where}] is out of range: must be in [0, {size}){also}")
