"""Several linear maps with an activation between them, as one operation: on a GPU each map is one product.

cuBLASLt adds the bias and applies ReLU, or GELU by tanh, before it writes a result, and multiplies by the slope of the
activation and sums the gradient of the bias before it writes a gradient (``disttrain.kernels.gemm``). Where it does
not, as for GELU itself, one kernel adds the bias and applies the activation, and array operations do the rest.
"""

from __future__ import annotations

import math
from typing import Any

from disttrain.kernels import buffers, gelu, gemm
from disttrain.kernels.arrays import on_gpu
from disttrain.ops import activation as activations
from disttrain.ops import linalg
from disttrain.ops.types import Array, Result, call, is_array

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]


def perceptron(x: Array, *params: Array, activation: str, last: bool = False) -> Result:
    """Linear maps one after another, with an activation between each two.

    Args:
        x: (..., inputs); float32 or float64, on a GPU float16 and bfloat16 too.
        params: for each map its weight (outputs, inputs) and its bias (outputs,), of the type of ``x``.
        activation: ``"relu"``, ``"gelu"``, or ``"gelu_tanh"``: its approximation by tanh.
        last: apply the activation after the last map too.

    Returns:
        (..., outputs of the last map).
    """
    weights, biases = params[::2], params[1::2]
    below = _rows(x)
    kept: list[Array | None] = []
    for i, (w, b) in enumerate(zip(weights, biases, strict=True), start=1):
        if i < len(weights) or last:
            below, *needed = _activated(below, w, b, activation)
            kept += below, *needed
        else:
            below = gemm.matmul(below, w.T, bias=b)
    out = below.reshape(*x.shape[:-1], below.shape[-1])
    if last:
        kept[-3] = out  # the array whose changes in place are noticed
    return out, (x, activation, last, *params, *kept), perceptron_vjp


def perceptron_vjp(g: Any, needs: Needs, x: Any, activation: str, last: bool, *saved: Any) -> Grads:
    count = len(needs) // 2  # of the maps
    weights, biases = saved[: 2 * count : 2], saved[1 : 2 * count : 2]
    if not is_array(g):
        return _recorded(g, needs, x, activation, last, weights, biases)
    hidden = saved[2 * count :: 3]
    needed = list(zip(saved[2 * count + 1 :: 3], saved[2 * count + 2 :: 3], strict=True))
    grads: list[Array | None] = [None] * len(needs)
    up = _rows(g)
    if last:
        up = _through(up, activation, _rows(hidden[-1]), *needed[-1])
    total: Array | None = None
    """The sum of the rows of ``up``, where its product has made it."""
    for i in reversed(range(count)):
        below = hidden[i - 1] if i else _rows(x)
        grads[2 * i + 1 : 2 * i + 3] = _param_grads(up, below, total, needs[2 * i + 1 : 2 * i + 3])
        if not any(needs[: 2 * i + 1]):
            break
        if i == 0:
            grads[0] = gemm.matmul(up, weights[0]).reshape(x.shape)
            break
        aux, bias = needed[i - 1]
        fused = None
        if aux is not None and bias is None and on_gpu(up):
            fused = gemm.activated_grad(up, weights[i], aux, activation)
        if fused is not None:
            up, total = fused
        else:
            up, total = _through(gemm.matmul(up, weights[i]), activation, below, aux, bias), None
    return tuple(grads)


def _activated(
    x: Array, weight: Array, bias: Array, activation: str
) -> tuple[Array, Array | None, Array | None]:
    """Return the activation of ``x @ weight.T + bias``, and two things that its gradient needs beside it.

    The second is bits of ReLU, or the argument of GELU; the third is what is still to be added to that argument.
    """
    if on_gpu(x):
        made = gemm.activated(x, weight.T, bias, activation)
        if made is not None:
            return *made, None
    if activation != "relu" and on_gpu(x):
        product = gemm.matmul(x, weight.T)
        return _BIAS_GELU[activation][0](product, bias), product, bias
    argument = gemm.matmul(x, weight.T, bias=bias)
    return _ACTIVATIONS[activation](argument)[0], None if activation == "relu" else argument, None


def _through(g: Array, activation: str, y: Array, aux: Array | None, bias: Array | None) -> Array:
    """Return ``g``, the gradient of an activation's result ``y``, times its slope; see :func:`_activated`."""
    if bias is not None:
        return _BIAS_GELU[activation][1](g, aux, bias)
    (gx,) = _VJPS[activation](g, (True,), y if activation == "relu" else aux)
    return gx


def _param_grads(up: Array, below: Array, total: Array | None, needs: Needs) -> list[Array | None]:
    """Return the gradients of a map's weight and bias, given the map's arguments and the gradient of its results."""
    if needs[0] and needs[1] and total is None and on_gpu(up):
        return list(gemm.weight_grad(up, below))
    return [
        gemm.matmul(up.T, below) if needs[0] else None,
        None if not needs[1] else up.sum(0) if total is None else total,
    ]


def _recorded(
    g: Any,
    needs: Needs,
    x: Any,
    activation: str,
    last: bool,
    weights: tuple[Any, ...],
    biases: tuple[Any, ...],
) -> Grads:
    """Return the gradients as Tensors that have gradients themselves; all hidden values are computed again."""
    below, arguments = [x], []
    active = len(weights) if last else len(weights) - 1
    for w, b in zip(weights[:active], biases[:active], strict=True):
        arguments.append(call(linalg.linear, below[-1], w, b))
        below.append(call(_ACTIVATIONS[activation], arguments[-1]))
    grads: list[Any] = []
    for i in reversed(range(len(weights))):
        if i < active:
            (g,) = _VJPS[activation](g, (True,), below[i + 1] if activation == "relu" else arguments[i])
        asked = (i > 0 or needs[0], *needs[2 * i + 1 : 2 * i + 3])
        g, *own = linalg.linear_vjp(g, asked, below[i], weights[i])
        grads = [*own, *grads]
    return g, *grads


def _rows(x: Array) -> Array:
    return buffers.contiguous(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _gelu_tanh(x: Array) -> Result:
    return activations.gelu(x, approximate="tanh")


_ACTIVATIONS = {"relu": activations.relu, "gelu": activations.gelu, "gelu_tanh": _gelu_tanh}
_VJPS = {"relu": activations.relu_vjp, "gelu": activations.gelu_vjp, "gelu_tanh": activations.gelu_tanh_vjp}
_BIAS_GELU = {
    "gelu": (gelu.bias_gelu, gelu.bias_gelu_grad),
    "gelu_tanh": (gelu.bias_gelu_tanh, gelu.bias_gelu_tanh_grad),
}
"""Kernels for what cuBLASLt does not do: GELU itself, or by tanh where it has no such product."""
