"""Normalisation. Arrays are float32 or float64; sums over more than one row accumulate in float64.

On a GPU activations and their gradients may be float16 and bfloat16 too. Weights, statistics and coefficients are
float32 then (float64 beside float64), and sums accumulate in float32 within parts of the rows, in float64 from part to
part. Where cuDNN can be used it normalises rows there, and kernels of ours do the rest.
"""

import typing

import numpy

from disttrain.kernels import buffers, cuda, cudnn
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import jit
from disttrain.kernels.relu import relu_grad_reference


def channel_moments(x: Array) -> tuple[Array, Array]:
    """Return mean and biased variance of each column of ``x`` (M > 0 rows, C channels), in float64."""
    if get_array_module(x) is not numpy:
        return _channel_moments_cuda(x)
    mean, var = buffers.zeros(x.shape[1]), buffers.zeros(x.shape[1])
    _channel_moments(x, mean, buffers.empty(x.shape[1], x.dtype), var)
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


def channel_affine(
    x: Array, mean: Array, scale: Array, shift: Array, *, residual: Array | None = None, relu: bool = False
) -> Array:
    """Return ``(x - mean) * scale + shift`` for ``x`` (M, C) and one of each per channel.

    Args:
        x: the activations.
        mean: one per channel, as are ``scale`` and ``shift``.
        scale: a factor.
        shift: what is added.
        residual: added to the result, of the shape of ``x``.
        relu: return zeros in the place of what is negative then.
    """
    if get_array_module(x) is not numpy:
        return _channel_affine_cuda(x, mean, scale, shift, residual, relu)
    out = buffers.empty_like(x)
    _channel_affine(x, *(buffers.convert(v, x.dtype) for v in (mean, scale, shift)), out)
    if residual is not None:
        out += residual
    return numpy.maximum(out, x.dtype.type(0), out=out) if relu else out


def channel_affine_reference(
    x: Array, mean: Array, scale: Array, shift: Array, *, residual: Array | None = None, relu: bool = False
) -> Array:
    """What :func:`channel_affine` must equal."""
    mean, scale, shift = (v.astype(x.dtype, copy=False) for v in (mean, scale, shift))
    out = (x - mean) * scale + shift
    if residual is not None:
        out = out + residual
    return get_array_module(x).maximum(out, x.dtype.type(0)) if relu else out


@jit
def _channel_affine(x, mean, scale, shift, out):  # type: ignore[no-untyped-def]
    M, C = x.shape
    for m in range(M):
        for c in range(C):
            out[m, c] = (x[m, c] - mean[c]) * scale[c] + shift[c]


def channel_grad_sums(g: Array, x: Array, mean: Array, *, y: Array | None = None) -> tuple[Array, Array]:
    """Return for each channel the sums of ``g`` and of ``g * (x - mean)``, in float64, for (M, C) arrays.

    With ``y``, the output of a ReLU that came after, ``g`` counts where that is not 0.
    """
    if get_array_module(g) is not numpy:
        return _channel_grad_sums_cuda(g, x, mean, y)
    g = g if y is None else relu_grad_reference(g, y)
    total, dot = buffers.zeros(g.shape[1]), buffers.zeros(g.shape[1])
    _channel_grad_sums(g, x, buffers.convert(mean, x.dtype), total, dot)
    return total, dot


def channel_grad_sums_reference(
    g: Array, x: Array, mean: Array, *, y: Array | None = None
) -> tuple[Array, Array]:
    """What :func:`channel_grad_sums` must equal up to rounding."""
    xp = get_array_module(g)
    g = g if y is None else relu_grad_reference(g, y)
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


def channel_grad(
    g: Array, x: Array, mean: Array, a: Array, b: Array, c: Array, *, y: Array | None = None
) -> Array:
    """Return ``g * a + (x - mean) * b + c`` for (M, C) arrays and one of each coefficient per channel.

    With ``y``, the output of a ReLU that came after, ``g`` counts where that is not 0.
    """
    if get_array_module(g) is not numpy:
        return _channel_grad_cuda(g, x, y, mean, a, b, c, None)
    g = g if y is None else relu_grad_reference(g, y)
    out = buffers.empty_like(g)
    _channel_grad(g, x, *(buffers.convert(v, g.dtype) for v in (mean, a, b, c)), out)
    return out


def channel_grad_reference(
    g: Array, x: Array, mean: Array, a: Array, b: Array, c: Array, *, y: Array | None = None
) -> Array:
    """What :func:`channel_grad` must equal."""
    g = g if y is None else relu_grad_reference(g, y)
    mean, a, b, c = (v.astype(g.dtype, copy=False) for v in (mean, a, b, c))
    return g * a + (x - mean) * b + c


@jit
def _channel_grad(g, x, mean, a, b, c, out):  # type: ignore[no-untyped-def]
    M, C = g.shape
    for m in range(M):
        for k in range(C):
            out[m, k] = g[m, k] * a[k] + (x[m, k] - mean[k]) * b[k] + c[k]


def channel_relu_grad(
    g: Array, x: Array, y: Array, mean: Array, a: Array, b: Array, c: Array
) -> tuple[Array, Array]:
    """Return :func:`channel_grad` of ``h``, and ``h``: ``g`` where ``y``, the output of a ReLU, is not 0, else 0.

    The gradients of what was normalised and of what was added to it before the ReLU.
    """
    if get_array_module(g) is not numpy:
        masked = cuda.empty(g.shape, g.dtype)
        return _channel_grad_cuda(g, x, y, mean, a, b, c, masked), masked
    h = relu_grad_reference(g, y)
    return channel_grad(h, x, mean, a, b, c), h


def channel_relu_grad_reference(
    g: Array, x: Array, y: Array, mean: Array, a: Array, b: Array, c: Array
) -> tuple[Array, Array]:
    """What :func:`channel_relu_grad` must equal."""
    h = relu_grad_reference(g, y)
    return channel_grad_reference(h, x, mean, a, b, c), h


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, Array, Array]:
    """Return the rows of ``x`` (M, K) normalised, times ``weight`` plus ``bias``; and mean and 1 / std."""
    if get_array_module(x) is not numpy:
        return cudnn.layer_norm(x, weight, bias, eps) or _layer_norm_cuda(x, None, weight, bias, eps)[1:]
    out = buffers.empty_like(x)
    mean, rstd = buffers.empty(len(x), x.dtype), buffers.empty(len(x), x.dtype)
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


def add_layer_norm(
    x: Array, residual: Array, weight: Array, bias: Array, eps: float
) -> tuple[Array, Array, Array, Array]:
    """Return ``x + residual``, and what :func:`layer_norm` makes of it, read and written once."""
    if get_array_module(x) is not numpy:
        return _layer_norm_cuda(x, residual, weight, bias, eps)
    total = x + residual
    return total, *layer_norm(total, weight, bias, eps)


def add_layer_norm_reference(
    x: Array, residual: Array, weight: Array, bias: Array, eps: float
) -> tuple[Array, Array, Array, Array]:
    """What :func:`add_layer_norm` must equal up to rounding."""
    total = x + residual
    return total, *layer_norm_reference(total, weight, bias, eps)


def layer_norm_grad(
    g: Array, x: Array, weight: Array, mean: Array, rstd: Array, *, also: Array | None = None
) -> tuple[Array, Array, Array]:
    """Return the gradients of ``x`` (M, K), ``weight`` and ``bias`` (K, summed over the rows in order).

    With ``also``, a gradient that ``x`` has from elsewhere, the first is the sum of both.
    """
    if get_array_module(g) is not numpy:
        made = cudnn.layer_norm_grad(g, x, weight, mean, rstd) if also is None else None
        return made or _layer_norm_grad_cuda(g, x, weight, mean, rstd, also)
    gx = buffers.empty_like(g)
    gw, gb = buffers.zeros(g.shape[1]), buffers.zeros(g.shape[1])
    _layer_norm_grad(g, x, weight, mean, rstd, gx, gw, gb)
    if also is not None:
        gx += also
    return gx, gw.astype(g.dtype), gb.astype(g.dtype)


def layer_norm_grad_reference(
    g: Array, x: Array, weight: Array, mean: Array, rstd: Array, *, also: Array | None = None
) -> tuple[Array, Array, Array]:
    """What :func:`layer_norm_grad` must equal up to rounding."""
    xp = get_array_module(g)
    xhat = (x - mean[:, None]) * rstd[:, None]
    h = g * weight
    gx = rstd[:, None] * (h - h.mean(1, keepdims=True) - xhat * (h * xhat).mean(1, keepdims=True))
    gx = gx if also is None else gx + also
    gw, gb = (g * xhat).sum(0, dtype=xp.float64), g.sum(0, dtype=xp.float64)
    return gx, gw.astype(g.dtype), gb.astype(g.dtype)


@jit(fastmath={"reassoc", "contract", "nsz"})
def _layer_norm_grad(g, x, weight, mean, rstd, gx, gw, gb):  # type: ignore[no-untyped-def]
    M, K = g.shape
    T = g.dtype.type
    part_w, part_b = numpy.empty(K, g.dtype), numpy.empty(K, g.dtype)
    for begin in range(0, M, 16):  # sums of 16 rows in the arrays' own type, those in float64
        part_w[:] = 0
        part_b[:] = 0
        for m in range(begin, min(begin + 16, M)):
            gm, xm, to = g[m], x[m], gx[m]
            mu, r = mean[m], rstd[m]
            a = b = T(0)
            for k in range(K):
                h = gm[k] * weight[k]
                a += h
                b += h * ((xm[k] - mu) * r)
            of_g, of_x = a / T(K), b / T(K)
            for k in range(K):
                xhat = (xm[k] - mu) * r
                part_w[k] += gm[k] * xhat
                part_b[k] += gm[k]
                to[k] = r * (gm[k] * weight[k] - of_g - xhat * of_x)
        for k in range(K):
            gw[k] += part_w[k]
            gb[k] += part_b[k]


def rms_norm(x: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    """Return the rows of ``x`` (M, K) over their root mean square, times ``weight``; and 1 / that root."""
    if get_array_module(x) is not numpy:
        return cudnn.rms_norm(x, weight, eps) or _rms_norm_cuda(x, None, weight, eps)[1:]
    out, rstd = buffers.empty_like(x), buffers.empty(len(x), x.dtype)
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


def add_rms_norm(x: Array, residual: Array, weight: Array, eps: float) -> tuple[Array, Array, Array]:
    """Return ``x + residual``, and what :func:`rms_norm` makes of it, read and written once."""
    if get_array_module(x) is not numpy:
        return _rms_norm_cuda(x, residual, weight, eps)
    total = x + residual
    return total, *rms_norm(total, weight, eps)


def add_rms_norm_reference(
    x: Array, residual: Array, weight: Array, eps: float
) -> tuple[Array, Array, Array]:
    """What :func:`add_rms_norm` must equal up to rounding."""
    total = x + residual
    return total, *rms_norm_reference(total, weight, eps)


def rms_norm_grad(
    g: Array, x: Array, weight: Array, rstd: Array, *, also: Array | None = None
) -> tuple[Array, Array]:
    """Return the gradients of ``x`` (M, K) and of ``weight`` (K, summed over the rows in order).

    With ``also``, a gradient that ``x`` has from elsewhere, the first is the sum of both.
    """
    if get_array_module(g) is not numpy:
        made = cudnn.rms_norm_grad(g, x, weight, rstd) if also is None else None
        return made or _rms_norm_grad_cuda(g, x, weight, rstd, also)
    gx, gw = buffers.empty_like(g), buffers.zeros(g.shape[1])
    _rms_norm_grad(g, x, weight, rstd, gx, gw)
    if also is not None:
        gx += also
    return gx, gw.astype(g.dtype)


def rms_norm_grad_reference(
    g: Array, x: Array, weight: Array, rstd: Array, *, also: Array | None = None
) -> tuple[Array, Array]:
    """What :func:`rms_norm_grad` must equal up to rounding."""
    xp = get_array_module(g)
    xhat, h = x * rstd[:, None], g * weight
    gx = rstd[:, None] * (h - xhat * (h * xhat).mean(1, keepdims=True))
    gx = gx if also is None else gx + also
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


_LONG_ROW = 1024  # from here on a row has 256 threads, else 32
_program = cuda.Program(__file__, T=cuda.FLOATS, BLOCK=(32, 256), VECTOR=(0, 1))


def _over_rows(
    kernel: str, x: Array, args: tuple[cuda.Argument, ...], also: tuple[Array | None, ...]
) -> None:
    """Launch over the rows of ``x``; ``also`` are other arrays that are read alongside, 16 bytes at a time."""
    M, K = x.shape
    block = 256 if K >= _LONG_ROW else 32
    vector = cuda.vector(K, x, *also)
    grid, shape = (cuda.blocks(M, 256 // block),), (block, 256 // block)
    _program.launch(kernel, grid, shape, *args, M, K, T=cuda.c_type(x.dtype), BLOCK=block, VECTOR=vector)


def _over_columns(kernel: str, x: Array, args: tuple[cuda.Argument, ...], parts: int) -> None:
    """Launch over the columns of ``x``, in ``parts`` of its rows."""
    M, C = x.shape
    grid, T = (cuda.blocks(C, 32), parts), cuda.c_type(x.dtype)
    _program.launch(kernel, grid, (32, 8), *args, cuda.part(M), M, C, T=T, BLOCK=32, VECTOR=0)


def _parts(x: Array) -> int:
    """Return into how many parts the rows go."""
    return cuda.blocks(len(x), cuda.part(len(x)))


def _sum_of_parts(part: Array, dtype: numpy.dtype[typing.Any]) -> Array:
    """Return the float64 sum over the rows of ``part``, whose type is what ``dtype`` is calculated in."""
    parts, C = part.shape
    out = cuda.empty(C, numpy.float64)
    args = (part, out, parts, C)
    _program.launch(
        *("merge_sums", (cuda.blocks(C, 256),), (256,), *args), T=cuda.c_type(dtype), BLOCK=32, VECTOR=0
    )
    return out


def _layer_norm_cuda(
    x: Array, residual: Array | None, weight: Array, bias: Array, eps: float
) -> tuple[Array, Array, Array, Array]:
    out, A = cuda.empty(x.shape, x.dtype), cuda.wide(x.dtype)
    total = None if residual is None else cuda.empty(x.shape, x.dtype)
    mean, rstd = cuda.empty(len(x), A), cuda.empty(len(x), A)
    args = (x, residual, weight, bias, total, out, mean, rstd, float(eps))
    _over_rows("layer_norm", x, args, (residual, weight, bias))
    return total, out, mean, rstd


def _rms_norm_cuda(x: Array, residual: Array | None, weight: Array, eps: float) -> tuple[Array, Array, Array]:
    out, rstd = cuda.empty(x.shape, x.dtype), cuda.empty(len(x), cuda.wide(x.dtype))
    total = None if residual is None else cuda.empty(x.shape, x.dtype)
    args = (x, residual, weight, total, out, rstd, float(eps))
    _over_rows("rms_norm", x, args, (residual, weight))
    return total, out, rstd


def _row_norm_grad_cuda(
    g: Array, x: Array, weight: Array, mean: Array | None, rstd: Array, also: Array | None
) -> tuple[Array, Array, Array | None]:
    gx, A, parts = cuda.empty(g.shape, g.dtype), cuda.wide(g.dtype), _parts(g)
    _over_rows("row_norm_grad", g, (g, x, weight, mean, rstd, also, gx), (x, weight, also))
    gw = cuda.empty((parts, g.shape[1]), A)
    gb = None if mean is None else cuda.empty(gw.shape, A)
    _over_columns("row_norm_weight_grad", g, (g, x, mean, rstd, gw, gb), parts)
    bias = None if gb is None else _sum_of_parts(gb, g.dtype).astype(A)
    return gx, _sum_of_parts(gw, g.dtype).astype(A), bias


def _layer_norm_grad_cuda(
    g: Array, x: Array, weight: Array, mean: Array, rstd: Array, also: Array | None = None
) -> tuple[Array, Array, Array]:
    return _row_norm_grad_cuda(g, x, weight, mean, rstd, also)


def _rms_norm_grad_cuda(
    g: Array, x: Array, weight: Array, rstd: Array, also: Array | None = None
) -> tuple[Array, Array]:
    return _row_norm_grad_cuda(g, x, weight, None, rstd, also)[:2]


def _channel_moments_cuda(x: Array) -> tuple[Array, Array]:
    (M, C), A, parts = x.shape, cuda.wide(x.dtype), _parts(x)
    means, squares = cuda.empty((parts, C), A), cuda.empty((parts, C), A)
    mean, var = cuda.empty(C, numpy.float64), cuda.empty(C, numpy.float64)
    _over_columns("channel_moments", x, (x, means, squares), parts)
    args, T = (means, squares, mean, var, cuda.part(M), M, C), cuda.c_type(x.dtype)
    _program.launch("merge_moments", (cuda.blocks(C, 256),), (256,), *args, T=T, BLOCK=32, VECTOR=0)
    return mean, var


def _over_elements(
    kernel: str, x: Array, args: tuple[cuda.Argument, ...], also: tuple[Array | None, ...]
) -> None:
    C, vector = x.shape[1], cuda.vector(x.shape[1], x, *also)
    grid = (cuda.blocks(x.size, 256 * (16 // x.itemsize if vector else 1)),)
    _program.launch(
        *(kernel, grid, (256,), *args, x.size, C), T=cuda.c_type(x.dtype), BLOCK=32, VECTOR=vector
    )


def _channel_affine_cuda(
    x: Array, mean: Array, scale: Array, shift: Array, residual: Array | None, relu: bool
) -> Array:
    mean, scale, shift = (v.astype(cuda.wide(x.dtype), copy=False) for v in (mean, scale, shift))
    out = cuda.empty(x.shape, x.dtype)
    also = (residual, mean, scale, shift)
    _over_elements("channel_affine", x, (x, residual, mean, scale, shift, out, int(relu)), also)
    return out


def _channel_grad_sums_cuda(g: Array, x: Array, mean: Array, y: Array | None) -> tuple[Array, Array]:
    A, parts = cuda.wide(g.dtype), _parts(g)
    totals, dots = (cuda.empty((parts, g.shape[1]), A) for _ in range(2))
    mean = mean.astype(A, copy=False)
    _over_columns("channel_grad_sums", g, (g, x, y, mean, totals, dots), parts)
    return _sum_of_parts(totals, g.dtype), _sum_of_parts(dots, g.dtype)


def _channel_grad_cuda(
    g: Array, x: Array, y: Array | None, mean: Array, a: Array, b: Array, c: Array, masked: Array | None
) -> Array:
    mean, a, b, c = (v.astype(cuda.wide(g.dtype), copy=False) for v in (mean, a, b, c))
    out = cuda.empty(g.shape, g.dtype)
    _over_elements("channel_grad", g, (g, x, y, mean, a, b, c, out, masked), (x, y, mean, a, b, c))
    return out
