"""Data sets, samplers and loaders, with the names of ``torch.utils.data``."""

from typing import TYPE_CHECKING

from disttrain import missing
from disttrain.data import datasets
from disttrain.data.collate import default_collate, default_convert
from disttrain.data.dataset import (
    ChainDataset,
    ConcatDataset,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
    random_split,
)
from disttrain.data.files import CSVDataset, NumpyDataset, TokenDataset
from disttrain.data.loader import DataLoader
from disttrain.data.sampler import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from disttrain.data.shards import TarDataset
from disttrain.data.workers import WorkerInfo, get_worker_info

__all__ = [
    "BatchSampler",
    "CSVDataset",
    "ChainDataset",
    "ConcatDataset",
    "DataLoader",
    "Dataset",
    "DistributedSampler",
    "IterableDataset",
    "NumpyDataset",
    "RandomSampler",
    "Sampler",
    "SequentialSampler",
    "StackDataset",
    "Subset",
    "SubsetRandomSampler",
    "TarDataset",
    "TensorDataset",
    "TokenDataset",
    "WeightedRandomSampler",
    "WorkerInfo",
    "datasets",
    "default_collate",
    "default_convert",
    "get_worker_info",
    "random_split",
]


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of("disttrain.utils.data")
