"""Clipping of gradients, as ``torch.nn.utils``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

from disttrain.engine import no_grad
from disttrain.kernels.arrays import get_array_module
from disttrain.kernels.optim import sum_of_squares
from disttrain.modes import replayed
from disttrain.ops.activation import widen
from disttrain.tensors import Tensor


@replayed
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale the gradients of ``parameters`` in place so that their norm, taken together, is at most ``max_norm``.

    The norm has the same bits however many processes share the work: each gradient is added up in float64 in
    chunks of a fixed size, and the gradients in the order of the parameters.

    Args:
        parameters: those without gradient are passed over.
        max_norm: upper limit.
        norm_type: which norm; ``math.inf`` for the largest element, 0 for the number of gradients that are not all 0.
        error_if_nonfinite: raise instead of scaling by NaN or 0.
        foreach: without effect: there is one way to do it.

    Returns:
        The norm before, without dimensions, in float32 (float64 if the gradients are).

    Raises:
        RuntimeError: the norm is not finite, and ``error_if_nonfinite``.
    """
    grads = _gradients(parameters)
    total = get_total_norm(grads, norm_type, error_if_nonfinite)
    _scale(grads, max_norm, total)
    return total


def clip_grad_norm(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """:func:`clip_grad_norm_` by its deprecated name."""
    warnings.warn("clip_grad_norm() is deprecated; use clip_grad_norm_()", FutureWarning, stacklevel=2)
    return clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)


@replayed
def clip_grads_with_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, total_norm: Tensor, foreach: bool | None = None
) -> None:
    """Scale the gradients of ``parameters`` in place by ``max_norm / total_norm``, if that is below 1."""
    _scale(_gradients(parameters), max_norm, total_norm)


def _scale(grads: list[Tensor], max_norm: float, total: Tensor) -> None:
    factor = float(max_norm) / (float(total) + 1e-6)
    if not factor >= 1.0:  # also for NaN, as in PyTorch
        with np.errstate(invalid="ignore"):  # 0 * inf
            for g in grads:
                g._array *= g._array.dtype.type(factor)
                g._version_counter[0] += 1


@replayed
def get_total_norm(
    tensors: Tensor | Iterable[Tensor],
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Return the norm of all elements of ``tensors``; see :func:`clip_grad_norm_`."""
    tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    arrays = [t._array for t in tensors]
    total = _norm([widen(a) for a in arrays], [t._shard for t in tensors], float(norm_type))
    if error_if_nonfinite and not math.isfinite(total):
        raise RuntimeError(
            f"the total norm of order {norm_type} of the gradients is {total}, so they cannot be clipped; look for "
            f"the cause, or give error_if_nonfinite=False"
        )
    xp = get_array_module(*arrays)
    kind = xp.float64 if any(a.dtype == xp.float64 for a in arrays) else xp.float32
    return Tensor._of(xp.asarray(total, kind))


def _norm(arrays: list[Any], shards: list[Any], order: float) -> float:
    """Return the norm of order ``order`` of arrays, of which some may be parts of what is spread over the ranks."""
    shares: list[Any] = [
        None if shard is not None else share(a, order) for a, shard in zip(arrays, shards, strict=True)
    ]
    spread = [i for i, shard in enumerate(shards) if shard is not None]
    if spread:
        from disttrain.parallel.norms import shares_of_spread  # collectives, which few programs need here

        found = shares_of_spread([arrays[i] for i in spread], [shards[i] for i in spread], order)
        for i, one in zip(spread, found, strict=True):
            shares[i] = one
    if order == 2.0:
        return math.sqrt(sum(shares))
    if order == 0.0:
        return float(sum(shares))
    if order == math.inf:
        return math.nan if any(map(math.isnan, shares)) else max(shares, default=0.0)
    total = sum(shares)
    return math.nan if math.isnan(total) else float(total ** (1 / order))


def share(a: Any, order: float) -> float:
    """Return what an array adds to a norm: a sum of powers, the largest element, or whether one is not 0."""
    if order == 2.0:
        return sum_of_squares(_flat(a))
    if order == 0.0:
        return float(a.any())
    if order == math.inf:
        return float(abs(a).max()) if a.size else 0.0
    return float((abs(_flat(a)).astype("float64") ** order).sum())


def _flat(a: Any) -> Any:
    return get_array_module(a).ascontiguousarray(a).reshape(-1)


@replayed
def clip_grad_value_(
    parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None
) -> None:
    """Limit each element of the gradients to ``[-clip_value, clip_value]``, in place."""
    with no_grad():
        for g in _gradients(parameters):
            g.clamp_(-float(clip_value), float(clip_value))


def _gradients(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    given = [parameters] if isinstance(parameters, Tensor) else parameters
    found = []
    for p in given:
        if p.grad is not None:
            if p._shard is not None and p.grad._array.shape == p._array.shape:
                p.grad._shard = p._shard  # also if somebody has put another gradient there
            found.append(p.grad)
    return found
