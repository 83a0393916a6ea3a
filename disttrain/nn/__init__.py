"""Building blocks of neural networks, by PyTorch's names (``torch.nn``)."""

import importlib
from typing import Any

from disttrain import missing
from disttrain.nn import functional, init, utils
from disttrain.nn.activation import (
    ELU,
    GELU,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from disttrain.nn.container import ModuleDict, ModuleList, ParameterList, Sequential
from disttrain.nn.conv import Conv2d
from disttrain.nn.dropout import Dropout
from disttrain.nn.flatten import Flatten, Unflatten
from disttrain.nn.linear import Bilinear, Identity, Linear
from disttrain.nn.loss import BCELoss, BCEWithLogitsLoss, CrossEntropyLoss, L1Loss, MSELoss, NLLLoss
from disttrain.nn.module import Module
from disttrain.nn.normalization import BatchNorm1d, BatchNorm2d, LayerNorm
from disttrain.nn.parameter import Buffer, Parameter
from disttrain.nn.pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from disttrain.nn.rnn import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNBase, RNNCell, RNNCellBase
from disttrain.nn.sparse import Embedding

__all__ = [
    "ELU",
    "GELU",
    "GRU",
    "LSTM",
    "RNN",
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BCELoss",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "Bilinear",
    "Buffer",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Embedding",
    "Flatten",
    "GRUCell",
    "Identity",
    "L1Loss",
    "LSTMCell",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MSELoss",
    "MaxPool2d",
    "Module",
    "ModuleDict",
    "ModuleList",
    "NLLLoss",
    "Parameter",
    "ParameterList",
    "RNNBase",
    "RNNCell",
    "RNNCellBase",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
    "Unflatten",
    "functional",
    "init",
    "parallel",
    "utils",
]


def __getattr__(name: str) -> Any:
    if name in ("modules", "parallel"):
        return importlib.import_module(f"disttrain.nn.{name}")
    raise missing.error("nn", name)
