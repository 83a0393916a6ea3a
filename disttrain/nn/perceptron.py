"""Where layers on a GPU become one operation: linear layers with ReLU, or GELU by tanh, between them.

The results are those of the layers one after another, up to rounding. On the CPU, and where somebody looks at a layer
(a hook, another ``forward``, a subclass), the layers are called as ever.
"""

from __future__ import annotations

from collections.abc import Sequence

from disttrain import engine
from disttrain.functions.activation import gelu, relu
from disttrain.kernels.arrays import on_gpu
from disttrain.nn.activation import GELU, ReLU
from disttrain.nn.functional.linear import linear
from disttrain.nn.linear import Linear
from disttrain.nn.module import Module
from disttrain.ops import perceptron as ops
from disttrain.precision import autocasts_as
from disttrain.tensors import Tensor


@autocasts_as("linear")
def perceptron(input: Tensor, *params: Tensor, activation: str) -> Tensor:
    """Linear maps one after another with an activation between each two; on a GPU as one operation.

    Args:
        input: ``(*, inputs)``.
        params: for each map its weight ``(outputs, inputs)`` and its bias ``(outputs,)``.
        activation: ``"relu"``, or ``"gelu"`` by its approximation by tanh.

    Returns:
        ``(*, outputs of the last map)``.

    Raises:
        RuntimeError: the shapes do not fit, or the dtypes differ.
    """
    if _is_one(input, params):
        return engine.apply(ops.perceptron, input, *params, activation=activation)  # type: ignore[no-any-return]
    for i, weight, bias in zip(range(len(params)), params[::2], params[1::2], strict=False):
        if i:
            input = relu(input) if activation == "relu" else gelu(input, "tanh")
        input = linear(input, weight, bias)
    return input


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


def run(modules: Sequence[Module], x: Tensor) -> Tensor:
    """Return what modules make of ``x`` one after another, those as one operation that can be."""
    i = 0
    while i < len(modules):
        layers, activation = _chain(modules[i:])
        if len(layers) > 1:
            params = [p for m in layers for p in (m.weight, m.bias) if p is not None]
            x = perceptron(x, *params, activation=activation)
        else:
            x = modules[i](x)
        i += max(2 * len(layers) - 1, 1)
    return x


def _chain(modules: Sequence[Module]) -> tuple[list[Linear], str]:
    """Return the linear layers that ``modules`` begin with, all with one activation between, and its name."""
    layers: list[Linear] = []
    between = ""
    for layer, after in zip(modules[::2], [*modules[1::2], None], strict=False):
        if not isinstance(layer, Linear) or not is_plain(layer, Linear) or layer.bias is None:
            break
        layers.append(layer)
        name = _name(after)
        if not name or between not in ("", name):
            break
        between = name
    return layers, between


def _name(module: Module | None) -> str:
    """Return the name of an activation that products can apply, or an empty one."""
    if module is not None and is_plain(module, ReLU):
        return "relu"
    if module is not None and is_plain(module, GELU) and module.approximate == "tanh":
        return "gelu"
    return ""


def is_plain(module: Module, kind: type[Module]) -> bool:
    """Return whether a module is of ``kind`` itself, and nobody would notice if it was not called."""
    d = vars(module)
    hooks = ("_pre_hooks", "_hooks", "_backward_hooks", "_backward_pre_hooks")
    return type(module) is kind and "forward" not in d and not any(d.get(name) for name in hooks)
