"""Losses with a margin: of pairs, of triples, of one class against the others."""

from __future__ import annotations

from collections.abc import Callable

from disttrain import dtypes
from disttrain.functions.activation import check_float, logsigmoid
from disttrain.functions.arithmetic import minimum, where
from disttrain.functions.common import need_tensors
from disttrain.functions.creation import arange, zeros_like
from disttrain.nn.functional.distance import pairwise_distance
from disttrain.nn.functional.reduction import chosen, reduced
from disttrain.ops.embedding import check_range
from disttrain.precision import autocasts
from disttrain.tensors import Tensor


@autocasts
def hinge_embedding_loss(
    input: Tensor,
    target: Tensor,
    margin: float = 1.0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``input`` where ``target`` is 1, ``max(0, margin - input)`` where it is -1, their sum elsewhere."""
    reduction = chosen(size_average, reduce, reduction)
    need_tensors("hinge_embedding_loss", input, target)
    far = where(target != 1, (margin - input).clamp(min=0), 0.0)
    near = where(target != -1, input, 0.0)
    return reduced(far + near, reduction)


@autocasts
def margin_ranking_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``max(0, -target * (input1 - input2) + margin)``: 1 for a higher ``input1``, -1 for a lower.

    Raises:
        RuntimeError: the tensors have different numbers of dimensions, or do not broadcast.
        ValueError: an unknown reduction.
    """
    reduction = chosen(size_average, reduce, reduction)
    need_tensors("margin_ranking_loss", input1, input2, target)
    if not input1.ndim == input2.ndim == target.ndim:
        raise RuntimeError(
            f"margin_ranking_loss: both inputs and target must have as many dimensions, got shapes "
            f"{tuple(input1.shape)}, {tuple(input2.shape)} and target {tuple(target.shape)}"
        )
    return reduced((-target * (input1 - input2) + float(margin)).clamp(min=0), reduction)


@autocasts
def soft_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``log(1 + exp(-target * input))`` for targets of 1 and -1.

    Raises:
        RuntimeError: the shapes do not broadcast.
        ValueError: an unknown reduction.
    """
    reduction = chosen(size_average, reduce, reduction)
    return reduced(-logsigmoid(target * input), reduction)


@autocasts
def cosine_embedding_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``1 - cos(input1, input2)`` where ``target`` is 1, ``max(0, cos - margin)`` where it is -1.

    Args:
        input1: ``(N, D)`` or ``(D,)``.
        input2: the same.
        target: ``(N,)`` or without dimensions.
        margin: from -1 to 1.
        size_average: deprecated.
        reduce: deprecated.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        RuntimeError: other shapes.
        ValueError: an unknown reduction.
    """
    reduction = chosen(size_average, reduce, reduction)
    need_tensors("cosine_embedding_loss", input1, input2, target)
    if target.ndim not in (0, 1):
        raise RuntimeError(
            f"cosine_embedding_loss: target is one number, or one for each pair, got shape {tuple(target.shape)}"
        )
    if input1.ndim != target.ndim + 1 or input2.ndim != target.ndim + 1:
        raise RuntimeError(
            f"cosine_embedding_loss: a {target.ndim}D target needs {target.ndim + 1}D inputs, got "
            f"{tuple(input1.shape)} and {tuple(input2.shape)}"
        )
    # As PyTorch: a small number under the root instead of a limit.
    dim, tiny = target.ndim, 1e-12
    product = (input1 * input2).sum(dim)
    squares = ((input1 * input1).sum(dim) + tiny) * ((input2 * input2).sum(dim) + tiny)
    cos = product / squares.sqrt()
    near = where(target == 1, 1 - cos, 0.0)
    far = where(target == -1, (cos - margin).clamp(min=0), 0.0)
    return reduced(near + far, reduction)


@autocasts
def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``sum_i max(0, margin - input[target] + input[i]) ** p / C`` over the other classes.

    Args:
        input: scores, ``(N, C)`` or ``(C,)``.
        target: classes, ``(N,)`` or without dimensions.
        p: 1 or 2.
        margin: by how much the right class should lead.
        weight: weight of each class, ``(C,)``.
        size_average: deprecated.
        reduce: deprecated.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: another ``p``, a ``weight`` with another number of dimensions, or an unknown reduction.
        RuntimeError: other shapes.
        IndexError: a class out of range.
    """
    reduction = chosen(size_average, reduce, reduction)
    if p not in (1, 2):
        raise ValueError(f"multi_margin_loss: only p == 1 and p == 2 are supported, got {p}")
    if weight is not None and weight.ndim != 1:
        raise ValueError(f"multi_margin_loss: weight is a vector, got shape {tuple(weight.shape)}")
    check_float("multi_margin_loss", input)
    rows, classes = _rows("multi_margin_loss", input, target, 0)
    C = rows.shape[1]
    if weight is not None and weight.numel() != C:
        raise RuntimeError(
            f"multi_margin_loss: weight needs a number for each of {C} classes, got {weight.numel()}"
        )
    check_range(classes._array, C, "multi_margin_loss: class")
    classes = classes.long().reshape(-1, 1)
    short = (margin - rows.gather(1, classes) + rows).clamp(min=0)
    short = short * short if p == 2 else short
    if weight is not None:
        short = short * weight[classes]
    others = arange(C, device=rows.device).reshape(1, -1) != classes
    each = where(others, short, 0.0).sum(1) / C
    return reduced(each if input.ndim > 1 else each.reshape(target.shape), reduction)


@autocasts
def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``sum_ij max(0, 1 - input[i] + input[j]) / C`` over right classes i and others j.

    Args:
        input: scores, ``(N, C)`` or ``(C,)``.
        target: the right classes of each row, then -1, of the shape of ``input``.
        size_average: deprecated.
        reduce: deprecated.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        RuntimeError: other shapes, a class out of range, or classes that are not int64.
        ValueError: an unknown reduction.
    """
    reduction = chosen(size_average, reduce, reduction)
    check_float("multilabel_margin_loss", input)
    if target.dtype is not dtypes.int64:
        raise RuntimeError(
            f"multilabel_margin_loss: target must be int64, got {target.dtype}; convert it with .long()"
        )
    rows, classes = _rows("multilabel_margin_loss", input, target, 1)
    N, C = rows.shape
    if classes.numel() and (int(classes.min()) < -1 or int(classes.max()) >= C):
        raise RuntimeError(f"multilabel_margin_loss: each target must be in [-1, {C}), got {target!r:.200}")
    classes = classes.long()
    given = (classes < 0).long().cumsum(1) == 0  # up to the first -1
    hits = zeros_like(classes).scatter_add(1, classes * given.long(), given.long())
    right = where(given, rows.gather(1, classes * given.long()), 0.0)
    short = (1 - right.reshape(N, C, 1) + rows.reshape(N, 1, C)).clamp(min=0)
    counts = given.reshape(N, C, 1) & (hits == 0).reshape(N, 1, C)
    each = where(counts, short, 0.0).sum((1, 2)) / C
    return reduced(each if input.ndim > 1 else each.reshape(()), reduction)


def _rows(name: str, input: Tensor, target: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """Return scores as (N, C), and targets with as many rows."""
    C = input.shape[-1] if input.ndim else 1
    fits = (
        input.ndim <= 2
        and C
        and (
            tuple(target.shape) == (tuple(input.shape) if dims else tuple(input.shape[:-1]))
            or (input.ndim < 2 and target.ndim < 2 and target.numel() == (C if dims else 1))
        )
    )
    if not fits:
        raise RuntimeError(
            f"{name}: expected scores (N, C) or (C,), got shape {tuple(input.shape)} with a target of shape "
            f"{tuple(target.shape)}"
        )
    if target.dtype.category != 1:
        raise RuntimeError(f"{name}: the target must hold classes as int64, got {target.dtype}")
    rows = input.reshape(-1, C)
    return rows, target.reshape(rows.shape if dims else rows.shape[:1])


def multilabel_soft_margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The mean over classes of the cross-entropy of ``sigmoid(input)`` and ``target``, both ``(..., C)``.

    Raises:
        RuntimeError: the shapes do not broadcast.
        ValueError: an unknown reduction.
    """
    reduction = chosen(size_average, reduce, reduction)
    each = -(target * logsigmoid(input) + (1 - target) * logsigmoid(-input))
    if weight is not None:
        each = each * weight
    return reduced(each.sum(-1) / input.shape[-1], reduction)


@autocasts
def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``max(0, |anchor - positive| - |anchor - negative| + margin)`` (Balntas et al. 2016).

    Args:
        anchor: ``(..., D)``.
        positive: what should be near.
        negative: what should be far.
        margin: by how much.
        p: of the norm.
        eps: added to the differences.
        swap: take the distance from ``positive`` to ``negative`` if that is less.
        size_average: deprecated.
        reduce: deprecated.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: ``margin`` is not positive, or an unknown reduction.
        RuntimeError: the tensors have different numbers of dimensions, or do not broadcast.
    """
    reduction = chosen(size_average, reduce, reduction)
    need_tensors("triplet_margin_loss", anchor, positive, negative)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return pairwise_distance(a, b, p, eps)

    return _triplet(anchor, positive, negative, distance, margin, swap, reduction)


def triplet_margin_with_distance_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    distance_function: Callable[[Tensor, Tensor], Tensor] | None = None,
    margin: float = 1.0,
    swap: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """:func:`triplet_margin_loss` with any function for the distance; by default ``pairwise_distance``."""
    reduction = chosen(None, None, reduction)
    return _triplet(
        anchor, positive, negative, distance_function or pairwise_distance, margin, swap, reduction
    )


def _triplet(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    distance: Callable[..., Tensor],
    margin: float,
    swap: bool,
    reduction: str,
) -> Tensor:
    if not margin > 0:
        raise ValueError(f"triplet_margin_loss: margin must be positive, got {margin}")
    if not anchor.ndim == positive.ndim == negative.ndim:
        raise RuntimeError(
            f"triplet_margin_loss: anchor, positive and negative must have as many dimensions, got {anchor.ndim}, "
            f"{positive.ndim} and {negative.ndim}"
        )
    near, far = distance(anchor, positive), distance(anchor, negative)
    if swap:
        far = minimum(far, distance(positive, negative))
    return reduced((margin + near - far).clamp(min=0), reduction)
