"""Samplers: in which order a DataLoader reads, with PyTorch's names (``torch.utils.data``).

The orders come from Philox (``disttrain.random``), so they are not the numbers that PyTorch would give for
the same seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np

from disttrain import context, random
from disttrain.collectives.env import current_env
from disttrain.data.sharding import share, steps
from disttrain.functions import random as draws
from disttrain.random import ORDER, Generator, permutation, philox

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

T_co = TypeVar("T_co", covariant=True)
Sizes = Any
"""A data set; ``len()`` of it is taken, which its type need not promise."""


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray[Any, Any]:
    """Return the indices below ``n`` in the order of an epoch: a function of its arguments alone."""
    order: np.ndarray[Any, Any] = permutation(n, philox((seed, epoch), n, (0, 0, ORDER)))
    return order


class Sampler(Generic[T_co]):
    """An iterable over indices, or lists of indices; subclasses give ``__iter__``, maybe ``__len__``."""

    def __iter__(self) -> Iterator[T_co]:
        raise NotImplementedError(f"{type(self).__name__} must define __iter__")


class SequentialSampler(Sampler[int]):
    """The indices in order."""

    def __init__(self, data_source: Sized) -> None:
        self.data_source = data_source

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)


class RandomSampler(Sampler[int]):
    """Indices in random order, or drawn with replacement; a rank draws for itself.

    Args:
        data_source: the data set.
        replacement: draw each index from all.
        num_samples: how many; by default as many as there are samples.
        generator: where random numbers come from; by default the rank's own.

    Raises:
        TypeError: ``replacement`` is no bool.
        ValueError: ``num_samples`` is not positive, or the data set is empty.
    """

    def __init__(
        self,
        data_source: Sized,
        replacement: bool = False,
        num_samples: int | None = None,
        generator: Generator | None = None,
    ) -> None:
        if not isinstance(replacement, bool):
            raise TypeError(f"replacement must be a bool, got {replacement!r}")
        self.data_source = data_source
        self.replacement = replacement
        self._num_samples = num_samples
        self.generator = generator
        if not isinstance(self.num_samples, int) or self.num_samples <= 0:
            raise ValueError(f"num_samples must be a positive integer, got {self.num_samples!r}")

    @property
    def num_samples(self) -> int:
        """How many indices an iteration gives."""
        return len(self.data_source) if self._num_samples is None else self._num_samples

    def __iter__(self) -> Iterator[int]:
        n = len(self.data_source)
        if self.replacement:
            yield from draws.randint(0, n, (self.num_samples,), generator=self.generator).tolist()
            return
        for start in range(0, self.num_samples, n):
            yield from draws.randperm(n, generator=self.generator).tolist()[: self.num_samples - start]

    def __len__(self) -> int:
        return self.num_samples


class SubsetRandomSampler(Sampler[int]):
    """The given indices in random order."""

    def __init__(self, indices: Sequence[int], generator: Generator | None = None) -> None:
        self.indices = indices
        self.generator = generator

    def __iter__(self) -> Iterator[int]:
        order = draws.randperm(len(self.indices), generator=self.generator)
        yield from map(self.indices.__getitem__, order.tolist())

    def __len__(self) -> int:
        return len(self.indices)


class WeightedRandomSampler(Sampler[int]):
    """Indices drawn with probabilities in proportion to ``weights``.

    Raises:
        ValueError: ``num_samples`` is not a positive integer, ``replacement`` no bool, or ``weights`` has not
            one dimension.
    """

    def __init__(
        self,
        weights: Sequence[float] | Tensor,
        num_samples: int,
        replacement: bool = True,
        generator: Generator | None = None,
    ) -> None:
        _check_positive("num_samples", num_samples)
        _check_bool("replacement", replacement)
        from disttrain.dtypes import float64
        from disttrain.functions.conversion import as_tensor

        self.weights = as_tensor(weights, dtype=float64)
        if self.weights.ndim != 1:
            raise ValueError(f"weights must have one dimension, got shape {list(self.weights.shape)}")
        self.num_samples = num_samples
        self.replacement = replacement
        self.generator = generator

    def __iter__(self) -> Iterator[int]:
        drawn = draws.multinomial(self.weights, self.num_samples, self.replacement, generator=self.generator)
        return iter(drawn.tolist())

    def __len__(self) -> int:
        return self.num_samples


class BatchSampler(Sampler[list[int]]):
    """Lists of ``batch_size`` consecutive indices of ``sampler``; the last may be shorter, or is dropped.

    Raises:
        ValueError: ``batch_size`` is not a positive integer, or ``drop_last`` no bool.
    """

    def __init__(self, sampler: Sampler[int] | Iterable[int], batch_size: int, drop_last: bool) -> None:
        _check_positive("batch_size", batch_size)
        _check_bool("drop_last", drop_last)
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last

    def __iter__(self) -> Iterator[list[int]]:
        indices = iter(self.sampler)
        while batch := list(itertools.islice(indices, self.batch_size)):
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch

    def __len__(self) -> int:
        n = len(self.sampler)  # type: ignore[arg-type]
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)


class DistributedSampler(Sampler[int]):
    """A rank's part of a data set, of equal length on all ranks, as ``torch.utils.data.DistributedSampler``.

    If the length cannot be divided by the ranks, some samples are used twice (as in PyTorch), or the tail is
    dropped. A DataLoader **without** a sampler shards by itself and uses each sample exactly once.

    The order of an epoch is ``epoch_order(len(dataset), seed, epoch)``, from Philox with key (seed, epoch).

    Args:
        dataset: what is read.
        num_replicas: number of ranks; by default that of the job.
        rank: by default the caller's.
        shuffle: shuffle by ``seed`` and the epoch; call :meth:`set_epoch` before each epoch.
        seed: the same on all ranks.
        drop_last: drop the tail instead of repeating samples.

    Raises:
        ValueError: ``rank`` is not one of ``num_replicas``.
    """

    def __init__(
        self,
        dataset: Sizes,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        if num_replicas is None:
            num_replicas = current_env().world_size
        if rank is None:
            rank = current_env().rank
        if not 0 <= rank < num_replicas:
            raise ValueError(f"rank must be in [0, {num_replicas - 1}], got {rank}")
        self.dataset = dataset
        self.num_replicas = num_replicas
        self.rank = rank
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0
        n = len(dataset)
        self.num_samples = n // num_replicas if drop_last else math.ceil(n / num_replicas)
        self.total_size = self.num_samples * num_replicas

    def __iter__(self) -> Iterator[int]:
        n = len(self.dataset)
        order = epoch_order(n, self.seed, self.epoch) if self.shuffle else np.arange(n)
        padded = np.resize(order, self.total_size)  # repeats from the beginning, or cuts the tail
        return iter(padded[self.rank :: self.num_replicas].tolist())

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration use the order of ``epoch``."""
        self.epoch = epoch


class EpochSampler(Sampler[int]):
    """All indices of a data set in the order that all ranks share; each iteration is the next epoch.

    Args:
        dataset: what is read.
        shuffle: order by (seed, epoch), else by index.
        seed: the same on all ranks. By default the seed of ``generator``, or when the first epoch begins that of
            rank 0's default generator if a parallel wrapper has made it known to all, else of the rank's own;
            ``disttrain.manual_seed`` must then have been given the same number on all ranks. If nobody has set
            a seed and no wrapper has made one known, a job of several ranks uses 0.
        generator: only its seed is used.
    """

    def __init__(
        self, dataset: Sizes, shuffle: bool, seed: int | None = None, generator: Generator | None = None
    ) -> None:
        self.dataset = dataset
        self.shuffle = shuffle
        self.generator = generator
        self.epoch = 0
        """Number of the epoch that the next iteration reads."""
        self.start = 0
        """How many samples of that epoch have been used, before a run was interrupted; then it begins after them."""
        self._seed = seed

    @property
    def seed(self) -> int:
        """The seed of all orders, fixed from the first look at it."""
        if self._seed is None:
            shared = context.current().order_seed
            if shared is not None and self.generator is None:
                self._seed = shared
            else:
                self._seed = (self.generator or random.current_generator()).initial_seed()
                if self._seed == random._unseeded and current_env().world_size > 1:
                    self._seed = 0  # every process has another
        return self._seed

    def next_order(self) -> np.ndarray[Any, Any]:
        """Return the order of the next epoch, or of what is left of it, which so begins."""
        n, epoch, start = len(self.dataset), self.epoch, self.start
        self.epoch, self.start = epoch + 1, 0
        return (epoch_order(n, self.seed, epoch) if self.shuffle else np.arange(n))[start:]

    def __iter__(self) -> Iterator[int]:
        return iter(self.next_order().tolist())

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration read ``epoch``, from its beginning."""
        self.epoch, self.start = epoch, 0

    def resume(self, seed: int, epoch: int, start: int) -> None:
        """Make the next iteration read what is left of ``epoch`` in the order of ``seed`` after ``start`` samples."""
        self._seed, self.epoch, self.start = seed, epoch, start


class ShardedSampler(Sampler[int]):
    """The calling rank's samples of each epoch of ``sampler``, one by one."""

    def __init__(self, sampler: EpochSampler) -> None:
        env = current_env()
        self.sampler = sampler
        self.rank = env.rank
        self.world_size = env.world_size

    def __iter__(self) -> Iterator[int]:
        order = self.sampler.next_order()
        if len(order) % self.world_size:
            raise ValueError(
                f"batch_size=None hands out single samples, and {len(order)} samples cannot be dealt to "
                f"{self.world_size} ranks evenly; give a batch_size, or a sampler"
            )
        return iter(order[self.rank :: self.world_size].tolist())

    def __len__(self) -> int:
        return len(self.sampler) // self.world_size


class NoShare(NamedTuple):
    """A rank's share of a step with fewer samples than ranks: nothing, shaped like ``template``."""

    template: int
    """Index of a sample of the step."""


class ShardedBatchSampler(Sampler["list[int] | NoShare"]):
    """The calling rank's batches of each epoch of ``sampler``, dealt as ``sharding`` says."""

    def __init__(self, sampler: EpochSampler, batch_size: int, drop_last: bool) -> None:
        _check_positive("batch_size", batch_size)
        _check_bool("drop_last", drop_last)
        env = current_env()
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.rank = env.rank
        self.world_size = env.world_size

    def __iter__(self) -> Iterator[list[int] | NoShare]:
        return self._deal(self.sampler.next_order())

    def _deal(self, order: np.ndarray[Any, Any]) -> Iterator[list[int] | NoShare]:
        n, size, ranks = len(order), self.batch_size, self.world_size
        for step in range(steps(n, size, ranks, self.drop_last)):
            mine = share(n, size, ranks, self.rank, step)
            yield order[mine.start : mine.stop].tolist() if mine else NoShare(int(order[step * size * ranks]))

    def __len__(self) -> int:
        return steps(len(self.sampler), self.batch_size, self.world_size, self.drop_last)


def _check_positive(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be a bool, got {value!r}")
