"""Functions of gradients and parameters, as ``torch.nn.utils``."""

from typing import TYPE_CHECKING

from disttrain import missing
from disttrain.nn.utils import parametrizations, parametrize, rnn, stateless
from disttrain.nn.utils.clip_grad import (
    clip_grad_norm,
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)
from disttrain.nn.utils.fusion import (
    fuse_conv_bn_eval,
    fuse_conv_bn_weights,
    fuse_linear_bn_eval,
    fuse_linear_bn_weights,
)
from disttrain.nn.utils.init import skip_init
from disttrain.nn.utils.regularization import l1_penalty, l2_penalty
from disttrain.nn.utils.spectral_norm import remove_spectral_norm, spectral_norm
from disttrain.nn.utils.vector import parameters_to_vector, vector_to_parameters
from disttrain.nn.utils.weight_norm import remove_weight_norm, weight_norm

if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)

__all__ = [
    "clip_grad_norm",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "fuse_conv_bn_eval",
    "fuse_conv_bn_weights",
    "fuse_linear_bn_eval",
    "fuse_linear_bn_weights",
    "get_total_norm",
    "l1_penalty",
    "l2_penalty",
    "parameters_to_vector",
    "parametrizations",
    "parametrize",
    "remove_spectral_norm",
    "remove_weight_norm",
    "rnn",
    "skip_init",
    "spectral_norm",
    "stateless",
    "vector_to_parameters",
    "weight_norm",
]
