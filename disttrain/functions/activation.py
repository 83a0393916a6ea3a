"""Activation functions, with PyTorch's names and defaults; ``disttrain.nn.functional`` offers them to users."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import dtypes, engine
from disttrain.functions.common import floating, need_tensors, normalize_dim, numpy_names
from disttrain.modes import replayed
from disttrain.ops import activation, piecewise
from disttrain.ops.types import Op
from disttrain.precision import autocasts

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946
"""Where mean 0 and variance 1 are a fixed point (Klambauer et al. 2017, appendix)."""


def _apply(op: Op, name: str, input: Tensor, inplace: bool = False, **options: Any) -> Tensor:
    check_float(name, input)
    if inplace:
        return engine.write_in_place(input, op, **options)
    return engine.apply(op, input, **options)  # type: ignore[no-any-return]


def check_float(name: str, input: Any) -> None:
    """Check that ``input`` is a floating point tensor.

    Raises:
        TypeError: it is no tensor.
        NotImplementedError: it holds integers or booleans.
    """
    if not isinstance(input, engine.Tensor_):
        raise TypeError(
            f"{name}() needs a Tensor, got {type(input).__name__}; convert it with disttrain.tensor()"
        )
    if input._array.dtype.kind not in "fV":
        raise NotImplementedError(
            f"{name}() needs a floating point tensor, got {input.dtype}; convert it with .float()"
        )


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """``max(input, 0)``.

    Raises:
        RuntimeError: ``input`` is boolean.
        TypeError: ``input`` is no Tensor.
    """
    if not isinstance(input, engine.Tensor_):
        need_tensors("relu", input)
    if input.dtype is dtypes.bool_:
        raise RuntimeError("relu() is not defined for booleans; convert the tensor, for example with .int()")
    if inplace:
        return engine.write_in_place(input, activation.relu)
    return engine.apply(activation.relu, input)  # type: ignore[no-any-return]


def relu_(input: Tensor) -> Tensor:
    """:func:`relu` in place."""
    return relu(input, True)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """``input`` where positive, else ``negative_slope * input``."""
    return _apply(activation.leaky_relu, "leaky_relu", input, inplace, negative_slope=negative_slope)


def leaky_relu_(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """:func:`leaky_relu` in place."""
    return leaky_relu(input, negative_slope, True)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """``input`` where positive, else ``alpha * (exp(input) - 1)`` (Clevert et al. 2016)."""
    return _apply(activation.elu, "elu", input, inplace, alpha=alpha)


def elu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    """:func:`elu` in place."""
    return elu(input, alpha, True)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """:func:`elu` with the scales that keep mean 0 and variance 1 (Klambauer et al. 2017)."""
    return _apply(activation.elu, "selu", input, inplace, alpha=SELU_ALPHA, scale=SELU_SCALE)


def selu_(input: Tensor) -> Tensor:
    """:func:`selu` in place."""
    return selu(input, True)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """``input`` where positive, else ``alpha * (exp(input / alpha) - 1)`` (Barron 2017).

    Raises:
        RuntimeError: ``alpha`` is 0.
    """
    if alpha == 0:
        raise RuntimeError("celu(): alpha divides, so it must not be 0")
    return _apply(activation.elu, "celu", input, inplace, alpha=alpha, input_scale=1.0 / alpha)


def celu_(input: Tensor, alpha: float = 1.0) -> Tensor:
    """:func:`celu` in place."""
    return celu(input, alpha, True)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """``input * sigmoid(input)``, also known as swish."""
    return _apply(activation.silu, "silu", input, inplace)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """``input * tanh(softplus(input))`` (Misra 2020)."""
    return _apply(activation.mish, "mish", input, inplace)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """``input * Phi(input)`` (Hendrycks and Gimpel 2016).

    Args:
        input: a floating point tensor.
        approximate: ``"none"``, or ``"tanh"`` for the approximation by tanh.

    Raises:
        RuntimeError: ``approximate`` is something else.
    """
    if approximate not in ("none", "tanh"):
        raise RuntimeError(f'gelu(): approximate must be "none" or "tanh", got {approximate!r}')
    return _apply(activation.gelu, "gelu", input, approximate=approximate)


@autocasts
def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """``log(1 + exp(beta * input)) / beta``, and ``input`` itself where ``beta * input`` is above ``threshold``."""
    return _apply(activation.softplus, "softplus", input, beta=beta, threshold=threshold)


def softsign(input: Tensor) -> Tensor:
    """``input / (1 + |input|)``; integers are converted to the default floating point type."""
    return engine.apply(activation.softsign, floating(input))  # type: ignore[no-any-return]


def tanhshrink(input: Tensor) -> Tensor:
    """``input - tanh(input)``; integers are converted to the default floating point type."""
    input = floating(input)
    return input - engine.apply(activation.tanh, input)  # type: ignore[no-any-return]


def logsigmoid(input: Tensor) -> Tensor:
    """``log(sigmoid(input))``, without overflow."""
    return _apply(activation.logsigmoid, "logsigmoid", input)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """``input`` limited to ``[min_val, max_val]``, with no gradient at the limits.

    Raises:
        ValueError: ``min_val`` is above ``max_val``.
        RuntimeError: ``input`` is boolean.
    """
    if min_val > max_val:
        raise ValueError(f"hardtanh(): min_val {min_val} lies above max_val {max_val}; swap them")
    return _clip("hardtanh", input, min_val, max_val, inplace)


def hardtanh_(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """:func:`hardtanh` in place."""
    return hardtanh(input, min_val, max_val, True)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """``min(max(input, 0), 6)``.

    Raises:
        RuntimeError: ``input`` is boolean.
    """
    return _clip("relu6", input, 0, 6, inplace)


def _clip(name: str, input: Tensor, low: float, high: float, inplace: bool) -> Tensor:
    need_tensors(name, input)
    if input.dtype is dtypes.bool_ or (input.dtype is dtypes.uint8 and low < 0):
        raise RuntimeError(f"{name}() from {low} to {high} is not defined for {input.dtype}")
    if inplace:
        return engine.write_in_place(input, piecewise.hardtanh, low=low, high=high)
    return engine.apply(piecewise.hardtanh, input, low=low, high=high)  # type: ignore[no-any-return]


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """``(input + 3) / 6`` limited to [0, 1]."""
    return _apply(piecewise.hardsigmoid, "hardsigmoid", input, inplace)


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """``input * hardsigmoid(input)`` (Howard et al. 2019)."""
    return _apply(piecewise.hardswish, "hardswish", input, inplace)


def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """``input`` outside of ``[-lambd, lambd]``, else 0."""
    return _apply(piecewise.hardshrink, "hardshrink", input, lambd=lambd)


def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """``input`` moved by ``lambd`` towards 0, and 0 within ``[-lambd, lambd]``.

    Raises:
        RuntimeError: ``lambd`` is negative.
    """
    if not lambd >= 0:
        raise RuntimeError(f"softshrink(): lambd must not be negative, got {lambd}")
    return _apply(piecewise.softshrink, "softshrink", input, lambd=lambd)


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """``input`` where it is above ``threshold``, else ``value``."""
    need_tensors("threshold", input)
    if input.dtype is dtypes.bool_:
        raise NotImplementedError(f"threshold() is not defined for {input.dtype}; convert the tensor first")
    if inplace:
        return engine.write_in_place(input, piecewise.threshold, limit=threshold, value=value)
    return engine.apply(piecewise.threshold, input, limit=threshold, value=value)  # type: ignore[no-any-return]


def threshold_(input: Tensor, threshold: float, value: float) -> Tensor:
    """``input`` where it is above ``threshold``, else ``value``, in place."""
    need_tensors("threshold_", input)
    if input.dtype is dtypes.bool_:
        raise NotImplementedError(f"threshold_() is not defined for {input.dtype}; convert the tensor first")
    return engine.write_in_place(input, piecewise.threshold, limit=threshold, value=value)


@autocasts
def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """``input`` where positive, else ``weight * input`` (He et al. 2015).

    Args:
        input: ``(N, C, ...)``, or any shape if there is one weight.
        weight: one number, or ``(C,)``.

    Raises:
        RuntimeError: other shapes, or dtypes that differ.
    """
    check_float("prelu", input)
    check_float("prelu", weight)
    if input.dtype is not weight.dtype:
        raise RuntimeError(
            f"prelu(): expected one dtype, got input {input.dtype} and weight {weight.dtype}; convert with .to()"
        )
    if weight.ndim > 1:
        raise RuntimeError(f"prelu(): weight must have 0 or 1 dimensions, got shape {tuple(weight.shape)}")
    if weight.ndim and weight.numel() != 1:
        if not input.ndim:
            raise RuntimeError(f"prelu(): {weight.numel()} weights need an input with channels, got shape ()")
        channels = input.shape[1] if input.ndim > 1 else 1
        if channels != weight.numel():
            raise RuntimeError(
                f"prelu(): weight must hold 1 number or one for each of {channels} channels, got {weight.numel()}"
            )
    if weight.ndim:
        shape = [weight.numel() if d == 1 else 1 for d in range(input.ndim)]
        weight = weight.reshape(shape)
    return engine.apply(piecewise.prelu, input, weight)  # type: ignore[no-any-return]


def rrelu(
    input: Tensor,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
    generator: Any = None,
) -> Tensor:
    """``input`` where positive, else ``a * input`` (Xu et al. 2015).

    In training each ``a`` is drawn from ``[lower, upper)``, otherwise it is their mean.

    Raises:
        RuntimeError: ``lower`` is above ``upper``, or one is not finite.
    """
    check_float("rrelu", input)
    if not (math.isfinite(lower) and math.isfinite(upper) and lower <= upper):
        raise RuntimeError(f"rrelu(): lower and upper must be finite and in order, got {lower} and {upper}")
    if not training:
        return leaky_relu(input, (lower + upper) / 2, inplace)
    slopes = _slopes(lower, upper, input.shape, input._array.dtype, generator).to(input.device)
    if inplace:
        return engine.write_in_place(input, piecewise.prelu, slopes)
    return engine.apply(piecewise.prelu, input, slopes)  # type: ignore[no-any-return]


@replayed
def _slopes(
    lower: float, upper: float, shape: tuple[int, ...], kind: np.dtype[Any], generator: Any
) -> Tensor:
    from disttrain import random

    slopes = lower + (upper - lower) * random.uniform(shape, generator)
    return engine.Tensor_._of(np.asarray(slopes, kind))  # type: ignore[no-any-return]


def rrelu_(input: Tensor, lower: float = 1.0 / 8, upper: float = 1.0 / 3, training: bool = False) -> Tensor:
    """:func:`rrelu` in place."""
    return rrelu(input, lower, upper, training, True)


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """The first half along ``dim`` times the sigmoid of the second (Dauphin et al. 2017).

    Raises:
        RuntimeError: ``input`` has no dimensions, or an odd number along ``dim``.
        IndexError: there is no such dimension.
    """
    check_float("glu", input)
    if not input.ndim:
        raise RuntimeError("glu() does not support tensors without dimensions")
    axis = normalize_dim(dim, input.ndim)
    if input.shape[axis] % 2:
        raise RuntimeError(f"glu(): dimension {axis} has size {input.shape[axis]}, which cannot be halved")
    return engine.apply(activation.glu, input, dim=axis)  # type: ignore[no-any-return]


@numpy_names
@autocasts
def softmax(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """``exp(input)`` over its sum along ``dim``.

    Args:
        input: scores.
        dim: the dimension along which the results add up to 1.
        dtype: convert to it first.

    Raises:
        IndexError: there is no such dimension.
    """
    return _along(activation.softmax, "softmax", input, dim, dtype)


@numpy_names
@autocasts
def log_softmax(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """The logarithm of :func:`softmax`, exact where that is near zero; same arguments and errors."""
    return _along(activation.log_softmax, "log_softmax", input, dim, dtype)


def _along(op: Op, name: str, input: Tensor, dim: int, dtype: Any) -> Tensor:
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"{name}(): dim must be an integer, got {dim!r}")
    if dtype is not None:
        input = input.to(dtypes.as_dtype(dtype))
    return _apply(op, name, input, dim=normalize_dim(dim, input._array.ndim))
