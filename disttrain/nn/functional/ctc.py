"""Connectionist temporal classification, with PyTorch's names and defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from disttrain import engine
from disttrain.functions.activation import check_float
from disttrain.kernels.arrays import to_host
from disttrain.modes import reads_values
from disttrain.nn.functional.reduction import chosen
from disttrain.ops import ctc
from disttrain.precision import autocasts
from disttrain.tensors import Tensor

Lengths = Tensor | Sequence[int]


@autocasts
def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Lengths,
    target_lengths: Lengths,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """The negative log-likelihood of labels whose places are not known (Graves et al. 2006).

    Args:
        log_probs: log-probabilities of the classes, ``(T, N, C)`` or ``(T, C)``, from a log-softmax: the gradient
            takes that for granted, as PyTorch's.
        targets: classes other than ``blank``, ``(N, S)``, or all targets one after another; taken as int64.
        input_lengths: steps of each sequence, at most ``T``.
        target_lengths: labels of each target.
        blank: the class that stands for no label.
        reduction: ``"none"``, ``"sum"`` or ``"mean"``: over the batch, each loss over its target's length.
        zero_infinity: give 0 and no gradient where a target is too long for its sequence.

    Returns:
        Without dimensions, or ``(N,)``.

    Raises:
        RuntimeError: shapes, lengths or classes that do not fit together.
        TypeError: ``targets`` is no Tensor.
        ValueError: an unknown reduction.
    """
    reduction = chosen(None, None, reduction)
    check_float("ctc_loss", log_probs)
    if log_probs.ndim not in (2, 3):
        raise RuntimeError(
            f"ctc_loss: log_probs must be (T, N, C) or (T, C), got shape {tuple(log_probs.shape)}"
        )
    if not isinstance(targets, Tensor):
        raise TypeError(f"ctc_loss: targets must be a Tensor, got {type(targets).__name__}")
    reads_values("ctc_loss(), which looks at labels and lengths,")
    single = log_probs.ndim == 2
    x = log_probs.unsqueeze(1) if single else log_probs
    T, N, C = x.shape
    if not 0 <= blank < C:
        raise RuntimeError(f"ctc_loss: blank must be one of the classes, in [0, {C}), got {blank}")
    steps, labels = _lengths("input", input_lengths, N), _lengths("target", target_lengths, N)
    if (steps > T).any() or (steps < 0).any():
        raise RuntimeError(f"ctc_loss: expected input_lengths to be in [0, {T}], got {steps.tolist()}")
    padded = _padded(to_host(targets.long()._array), labels, single, blank)
    if padded.size and (padded.min() < 0 or padded.max() >= C):
        raise RuntimeError(f"ctc_loss: targets must be in [0, {C}), got {padded.min()} to {padded.max()}")
    loss: Tensor = engine.apply(
        ctc.ctc_loss, x, padded, steps, labels, blank=blank, zero_infinity=zero_infinity
    )
    if reduction == "mean":
        return (loss / Tensor._of(np.maximum(labels, 1).astype(loss._array.dtype)).to(loss.device)).mean()
    if reduction == "sum":
        return loss.sum()
    return loss.squeeze(0) if single else loss


def _lengths(what: str, given: Lengths, N: int) -> Any:
    values = to_host(given._array) if isinstance(given, Tensor) else np.asarray(given)
    if values.size and values.dtype.kind not in "iu":
        raise RuntimeError(f"ctc_loss: {what}_lengths must be integral, got {values.dtype}")
    values = values.reshape(-1).astype(np.int64)
    if len(values) != N:
        raise RuntimeError(
            f"ctc_loss: {what}_lengths needs a number for each of {N} sequences, got {len(values)}"
        )
    if (values < 0).any():
        raise RuntimeError(f"ctc_loss: {what}_lengths must not be negative, got {values.tolist()}")
    return values


def _padded(targets: Any, lengths: Any, single: bool, blank: int) -> Any:
    """Return the targets as (N, S), with blanks after the end of each."""
    N, S = len(lengths), int(lengths.max(initial=0))
    if single and targets.ndim == 1:
        targets = targets[None]
    out = np.full((N, S), blank, np.int64)
    inside = np.arange(S) < lengths[:, None]
    if targets.ndim == 1:
        if len(targets) != lengths.sum():
            raise RuntimeError(
                f"ctc_loss: the {len(targets)} labels of concatenated targets must be as many as target_lengths add "
                f"up to, {lengths.sum()}"
            )
        out[inside] = targets
    elif targets.ndim == 2 and len(targets) == N and targets.shape[1] >= S:
        out[inside] = targets[:, :S][inside]
    else:
        raise RuntimeError(
            f"ctc_loss: targets must be ({N}, {S}) or wider, or one after another, got shape {targets.shape}"
        )
    return out
