"""Rprop and Lion over flat buffers: steps that use the signs of gradients and not their sizes."""

from __future__ import annotations

from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import jit
from disttrain.kernels.optim.common import step_flat


def rprop_step(
    param: Array,
    grad: Array,
    prev: Array,
    step_size: Array,
    *,
    etas: tuple[float, float],
    step_sizes: tuple[float, float],
    maximize: bool = False,
) -> None:
    """Update ``param`` and its buffers in place as ``torch.optim.Rprop`` does (Riedmiller and Braun, 1993).

    Args:
        param: flat float32 or float64 array, contiguous; so are all the others. ``grad`` is not changed.
        grad: the gradient.
        prev: the gradient before, 0 where the sign had changed.
        step_size: how far each element moves.
        etas: factors of the step size where the sign changed, and where it did not.
        step_sizes: smallest and largest step size.
        maximize: go up instead of down.
    """
    scalars = (*etas, *step_sizes, -1.0 if maximize else 1.0)
    step_flat(_rprop, rprop_step_reference, (param, grad, prev, step_size), scalars)


def rprop_step_reference(
    param: Array,
    grad: Array,
    prev: Array,
    step_size: Array,
    less: float,
    more: float,
    smallest: float,
    largest: float,
    sign: float,
) -> None:
    """What the compiled Rprop step must equal, to the bit."""
    xp = get_array_module(param)
    g = grad * sign
    agreement = g * prev
    step_size[agreement > 0] *= more
    step_size[agreement < 0] *= less
    xp.minimum(xp.maximum(step_size, smallest), largest, out=step_size)
    g[agreement < 0] = 0
    prev[...] = g
    g[g > 0] = 1
    g[g < 0] = -1
    param -= g * step_size


@jit
def _rprop(  # type: ignore[no-untyped-def]
    param, grad, prev, step_size, less, more, smallest, largest, sign
):
    zero = param.dtype.type(0)  # an integer would make the arithmetic float64
    for i in range(param.size):
        g = grad[i] * sign
        agreement = g * prev[i]
        s = step_size[i]
        if agreement > 0:
            s = s * more
        if agreement < 0:
            s = s * less
            g = zero
        if s < smallest:
            s = smallest
        if s > largest:
            s = largest
        step_size[i] = s
        prev[i] = g
        if g > 0:
            param[i] -= s
        elif g < 0:
            param[i] += s
        elif g != g:
            param[i] = g


def lion_step(
    param: Array,
    grad: Array,
    exp_avg: Array,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """Update ``param`` and ``exp_avg`` in place as Lion does (Chen et al., 2023, algorithm 2).

    Args:
        param: flat float32 or float64 array, contiguous; so are ``grad`` (not changed) and ``exp_avg``.
        grad: the gradient.
        exp_avg: running mean of the gradient.
        lr: how far each element moves.
        beta1: part of ``exp_avg`` in the direction of this step.
        beta2: decay of ``exp_avg``.
        weight_decay: factor of the decay of the parameters.
        maximize: go up instead of down.
    """
    scalars = (lr, beta1, 1 - beta1, beta2, 1 - beta2, weight_decay, -1.0 if maximize else 1.0)
    step_flat(_lion, lion_step_reference, (param, grad, exp_avg), scalars)


def lion_step_reference(
    param: Array,
    grad: Array,
    exp_avg: Array,
    lr: float,
    beta1: float,
    one_minus_beta1: float,
    beta2: float,
    one_minus_beta2: float,
    weight_decay: float,
    sign: float,
) -> None:
    """What the compiled Lion step must equal, to the bit."""
    g = grad * sign
    direction = get_array_module(param).sign(beta1 * exp_avg + one_minus_beta1 * g)
    param -= lr * (direction + weight_decay * param)
    exp_avg[...] = beta2 * exp_avg + one_minus_beta2 * g


@jit
def _lion(  # type: ignore[no-untyped-def]
    param, grad, exp_avg, lr, beta1, one_minus_beta1, beta2, one_minus_beta2, weight_decay, sign
):
    one = param.dtype.type(1)
    for i in range(param.size):
        p = param[i]
        g = grad[i] * sign
        m = exp_avg[i]
        c = beta1 * m + one_minus_beta1 * g
        direction = c
        if c > 0:
            direction = one
        if c < 0:
            direction = -one
        param[i] = p - lr * (direction + weight_decay * p)
        exp_avg[i] = beta2 * m + one_minus_beta2 * g
