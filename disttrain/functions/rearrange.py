"""Elements repeated, reversed and rotated: copies, with PyTorch's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import engine
from disttrain.functions.common import normalize_dim, numpy_names, sizes
from disttrain.functions.shape import clone, given, ravel, reshape, transpose
from disttrain.modes import reads_values
from disttrain.ops import index as index_ops
from disttrain.ops import shape as ops

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


def repeat(input: Tensor, *times: Any, repeats: Any = None) -> Tensor:
    """A copy repeated ``repeats`` times along its dimensions; more numbers than dimensions add new ones in front.

    Raises:
        RuntimeError: there are fewer numbers than dimensions.
    """
    by = sizes(times) if repeats is None else given("repeat", "repeats", times, repeats)
    if min(by, default=0) < 0:
        raise RuntimeError(f"repeat(): the numbers of times must not be negative, got {list(by)}")
    if len(by) < input.ndim:
        raise RuntimeError(f"repeat(): {len(by)} numbers for a tensor of shape {list(input.shape)}")
    grown = reshape(input, (1,) * (len(by) - input.ndim) + tuple(input.shape))
    return engine.apply(ops.tile, grown, repeats=by)  # type: ignore[no-any-return]


def tile(input: Tensor, *times: Any, dims: Any = None) -> Tensor:
    """As :func:`repeat`; missing numbers in front are 1."""
    by = sizes(times) if dims is None else given("tile", "dims", times, dims)
    return repeat(input, (1,) * (input.ndim - len(by)) + by)


@numpy_names
def repeat_interleave(
    input: Tensor, repeats: Any = None, dim: int | None = None, *, output_size: int | None = None
) -> Tensor:
    """A copy with each element along ``dim`` (or of the flattened tensor) repeated, one after the other.

    Args:
        input: the elements; alone, numbers of times, and the result tells which number each place stands for.
        repeats: how often: a number, or int64 or int32 numbers, one for each element.
        dim: the dimension.
        output_size: how many there will be, checked if given.

    Raises:
        RuntimeError: a number is negative, there are too few or too many, or ``output_size`` is wrong.
    """
    if repeats is None:
        return repeat_interleave(engine.Tensor_._of(np.arange(input.numel())), input, 0)
    if dim is None:
        return repeat_interleave(ravel(input), repeats, 0, output_size=output_size)
    if not input.ndim:
        raise IndexError(f"repeat_interleave(): dim={dim}, but the tensor has no dimensions")
    d = normalize_dim(dim, input.ndim)
    n = input._array.shape[d]
    if isinstance(repeats, engine.Tensor_):
        if repeats.dtype.name not in ("int64", "int32"):
            raise RuntimeError(f"repeat_interleave(): repeats must be int64 or int32, got {repeats.dtype}")
        if repeats.ndim > 1:
            raise RuntimeError(
                f"repeat_interleave(): repeats must have at most 1 dimension, got {list(repeats.shape)}"
            )
        reads_values("repeat_interleave() by a tensor, whose result has a shape that depends on values,")
        times = repeats._array.reshape(-1)
    else:
        times = np.asarray([repeats] if isinstance(repeats, int) else repeats, np.int64)
    if times.size not in (1, n):
        raise RuntimeError(
            f"repeat_interleave(): {times.size} numbers of times for {n} elements of dimension {d}"
        )
    if times.size and times.min() < 0:
        raise RuntimeError(f"repeat_interleave(): repeats must not be negative, got {int(times.min())}")
    where = np.repeat(np.arange(n), times if times.size != 1 else int(times[0]))
    if output_size is not None and output_size != where.size:
        raise RuntimeError(f"repeat_interleave(): output_size is {output_size}, the result has {where.size}")
    return engine.apply(index_ops.take, input, key=(*[slice(None)] * d, where))  # type: ignore[no-any-return]


def flip(input: Tensor, *axes: Any, dims: Any = None) -> Tensor:
    """A copy with the order along ``dims`` reversed.

    Raises:
        RuntimeError: a dimension is named twice.
    """
    wanted = given("flip", "dims", axes, dims)
    along = tuple(normalize_dim(d, input.ndim) for d in wanted)
    if len(set(along)) < len(along):
        raise RuntimeError(f"flip(): a dimension appears twice in dims={list(wanted)}")
    if not input.ndim or not along:
        return clone(input)
    return engine.apply(ops.flip, input, axes=along)  # type: ignore[no-any-return]


def fliplr(input: Tensor) -> Tensor:
    """A copy with the order along dimension 1 reversed."""
    if input.ndim < 2:
        raise RuntimeError(f"fliplr() needs at least 2 dimensions, got shape {list(input.shape)}")
    return flip(input, 1)


def flipud(input: Tensor) -> Tensor:
    """A copy with the order along dimension 0 reversed."""
    if input.ndim < 1:
        raise RuntimeError("flipud() needs at least 1 dimension, got a tensor without")
    return flip(input, 0)


def rot90(input: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> Tensor:
    """A copy turned ``k`` times by 90 degrees in the plane of two dimensions, from the first towards the second.

    Raises:
        RuntimeError: ``dims`` are not two different dimensions.
    """
    if len(dims) != 2:
        raise RuntimeError(f"rot90() needs 2 dims, got {list(dims)}")
    if input.ndim < 2:
        raise RuntimeError(f"rot90() needs at least 2 dimensions, got shape {list(input.shape)}")
    a, b = (normalize_dim(d, input.ndim) for d in dims)
    if a == b:
        raise RuntimeError(f"rot90(): dims must be different, got {list(dims)}")
    if k % 4 == 1:
        return transpose(flip(input, b), a, b)
    if k % 4 == 2:
        return flip(input, a, b)
    if k % 4 == 3:
        return transpose(flip(input, a), a, b)
    return engine.apply(ops.copy, input, order="C")  # type: ignore[no-any-return]


def roll(input: Tensor, shifts: Any, dims: Any = None) -> Tensor:
    """A copy shifted along ``dims``; what leaves at one end comes in at the other. Flattened without ``dims``.

    Raises:
        RuntimeError: the numbers of shifts and dimensions differ.
    """
    by = (shifts,) if isinstance(shifts, int) else tuple(shifts)
    if not by:
        raise RuntimeError("roll() needs shifts, got none")
    if dims is None or (not isinstance(dims, int) and not len(dims)):
        if len(by) != 1:
            raise RuntimeError(f"roll(): {len(by)} shifts, but no dims")
        flat: Tensor = engine.apply(ops.roll, ravel(input), shifts=by, axes=(0,))
        return reshape(flat, input.shape)
    axes = (dims,) if isinstance(dims, int) else tuple(dims)
    if len(by) != len(axes):
        raise RuntimeError(f"roll(): {len(by)} shifts, but {len(axes)} dims")
    if not input.ndim:
        raise IndexError(f"roll(): dims={dims!r}, but the tensor has no dimensions")
    axes = tuple(normalize_dim(d, input.ndim) for d in axes)
    return engine.apply(ops.roll, input, shifts=by, axes=axes)  # type: ignore[no-any-return]
