"""Loss functions, with PyTorch's names; ``disttrain.nn.functional`` offers them to users.

``reduction`` is ``"mean"``, ``"sum"`` or ``"none"``. Nothing is broadcast: a target of the wrong shape is an error.
"""

from __future__ import annotations

from typing import Any

from disttrain import engine
from disttrain.functions.activation import check_float
from disttrain.functions.common import promote
from disttrain.ops import loss
from disttrain.tensors import Tensor


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The cross-entropy of scores and classes.

    Args:
        input: scores ``(N, C)``, ``(C,)`` or ``(N, C, d1, ...)``.
        target: classes, integers in ``[0, C)`` of the shape of ``input`` without ``C``; or the probabilities of
            the classes, of the shape of ``input``.
        weight: weight of each class, ``(C,)``.
        ignore_index: the class of elements that do not count.
        reduction: the mean is over the weights of the classes that occur.
        label_smoothing: part of the target that is spread evenly over the classes.

    Raises:
        IndexError: a class out of range; names it and its place.
        ValueError: shapes or options that do not fit together.
        TypeError: wrong dtypes.
    """
    check_float("cross_entropy", input)
    _check_tensor("cross_entropy", target)
    return engine.apply(  # type: ignore[no-any-return]
        loss.cross_entropy,
        input,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """The negative of the log-probability of each class; arguments and errors as :func:`cross_entropy`."""
    check_float("nll_loss", input)
    _check_tensor("nll_loss", target)
    return engine.apply(  # type: ignore[no-any-return]
        loss.nll_loss, input, target, weight, ignore_index=ignore_index, reduction=reduction
    )


def mse_loss(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """``(input - target) ** 2``.

    Raises:
        ValueError: the shapes differ.
        TypeError: an argument is no floating point tensor.
    """
    a, b = _floats("mse_loss", input, target)
    return engine.apply(loss.mse_loss, a, b, reduction=reduction)  # type: ignore[no-any-return]


def l1_loss(input: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """``|input - target|``.

    Raises:
        ValueError: the shapes differ.
        TypeError: an argument is no floating point tensor.
    """
    a, b = _floats("l1_loss", input, target)
    if a.shape != b.shape:
        raise ValueError(
            f"l1_loss: target must have the shape of x, {tuple(a.shape)}, got {tuple(b.shape)}; reshape one of them"
        )
    return _reduce("l1_loss", (a - b).abs(), reduction)


def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, *, reduction: str = "mean"
) -> Tensor:
    """The cross-entropy of probabilities and probabilities; logarithms are cut off at -100.

    Args:
        input: probabilities in [0, 1].
        target: probabilities, of the shape of ``input``.
        weight: factor of each element's loss, broadcast to ``input``.
        reduction: the mean is over the elements.

    Raises:
        ValueError: shapes that do not fit, or a value outside of [0, 1].
        TypeError: an argument is no floating point tensor.
    """
    a, b = _floats("binary_cross_entropy", input, target)
    return engine.apply(  # type: ignore[no-any-return]
        loss.binary_cross_entropy, a, b, weight, reduction=reduction
    )


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """The cross-entropy of ``sigmoid(input)`` and ``target``, without overflow.

    Args:
        input: scores.
        target: probabilities, of the shape of ``input``.
        weight: factor of each element's loss, broadcast to ``input``.
        reduction: the mean is over the elements.
        pos_weight: factor of the positive part, broadcast to ``input``.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: an argument is no floating point tensor.
    """
    a, b = _floats("binary_cross_entropy_with_logits", input, target)
    return engine.apply(  # type: ignore[no-any-return]
        loss.binary_cross_entropy_with_logits, a, b, weight, pos_weight, reduction=reduction
    )


def _check_tensor(name: str, target: Any) -> None:
    if not isinstance(target, Tensor):
        raise TypeError(
            f"{name}() needs a Tensor as target, got {type(target).__name__}; convert it with disttrain.tensor()"
        )


def _floats(name: str, input: Tensor, target: Tensor) -> list[Any]:
    check_float(name, input)
    check_float(f"{name}: the target of {name}", target)
    if input._array.dtype == target._array.dtype:
        return [input, target]
    return promote(input, target)


def _reduce(name: str, loss: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    if reduction != "none":
        raise ValueError(f'{name}: reduction must be "none", "mean" or "sum", got {reduction!r}')
    return loss
