"""Where layers on a GPU become one operation, so that what lies between them is not written and read again.

Linear layers with ReLU or GELU behind them, batch normalisation with ReLU behind it (and a sum between), and layer and
root mean square normalisation of a sum. The results are those of the layers one after another, up to rounding. On the
CPU, and where somebody looks at a layer (a hook, another ``forward``, a subclass), the layers are called as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from disttrain import engine
from disttrain.functions.activation import gelu, relu
from disttrain.functions.common import promote
from disttrain.kernels.arrays import on_gpu
from disttrain.nn.activation import GELU, ReLU
from disttrain.nn.functional.linear import linear
from disttrain.nn.linear import Linear
from disttrain.nn.module import Module
from disttrain.nn.normalization import BatchNorm1d, BatchNorm2d, BatchNorm3d, LayerNorm, RMSNorm
from disttrain.ops import norm as norms
from disttrain.ops import perceptron as ops
from disttrain.precision import autocast_enabled, autocasts_as
from disttrain.tensors import Tensor


@autocasts_as("linear")
def perceptron(input: Tensor, *params: Tensor, activation: str, last: bool = False) -> Tensor:
    """Linear maps one after another with an activation between each two; on a GPU as one operation.

    Args:
        input: ``(*, inputs)``.
        params: for each map its weight ``(outputs, inputs)`` and its bias ``(outputs,)``.
        activation: ``"relu"``, ``"gelu"``, or ``"gelu_tanh"``: its approximation by tanh.
        last: apply the activation after the last map too.

    Returns:
        ``(*, outputs of the last map)``.

    Raises:
        RuntimeError: the shapes do not fit, or the dtypes differ.
    """
    if _is_one(input, params):
        return engine.apply(ops.perceptron, input, *params, activation=activation, last=last)  # type: ignore[no-any-return]
    for i, weight, bias in zip(range(len(params)), params[::2], params[1::2], strict=False):
        if i:
            input = _ACTIVATIONS[activation](input)
        input = linear(input, weight, bias)
    return _ACTIVATIONS[activation](input) if last else input


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": relu,
    "gelu": gelu,
    "gelu_tanh": lambda x: gelu(x, "tanh"),
}


def _is_one(x: Tensor, params: Sequence[Tensor]) -> bool:
    """Return whether the arrays are on a GPU and fit; who calls layer by layer says what does not."""
    if not on_gpu(x._array) or x._array.dtype.kind not in "fV" or not x.ndim:
        return False
    features = x.shape[-1]
    for weight, bias in zip(params[::2], params[1::2], strict=True):
        if weight._array.dtype != x._array.dtype or bias._array.dtype != x._array.dtype:
            return False
        if weight.ndim != 2 or weight.shape[1] != features or bias.shape != weight.shape[:1]:
            return False
        features = weight.shape[0]
    return True


def add_norm(norm: Module, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x + residual``, and what ``norm`` makes of it; on a GPU as one operation, if ``norm`` can be."""
    if _adds(norm, x, residual):
        a, b = promote(x, residual)
        if isinstance(norm, LayerNorm) and _fits(norm, a, norm.bias):
            return engine.apply(  # type: ignore[no-any-return]
                *(norms.add_layer_norm, a, b, norm.weight, norm.bias),
                normalized_shape=norm.normalized_shape,
                eps=norm.eps,
            )
        if isinstance(norm, RMSNorm) and _fits(norm, a):
            return engine.apply(  # type: ignore[no-any-return]
                norms.add_rms_norm, a, b, norm.weight, normalized_shape=norm.normalized_shape, eps=norm.eps
            )
    total = x + residual
    return total, norm(total)


def _adds(norm: Module, x: Tensor, residual: Tensor) -> bool:
    """Return whether the arrays are on a GPU and alike, and nobody would notice if the norm was not called."""
    return (
        on_gpu(x._array)
        and on_gpu(residual._array)
        and x.shape == residual.shape
        and (is_plain(norm, LayerNorm) or is_plain(norm, RMSNorm))
    )


def _fits(norm: LayerNorm | RMSNorm, total: Tensor, bias: Tensor | None = None) -> bool:
    """Return whether the norm takes the sum as it is: of a shape and in a type that need no error and no cast."""
    shape, dtype = norm.normalized_shape, total._array.dtype
    kinds = (dtype, np.dtype(np.float32)) if dtype.itemsize == 2 else (dtype,)
    return (
        dtype.kind in "fV"
        and (dtype == np.float32 or not autocast_enabled())
        and tuple(total.shape[-len(shape) :]) == shape
        and all(p is None or p._array.dtype in kinds for p in (norm.weight, bias))
    )


def batch_norm_relu(norm: Module, activation: Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """Return ``activation(norm(x) + residual)``; on a GPU as one operation, if that is BatchNorm and ReLU.

    Args:
        norm: any normalisation by channel.
        activation: what comes last.
        x: ``(N, C, *)``.
        residual: added before the activation; or ``None``.
    """
    alike = residual is None or (residual.shape == x.shape and residual._array.dtype == x._array.dtype)
    if on_gpu(x._array) and alike and _join(norm, activation):
        return norm.normalize(x, residual, relu=True)  # type: ignore[no-any-return]
    out: Tensor = norm(x)
    return activation(out if residual is None else out + residual)  # type: ignore[no-any-return]


def _join(norm: Module, activation: Module) -> bool:
    """Return whether BatchNorm and the ReLU behind it can be one operation, and nobody would notice."""
    kinds = (BatchNorm1d, BatchNorm2d, BatchNorm3d)
    return any(is_plain(norm, kind) for kind in kinds) and is_plain(activation, ReLU)


def run(modules: Sequence[Module], x: Tensor) -> Tensor:
    """Return what modules make of ``x`` one after another, those as one operation that can be."""
    i = 0
    while i < len(modules):
        layers, activation, count = _chain(modules[i:])
        if count > 1:
            params = [p for m in layers for p in (m.weight, m.bias) if p is not None]
            x = perceptron(x, *params, activation=activation, last=count % 2 == 0)
        elif i + 1 < len(modules) and _join(modules[i], modules[i + 1]):
            x, count = batch_norm_relu(modules[i], modules[i + 1], x), 2
        else:
            x, count = modules[i](x), 1
        i += count
    return x


def _chain(modules: Sequence[Module]) -> tuple[list[Linear], str, int]:
    """Return the linear layers that ``modules`` begin with, the one activation behind them, and how many both are."""
    layers: list[Linear] = []
    activation = ""
    for count, module in enumerate(modules):
        if count % 2 == 0:
            if not isinstance(module, Linear) or not is_plain(module, Linear) or module.bias is None:
                return layers, activation, count
            layers.append(module)
        else:
            name = _name(module)
            if not name or activation not in ("", name):
                return layers, activation, count
            activation = name
    return layers, activation, len(modules)


def _name(module: Module) -> str:
    """Return the name of an activation that :func:`perceptron` knows, or an empty one."""
    if is_plain(module, ReLU):
        return "relu"
    if is_plain(module, GELU):
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(str(module.approximate), "")
    return ""


def is_plain(module: Module, kind: type[Module]) -> bool:
    """Return whether a module is of ``kind`` itself, and nobody would notice if it was not called."""
    d = vars(module)
    hooks = ("_pre_hooks", "_hooks", "_backward_hooks", "_backward_pre_hooks")
    return type(module) is kind and "forward" not in d and not any(d.get(name) for name in hooks)
