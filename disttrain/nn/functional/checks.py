"""Checks of arguments that several functions share, with PyTorch's names and defaults."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from disttrain import dtypes
from disttrain.functions.activation import check_float
from disttrain.tensors import Tensor


def each(name: str, what: str, value: Any, n: int) -> tuple[int, ...]:
    """Return ``value``, one integer or ``n`` of them, as ``n``.

    Raises:
        RuntimeError: another number of integers.
        TypeError: not integers.
    """
    if isinstance(value, int):
        return (value,) * n
    values = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    try:
        values = tuple(map(operator.index, values))
    except TypeError:
        raise TypeError(f"{name}: {what} must be {_integers(n)}, got {value!r}") from None
    if len(values) not in (1, n):
        raise RuntimeError(f"{name}: {what} must be {_integers(n)}, got {value!r}")
    return values * n if len(values) == 1 else values


def _integers(n: int) -> str:
    return "an integer" if n == 1 else f"an integer or {n} of them"


AXES = ("L", "H, W", "D, H, W")
"""What the axes of lines, images and volumes are called."""


def batch(name: str, input: Tensor, n: int, channels: str = "C") -> tuple[Tensor, bool]:
    """Return ``input`` as a batch of images of ``n`` axes, and whether it was one.

    Raises:
        RuntimeError: it is neither ``(N, C, ...)`` nor ``(C, ...)``.
    """
    shape = input._array.shape
    if len(shape) == n + 2:
        return input, True
    if len(shape) == n + 1:
        return input.unsqueeze(0), False
    raise RuntimeError(
        f"{name}: expected input of shape (N, {channels}, {AXES[n - 1]}) or ({channels}, {AXES[n - 1]}), "
        f"got {tuple(shape)}"
    )


def check_kind(name: str, input: Any, kinds: str, *types: str) -> None:
    """Check that ``input`` is a Tensor of one of NumPy's ``kinds`` (``fV``: floating point), or of one of ``types``.

    Raises:
        TypeError: it is no Tensor.
        NotImplementedError: it is of another type.
    """
    if not isinstance(input, Tensor):
        raise TypeError(
            f"{name}() needs a Tensor, got {type(input).__name__}; convert it with disttrain.tensor()"
        )
    dtype = input._array.dtype
    if dtype.kind not in kinds and dtype.name not in types:
        raise NotImplementedError(
            f"{name}() needs a floating point tensor, got {input.dtype}; convert it with .float()"
        )


def check_affine(name: str, input: Tensor, *parameters: Tensor | None) -> None:
    """Check that the parameters of a normalisation are of the dtype of ``input``; of float32 for halves too.

    Raises:
        RuntimeError: they are of another.
    """
    kind = input._array.dtype
    others = [p for p in parameters if p is not None and p._array.dtype != kind]
    if not others:
        return
    given = [p for p in parameters if p is not None]
    if kind.itemsize != 2 or any(p.dtype is not dtypes.float32 for p in given):
        raise RuntimeError(
            f"{name}: input is {input.dtype}, but a parameter or running value is {others[0].dtype}; expected one "
            f"dtype, or float32 beside a half precision input; convert with .to()"
        )


def check_dtypes(name: str, input: Any, weight: Tensor, bias: Tensor | None = None) -> None:
    check_float(name, input)
    kind = weight._array.dtype
    if input._array.dtype != kind or (bias is not None and bias._array.dtype != kind):
        also = "" if bias is None or bias._array.dtype == kind else f" and bias {bias.dtype}"
        raise TypeError(
            f"{name}: expected one dtype, got input {input.dtype}, weight {weight.dtype}{also}; convert with .to()"
        )
