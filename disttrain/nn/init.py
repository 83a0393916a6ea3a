"""Functions that fill tensors with their first values, in place, as ``torch.nn.init``.

They are not recorded. ``generator=None`` draws from the calling rank's generator.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import missing, random
from disttrain.engine import no_grad
from disttrain.random import Generator
from disttrain.tensors import Tensor

__all__ = [
    "calculate_gain",
    "constant",
    "constant_",
    "dirac",
    "dirac_",
    "eye",
    "eye_",
    "kaiming_normal",
    "kaiming_normal_",
    "kaiming_uniform",
    "kaiming_uniform_",
    "normal",
    "normal_",
    "ones_",
    "orthogonal",
    "orthogonal_",
    "sparse",
    "sparse_",
    "trunc_normal_",
    "uniform",
    "uniform_",
    "xavier_normal",
    "xavier_normal_",
    "xavier_uniform",
    "xavier_uniform_",
    "zeros_",
]

_GAINS = {"relu": math.sqrt(2.0), "tanh": 5.0 / 3, "selu": 3.0 / 4}
_LINEAR = (
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "sigmoid",
)


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """Return the gain that keeps the variance through a nonlinearity.

    Args:
        nonlinearity: ``"linear"``, ``"conv2d"``, ``"sigmoid"``, ``"tanh"``, ``"relu"``, ``"leaky_relu"``, ``"selu"``.
        param: the negative slope of ``"leaky_relu"``, by default 0.01.

    Raises:
        ValueError: another name.
    """
    if nonlinearity in _LINEAR:
        return 1.0
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        if isinstance(slope, bool) or not isinstance(slope, int | float):
            raise ValueError(f"negative_slope must be a number, got {slope!r}")
        return math.sqrt(2.0 / (1 + slope**2))
    if nonlinearity not in _GAINS:
        raise ValueError(
            f"unsupported nonlinearity {nonlinearity!r}; known are {', '.join([*_LINEAR, 'leaky_relu', *_GAINS])}"
        )
    return _GAINS[nonlinearity]


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Fill with numbers evenly distributed in [a, b)."""
    with no_grad():
        return tensor.uniform_(a, b, generator=generator)


def normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None
) -> Tensor:
    """Fill with normally distributed numbers."""
    with no_grad():
        return tensor.normal_(mean, std, generator=generator)


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
) -> Tensor:
    """Fill with normally distributed numbers, those outside of [a, b] drawn again.

    Raises:
        ValueError: nothing to speak of lies in [a, b].
    """
    below = 0.5 * (math.erf((b - mean) / std / math.sqrt(2)) - math.erf((a - mean) / std / math.sqrt(2)))
    if below < 1e-4:
        raise ValueError(f"trunc_normal_: [{a}, {b}] is too far from mean {mean} with std {std}")
    values = mean + std * random.normal(tensor.shape, generator).reshape(-1)
    while (out := np.flatnonzero((values < a) | (values > b))).size:
        values[out] = mean + std * random.normal(out.shape, generator)
    return _write(tensor, values.reshape(tensor.shape))


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fill with ``val``."""
    with no_grad():
        return tensor.fill_(val)


def zeros_(tensor: Tensor) -> Tensor:
    """Fill with zeros."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Fill with ones."""
    return constant_(tensor, 1.0)


def eye_(tensor: Tensor) -> Tensor:
    """Fill a matrix with the identity.

    Raises:
        ValueError: not a matrix.
    """
    if tensor.ndim != 2:
        raise ValueError(f"eye_: needs a matrix, got shape {tuple(tensor.shape)}")
    return _write(tensor, np.eye(*tensor.shape))


def dirac_(tensor: Tensor, groups: int = 1) -> Tensor:
    """Fill the weight of a convolution so that it passes on as many channels as it can, in each group.

    Raises:
        ValueError: not 3, 4 or 5 dimensions, or outputs that the groups do not divide.
    """
    if tensor.ndim not in (3, 4, 5):
        raise ValueError(
            f"dirac_: needs the 3 to 5 dimensions of a convolution's weight, got shape {tuple(tensor.shape)}"
        )
    if tensor.shape[0] % groups:
        raise ValueError(f"dirac_: groups={groups} must divide the first size, got {tensor.shape[0]}")
    values = np.zeros(tensor.shape)
    outs = tensor.shape[0] // groups
    middle = tuple(n // 2 for n in tensor.shape[2:])
    for g in range(groups):
        for c in range(min(outs, tensor.shape[1])):
            values[(g * outs + c, c, *middle)] = 1
    return _write(tensor, values)


def sparse_(tensor: Tensor, sparsity: float, std: float = 0.01, generator: Generator | None = None) -> Tensor:
    """Fill a matrix normally, with a part ``sparsity`` of each column zero (Martens 2010).

    Raises:
        ValueError: not a matrix.
    """
    if tensor.ndim != 2:
        raise ValueError(f"sparse_: needs a matrix, got shape {tuple(tensor.shape)}")
    rows, columns = tensor.shape
    values = std * random.normal((rows, columns), generator)
    order = np.argsort(random.uniform((rows, columns), generator), axis=0)
    np.put_along_axis(values, order[: math.ceil(sparsity * rows)], 0, axis=0)
    return _write(tensor, values)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Fill evenly in ±gain * sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    fan_in, fan_out = _fans(tensor)
    bound = gain * math.sqrt(6.0 / (fan_in + fan_out))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Fill normally with std gain * sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    fan_in, fan_out = _fans(tensor)
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / (fan_in + fan_out)), generator)


def draw_by_fan_in(weight: Tensor, bias: Tensor | None) -> None:
    """Fill both evenly in ±1 / sqrt(numbers that an output is made of), as linear layers and convolutions begin."""
    kaiming_uniform_(weight, a=math.sqrt(5))  # this slope makes it that bound
    fan_in = math.prod(weight.shape[1:])
    if bias is not None and fan_in:
        uniform_(bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
    elif bias is not None:
        zeros_(bias)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Fill evenly in ±gain * sqrt(3 / fan) (He et al. 2015).

    Args:
        tensor: a weight, (outputs, inputs, ...).
        a: negative slope of the leaky ReLU that follows.
        mode: ``"fan_in"`` keeps the variance forward, ``"fan_out"`` backward.
        nonlinearity: see :func:`calculate_gain`.
        generator: where random numbers come from.

    Raises:
        ValueError: fewer than two dimensions, or an unknown ``mode`` or ``nonlinearity``.
    """
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Fill normally with std gain / sqrt(fan) (He et al. 2015); see :func:`kaiming_uniform_`."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator)


def orthogonal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Fill with a (semi) orthogonal matrix, all dimensions but the first taken as one (Saxe et al. 2014).

    Raises:
        ValueError: fewer than two dimensions.
    """
    if tensor.ndim < 2:
        raise ValueError(f"orthogonal_: needs 2 or more dimensions, got shape {tuple(tensor.shape)}")
    rows, cols = tensor.shape[0], math.prod(tensor.shape[1:])
    flat = random.normal((max(rows, cols), min(rows, cols)), generator).astype(np.float64)
    q, r = np.linalg.qr(flat)
    q *= np.sign(np.diag(r))  # otherwise not evenly distributed (Mezzadri 2007)
    return _write(tensor, gain * (q if rows >= cols else q.T).reshape(tensor.shape))


def _calculate_fan_in_and_fan_out(tensor: Tensor) -> tuple[int, int]:
    """Return how many numbers each output is made of, and how many outputs each input goes to.

    Private in PyTorch, and yet what ``reset_parameters()`` of many layers calls.

    Raises:
        ValueError: the tensor has fewer than two dimensions.
    """
    return _fans(tensor)


def _calculate_correct_fan(tensor: Tensor, mode: str) -> int:
    """Return the fan in or the fan out; private in PyTorch, as :func:`_calculate_fan_in_and_fan_out`.

    Raises:
        ValueError: ``mode`` is neither, in any case of its letters, or the tensor has fewer than two dimensions.
    """
    if mode.lower() not in ("fan_in", "fan_out"):
        raise ValueError(f'mode must be "fan_in" or "fan_out", got {mode!r}')
    return _fans(tensor)[mode.lower() == "fan_out"]


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    fan = _calculate_correct_fan(tensor, mode)
    return calculate_gain(nonlinearity, a) / math.sqrt(fan) if fan else 0.0


def _fans(tensor: Tensor) -> tuple[int, int]:
    """Return how many numbers each output is made of, and how many outputs each input goes to."""
    if tensor.ndim < 2:
        raise ValueError(
            f"fan in and fan out need a tensor of 2 or more dimensions, got shape {tuple(tensor.shape)}"
        )
    window = math.prod(tensor.shape[2:])
    return tensor.shape[1] * window, tensor.shape[0] * window


def _write(tensor: Tensor, values: Any) -> Tensor:
    with no_grad():
        return tensor.copy_(Tensor._of(values).to(tensor.dtype).to(tensor.device))


def _deprecated(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function by the name that it had before in-place functions ended in an underscore."""
    old = function.__name__.removesuffix("_")

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        warnings.warn(
            f"nn.init.{old}() is the old name of nn.init.{function.__name__}(); use that",
            FutureWarning,
            stacklevel=2,
        )
        return function(*args, **kwargs)

    call.__name__ = old
    return call


uniform, normal, constant = _deprecated(uniform_), _deprecated(normal_), _deprecated(constant_)
eye, dirac = _deprecated(eye_), _deprecated(dirac_)
sparse, orthogonal = _deprecated(sparse_), _deprecated(orthogonal_)
xavier_uniform, xavier_normal = _deprecated(xavier_uniform_), _deprecated(xavier_normal_)
kaiming_uniform, kaiming_normal = _deprecated(kaiming_uniform_), _deprecated(kaiming_normal_)


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
