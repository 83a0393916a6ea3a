"""How the losses of the elements become one number, and the deprecated arguments that say so."""

from __future__ import annotations

import warnings
from typing import Any

from disttrain.tensors import Tensor

_BY_NUMBER = {0: "none", 1: "mean", 2: "sum"}
"""What PyTorch's functions at the top level take."""


def chosen(size_average: bool | None, reduce: bool | None, reduction: Any) -> str:
    """Return the reduction that the three arguments of a loss ask for.

    Raises:
        ValueError: ``reduction`` is neither ``"none"``, ``"mean"`` nor ``"sum"``.
    """
    if size_average is not None or reduce is not None:
        found = "none" if reduce is False else "sum" if size_average is False else "mean"
        warnings.warn(
            f"size_average and reduce are the old words for reduction; say reduction={found!r}",
            stacklevel=3,
        )
        return found
    if type(reduction) is int:
        reduction = _BY_NUMBER.get(reduction, reduction)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction is "none", "mean" or "sum", got {reduction!r}')
    return reduction  # type: ignore[no-any-return]


def reduced(loss: Tensor, reduction: str) -> Tensor:
    """Return the losses of the elements reduced."""
    if reduction == "mean":
        return loss.mean()
    return loss.sum() if reduction == "sum" else loss
