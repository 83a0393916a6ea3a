"""Data sets: what a DataLoader reads, with PyTorch's names (``torch.utils.data``)."""

from __future__ import annotations

import bisect
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from disttrain.functions.random import randperm
from disttrain.tensors import Tensor

if TYPE_CHECKING:
    from disttrain.random import Generator

T_co = TypeVar("T_co", covariant=True)


class Dataset(Generic[T_co]):
    """A map from indices to samples, as ``torch.utils.data.Dataset``; subclasses give ``__getitem__`` and
    ``__len__``.

    A subclass may also give ``__getitems__(indices)``, a list of samples at once.
    """

    def __getitem__(self, index: Any) -> T_co:
        raise NotImplementedError(f"{type(self).__name__} must define __getitem__")

    def __add__(self, other: Dataset[Any]) -> Dataset[Any]:
        return ConcatDataset([self, other])


class IterableDataset(Dataset[T_co], Iterable[T_co]):
    """A stream of samples, as ``torch.utils.data.IterableDataset``; subclasses give ``__iter__``.

    Every rank and every worker iterates over the whole stream unless ``__iter__`` takes its part of it, by
    :func:`get_worker_info` and the rank.
    """

    def __iter__(self) -> Iterator[T_co]:
        raise NotImplementedError(f"{type(self).__name__} must define __iter__")

    def __add__(self, other: Dataset[Any]) -> Dataset[Any]:
        return ChainDataset([self, other])


class TensorDataset(Dataset[tuple[Tensor, ...]]):
    """Samples are the rows of ``tensors``: sample ``i`` is ``(tensors[0][i], tensors[1][i], …)``.

    Raises:
        ValueError: the tensors have different first dimensions, or there is none.
    """

    def __init__(self, *tensors: Tensor) -> None:
        if not tensors:
            raise ValueError("TensorDataset needs at least one tensor")
        if any(t.size(0) != tensors[0].size(0) for t in tensors):
            raise ValueError(
                f"the tensors of a TensorDataset need the same first dimension, "
                f"got shapes {[list(t.shape) for t in tensors]}"
            )
        self.tensors = tensors

    def __getitem__(self, index: Any) -> tuple[Tensor, ...]:
        return tuple(t[index] for t in self.tensors)

    def collated(self, indices: Sequence[int]) -> list[Tensor]:
        """Return what ``default_collate`` makes of these samples, by one gather per tensor."""
        rows = Tensor._of(np.asarray(indices, np.int64))
        return [t[rows] for t in self.tensors]

    def __len__(self) -> int:
        return int(self.tensors[0].size(0))


class ConcatDataset(Dataset[T_co]):
    """One data set after the other.

    Raises:
        ValueError: no data set is given.
        TypeError: one is an :class:`IterableDataset`.
    """

    cumulative_sizes: list[int]

    def __init__(self, datasets: Iterable[Dataset[T_co]]) -> None:
        self.datasets = list(datasets)
        if not self.datasets:
            raise ValueError("ConcatDataset needs at least one data set")
        for d in self.datasets:
            if isinstance(d, IterableDataset):
                raise TypeError(
                    f"ConcatDataset needs data sets with indices, got the stream {type(d).__name__}; "
                    f"use ChainDataset"
                )
        sizes = [len(d) for d in self.datasets]  # type: ignore[arg-type]
        self.cumulative_sizes = list(itertools.accumulate(sizes))

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]

    def __getitem__(self, index: Any) -> T_co:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} samples")
        index %= len(self)
        which = bisect.bisect_right(self.cumulative_sizes, index)
        return self.datasets[which][index - (self.cumulative_sizes[which - 1] if which else 0)]


class StackDataset(Dataset[Any]):
    """Data sets of the same length side by side: a sample is a tuple of one of each, or a dict if they have names.

    Args:
        args: data sets by position,
        kwargs: or by name.

    Raises:
        ValueError: none are given, or some by position and some by name, or their lengths differ.
    """

    datasets: tuple[Dataset[Any], ...] | dict[str, Dataset[Any]]

    def __init__(self, *args: Dataset[Any], **kwargs: Dataset[Any]) -> None:
        if bool(args) == bool(kwargs):
            raise ValueError(
                f"StackDataset needs data sets, either by position or by name; got {len(args)} by position and "
                f"{len(kwargs)} by name"
            )
        self.datasets = args or kwargs
        lengths = [len(d) for d in (*args, *kwargs.values())]  # type: ignore[arg-type]
        if len(set(lengths)) > 1:
            raise ValueError(f"the data sets of a StackDataset need the same length, got {lengths}")
        self._length = lengths[0]

    def __getitem__(self, index: Any) -> tuple[Any, ...] | dict[str, Any]:
        if isinstance(self.datasets, dict):
            return {name: d[index] for name, d in self.datasets.items()}
        return tuple(d[index] for d in self.datasets)

    def __len__(self) -> int:
        return self._length


class ChainDataset(IterableDataset[T_co]):
    """One stream after the other.

    Raises:
        TypeError: a data set is no :class:`IterableDataset`.
    """

    def __init__(self, datasets: Iterable[Dataset[T_co]]) -> None:
        self.datasets = list(datasets)

    def __iter__(self) -> Iterator[T_co]:
        for d in self.datasets:
            if not isinstance(d, IterableDataset):
                raise TypeError(f"ChainDataset needs IterableDatasets, got {type(d).__name__}")
            yield from d

    def __len__(self) -> int:
        sizes = [len(d) for d in self.datasets]  # type: ignore[arg-type]
        return sum(sizes)


class Subset(Dataset[T_co]):
    """The samples of ``dataset`` at ``indices``."""

    def __init__(self, dataset: Dataset[T_co], indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices

    def __getitem__(self, index: Any) -> T_co:
        if isinstance(index, list):
            return self.dataset[[self.indices[i] for i in index]]
        return self.dataset[self.indices[index]]

    def __len__(self) -> int:
        return len(self.indices)


def random_split(
    dataset: Dataset[T_co], lengths: Sequence[int | float], generator: Generator | None = None
) -> list[Subset[T_co]]:
    """Split ``dataset`` at random into parts that do not overlap, as ``torch.utils.data.random_split``.

    Args:
        dataset: what to split.
        lengths: lengths that sum up to that of the data set, or fractions that sum up to 1; samples that
            fractions leave over go to the parts in turn, the first ones first.
        generator: where random numbers come from; by default the rank's own, so that ranks split
            **differently** unless a generator with a fixed seed is given.

    Raises:
        ValueError: a fraction is not in [0, 1], or the lengths do not sum up.
    """
    total = len(dataset)  # type: ignore[arg-type]
    whole = sum(lengths)
    if whole <= 1 and math.isclose(whole, 1):
        for i, fraction in enumerate(lengths):
            if not 0 <= fraction <= 1:
                raise ValueError(f"fraction {i} must be in [0, 1], got {fraction}")
        parts = [math.floor(total * fraction) for fraction in lengths]
        for i in range(total - sum(parts)):
            parts[i % len(parts)] += 1
        for i, length in enumerate(parts):
            if length == 0:
                warnings.warn(f"part {i} of the split has no samples", stacklevel=2)
    else:
        parts = [int(length) for length in lengths]
    if sum(parts) != total or min(parts) < 0:
        raise ValueError(f"lengths {list(lengths)} do not sum up to the {total} samples of the data set")
    indices = randperm(total, generator=generator).tolist()
    ends = itertools.accumulate(parts)
    return [Subset(dataset, indices[end - length : end]) for end, length in zip(ends, parts, strict=True)]
