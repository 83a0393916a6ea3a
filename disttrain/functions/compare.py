"""Comparisons of whole tensors, with PyTorch's names; they have no gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from disttrain import engine
from disttrain.functions.common import need_tensors
from disttrain.kernels.arrays import get_array_module

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


def equal(input: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have equal shapes and elements; NaN equals nothing.

    Raises:
        RuntimeError: the types differ in kind or size.
    """
    need_tensors("equal", input, other)
    return input.shape == other.shape and bool((input == other).all())


def isclose(
    input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> Tensor:
    """Return where ``|input - other| <= atol + rtol * |other|``, a boolean tensor of the broadcast shape.

    Infinities are close to themselves alone.

    Raises:
        RuntimeError: the types or the shapes differ beyond broadcasting, or a tolerance is negative.
    """
    need_tensors("isclose", input, other)
    if input.dtype is not other.dtype:
        raise RuntimeError(
            f"isclose() expects one dtype, got {input.dtype} and {other.dtype}; convert one with .to()"
        )
    if rtol < 0 or atol < 0:
        raise RuntimeError(f"isclose() needs tolerances of at least 0, got rtol={rtol}, atol={atol}")
    x, y = input._array, other._array
    xp = get_array_module(x)
    if x.dtype.kind != "f":  # bfloat16 has no isclose; booleans cannot be subtracted; integers wrap around
        x, y = x.astype(np.float64), y.astype(np.float64)
    try:
        return engine.Tensor_(xp.isclose(x, y, rtol, atol, equal_nan))  # type: ignore[no-any-return]
    except ValueError as error:
        raise RuntimeError(
            f"isclose(): shapes {list(input.shape)} and {list(other.shape)} do not broadcast"
        ) from error


def allclose(
    input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> bool:
    """Return whether all elements are close in the sense of :func:`isclose`."""
    return bool(isclose(input, other, rtol, atol, equal_nan).all())
