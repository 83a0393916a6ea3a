"""Functions of neural networks without state, with PyTorch's names and defaults (``torch.nn.functional``)."""

from disttrain.functions.activation import elu, gelu, leaky_relu, log_softmax, relu, silu, softmax, softplus
from disttrain.functions.creation import one_hot
from disttrain.functions.elementwise import sigmoid, tanh
from disttrain.nn.functional.conv import conv2d
from disttrain.nn.functional.dropout import dropout
from disttrain.nn.functional.linear import bilinear, linear
from disttrain.nn.functional.loss import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    l1_loss,
    mse_loss,
    nll_loss,
)
from disttrain.nn.functional.normalization import batch_norm, layer_norm, normalize
from disttrain.nn.functional.padding import pad
from disttrain.nn.functional.pooling import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from disttrain.nn.functional.sparse import embedding

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "batch_norm",
    "bilinear",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "conv2d",
    "cross_entropy",
    "dropout",
    "elu",
    "embedding",
    "gelu",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_softmax",
    "max_pool2d",
    "mse_loss",
    "nll_loss",
    "normalize",
    "one_hot",
    "pad",
    "relu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "tanh",
]
