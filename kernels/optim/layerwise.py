"""LARS and LAMB over flat buffers: steps whose length is set by the norms of each parameter.

Norms are added up in float64, in an order that depends on the machine's vectors only, so that all ranks (of one kind
of device) step alike.
"""

from __future__ import annotations

import math

import numpy

from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import jit
from disttrain.kernels.optim.common import check_flat

_SUMS = {"reassoc", "contract", "nsz"}


def lars_step(
    param: Array,
    grad: Array,
    velocity: Array,
    ends: list[int],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float,
    maximize: bool = False,
) -> None:
    """Update ``param`` and ``velocity`` in place as LARS does (You, Gitman and Ginsburg, 2017, algorithm 1).

    Args:
        param: flat float32 or float64 array, contiguous; so are ``grad`` (not changed) and ``velocity``.
        grad: the gradient.
        velocity: the steps before, fading.
        ends: where each parameter ends in ``param``.
        lr: global learning rate.
        momentum: factor of the velocity.
        weight_decay: factor of the L2 penalty.
        trust_coefficient: how far a parameter moves at most, as a part of its norm.
        maximize: go up instead of down.
    """
    check_flat(param, grad, velocity)
    sign = -1.0 if maximize else 1.0
    scalars = (lr, momentum, weight_decay, trust_coefficient, sign)
    if get_array_module(param) is numpy:
        _lars(param, grad, velocity, numpy.array(ends), *scalars)
    else:
        lars_step_reference(param, grad, velocity, ends, *scalars)


def lars_step_reference(
    param: Array,
    grad: Array,
    velocity: Array,
    ends: list[int],
    lr: float,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float,
    sign: float,
) -> None:
    """What the compiled LARS step must equal up to rounding."""
    T = param.dtype.type
    for begin, end in zip([0, *ends], ends, strict=False):
        w, v = param[begin:end], velocity[begin:end]
        g = grad[begin:end] * T(sign)
        local = _lars_rate(_norm(w), _norm(g), weight_decay, trust_coefficient)
        v *= T(momentum)
        v += T(lr * local) * (g + T(weight_decay) * w)
        w -= v


def _lars_rate(w: float, g: float, weight_decay: float, trust_coefficient: float) -> float:
    """Return a parameter's own learning rate from its norm and that of its gradient; 1 if one of them is 0."""
    return trust_coefficient * w / (g + weight_decay * w) if w > 0 and g > 0 else 1.0


@jit(fastmath=_SUMS)
def _lars(  # type: ignore[no-untyped-def]
    param, grad, velocity, ends, lr, momentum, weight_decay, trust_coefficient, sign
):
    begin = 0
    for end in ends:
        x, d, old = param[begin:end], grad[begin:end], velocity[begin:end]
        ww = 0.0
        gg = 0.0
        for i in range(x.size):
            w, g = numpy.float64(x[i]), numpy.float64(d[i])
            ww += w * w
            gg += g * g
        local = 1.0
        if ww > 0 and gg > 0:
            local = trust_coefficient * math.sqrt(ww) / (math.sqrt(gg) + weight_decay * math.sqrt(ww))
        kind = param.dtype.type
        rate, keep, l2, s = kind(lr * local), kind(momentum), kind(weight_decay), kind(sign)
        for i in range(x.size):
            p = x[i]
            v = old[i] * keep + rate * (d[i] * s + l2 * p)
            old[i] = v
            x[i] = p - v
        begin = end


def lamb_step(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    ends: list[int],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    maximize: bool = False,
) -> None:
    """Update ``param`` and the moments in place as LAMB does (You et al., 2020, algorithm 2).

    Args:
        param: flat float32 or float64 array, contiguous; so are all the others. ``grad`` is not changed.
        grad: the gradient.
        exp_avg: first moment.
        exp_avg_sq: second moment.
        ends: where each parameter ends in ``param``.
        lr: learning rate.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: part of the parameter that is added to its direction.
        step: number of this step, counted from 1.
        maximize: go up instead of down.
    """
    check_flat(param, grad, exp_avg, exp_avg_sq)
    T = param.dtype.type
    scalars = (
        *(T(beta1), T(1 - beta1), T(beta2), T(1 - beta2), T(eps), T(weight_decay)),
        *(T(1 - beta1**step), T(1 - beta2**step), T(-1.0 if maximize else 1.0), lr),
    )
    if get_array_module(param) is numpy:
        _lamb(param, grad, exp_avg, exp_avg_sq, numpy.array(ends), *scalars)
    else:
        lamb_step_reference(param, grad, exp_avg, exp_avg_sq, ends, *scalars)


def lamb_step_reference(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    ends: list[int],
    beta1: float,
    one_minus_beta1: float,
    beta2: float,
    one_minus_beta2: float,
    eps: float,
    weight_decay: float,
    correction1: float,
    correction2: float,
    sign: float,
    lr: float,
) -> None:
    """What the compiled LAMB step must equal up to rounding."""
    g = grad * sign
    exp_avg[...] = beta1 * exp_avg + one_minus_beta1 * g
    exp_avg_sq[...] = beta2 * exp_avg_sq + one_minus_beta2 * g * g
    root = get_array_module(param).sqrt(exp_avg_sq / correction2) + eps
    update = exp_avg / correction1 / root + weight_decay * param
    for begin, end in zip([0, *ends], ends, strict=False):
        w, u = param[begin:end], update[begin:end]
        norm_w, norm_u = _norm(w), _norm(u)
        trust = norm_w / norm_u if norm_w > 0 and norm_u > 0 else 1.0
        w -= param.dtype.type(lr * trust) * u


@jit(fastmath=_SUMS)
def _lamb(  # type: ignore[no-untyped-def]
    param, grad, exp_avg, exp_avg_sq, ends, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay,
    correction1, correction2, sign, lr,
):  # fmt: skip
    begin = 0
    for end in ends:
        x, d, first, second = param[begin:end], grad[begin:end], exp_avg[begin:end], exp_avg_sq[begin:end]
        ww = 0.0
        uu = 0.0
        for i in range(x.size):
            g = d[i] * sign
            m = beta1 * first[i] + one_minus_beta1 * g
            v = beta2 * second[i] + one_minus_beta2 * g * g
            first[i] = m
            second[i] = v
            p = x[i]
            u = m / correction1 / (math.sqrt(v / correction2) + eps) + weight_decay * p
            w64, u64 = numpy.float64(p), numpy.float64(u)
            ww += w64 * w64
            uu += u64 * u64
        trust = 1.0
        if ww > 0 and uu > 0:
            trust = math.sqrt(ww) / math.sqrt(uu)
        rate = param.dtype.type(lr * trust)
        for i in range(x.size):  # the direction again: quicker than to keep it
            root = math.sqrt(second[i] / correction2) + eps
            x[i] -= rate * (first[i] / correction1 / root + weight_decay * x[i])
        begin = end


def _norm(x: Array) -> float:
    xp = get_array_module(x)
    return math.sqrt(float(xp.square(x, dtype=xp.float64).sum()))
