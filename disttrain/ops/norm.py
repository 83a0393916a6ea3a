"""Batch, layer and root mean square normalisation."""

import math
from typing import Any

from disttrain.kernels import buffers, cudnn
from disttrain.kernels import norm as kernels
from disttrain.kernels.arrays import on_gpu
from disttrain.ops import reduce
from disttrain.ops.activation import for_kernel, relu_vjp, wide_type, widen
from disttrain.ops.types import Array, Result, call, get_array_module, is_array

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]


def batch_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    residual: Array | None = None,
    *,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = False,
) -> Result:
    """Normalise each channel (axis 1) over all other axes, as ``F.batch_norm`` (Ioffe and Szegedy 2015).

    What residual networks do next, a sum and ReLU, is done as the result is written, if it is wanted.

    Args:
        x: (N, C, ...), any layout; the result of images is in channels-last memory.
        weight: scale (C,), or ``None``.
        bias: shift (C,), or ``None``.
        residual: added to the result, of the shape and type of ``x``; or ``None``.
        running_mean: (C,), **updated in place** in training; used outside of it.
        running_var: (C,), likewise, with the unbiased variance.
        training: take mean and variance from ``x``. An empty batch gives an empty result and updates nothing.
        momentum: weight of this batch in the running values.
        eps: added to the variance.
        relu: put zeros in the place of what is negative then.

    Raises:
        ValueError: one value per channel in training.
        RuntimeError: missing running values outside of training, or wrong shapes.
    """
    if x.ndim < 2:
        raise RuntimeError(f"batch_norm: expected (N, C, ...), got shape {x.shape}")
    C = x.shape[1]
    for name, a in (
        ("weight", weight),
        ("bias", bias),
        ("running_mean", running_mean),
        ("running_var", running_var),
    ):
        if a is not None and a.shape != (C,):
            raise RuntimeError(
                f"batch_norm: {name} must have shape ({C},) for x of shape {x.shape}, got {a.shape}"
            )
    if residual is not None and residual.shape != x.shape:
        raise RuntimeError(f"batch_norm: residual must have the shape of x, {x.shape}, got {residual.shape}")
    xp = get_array_module(x)
    kind = wide_type(x)
    rows = to_rows(for_kernel(x))
    M = len(rows)
    if training and M:
        if M == 1:
            raise ValueError(
                f"batch_norm: training needs more than one value per channel, got shape {x.shape}"
            )
        if on_gpu(rows) and residual is None and not relu:
            made = _batch_norm_by_library(rows, weight, bias, running_mean, running_var, momentum, eps)
            if made is not None:
                out, *found = made
                return from_rows(out, x), (x, weight, *found, training, eps, None), batch_norm_vjp
        mean, var = kernels.channel_moments(rows)
        if running_mean is not None:
            running_mean[...] = (1 - momentum) * widen(running_mean) + momentum * mean
        if running_var is not None:
            running_var[...] = (1 - momentum) * widen(running_var) + momentum * (var * (M / (M - 1)))
    elif training:
        mean, var = xp.zeros(C), xp.ones(C)
    else:
        if running_mean is None or running_var is None:
            raise RuntimeError("batch_norm: outside of training it needs running_mean and running_var")
        mean, var = running_mean.astype(xp.float64), running_var.astype(xp.float64)
    rstd = 1 / xp.sqrt(var + eps)
    scale = rstd if weight is None else rstd * widen(weight)
    shift = buffers.zeros(C, xp.float64, x) if bias is None else bias
    added = None if residual is None else to_rows(for_kernel(residual))
    out = from_rows(kernels.channel_affine(rows, mean, scale, shift, residual=added, relu=relu), x)
    out = buffers.convert(out, x.dtype)
    saved = (x, weight, mean.astype(kind), rstd.astype(kind), training, eps, out if relu else None)
    return out, saved, batch_norm_vjp


def batch_norm_vjp(
    g: Any, needs: Needs, x: Any, weight: Any, mean: Any, rstd: Any, training: bool, eps: float, y: Any
) -> Grads:
    if y is not None and not (is_array(g) and on_gpu(g)):
        (g,), y = relu_vjp(g, (True,), y), None
    axes = (0, *range(2, len(x.shape)))
    M = math.prod(x.shape[a] for a in axes)
    gx = gw = gb = None
    gr = g
    if is_array(g):
        rows, seen = to_rows(for_kernel(g)), to_rows(for_kernel(x))
        after = None if y is None else to_rows(y)
        if training and M and on_gpu(rows) and after is None:
            fused = cudnn.batch_norm_grad(rows, seen, _factors(weight, seen, 1), mean, rstd)
            if fused is not None:
                kind = g.dtype if weight is None else weight.dtype
                grads = (from_rows(fused[0], x), *(buffers.convert(v, kind) for v in fused[1:]), g)
                return tuple(v if need else None for v, need in zip(grads, needs, strict=False))
        total, dot = kernels.channel_grad_sums(rows, seen, mean, y=after)
        if needs[0]:
            a = rstd if weight is None else rstd * widen(weight)
            n = M if training and M else math.inf
            c = a * total / n
            b = a * rstd * rstd * dot / n
            if after is not None and any(needs[3:]):
                found, masked = kernels.channel_relu_grad(rows, seen, after, mean, a, -b, -c)
                gr = from_rows(masked, x)
            else:
                found = kernels.channel_grad(rows, seen, mean, a, -b, -c, y=after)
            gx = buffers.convert(from_rows(found, x), x.dtype)
        elif after is not None and any(needs[3:]):
            (gr,) = relu_vjp(g, (True,), y)
        if any(needs[1:3]):
            kind = (
                g.dtype if weight is None else weight.dtype
            )  # a float32 weight beside halves keeps its digits
            gw, gb = (dot * rstd).astype(kind), total.astype(kind)
    else:

        def per_channel(v: Any) -> Any:
            return v.reshape(1, x.shape[1], *[1] * (len(x.shape) - 2))

        def total_of(v: Any) -> Any:
            return call(reduce.sum, v, axes=axes, keepdims=True)

        if training and M:
            centred = x - total_of(x) * (1 / M)
            inverse = (total_of(centred * centred) * (1 / M) + eps) ** -0.5
        else:
            centred, inverse = x - per_channel(mean), per_channel(rstd)
        xhat = centred * inverse
        h = g if weight is None else g * per_channel(weight)
        if training and M:
            gx = inverse * (h - total_of(h) * (1 / M) - xhat * (total_of(h * xhat) * (1 / M)))
        else:
            gx = inverse * h
        gw, gb = total_of(g * xhat).reshape(x.shape[1]), total_of(g).reshape(x.shape[1])
    return tuple(v if need else None for v, need in zip((gx, gw, gb, gr), needs, strict=False))


def _batch_norm_by_library(
    rows: Array,
    weight: Array | None,
    bias: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    momentum: float,
    eps: float,
) -> tuple[Array, Array, Array] | None:
    """Return the result for rows of channels on a GPU, mean and 1 / std, by cuDNN; or None, and nothing is updated."""
    running = _factors(running_mean, rows, 0), _factors(running_var, rows, 1)
    made = cudnn.batch_norm(rows, _factors(weight, rows, 1), _factors(bias, rows, 0), running, momentum, eps)
    if made is None:
        return None
    for kept, after in zip((running_mean, running_var), made[3:], strict=True):
        if kept is not None:
            kept[...] = after
    return made[:3]


def _factors(given: Array | None, rows: Array, otherwise: int) -> Array:
    """Return one number for each column of ``rows``, in float32: those that are given, or the same for all."""
    xp = get_array_module(rows)
    if given is None:
        return xp.full(rows.shape[1], otherwise, xp.float32)
    return buffers.convert(buffers.contiguous(given), xp.float32)


def to_rows(x: Array) -> Array:
    """Return (N, C, ...) as a contiguous matrix (M, C); a view if the memory is channels-last."""
    last = x.transpose(0, *range(2, x.ndim), 1)
    return buffers.contiguous(last).reshape(x.size // max(x.shape[1], 1), x.shape[1])


def from_rows(rows: Array, like: Array) -> Array:
    """Return rows of channels (M, C) in the shape of ``like``, in channels-last memory."""
    last = rows.reshape(like.shape[0], *like.shape[2:], like.shape[1])
    return last.transpose(0, like.ndim - 1, *range(1, like.ndim - 1))


def layer_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    normalized_shape: tuple[int, ...],
    eps: float = 1e-5,
) -> Result:
    """Normalise over the last axes, as ``F.layer_norm`` (Ba et al. 2016).

    Args:
        x: an array whose shape ends with ``normalized_shape``.
        weight: scale, of ``normalized_shape``, or ``None``.
        bias: shift, of ``normalized_shape``, or ``None``.
        normalized_shape: the axes to normalise over.
        eps: added to the variance.

    Raises:
        RuntimeError: shapes that do not fit.
    """
    _check_rows("layer_norm", x, normalized_shape, weight=weight, bias=bias)
    (rows,) = _rows_of((x,), normalized_shape)
    w, b = _scale_of(x, normalized_shape, weight), _shift_of(x, normalized_shape, bias)
    out, mean, rstd = kernels.layer_norm(rows, w, b, eps)
    saved = (x, weight, mean, rstd, len(normalized_shape), eps)
    return buffers.convert(out.reshape(x.shape), x.dtype), saved, layer_norm_vjp


def layer_norm_vjp(
    g: Any, needs: Needs, x: Any, weight: Any, mean: Any, rstd: Any, n: int, eps: float, also: Any = None
) -> Grads:
    """``also``: a gradient of ``x`` from elsewhere, to which that from here is added."""
    shape, inner = tuple(x.shape), tuple(x.shape[len(x.shape) - n :])
    K = math.prod(inner)
    if is_array(g):
        xp = get_array_module(g)
        wide, kind = for_kernel(x), wide_type(x)
        rows = buffers.contiguous(wide).reshape(-1, K) if x.size else wide.reshape(len(mean), K)
        w = xp.ones(K, kind) if weight is None else _as_row(weight, kind)
        up = buffers.contiguous(for_kernel(g)).reshape(rows.shape)
        more = None if also is None else buffers.contiguous(for_kernel(also)).reshape(rows.shape)
        gx, gw, gb = kernels.layer_norm_grad(up, rows, w, mean, rstd, also=more)
        grads = (buffers.convert(gx.reshape(shape), x.dtype), gw.reshape(inner), gb.reshape(inner))
        return tuple(v if need else None for v, need in zip(grads, needs, strict=False))
    last = tuple(range(len(shape) - n, len(shape)))
    first = tuple(range(len(shape) - n))

    def mean_of(v: Any) -> Any:
        return call(reduce.sum, v, axes=last, keepdims=True) * (1 / K)

    centred = x - mean_of(x)
    inverse = (mean_of(centred * centred) + eps) ** -0.5
    xhat = centred * inverse
    h = g if weight is None else g * weight
    gx = inverse * (h - mean_of(h) - xhat * mean_of(h * xhat))
    grads = (
        gx if also is None else gx + also,
        call(reduce.sum, g * xhat, axes=first, keepdims=False),
        call(reduce.sum, g, axes=first, keepdims=False),
    )
    return tuple(v if need else None for v, need in zip(grads, needs, strict=False))


def add_layer_norm(
    x: Array,
    residual: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    normalized_shape: tuple[int, ...],
    eps: float = 1e-5,
) -> Result:
    """Return ``x + residual``, and what :func:`layer_norm` makes of it.

    Args:
        x: an array whose shape ends with ``normalized_shape``.
        residual: of the shape and type of ``x``.
        weight, bias, normalized_shape, eps: those of :func:`layer_norm`.

    Raises:
        RuntimeError: shapes that do not fit, or types that differ.
    """
    _check_sum("add_layer_norm", x, residual)
    _check_rows("add_layer_norm", x, normalized_shape, weight=weight, bias=bias)
    a, b = _rows_of((x, residual), normalized_shape)
    w, shift = _scale_of(x, normalized_shape, weight), _shift_of(x, normalized_shape, bias)
    total, out, mean, rstd = kernels.add_layer_norm(a, b, w, shift, eps)
    total, out = (buffers.convert(v.reshape(x.shape), x.dtype) for v in (total, out))
    return (total, out), (total, weight, mean, rstd, len(normalized_shape), eps), add_layer_norm_vjp


def add_layer_norm_vjp(g: Any, needs: Needs, *saved: Any) -> Grads:
    return _through_sum(layer_norm_vjp, g, needs, saved)


def add_rms_norm(
    x: Array,
    residual: Array,
    weight: Array | None = None,
    *,
    normalized_shape: tuple[int, ...],
    eps: float | None = None,
) -> Result:
    """Return ``x + residual``, and what :func:`rms_norm` makes of it; arguments as of :func:`add_layer_norm`."""
    _check_sum("add_rms_norm", x, residual)
    _check_rows("add_rms_norm", x, normalized_shape, weight=weight)
    if eps is None:
        eps = float(get_array_module(x).finfo(wide_type(x)).eps)
    a, b = _rows_of((x, residual), normalized_shape)
    total, out, rstd = kernels.add_rms_norm(a, b, _scale_of(x, normalized_shape, weight), eps)
    total, out = (buffers.convert(v.reshape(x.shape), x.dtype) for v in (total, out))
    return (total, out), (total, weight, rstd, len(normalized_shape), eps), add_rms_norm_vjp


def add_rms_norm_vjp(g: Any, needs: Needs, *saved: Any) -> Grads:
    return _through_sum(rms_norm_vjp, g, needs, saved)


def _through_sum(vjp: Any, g: Any, needs: Needs, saved: tuple[Any, ...]) -> Grads:
    """Return the gradients of a sum's two terms, and of the factors of the norm that comes after, with its ``vjp``."""
    of_sum, of_norm = g
    asked = any(needs[:2])
    if of_norm is None:
        gx, factors = of_sum, [None] * (len(needs) - 2)
    else:
        gx, *factors = vjp(of_norm, (asked, *needs[2:]), *saved, of_sum)
    return gx if needs[0] else None, gx if needs[1] else None, *factors


def _check_sum(name: str, x: Array, residual: Array) -> None:
    if x.shape != residual.shape or x.dtype != residual.dtype:
        raise RuntimeError(
            f"{name}: x and residual must agree in shape and type, got {x.shape} of {x.dtype} and "
            f"{residual.shape} of {residual.dtype}"
        )


def _rows_of(xs: tuple[Array, ...], normalized_shape: tuple[int, ...]) -> list[Array]:
    """Return arrays as contiguous matrices, a row for what is normalised together, as kernels take them."""
    shape = math.prod(xs[0].shape[: -len(normalized_shape)]), math.prod(normalized_shape)
    return [buffers.contiguous(for_kernel(x)).reshape(shape) for x in xs]


def _scale_of(x: Array, normalized_shape: tuple[int, ...], weight: Array | None) -> Array:
    """Return the scale of a row, as kernels take it; 1 where there is none."""
    kind = wide_type(x)
    return (
        get_array_module(x).ones(math.prod(normalized_shape), kind)
        if weight is None
        else _as_row(weight, kind)
    )


def _shift_of(x: Array, normalized_shape: tuple[int, ...], bias: Array | None) -> Array:
    """Return the shift of a row, as kernels take it; 0 where there is none."""
    kind = wide_type(x)
    return buffers.zeros(math.prod(normalized_shape), kind, x) if bias is None else _as_row(bias, kind)


def _check_rows(name: str, x: Array, normalized_shape: tuple[int, ...], **factors: Array | None) -> None:
    n, shape = len(normalized_shape), tuple(normalized_shape)
    if n < 1 or tuple(x.shape[-n:]) != shape:
        raise RuntimeError(f"{name}: x must end with normalized_shape {shape}, got {x.shape}")
    for what, a in factors.items():
        if a is not None and a.shape != shape:
            raise RuntimeError(f"{name}: {what} must have shape {shape}, got {a.shape}")


def _as_row(a: Array, dtype: Any) -> Array:
    return buffers.contiguous(buffers.convert(a.reshape(-1), dtype))


def rms_norm(
    x: Array, weight: Array | None = None, *, normalized_shape: tuple[int, ...], eps: float | None = None
) -> Result:
    """Divide by the root mean square over the last axes, as ``F.rms_norm`` (Zhang and Sennrich 2019).

    Args:
        x: an array whose shape ends with ``normalized_shape``.
        weight: scale, of ``normalized_shape``, or ``None``.
        normalized_shape: the axes to normalise over.
        eps: added to the mean square; by default the spacing of numbers at 1.

    Raises:
        RuntimeError: shapes that do not fit.
    """
    _check_rows("rms_norm", x, normalized_shape, weight=weight)
    if eps is None:
        eps = float(get_array_module(x).finfo(wide_type(x)).eps)
    (rows,) = _rows_of((x,), normalized_shape)
    out, rstd = kernels.rms_norm(rows, _scale_of(x, normalized_shape, weight), eps)
    saved = (x, weight, rstd, len(normalized_shape), eps)
    return buffers.convert(out.reshape(x.shape), x.dtype), saved, rms_norm_vjp


def rms_norm_vjp(
    g: Any, needs: Needs, x: Any, weight: Any, rstd: Any, n: int, eps: float, also: Any = None
) -> Grads:
    """``also``: a gradient of ``x`` from elsewhere, to which that from here is added."""
    shape, inner = tuple(x.shape), tuple(x.shape[len(x.shape) - n :])
    K = math.prod(inner)
    if is_array(g):
        xp = get_array_module(g)
        wide, kind = for_kernel(x), wide_type(x)
        rows = buffers.contiguous(wide).reshape(len(rstd), K)
        w = xp.ones(K, kind) if weight is None else _as_row(weight, kind)
        up = buffers.contiguous(for_kernel(g)).reshape(rows.shape)
        more = None if also is None else buffers.contiguous(for_kernel(also)).reshape(rows.shape)
        gx, gw = kernels.rms_norm_grad(up, rows, w, rstd, also=more)
        grads = (buffers.convert(gx.reshape(shape), x.dtype), gw.reshape(inner))
        return tuple(v if need else None for v, need in zip(grads, needs, strict=False))
    last = tuple(range(len(shape) - n, len(shape)))

    def mean_of(v: Any) -> Any:
        return call(reduce.sum, v, axes=last, keepdims=True) * (1 / K)

    inverse = (mean_of(x * x) + eps) ** -0.5
    xhat = x * inverse
    h = g if weight is None else g * weight
    gx = inverse * (h - xhat * mean_of(h * xhat))
    grads = (
        gx if also is None else gx + also,
        call(reduce.sum, g * xhat, axes=tuple(range(len(shape) - n)), keepdims=False),
    )
    return tuple(v if need else None for v, need in zip(grads, needs, strict=False))
