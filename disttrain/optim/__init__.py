"""Optimizers and learning-rate schedules, by PyTorch's names."""

from typing import TYPE_CHECKING

from disttrain import missing
from disttrain.optim import lr_scheduler, swa_utils
from disttrain.optim.adadelta import Adadelta
from disttrain.optim.adagrad import Adagrad
from disttrain.optim.adam import Adam, AdamW
from disttrain.optim.adamax import Adamax
from disttrain.optim.asgd import ASGD
from disttrain.optim.lamb import LAMB
from disttrain.optim.lars import LARS
from disttrain.optim.lbfgs import LBFGS
from disttrain.optim.lion import Lion
from disttrain.optim.nadam import NAdam
from disttrain.optim.optimizer import Optimizer
from disttrain.optim.radam import RAdam
from disttrain.optim.rmsprop import RMSprop
from disttrain.optim.rprop import Rprop
from disttrain.optim.sgd import SGD

if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)

__all__ = [
    "ASGD",
    "LAMB",
    "LARS",
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
    "lr_scheduler",
    "swa_utils",
]
