"""Plain and averaged stochastic gradient descent over flat buffers."""

from __future__ import annotations

import numpy

from disttrain.kernels import cuda
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import jit
from disttrain.kernels.optim.common import Extras, check_flat, compiled, launch_flat, step_flat


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
    extras: Extras | None = None,
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
        extras: what mixed precision needs.

    Raises:
        TypeError: arrays that are not float32 or float64, or of different types.
        ValueError: arrays of different sizes, or momentum without a buffer.
    """
    if (momentum_buf is None) != (momentum == 0.0):
        raise ValueError(
            f"momentum_buf must be an array exactly if momentum is not 0, got momentum={momentum}"
        )
    numbers = sgd_scalars(
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        nesterov=nesterov,
        first_step=first_step,
        maximize=maximize,
    )
    if get_array_module(param) is not numpy:
        return launch_flat(_program, "sgd", param, grad, (momentum_buf,), numbers, extras)
    if extras is None:
        return _step(param, grad, momentum_buf, numbers)
    return extras.step(param, grad, lambda p, g: _step(p, g, momentum_buf, numbers))


def sgd_scalars(
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    first_step: bool = False,
    maximize: bool = False,
) -> tuple[float, ...]:
    """Return the numbers that a step takes, given the options of :func:`sgd_step`, for ``Extras.scalars``."""
    keep = 0.0 if first_step else momentum
    add = 1.0 if first_step else 1.0 - dampening
    return lr, momentum, keep, add, weight_decay, -1.0 if maximize else 1.0, float(nesterov)


def _step(param: Array, grad: Array, momentum_buf: Array | None, numbers: tuple[float, ...]) -> None:
    check_flat(param, grad, momentum_buf)
    *values, nesterov = numbers
    T = param.dtype.type
    buf = param[:0] if momentum_buf is None else momentum_buf
    if numbers[2] == 0 and buf.size:
        buf.fill(0)  # 0 * nan would stay
    scalars = (*map(T, values), bool(nesterov))
    if compiled(param):
        _sgd(param, grad, buf, *scalars)
    else:
        with numpy.errstate(all="ignore"):  # compiled code does not warn either
            sgd_step_reference(param, grad, buf, *scalars)


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


def asgd_step(
    param: Array,
    grad: Array,
    ax: Array,
    *,
    eta: float,
    mu: float,
    lambd: float,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """Update ``param`` and its average ``ax`` in place as ``torch.optim.ASGD`` does.

    Args:
        param: flat float32 or float64 array, contiguous; so are ``grad`` (not changed) and ``ax``.
        grad: the gradient.
        ax: the average.
        eta: learning rate of this step.
        mu: weight of the new point in the average; at 1 the average is the new point.
        lambd: factor of the decay of ``param``.
        weight_decay: factor of the L2 penalty.
        maximize: go up instead of down.
    """
    scalars = (eta, 1 - lambd * eta, mu, weight_decay, -1.0 if maximize else 1.0)
    step_flat(_asgd, asgd_step_reference, (param, grad, ax), scalars)


def asgd_step_reference(
    param: Array,
    grad: Array,
    ax: Array,
    eta: float,
    decay: float,
    mu: float,
    weight_decay: float,
    sign: float,
) -> None:
    """What the compiled ASGD step must equal, to the bit."""
    g = grad * sign
    if weight_decay != 0:
        g += weight_decay * param
    param *= decay
    param -= eta * g
    if mu == 1:
        ax[...] = param
    else:
        ax += (param - ax) * mu


@jit
def _asgd(param, grad, ax, eta, decay, mu, weight_decay, sign):  # type: ignore[no-untyped-def]
    for i in range(param.size):
        p = param[i]
        g = grad[i] * sign
        if weight_decay != 0:
            g = g + weight_decay * p
        p = p * decay - eta * g
        param[i] = p
        ax[i] = p if mu == 1 else ax[i] + (p - ax[i]) * mu


_program = cuda.Program(__file__, include="flat.cuh", T=cuda.FLOATS, WIDE_GRAD=(0, 1), VECTOR=(0, 1))
