"""Samples into batches, as ``torch.utils.data.default_collate`` and ``default_convert``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any

import numpy as np

from disttrain.functions.conversion import as_tensor, from_numpy, tensor
from disttrain.functions.join import stack
from disttrain.tensors import Tensor

new_array: Callable[[tuple[int, ...], Any], np.ndarray[Any, Any]] = np.empty
"""Makes the array of a batch, by shape and dtype; a worker makes it where its rank can read it."""


def default_collate(batch: Sequence[Any]) -> Any:
    """Return a batch made of samples.

    Tensors, arrays and numbers become a tensor with a first dimension more (Python floats: float64); strings
    and bytes stay a list; mappings, named tuples and sequences are collated field by field, and a tuple
    becomes a list.

    Raises:
        TypeError: a sample is or holds something else.
        RuntimeError: tensors of different shapes, or sequences of different lengths.
    """
    first = batch[0]
    if isinstance(first, Tensor):
        _check_shapes([t.shape for t in batch])
        if any(t.requires_grad or type(t._array) is not np.ndarray for t in batch):
            return stack(list(batch))
        return Tensor._of(_stack([t._array for t in batch]))
    if isinstance(first, np.ndarray):
        _check_type(first)
        _check_shapes([a.shape for a in batch])
        return from_numpy(_stack(batch))
    if isinstance(first, np.generic) and not isinstance(first, str | bytes):
        return from_numpy(np.array(batch))
    if isinstance(first, float):
        return from_numpy(np.array(batch, np.float64))
    if isinstance(first, int):
        return tensor(list(batch))
    if isinstance(first, str | bytes):
        return batch
    if isinstance(first, Mapping):
        return _like_mapping(first, {key: default_collate([d[key] for d in batch]) for key in first})
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(default_collate(samples) for samples in zip(*batch, strict=True)))
    if isinstance(first, Sequence):
        if any(len(sample) != len(first) for sample in batch):
            raise RuntimeError(f"samples of a batch must have equal lengths, got {[len(s) for s in batch]}")
        parts = [default_collate(samples) for samples in zip(*batch, strict=True)]
        return parts if isinstance(first, tuple) else _like_sequence(first, parts)
    raise TypeError(
        f"a batch is made of tensors, arrays, numbers, strings, dicts or lists, got {type(first)}; "
        f"give the DataLoader a collate_fn"
    )


def default_convert(data: Any) -> Any:
    """Return a sample with its arrays made tensors, and all else as it is."""
    if isinstance(data, Tensor | str | bytes):
        return data
    if isinstance(data, np.ndarray):
        return data if data.dtype.kind in "SUO" else from_numpy(data)
    if isinstance(data, np.generic):
        return as_tensor(data)
    return map_containers(default_convert, data)


def map_containers(function: Callable[[Any], Any], data: Any) -> Any:
    """Return ``data``, a mapping or sequence, with ``function`` applied to its values; else itself."""
    if isinstance(data, Mapping):
        return _like_mapping(data, {key: function(value) for key, value in data.items()})
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(function(value) for value in data))
    if isinstance(data, tuple):
        return [function(value) for value in data]
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        return _like_sequence(data, [function(value) for value in data])
    return data


def empty_like(batch: Any) -> Any:
    """Return a batch of no samples: ``batch`` with first dimension 0 in all tensors, and no strings."""
    if isinstance(batch, Tensor | np.ndarray):
        return batch[:0] if batch.ndim else batch
    if isinstance(batch, list | tuple) and batch and all(isinstance(s, str | bytes) for s in batch):
        return type(batch)()
    return map_containers(empty_like, batch)


def _like_mapping(like: Mapping[Any, Any], values: dict[Any, Any]) -> Any:
    try:
        if isinstance(like, MutableMapping):
            clone = copy.copy(like)  # keeps what the type has beside its items, as a default factory
            clone.update(values)
            return clone
        return type(like)(values)  # type: ignore[call-arg]
    except TypeError:  # the type cannot be built from a dict
        return values


def _like_sequence(like: Sequence[Any], values: list[Any]) -> Any:
    try:
        if isinstance(like, MutableSequence):
            clone = copy.copy(like)
            for i, value in enumerate(values):
                clone[i] = value
            return clone
        return type(like)(values)  # type: ignore[call-arg]
    except TypeError:  # the type cannot be built from a list, as a range
        return values


def _stack(arrays: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Return ``np.stack`` of arrays of one shape, in half its time."""
    dtypes = {a.dtype for a in arrays}
    if len(dtypes) > 1:
        return np.stack(arrays)
    shape = arrays[0].shape
    out = new_array((len(arrays), *shape), dtypes.pop())
    if shape:
        np.concatenate(arrays, out=out.reshape(len(arrays) * shape[0], *shape[1:]))
    else:
        np.stack(arrays, out=out)
    return out


def _check_shapes(shapes: list[tuple[int, ...]]) -> None:
    if shapes.count(shapes[0]) == len(shapes):
        return
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise RuntimeError(
                f"samples of a batch must have equal shapes, got {list(shapes[0])} for sample 0 and "
                f"{list(shape)} for sample {i}; pad them, or give the DataLoader a collate_fn"
            )


def _check_type(array: np.ndarray[Any, Any]) -> None:
    if array.dtype.kind in "SUO":
        raise TypeError(
            f"a batch cannot be made of arrays of {array.dtype}; give the DataLoader a collate_fn"
        )
