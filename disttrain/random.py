"""Random numbers: counter-based, so that a number depends on (seed, rank, draw) and on nothing else.

The generator is Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) as NumPy
implements it. Key: (seed, stream), where the stream is the rank; counter: (block, draw, 0, purpose), blocks counted
from 1. So any number of processes that host the same ranks draw the same numbers, and a state is three integers.

A draw is as many 64-bit words as it needs, in the order of the blocks and of the words in a block; where 32-bit words
are used, the lower half of each comes first. Element ``i`` of a tensor, in row-major order, is made of word ``i`` of
its draw alone (``poisson`` takes a draw per round of rejection, ``cauchy_`` two words), by the arithmetic that
``disttrain.kernels.random`` specifies: a device that repeats it gives the same numbers to the last bit. So numbers for
a GPU are drawn there, by kernels that are told the draw; only those that take rounds of rejection come from the CPU.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import context, devices, dtypes, engine, missing
from disttrain.collectives.env import current_env
from disttrain.devices import device as Device
from disttrain.kernels import random as kernels
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.modes import replayed

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

_MASK = (1 << 64) - 1

_unseeded = secrets.randbits(63)  # what a process draws from until somebody sets a seed

DRAW, ORDER, SAMPLE, BATCH, ROUND = 0, 1, 2, 3, 4
"""Purposes, the last word of the counter: numbers that a program draws, orders of a data set, numbers drawn for a
sample of it while it is read, and when its batch is transformed, and how an optimizer rounds parameters."""


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
        device: kept as PyTorch's; numbers do not depend on it, and are drawn where the tensor that gets them is.
    """

    def __init__(self, device: Any = "cpu") -> None:
        self.device = Device(device)
        self._stream = 0
        self._seed = 67280421310721  # PyTorch's, so that programs find what they know
        self._draw = 0

    @replayed
    def manual_seed(self, seed: int) -> Generator:
        """Begin the stream of ``seed``, any integer of 64 bits, signed or not.

        Raises:
            RuntimeError: not an integer.
            ValueError: it has more bits.
        """
        if not hasattr(seed, "__index__"):
            raise RuntimeError(f"manual_seed() takes an int, got {type(seed).__name__}: {seed!r:.80}")
        self._seed, self._draw = _check_seed(seed), 0
        return self

    def seed(self) -> int:
        """Begin the stream of a seed that nobody can foresee, and return it."""
        self.manual_seed(secrets.randbits(63))
        return self._seed

    def initial_seed(self) -> int:
        """Return the seed of the stream."""
        return self._seed

    @replayed
    def get_state(self) -> Tensor:
        """Return all there is to know, 24 bytes in a uint8 tensor: seed, stream and draw as little-endian uint64."""
        words = np.array([self._seed & _MASK, self._stream, self._draw], "<u8")
        return engine.Tensor_._of(words.view(np.uint8))  # type: ignore[no-any-return]

    @replayed
    def set_state(self, new_state: Tensor) -> Generator:
        """Continue where :meth:`get_state` was taken.

        Raises:
            TypeError: not a uint8 tensor.
            RuntimeError: not of 24 bytes.
        """
        if not isinstance(new_state, engine.Tensor_) or new_state.dtype is not dtypes.uint8:
            kind = getattr(new_state, "dtype", type(new_state).__name__)
            raise TypeError(f"RNG state must be a tensor of uint8, got {kind}")
        if new_state.shape != (24,):
            raise RuntimeError(f"a generator's state has 24 bytes, got shape {list(new_state.shape)}")
        words = np.ascontiguousarray(new_state._array).view("<u8")
        self._seed, self._stream, self._draw = (int(v) for v in words)
        return self

    def clone_state(self) -> Generator:
        """Return a generator that goes on from the same state."""
        other = Generator(self.device)
        other._seed, other._stream, other._draw = self._seed, self._stream, self._draw
        return other

    @replayed
    def raw(self, count: int) -> np.ndarray[Any, Any]:
        """Return the next draw: ``count`` uint64."""
        draw, self._draw = self._draw, self._draw + 1
        return philox((self._seed, self._stream), count, (draw, 0, DRAW))

    def key(self) -> np.ndarray[Any, Any] | None:
        """Return the next draw as ``disttrain.kernels.random`` is told it, or None (and draw nothing) if it cannot be.

        4 uint64: seed, stream, draw and purpose.
        """
        draw, self._draw = self._draw, self._draw + 1
        return np.array([self._seed & _MASK, self._stream, draw, DRAW], np.uint64)


class SampleGenerator(Generator):
    """What is drawn while a sample is read: key (seed, epoch), counter (block, draw, index of the sample, purpose).

    So augmentation depends neither on which rank or worker reads the sample, nor on what it has read before.
    """

    def __init__(self, seed: int, epoch: int, purpose: int = SAMPLE) -> None:
        super().__init__()
        self._purpose = purpose
        self._key = seed, epoch
        self._sample = 0
        self._around: Generator = self
        """The generator of whoever reads."""

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Be the calling rank's generator while samples are read, each after a :meth:`turn_to`."""
        rank = context.current()
        before = current_generator()
        rank.generator, self._around = self, before
        try:
            yield
        finally:
            rank.generator = before

    def turn_to(self, sample: int) -> None:
        """Begin the draws of a sample."""
        self._seed, self._stream = self._key
        self._sample, self._draw = sample, 0

    def initial_seed(self) -> int:
        """Return the seed of whoever reads: programs know the worker by it."""
        return self._around.initial_seed()

    def raw(self, count: int) -> np.ndarray[Any, Any]:
        draw, self._draw = self._draw, self._draw + 1
        return philox((self._seed, self._stream), count, (draw, self._sample & _MASK, self._purpose))

    def key(self) -> None:
        """Return None: the sample's index is a word of the counter that kernels are not told."""


def _check_seed(seed: int) -> int:
    if not -(1 << 63) <= seed < 1 << 64:
        raise ValueError(f"a seed must fit in 64 bits, got {seed}")
    return int(seed) & _MASK


def current_generator() -> Generator:
    """Return the generator of the calling rank: stream = its rank."""
    ctx = context.current()
    if ctx.generator is None:
        ctx.generator = Generator()
        ctx.generator._stream = current_env().rank
        ctx.generator.manual_seed(_unseeded)
    return ctx.generator


class _OfTheRank(Generator):
    """The generator of whichever rank asks: what programs import once, by name, and use on every rank."""

    def __init__(self) -> None:
        self.device = Device("cpu")

    _stream = property(
        lambda self: current_generator()._stream, lambda self, n: setattr(current_generator(), "_stream", n)
    )
    _seed = property(
        lambda self: current_generator()._seed, lambda self, n: setattr(current_generator(), "_seed", n)
    )
    _draw = property(
        lambda self: current_generator()._draw, lambda self, n: setattr(current_generator(), "_draw", n)
    )


default_generator: Generator = _OfTheRank()
"""The calling rank's generator, as ``torch.default_generator``."""


def manual_seed(seed: Any) -> Generator:
    """Begin the calling rank's stream of ``seed``; ranks draw different numbers from one seed.

    Raises:
        ValueError: ``int(seed)`` fails, or has more than 64 bits.
    """
    return current_generator().manual_seed(int(seed))


def seed() -> int:
    """Begin a stream that nobody can foresee on the calling rank, and return its seed."""
    return current_generator().seed()


def initial_seed() -> int:
    """Return the seed of the calling rank's stream."""
    return current_generator().initial_seed()


def get_rng_state() -> Tensor:
    """Return the state of the calling rank's generator."""
    return current_generator().get_state()


def set_rng_state(new_state: Tensor) -> None:
    """Continue the calling rank's stream where :func:`get_rng_state` was taken."""
    current_generator().set_state(new_state)


@contextmanager
def fork_rng(
    devices: Any = None,
    enabled: bool = True,
    _caller: str = "fork_rng",
    _devices_kw: str = "devices",
    device_type: str = "cuda",
) -> Iterator[None]:
    """Put the calling rank's generator back at the end of a ``with`` block, as ``torch.random.fork_rng``.

    Args:
        devices: there for PyTorch's signature; a rank has one generator for all devices.
        enabled: whether to do anything.
        device_type: as ``devices``.
    """
    if not enabled:
        yield
        return
    state = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


# ------------------------------------------------------------------------------------------ as arrays


def _source(generator: Generator | None) -> Generator:
    if generator is None:
        return current_generator()
    if not isinstance(generator, Generator):
        raise TypeError(f"generator must be a Generator, got {type(generator).__name__}: {generator!r:.80}")
    return generator


@replayed
def gpu_key(device: Device | None, generator: Generator | None = None) -> Array | None:
    """Return the next draw as kernels are told it (:meth:`Generator.key`), on a GPU; or None, and draw nothing.

    It is None where ``device`` is no GPU, or the generator is that of a sample that is being read.
    """
    if device is None or device.type == "cpu":
        return None
    key = _source(generator).key()
    return None if key is None else devices.move(key, device=device)[0]


@replayed
def words64(count: int, generator: Generator | None = None, device: Device | None = None) -> Array:
    """Return the next draw: ``count`` random uint64, on ``device``, by default the CPU.

    Raises:
        TypeError: ``generator`` is none.
    """
    key = gpu_key(device, generator)
    if key is not None:
        with key.device:
            return kernels.words(key, count)
    words = _source(generator).raw(count)
    return words if device is None or device.type == "cpu" else devices.move(words, device=device)[0]


@replayed
def bits32(
    shape: int | Sequence[int], generator: Generator | None = None, device: Device | None = None
) -> Array:
    """Return the next draw: as many random uint32 as ``shape`` holds, or says, in this shape."""
    count = shape if isinstance(shape, int) else math.prod(shape)
    words = words64(-(-count // 2), generator, device).view(np.uint32)[:count]
    return words if isinstance(shape, int) else words.reshape(tuple(shape))


@replayed
def kept(shape: Sequence[int], p: float, device: Device | None = None) -> Array:
    """Return booleans, each false with probability ``p`` (by 32 bits): what dropout keeps."""
    return bits32(shape, device=device) >= np.uint32(min(round(p * 2**32), 2**32 - 1))


@replayed
def uniform(
    shape: Sequence[int],
    generator: Generator | None = None,
    dtype: Any = np.float32,
    device: Device | None = None,
) -> Array:
    """Return numbers evenly distributed in [0, 1), with as many random bits as ``dtype`` has digits."""
    return _numbers(kernels.draw_uniform, kernels.uniform, shape, generator, dtype, device)


@replayed
def normal(
    shape: Sequence[int],
    generator: Generator | None = None,
    dtype: Any = np.float32,
    device: Device | None = None,
) -> Array:
    """Return numbers of the standard normal distribution; float64 for float64, else float32."""
    kind = np.float64 if np.dtype(dtype) == np.float64 else np.float32
    return _numbers(
        kernels.draw_normal, lambda words, _: kernels.normal(words), shape, generator, kind, device
    )


def _numbers(
    draw: Callable[[Array, int, Any], Array],
    make: Callable[[Array, Any], Array],
    shape: Sequence[int],
    generator: Generator | None,
    dtype: Any,
    device: Device | None,
) -> Array:
    """Return the numbers that a kernel draws by its key, or that are made of words where it cannot be told."""
    shape = tuple(shape)
    count = math.prod(shape)
    key = gpu_key(device, generator)
    if key is not None:
        with key.device:
            return draw(key, count, dtype).reshape(shape)
    wide = np.dtype(dtype) == np.float64
    words = words64(count, generator, device) if wide else bits32(count, generator, device)
    return make(words, dtype).reshape(shape)


def permutation(n: int, raw: Array) -> Array:
    """Return the numbers below ``n`` in the order of ``n`` random uint64."""
    return get_array_module(raw).argsort(raw[:n], kind="stable")


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
