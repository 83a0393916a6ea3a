"""Dropout, with PyTorch's names and defaults. The random bits are the next of the calling rank's generator."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from disttrain import engine, random
from disttrain.functions.activation import SELU_ALPHA, SELU_SCALE
from disttrain.kernels.arrays import on_gpu
from disttrain.modes import replayed
from disttrain.ops import dropout as dropout_ops
from disttrain.ops.types import Op
from disttrain.tensors import Tensor


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """In training, zero each element with probability ``p`` and divide the others by ``1 - p``.

    Srivastava et al. 2014.

    Raises:
        ValueError: ``p`` is not in [0, 1].
        RuntimeError: ``input`` holds integers, in training.
    """
    _check("dropout", input, p)
    if not training or p == 0 or not input.numel():
        return input
    return _drop(input, p, inplace, input._array.shape)


def dropout1d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """In training, zero each channel of ``(N, C, L)`` or ``(C, L)`` with probability ``p``; see :func:`dropout`.

    Raises:
        ValueError: ``p`` is not in [0, 1].
        RuntimeError: another number of dimensions.
    """
    _check("dropout1d", input, p)
    if input.ndim not in (2, 3):
        raise RuntimeError(f"dropout1d: input is (N, C, L) or (C, L), got shape {tuple(input.shape)}")
    return _drop_features(input, p, training, inplace, 1 if input.ndim == 2 else 2)


def dropout2d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """In training, zero each channel of ``(N, C, H, W)`` with probability ``p``; see :func:`dropout`.

    Raises:
        ValueError: ``p`` is not in [0, 1].
        RuntimeError: fewer than 2 dimensions.
    """
    _check("dropout2d", input, p)
    if input.ndim not in (3, 4):
        warnings.warn(
            f"dropout2d: an input of {input.ndim} dimensions has no (N, C, H, W) or (C, H, W) and will be refused some "
            f"day; use dropout",
            stacklevel=2,
        )
    elif input.ndim == 3:
        warnings.warn(
            "dropout2d: an input of 3 dimensions is taken for (N, C, L); use dropout1d for that",
            stacklevel=2,
        )
    return _drop_features(input, p, training, inplace, 2)


def dropout3d(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """In training, zero each channel of ``(N, C, D, H, W)`` or ``(C, D, H, W)`` with probability ``p``.

    Raises:
        ValueError: ``p`` is not in [0, 1].
    """
    _check("dropout3d", input, p)
    if input.ndim not in (4, 5):
        warnings.warn(
            f"dropout3d: an input of {input.ndim} dimensions has no (N, C, D, H, W) or (C, D, H, W) and will be "
            f"refused some day; use dropout",
            stacklevel=2,
        )
    return _drop_features(input, p, training, inplace, 2 if input.ndim == 5 else 1)


def alpha_dropout(input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False) -> Tensor:
    """In training, set elements to SELU's least value and keep mean and variance (Klambauer et al. 2017).

    Raises:
        ValueError: ``p`` is not in [0, 1].
        RuntimeError: ``input`` holds integers, in training.
    """
    _check("alpha_dropout", input, p)
    if not training or p == 0 or not input.numel():
        return input
    return _saturate(input, p, inplace, input._array.shape)


def feature_alpha_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    """:func:`alpha_dropout` of whole channels ``(N, C, ...)``.

    Raises:
        ValueError: ``p`` is not in [0, 1].
        RuntimeError: fewer than 2 dimensions, or integers, in training.
    """
    _check("feature_alpha_dropout", input, p)
    if not training or p == 0 or not input.numel():
        return input
    return _saturate(input, p, inplace, _features("feature_alpha_dropout", input, 2))


def _check(name: str, input: Tensor, p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: p is a probability, in [0, 1], got {p}")
    if not isinstance(input, Tensor):
        raise TypeError(
            f"{name}() needs a Tensor, got {type(input).__name__}; convert it with disttrain.tensor()"
        )


def _features(name: str, input: Tensor, dims: int) -> tuple[int, ...]:
    """Return the shape of one number for each channel; these end at dimension ``dims``."""
    if input.ndim < dims:
        raise RuntimeError(
            f"{name}: input needs dimensions of samples and features, got {input.ndim} dimensions"
        )
    return (*input.shape[:dims], *[1] * (input.ndim - dims))


def _drop_features(input: Tensor, p: float, training: bool, inplace: bool, dims: int) -> Tensor:
    if not training or p == 0 or not input.numel():
        return input
    return _drop(input, p, inplace, _features("dropout", input, dims))


def _drop(input: Tensor, p: float, inplace: bool, shape: tuple[int, ...]) -> Tensor:
    _need_float(input)
    x = input._array
    op: Op = dropout_ops.dropout
    drawn = None
    if on_gpu(x) and x.shape == shape and x.flags.c_contiguous:
        drawn = random.gpu_key(input.device)
    if drawn is None:
        drawn = random.bits32(shape, device=input.device)
    else:
        op = dropout_ops.dropout_by_key
    if inplace:
        return engine.write_in_place(input, op, drawn, p=p)
    return engine.apply(op, input, drawn, p=p)  # type: ignore[no-any-return]


def _need_float(input: Tensor) -> None:
    if not input.dtype.is_floating_point:
        raise RuntimeError(
            f"dropout of {input.dtype}: the result type is a floating point type and can't be cast to it; convert "
            f"with .float()"
        )


def _saturate(input: Tensor, p: float, inplace: bool, shape: tuple[int, ...]) -> Tensor:
    _need_float(input)
    factor, offset = (t.to(input.device) for t in _saturation(p, shape, input._array.dtype))
    if inplace:
        return input.mul_(factor).add_(offset)
    return input * factor + offset


@replayed
def _saturation(p: float, shape: tuple[int, ...], kind: np.dtype[Any]) -> tuple[Tensor, Tensor]:
    """Draw by what an input is multiplied and what is added to it, so that some of it becomes SELU's least value."""
    low = -SELU_SCALE * SELU_ALPHA  # the limit of SELU at minus infinity
    kept = random.bits32(shape) >= round(p * 2**32)
    scale = (1 - p + low * low * p * (1 - p)) ** -0.5 if p < 1 else 0.0
    offset = (~kept) * (low * scale) - low * p * scale
    return Tensor._of(np.asarray(kept * scale, kind)), Tensor._of(np.asarray(offset, kind))
