"""Distances and similarities of vectors, with PyTorch's names and defaults."""

from __future__ import annotations

import numpy as np

from disttrain.functions.common import floating, need_tensors, promote
from disttrain.functions.norm import norm
from disttrain.functions.shape import broadcast_tensors
from disttrain.precision import autocasts
from disttrain.tensors import Tensor


@autocasts
def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """The cosine of the angle between vectors: their product, over the product of their lengths.

    Args:
        x1: vectors along ``dim``.
        x2: the same, broadcast.
        dim: where the vectors are.
        eps: the smallest length to divide by.

    Raises:
        RuntimeError: the shapes do not broadcast, or both hold integers.
        IndexError: there is no such dimension.
        TypeError: one of them is no Tensor.
    """
    need_tensors("cosine_similarity", x1, x2)
    a, b = promote(x1, x2)
    if not a.dtype.is_floating_point:
        raise RuntimeError(f"cosine_similarity() needs a floating point tensor, got {a.dtype}")
    a, b = broadcast_tensors(a, b)
    return (_unit(a, dim, eps) * _unit(b, dim, eps)).sum(dim)


def _unit(x: Tensor, dim: int, eps: float) -> Tensor:
    length = norm(x, 2, dim, keepdim=True)
    limit = length.detach()
    return x / (length + (limit.clamp(min=eps) - limit))  # the gradient is that of the length also below eps


def pairwise_distance(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    """The ``p``-norm of ``x1 - x2 + eps`` along the last dimension.

    Raises:
        RuntimeError: the shapes do not broadcast.
    """
    return norm(floating(x1 - x2) + eps, p, -1 if max(x1.ndim, x2.ndim) else None, keepdim)


@autocasts
def pdist(input: Tensor, p: float = 2.0) -> Tensor:
    """The ``p``-norms of the differences of all pairs of rows: (0, 1), (0, 2) … (1, 2) …

    Args:
        input: ``(N, D)``.
        p: of the norm, not negative.

    Returns:
        ``(N * (N - 1) / 2,)``.

    Raises:
        RuntimeError: ``input`` is no matrix of floating point numbers, or ``p`` is negative.
        TypeError: ``input`` is no Tensor.
    """
    need_tensors("pdist", input)
    if input.ndim != 2 or not input.dtype.is_floating_point:
        raise RuntimeError(
            f"pdist() supports only 2D tensors of floating point numbers, got {input.ndim}D {input.dtype}"
        )
    if not p >= 0:
        raise RuntimeError(f"pdist() supports only non-negative p values, got {p}")
    first, second = (
        Tensor._of(i.astype(np.int64)).to(input.device) for i in np.triu_indices(input.shape[0], 1)
    )
    return norm(input.index_select(0, first) - input.index_select(0, second), p, 1)
