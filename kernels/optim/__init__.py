"""Optimizer steps over flat buffers, each in one pass, and the two folds that gradient clipping needs."""

from disttrain.kernels.optim.adam import adam_step, adam_step_reference
from disttrain.kernels.optim.adaptive import (
    adadelta_step,
    adadelta_step_reference,
    adagrad_step,
    adagrad_step_reference,
    rmsprop_step,
    rmsprop_step_reference,
)
from disttrain.kernels.optim.folds import (
    CHUNK,
    all_finite,
    all_finite_reference,
    sum_of_squares,
    sum_of_squares_reference,
    sums_of_squares,
    sums_of_squares_reference,
)
from disttrain.kernels.optim.layerwise import lamb_step, lamb_step_reference, lars_step, lars_step_reference
from disttrain.kernels.optim.moments import (
    adamax_step,
    adamax_step_reference,
    nadam_step,
    nadam_step_reference,
    radam_step,
    radam_step_reference,
)
from disttrain.kernels.optim.sgd import asgd_step, asgd_step_reference, sgd_step, sgd_step_reference
from disttrain.kernels.optim.sign import lion_step, lion_step_reference, rprop_step, rprop_step_reference

__all__ = [
    "CHUNK",
    "adadelta_step",
    "adadelta_step_reference",
    "adagrad_step",
    "adagrad_step_reference",
    "adam_step",
    "adam_step_reference",
    "adamax_step",
    "adamax_step_reference",
    "all_finite",
    "all_finite_reference",
    "asgd_step",
    "asgd_step_reference",
    "lamb_step",
    "lamb_step_reference",
    "lars_step",
    "lars_step_reference",
    "lion_step",
    "lion_step_reference",
    "nadam_step",
    "nadam_step_reference",
    "radam_step",
    "radam_step_reference",
    "rmsprop_step",
    "rmsprop_step_reference",
    "rprop_step",
    "rprop_step_reference",
    "sgd_step",
    "sgd_step_reference",
    "sum_of_squares",
    "sum_of_squares_reference",
    "sums_of_squares",
    "sums_of_squares_reference",
]
