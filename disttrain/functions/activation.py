"""Activation functions, with PyTorch's names and defaults; ``disttrain.nn.functional`` offers them to users."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disttrain import dtypes, engine
from disttrain.ops import activation
from disttrain.ops.types import Op

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


def _apply(op: Op, name: str, input: Tensor, inplace: bool = False, **options: Any) -> Tensor:
    check_float(name, input)
    if inplace:
        return engine.write_in_place(input, op, **options)
    return engine.apply(op, input, **options)  # type: ignore[no-any-return]


def check_float(name: str, input: Any) -> None:
    """Check that ``input`` is a floating point tensor.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(input, engine.Tensor_):
        raise TypeError(
            f"{name}() needs a Tensor, got {type(input).__name__}; convert it with disttrain.tensor()"
        )
    if input._array.dtype.kind not in "fV":
        raise TypeError(
            f"{name}() needs a floating point tensor, got {input.dtype}; convert it with .float()"
        )


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """``max(input, 0)``."""
    if inplace:
        return engine.write_in_place(input, activation.relu)
    return engine.apply(activation.relu, input)  # type: ignore[no-any-return]


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """``input`` where positive, else ``negative_slope * input``."""
    return _apply(activation.leaky_relu, "leaky_relu", input, inplace, negative_slope=negative_slope)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """``input`` where positive, else ``alpha * (exp(input) - 1)`` (Clevert et al. 2016)."""
    return _apply(activation.elu, "elu", input, inplace, alpha=alpha)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """``input * sigmoid(input)``, also known as swish."""
    return _apply(activation.silu, "silu", input, inplace)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """``input * Phi(input)`` (Hendrycks and Gimpel 2016).

    Args:
        input: a floating point tensor.
        approximate: ``"none"``, or ``"tanh"`` for the approximation by tanh.

    Raises:
        ValueError: ``approximate`` is something else.
    """
    return _apply(activation.gelu, "gelu", input, approximate=approximate)


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """``log(1 + exp(beta * input)) / beta``, and ``input`` itself where ``beta * input`` is above ``threshold``."""
    return _apply(activation.softplus, "softplus", input, beta=beta, threshold=threshold)


def softmax(input: Tensor, dim: int | None = None, dtype: Any = None) -> Tensor:
    """``exp(input)`` over its sum along ``dim``.

    Args:
        input: scores.
        dim: the dimension along which the results add up to 1.
        dtype: convert to it first.

    Raises:
        ValueError: no ``dim``.
        IndexError: there is no such dimension.
    """
    return _along(activation.softmax, "softmax", input, dim, dtype)


def log_softmax(input: Tensor, dim: int | None = None, dtype: Any = None) -> Tensor:
    """The logarithm of :func:`softmax`, exact where that is near zero; same arguments and errors."""
    return _along(activation.log_softmax, "log_softmax", input, dim, dtype)


def _along(op: Op, name: str, input: Tensor, dim: int | None, dtype: Any) -> Tensor:
    if dim is None:
        raise ValueError(
            f"{name}() needs the dimension to sum over, got dim=None; give dim=-1 for the last one"
        )
    return _apply(op, name, input if dtype is None else input.to(dtypes.as_dtype(dtype)), dim=dim)
