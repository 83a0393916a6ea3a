"""Softmax and cross-entropy over the rows of a matrix, float32 or float64, C-contiguous.

The maximum of a row is taken off first, so that nothing overflows. On a GPU scores may be float16 and bfloat16 too:
sums, and what there is one of per row (statistics, losses and their gradients) per class (weights), are float32 then.
"""

import numpy

from disttrain.kernels import buffers, cuda
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import exp_down, jit, largest, total


def softmax(x: Array) -> Array:
    """Return ``exp(x)`` over its sum, row by row, for ``x`` (M, K)."""
    if get_array_module(x) is not numpy:
        return _softmax_cuda(x)
    out = buffers.empty_like(x)
    if out.size:
        _softmax(x, out)
    return out


def softmax_reference(x: Array) -> Array:
    """What :func:`softmax` must equal up to rounding."""
    xp = get_array_module(x)
    e = xp.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@jit
def _softmax(x, out):  # type: ignore[no-untyped-def]
    M, K = x.shape
    for m in range(M):
        row, to = x[m], out[m]
        top = largest(row)
        for k in range(K):
            to[k] = exp_down(row[k] - top)
        share = x.dtype.type(1) / total(to)
        for k in range(K):
            to[k] = to[k] * share


def softmax_grad(g: Array, y: Array) -> Array:
    """Return ``y * (g - sum(g * y))`` row by row: the gradient of :func:`softmax`, whose output is ``y``."""
    if get_array_module(g) is not numpy:
        return _softmax_grad_cuda(g, y)
    out = buffers.empty_like(g)
    _softmax_grad(g, y, out)
    return out


def softmax_grad_reference(g: Array, y: Array) -> Array:
    """What :func:`softmax_grad` must equal up to rounding."""
    return y * (g - (g * y).sum(1, keepdims=True))


@jit
def _softmax_grad(g, y, out):  # type: ignore[no-untyped-def]
    M, K = g.shape
    for m in range(M):
        gm, ym, to = g[m], y[m], out[m]
        for k in range(K):
            to[k] = gm[k] * ym[k]
        dot = total(to)
        for k in range(K):
            to[k] = ym[k] * (gm[k] - dot)


def log_softmax(x: Array) -> Array:
    """Return ``log(softmax(x))`` row by row, for ``x`` (M, K)."""
    if get_array_module(x) is not numpy:
        return _log_softmax_cuda(x)
    out = buffers.empty_like(x)
    if out.size:
        _log_softmax(x, row_stats(x), out)
    return out


def log_softmax_reference(x: Array) -> Array:
    """What :func:`log_softmax` must equal up to rounding."""
    top, log_total = row_stats_reference(x)
    return (x - top[:, None]) - log_total[:, None]


@jit
def _log_softmax(x, stats, out):  # type: ignore[no-untyped-def]
    M, K = x.shape
    for m in range(M):
        for k in range(K):
            out[m, k] = (x[m, k] - stats[0, m]) - stats[1, m]


def log_softmax_grad(g: Array, y: Array) -> Array:
    """Return ``g - exp(y) * sum(g)`` row by row: the gradient of the input of :func:`log_softmax`."""
    if get_array_module(g) is not numpy:
        return _log_softmax_grad_cuda(g, y)
    out = buffers.empty_like(g)
    _log_softmax_grad(g, y, out)
    return out


def log_softmax_grad_reference(g: Array, y: Array) -> Array:
    """What :func:`log_softmax_grad` must equal up to rounding."""
    return g - get_array_module(g).exp(y) * g.sum(1, keepdims=True)


@jit
def _log_softmax_grad(g, y, out):  # type: ignore[no-untyped-def]
    M, K = g.shape
    for m in range(M):
        gm, ym, to = g[m], y[m], out[m]
        all_of_it = total(gm)
        for k in range(K):
            to[k] = gm[k] - exp_down(ym[k]) * all_of_it


def row_stats(x: Array) -> Array:
    """Return (2, M): the maximum of each row of ``x`` (M, K), and the log of the sum of ``exp(x - max)``"""
    if get_array_module(x) is not numpy:
        return _row_stats_cuda(x)
    stats = buffers.empty((2, len(x)), x.dtype)
    if x.size:
        _row_stats(x, stats, buffers.empty(x.shape[1], x.dtype))
    return stats


def row_stats_reference(x: Array) -> Array:
    """What :func:`row_stats` must equal up to rounding."""
    xp = get_array_module(x)
    top = x.max(1)
    return xp.stack([top, xp.log(xp.exp(x - top[:, None]).sum(1))])


@jit
def _row_stats(x, stats, scratch):  # type: ignore[no-untyped-def]
    M, K = x.shape
    for m in range(M):
        row = x[m]
        top = largest(row)
        for k in range(K):
            scratch[k] = exp_down(row[k] - top)
        stats[0, m] = top
        stats[1, m] = numpy.log(total(scratch))


def cross_entropy(
    x: Array, target: Array, weight: Array, smoothing: float, ignore: int
) -> tuple[Array, Array]:
    """Return the loss of each row of ``x`` (M, K), and :func:`row_stats` of ``x`` for the gradient.

    Args:
        x: scores.
        target: the class of each row, int64, each in [0, K) or ``ignore``.
        weight: weight of each class, K elements of the type of ``x``.
        smoothing: part of the target spread evenly over all classes.
        ignore: the class of rows whose loss is 0.
    """
    if get_array_module(x) is not numpy:
        return _cross_entropy_cuda(x, target, weight, smoothing, ignore)
    stats = row_stats(x)
    loss = buffers.empty(len(x), x.dtype)
    _cross_entropy(x, target, weight, x.dtype.type(smoothing), ignore, stats, loss)
    return loss, stats


def cross_entropy_reference(
    x: Array, target: Array, weight: Array, smoothing: float, ignore: int
) -> tuple[Array, Array]:
    """What :func:`cross_entropy` must equal up to rounding."""
    stats = row_stats_reference(x)
    return _cross_entropy_of(x, target, weight, smoothing, ignore, stats), stats


def _cross_entropy_of(
    x: Array, target: Array, weight: Array, smoothing: float, ignore: int, stats: Array
) -> Array:
    xp = get_array_module(x)
    cost = -((x - stats[0][:, None]) - stats[1][:, None])
    hot = xp.where(target == ignore, 0, target)
    loss = (1 - smoothing) * weight[hot] * xp.take_along_axis(cost, hot[:, None], 1)[:, 0]
    if smoothing:
        loss = loss + smoothing / x.shape[1] * (cost * weight).sum(1)
    return xp.where(target == ignore, x.dtype.type(0), loss)


@jit
def _cross_entropy(x, target, weight, smoothing, ignore, stats, loss):  # type: ignore[no-untyped-def]
    M, K = x.shape
    for m in range(M):
        t = target[m]
        if t == ignore:
            loss[m] = 0
            continue
        top, log_total = stats[0, m], stats[1, m]
        one = (1 - smoothing) * weight[t] * (log_total - (x[m, t] - top))
        if smoothing != 0:
            spread = x.dtype.type(0)
            for k in range(K):
                spread += weight[k] * (log_total - (x[m, k] - top))
            one += smoothing / K * spread
        loss[m] = one


def cross_entropy_grad(
    g: Array,
    x: Array,
    target: Array,
    weight: Array,
    smoothing: float,
    ignore: int,
    stats: Array,
    out: Array | None = None,
) -> Array:
    """Return the gradient of ``x`` (M, K), given that of each row's loss, ``g`` (M); in ``out``, which may be ``x``."""
    if get_array_module(x) is not numpy:
        return _cross_entropy_grad_cuda(g, x, target, weight, smoothing, ignore, stats, out)
    out = buffers.empty_like(x) if out is None else out
    T = x.dtype.type
    of_all = weight.sum() if smoothing else T(0)
    _cross_entropy_grad(g, x, target, weight, T(smoothing), ignore, stats, of_all, out)
    return out


def cross_entropy_grad_reference(
    g: Array, x: Array, target: Array, weight: Array, smoothing: float, ignore: int, stats: Array
) -> Array:
    """What :func:`cross_entropy_grad` must equal up to rounding."""
    xp = get_array_module(x)
    K = x.shape[1]
    p = xp.exp((x - stats[0][:, None]) - stats[1][:, None])
    hot = (target[:, None] == xp.arange(K)) * (1 - smoothing) + smoothing / K
    wanted = hot * weight
    out = g[:, None] * (p * wanted.sum(1, keepdims=True) - wanted)
    return xp.where((target == ignore)[:, None], 0, out).astype(x.dtype)


@jit
def _cross_entropy_grad(  # type: ignore[no-untyped-def]
    g, x, target, weight, smoothing, ignore, stats, weight_sum, out
):
    M, K = x.shape
    each = smoothing / x.dtype.type(K)
    for m in range(M):
        t = target[m]
        row, to = x[m], out[m]
        if t == ignore:
            for k in range(K):
                to[k] = 0
            continue
        hot = (1 - smoothing) * weight[t]
        wanted = hot + each * weight_sum
        top, log_total, gm = stats[0, m], stats[1, m], g[m]
        for k in range(K):
            to[k] = exp_down((row[k] - top) - log_total) * (gm * wanted)
        if smoothing != 0:
            for k in range(K):
                to[k] -= gm * each * weight[k]
        to[t] -= gm * hot


_LONG_ROW = 1024  # from here on a row has 256 threads, else 32
_program = cuda.Program(__file__, T=cuda.FLOATS, BLOCK=(32, 256), VECTOR=(0, 1))


def _launch(kernel: str, x: Array, *args: cuda.Argument, also: tuple[Array, ...] = ()) -> None:
    """Launch over the rows of ``x``; ``also`` are other arrays that are read alongside, 16 bytes at a time."""
    M, K = x.shape
    block = 256 if K >= _LONG_ROW else 32
    _program.launch(
        kernel,
        (cuda.blocks(M, 256 // block),),
        (block, 256 // block),
        *(*args, M, K),
        T=cuda.c_type(x.dtype),
        BLOCK=block,
        VECTOR=cuda.vector(K, x, *also),
    )


def _softmax_cuda(x: Array) -> Array:
    out = cuda.empty(x.shape, x.dtype)
    _launch("softmax", x, x, out)
    return out


def _softmax_grad_cuda(g: Array, y: Array) -> Array:
    out = cuda.empty(g.shape, g.dtype)
    _launch("softmax_grad", g, g, y, out, also=(y,))
    return out


def _log_softmax_cuda(x: Array) -> Array:
    out = cuda.empty(x.shape, x.dtype)
    _launch("log_softmax", x, x, out)
    return out


def _log_softmax_grad_cuda(g: Array, y: Array) -> Array:
    out = cuda.empty(g.shape, g.dtype)
    _launch("log_softmax_grad", g, g, y, out, also=(y,))
    return out


def _row_stats_cuda(x: Array) -> Array:
    stats = cuda.empty((2, len(x)), cuda.wide(x.dtype))
    _launch("row_stats", x, x, stats)
    return stats


def _cross_entropy_cuda(
    x: Array, target: Array, weight: Array, smoothing: float, ignore: int
) -> tuple[Array, Array]:
    loss, stats = cuda.empty(len(x), weight.dtype), cuda.empty((2, len(x)), weight.dtype)
    _launch(*("cross_entropy", x, x, target, weight, stats, loss, float(smoothing), ignore), also=(weight,))
    return loss, stats


def _cross_entropy_grad_cuda(
    g: Array,
    x: Array,
    target: Array,
    weight: Array,
    smoothing: float,
    ignore: int,
    stats: Array,
    out: Array | None,
) -> Array:
    out = cuda.empty(x.shape, x.dtype) if out is None else out
    args = (g, x, target, weight, weight.sum(keepdims=True), stats, out, float(smoothing), ignore)
    _launch("cross_entropy_grad", x, *args, also=(weight, out))
    return out
