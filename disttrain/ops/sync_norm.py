"""Batch normalisation over the batches of several ranks.

The ops know no ranks: they are given ``total``, which returns the sum of an array over all of them, and ``weighted``,
which is that of what each rank's counts in the average of gradients, in units of the caller's. Statistics are sums of
samples; gradients are those of losses, which count as their ranks do. Each is the gradient of the other.
"""

from collections.abc import Callable
from typing import Any

from disttrain.kernels import norm as kernels
from disttrain.ops import reduce
from disttrain.ops.activation import widen
from disttrain.ops.norm import from_rows, to_rows
from disttrain.ops.types import Array, Result, call, get_array_module, is_array

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]
Total = Callable[[Array], Array]


def sync_batch_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    total: Total,
    weighted: Total,
) -> Result:
    """Normalise each channel (axis 1) over all other axes and all ranks, as :func:`~disttrain.ops.norm.batch_norm`.

    Args:
        x: (N, C, ...), any layout; N may differ between ranks, and be 0.
        weight: scale (C,), or ``None``.
        bias: shift (C,), or ``None``.
        running_mean: (C,), **updated in place**.
        running_var: (C,), likewise, with the unbiased variance.
        momentum: weight of this batch in the running values.
        eps: added to the variance.
        total: the sum over the ranks; all ranks call it the same number of times.
        weighted: in backward, the sum over the ranks of their array times their weight, divided by this rank's weight.

    Raises:
        ValueError: not more than one value per channel on all ranks together.
    """
    xp = get_array_module(x)
    wide = widen(x)
    rows = to_rows(wide)
    sums = total(xp.concatenate([rows.sum(0, dtype=xp.float64), xp.full(1, float(len(rows)))]))
    count = float(sums[-1])
    if count <= 1:
        raise ValueError(
            f"SyncBatchNorm: training needs more than one value per channel on all ranks, got shape {x.shape} here"
        )
    mean = sums[:-1] / count
    here, dot = kernels.channel_grad_sums(rows, rows, mean)  # the sums of x and of x * (x - mean)
    var = total(dot - mean * (here - len(rows) * mean)) / count
    if running_mean is not None:
        running_mean[...] = (1 - momentum) * widen(running_mean) + momentum * mean
    if running_var is not None:
        running_var[...] = (1 - momentum) * widen(running_var) + momentum * (var * (count / (count - 1)))
    rstd = 1 / xp.sqrt(var + eps)
    scale = rstd if weight is None else rstd * widen(weight)
    shift = xp.zeros(len(mean)) if bias is None else bias
    out = from_rows(kernels.channel_affine(rows, mean, scale, shift), x)
    saved = (x, weight, mean.astype(wide.dtype), rstd.astype(wide.dtype), count, eps, total, weighted)
    return out.astype(x.dtype, copy=False), saved, sync_batch_norm_vjp


def sync_batch_norm_vjp(
    g: Any,
    needs: Needs,
    x: Any,
    weight: Any,
    mean: Any,
    rstd: Any,
    count: float,
    eps: float,
    total: Total,
    weighted: Total,
) -> Grads:
    gx = gw = gb = None
    if is_array(g):
        rows, seen = to_rows(widen(g)), to_rows(widen(x))
        here, dot = kernels.channel_grad_sums(rows, seen, mean)
        if needs[0]:
            all_here, all_dot = weighted(get_array_module(g).stack([here, dot]))
            a = rstd if weight is None else rstd * widen(weight)
            c, b = a * all_here / count, a * rstd * rstd * all_dot / count
            gx = from_rows(kernels.channel_grad(rows, seen, mean, a, -b, -c), x).astype(x.dtype, copy=False)
        gw, gb = (dot * rstd).astype(g.dtype), here.astype(g.dtype)
    else:
        axes = (0, *range(2, len(x.shape)))

        def sum_of(v: Any) -> Any:
            return call(reduce.sum, v, axes=axes, keepdims=True)

        def mean_of(v: Any) -> Any:
            return call(all_sum, sum_of(v), total=total, adjoint=weighted) * (1 / count)

        def mean_of_grads(v: Any) -> Any:
            return call(all_sum, sum_of(v), total=weighted, adjoint=total) * (1 / count)

        centred = x - mean_of(x)
        inverse = (mean_of(centred * centred) + eps) ** -0.5
        xhat = centred * inverse
        if needs[0]:
            h = g if weight is None else g * weight.reshape(1, x.shape[1], *[1] * (len(x.shape) - 2))
            gx = inverse * (h - mean_of_grads(h) - xhat * mean_of_grads(h * xhat))
        gw, gb = sum_of(g * xhat).reshape(x.shape[1]), sum_of(g).reshape(x.shape[1])
    return tuple(v if need else None for v, need in zip((gx, gw, gb), needs, strict=False))


def all_sum(x: Array, *, total: Total, adjoint: Total) -> Result:
    """The sum of ``x`` over all ranks, by ``total``. ``adjoint`` sums the gradients of what all ranks make of it."""
    return total(x.copy()), (total, adjoint), all_sum_vjp


def all_sum_vjp(g: Any, needs: Needs, total: Total, adjoint: Total) -> Grads:
    return (call(all_sum, g, total=adjoint, adjoint=total),)
