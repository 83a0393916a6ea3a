"""Several linear maps with an activation between them, as one operation: on a GPU each map is one product.

cuBLASLt adds the bias and applies the activation before it writes a result, and multiplies by the slope of the
activation and sums the gradient of the bias before it writes a gradient (``disttrain.kernels.gemm``). Where it does
not, array operations do.
"""

from __future__ import annotations

import math
from typing import Any

from disttrain.kernels import gemm
from disttrain.kernels.arrays import on_gpu
from disttrain.ops import activation as activations
from disttrain.ops import linalg
from disttrain.ops.types import Array, Result, call, get_array_module, is_array

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]


def perceptron(x: Array, *params: Array, activation: str) -> Result:
    """Linear maps one after another, with an activation between each two (not after the last).

    Args:
        x: (..., inputs); float32 or float64, on a GPU float16 and bfloat16 too.
        params: for each map its weight (outputs, inputs) and its bias (outputs,), of the type of ``x``.
        activation: ``"relu"``, or ``"gelu"`` by its approximation by tanh.

    Returns:
        (..., outputs of the last map).
    """
    weights, biases = params[::2], params[1::2]
    below = _rows(x)
    kept: list[Array | None] = []
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        made = gemm.activated(below, w.T, b, activation) if on_gpu(below) else None
        if made is None:
            argument = gemm.matmul(below, w.T, bias=b)
            below = _ACTIVATIONS[activation](argument)[0]
            made = below, None if activation == "relu" else argument
        below = made[0]
        kept += made
    out = gemm.matmul(below, weights[-1].T, bias=biases[-1])
    saved = (x, activation, *params, *kept)
    return out.reshape(*x.shape[:-1], out.shape[-1]), saved, perceptron_vjp


def perceptron_vjp(g: Any, needs: Needs, x: Any, activation: str, *saved: Any) -> Grads:
    count = len(needs) // 2  # of the maps
    weights, biases = saved[: 2 * count : 2], saved[1 : 2 * count : 2]
    if not is_array(g):
        return _recorded(g, needs, x, activation, weights, biases)
    hidden, aux = saved[2 * count :: 2], saved[2 * count + 1 :: 2]
    grads: list[Array | None] = [None] * len(needs)
    up = _rows(g)
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
        fused = None
        if on_gpu(up) and aux[i - 1] is not None:
            fused = gemm.activated_grad(up, weights[i], aux[i - 1], activation)
        if fused is not None:
            up, total = fused
        else:
            argument = below if activation == "relu" else aux[i - 1]
            (up,), total = _VJPS[activation](gemm.matmul(up, weights[i]), (True,), argument), None
    return tuple(grads)


def _param_grads(up: Array, below: Array, total: Array | None, needs: Needs) -> list[Array | None]:
    """Return the gradients of a map's weight and bias, given the map's arguments and the gradient of its results."""
    if needs[0] and needs[1] and total is None and on_gpu(up):
        return list(gemm.weight_grad(up, below))
    return [
        gemm.matmul(up.T, below) if needs[0] else None,
        None if not needs[1] else up.sum(0) if total is None else total,
    ]


def _recorded(
    g: Any, needs: Needs, x: Any, activation: str, weights: tuple[Any, ...], biases: tuple[Any, ...]
) -> Grads:
    """Return the gradients as Tensors that have gradients themselves; all hidden values are computed again."""
    below, arguments = [x], []
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        arguments.append(call(linalg.linear, below[-1], w, b))
        below.append(call(_ACTIVATIONS[activation], arguments[-1]))
    grads: list[Any] = []
    for i in reversed(range(len(weights))):
        asked = (i > 0 or needs[0], *needs[2 * i + 1 : 2 * i + 3])
        g, *own = linalg.linear_vjp(g, asked, below[i], weights[i])
        grads = [*own, *grads]
        if i:
            (g,) = _VJPS[activation](g, (True,), below[i] if activation == "relu" else arguments[i - 1])
    return g, *grads


def _rows(x: Array) -> Array:
    return get_array_module(x).ascontiguousarray(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _gelu(x: Array) -> Result:
    return activations.gelu(x, approximate="tanh")


_ACTIVATIONS = {"relu": activations.relu, "gelu": _gelu}
_VJPS = {"relu": activations.relu_vjp, "gelu": activations.gelu_tanh_vjp}
