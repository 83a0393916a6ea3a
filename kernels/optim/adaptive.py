"""Adagrad, RMSprop and Adadelta over flat buffers: each element divided by the size of its gradients."""

from __future__ import annotations

import math

from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import jit
from disttrain.kernels.optim.common import step_flat


def adagrad_step(
    param: Array,
    grad: Array,
    total: Array,
    *,
    lr: float,
    eps: float,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """Update ``param`` and ``total`` in place as ``torch.optim.Adagrad`` does (Duchi et al., 2011).

    Args:
        param: flat float32 or float64 array, contiguous; so are ``grad`` (not changed) and ``total``.
        grad: the gradient.
        total: sum of the squares of all gradients.
        lr: learning rate of this step.
        eps: added to the root of ``total``.
        weight_decay: factor of the L2 penalty.
        maximize: go up instead of down.
    """
    scalars = (lr, eps, weight_decay, -1.0 if maximize else 1.0)
    step_flat(_adagrad, adagrad_step_reference, (param, grad, total), scalars)


def adagrad_step_reference(
    param: Array, grad: Array, total: Array, lr: float, eps: float, weight_decay: float, sign: float
) -> None:
    """What the compiled Adagrad step must equal, to the bit."""
    g = grad * sign
    if weight_decay != 0:
        g += weight_decay * param
    total += g * g
    param -= lr * g / (get_array_module(param).sqrt(total) + eps)


@jit
def _adagrad(param, grad, total, lr, eps, weight_decay, sign):  # type: ignore[no-untyped-def]
    for i in range(param.size):
        p = param[i]
        g = grad[i] * sign
        if weight_decay != 0:
            g = g + weight_decay * p
        s = total[i] + g * g
        total[i] = s
        param[i] = p - lr * g / (math.sqrt(s) + eps)


def rmsprop_step(
    param: Array,
    grad: Array,
    square_avg: Array,
    grad_avg: Array | None,
    momentum_buf: Array | None,
    *,
    lr: float,
    alpha: float,
    eps: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """Update ``param`` and its buffers in place as ``torch.optim.RMSprop`` does (Hinton, 2012; Graves, 2013).

    Args:
        param: flat float32 or float64 array, contiguous; so are all the others. ``grad`` is not changed.
        grad: the gradient.
        square_avg: running mean of its square.
        grad_avg: running mean of the gradient, if the variance is to be used; else None.
        momentum_buf: the velocity; None without momentum.
        lr: learning rate.
        alpha: decay of the running means.
        eps: added to the root.
        momentum: factor of the velocity.
        weight_decay: factor of the L2 penalty.
        maximize: go up instead of down.
    """
    none = param[:0]
    step_flat(
        _rmsprop,
        rmsprop_step_reference,
        (
            param,
            grad,
            square_avg,
            none if grad_avg is None else grad_avg,
            none if momentum_buf is None else momentum_buf,
        ),
        (lr, alpha, 1 - alpha, eps, momentum, weight_decay, -1.0 if maximize else 1.0),
    )


def rmsprop_step_reference(
    param: Array,
    grad: Array,
    square_avg: Array,
    grad_avg: Array,
    buf: Array,
    lr: float,
    alpha: float,
    one_minus_alpha: float,
    eps: float,
    momentum: float,
    weight_decay: float,
    sign: float,
) -> None:
    """What the compiled RMSprop step must equal, to the bit. Empty buffers stand for those not needed."""
    xp = get_array_module(param)
    g = grad * sign
    if weight_decay != 0:
        g += weight_decay * param
    square_avg *= alpha
    square_avg += one_minus_alpha * g * g
    square = square_avg
    if grad_avg.size:
        if one_minus_alpha < 0.5:  # torch.lerp's two forms
            grad_avg += one_minus_alpha * (g - grad_avg)
        else:
            grad_avg[...] = g - (g - grad_avg) * alpha
        square = square_avg - grad_avg * grad_avg
    root = xp.sqrt(square) + eps
    if buf.size:
        buf *= momentum
        buf += g / root
        param -= lr * buf
    else:
        param -= lr * g / root


@jit
def _rmsprop(  # type: ignore[no-untyped-def]
    param, grad, square_avg, grad_avg, buf, lr, alpha, one_minus_alpha, eps, momentum, weight_decay, sign
):
    centered, has_buf = grad_avg.size > 0, buf.size > 0
    near = one_minus_alpha < 0.5
    for i in range(param.size):
        p = param[i]
        g = grad[i] * sign
        if weight_decay != 0:
            g = g + weight_decay * p
        v = square_avg[i] * alpha + one_minus_alpha * g * g
        square_avg[i] = v
        if centered:
            m = grad_avg[i]
            if near:
                m = m + one_minus_alpha * (g - m)
            else:
                m = g - (g - m) * alpha
            grad_avg[i] = m
            v = v - m * m
        root = math.sqrt(v) + eps
        if has_buf:
            b = buf[i] * momentum + g / root
            buf[i] = b
            param[i] = p - lr * b
        else:
            param[i] = p - lr * g / root


def adadelta_step(
    param: Array,
    grad: Array,
    square_avg: Array,
    acc_delta: Array,
    *,
    lr: float,
    rho: float,
    eps: float,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """Update ``param`` and its buffers in place as ``torch.optim.Adadelta`` does (Zeiler, 2012).

    Args:
        param: flat float32 or float64 array, contiguous; so are all the others. ``grad`` is not changed.
        grad: the gradient.
        square_avg: running mean of its square.
        acc_delta: running mean of the square of the updates.
        lr: factor of the update.
        rho: decay of the running means.
        eps: added under both roots.
        weight_decay: factor of the L2 penalty.
        maximize: go up instead of down.
    """
    scalars = (lr, rho, 1 - rho, eps, weight_decay, -1.0 if maximize else 1.0)
    step_flat(_adadelta, adadelta_step_reference, (param, grad, square_avg, acc_delta), scalars)


def adadelta_step_reference(
    param: Array,
    grad: Array,
    square_avg: Array,
    acc_delta: Array,
    lr: float,
    rho: float,
    one_minus_rho: float,
    eps: float,
    weight_decay: float,
    sign: float,
) -> None:
    """What the compiled Adadelta step must equal, to the bit."""
    xp = get_array_module(param)
    g = grad * sign
    if weight_decay != 0:
        g += weight_decay * param
    square_avg *= rho
    square_avg += one_minus_rho * g * g
    delta = xp.sqrt(acc_delta + eps) / xp.sqrt(square_avg + eps) * g
    acc_delta *= rho
    acc_delta += one_minus_rho * delta * delta
    param -= lr * delta


@jit
def _adadelta(  # type: ignore[no-untyped-def]
    param, grad, square_avg, acc_delta, lr, rho, one_minus_rho, eps, weight_decay, sign
):
    for i in range(param.size):
        p = param[i]
        g = grad[i] * sign
        if weight_decay != 0:
            g = g + weight_decay * p
        v = square_avg[i] * rho + one_minus_rho * g * g
        square_avg[i] = v
        a = acc_delta[i]
        delta = math.sqrt(a + eps) / math.sqrt(v + eps) * g
        acc_delta[i] = a * rho + one_minus_rho * delta * delta
        param[i] = p - lr * delta
