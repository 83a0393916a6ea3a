"""Adam and AdamW over flat buffers."""

from __future__ import annotations

import math

import numpy

from disttrain.kernels import cuda
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import jit
from disttrain.kernels.optim.common import Extras, check_flat, compiled, launch_flat
from disttrain.kernels.optim.folds import numbers_on_gpu


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
    extras: Extras | None = None,
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
        extras: what mixed precision needs.

    Raises:
        TypeError: arrays that are not float32 or float64, or of different types.
        ValueError: arrays of different sizes, or a step below 1.
    """
    if step < 1:
        raise ValueError(f"step counts from 1, got {step}")
    numbers = adam_scalars(
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        decoupled=decoupled,
        step=step,
        maximize=maximize,
    )
    if get_array_module(param) is not numpy:
        states = exp_avg, exp_avg_sq, max_exp_avg_sq
        extras = numbers_on_gpu(numbers, extras, at=5, adam=True, tried=step, lr=lr, beta1=beta1, beta2=beta2)
        return launch_flat(_program, "adam", param, grad, states, numbers, extras)
    if extras is None:
        return _step(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, numbers)
    return extras.step(param, grad, lambda p, g: _step(p, g, exp_avg, exp_avg_sq, max_exp_avg_sq, numbers))


def adam_scalars(
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    step: int,
    maximize: bool = False,
) -> tuple[float, ...]:
    """Return the numbers that a step takes, given the options of :func:`adam_step`, for ``Extras.scalars``."""
    return (
        beta1,
        1 - beta1,
        beta2,
        1 - beta2,
        eps,
        lr / (1 - beta1**step),
        math.sqrt(1 - beta2**step),
        0.0 if decoupled else weight_decay,
        1 - lr * weight_decay if decoupled else 1.0,
        -1.0 if maximize else 1.0,
    )


def _step(
    param: Array,
    grad: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    max_exp_avg_sq: Array | None,
    numbers: tuple[float, ...],
) -> None:
    check_flat(param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq)
    scalars = map(param.dtype.type, numbers)
    largest = param[:0] if max_exp_avg_sq is None else max_exp_avg_sq
    if compiled(param):
        _adam(param, grad, exp_avg, exp_avg_sq, largest, *scalars)
    else:
        with numpy.errstate(all="ignore"):  # compiled code does not warn either
            adam_step_reference(param, grad, exp_avg, exp_avg_sq, largest, *scalars)


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
    step_size, eps = step_size * root_correction, eps * root_correction
    param -= step_size * exp_avg / (xp.sqrt(second) + eps)


@jit
def _adam(  # type: ignore[no-untyped-def]
    param, grad, exp_avg, exp_avg_sq, largest, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, step_size,
    root_correction, l2, decay, sign,
):  # fmt: skip
    amsgrad = largest.size > 0
    near = one_minus_beta1 < 0.5
    # In place of a division for each element.
    step_size, eps = step_size * root_correction, eps * root_correction
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
        param[i] = p - step_size * m / (math.sqrt(v) + eps)


_program = cuda.Program(__file__, include="flat.cuh", T=cuda.FLOATS, WIDE_GRAD=(0, 1), VECTOR=(0, 1))
