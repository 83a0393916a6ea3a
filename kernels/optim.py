"""Optimizer steps over flat buffers, in one pass, and the two folds that gradient clipping needs."""

import math

import numpy

from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import jit

_SMALL = 2048
"""Below this many elements plain array operations are quicker than loading Numba; they give the same bits."""
_CHUNK = 4096
"""Elements in one partial sum of :func:`sum_of_squares`. Another number gives other last bits."""


def sgd_step(
    param: Array,
    grad: Array,
    momentum_buf: Array | None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    first_step: bool = False,
    maximize: bool = False,
) -> None:
    """Update ``param`` and ``momentum_buf`` in place as ``torch.optim.SGD`` does.

    Args:
        param: flat float32 or float64 array, contiguous; so are ``grad`` (not changed), ``momentum_buf``.
        grad: the gradient.
        momentum_buf: the velocity, of any content at the first step; None if and only if ``momentum`` is 0.
        lr: learning rate.
        momentum: factor of the velocity.
        dampening: part of the gradient that does not enter the velocity after the first step.
        weight_decay: factor of the L2 penalty.
        nesterov: look ahead along the velocity.
        first_step: the velocity starts as the gradient.
        maximize: go up instead of down.

    Raises:
        TypeError: arrays that are not float32 or float64, or of different types.
        ValueError: arrays of different sizes, or momentum without a buffer.
    """
    if (momentum_buf is None) != (momentum == 0.0):
        raise ValueError(
            f"momentum_buf must be an array exactly if momentum is not 0, got momentum={momentum}"
        )
    _check_flat(param, grad, momentum_buf)
    T = param.dtype.type
    keep = 0.0 if first_step else momentum
    add = 1.0 if first_step else 1.0 - dampening
    sign = -1.0 if maximize else 1.0
    buf = param[:0] if momentum_buf is None else momentum_buf
    if first_step and buf.size:
        buf.fill(0)  # 0 * nan would stay
    scalars = (T(lr), T(momentum), T(keep), T(add), T(weight_decay), T(sign), nesterov)
    step = _sgd if _compiled(param) else sgd_step_reference
    step(param, grad, buf, *scalars)


def sgd_step_reference(
    param: Array,
    grad: Array,
    buf: Array,
    lr: float,
    momentum: float,
    keep: float,
    add: float,
    weight_decay: float,
    sign: float,
    nesterov: bool,
) -> None:
    """What the compiled SGD step must equal, to the bit. An empty ``buf`` stands for no momentum."""
    g = grad * sign
    if weight_decay != 0:
        g += weight_decay * param
    if buf.size:
        buf *= keep
        buf += add * g
        g = g + momentum * buf if nesterov else buf
    param -= lr * g


@jit
def _sgd(  # type: ignore[no-untyped-def]
    param, grad, buf, lr, momentum, keep, add, weight_decay, sign, nesterov
):
    has_buf = buf.size > 0
    for i in range(param.size):
        p = param[i]
        g = grad[i] * sign
        if weight_decay != 0:
            g = g + weight_decay * p
        if has_buf:
            b = buf[i] * keep + add * g
            buf[i] = b
            g = g + momentum * b if nesterov else b
        param[i] = p - lr * g


def adam_step(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    max_exp_avg_sq: Array | None,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    step: int,
    maximize: bool = False,
) -> None:
    """Update ``param`` and the moments in place as ``torch.optim.Adam`` and ``AdamW`` do.

    Kingma and Ba 2015, Loshchilov and Hutter 2019, Reddi et al. 2018 (AMSGrad).

    Args:
        param: flat float32 or float64 array, C-contiguous; so are all the others. ``grad`` is not changed.
        grad: the gradient.
        exp_avg: first moment.
        exp_avg_sq: second moment.
        max_exp_avg_sq: the largest second moment so far, for AMSGrad; None for plain Adam.
        lr: learning rate.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: factor of the L2 penalty, or with ``decoupled`` of the decay of the parameters.
        decoupled: AdamW.
        step: number of this step, counted from 1.
        maximize: go up instead of down.

    Raises:
        TypeError: arrays that are not float32 or float64, or of different types.
        ValueError: arrays of different sizes, or a step below 1.
    """
    if step < 1:
        raise ValueError(f"step counts from 1, got {step}")
    _check_flat(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq)
    T = param.dtype.type
    scalars = (
        T(beta1),
        T(1 - beta1),
        T(beta2),
        T(1 - beta2),
        T(eps),
        T(lr / (1 - beta1**step)),
        T(math.sqrt(1 - beta2**step)),
        T(0.0 if decoupled else weight_decay),
        T(1 - lr * weight_decay if decoupled else 1.0),
        T(-1.0 if maximize else 1.0),
    )
    largest = param[:0] if max_exp_avg_sq is None else max_exp_avg_sq
    apply = _adam if _compiled(param) else adam_step_reference
    apply(param, grad, exp_avg, exp_avg_sq, largest, *scalars)


def adam_step_reference(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    largest: Array,
    beta1: float,
    one_minus_beta1: float,
    beta2: float,
    one_minus_beta2: float,
    eps: float,
    step_size: float,
    root_correction: float,
    l2: float,
    decay: float,
    sign: float,
) -> None:
    """What the compiled Adam step must equal, to the bit. An empty ``largest`` stands for no AMSGrad."""
    xp = get_array_module(param)
    g = grad * sign
    if decay != 1:
        param *= decay
    if l2 != 0:
        g += l2 * param
    if one_minus_beta1 < 0.5:  # torch.lerp's two forms
        exp_avg += one_minus_beta1 * (g - exp_avg)
    else:
        exp_avg[...] = g - (g - exp_avg) * beta1
    exp_avg_sq *= beta2
    exp_avg_sq += one_minus_beta2 * g * g
    second = exp_avg_sq
    if largest.size:
        second = xp.maximum(largest, exp_avg_sq, out=largest)
    param -= step_size * exp_avg / (xp.sqrt(second) / root_correction + eps)


@jit
def _adam(  # type: ignore[no-untyped-def]
    param, grad, exp_avg, exp_avg_sq, largest, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, step_size,
    root_correction, l2, decay, sign,
):  # fmt: skip
    amsgrad = largest.size > 0
    near = one_minus_beta1 < 0.5
    for i in range(param.size):
        p = param[i]
        g = grad[i] * sign
        if decay != 1:
            p = p * decay
        if l2 != 0:
            g = g + l2 * p
        m = exp_avg[i]
        if near:
            m = m + one_minus_beta1 * (g - m)
        else:
            m = g - (g - m) * beta1
        v = exp_avg_sq[i] * beta2 + one_minus_beta2 * g * g
        exp_avg[i] = m
        exp_avg_sq[i] = v
        if amsgrad:
            old = largest[i]
            if v > old or v != v:  # as numpy.maximum: NaN wins
                largest[i] = v
            v = largest[i]
        param[i] = p - step_size * m / (math.sqrt(v) / root_correction + eps)


def sum_of_squares(x: Array) -> float:
    """Return the sum of the squares of a flat float32 or float64 array, in float64.

    Always added up in the same order (eight interleaved sums per chunk of 4096 elements, chunk after chunk),
    so that the result has the same bits whatever the number of threads or processes.
    """
    xp = get_array_module(x)
    if xp is not numpy:
        return float(sum_of_squares_reference(x))
    _check_flat(x)
    return float(_sum_of_squares(x, _CHUNK))


def sum_of_squares_reference(x: Array) -> Array:
    """What :func:`sum_of_squares` must equal up to rounding."""
    xp = get_array_module(x)
    return xp.square(x, dtype=xp.float64).sum()


@jit
def _sum_of_squares(x, chunk):  # type: ignore[no-untyped-def]
    total = 0.0
    for start in range(0, x.size, chunk):
        stop = min(start + chunk, x.size)
        a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = 0.0
        whole = stop - (stop - start) % 8
        for i in range(start, whole, 8):
            a0 += numpy.float64(x[i]) * numpy.float64(x[i])
            a1 += numpy.float64(x[i + 1]) * numpy.float64(x[i + 1])
            a2 += numpy.float64(x[i + 2]) * numpy.float64(x[i + 2])
            a3 += numpy.float64(x[i + 3]) * numpy.float64(x[i + 3])
            a4 += numpy.float64(x[i + 4]) * numpy.float64(x[i + 4])
            a5 += numpy.float64(x[i + 5]) * numpy.float64(x[i + 5])
            a6 += numpy.float64(x[i + 6]) * numpy.float64(x[i + 6])
            a7 += numpy.float64(x[i + 7]) * numpy.float64(x[i + 7])
        for i in range(whole, stop):
            a0 += numpy.float64(x[i]) * numpy.float64(x[i])
        total += ((a0 + a1) + (a2 + a3)) + ((a4 + a5) + (a6 + a7))
    return total


def all_finite(x: Array) -> bool:
    """Return whether a flat float32 or float64 array holds no infinity and no NaN."""
    xp = get_array_module(x)
    if xp is not numpy or x.size < _SMALL:
        return bool(all_finite_reference(x))
    _check_flat(x)
    return bool(_all_finite(x, _CHUNK))


def all_finite_reference(x: Array) -> Array:
    """What :func:`all_finite` must equal."""
    return get_array_module(x).isfinite(x).all()


@jit
def _all_finite(x, chunk):  # type: ignore[no-untyped-def]
    for start in range(0, x.size, chunk):
        bad = 0
        for i in range(start, min(start + chunk, x.size)):
            bad += x[i] - x[i] != 0
        if bad:
            return False
    return True


def _compiled(param: Array) -> bool:
    """Return whether the compiled kernel serves: by place and size alone, never by what is loaded."""
    return get_array_module(param) is numpy and param.size >= _SMALL


def _check_flat(*arrays: Array | None) -> None:
    first = arrays[0]
    assert first is not None
    for a in arrays:
        if a is None:
            continue
        if a.dtype != first.dtype or a.dtype.char not in "fd":
            raise TypeError(
                f"flat buffers must all be float32 or all float64, got {first.dtype} and {a.dtype}"
            )
        if a.shape != first.shape or a.ndim != 1 or not a.flags.c_contiguous:
            raise ValueError(
                f"flat buffers must be contiguous and of one size, got shapes {first.shape}, {a.shape}"
            )
