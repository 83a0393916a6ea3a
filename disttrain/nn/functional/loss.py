"""Losses of classes and probabilities, with PyTorch's names and defaults.

``reduction`` is ``"mean"``, ``"sum"`` or ``"none"``; ``size_average`` and ``reduce`` are its deprecated forms.
"""

from __future__ import annotations

import warnings
from typing import Any

from disttrain import engine
from disttrain.dtypes import int64, uint8
from disttrain.functions.activation import check_float
from disttrain.functions.arithmetic import where
from disttrain.functions.common import need_tensors, promote
from disttrain.nn.functional.reduction import chosen, reduced
from disttrain.ops import loss
from disttrain.precision import autocasts
from disttrain.tensors import Tensor


@autocasts
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The cross-entropy of scores and classes.

    Args:
        input: scores ``(N, C)``, ``(C,)`` or ``(N, C, d1, ...)``.
        target: classes, integers in ``[0, C)`` of the shape of ``input`` without ``C``; or the probabilities of
            the classes, of the shape of ``input``.
        weight: weight of each class, ``(C,)``.
        size_average: deprecated.
        ignore_index: the class of elements that do not count.
        reduce: deprecated.
        reduction: the mean is over the weights of the classes that occur.
        label_smoothing: part of the target that is spread evenly over the classes.

    Raises:
        IndexError: a class out of range; names it and its place.
        ValueError: another number of targets than of inputs, or an unknown reduction.
        RuntimeError: other shapes, dtypes or options that do not fit together.
    """
    if size_average is not None or reduce is not None or reduction not in _REDUCTIONS:
        reduction = chosen(size_average, reduce, reduction)
    _check_classes("cross_entropy", input, target, weight)
    return engine.apply(  # type: ignore[no-any-return]
        loss.cross_entropy,
        input,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


@autocasts
def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The negative of the log-probability of each class; arguments and errors as :func:`cross_entropy`."""
    if size_average is not None or reduce is not None or reduction not in _REDUCTIONS:
        reduction = chosen(size_average, reduce, reduction)
    _check_classes("nll_loss", input, target, weight)
    return engine.apply(  # type: ignore[no-any-return]
        loss.nll_loss, input, target, weight, ignore_index=ignore_index, reduction=reduction
    )


@autocasts
def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The cross-entropy of probabilities and probabilities; logarithms are cut off at -100.

    Args:
        input: probabilities in [0, 1].
        target: probabilities, of the shape of ``input``.
        weight: factor of each element's loss, broadcast to ``input``.
        size_average: deprecated.
        reduce: deprecated.
        reduction: the mean is over the elements.

    Raises:
        ValueError: the shapes differ, or an unknown reduction.
        RuntimeError: a value outside of [0, 1], a ``weight`` that does not fit, or two dtypes.
    """
    reduction = chosen(size_average, reduce, reduction)
    check_float("binary_cross_entropy", input)
    _check_tensor("binary_cross_entropy", target)
    if target.dtype is not input.dtype:
        raise RuntimeError(
            f"binary_cross_entropy: found a target of {target.dtype}, expected {input.dtype}; convert it with "
            f".to({input.dtype})"
        )
    _check_same_size("binary_cross_entropy", input, target)
    return engine.apply(  # type: ignore[no-any-return]
        loss.binary_cross_entropy, input, target, weight, reduction=reduction
    )


@autocasts
def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """The cross-entropy of ``sigmoid(input)`` and ``target``, without overflow.

    Args:
        input: scores.
        target: probabilities, of the shape of ``input``.
        weight: factor of each element's loss, broadcast to ``input``.
        size_average: deprecated.
        reduce: deprecated.
        reduction: the mean is over the elements.
        pos_weight: factor of the positive part, broadcast to ``input``.

    Raises:
        ValueError: the shapes differ, or an unknown reduction.
        RuntimeError: a ``weight`` or ``pos_weight`` that does not fit.
    """
    reduction = chosen(size_average, reduce, reduction)
    check_float("binary_cross_entropy_with_logits", input)
    _check_tensor("binary_cross_entropy_with_logits", target)
    _check_same_size("binary_cross_entropy_with_logits", input, target)
    a, b = _alike(input, target)
    return engine.apply(  # type: ignore[no-any-return]
        loss.binary_cross_entropy_with_logits, a, b, weight, pos_weight, reduction=reduction
    )


@autocasts
def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """``target * (log(target) - input)``, the divergence of Kullback and Leibler (1951).

    Args:
        input: log-probabilities.
        target: probabilities, or their logarithms.
        size_average: deprecated.
        reduce: deprecated.
        reduction: ``"none"``, ``"sum"``, ``"batchmean"`` (over the first dimension) or ``"mean"`` (over the elements).
        log_target: ``target`` holds logarithms.

    Raises:
        RuntimeError: the shapes do not broadcast, or integers.
        ValueError: an unknown reduction.
    """
    need_tensors("kl_div", input, target)
    for what, x in (("input", input), ("target", target)):
        if not x.is_floating_point():
            raise RuntimeError(
                f"kl_div: {what} must be floating point, got {x.dtype}; convert it with .float()"
            )
    by_batch = reduction == "batchmean"
    if reduction == "mean" and size_average is None and reduce is None:
        warnings.warn(
            "kl_div: reduction='mean' divides by the number of elements; the divergence of distributions is "
            "'batchmean', which divides by that of rows",
            stacklevel=2,
        )
    how = chosen(size_average, reduce, "sum" if by_batch else reduction)
    if log_target:
        each = target.exp() * (target - input)
    else:
        nothing = target == 0  # 0 * log(0) is 0
        each = target * (where(nothing, 1.0, target).log() - input)
    total = reduced(each, how)
    return total / input.shape[0] if by_batch and input.ndim else total


_REDUCTIONS = ("mean", "sum", "none")


def _check_tensor(name: str, target: Any) -> None:
    if not isinstance(target, Tensor):
        raise TypeError(
            f"{name}() needs a Tensor as target, got {type(target).__name__}; convert it with disttrain.tensor()"
        )


def _check_classes(name: str, input: Tensor, target: Tensor, weight: Tensor | None) -> None:
    check_float(name, input)
    _check_tensor(name, target)
    if target.dtype not in (int64, uint8) and not target.dtype.is_floating_point:
        raise RuntimeError(f"{name}: classes are int64 or uint8, got {target.dtype}; convert it with .long()")
    if weight is not None and weight.dtype is not input.dtype:
        raise RuntimeError(
            f"{name}: expected a weight of the input's dtype, {input.dtype}, but got {weight.dtype}"
        )


def _check_same_size(name: str, input: Tensor, target: Tensor) -> None:
    if input._array.shape != target._array.shape:
        raise ValueError(
            f"{name}: target must have the shape of input, {tuple(input.shape)}, got {tuple(target.shape)}; "
            f"reshape one of them"
        )


def _alike(input: Tensor, target: Tensor) -> list[Any]:
    if input._array.dtype == target._array.dtype:
        return [input, target]
    return promote(input, target)
