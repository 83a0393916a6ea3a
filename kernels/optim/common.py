"""What the optimizer steps share: when the compiled kernel serves, and the check of the buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy

from disttrain.kernels.arrays import Array, get_array_module

SMALL = 2048
"""Below this many elements plain array operations are quicker than loading Numba; they give the same bits."""


def step_flat(
    kernel: Callable[..., Any],
    reference: Callable[..., Any],
    arrays: tuple[Array, ...],
    scalars: tuple[float, ...],
) -> None:
    """Make one step over flat buffers, the parameters first, with ``scalars`` rounded to their type.

    Args:
        kernel: compiled; called with the arrays and the scalars.
        reference: the same in plain array operations, for small buffers and other devices.
        arrays: an empty one stands for a buffer that the options do not need.
        scalars: numbers and switches.
    """
    param = arrays[0]
    check_flat(param, *(a for a in arrays[1:] if a.size))
    T = param.dtype.type
    values = [s if isinstance(s, bool) else T(s) for s in scalars]
    if compiled(param):
        kernel(*arrays, *values)
    else:
        with numpy.errstate(all="ignore"):  # compiled code does not warn either
            reference(*arrays, *values)


def compiled(param: Array) -> bool:
    """Return whether the compiled kernel serves: by place and size alone, never by what is loaded."""
    return get_array_module(param) is numpy and param.size >= SMALL


def check_flat(*arrays: Array | None) -> None:
    """Raise for buffers (``None`` is passed over) that are not flat, alike and of a type that kernels know."""
    first = arrays[0]
    assert first is not None
    for a in arrays:
        if a is None:
            continue
        if a.dtype != first.dtype or a.dtype.char not in "fd":
            raise TypeError(
                f"flat buffers must all be float32 or all float64, got {first.dtype} and {a.dtype}"
            )
        if a.shape != first.shape or a.ndim != 1 or not a.flags.c_contiguous:
            raise ValueError(
                f"flat buffers must be contiguous and of one size, got shapes {first.shape}, {a.shape}"
            )
