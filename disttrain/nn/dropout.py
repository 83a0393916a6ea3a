"""Dropout."""

from __future__ import annotations

from disttrain.nn import functional as F
from disttrain.nn.module import Module
from disttrain.tensors import Tensor


class Dropout(Module):
    """In training, zeroes each element with probability ``p`` and divides the others by ``1 - p``.

    Args:
        p: probability in [0, 1].
        inplace: write the result over the input.

    Raises:
        ValueError: ``p`` is not in [0, 1].
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        self.p = p
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training, self.inplace)

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"
