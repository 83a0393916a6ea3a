"""Random numbers written into a tensor, with the names of PyTorch's methods.

``generator=None`` draws from the calling rank's generator; ``disttrain.random`` says what a draw is. Elements are made
in row-major order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import dtypes, engine
from disttrain.functions.common import copy_
from disttrain.functions.random import DIGITS, check_probability, check_std, random_integers
from disttrain.kernels import random as kernels
from disttrain.kernels.arrays import get_array_module
from disttrain.modes import replayed
from disttrain.random import Generator, uniform, words64
from disttrain.random import normal as standard_normal

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


@replayed
def uniform_(input: Tensor, *args: Any, generator: Generator | None = None, **ends: Any) -> Tensor:
    """Write numbers evenly distributed in ``[from, to)``, by default [0, 1), as ``Tensor.uniform_``.

    Raises:
        RuntimeError: the range is upside down or beyond the type.
    """
    low, high = _ends("uniform_", args, ends, {"from": 0.0, "to": 1.0})
    kind = _floats("uniform_", input)
    if not low <= high:
        raise RuntimeError(f"uniform_(): from={low} must not be greater than to={high}")
    largest = _largest(input)
    if not (abs(low) <= largest and abs(high) <= largest):
        raise RuntimeError(f"uniform_(): {input.dtype} does not hold from={low} or to={high}")
    if not high - low <= largest:
        raise RuntimeError(
            f"uniform_(): from={low} and to={high} are further apart than {largest}, the largest {input.dtype}"
        )
    if kind.itemsize == 2:
        kind = np.dtype(np.float32)
    u = uniform(input.shape, generator, kind, input.device)
    values = u * kind.type(high - low) + kind.type(low)
    # NumPy turns arrays without dimensions into scalars
    values = get_array_module(u).asarray(values, input._array.dtype)
    wide = values.astype(np.float32) if values.itemsize == 2 else values
    values[wide >= wide.dtype.type(values.dtype.type(high))] = low  # where rounding reached the end
    return _write(input, values)


def _largest(input: Tensor) -> float:
    kind = np.float32 if input.dtype is dtypes.bfloat16 else input._array.dtype
    return float(np.finfo(kind).max)


def _ends(name: str, args: tuple[Any, ...], given: dict[str, Any], defaults: dict[str, Any]) -> list[Any]:
    """Return arguments of which one is called ``from``, which Python does not let a function name."""
    if len(args) > len(defaults):
        raise TypeError(f"{name}() takes {len(defaults)} arguments, got {len(args)}")
    values = dict(zip(defaults, args, strict=False))
    for key, value in given.items():
        if key not in defaults or key in values:
            raise TypeError(f"{name}() got an unexpected or repeated argument {key!r}")
        values[key] = value
    return [values.get(key, default) for key, default in defaults.items()]


def _floats(name: str, input: Tensor) -> np.dtype[Any]:
    if not input.dtype.is_floating_point:
        raise NotImplementedError(f"{name}() writes floating point numbers, the tensor has {input.dtype}")
    return input._array.dtype  # type: ignore[no-any-return]


def _write(input: Tensor, values: Any) -> Tensor:
    xp = get_array_module(values)
    with np.errstate(over="ignore", invalid="ignore"):
        t: Tensor = engine.Tensor_._of(xp.asarray(values).astype(input._array.dtype, copy=False))
    return copy_(input, t)


@replayed
def normal_(
    input: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None
) -> Tensor:
    """Write normally distributed numbers, as ``Tensor.normal_``.

    Raises:
        RuntimeError: ``std`` is negative.
    """
    kind = _floats("normal_", input)
    check_std("normal_", std)
    z = standard_normal(input.shape, generator, kind, input.device)
    return _write(input, z * z.dtype.type(std) + z.dtype.type(mean))


@replayed
def bernoulli_(input: Tensor, p: Any = 0.5, *, generator: Generator | None = None) -> Tensor:
    """Write ones with probability ``p``, a number or a tensor of probabilities, else zeros, as ``Tensor.bernoulli_``.

    Raises:
        RuntimeError: a probability is not in [0, 1], or the tensor of probabilities does not fit.
    """
    u = uniform(input.shape, generator, np.float64, input.device)
    if not isinstance(p, engine.Tensor_):
        return _write(input, u < check_probability("bernoulli_", p))
    if not p.dtype.is_floating_point:
        raise RuntimeError(f"bernoulli_(): probabilities are floating point numbers, got {p.dtype}")
    chances = p._array.astype(np.float64)
    if not ((chances >= 0) & (chances <= 1)).all():
        raise RuntimeError("bernoulli_(): p holds probabilities, in [0, 1], and one is not")
    try:
        chances = get_array_module(chances).broadcast_to(chances, input.shape)
    except ValueError:
        raise RuntimeError(
            f"bernoulli_(): probabilities of shape {list(p.shape)} do not fit a tensor of {list(input.shape)}"
        ) from None
    return _write(input, u < chances)


@replayed
def random_(input: Tensor, *args: Any, generator: Generator | None = None, **ends: Any) -> Tensor:
    """Write integers evenly distributed in ``[from, to)``, as ``Tensor.random_``; ``random_(to)`` begins at 0.

    By default from 0 to the largest that the type holds; for floating point types to the last that is exact.

    Raises:
        RuntimeError: the range is empty, or beyond the type.
    """
    if len(args) == 1 and not ends:
        args = (0, *args)
    low, high = _ends("random_", args, ends, {"from": 0, "to": None})
    kind = input.dtype
    if high is None:
        if kind.is_floating_point:
            high = (1 << DIGITS[kind]) + 1
        else:
            high = 2 if kind is dtypes.bool_ else int(np.iinfo(kind.numpy).max) + 1
    return _write(input, random_integers("random_", low, high, input.shape, kind, generator, input.device))


@replayed
def exponential_(input: Tensor, lambd: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Write exponentially distributed numbers of rate ``lambd``, as ``Tensor.exponential_``.

    Raises:
        RuntimeError: the rate is not positive.
    """
    _floats("exponential_", input)
    if not lambd > 0:
        raise RuntimeError(f"exponential_(): lambd must be positive, got {lambd}")
    return _write(input, (-kernels.log(_open(input, generator)) / lambd).reshape(input.shape))


def _open(input: Tensor, generator: Generator | None) -> Any:
    return kernels.open_uniform(words64(input.numel(), generator, input.device))


@replayed
def geometric_(input: Tensor, p: float, *, generator: Generator | None = None) -> Tensor:
    """Write how many trials it takes to the first success, of probability ``p`` each, as ``Tensor.geometric_``.

    Raises:
        RuntimeError: ``p`` is not in (0, 1).
    """
    if input.dtype is dtypes.bool_:
        raise NotImplementedError("geometric_() counts trials, the tensor has booleans")
    if not 0 < p < 1:
        raise RuntimeError(f"geometric_(): p must lie between 0 and 1, both excluded, got {p}")
    of_failure = float(kernels.log(np.array([1.0 - p]))[0])
    trials = np.ceil(kernels.log(_open(input, generator)) / of_failure)
    return _write(input, trials.reshape(input.shape))


@replayed
def log_normal_(
    input: Tensor, mean: float = 1.0, std: float = 2.0, *, generator: Generator | None = None
) -> Tensor:
    """Write numbers whose logarithms are normally distributed, as ``Tensor.log_normal_``.

    Raises:
        RuntimeError: ``std`` is not positive.
    """
    _floats("log_normal_", input)
    if not std > 0:
        raise RuntimeError(f"log_normal_(): std must be positive, got {std}")
    z = standard_normal(input.shape, generator, np.float64, input.device)
    return _write(input, kernels.exp(z * float(std) + float(mean)))


@replayed
def cauchy_(
    input: Tensor, median: float = 0.0, sigma: float = 1.0, *, generator: Generator | None = None
) -> Tensor:
    """Write numbers of Cauchy's distribution, as ``Tensor.cauchy_``: the ratio of two normal numbers has it.

    Raises:
        RuntimeError: ``sigma`` is not positive.
    """
    _floats("cauchy_", input)
    if not sigma > 0:
        raise RuntimeError(f"cauchy_(): sigma must be positive, got {sigma}")
    n = input.numel()
    z = standard_normal((2 * n,), generator, np.float64, input.device)
    return _write(input, (float(median) + float(sigma) * (z[:n] / z[n:])).reshape(input.shape))
