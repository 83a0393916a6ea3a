"""Distances between vectors, with PyTorch's names."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from disttrain.functions.arithmetic import where
from disttrain.functions.common import need_tensors
from disttrain.precision import autocasts

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


@autocasts
def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    """The ``p``-norm distances between each row of one and each row of the other.

    Args:
        x1: ``(…, P, M)``, floating point.
        x2: ``(…, R, M)``; batches broadcast.
        p: at least 0; at 0 the number of elements that differ.
        compute_mode: how PyTorch computes the Euclidean distance; here always from the differences.

    Returns:
        ``(…, P, R)``. Where a distance is zero, so is its gradient.

    Raises:
        RuntimeError: shapes, types or ``p`` do not fit.
    """
    need_tensors("cdist", x1, x2)
    if x1.ndim < 2 or x2.ndim < 2 or x1.shape[-1] != x2.shape[-1]:
        raise RuntimeError(
            f"cdist(): shapes {list(x1.shape)} and {list(x2.shape)} do not hold rows of one length"
        )
    if not x1.dtype.is_floating_point or not x2.dtype.is_floating_point:
        raise RuntimeError(f"cdist(): needs floating point numbers, got {x1.dtype} and {x2.dtype}")
    if p < 0:
        raise RuntimeError(f"cdist(): p must not be negative, got {p}")
    apart = (x1.unsqueeze(-2) - x2.unsqueeze(-3)).abs()
    if p == 0:
        return (apart != 0).to(apart.dtype).sum(-1) + 0 * apart.sum(-1)  # type: ignore[no-any-return]
    if p == 1 or not x1.shape[-1]:
        return apart.sum(-1)
    if math.isinf(p):
        return apart.amax(-1)
    same = apart == 0
    powers = where(same, 0.0, where(same, 1.0, apart) ** p)
    total = powers.sum(-1)
    none = total == 0
    return where(none, 0.0, where(none, 1.0, total) ** (1 / p))  # type: ignore[no-any-return]
