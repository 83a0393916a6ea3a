"""Padding, with PyTorch's names and defaults."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from disttrain import engine
from disttrain.functions.common import as_operand, fitting
from disttrain.kernels.axes import AxisMap, selection
from disttrain.nn.functional.checks import check_kind
from disttrain.ops import axes as axes_ops
from disttrain.ops import shape as ops
from disttrain.precision import autocasts_as
from disttrain.tensors import Tensor


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """``input`` with elements around it.

    Args:
        input: any tensor; but for ``"constant"``, of one to three dimensions behind ``(N, C)`` or ``(C)``.
        pad: numbers of elements (before, after) from the last dimension backwards; negative ones cut.
        mode: what the elements are: ``"constant"``, or of the input: ``"reflect"`` (mirrored at the edge, which
            is not repeated), ``"replicate"`` (the nearest) or ``"circular"`` (from the other end).
        value: the constant, 0 by default.

    Raises:
        NotImplementedError: a number of dimensions that the mode does not know.
        RuntimeError: ``pad`` that does not fit the input, or a ``value`` in another mode than ``"constant"``.
        TypeError: ``pad`` is no tuple or list of integers.
    """
    check_kind("pad", input, "fViub")
    if not isinstance(pad, tuple | list):
        raise TypeError(f"pad must be a tuple of integers, got {type(pad).__name__}: {pad!r:.80}")
    try:
        widths = tuple(map(operator.index, pad))
    except TypeError:
        raise TypeError(f"pad must be a tuple of integers, got {pad!r:.80}") from None
    if len(widths) % 2 or len(widths) // 2 > input.ndim:
        raise RuntimeError(
            f"pad must hold a pair for each of at most {input.ndim} dimensions, got {list(widths)}"
        )
    pairs = [(widths[i], widths[i + 1]) for i in range(0, len(widths), 2)][::-1]
    first = input.ndim - len(pairs)
    sizes = input._array.shape[first:]
    if any(n + a + b < 0 or max(-a, 0) + max(-b, 0) > n for n, (a, b) in zip(sizes, pairs, strict=True)):
        raise RuntimeError(f"pad {list(widths)} cuts more than there is of shape {tuple(input.shape)}")
    if mode == "constant":
        filler = fitting("pad", as_operand(value or 0), input._array.dtype)
        return engine.apply(  # type: ignore[no-any-return]
            ops.pad, input, widths=((0, 0),) * first + tuple(pairs), value=filler
        )
    if mode not in ("reflect", "replicate", "circular"):
        raise NotImplementedError(
            f"pad() knows the modes 'constant', 'reflect', 'replicate' and 'circular', got {mode!r}"
        )
    if value is not None and value != 0:
        raise RuntimeError(f"pad(): mode {mode!r} takes no value, got {value!r}")
    if not 1 <= len(pairs) <= 3 or first not in (1, 2):
        raise NotImplementedError(
            f"pad(): mode {mode!r} pads the last 1, 2 or 3 dimensions behind (N, C) or (C), got {list(widths)} for "
            f"shape {tuple(input.shape)}"
        )
    if 0 in input._array.shape[first - 1 :]:
        raise RuntimeError(f"pad(): mode {mode!r} needs elements to take, got shape {tuple(input.shape)}")
    if mode != "circular" and all(n + a + b == 0 for n, (a, b) in zip(sizes, pairs, strict=True)):
        raise RuntimeError(f"pad {list(widths)} leaves nothing of shape {tuple(input.shape)}")
    maps = tuple(
        (first + i, _map(mode, n, *pair)) for i, (n, pair) in enumerate(zip(sizes, pairs, strict=True))
    )
    if mode == "circular" or (mode == "reflect" and len(pairs) == 3):
        return engine.apply(axes_ops.map_axes, input, maps=maps)  # type: ignore[no-any-return]
    return _by_copies(input, maps)


@autocasts_as("pad_by_copies")
def _by_copies(input: Tensor, maps: tuple[tuple[int, AxisMap], ...]) -> Tensor:
    """Return ``input`` with copies of its elements around it, by the functions that are in autocast's lists."""
    return engine.apply(axes_ops.map_axes, input, maps=maps)  # type: ignore[no-any-return]


def _map(mode: str, n: int, before: int, after: int) -> AxisMap:
    limit = {"reflect": n - 1, "circular": n}.get(mode)
    if limit is not None and max(before, after) > limit:
        raise RuntimeError(
            f"pad(): mode {mode!r} can add at most {limit} elements to {n}, got {(before, after)}"
        )
    at = np.arange(-before, n + after)
    first, kept = max(-before, 0), n - max(-before, 0) - max(-after, 0)
    if mode == "circular" and kept < 1 <= len(at):
        raise RuntimeError(f"pad(): {(before, after)} leaves nothing of {n} elements")
    if mode == "circular":  # cut first, then go on at the other end of what is left
        return selection(first + (at - first) % max(kept, 1), n)
    if mode == "reflect":
        at = np.abs(at)
        at = np.where(at >= n, 2 * (n - 1) - at, at)
    else:
        at = np.clip(at, 0, n - 1)
    return selection(at, n)
