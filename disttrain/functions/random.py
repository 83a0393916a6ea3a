"""Random tensors, with PyTorch's names: made anew, or like others.

``generator=None`` draws from the calling rank's generator; ``disttrain.random`` says what a draw is. Elements are made
in row-major order, on the device that the tensor is for, and are the same on all. Those that take rounds of rejection
or a search (``multinomial``, ``poisson``, ``binomial``) are made on the CPU, which waits for a GPU that their arguments
are on.
``layout``, ``pin_memory`` and ``memory_format`` are there for PyTorch's signatures.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import context, dtypes, engine
from disttrain.devices import device as Device
from disttrain.functions.creation import empty_like
from disttrain.functions.shape import broadcast_tensors
from disttrain.kernels import random as kernels
from disttrain.kernels.arrays import get_array_module, to_host
from disttrain.modes import replayed
from disttrain.ops import elementwise
from disttrain.random import Generator, permutation, uniform, words64
from disttrain.random import normal as standard_normal

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

DIGITS = {dtypes.float16: 11, dtypes.bfloat16: 8, dtypes.float32: 24, dtypes.float64: 53}
"""Binary digits of a floating point type: integers up to two to that power are exact."""


def _shape(name: str, size: Any) -> tuple[int, ...]:
    """Return the sizes in ``size``, the positional arguments or a sequence.

    Raises:
        RuntimeError: one is negative.
        TypeError: one is no integer.
    """
    if isinstance(size, tuple | list) and len(size) == 1 and isinstance(size[0], tuple | list):
        size = size[0]
    if not isinstance(size, tuple | list):
        size = (size,)
    for n in size:
        if isinstance(n, bool) or not hasattr(n, "__index__"):
            raise TypeError(f"{name}(): sizes must be integers, got {type(n).__name__}: {n!r:.80}")
    shape = tuple(map(operator.index, size))
    if any(n < 0 for n in shape):
        raise RuntimeError(f"{name}(): a size cannot be negative, got {list(shape)}")
    return shape


def _kind(name: str, dtype: Any, default: dtypes.dtype | None = None) -> dtypes.dtype:
    kind = (default or context.current().default_dtype) if dtype is None else dtypes.as_dtype(dtype)
    if not kind.is_floating_point:
        raise NotImplementedError(f"{name}() makes floating point numbers, got dtype={kind}")
    return kind


def _place(device: Any) -> Device | None:
    return None if device is None else Device(device)


def _finish(values: Any, kind: dtypes.dtype, device: Any, requires_grad: bool) -> Tensor:
    xp = get_array_module(values)
    with np.errstate(over="ignore"):
        t: Tensor = engine.Tensor_._of(xp.asarray(values).astype(kind.numpy, copy=False))
    if device is not None:
        t = t.to(device)
    return t.requires_grad_() if requires_grad else t


@replayed
def rand(
    *size: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    pin_memory: bool = False,
    **sizes: Any,
) -> Tensor:
    """A tensor of numbers evenly distributed in [0, 1), as ``torch.rand``."""
    shape = _sized("rand", size, sizes)
    kind = _kind("rand", dtype)
    return _finish(uniform(shape, generator, kind.numpy, _place(device)), kind, device, requires_grad)


@replayed
def randn(
    *size: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    pin_memory: bool = False,
    **sizes: Any,
) -> Tensor:
    """A tensor of numbers of the standard normal distribution, as ``torch.randn``."""
    shape = _sized("randn", size, sizes)
    kind = _kind("randn", dtype)
    return _finish(standard_normal(shape, generator, kind.numpy, _place(device)), kind, device, requires_grad)


def _sized(name: str, size: tuple[Any, ...], sizes: dict[str, Any]) -> tuple[int, ...]:
    """Return the shape given as ``f(2, 3)``, ``f((2, 3))`` or ``f(size=(2, 3))``."""
    given = sizes.pop("size", None)
    if sizes:
        raise TypeError(f"{name}() got an unexpected keyword argument {next(iter(sizes))!r}")
    if (given is None) == (not size):
        raise TypeError(f"{name}() needs its sizes once: {name}(2, 3), {name}((2, 3)) or {name}(size=(2, 3))")
    return _shape(name, size if given is None else given)


@replayed
def rand_like(
    input: Tensor,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    pin_memory: bool = False,
    memory_format: Any = None,
) -> Tensor:
    """A tensor like ``input`` of numbers evenly distributed in [0, 1), as ``torch.rand_like``."""
    kind = _kind("rand_like", dtype, _like("rand_like", input).dtype)
    values = uniform(input.shape, generator, kind.numpy, _beside(input, device))
    return _laid_out(input, values, kind, device, requires_grad, memory_format)


@replayed
def randn_like(
    input: Tensor,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    pin_memory: bool = False,
    memory_format: Any = None,
) -> Tensor:
    """A tensor like ``input`` of numbers of the standard normal distribution, as ``torch.randn_like``."""
    kind = _kind("randn_like", dtype, _like("randn_like", input).dtype)
    values = standard_normal(input.shape, generator, kind.numpy, _beside(input, device))
    return _laid_out(input, values, kind, device, requires_grad, memory_format)


def _beside(input: Tensor, device: Any) -> Device:
    return input.device if device is None else Device(device)


def _laid_out(
    input: Tensor, values: Any, kind: dtypes.dtype, device: Any, requires_grad: bool, memory_format: Any
) -> Tensor:
    """Return ``values`` in an order of memory like that of ``input``."""
    t = empty_like(input, dtype=kind, device=device, memory_format=memory_format)
    t._array[...] = values
    return t.requires_grad_() if requires_grad else t


def _like(name: str, input: Any) -> Tensor:
    if not isinstance(input, engine.Tensor_):
        raise TypeError(f"{name}() needs a Tensor, got {type(input).__name__}: {input!r:.80}")
    return input  # type: ignore[no-any-return]


@replayed
def randint(
    low: Any = 0,
    high: Any = None,
    size: Any = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    pin_memory: bool = False,
) -> Tensor:
    """A tensor of integers evenly distributed in ``[low, high)``; ``randint(high, size)`` begins at 0.

    Raises:
        RuntimeError: the range is empty, or the type cannot hold it.
        TypeError: an end or a size is no integer.
    """
    if size is None:
        low, high, size = 0, low, high
    elif high is None:
        low, high = 0, low
    if not isinstance(size, tuple | list):
        raise TypeError(f"randint(): size is a tuple of ints, got {type(size).__name__}: {size!r:.80}")
    shape = _shape("randint", tuple(size))
    kind = dtypes.int64 if dtype is None else dtypes.as_dtype(dtype)
    values = random_integers("randint", low, high, shape, kind, generator, _place(device))
    return _finish(values, kind, device, requires_grad)


@replayed
def randint_like(
    input: Tensor,
    low: Any = 0,
    high: Any = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    pin_memory: bool = False,
    memory_format: Any = None,
) -> Tensor:
    """A tensor like ``input`` of integers evenly distributed in ``[low, high)``, as :func:`randint`."""
    if high is None:
        low, high = 0, low
    kind = _like("randint_like", input).dtype if dtype is None else dtypes.as_dtype(dtype)
    where = _beside(input, device)
    values = random_integers("randint_like", low, high, input.shape, kind, generator, where)
    return _laid_out(input, values, kind, device, requires_grad, memory_format)


def _end(name: str, x: Any) -> int:
    if isinstance(x, engine.Tensor_) and x.numel() == 1:
        x = x.item()
    if not hasattr(x, "__index__"):
        raise TypeError(
            f"{name}(): the ends of the range must be integers, got {type(x).__name__}: {x!r:.80}"
        )
    return operator.index(x)


@replayed
def random_integers(
    name: str,
    low: Any,
    high: Any,
    shape: tuple[int, ...],
    kind: dtypes.dtype,
    generator: Generator | None,
    device: Device | None = None,
) -> Any:
    """Return an array of integers evenly distributed in ``[low, high)``, for the function ``name``.

    Raises:
        ValueError: an end that no draw reaches.
        RuntimeError: the range is empty, or ``kind`` does not hold an end.
    """
    low, high = _end(name, low), _end(name, high)
    if high >= 1 << 63 and name != "random_":
        raise ValueError(f"{name}(): the upper end must be below 2**63, got {high}")
    if high <= low:
        raise RuntimeError(f"{name}(): nothing lies in [{low}, {high})")
    for what, end in (("from", low), ("to - 1", high - 1)):
        if not _fits(end, kind):
            raise RuntimeError(f"{name}(): {kind} does not hold {what} of [{low}, {high})")
    raw = words64(int(np.prod(shape, dtype=np.int64)), generator, device)
    span = high - low
    offset = raw if span == 1 << 64 else raw % np.uint64(span)
    return (offset + np.uint64(low & ((1 << 64) - 1))).view(np.int64).reshape(tuple(shape))


def _fits(value: int, kind: dtypes.dtype) -> bool:
    if kind.is_floating_point:
        return abs(value) <= (65504 if kind is dtypes.float16 else 1 << 127)
    if kind is dtypes.bool_:
        return value in (0, 1)
    info = np.iinfo(kind.numpy)
    return int(info.min) <= value <= int(info.max)


@replayed
def randperm(
    n: int,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    pin_memory: bool = False,
) -> Tensor:
    """The integers below ``n`` in random order, as ``torch.randperm``.

    Raises:
        RuntimeError: ``n`` is negative, or more than the type can hold.
    """
    n = _end("randperm", n)
    kind = dtypes.int64 if dtype is None else dtypes.as_dtype(dtype)
    if n < 0:
        raise RuntimeError(f"randperm(): n counts elements, so it is not negative, got {n}")
    largest = (
        1 << DIGITS[kind]
        if kind.is_floating_point
        else (1 if kind is dtypes.bool_ else np.iinfo(kind.numpy).max)
    )
    if n - 1 > largest:
        raise RuntimeError(f"randperm(): {kind} does not hold all numbers below {n}; give a wider dtype")
    return _finish(permutation(n, words64(n, generator, _place(device))), kind, device, requires_grad)


# ------------------------------------------------------------------------------- from tensors of parameters


@replayed
def bernoulli(input: Tensor, p: float | None = None, *, generator: Generator | None = None) -> Tensor:
    """Ones with the probabilities in ``input`` (or ``p`` everywhere), else zeros, as ``torch.bernoulli``.

    Its gradient is zero.

    Raises:
        RuntimeError: a probability is not in [0, 1], or integers are given for probabilities.
    """
    array = _like("bernoulli", input)._array
    if p is None:
        if array.dtype.kind not in "fV":
            raise RuntimeError(f"bernoulli(): probabilities are floating point numbers, got {input.dtype}")
        chances = array.astype(np.float64)
        if chances.size and not ((chances >= 0) & (chances <= 1)).all():
            raise RuntimeError("bernoulli(): input holds probabilities, in [0, 1], and one is not")
    else:
        chances = np.float64(check_probability("bernoulli", p))
    return _drawn(input, uniform(input.shape, generator, np.float64, input.device) < chances)


def check_probability(name: str, p: Any) -> float:
    """Return ``p`` as a number; raise RuntimeError unless it is in [0, 1]."""
    chance = float(p)
    if not 0 <= chance <= 1:
        raise RuntimeError(f"{name}(): p is a probability, in [0, 1], got {chance}")
    return chance


def _drawn(input: Tensor, values: Any) -> Tensor:
    """Return numbers in the type of ``input``, where it is, that depend on it, with gradient zero."""
    t = _finish(values, input.dtype, input.device, False)
    return engine.apply(elementwise.copy_from, input, t) if input.requires_grad else t


@replayed
def normal(
    mean: Any = 0.0,
    std: Any = 1.0,
    size: Any = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    pin_memory: bool = False,
) -> Tensor:
    """Normally distributed numbers: a tensor of ``size``, or one for each of a tensor of means or deviations.

    Raises:
        RuntimeError: a standard deviation is negative.
        TypeError: neither ``size`` nor a tensor is given, or both.
    """
    tensors = [t for t in (mean, std) if isinstance(t, engine.Tensor_)]
    if bool(tensors) == (size is not None):
        raise TypeError("normal() needs a tensor of means or deviations, or numbers and size=(...)")
    if not tensors:
        check_std("normal", std)
        kind = _kind("normal", dtype)
        z = standard_normal(_shape("normal", size), generator, kind.numpy, _place(device))
        return _finish(mean + std * z, kind, device, requires_grad)
    if tensors[-1] is std and (std._array < 0).any():
        raise RuntimeError("normal(): std holds a negative number")
    check_std("normal", std)
    first = tensors[0]
    kind = _kind("normal", None, first.dtype)
    for t in tensors:
        _kind("normal", None, t.dtype)
    m, s = (x._array if isinstance(x, engine.Tensor_) else x for x in (mean, std))
    try:
        shape = np.broadcast_shapes(*[t._array.shape for t in tensors])
    except ValueError:
        raise RuntimeError(
            f"normal(): means of shape {list(mean.shape)} and deviations of {list(std.shape)} do not broadcast"
        ) from None
    z = standard_normal(shape, generator, kind.numpy, first.device)
    xp = get_array_module(z)
    values = z * xp.asarray(s, z.dtype) + xp.asarray(m, z.dtype)
    result = _finish(values, kind, None, False)
    for t in tensors:
        if t.requires_grad and t._array.shape == shape:
            return _drawn(t, values)
    return result


def check_std(name: str, std: Any) -> None:
    """Raise RuntimeError if ``std`` is a negative number."""
    if not isinstance(std, engine.Tensor_) and not std >= 0:
        raise RuntimeError(f"{name}(): std must not be negative, got {std}")


@replayed
def multinomial(
    input: Tensor, num_samples: int, replacement: bool = False, *, generator: Generator | None = None
) -> Tensor:
    """``num_samples`` indices drawn from each row of weights: int64 of shape ``(*input.shape[:-1], num_samples)``.

    Args:
        input: weights, floating point, of one or two dimensions; they need not sum to one.
        num_samples: how many.
        replacement: whether an index may come again; else they come in the order of the draws.
        generator: where random numbers come from.

    Raises:
        RuntimeError: a weight is negative or not finite, none is positive, or another argument is wrong.
    """
    array = to_host(_like("multinomial", input)._array)
    if array.dtype.kind not in "fV":
        raise RuntimeError(
            f"multinomial(): weights are floating point numbers, got {input.dtype}; convert with .float()"
        )
    if array.ndim not in (1, 2):
        raise RuntimeError(f"multinomial(): weights form a vector or rows, got shape {list(array.shape)}")
    if not array.shape[-1]:
        raise RuntimeError(f"multinomial(): there is nothing to draw from, got shape {list(array.shape)}")
    if num_samples <= 0:
        raise RuntimeError(f"multinomial(): num_samples must be positive, got {num_samples}")
    with np.errstate(invalid="ignore"):
        rows = array.astype(np.float64).reshape(-1, array.shape[-1])
    if not replacement and num_samples > rows.shape[1]:
        raise RuntimeError(
            f"multinomial(): {num_samples} of {rows.shape[1]} cannot be drawn unless replacement=True"
        )
    if not np.isfinite(rows).all() or (rows < 0).any():
        raise RuntimeError("multinomial(): weights must be finite, not negative, and one is not")
    if (rows.sum(-1) <= 0).any():
        raise RuntimeError("multinomial(): all weights of a row are 0; one must be positive")
    shape = (len(rows), num_samples if replacement else rows.shape[1])
    u = kernels.open_uniform(words64(shape[0] * shape[1], generator)).reshape(shape)
    if replacement:
        ends = np.cumsum(rows, -1)
        picked = np.stack([np.searchsorted(e, v * e[-1], side="right") for e, v in zip(ends, u, strict=True)])
    else:  # the smallest of exponential times with these rates come in the right distribution
        with np.errstate(divide="ignore"):  # what has no weight comes last
            times = -kernels.log(u.reshape(-1)).reshape(shape) / rows
        picked = np.argsort(times, axis=-1, kind="stable")[:, :num_samples]
    drawn = picked.reshape(*input.shape[:-1], num_samples)
    return _finish(drawn, dtypes.int64, input.device, False)


@replayed
def poisson(input: Tensor, generator: Generator | None = None) -> Tensor:
    """Numbers of events at the rates in ``input``, in its type, as ``torch.poisson``. Its gradient is zero.

    Raises:
        RuntimeError: a rate is negative, or the type is not floating point.
    """
    array = to_host(_like("poisson", input)._array)
    if array.dtype.kind not in "fV":
        raise RuntimeError(f"poisson(): rates are floating point numbers, got {input.dtype}")
    rates = array.astype(np.float64).reshape(-1)
    if not (rates >= 0).all():
        raise RuntimeError("poisson(): a rate is negative or nan")
    return _drawn(input, _poisson(rates, generator).reshape(array.shape))


def _poisson(rates: Any, generator: Generator | None) -> Any:
    out = np.zeros_like(rates)
    u = uniform(rates.shape, generator, np.float64)
    few = rates < 10
    if few.any():  # by inversion of the distribution function
        rate, chance = rates[few], u[few]
        term = kernels.exp(-rate)
        below, k = term.copy(), np.zeros_like(rate)
        for n in range(1, 100):  # beyond that the probability is nil
            more = chance >= below
            if not more.any():
                break
            k[more] = n
            term = term * (rate / n)
            below += term
        out[few] = k
    left = np.flatnonzero(~few)
    while left.size:  # Hörmann's transformed rejection PTRS (Insurance: Mathematics and Economics 12, 1993)
        words = words64(2 * rates.size, generator)
        rate = rates[left]
        u, v = kernels.open_uniform(words[left]) - 0.5, kernels.open_uniform(words[rates.size + left])
        b = 0.931 + 2.53 * np.sqrt(rate)
        a = -0.059 + 0.02483 * b
        inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
        us = 0.5 - np.abs(u)
        k = np.floor((2 * a / us + b) * u + rate + 0.43)
        sure = (us >= 0.07) & (v <= 0.9277 - 3.6224 / (b - 2))
        possible = (k >= 0) & ((us >= 0.013) | (v <= us))
        score = kernels.log(v) + kernels.log(inverse_alpha) - kernels.log(a / (us * us) + b)
        whole = np.maximum(k, 0)
        fits = score <= -rate + whole * kernels.log(rate) - kernels.log_gamma(whole + 1)
        good = sure | (possible & fits)
        out[left[good]] = k[good]
        left = left[~good]
    return out


@replayed
def binomial(count: Tensor, prob: Tensor, generator: Generator | None = None) -> Tensor:
    """Numbers of successes in ``count`` trials of chance ``prob``, in their type, as ``torch.binomial``.

    ``count`` and ``prob`` broadcast. The gradients are zero.

    Raises:
        RuntimeError: the types differ.
        ValueError: a type is not floating point.
    """
    for t in (_like("binomial", count), _like("binomial", prob)):
        if not t.dtype.is_floating_point:
            raise ValueError(f"binomial(): count and prob are floating point numbers, got {t.dtype}")
    if count.dtype is not prob.dtype:
        raise RuntimeError(
            f"binomial(): count and prob need the same type, got {count.dtype} and {prob.dtype}"
        )
    count, prob = broadcast_tensors(count, prob)
    n, p = (to_host(t._array).astype(np.float64).reshape(-1) for t in (count, prob))
    flip = p > 0.5  # as many failures as the rarer outcome has successes
    drawn = _binomial(n, np.where(flip, 1 - p, p), generator)
    return _drawn(count + prob, np.where(flip, n - drawn, drawn).reshape(count.shape))


def _binomial(n: Any, p: Any, generator: Generator | None) -> Any:
    """Draw for chances of at most a half."""
    out = np.where(np.isnan(p) | np.isnan(n), np.nan, 0.0)
    u = uniform(n.shape, generator, np.float64)
    few = (n * p < 10) & (n > 0) & (p > 0)
    if few.any():  # by inversion of the distribution function
        size, chance, left = n[few], p[few], u[few]
        term = kernels.exp(size * kernels.log(1 - chance))
        below, k = term.copy(), np.zeros_like(size)
        for i in range(1, 100):  # beyond that the probability is nil
            more = (left >= below) & (i <= size)
            if not more.any():
                break
            k[more] = i
            term = term * np.maximum(size - i + 1, 0) / i * (chance / (1 - chance))
            below += term
        out[few] = k
    rest = np.flatnonzero(n * p >= 10)
    while rest.size:  # Hörmann's transformed rejection BTRS (J. Statist. Comput. Simulation 46, 1993)
        words = words64(2 * n.size, generator)
        size, chance = n[rest], p[rest]
        u, v = kernels.open_uniform(words[rest]) - 0.5, kernels.open_uniform(words[n.size + rest])
        spread = np.sqrt(size * chance * (1 - chance))
        b = 1.15 + 2.53 * spread
        a = -0.0873 + 0.0248 * b + 0.01 * chance
        v_r = 0.92 - 4.2 / b
        alpha = (2.83 + 5.1 / b) * spread
        us = 0.5 - np.abs(u)
        k = np.floor((2 * a / us + b) * u + size * chance + 0.5)
        possible = (k >= 0) & (k <= size)
        sure = (us >= 0.07) & (v <= v_r)
        mode = np.floor((size + 1) * chance)
        whole = np.clip(k, 0, size)
        odds = kernels.log(chance / (1 - chance))
        score = kernels.log(v * alpha / (a / (us * us) + b))
        bound = (
            kernels.log_gamma(mode + 1)
            + kernels.log_gamma(size - mode + 1)
            - kernels.log_gamma(whole + 1)
            - kernels.log_gamma(size - whole + 1)
            + (whole - mode) * odds
        )
        good = possible & (sure | (score <= bound))
        out[rest[good]] = k[good]
        rest = rest[~good]
    return out
