"""The relatives of Adam over flat buffers: Adamax, NAdam and RAdam."""

from __future__ import annotations

import math

from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import jit
from disttrain.kernels.optim.common import step_flat


def adamax_step(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_inf: Array,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """Update ``param`` and its buffers in place as ``torch.optim.Adamax`` does (Kingma and Ba, 2015).

    Args:
        param: flat float32 or float64 array, contiguous; so are all the others. ``grad`` is not changed.
        grad: the gradient.
        exp_avg: first moment.
        exp_inf: largest size of a gradient, fading.
        lr: learning rate.
        beta1: decay of ``exp_avg``.
        beta2: decay of ``exp_inf``.
        eps: added to the size of each gradient.
        step: number of this step, counted from 1.
        weight_decay: factor of the L2 penalty.
        maximize: go up instead of down.
    """
    scalars = (
        beta1,
        1 - beta1,
        beta2,
        eps,
        lr / (1 - beta1**step),
        weight_decay,
        -1.0 if maximize else 1.0,
    )
    step_flat(_adamax, adamax_step_reference, (param, grad, exp_avg, exp_inf), scalars)


def adamax_step_reference(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_inf: Array,
    beta1: float,
    one_minus_beta1: float,
    beta2: float,
    eps: float,
    step_size: float,
    weight_decay: float,
    sign: float,
) -> None:
    """What the compiled Adamax step must equal, to the bit."""
    xp = get_array_module(param)
    g = grad * sign
    if weight_decay != 0:
        g += weight_decay * param
    _lerp(exp_avg, g, beta1, one_minus_beta1)
    exp_inf *= beta2
    xp.maximum(exp_inf, xp.abs(g) + eps, out=exp_inf)
    param -= step_size * exp_avg / exp_inf


@jit
def _adamax(  # type: ignore[no-untyped-def]
    param, grad, exp_avg, exp_inf, beta1, one_minus_beta1, beta2, eps, step_size, weight_decay, sign
):
    near = one_minus_beta1 < 0.5
    for i in range(param.size):
        p = param[i]
        g = grad[i] * sign
        if weight_decay != 0:
            g = g + weight_decay * p
        m = exp_avg[i]
        if near:
            m = m + one_minus_beta1 * (g - m)
        else:
            m = g - (g - m) * beta1
        exp_avg[i] = m
        top = exp_inf[i] * beta2
        size = abs(g) + eps
        if size > top or size != size:  # as numpy.maximum: NaN wins
            top = size
        exp_inf[i] = top
        param[i] = p - step_size * m / top


def nadam_step(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    grad_factor: float,
    avg_factor: float,
    step: int,
    weight_decay: float = 0.0,
    decay: float = 1.0,
    maximize: bool = False,
) -> None:
    """Update ``param`` and the moments in place as ``torch.optim.NAdam`` does (Dozat, 2016).

    Args:
        param: flat float32 or float64 array, contiguous; so are all the others. ``grad`` is not changed.
        grad: the gradient.
        exp_avg: first moment.
        exp_avg_sq: second moment.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        grad_factor: factor of the gradient in the step, learning rate and momentum schedule included.
        avg_factor: factor of the first moment in the step.
        step: number of this step, counted from 1.
        weight_decay: factor of the L2 penalty.
        decay: factor of ``param`` before the step.
        maximize: go up instead of down.
    """
    scalars = (
        beta1,
        1 - beta1,
        beta2,
        1 - beta2,
        eps,
        grad_factor,
        avg_factor,
        1 - beta2**step,
        weight_decay,
        decay,
        -1.0 if maximize else 1.0,
    )
    step_flat(_nadam, nadam_step_reference, (param, grad, exp_avg, exp_avg_sq), scalars)


def nadam_step_reference(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    beta1: float,
    one_minus_beta1: float,
    beta2: float,
    one_minus_beta2: float,
    eps: float,
    grad_factor: float,
    avg_factor: float,
    correction2: float,
    weight_decay: float,
    decay: float,
    sign: float,
) -> None:
    """What the compiled NAdam step must equal, to the bit."""
    g = grad * sign
    if decay != 1:
        param *= decay
    if weight_decay != 0:
        g += weight_decay * param
    _lerp(exp_avg, g, beta1, one_minus_beta1)
    exp_avg_sq *= beta2
    exp_avg_sq += one_minus_beta2 * g * g
    root = get_array_module(param).sqrt(exp_avg_sq / correction2) + eps
    param -= grad_factor * g / root
    param -= avg_factor * exp_avg / root


@jit
def _nadam(  # type: ignore[no-untyped-def]
    param, grad, exp_avg, exp_avg_sq, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, grad_factor,
    avg_factor, correction2, weight_decay, decay, sign,
):  # fmt: skip
    near = one_minus_beta1 < 0.5
    for i in range(param.size):
        p = param[i]
        g = grad[i] * sign
        if decay != 1:
            p = p * decay
        if weight_decay != 0:
            g = g + weight_decay * p
        m = exp_avg[i]
        if near:
            m = m + one_minus_beta1 * (g - m)
        else:
            m = g - (g - m) * beta1
        v = exp_avg_sq[i] * beta2 + one_minus_beta2 * g * g
        exp_avg[i] = m
        exp_avg_sq[i] = v
        root = math.sqrt(v / correction2) + eps
        param[i] = (p - grad_factor * g / root) - avg_factor * m / root


def radam_step(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    weight_decay: float = 0.0,
    decay: float = 1.0,
    maximize: bool = False,
) -> None:
    """Update ``param`` and the moments in place as ``torch.optim.RAdam`` does (Liu et al., 2020).

    Args:
        param: flat float32 or float64 array, contiguous; so are all the others. ``grad`` is not changed.
        grad: the gradient.
        exp_avg: first moment.
        exp_avg_sq: second moment.
        lr: learning rate.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        step: number of this step, counted from 1.
        weight_decay: factor of the L2 penalty.
        decay: factor of ``param`` before the step.
        maximize: go up instead of down.
    """
    correction2 = 1 - beta2**step
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / correction2
    rectified = length > 5
    factor = (
        math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
        if rectified
        else 1.0
    )
    scalars = (
        beta1,
        1 - beta1,
        beta2,
        1 - beta2,
        eps,
        lr,
        1 - beta1**step,
        math.sqrt(correction2),
        factor,
        weight_decay,
        decay,
        -1.0 if maximize else 1.0,
        rectified,
    )
    step_flat(_radam, radam_step_reference, (param, grad, exp_avg, exp_avg_sq), scalars)


def radam_step_reference(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    beta1: float,
    one_minus_beta1: float,
    beta2: float,
    one_minus_beta2: float,
    eps: float,
    lr: float,
    correction1: float,
    root_correction2: float,
    factor: float,
    weight_decay: float,
    decay: float,
    sign: float,
    rectified: bool,
) -> None:
    """What the compiled RAdam step must equal, to the bit."""
    g = grad * sign
    if decay != 1:
        param *= decay
    if weight_decay != 0:
        g += weight_decay * param
    _lerp(exp_avg, g, beta1, one_minus_beta1)
    exp_avg_sq *= beta2
    exp_avg_sq += one_minus_beta2 * g * g
    update = exp_avg / correction1 * lr
    if rectified:
        update *= root_correction2 / (get_array_module(param).sqrt(exp_avg_sq) + eps)
        update *= factor
    param -= update


@jit
def _radam(  # type: ignore[no-untyped-def]
    param, grad, exp_avg, exp_avg_sq, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, lr, correction1,
    root_correction2, factor, weight_decay, decay, sign, rectified,
):  # fmt: skip
    near = one_minus_beta1 < 0.5
    for i in range(param.size):
        p = param[i]
        g = grad[i] * sign
        if decay != 1:
            p = p * decay
        if weight_decay != 0:
            g = g + weight_decay * p
        m = exp_avg[i]
        if near:
            m = m + one_minus_beta1 * (g - m)
        else:
            m = g - (g - m) * beta1
        v = exp_avg_sq[i] * beta2 + one_minus_beta2 * g * g
        exp_avg[i] = m
        exp_avg_sq[i] = v
        update = m / correction1 * lr
        if rectified:
            update = update * (root_correction2 / (math.sqrt(v) + eps)) * factor
        param[i] = p - update


def _lerp(mean: Array, g: Array, beta: float, one_minus_beta: float) -> None:
    """Move ``mean`` towards ``g``, by that of torch.lerp's two forms which rounds less."""
    if one_minus_beta < 0.5:
        mean += one_minus_beta * (g - mean)
    else:
        mean[...] = g - (g - mean) * beta
