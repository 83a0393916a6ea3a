"""Dropout, with PyTorch's names and defaults."""

from __future__ import annotations

from disttrain import engine, random
from disttrain.functions.activation import check_float
from disttrain.ops import dropout as dropout_ops
from disttrain.tensors import Tensor


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """In training, zero each element with probability ``p`` and divide the others by ``1 - p``.

    The random bits are the next of the calling rank's generator (Srivastava et al. 2014).

    Raises:
        ValueError: ``p`` is not in [0, 1].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p must be a probability in [0, 1], got {p}")
    check_float("dropout", input)
    if not training or p == 0:
        return input
    bits = random.bits32(input.numel()).reshape(input._array.shape)
    if inplace:
        return engine.write_in_place(input, dropout_ops.dropout, bits, p=p)
    return engine.apply(dropout_ops.dropout, input, bits, p=p)  # type: ignore[no-any-return]
