"""Random numbers: counter-based, so that a number depends on (seed, rank, draw) and on nothing else.

The generator is Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) as NumPy
implements it. Key: (seed, stream), where the stream is the rank; counter: (block, draw, 0, purpose). So any
number of processes that host the same ranks draw the same numbers, and a state is two integers.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import context, dtypes, engine
from disttrain.collectives.env import current_env
from disttrain.functions.common import sizes

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

_MASK = (1 << 64) - 1

_unseeded = secrets.randbits(63)  # what a process draws from until somebody sets a seed

DRAW, ORDER = 0, 1
"""Purposes, the last word of the counter: numbers that a program draws, and orders of a data set."""


def philox(
    key: tuple[int, int], count: int, counter: tuple[int, int, int] = (0, 0, 0)
) -> np.ndarray[Any, Any]:
    """Return ``count`` uint64 of the stream ``key``, from block 0 of the counter's last three words on."""
    bits = np.random.Philox(
        key=np.array([k & _MASK for k in key], np.uint64), counter=np.array([0, *counter], np.uint64)
    )
    return bits.random_raw(count)


class Generator:
    """A stream of random numbers, as ``torch.Generator``; each rank has one by default.

    Args:
        device: only ``"cpu"`` so far.
    """

    def __init__(self, device: Any = "cpu") -> None:
        self.device = device
        self._stream = 0
        self._seed = 0
        self._draw = 0

    def manual_seed(self, seed: int) -> Generator:
        """Begin the stream of ``seed`` (any 64-bit integer)."""
        self._seed, self._draw = _check_seed(seed), 0
        return self

    def seed(self) -> int:
        """Begin the stream of a seed that nobody can foresee, and return it."""
        self.manual_seed(secrets.randbits(63))
        return self._seed

    def initial_seed(self) -> int:
        """Return the seed of the stream."""
        return self._seed

    def get_state(self) -> Tensor:
        """Return (seed, stream, draw) as an int64 tensor: all there is to know."""
        words = np.array([self._seed & _MASK, self._stream, self._draw], np.uint64)
        return engine.Tensor_(words.view(np.int64))  # type: ignore[no-any-return]

    def set_state(self, state: Tensor) -> None:
        """Continue where :meth:`get_state` was taken.

        Raises:
            ValueError: not three int64.
        """
        if state.shape != (3,) or state.dtype is not dtypes.int64:
            raise ValueError(
                f"a generator's state is 3 int64, got shape {list(state.shape)} of {state.dtype}"
            )
        self._seed, self._stream, self._draw = (int(v) for v in state._array.view(np.uint64))

    def raw(self, count: int) -> np.ndarray[Any, Any]:
        """Return the next draw: ``count`` uint64."""
        draw, self._draw = self._draw, self._draw + 1
        return philox((self._seed, self._stream), count, (draw, 0, DRAW))


def _check_seed(seed: int) -> int:
    if not -(1 << 63) <= seed < 1 << 64:
        raise ValueError(f"a seed must fit in 64 bits, got {seed}")
    return int(seed) & _MASK


def default_generator() -> Generator:
    """Return the generator of the calling rank: stream = its rank."""
    ctx = context.current()
    if ctx.generator is None:
        ctx.generator = Generator()
        ctx.generator._stream = current_env().rank
        ctx.generator.manual_seed(_unseeded)
    return ctx.generator


def manual_seed(seed: int) -> Generator:
    """Begin the calling rank's stream of ``seed``; ranks draw different numbers from one seed."""
    return default_generator().manual_seed(seed)


def seed() -> int:
    """Begin a stream that nobody can foresee on the calling rank, and return its seed."""
    return default_generator().seed()


def initial_seed() -> int:
    """Return the seed of the calling rank's stream."""
    return default_generator().initial_seed()


def get_rng_state() -> Tensor:
    """Return the state of the calling rank's generator."""
    return default_generator().get_state()


def set_rng_state(new_state: Tensor) -> None:
    """Continue the calling rank's stream where :func:`get_rng_state` was taken."""
    default_generator().set_state(new_state)


# ------------------------------------------------------------------------------------------ as arrays


def bits32(count: int, generator: Generator | None = None) -> np.ndarray[Any, Any]:
    """Return ``count`` random uint32."""
    raw = (generator or default_generator()).raw(-(-count // 2))
    return raw.view(np.uint32)[:count]


def uniform(shape: Sequence[int], generator: Generator | None = None) -> np.ndarray[Any, Any]:
    """Return float32 numbers evenly distributed in [0, 1), 24 bits each."""
    count = int(np.prod(shape, dtype=np.int64))
    return ((bits32(count, generator) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)).reshape(
        tuple(shape)
    )


def normal(shape: Sequence[int], generator: Generator | None = None) -> np.ndarray[Any, Any]:
    """Return float32 numbers of the standard normal distribution (Box and Muller, 1958)."""
    count = int(np.prod(shape, dtype=np.int64))
    pairs = -(-count // 2)
    bits = bits32(2 * pairs, generator).astype(np.float32)
    radius = np.sqrt(np.float32(-2) * np.log((bits[:pairs] + np.float32(1)) * np.float32(2**-32)))
    angle = bits[pairs:] * np.float32(2 * np.pi * 2**-32)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count].reshape(tuple(shape))


def permutation(n: int, raw: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the numbers below ``n`` in the order of ``n`` random uint64."""
    return np.argsort(raw[:n], kind="stable")


# ------------------------------------------------------------------------------------------ as tensors


def _tensor(
    values: np.ndarray[Any, Any], dtype: Any, requires_grad: bool = False, device: Any = None
) -> Tensor:
    kind = context.current().default_dtype if dtype is None else dtypes.as_dtype(dtype)
    t: Tensor = engine.Tensor_(values.astype(kind.numpy, copy=False)).to(device or "cpu")
    return t.requires_grad_() if requires_grad else t


def rand(
    *size: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of numbers evenly distributed in [0, 1)."""
    return _tensor(uniform(sizes(size), generator), dtype, requires_grad, device)


def randn(
    *size: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of numbers of the standard normal distribution."""
    return _tensor(normal(sizes(size), generator), dtype, requires_grad, device)


def randint(
    low: Any = 0,
    high: Any = None,
    size: Any = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
) -> Tensor:
    """A tensor of integers evenly distributed in ``[low, high)``; ``randint(high, size)`` begins at 0.

    Raises:
        RuntimeError: the range is empty.
    """
    if size is None:
        low, high, size = 0, low, high
    elif high is None:
        low, high = 0, low
    if high <= low:
        raise RuntimeError(f"randint(): nothing lies in [{low}, {high})")
    shape = sizes((size,))
    raw = (generator or default_generator()).raw(int(np.prod(shape, dtype=np.int64)))
    values = (raw % np.uint64(high - low)).astype(np.int64) + low
    return _tensor(values.reshape(shape), dtypes.int64 if dtype is None else dtype, device=device)


def randperm(n: int, *, generator: Generator | None = None, dtype: Any = None, device: Any = None) -> Tensor:
    """The integers below ``n`` in random order."""
    raw = (generator or default_generator()).raw(n)
    return _tensor(permutation(n, raw), dtypes.int64 if dtype is None else dtype, device=device)


def rand_like(input: Tensor, *, dtype: Any = None) -> Tensor:
    """A tensor like ``input`` of numbers evenly distributed in [0, 1)."""
    return rand(input.shape, dtype=dtype or input.dtype, device=input.device)


def randn_like(input: Tensor, *, dtype: Any = None) -> Tensor:
    """A tensor like ``input`` of numbers of the standard normal distribution."""
    return randn(input.shape, dtype=dtype or input.dtype, device=input.device)


def bernoulli(input: Tensor, p: float | None = None, *, generator: Generator | None = None) -> Tensor:
    """Ones with the probabilities in ``input`` (or ``p`` everywhere), else zeros."""
    return _tensor(uniform(input.shape, generator) < (input._array if p is None else p), input.dtype)


def multinomial(
    input: Tensor, num_samples: int, replacement: bool = False, *, generator: Generator | None = None
) -> Tensor:
    """``num_samples`` indices drawn from each row of weights: int64 of shape ``(*input.shape[:-1], num_samples)``.

    Raises:
        RuntimeError: a weight is negative or not finite, or too few are positive.
    """
    weights = input._array.astype(np.float64)
    rows = weights.reshape(-1, weights.shape[-1])
    if not np.isfinite(rows).all() or (rows < 0).any() or (rows.sum(-1) <= 0).any():
        raise RuntimeError("multinomial(): weights must be finite, not negative, and not all zero")
    if not replacement and ((rows > 0).sum(-1) < num_samples).any():
        raise RuntimeError(f"multinomial(): fewer than {num_samples} positive weights; use replacement=True")
    shape = (len(rows), num_samples if replacement else rows.shape[1])
    u = ((generator or default_generator()).raw(shape[0] * shape[1]) >> np.uint64(11)) * 2.0**-53
    u = u.reshape(shape)
    if replacement:
        ends = np.cumsum(rows, -1)
        picked = np.stack([np.searchsorted(e, v * e[-1], side="right") for e, v in zip(ends, u, strict=True)])
    else:  # the smallest of exponential times with these rates come in the right distribution
        with np.errstate(divide="ignore"):
            picked = np.argsort(-np.log1p(-u) / rows, axis=-1, kind="stable")[:, :num_samples]
    return engine.Tensor_(picked.astype(np.int64).reshape(*input.shape[:-1], num_samples))  # type: ignore[no-any-return]
