"""Batch normalisation folded into the layer before it, for evaluation, as ``torch.nn.utils.fusion``."""

from __future__ import annotations

import copy
from typing import TypeVar

from disttrain.engine import no_grad
from disttrain.functions.creation import zeros_like
from disttrain.nn.module import Module
from disttrain.nn.parameter import Parameter
from disttrain.tensors import Tensor

__all__ = ["fuse_conv_bn_eval", "fuse_conv_bn_weights", "fuse_linear_bn_eval", "fuse_linear_bn_weights"]

M = TypeVar("M", bound=Module)


def fuse_conv_bn_eval(conv: M, bn: Module, transpose: bool = False) -> M:
    """Return a copy of a convolution that gives what the batch normalisation makes of its output.

    Args:
        conv: the convolution, in evaluation mode.
        bn: the normalisation of its output, in evaluation mode, with running values.
        transpose: the convolution is a transposed one.

    Raises:
        RuntimeError: one of them is in training mode, or the normalisation has no running values.
    """
    fused, mean, var = _copied(conv, bn)
    fused.weight, fused.bias = fuse_conv_bn_weights(
        fused.weight, fused.bias, mean, var, bn.eps, bn.weight, bn.bias, transpose
    )
    return fused


def fuse_conv_bn_weights(
    conv_w: Tensor,
    conv_b: Tensor | None,
    bn_rm: Tensor,
    bn_rv: Tensor,
    bn_eps: float,
    bn_w: Tensor | None,
    bn_b: Tensor | None,
    transpose: bool = False,
) -> tuple[Parameter, Parameter]:
    """Return the weight and the bias of a convolution with the normalisation in them.

    Args:
        conv_w: the weight, ``(out, in / groups, ...)``, or ``(in, out / groups, ...)`` of a transposed one.
        conv_b: the bias ``(out,)`` or ``None``.
        bn_rm: running mean ``(out,)``.
        bn_rv: running variance ``(out,)``.
        bn_eps: added to the variance.
        bn_w: scale ``(out,)`` or ``None``.
        bn_b: shift ``(out,)`` or ``None``.
        transpose: the convolution is a transposed one, of one group.
    """
    shape = [1] * conv_w.ndim
    shape[int(transpose)] = -1
    return _fused(conv_w, conv_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b, shape)


def fuse_linear_bn_eval(linear: M, bn: Module) -> M:
    """Return a copy of a linear layer that gives what the batch normalisation makes of its output.

    Args:
        linear: the layer, in evaluation mode.
        bn: the normalisation of its output, in evaluation mode, with running values; of as many features, or of
            one for all of them.

    Raises:
        RuntimeError: one of them is in training mode, or the normalisation has no running values.
        ValueError: the numbers of features do not fit.
    """
    fused, mean, var = _copied(linear, bn)
    if bn.num_features not in (fused.out_features, 1):
        raise ValueError(
            f"cannot fuse a layer of {fused.out_features} outputs with a normalisation of {bn.num_features} features"
        )
    fused.weight, fused.bias = fuse_linear_bn_weights(
        fused.weight, fused.bias, mean, var, bn.eps, bn.weight, bn.bias
    )
    return fused


def fuse_linear_bn_weights(
    linear_w: Tensor,
    linear_b: Tensor | None,
    bn_rm: Tensor,
    bn_rv: Tensor,
    bn_eps: float,
    bn_w: Tensor | None,
    bn_b: Tensor | None,
) -> tuple[Parameter, Parameter]:
    """Return the weight ``(out, in)`` and the bias of a linear layer with the normalisation in them."""
    return _fused(linear_w, linear_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b, [-1, 1])


def _copied(layer: M, bn: Module) -> tuple[M, Tensor, Tensor]:
    if layer.training or bn.training:
        raise RuntimeError("layers are fused for evaluation only; call eval() on both first")
    if bn.running_mean is None or bn.running_var is None:
        raise RuntimeError(f"{bn!r} has no running values, so that there is nothing fixed to fold in")
    return copy.deepcopy(layer), bn.running_mean, bn.running_var


def _fused(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    shape: list[int],
) -> tuple[Parameter, Parameter]:
    with no_grad():
        factor = (var + eps).rsqrt() if scale is None else scale * (var + eps).rsqrt()
        before = zeros_like(mean) if bias is None else bias
        moved = (before - mean) * factor
        kind = weight.dtype if bias is None else bias.dtype
        new_weight = (weight * factor.reshape(shape)).to(weight.dtype)
        new_bias = (moved if shift is None else moved + shift).to(kind)
    return (
        Parameter(new_weight, weight.requires_grad),
        Parameter(new_bias, bias is not None and bias.requires_grad),
    )
