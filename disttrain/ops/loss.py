"""Losses. ``reduction`` is ``"none"``, ``"mean"`` or ``"sum"``; the mean of nothing is NaN, as in PyTorch."""

import functools
import math
from typing import Any

import numpy as np

from disttrain.kernels import buffers
from disttrain.kernels import softmax as kernels
from disttrain.ops import elementwise, reduce
from disttrain.ops.activation import (
    for_kernel,
    log1p_exp,
    log_softmax,
    sigmoid,
    softmax,
    softplus,
    wide_type,
    widen,
)
from disttrain.ops.embedding import check_range
from disttrain.ops.types import Array, Result, call, get_array_module, is_array, no_vjp

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]


def cross_entropy(
    x: Array,
    target: Array,
    weight: Array | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Result:
    """The cross-entropy of scores ``x`` and classes, as ``torch.nn.functional.cross_entropy``.

    Args:
        x: scores, (C,), (N, C) or (N, C, d1, ...).
        target: the classes, integers of the shape of ``x`` without its class axis; or the probability of each
            class, of the shape of ``x`` and floating point.
        weight: weight of each class, (C,).
        ignore_index: the class of elements that do not count.
        reduction: the mean is over the weights of the classes, or the elements if these are probabilities.
        label_smoothing: part of the target spread evenly over the classes, in [0, 1].

    Raises:
        ValueError: another number of targets than of scores, or an unknown reduction.
        IndexError: a class out of range; names it and its place.
        RuntimeError: other shapes, types or options that do not fit together.
    """
    _check_reduction("cross_entropy", reduction)
    if not 0 <= label_smoothing <= 1:
        raise RuntimeError(f"cross_entropy: label_smoothing must be in [0, 1], got {label_smoothing}")
    axis = _class_axis("cross_entropy", x, weight)
    if target.dtype.kind in "fV":
        if ignore_index >= 0:
            raise RuntimeError(
                f"cross_entropy: ignore_index goes with classes, not with probabilities, got {ignore_index}"
            )
        return _cross_entropy_of_probabilities(x, target, weight, axis, reduction, label_smoothing)
    all_count = _check_classes("cross_entropy", x, target, axis, ignore_index)
    kind = wide_type(x)
    rows, shape = _class_rows(for_kernel(x), axis)
    classes = buffers.convert(buffers.contiguous(target).reshape(-1), np.int64)
    w = _class_weights(weight, x, kind, x.shape[axis])
    loss, stats = kernels.cross_entropy(rows, classes, w, label_smoothing, ignore_index)
    total = _counted(classes, None if weight is None else w, ignore_index, all_count)
    out = _reduce(loss.reshape(shape), reduction, total)
    options = (axis, ignore_index, reduction, label_smoothing, total)
    saved = (x, target, weight, stats, kind, *options)
    return buffers.convert(out, x.dtype), saved, cross_entropy_vjp


def cross_entropy_vjp(
    g: Any,
    needs: Needs,
    x: Any,
    target: Any,
    weight: Any,
    stats: Any,
    dtype: Any,
    axis: int,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    total: float,
) -> Grads:
    if not needs[0]:
        return (None,) * len(needs)
    g = _spread(g, reduction, total)
    rest = (None,) * (len(needs) - 1)
    if is_array(x):
        rows, shape = _class_rows(for_kernel(x), axis)
        classes = buffers.convert(buffers.contiguous(target).reshape(-1), np.int64)
        each = buffers.empty(shape, dtype, x)
        each[...] = g
        w = _class_weights(weight, x, dtype, x.shape[axis])
        gx = kernels.cross_entropy_grad(
            each.reshape(-1), rows, classes, w, label_smoothing, ignore_index, stats
        )
        return buffers.convert(_from_class_rows(gx, shape, axis), x.dtype), *rest
    wanted = call(
        class_targets,
        target,
        weight,
        like=tuple(x.shape),
        axis=axis,
        ignore_index=ignore_index,
        smoothing=label_smoothing,
        dtype=dtype,
    )
    part = call(reduce.sum, wanted, axes=(axis,), keepdims=True)
    return _unsqueeze(g, axis, reduction) * (call(softmax, x, dim=axis) * part - wanted), *rest


def _cross_entropy_of_probabilities(
    x: Array, target: Array, weight: Array | None, axis: int, reduction: str, smoothing: float
) -> Result:
    if target.shape != x.shape:
        raise RuntimeError(
            f"cross_entropy: probabilities must have the shape of x, {tuple(x.shape)}, "
            f"got {tuple(target.shape)}; "
            f"for class numbers give integers"
        )
    logp = log_softmax(widen(x), dim=axis)[0]
    w = 1.0 if weight is None else _along(widen(weight), axis, x.ndim)
    goal = widen(target) * (1 - smoothing) + smoothing / max(x.shape[axis], 1)
    loss = -(logp * (goal * w)).sum(axis)
    total = float(max(loss.size, 0))
    out = _reduce(loss, reduction, total)
    saved = (x, target, weight, axis, reduction, smoothing, total)
    return buffers.convert(out, x.dtype), saved, cross_entropy_of_probabilities_vjp


def cross_entropy_of_probabilities_vjp(
    g: Any,
    needs: Needs,
    x: Any,
    target: Any,
    weight: Any,
    axis: int,
    reduction: str,
    smoothing: float,
    total: float,
) -> Grads:
    g = _unsqueeze(_spread(g, reduction, total), axis, reduction)
    logp = call(log_softmax, x, dim=axis)
    w = None if weight is None else _along(weight, axis, len(x.shape))
    gx = gt = None
    if needs[0]:
        goal = target * (1 - smoothing) + smoothing / max(x.shape[axis], 1)
        goal = goal if w is None else goal * w
        gx = g * (call(elementwise.exp, logp) * call(reduce.sum, goal, axes=(axis,), keepdims=True) - goal)
    if needs[1]:
        gt = g * logp * -(1 - smoothing)
        gt = gt if w is None else gt * w
    return (gx, gt, None)[: len(needs)]


def class_targets(
    target: Array,
    weight: Array | None = None,
    *,
    like: tuple[int, ...],
    axis: int,
    ignore_index: int,
    smoothing: float,
    dtype: Any,
) -> Result:
    """Return the weight of each class in the loss of each element, of shape ``like``; 0 where ignored."""
    xp = get_array_module(target)
    K = like[axis]
    classes = xp.expand_dims(target, axis)
    hot = classes == xp.arange(K).reshape([-1 if a == axis else 1 for a in range(len(like))])
    out = hot.astype(dtype) * (1 - smoothing) + smoothing / K
    if weight is not None:
        out = out * _along(buffers.convert(weight, dtype), axis, len(like))
    return out * (classes != ignore_index), (), no_vjp


def nll_loss(
    logp: Array,
    target: Array,
    weight: Array | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Result:
    """The negative of the log-probability of each class, as ``torch.nn.functional.nll_loss``.

    Args:
        logp: log-probabilities, (C,), (N, C) or (N, C, d1, ...).
        target: the classes, integers of the shape of ``logp`` without its class axis.
        weight: weight of each class, (C,).
        ignore_index: the class of elements that do not count.
        reduction: the mean is over the weights of the classes.

    Raises:
        ValueError: another number of targets than of scores, or an unknown reduction.
        IndexError: a class out of range; names it and its place.
        RuntimeError: other shapes or types that do not fit together.
    """
    _check_reduction("nll_loss", reduction)
    axis = _class_axis("nll_loss", logp, weight)
    all_count = _check_classes("nll_loss", logp, target, axis, ignore_index)
    xp = get_array_module(logp)
    kept = target != ignore_index
    hot = buffers.convert(xp.where(kept, target, 0), np.int64)
    wide = widen(logp)
    if logp.shape[axis]:
        picked = xp.take_along_axis(wide, xp.expand_dims(hot, axis), axis).squeeze(axis)
    else:
        picked = buffers.zeros(target.shape, wide.dtype, logp)
    w = None if weight is None else widen(weight)
    loss = xp.where(kept, -picked if w is None else -picked * w[hot], wide.dtype.type(0))
    total = _counted(target.reshape(-1), w, ignore_index, all_count)
    out = _reduce(loss, reduction, total)
    saved = (tuple(logp.shape), wide.dtype, target, weight, axis, ignore_index, reduction, total)
    return buffers.convert(out, logp.dtype), saved, nll_loss_vjp


def nll_loss_vjp(
    g: Any,
    needs: Needs,
    shape: tuple[int, ...],
    dtype: Any,
    target: Any,
    weight: Any,
    axis: int,
    ignore_index: int,
    reduction: str,
    total: float,
) -> Grads:
    if not needs[0]:
        return (None,) * len(needs)
    picked = call(
        class_targets,
        target,
        weight,
        like=shape,
        axis=axis,
        ignore_index=ignore_index,
        smoothing=0.0,
        dtype=dtype,
    )
    g = _unsqueeze(_spread(g, reduction, total), axis, reduction)
    return -(g * picked), *(None,) * (len(needs) - 1)


def mse_loss(x: Array, target: Array, *, reduction: str = "mean") -> Result:
    """``(x - target) ** 2``.

    Raises:
        ValueError: the shapes differ (nothing is broadcast), or an unknown reduction.
    """
    _check_reduction("mse_loss", reduction)
    _check_same_shape("mse_loss", x, target)
    xp, wide = get_array_module(x), widen(x)
    goal = widen(target)
    difference = xp.subtract(wide, goal, out=buffers.spare(wide, goal))
    squares = xp.multiply(difference, difference, out=buffers.spare(difference))
    out = _reduce(squares, reduction, float(x.size))
    return buffers.convert(out, x.dtype), (x, target, reduction), mse_loss_vjp


def mse_loss_vjp(g: Any, needs: Needs, x: Any, target: Any, reduction: str) -> Grads:
    each = _spread(g * 2, reduction, float(math.prod(x.shape)))
    if is_array(x):
        xp = get_array_module(x)
        gx = xp.subtract(x, target, out=buffers.spare(x, target))
        gx = xp.multiply(gx, each, out=gx if gx.ndim else None)
        return gx if needs[0] else None, xp.negative(gx, out=buffers.spare(gx)) if needs[1] else None
    gx = (x - target) * each
    return gx if needs[0] else None, -gx if needs[1] else None


def smooth_l1(x: Array, *, beta: float) -> Result:
    """``|x| - beta / 2``, and ``x ** 2 / (2 * beta)`` where ``|x|`` is below ``beta``."""
    xp, wide = get_array_module(x), widen(x)
    kind = wide.dtype.type
    far = xp.abs(wide)
    y = xp.where(far < beta, wide * wide * kind(0.5 / beta), far - kind(0.5 * beta))
    return buffers.convert(y, x.dtype), (x, beta), smooth_l1_vjp


def smooth_l1_vjp(g: Any, needs: Needs, x: Any, beta: float) -> Grads:
    if is_array(x):
        xp, wide = get_array_module(x), widen(x)
        kind = wide.dtype.type
        slope = xp.minimum(xp.maximum(wide * kind(1 / beta), kind(-1)), kind(1))
        return (buffers.convert(widen(g) * slope, g.dtype),)
    return (g * call(elementwise.clamp, x * (1 / beta), -1.0, 1.0),)


def binary_cross_entropy(
    x: Array, target: Array, weight: Array | None = None, *, reduction: str = "mean"
) -> Result:
    """The cross-entropy of probabilities ``x`` and ``target``, as ``F.binary_cross_entropy``.

    Logarithms are cut off at -100, and the gradient's divisor ``x * (1 - x)`` at 1e-12, as in PyTorch.

    Args:
        x: probabilities in [0, 1].
        target: probabilities, of the shape of ``x``.
        weight: factor of each element's loss, broadcast to ``x``.
        reduction: the mean is over the number of elements.

    Raises:
        ValueError: the shapes differ, or an unknown reduction.
        RuntimeError: a value outside of [0, 1] (or NaN), or a weight that does not fit.
    """
    name = "binary_cross_entropy"
    _check_reduction(name, reduction)
    _check_same_shape(name, x, target)
    _check_broadcast(name, "weight", weight, x)
    xp = get_array_module(x)
    wide, t = widen(x), widen(target)
    for what, a in (("x", wide), ("target", t)):
        if not bool(((a >= 0) & (a <= 1)).all()):
            raise RuntimeError(
                f"{name}: {what} must be in [0, 1], got {float(a.min())} to {float(a.max())}; for scores use "
                f"binary_cross_entropy_with_logits"
            )
    with np.errstate(all="ignore"):
        loss = -(t * xp.maximum(xp.log(wide), -100) + (1 - t) * xp.maximum(xp.log1p(-wide), -100))
    if weight is not None:
        loss = loss * widen(weight)
    out = _reduce(loss, reduction, float(x.size))
    return buffers.convert(out, x.dtype), (x, target, weight, reduction), binary_cross_entropy_vjp


def binary_cross_entropy_vjp(g: Any, needs: Needs, x: Any, target: Any, weight: Any, reduction: str) -> Grads:
    g = _spread(g, reduction, float(math.prod(x.shape)))
    if weight is not None:
        g = g * weight
    gx = gt = None
    if needs[0]:
        spread = x * (1 - x)
        if is_array(spread):
            spread = get_array_module(spread).maximum(widen(spread), 1e-12)
        else:
            spread = call(elementwise.clamp, spread, 1e-12, None)
        gx = g * (x - target) / spread
    if needs[1]:
        if is_array(x):
            with np.errstate(all="ignore"):
                xp, wide = get_array_module(x), widen(x)
                gt = g * (xp.maximum(xp.log1p(-wide), -100) - xp.maximum(xp.log(wide), -100))
        else:
            low, high = call(elementwise.log1p, -x), call(elementwise.log, x)
            gt = g * (
                call(elementwise.clamp, low, -100.0, None) - call(elementwise.clamp, high, -100.0, None)
            )
    return (gx, gt, None)[: len(needs)]


def binary_cross_entropy_with_logits(
    x: Array,
    target: Array,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    *,
    reduction: str = "mean",
) -> Result:
    """The cross-entropy of ``sigmoid(x)`` and ``target``, as ``F.binary_cross_entropy_with_logits``.

    Args:
        x: scores.
        target: probabilities, of the shape of ``x``.
        weight: factor of each element's loss, broadcast to ``x``.
        pos_weight: factor of the positive part, broadcast to ``x``.
        reduction: the mean is over the number of elements.

    Raises:
        ValueError: shapes that do not fit, or an unknown reduction.
    """
    name = "binary_cross_entropy_with_logits"
    _check_reduction(name, reduction)
    _check_same_shape(name, x, target)
    _check_broadcast(name, "weight", weight, x)
    _check_broadcast(name, "pos_weight", pos_weight, x)
    wide, t = widen(x), widen(target)
    cost = log1p_exp(-wide)
    if pos_weight is not None:
        cost = cost * ((widen(pos_weight) - 1) * t + 1)
    loss = (1 - t) * wide + cost
    if weight is not None:
        loss = loss * widen(weight)
    out = _reduce(loss, reduction, float(x.size))
    saved = (x, target, weight, pos_weight, reduction)
    return buffers.convert(out, x.dtype), saved, binary_cross_entropy_with_logits_vjp


def binary_cross_entropy_with_logits_vjp(
    g: Any, needs: Needs, x: Any, target: Any, weight: Any, pos_weight: Any, reduction: str
) -> Grads:
    g = _spread(g, reduction, float(math.prod(x.shape)))
    if weight is not None:
        g = g * weight
    gx = gt = None
    if needs[0]:
        s = call(sigmoid, x)
        factor = None if pos_weight is None else (pos_weight - 1) * target + 1
        gx = g * (s - target) if factor is None else g * ((1 - target) - factor * (1 - s))
    if needs[1]:
        gt = g * -x
        if pos_weight is not None:
            gt = gt + g * (pos_weight - 1) * call(softplus, -x, beta=1.0, threshold=20.0)
    return (gx, gt, None, None)[: len(needs)]


def _check_reduction(name: str, reduction: str) -> None:
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f'{name}: reduction must be "none", "mean" or "sum", got {reduction!r}')


def _check_same_shape(name: str, x: Array, target: Array) -> None:
    if x.shape != target.shape:
        raise ValueError(
            f"{name}: target must have the shape of x, {tuple(x.shape)}, got {tuple(target.shape)}; "
            f"reshape one of them"
        )


def _check_broadcast(name: str, what: str, a: Array | None, x: Array) -> None:
    if a is None:
        return
    try:
        fits = np.broadcast_shapes(a.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise RuntimeError(f"{name}: {what} of shape {a.shape} cannot be broadcast to x of shape {x.shape}")


def _class_axis(name: str, x: Array, weight: Array | None) -> int:
    if x.ndim < 1:
        raise RuntimeError(f"{name}: x must be (C,), (N, C) or (N, C, d1, ...), got shape ()")
    axis = 0 if x.ndim == 1 else 1
    if weight is not None and weight.shape != (x.shape[axis],):
        raise RuntimeError(
            f"{name}: weight must have shape ({x.shape[axis]},), one for each class, "
            f"got {tuple(weight.shape)}"
        )
    return axis


def _check_classes(name: str, x: Array, target: Array, axis: int, ignore_index: int) -> bool:
    """Check the classes; return whether it is known that none is to be ignored."""
    if target.dtype.kind not in "iu":
        raise RuntimeError(f"{name}: classes must be integers, got {target.dtype}")
    expected = x.shape[:axis] + x.shape[axis + 1 :]
    if target.shape != expected:
        kind = ValueError if axis and x.shape[:1] != target.shape[:1] else RuntimeError  # as PyTorch
        raise kind(
            f"{name}: x of shape {tuple(x.shape)} needs a target of shape {tuple(expected)}, "
            f"got {tuple(target.shape)}"
        )
    classes = x.shape[axis]
    in_range = check_range(target, classes, f"{name}: class", ignore=ignore_index)
    return in_range and not 0 <= ignore_index < classes


def _class_rows(x: Array, axis: int) -> tuple[Array, tuple[int, ...]]:
    """Return ``x`` as a contiguous matrix (elements, classes), and the shape of the elements."""
    xp = get_array_module(x)
    last = buffers.contiguous(x if axis == x.ndim - 1 else xp.moveaxis(x, axis, -1))
    shape = last.shape[:-1]
    return last.reshape(math.prod(shape), x.shape[axis]), shape


def _from_class_rows(rows: Array, shape: tuple[int, ...], axis: int) -> Array:
    x = rows.reshape(*shape, rows.shape[1])
    return x if axis == x.ndim - 1 else get_array_module(rows).moveaxis(x, -1, axis)


def _class_weights(weight: Array | None, like: Array, dtype: Any, classes: int) -> Array:
    xp = get_array_module(like)
    if weight is None:
        return _host_ones(classes, dtype) if xp is np else xp.ones(classes, dtype)
    return buffers.contiguous(buffers.convert(weight, dtype))


@functools.lru_cache(maxsize=8)
def _host_ones(classes: int, dtype: Any) -> Array:
    """Return weights of 1, which are to be read only: whoever asks for the same gets the same."""
    return np.ones(classes, dtype)


def _counted(classes: Array, weight: Array | None, ignore_index: int, all_count: bool) -> float:
    """Return the divisor of the mean: the number of elements that count, or the sum of their weights."""
    if all_count and weight is None:
        return float(classes.size)
    kept = classes != ignore_index
    if weight is None:
        return float(get_array_module(classes).count_nonzero(kept))
    return float(weight[classes[kept].astype(np.int64, copy=False)].sum())


def _along(weight: Any, axis: int, ndim: int) -> Any:
    return weight.reshape(*[-1 if a == axis else 1 for a in range(ndim)])


def _unsqueeze(g: Any, axis: int, reduction: str) -> Any:
    """Return the gradient of each element's loss with its class axis again."""
    if reduction != "none":
        return g
    shape = tuple(g.shape)
    return g.reshape(*shape[:axis], 1, *shape[axis:])


def _reduce(loss: Array, reduction: str, total: float) -> Array:
    if reduction == "none":
        return loss
    result = loss.sum()
    if reduction == "mean":
        result = result * loss.dtype.type(1 / total) if total else result * loss.dtype.type(math.nan)
    return get_array_module(loss).asarray(result)


def _spread(g: Any, reduction: str, total: float) -> Any:
    """Return the gradient of each element's loss, given that of the reduced one."""
    return g * (1 / total if total else 0.0) if reduction == "mean" else g
