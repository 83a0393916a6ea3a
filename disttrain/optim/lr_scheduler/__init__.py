"""Learning rates that change with the epochs, by PyTorch's names (``torch.optim.lr_scheduler``)."""

from typing import TYPE_CHECKING

from disttrain import missing
from disttrain.optim.lr_scheduler.base import LRScheduler
from disttrain.optim.lr_scheduler.combined import ChainedScheduler, SequentialLR
from disttrain.optim.lr_scheduler.cosine import CosineAnnealingLR, CosineAnnealingWarmRestarts
from disttrain.optim.lr_scheduler.cyclic import CyclicLR, OneCycleLR
from disttrain.optim.lr_scheduler.decay import (
    ConstantLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)
from disttrain.optim.lr_scheduler.plateau import ReduceLROnPlateau

_LRScheduler = LRScheduler  # its older name

__all__ = [
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
