"""Optimizers and learning-rate schedules, by PyTorch's names."""

from disttrain.optim import lr_scheduler
from disttrain.optim.adam import Adam, AdamW
from disttrain.optim.optimizer import Optimizer
from disttrain.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "lr_scheduler"]
