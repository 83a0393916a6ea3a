"""Checks of arguments that several functions share, with PyTorch's names and defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disttrain.functions.activation import check_float
from disttrain.tensors import Tensor

Pair = int | Sequence[int]


def pair(name: str, what: str, value: Pair) -> tuple[int, int]:
    """Return ``value``, one number or two, as two.

    Raises:
        ValueError: another number of numbers.
        TypeError: not whole numbers.
    """
    if isinstance(value, int):
        return value, value
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if not values or not all(isinstance(v, int) for v in values):
        raise TypeError(f"{name}: {what} must be one or two integers, got {value!r}")
    if len(values) > 2:
        raise ValueError(f"{name}: {what} must be one or two integers, got {value!r}")
    return values[0], values[-1]


def images(name: str, input: Tensor, channels: str = "C") -> tuple[Tensor, bool]:
    """Return ``input`` as a batch of images, and whether it was one."""
    shape = input._array.shape
    if len(shape) == 4:
        return input, True
    if len(shape) == 3:
        return input.unsqueeze(0), False
    raise ValueError(
        f"{name}: expected images (N, {channels}, H, W) or one image ({channels}, H, W), got shape {shape}"
    )


def check_dtypes(name: str, input: Any, weight: Tensor, bias: Tensor | None = None) -> None:
    check_float(name, input)
    kind = weight._array.dtype
    if input._array.dtype != kind or (bias is not None and bias._array.dtype != kind):
        also = "" if bias is None or bias._array.dtype == kind else f" and bias {bias.dtype}"
        raise TypeError(
            f"{name}: expected one dtype, got input {input.dtype}, weight {weight.dtype}{also}; convert with .to()"
        )
