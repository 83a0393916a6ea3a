"""Losses of differences. Shapes that differ are broadcast with a warning, as PyTorch does."""

from __future__ import annotations

import math
import warnings

from disttrain import engine
from disttrain.functions.common import need_tensors, promote
from disttrain.functions.shape import broadcast_tensors
from disttrain.nn.functional.reduction import chosen, reduced
from disttrain.ops import loss
from disttrain.precision import autocasts
from disttrain.tensors import Tensor


@autocasts
def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """``(input - target) ** 2``.

    Args:
        input: a floating point tensor.
        target: of the same shape.
        size_average: deprecated.
        reduce: deprecated.
        reduction: ``"mean"`` is over the elements, or over the weights.
        weight: factor of each element's loss, of the shape of ``input``.

    Raises:
        RuntimeError: the shapes do not broadcast.
        ValueError: another shape of ``weight``, or an unknown reduction.
    """
    reduction = chosen(size_average, reduce, reduction)
    a, b = _pair("mse_loss", input, target)
    if weight is None:
        return engine.apply(loss.mse_loss, a, b, reduction=reduction)  # type: ignore[no-any-return]
    return _weighted((a - b) ** 2, input, weight, reduction)


@autocasts
def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """``|input - target|``; arguments and errors as :func:`mse_loss`."""
    reduction = chosen(size_average, reduce, reduction)
    a, b = _pair("l1_loss", input, target, floats=False)
    each = (a - b).abs()
    return reduced(each, reduction) if weight is None else _weighted(each, input, weight, reduction)


@autocasts
def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    """``|input - target| - beta / 2``, and ``(input - target) ** 2 / (2 * beta)`` below ``beta`` (Girshick 2015).

    Raises:
        RuntimeError: ``beta`` is negative, or the shapes do not broadcast.
        ValueError: an unknown reduction.
    """
    reduction = chosen(size_average, reduce, reduction)
    if not beta >= 0:
        raise RuntimeError(f"smooth_l1_loss: beta must not be negative, got {beta}")
    if beta == 0:
        return l1_loss(input, target, reduction=reduction)
    a, b = _pair("smooth_l1_loss", input, target)
    return reduced(engine.apply(loss.smooth_l1, a - b, beta=beta), reduction)


@autocasts
def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """``(input - target) ** 2 / 2``, and ``delta * (|input - target| - delta / 2)`` above ``delta`` (Huber 1964).

    Raises:
        RuntimeError: ``delta`` is not positive, or the shapes do not broadcast.
        ValueError: another shape of ``weight``, or an unknown reduction.
    """
    reduction = chosen(None, None, reduction)
    if not delta > 0:
        raise RuntimeError(f"huber_loss: delta must be positive, got {delta}")
    a, b = _pair("huber_loss", input, target)
    each = engine.apply(loss.smooth_l1, a - b, beta=delta) * delta
    if weight is None:
        return reduced(each, reduction)
    _check_weight(input, weight)
    return reduced(each * weight, reduction)


def _pair(name: str, input: Tensor, target: Tensor, floats: bool = True) -> list[Tensor]:
    for t in (input, target):
        if not isinstance(t, Tensor):
            raise TypeError(
                f"{name}() needs Tensors, got {type(t).__name__}; convert it with disttrain.tensor()"
            )
    if input._array.shape != target._array.shape:
        warnings.warn(
            f"target of shape {tuple(target.shape)} is broadcast with input of shape {tuple(input.shape)}, which is "
            f"seldom what a loss means; give both one shape",
            stacklevel=3,
        )
        input, target = broadcast_tensors(input, target)
    if input._array.dtype != target._array.dtype:
        input, target = promote(input, target)
    if floats and not input.dtype.is_floating_point:
        raise NotImplementedError(
            f"{name}() needs a floating point tensor, got {input.dtype}; convert it with .float()"
        )
    return [input, target]


def _check_weight(input: Tensor, weight: Tensor) -> None:
    if weight.shape != input.shape:
        raise ValueError(
            f"weight must have the shape of input, {tuple(input.shape)}, got {tuple(weight.shape)}"
        )


def _weighted(each: Tensor, input: Tensor, weight: Tensor, reduction: str) -> Tensor:
    _check_weight(input, weight)
    total = reduced(each * weight, "sum" if reduction == "mean" else reduction)
    return total / weight.sum() if reduction == "mean" else total


def gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Tensor:
    """The negative log-likelihood of ``target`` under normal distributions (Nix and Weigend 1994).

    Args:
        input: the means.
        target: samples, broadcast to the means.
        var: the variances: one number, of the shape of ``input``, or of that with the last dimension missing or one
            dimension 1.
        full: add the constant ``log(2 * pi) / 2``.
        eps: the smallest variance.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: a variance is negative or of another shape, or an unknown reduction.
    """
    reduction = chosen(None, None, reduction)
    if not isinstance(var, Tensor):
        var = input.detach().new_full(input.shape, float(var))
    if bool((var < 0).any()):
        raise ValueError("var has negative entries; a variance is at least 0")
    if var.shape != input.shape:
        differing = [v for n, v in zip(input.shape, var.shape, strict=False) if n != v]
        if input.shape[:-1] == var.shape:
            var = var.unsqueeze(-1)
        elif input.ndim != var.ndim or sum(differing) != 1:
            raise ValueError(
                f"gaussian_nll_loss: var of shape {tuple(var.shape)} does not fit input of shape {tuple(input.shape)}"
            )
    var = var + (var.detach().clamp(min=eps) - var.detach())  # the gradient is that of var also below eps
    each = 0.5 * (var.log() + (input - target) ** 2 / var)
    return reduced(each + 0.5 * math.log(2 * math.pi) if full else each, reduction)


@autocasts
def poisson_nll_loss(
    input: Tensor,
    target: Tensor,
    log_input: bool = True,
    full: bool = False,
    size_average: bool | None = None,
    eps: float = 1e-8,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The negative log-likelihood of counts under Poisson distributions.

    Args:
        input: the rates, or their logarithms.
        target: the counts.
        log_input: ``input`` holds logarithms.
        full: add Stirling's approximation of ``log(target!)`` where ``target`` is above 1.
        size_average: deprecated.
        eps: added to rates before their logarithm.
        reduce: deprecated.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: an unknown reduction.
    """
    reduction = chosen(size_average, reduce, reduction)
    need_tensors("poisson_nll_loss", input, target)
    each = input.exp() - target * input if log_input else input - target * (input + eps).log()
    if full:
        few = target <= 1
        counts = target.masked_fill(few, 1)  # no logarithm of 0
        stirling = counts * counts.log() - counts + 0.5 * (2 * math.pi * counts).log()
        each = each + stirling.masked_fill(few, 0)
    return reduced(each, reduction)
