"""Tables looked up by number."""

from __future__ import annotations

from typing import Any

from disttrain.engine import no_grad
from disttrain.functions.creation import empty
from disttrain.nn import functional as F
from disttrain.nn import init
from disttrain.nn.module import Module
from disttrain.nn.parameter import Parameter
from disttrain.tensors import Tensor


class Embedding(Module):
    """A learnt vector for each of ``num_embeddings`` numbers.

    Args:
        num_embeddings: how many.
        embedding_dim: size of each.
        padding_idx: the one that starts as zeros and is not trained.
        device: where the table is.
        dtype: of the table, by default the default dtype.

    Raises:
        ValueError: ``padding_idx`` is out of range.
    """

    weight: Parameter

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise ValueError(
                    f"padding_idx must be in [{-num_embeddings}, {num_embeddings}), got {padding_idx}"
                )
            padding_idx %= num_embeddings
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.weight = Parameter(empty(num_embeddings, embedding_dim, dtype=dtype, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table again: standard normal, zeros at ``padding_idx``."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            with no_grad():
                self.weight[self.padding_idx] = 0.0

    @classmethod
    def from_pretrained(
        cls, embeddings: Tensor, freeze: bool = True, padding_idx: int | None = None
    ) -> Embedding:
        """Return a table that shares the memory of ``embeddings`` ``(num_embeddings, embedding_dim)``.

        Raises:
            ValueError: not a matrix.
        """
        if embeddings.ndim != 2:
            raise ValueError(f"embeddings must be a matrix, got shape {tuple(embeddings.shape)}")
        table = cls(embeddings.shape[0], embeddings.shape[1], padding_idx, dtype=embeddings.dtype)
        table.weight = Parameter(embeddings, requires_grad=not freeze)
        return table

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self.weight, self.padding_idx)

    def extra_repr(self) -> str:
        end = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{end}"
