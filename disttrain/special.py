"""``torch.special``: other names of functions that are at home elsewhere."""

from typing import TYPE_CHECKING

from disttrain import missing
from disttrain.functions.activation import log_softmax, softmax
from disttrain.functions.arithmetic import xlogy
from disttrain.functions.elementwise import (
    digamma,
    erf,
    erfc,
    erfinv,
    exp2,
    expm1,
    lgamma,
    log1p,
    logit,
    round,
    sigmoid,
    sinc,
)
from disttrain.functions.reduce import logsumexp

expit, gammaln, psi = sigmoid, lgamma, digamma

__all__ = [
    "digamma",
    "erf",
    "erfc",
    "erfinv",
    "exp2",
    "expit",
    "expm1",
    "gammaln",
    "log1p",
    "log_softmax",
    "logit",
    "logsumexp",
    "psi",
    "round",
    "sinc",
    "softmax",
    "xlogy",
]


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
