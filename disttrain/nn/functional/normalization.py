"""Normalisation, with PyTorch's names and defaults."""

from __future__ import annotations

from collections.abc import Sequence

from disttrain import engine
from disttrain.functions.activation import check_float
from disttrain.ops import norm
from disttrain.tensors import Tensor


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel over the batch and all other dimensions (Ioffe and Szegedy 2015).

    Args:
        input: ``(N, C, *)``.
        running_mean: ``(C,)``, **updated in place** in training, used outside of it.
        running_var: ``(C,)``, likewise, with the unbiased variance.
        weight: scale ``(C,)`` or ``None``.
        bias: shift ``(C,)`` or ``None``.
        training: take mean and variance from ``input``.
        momentum: weight of this batch in the running values.
        eps: added to the variance.

    Raises:
        ValueError: one value per channel in training, missing running values outside of it, or wrong shapes.
        TypeError: ``input`` is no floating point tensor.
    """
    check_float("batch_norm", input)
    out = engine.apply(
        norm.batch_norm,
        input,
        weight,
        bias,
        running_mean=None if running_mean is None else running_mean._array,
        running_var=None if running_var is None else running_var._array,
        training=training,
        momentum=momentum,
        eps=eps,
    )
    if training:
        for running in (running_mean, running_var):
            if running is not None:
                running._version_counter[0] += 1
    return out  # type: ignore[no-any-return]


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise over the last dimensions (Ba et al. 2016).

    Args:
        input: its shape ends with ``normalized_shape``.
        normalized_shape: the dimensions to normalise over.
        weight: scale, of ``normalized_shape``, or ``None``.
        bias: shift, of ``normalized_shape``, or ``None``.
        eps: added to the variance.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: ``input`` is no floating point tensor.
    """
    check_float("layer_norm", input)
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    return engine.apply(  # type: ignore[no-any-return]
        norm.layer_norm, input, weight, bias, normalized_shape=shape, eps=eps
    )


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """``input`` over its ``p``-norm along ``dim``, or over ``eps`` if that is larger."""
    return input / input.norm(p, dim, keepdim=True).clamp(min=eps)
