"""Rows looked up by number, with PyTorch's names and defaults."""

from __future__ import annotations

from disttrain import engine
from disttrain.ops import embedding as embedding_ops
from disttrain.tensors import Tensor


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Rows of a table by number.

    Args:
        input: integers in ``[0, rows)``, any shape.
        weight: the table, ``(rows, embedding_dim)``.
        padding_idx: the row that gets no gradient.

    Returns:
        ``(*input.shape, embedding_dim)``.

    Raises:
        IndexError: an index out of range; names it and its place.
        TypeError: ``input`` does not hold integers.
    """
    if not isinstance(input, Tensor):
        raise TypeError(f"embedding() needs a Tensor of integers, got {type(input).__name__}")
    return engine.apply(  # type: ignore[no-any-return]
        embedding_ops.embedding, weight, input, padding_idx=padding_idx
    )
