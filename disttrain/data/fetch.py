"""How a batch is read from a data set, in the process of the rank or in a worker."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

from disttrain.data.collate import default_collate, empty_like
from disttrain.data.dataset import Dataset, IterableDataset, Subset
from disttrain.data.sampler import NoShare
from disttrain.errors import SampleDamaged
from disttrain.random import SampleGenerator

_log = logging.getLogger("disttrain")


class EndOfStream(Exception):
    """The stream has no more batches. Not StopIteration, which a data set may let slip by mistake."""


Fetch = Callable[[Any], tuple[Any, int]]
"""Takes what a sampler gave; returns the batch and the number of its samples. Raises EndOfStream."""


def make_fetch(
    dataset: Any,
    collate: Callable[[Any], Any],
    auto_collation: bool,
    drop_last: bool,
    key: tuple[int, int] | None = None,
) -> Fetch:
    """Return the function that reads the batches of one epoch.

    Args:
        dataset: a map from indices, or a stream.
        collate: makes a batch of a list of samples; of one sample without ``auto_collation``.
        auto_collation: whether the sampler gives lists of indices (of a stream: how many samples to take).
        drop_last: of a stream: no batch that is too small.
        key: (seed, epoch) of the random numbers that each sample of a map draws; ``None``: it draws those of
            whoever reads it.
    """
    if isinstance(dataset, IterableDataset):
        return _Stream(dataset, collate, auto_collation, drop_last)
    read = partial(_read, dataset, None if key is None else SampleGenerator(*key))
    if not auto_collation:
        return lambda index: (collate(read([index])[0]), _count(index))
    collated = _collated(dataset) if collate is default_collate else None
    if collated is not None:
        return _with_empty_shares(lambda indices: (collated(indices), len(indices)))
    if callable(getattr(dataset, "__getitems__", None)):
        return _with_empty_shares(lambda indices: (collate(dataset.__getitems__(indices)), len(indices)))

    def read_each(indices: list[int]) -> tuple[Any, int]:
        samples = read(indices)
        return collate(samples), len(samples)

    return _with_empty_shares(read_each)


def _read(dataset: Any, generator: SampleGenerator | None, indices: list[Any]) -> list[Any]:
    """Return the samples, without those that are damaged if the data set wants it so; not without all of them."""
    samples = []
    with generator.reading() if generator is not None else nullcontext():
        for i in indices:
            if generator is not None:
                generator.turn_to(i)
            try:
                samples.append(dataset[i])
            except SampleDamaged as error:
                if not error.skipped or (not samples and i == indices[-1]):
                    raise
                _log.warning("a sample is left out of its batch: %s", error)
    return samples


def _with_empty_shares(read: Callable[[list[int]], tuple[Any, int]]) -> Fetch:
    def fetch(indices: list[int] | NoShare) -> tuple[Any, int]:
        if isinstance(indices, NoShare):
            return empty_like(read([indices.template])[0]), 0
        return read(indices)

    return fetch


def _count(index: Any) -> int:
    """Without collation a sampler may still give lists of indices, for a data set that reads many at once."""
    return len(index) if isinstance(index, list | tuple) else 1


def _collated(dataset: Any) -> Callable[[list[int]], Any] | None:
    """Return the data set's own way to read a whole batch, if it means the same as ``__getitem__``."""
    if type(dataset) is Subset:
        inner = _collated(dataset.dataset)
        chosen = dataset.indices
        return None if inner is None else lambda indices: inner([chosen[i] for i in indices])
    for cls in type(dataset).__mro__:
        names = vars(cls)
        if "collated" in names and "__getitem__" in names:
            read: Callable[[list[int]], Any] = dataset.collated
            return read if getattr(dataset, "can_collate", True) else None
        if "collated" in names or "__getitem__" in names or cls is Dataset:
            return None  # a subclass changed one of the two
    return None


class _Stream:
    """Batches of a stream, in turn."""

    def __init__(
        self,
        dataset: IterableDataset[Any],
        collate: Callable[[Any], Any],
        auto_collation: bool,
        drop_last: bool,
    ) -> None:
        self._samples: Iterator[Any] = iter(dataset)
        self._collate = collate
        self._auto_collation = auto_collation
        self._drop_last = drop_last

    def __call__(self, size: Any) -> tuple[Any, int]:
        if not self._auto_collation:
            for sample in self._samples:
                return self._collate(sample), 1
            raise EndOfStream
        batch = list(itertools.islice(self._samples, size))
        if not batch or (self._drop_last and len(batch) < size):
            raise EndOfStream
        return self._collate(batch), len(batch)
