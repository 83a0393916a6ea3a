"""Rows looked up by number, with PyTorch's names and defaults."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from disttrain import engine
from disttrain.kernels.arrays import get_array_module, to_host
from disttrain.modes import reads_values
from disttrain.ops import embedding as ops
from disttrain.ops.activation import widen
from disttrain.tensors import Tensor


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Rows of a table by number.

    Args:
        input: integers in ``[0, rows)``, any shape.
        weight: the table, ``(rows, embedding_dim)``.
        padding_idx: the row that gets no gradient.
        max_norm: first scale the rows that are looked up, in place, to have at most this norm.
        norm_type: which norm.
        scale_grad_by_freq: divide the gradient of each row by the number of its indices.
        sparse: without effect: the gradient is a dense tensor.

    Returns:
        ``(*input.shape, embedding_dim)``.

    Raises:
        IndexError: an index out of range; names it and its place.
        RuntimeError: ``input`` does not hold int32 or int64, or the table is no matrix.
        ValueError: ``padding_idx`` is out of range.
        TypeError: ``input`` is no Tensor.
    """
    _check_indices("embedding", input)
    if max_norm is not None:
        _limit_norms(weight, input, max_norm, norm_type)
    return engine.apply(  # type: ignore[no-any-return]
        ops.embedding, weight, input, padding_idx=padding_idx, by_frequency=scale_grad_by_freq
    )


def _check_indices(name: str, input: Tensor) -> None:
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}() needs a Tensor of integers, got {type(input).__name__}")
    if input._array.dtype not in (np.int64, np.int32):
        raise RuntimeError(
            f"{name}: indices must be integers, int64 or int32, got {input.dtype}; convert with .long()"
        )


def _limit_norms(weight: Tensor, input: Tensor, max_norm: float, norm_type: float) -> None:
    reads_values("max_norm, which changes rows of the table by their norms,")
    xp = get_array_module(weight._array)
    ops.check_range(input._array, weight.shape[0], "embedding: index")
    used = xp.unique(input._array)
    rows = xp.abs(widen(weight._array[used])).astype(np.float64)
    if norm_type == float("inf"):
        norms = rows.max(1, keepdims=True, initial=0)
    else:
        norms = (rows**norm_type).sum(1, keepdims=True) ** (1 / norm_type)
    factor = xp.where(norms > max_norm, max_norm / (norms + 1e-7), 1.0)
    weight._array[used] = (weight._array[used] * factor).astype(weight._array.dtype)
    weight.detach()._version_counter[0] += 1


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Sums, means or maxima of bags of rows of a table.

    Args:
        input: integers in ``[0, rows)``: bags of one size ``(B, n)``, or all bags one after another.
        weight: the table, ``(rows, embedding_dim)``.
        offsets: where each bag begins if ``input`` is a vector.
        max_norm: first scale the rows that are looked up, in place, to have at most this norm.
        norm_type: which norm.
        scale_grad_by_freq: divide the gradient of each row by the number of its indices.
        mode: ``"sum"``, ``"mean"`` or ``"max"``.
        sparse: without effect: the gradient is a dense tensor.
        per_sample_weights: factor of each row, of the shape of ``input``, for sums.
        include_last_offset: the last of ``offsets`` is where the last bag ends.
        padding_idx: indices that do not count.

    Returns:
        ``(B, embedding_dim)``; zeros for an empty bag.

    Raises:
        ValueError: arguments that do not fit together.
        RuntimeError: dtypes or offsets that do not fit.
        IndexError: an index out of range.
        NotImplementedError: weights in another mode than ``"sum"``.
    """
    if weight.dtype.category == 1 and input.dtype.is_floating_point:
        warnings.warn(
            "embedding_bag: the table came before the indices, as of old; call embedding_bag(input, weight, ...)",
            stacklevel=2,
        )
        weight, input = input, weight
    _check_indices("embedding_bag", input)
    if per_sample_weights is not None:
        if per_sample_weights.shape != input.shape:
            raise ValueError(
                f"embedding_bag: per_sample_weights of shape {tuple(per_sample_weights.shape)} must have the shape of "
                f"the input, {tuple(input.shape)}"
            )
        if mode != "sum":
            raise NotImplementedError(
                f"embedding_bag: per_sample_weights goes with mode='sum', got mode={mode!r}"
            )
        if per_sample_weights.dtype is not weight.dtype:
            raise RuntimeError(
                f"embedding_bag: expected weight and per_sample_weights of one dtype, got {weight.dtype} and "
                f"{per_sample_weights.dtype}"
            )
    if weight.ndim != 2:
        raise ValueError(
            f"embedding_bag: weight is a table (rows, features), got shape {tuple(weight.shape)}"
        )
    if mode not in ("sum", "mean", "max"):
        raise ValueError(f"embedding_bag: mode is 'sum', 'mean' or 'max', got {mode!r}")
    if mode == "max" and (scale_grad_by_freq or sparse):
        raise ValueError(
            "embedding_bag: mode='max' goes with neither sparse=True nor scale_grad_by_freq=True"
        )
    rows = weight.shape[0]
    if padding_idx is not None:
        if not -rows <= padding_idx < rows:
            raise RuntimeError(
                f"embedding_bag: padding_idx must be one of the {rows} rows, got {padding_idx}"
            )
        padding_idx %= rows
    bags, count = _bags(input, offsets, include_last_offset)
    flat = input.reshape(-1)
    if max_norm is not None:
        _limit_norms(weight, flat, max_norm, norm_type)
    scale = None if per_sample_weights is None else per_sample_weights.reshape(-1)
    if padding_idx is not None:
        kept = to_host(flat._array) != padding_idx
        flat, bags = flat[Tensor._of(kept)], bags[kept]
        scale = None if scale is None else scale[Tensor._of(kept)]
    each: Tensor = engine.apply(
        ops.embedding, weight, flat, padding_idx=None, by_frequency=scale_grad_by_freq
    )
    if scale is not None:
        each = each * scale.unsqueeze(1)
    if mode == "max":
        return engine.apply(ops.bag_maximum, each, bags, count=count)  # type: ignore[no-any-return]
    # Adding up by bag is what the gradient of a lookup does.
    total: Tensor = engine.apply(ops.embedding_grad, each, bags, rows=count, padding_idx=None)
    if mode == "sum":
        return total
    sizes = np.maximum(np.bincount(bags, minlength=count), 1)[:, None]
    return total / Tensor._of(sizes.astype(total._array.dtype)).to(total.device)


def _bags(input: Tensor, offsets: Tensor | None, include_last: bool) -> tuple[np.ndarray[Any, Any], int]:
    """Return the bag of each index, and the number of bags."""
    if input.ndim == 2:
        if offsets is not None:
            raise ValueError(
                "embedding_bag: each row of a matrix is a bag, so offsets must be None; give a vector with offsets"
            )
        B, n = input.shape
        return np.repeat(np.arange(B), n), B
    if input.ndim != 1:
        raise ValueError(
            f"embedding_bag: input is a vector or (bags, indices), got shape {tuple(input.shape)}"
        )
    if offsets is None or offsets.ndim != 1:
        raise ValueError(f"embedding_bag: a vector of indices needs a vector of offsets, got {offsets!r:.80}")
    if offsets._array.dtype not in (np.int64, np.int32):
        raise RuntimeError(f"embedding_bag: offsets must hold int64 or int32, got {offsets.dtype}")
    reads_values("embedding_bag() with offsets, which it looks at,")
    begins = to_host(offsets._array).astype(np.int64)
    size = input.numel()
    if len(begins) and begins[0] != 0:
        raise RuntimeError(
            f"embedding_bag: offsets[0] has to be 0, the first bag begins there, got {begins[0]}"
        )
    if len(begins) and begins[-1] > size:
        raise RuntimeError(f"embedding_bag: the last offset, {begins[-1]}, lies behind the {size} indices")
    if (np.diff(begins) < 0).any():
        raise RuntimeError(f"embedding_bag: offsets must not descend, got {begins.tolist()}")
    if include_last:
        if not len(begins):
            raise RuntimeError("embedding_bag: include_last_offset=True needs at least one offset")
        begins = begins[:-1]
        size = int(to_host(offsets._array)[-1])
    if not len(begins) and size:
        raise RuntimeError(f"embedding_bag: {size} indices, but no offset says where a bag begins")
    bags = np.searchsorted(begins, np.arange(input.numel()), side="right") - 1
    return bags, len(begins)
