"""Normalisation. Arrays are float32 or float64; sums over more than one row accumulate in float64."""

import numpy

from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import jit


def channel_moments(x: Array) -> tuple[Array, Array]:
    """Return mean and biased variance of each column of ``x`` (M > 0 rows, C channels), in float64."""
    if get_array_module(x) is not numpy:
        return channel_moments_reference(x)
    mean, var = numpy.zeros(x.shape[1]), numpy.zeros(x.shape[1])
    _channel_moments(x, mean, numpy.empty(x.shape[1], x.dtype), var)
    return mean, var


def channel_moments_reference(x: Array) -> tuple[Array, Array]:
    """What :func:`channel_moments` must equal up to rounding."""
    xp = get_array_module(x)
    return x.mean(0, dtype=xp.float64), x.var(0, dtype=xp.float64)


# Sums over rows go eight rows at a time: in the type of x within them, in float64 from eight to eight. Row by row each
# addition would wait for the one before, and for its conversion.


@jit
def _channel_moments(x, mean, centre, var):  # type: ignore[no-untyped-def]
    M, C = x.shape
    eights = M - M % 8
    for m in range(0, eights, 8):
        for c in range(C):
            mean[c] += ((x[m, c] + x[m + 1, c]) + (x[m + 2, c] + x[m + 3, c])) + (
                (x[m + 4, c] + x[m + 5, c]) + (x[m + 6, c] + x[m + 7, c])
            )
    for m in range(eights, M):
        for c in range(C):
            mean[c] += x[m, c]
    for c in range(C):
        mean[c] /= M
        centre[c] = mean[c]
    for m in range(0, eights, 8):
        for c in range(C):
            d0, d1, d2, d3 = (
                x[m, c] - centre[c],
                x[m + 1, c] - centre[c],
                x[m + 2, c] - centre[c],
                x[m + 3, c] - centre[c],
            )
            d4, d5, d6, d7 = (
                x[m + 4, c] - centre[c],
                x[m + 5, c] - centre[c],
                x[m + 6, c] - centre[c],
                x[m + 7, c] - centre[c],
            )
            var[c] += ((d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)) + (
                (d4 * d4 + d5 * d5) + (d6 * d6 + d7 * d7)
            )
    for m in range(eights, M):
        for c in range(C):
            d = x[m, c] - centre[c]
            var[c] += d * d
    for c in range(C):
        var[c] /= M


def channel_affine(x: Array, mean: Array, scale: Array, shift: Array) -> Array:
    """Return ``(x - mean) * scale + shift`` for ``x`` (M, C) and one of each per channel."""
    if get_array_module(x) is not numpy:
        return channel_affine_reference(x, mean, scale, shift)
    out = numpy.empty_like(x)
    _channel_affine(x, *(v.astype(x.dtype, copy=False) for v in (mean, scale, shift)), out)
    return out


def channel_affine_reference(x: Array, mean: Array, scale: Array, shift: Array) -> Array:
    """What :func:`channel_affine` must equal."""
    mean, scale, shift = (v.astype(x.dtype, copy=False) for v in (mean, scale, shift))
    return (x - mean) * scale + shift


@jit
def _channel_affine(x, mean, scale, shift, out):  # type: ignore[no-untyped-def]
    M, C = x.shape
    for m in range(M):
        for c in range(C):
            out[m, c] = (x[m, c] - mean[c]) * scale[c] + shift[c]


def channel_grad_sums(g: Array, x: Array, mean: Array) -> tuple[Array, Array]:
    """Return for each channel the sums of ``g`` and of ``g * (x - mean)``, in float64, for (M, C) arrays."""
    if get_array_module(g) is not numpy:
        return channel_grad_sums_reference(g, x, mean)
    total, dot = numpy.zeros(g.shape[1]), numpy.zeros(g.shape[1])
    _channel_grad_sums(g, x, mean.astype(x.dtype, copy=False), total, dot)
    return total, dot


def channel_grad_sums_reference(g: Array, x: Array, mean: Array) -> tuple[Array, Array]:
    """What :func:`channel_grad_sums` must equal up to rounding."""
    xp = get_array_module(g)
    return g.sum(0, dtype=xp.float64), (g * (x - mean.astype(xp.float64))).sum(0)


@jit
def _channel_grad_sums(g, x, mean, total, dot):  # type: ignore[no-untyped-def]
    M, C = g.shape
    eights = M - M % 8
    for m in range(0, eights, 8):
        for c in range(C):
            total[c] += ((g[m, c] + g[m + 1, c]) + (g[m + 2, c] + g[m + 3, c])) + (
                (g[m + 4, c] + g[m + 5, c]) + (g[m + 6, c] + g[m + 7, c])
            )
        for c in range(C):
            d0, d1 = g[m, c] * (x[m, c] - mean[c]), g[m + 1, c] * (x[m + 1, c] - mean[c])
            d2, d3 = g[m + 2, c] * (x[m + 2, c] - mean[c]), g[m + 3, c] * (x[m + 3, c] - mean[c])
            d4, d5 = g[m + 4, c] * (x[m + 4, c] - mean[c]), g[m + 5, c] * (x[m + 5, c] - mean[c])
            d6, d7 = g[m + 6, c] * (x[m + 6, c] - mean[c]), g[m + 7, c] * (x[m + 7, c] - mean[c])
            dot[c] += ((d0 + d1) + (d2 + d3)) + ((d4 + d5) + (d6 + d7))
    for m in range(eights, M):
        for c in range(C):
            total[c] += g[m, c]
            dot[c] += g[m, c] * (x[m, c] - mean[c])


def channel_grad(g: Array, x: Array, mean: Array, a: Array, b: Array, c: Array) -> Array:
    """Return ``g * a + (x - mean) * b + c`` for (M, C) arrays and one of each coefficient per channel."""
    if get_array_module(g) is not numpy:
        return channel_grad_reference(g, x, mean, a, b, c)
    out = numpy.empty_like(g)
    _channel_grad(g, x, *(v.astype(g.dtype, copy=False) for v in (mean, a, b, c)), out)
    return out


def channel_grad_reference(g: Array, x: Array, mean: Array, a: Array, b: Array, c: Array) -> Array:
    """What :func:`channel_grad` must equal."""
    mean, a, b, c = (v.astype(g.dtype, copy=False) for v in (mean, a, b, c))
    return g * a + (x - mean) * b + c


@jit
def _channel_grad(g, x, mean, a, b, c, out):  # type: ignore[no-untyped-def]
    M, C = g.shape
    for m in range(M):
        for k in range(C):
            out[m, k] = g[m, k] * a[k] + (x[m, k] - mean[k]) * b[k] + c[k]


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array, Array]:
    """Return the rows of ``x`` (M, K) normalised, times ``weight`` plus ``bias``; and mean and 1 / std."""
    if get_array_module(x) is not numpy:
        return layer_norm_reference(x, weight, bias, eps)
    out = numpy.empty_like(x)
    mean, rstd = numpy.empty(len(x), x.dtype), numpy.empty(len(x), x.dtype)
    _layer_norm(x, weight, bias, eps, out, mean, rstd)
    return out, mean, rstd


def layer_norm_reference(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array, Array]:
    """What :func:`layer_norm` must equal up to rounding."""
    xp = get_array_module(x)
    mean = x.mean(1, dtype=xp.float64, keepdims=True)
    rstd = 1 / xp.sqrt(x.var(1, dtype=xp.float64, keepdims=True) + eps)
    out = ((x - mean) * rstd * weight + bias).astype(x.dtype)
    return out, mean[:, 0].astype(x.dtype), rstd[:, 0].astype(x.dtype)


@jit(fastmath={"reassoc", "contract", "nsz"})
def _layer_norm(x, weight, bias, eps, out, mean, rstd):  # type: ignore[no-untyped-def]
    M, K = x.shape
    for m in range(M):
        row, to = x[m], out[m]
        total = 0.0
        for k in range(K):
            total += row[k]
        mu = total / K
        square = 0.0
        for k in range(K):
            d = row[k] - mu
            square += d * d
        r = 1.0 / numpy.sqrt(square / K + eps)
        mean[m] = mu
        rstd[m] = r
        for k in range(K):
            to[k] = (row[k] - mean[m]) * rstd[m] * weight[k] + bias[k]


def layer_norm_grad(
    g: Array, x: Array, weight: Array, mean: Array, rstd: Array
) -> tuple[Array, Array, Array]:
    """Return the gradients of ``x`` (M, K), ``weight`` and ``bias`` (K, summed over the rows in order)."""
    if get_array_module(g) is not numpy:
        return layer_norm_grad_reference(g, x, weight, mean, rstd)
    gx = numpy.empty_like(g)
    gw, gb = numpy.zeros(g.shape[1]), numpy.zeros(g.shape[1])
    _layer_norm_grad(g, x, weight, mean, rstd, gx, gw, gb)
    return gx, gw.astype(g.dtype), gb.astype(g.dtype)


def layer_norm_grad_reference(
    g: Array, x: Array, weight: Array, mean: Array, rstd: Array
) -> tuple[Array, Array, Array]:
    """What :func:`layer_norm_grad` must equal up to rounding."""
    xp = get_array_module(g)
    xhat = (x - mean[:, None]) * rstd[:, None]
    h = g * weight
    gx = rstd[:, None] * (h - h.mean(1, keepdims=True) - xhat * (h * xhat).mean(1, keepdims=True))
    gw, gb = (g * xhat).sum(0, dtype=xp.float64), g.sum(0, dtype=xp.float64)
    return gx, gw.astype(g.dtype), gb.astype(g.dtype)


@jit(fastmath={"reassoc", "contract", "nsz"})
def _layer_norm_grad(g, x, weight, mean, rstd, gx, gw, gb):  # type: ignore[no-untyped-def]
    M, K = g.shape
    for m in range(M):
        mu, r = mean[m], rstd[m]
        a = b = 0.0
        for k in range(K):
            xhat = (x[m, k] - mu) * r
            h = g[m, k] * weight[k]
            a += h
            b += h * xhat
            gw[k] += g[m, k] * xhat
            gb[k] += g[m, k]
        a /= K
        b /= K
        for k in range(K):
            xhat = (x[m, k] - mu) * r
            gx[m, k] = r * (g[m, k] * weight[k] - a - xhat * b)


def rms_norm(x: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    """Return the rows of ``x`` (M, K) over their root mean square, times ``weight``; and 1 / that root."""
    if get_array_module(x) is not numpy:
        return rms_norm_reference(x, weight, eps)
    out, rstd = numpy.empty_like(x), numpy.empty(len(x), x.dtype)
    _rms_norm(x, weight, eps, out, rstd)
    return out, rstd


def rms_norm_reference(x: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    """What :func:`rms_norm` must equal up to rounding."""
    xp = get_array_module(x)
    square = xp.mean(x.astype(xp.float64) ** 2, 1, keepdims=True)
    rstd = 1 / xp.sqrt(square + eps)
    return (x * rstd * weight).astype(x.dtype), rstd[:, 0].astype(x.dtype)


@jit(fastmath={"reassoc", "contract", "nsz"})
def _rms_norm(x, weight, eps, out, rstd):  # type: ignore[no-untyped-def]
    M, K = x.shape
    for m in range(M):
        row, to = x[m], out[m]
        square = 0.0
        for k in range(K):
            square += row[k] * row[k]
        rstd[m] = 1.0 / numpy.sqrt(square / K + eps)
        for k in range(K):
            to[k] = row[k] * rstd[m] * weight[k]


def rms_norm_grad(g: Array, x: Array, weight: Array, rstd: Array) -> tuple[Array, Array]:
    """Return the gradients of ``x`` (M, K) and of ``weight`` (K, summed over the rows in order)."""
    if get_array_module(g) is not numpy:
        return rms_norm_grad_reference(g, x, weight, rstd)
    gx, gw = numpy.empty_like(g), numpy.zeros(g.shape[1])
    _rms_norm_grad(g, x, weight, rstd, gx, gw)
    return gx, gw.astype(g.dtype)


def rms_norm_grad_reference(g: Array, x: Array, weight: Array, rstd: Array) -> tuple[Array, Array]:
    """What :func:`rms_norm_grad` must equal up to rounding."""
    xp = get_array_module(g)
    xhat, h = x * rstd[:, None], g * weight
    gx = rstd[:, None] * (h - xhat * (h * xhat).mean(1, keepdims=True))
    return gx, (g * xhat).sum(0, dtype=xp.float64).astype(g.dtype)


@jit(fastmath={"reassoc", "contract", "nsz"})
def _rms_norm_grad(g, x, weight, rstd, gx, gw):  # type: ignore[no-untyped-def]
    M, K = g.shape
    for m in range(M):
        r = rstd[m]
        b = 0.0
        for k in range(K):
            xhat = x[m, k] * r
            b += g[m, k] * weight[k] * xhat
            gw[k] += g[m, k] * xhat
        b /= K
        for k in range(K):
            gx[m, k] = r * (g[m, k] * weight[k] - x[m, k] * r * b)
