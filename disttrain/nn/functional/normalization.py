"""Normalisation, with PyTorch's names and defaults."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from disttrain import engine
from disttrain.functions.out import with_out
from disttrain.kernels.axes import spans
from disttrain.nn.functional.checks import check_affine, check_kind
from disttrain.ops import axes, norm
from disttrain.precision import autocasts
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
        ValueError: one value per channel in training, ``eps`` that is not positive, or one running value without
            the other.
        RuntimeError: missing running values outside of training, or wrong shapes or dtypes.
        TypeError: ``input`` is no Tensor.
    """
    return batch_norm_add_relu(input, running_mean, running_var, weight, bias, training, momentum, eps)


def batch_norm_add_relu(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """:func:`batch_norm`, plus ``residual`` of the shape and dtype of ``input``, and after ReLU, if that is wanted."""
    check_kind("batch_norm", input, "fV")
    if eps <= 0:
        raise ValueError(f"batch_norm: eps must be positive, got {eps}")
    if (running_mean is None) != (running_var is None):
        raise ValueError("batch_norm: running_mean and running_var go together; give both, or None for both")
    check_affine("batch_norm", input, weight, bias, running_mean, running_var)
    if input.numel() == 0 and input.ndim == 1:
        return input.clone()  # as PyTorch, which looks at no shape of what is empty
    out = engine.apply(
        norm.batch_norm,
        input,
        weight,
        bias,
        residual,
        running_mean=None if running_mean is None else running_mean._array,
        running_var=None if running_var is None else running_var._array,
        training=training,
        momentum=momentum,
        eps=eps,
        relu=relu,
    )
    if training:
        for running in (running_mean, running_var):
            if running is not None:
                running._version_counter[0] += 1
    return out  # type: ignore[no-any-return]


@autocasts
def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
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
        RuntimeError: shapes or dtypes that do not fit.
        TypeError: ``input`` is no Tensor, or ``normalized_shape`` no tuple.
    """
    check_kind("layer_norm", input, "fV")
    check_affine("layer_norm", input, weight, bias)
    shape = _sizes("layer_norm", normalized_shape)
    return engine.apply(  # type: ignore[no-any-return]
        norm.layer_norm, input, weight, bias, normalized_shape=shape, eps=eps
    )


@autocasts
def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Divide by the root mean square over the last dimensions (Zhang and Sennrich 2019).

    Args:
        input: its shape ends with ``normalized_shape``.
        normalized_shape: the dimensions to normalise over.
        weight: scale, of ``normalized_shape``, or ``None``.
        eps: added to the mean square; by default the spacing of numbers at 1.

    Raises:
        RuntimeError: shapes that do not fit.
        TypeError: ``input`` is no Tensor, or ``normalized_shape`` no tuple.
    """
    check_kind("rms_norm", input, "fV")
    shape = _sizes("rms_norm", normalized_shape)
    return engine.apply(  # type: ignore[no-any-return]
        norm.rms_norm, input, weight, normalized_shape=shape, eps=eps
    )


def _sizes(name: str, normalized_shape: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(normalized_shape, tuple | list):
        raise TypeError(f"{name}: normalized_shape must be a tuple of integers, got {normalized_shape!r}")
    return tuple(normalized_shape)


@autocasts
def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each group of channels of each element of the batch (Wu and He 2018).

    Args:
        input: ``(N, C, *)``.
        num_groups: into so many groups the channels are split.
        weight: scale ``(C,)`` or ``None``.
        bias: shift ``(C,)`` or ``None``.
        eps: added to the variance.

    Raises:
        ValueError: one value per group.
        RuntimeError: shapes that do not fit.
        TypeError: ``input`` is no Tensor.
    """
    check_kind("group_norm", input, "fV")
    check_affine("group_norm", input, weight, bias)
    if input.ndim < 2:
        raise RuntimeError(f"group_norm: expected input (N, C, *), got shape {tuple(input.shape)}")
    N, C, *size = input.shape
    if num_groups < 1 or C % num_groups:
        raise RuntimeError(f"group_norm: num_groups={num_groups} must divide the {C} channels")
    values = C // num_groups * math.prod(size)
    if N * values == 1:
        raise ValueError(f"group_norm needs more than one value per group, got shape {tuple(input.shape)}")
    return _grouped("group_norm", input, (N * num_groups, values), weight, bias, eps)


def _grouped(
    name: str, input: Tensor, rows: tuple[int, int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Return ``input`` normalised row by row after a reshape to ``rows``, scaled and shifted by channel."""
    C = input.shape[1]
    out = input
    if input.numel():
        flat = input.reshape(rows)
        out = engine.apply(norm.layer_norm, flat, normalized_shape=rows[1:], eps=eps).reshape(input.shape)
    for what, factor in (("weight", weight), ("bias", bias)):
        if factor is None:
            continue
        if tuple(factor.shape) != (C,):
            raise RuntimeError(f"{name}: {what} must have shape ({C},), got {tuple(factor.shape)}")
        per_channel = factor.to(input.dtype).reshape(C, *[1] * (input.ndim - 2))
        out = out * per_channel if what == "weight" else out + per_channel
    return out.clone() if out is input else out


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel of each element of the batch (Ulyanov et al. 2016).

    Args:
        input: ``(N, C, *)``.
        running_mean: ``(C,)``, **updated in place** where ``use_input_stats`` holds, used where it does not.
        running_var: ``(C,)``, likewise, with the unbiased variance.
        weight: scale ``(C,)`` or ``None``.
        bias: shift ``(C,)`` or ``None``.
        use_input_stats: take mean and variance from ``input``.
        momentum: weight of this batch in the running values.
        eps: added to the variance.

    Raises:
        ValueError: one value per channel.
        RuntimeError: missing running values where they are used, or wrong shapes.
        TypeError: ``input`` is no Tensor.
    """
    check_kind("instance_norm", input, "fV")
    check_affine("instance_norm", input, weight, bias, running_mean, running_var)
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if input.ndim < 2:
        raise RuntimeError(f"instance_norm: expected input (N, C, *), got shape {tuple(input.shape)}")
    N, C, *size = input.shape
    values = math.prod(size)
    if values == 1:
        raise ValueError(
            f"instance_norm needs more than one value per channel, got shape {tuple(input.shape)}"
        )
    for what, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running is not None and tuple(running.shape) != (C,):
            raise RuntimeError(f"instance_norm: {what} must have shape ({C},), got {tuple(running.shape)}")
    if input.numel():
        with engine.no_grad():
            flat = input.reshape(N, C, values)
            if running_mean is not None:
                running_mean.lerp_(flat.mean(2).mean(0).to(running_mean.dtype), momentum)
            if running_var is not None:
                running_var.lerp_(flat.var(2).mean(0).to(running_var.dtype), momentum)
    return _grouped("instance_norm", input, (N * C, values), weight, bias, eps)


def local_response_norm(
    input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """``input`` over ``(k + alpha * m) ** beta``, ``m`` the mean square over nearby channels (Krizhevsky et al. 2012).

    Args:
        input: ``(N, C, *)``.
        size: number of channels in the mean; those beyond the first and the last are zero.
        alpha: factor of the mean.
        beta: exponent.
        k: added before.

    Raises:
        ValueError: fewer than 3 dimensions.
        RuntimeError: a size below 1.
    """
    check_kind("local_response_norm", input, "fV", "int64")
    if input.ndim < 3:
        raise ValueError(f"local_response_norm: expected input (N, C, *), got shape {tuple(input.shape)}")
    if size < 1:
        raise RuntimeError(f"local_response_norm: size must be at least 1, got {size}")
    if not input.numel():
        return input
    C, whole = input.shape[1], not input.is_floating_point()
    starts = np.arange(C) - size // 2
    nearby = spans(
        np.maximum(starts, 0), np.minimum(starts + size, C), np.full(C, 1 if whole else 1 / size), C
    )
    squares: Tensor = engine.apply(axes.map_axes, input * input, maps=((1, nearby),))
    if whole:
        squares = squares.div(size, rounding_mode="trunc")
    return input / (squares * alpha + k) ** beta


@with_out
def normalize(input: Tensor, p: float = 2.0, dim: int | Sequence[int] = 1, eps: float = 1e-12) -> Tensor:
    """``input`` over its ``p``-norm along ``dim``, or over ``eps`` if that is larger."""
    return input / input.norm(p, dim, keepdim=True).clamp(min=eps)
