"""Elements read and written by keys, index and mask tensors, with PyTorch's names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import engine
from disttrain.functions.common import need_tensors, normalize_dim, numpy_names, overwrite
from disttrain.functions.conversion import tensor
from disttrain.functions.creation import filled
from disttrain.functions.shape import broadcast_tensors, expand
from disttrain.kernels.arrays import is_array
from disttrain.modes import reads_values
from disttrain.ops import index as ops
from disttrain.ops import shape as shape_ops
from disttrain.precision import autocasts

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

_WHOLE = slice(None)


def _parts(key: Any) -> list[Any]:
    """Return the parts of a key: integers, slices, ``None``, ``...``, and arrays of indices or booleans."""
    if isinstance(key, list) and _is_several(key):
        key = tuple(key)
    out: list[Any] = []
    for k in key if isinstance(key, tuple) else (key,):
        if isinstance(k, engine.Tensor_):
            k = k._array
        elif isinstance(k, bool | np.bool_ | list | range | tuple):
            k = _as_index(k)
        elif isinstance(k, slice):
            k = slice(*[None if e is None else _whole(e) for e in (k.start, k.stop, k.step)])
            if k.step is not None and k.step <= 0:
                raise ValueError(f"the step of a slice must be positive, got {k.step}; use flip()")
        elif not (k is None or k is Ellipsis or isinstance(k, int | np.integer | np.ndarray)):
            kind = TypeError if isinstance(k, str) else IndexError
            raise kind(
                f"indices must be integers, slices, ..., None, or tensors of integers or booleans, "
                f"got {type(k).__name__}: {k!r}"
            )
        if is_array(k):
            if k.dtype == np.uint8:  # a mask of old
                k = k.astype(np.bool_)
            if k.dtype.name not in ("int64", "int32", "bool"):
                raise IndexError(
                    f"tensors and arrays used as indices must be int64, int32, uint8 or bool, got {k.dtype}"
                )
        whole = isinstance(k, np.integer) or (is_array(k) and not k.ndim and k.dtype.kind == "i")
        out.append(int(k) if whole else k)
    return out


def _is_several(key: list[Any]) -> bool:
    """Return whether PyTorch takes a list for a tuple of keys and not for indices."""
    return len(key) < 32 and any(
        k is None
        or k is Ellipsis
        or isinstance(k, list | tuple | range | slice | np.ndarray | engine.Tensor_)
        for k in key
    )


def _as_index(k: Any) -> Any:
    if isinstance(k, list | tuple) and any(isinstance(e, engine.Tensor_) for e in k):
        return tensor(list(k))._array
    array = np.asarray(k)
    return array.astype(np.int64) if array.dtype.kind == "f" and not array.size else array


def _whole(e: Any) -> int:
    if isinstance(e, float):
        raise TypeError(f"the bounds of a slice must be integers or None, got {e!r}")
    return int(e)


def _split(key: Any, shape: tuple[int, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...] | None]:
    """Return a key as a basic one, which takes a view, and one of arrays (or ``None``) to index that view with.

    PyTorch takes integers first. NumPy, given both at once, would count them among the arrays.
    """
    if type(key) is int and shape:
        return (key, ...), None
    if (
        type(key) is tuple
        and len(key) <= len(shape)
        and all(type(k) is int or (type(k) is slice and k == _WHOLE) for k in key)
    ):
        return (*key, ...), None
    parts = _parts(key)
    rest = len(shape) - sum(map(_consumes, parts))
    if rest < 0:
        raise IndexError(f"too many indices for a tensor of shape {list(shape)}: {len(shape) - rest}")
    basic: list[Any] = []
    arrays: list[Any] = []
    dim = 0
    for i, k in enumerate(parts):
        n = _consumes(k)
        if is_array(k):
            if k.dtype.kind == "b" and k.shape != shape[dim : dim + n]:
                raise IndexError(
                    f"a mask of shape {list(k.shape)} does not fit dimension {dim} and on of {list(shape)}"
                )
            basic += [_WHOLE] * n
            arrays.append(k)
        elif k is Ellipsis:
            if any(b is Ellipsis for b in basic):
                if rest and any(e is not Ellipsis for e in parts[i:]):
                    raise IndexError("an index may have one ..., or several if they stand for no dimension")
                continue
            n = rest
            basic.append(k)
            if rest:  # else NumPy would hold it against the arrays around it that they lie apart
                arrays.append(k)
        else:
            basic.append(k)
            if not isinstance(k, int):
                arrays.append(_WHOLE)
        dim += n
    if not any(k is Ellipsis for k in basic):
        basic.append(Ellipsis)
    return tuple(basic), tuple(arrays) if any(map(is_array, arrays)) else None


def _consumes(part: Any) -> int:
    """Return how many dimensions a part of a key speaks of."""
    if part is None or part is Ellipsis:
        return 0
    return part.ndim if is_array(part) and part.dtype.kind == "b" else 1


def _view(input: Tensor, basic: tuple[Any, ...], arrays: Any) -> Tensor:
    """Return the part of ``input`` that a basic key takes; itself if that is all and arrays follow."""
    if arrays is not None and all(k is Ellipsis or (type(k) is slice and k == _WHOLE) for k in basic):
        return input
    return engine.apply_view(shape_ops.index, input, key=basic)


def getitem(input: Tensor, key: Any) -> Tensor:
    """``input[key]``: a view for integers, slices, ``None`` and ``...``; a copy for index and mask tensors.

    Raises:
        IndexError: an index is out of range, or of a type that cannot index.
    """
    basic, arrays = _split(key, input._array.shape)
    if arrays is not None and any(is_array(k) and k.dtype.kind == "b" for k in arrays):
        reads_values("indexing by a mask, which gives as many elements as it holds,")
    part = _view(input, basic, arrays)
    return part if arrays is None else engine.apply(ops.take, part, key=arrays)


def setitem(input: Tensor, key: Any, value: Any) -> None:
    """``input[key] = value``, recorded.

    Raises:
        IndexError: an index is out of range, or of a type that cannot index.
        RuntimeError: ``value`` does not fit, or has another type where the key holds index tensors.
    """
    if isinstance(key, bool):
        if not key:
            return
        key = None  # all of it
    basic, arrays = _split(key, input._array.shape)
    if not isinstance(value, engine.Tensor_):
        value = _as_value(value, input._array.dtype)
    part = _view(input, basic, arrays)
    if arrays is None:
        while value.ndim > part.ndim and value.shape[0] == 1:
            value = value.reshape(value.shape[1:])
        part.copy_(value)
        return
    while value.shape[:1] == (1,):
        value = value.reshape(value.shape[1:])
    engine.write_in_place(part, ops.put, _fitting(part, arrays, value, False), key=arrays, accumulate=False)


def _as_value(value: Any, dtype: np.dtype[Any]) -> Tensor:
    if not isinstance(value, bool | int | float | complex | np.integer):
        raise TypeError(f"cannot assign {type(value).__name__} {value!r:.80}; make it a tensor first")
    if dtype.itemsize == 2 and dtype.kind in "fV" and isinstance(value, float):
        with np.errstate(over="ignore"):  # to infinity, as PyTorch's halves here
            return engine.Tensor_._of(np.asarray(value).astype(dtype))  # type: ignore[no-any-return]
    return engine.Tensor_._of(filled("__setitem__", partial(np.asarray, dtype=dtype), value, dtype))  # type: ignore[no-any-return]


def _fitting(x: Tensor, key: tuple[Any, ...], value: Tensor, accumulate: bool) -> Tensor:
    """Return ``value`` as it can be written (or added) at ``x[key]``.

    Raises:
        RuntimeError: it has another type than ``x``, or too many dimensions.
    """
    given = [k for k in key if is_array(k)]
    masks = [k.ndim for k in given if k.dtype.kind == "b"]
    if not accumulate and len(given) == 1 and masks and masks[0] and value.numel() == 1:
        value = value.reshape(()).to(x.dtype)  # one mask and one value: as masked_fill
    if value.dtype is not x.dtype:
        raise RuntimeError(
            f"values of {value.dtype} cannot be written by index tensors into {x.dtype}; convert them with .to()"
        )
    taken = sum(map(_consumes, given))
    ndim = x.ndim - taken + max(1 if k.dtype.kind == "b" else k.ndim for k in given)
    if value.ndim > ndim + sum(k is None for k in key):
        raise RuntimeError(
            f"values of shape {list(value.shape)} cannot be written at an index whose result has {ndim} dimensions"
        )
    return value


def _key_of(indices: Sequence[Tensor | None], ndim: int) -> tuple[Any, ...]:
    if not isinstance(indices, list | tuple):
        raise TypeError(f"index_put() needs a sequence of index Tensors, got {type(indices).__name__}")
    key: list[Any] = [_WHOLE if k is None else _parts(k)[0] for k in indices]
    key = [np.asarray(k) if isinstance(k, int) else k for k in key]
    if sum(k.ndim if is_array(k) and k.dtype.kind == "b" else 1 for k in key) > ndim:
        raise IndexError(f"index_put(): too many indices ({len(key)}) for a tensor of {ndim} dimensions")
    return tuple(key) if any(map(is_array, key)) else (*key, Ellipsis, np.asarray(True))


@autocasts
def index_put(
    input: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Tensor:
    """A copy of ``input`` with ``values`` written (or added) at the key that the index tensors make.

    Raises:
        IndexError: an index is out of range.
        RuntimeError: ``values`` do not fit, or have another type.
    """
    need_tensors("index_put", input, values)
    key = _key_of(indices, input.ndim)
    values = _fitting(input, key, values, accumulate)
    return engine.apply(ops.put, input, values, key=key, accumulate=accumulate)  # type: ignore[no-any-return]


def index_put_(
    input: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Tensor:
    """:func:`index_put` in place."""
    need_tensors("index_put_", input, values)
    key = _key_of(indices, input.ndim)
    values = _fitting(input, key, values, accumulate)
    return engine.write_in_place(input, ops.put, values, key=key, accumulate=accumulate)


def index_array(name: str, index: Any, *, only: str = "int64 int32") -> Any:
    """Return the array of an index tensor.

    Raises:
        TypeError: it is no tensor.
        RuntimeError: it is of no type among ``only``.
    """
    need_tensors(name, index)
    if index.dtype.name not in only.split():
        raise RuntimeError(f"{name}(): index must be {only.replace(' ', ' or ')}, got {index.dtype}")
    return index._array


def need_in_range(name: str, index: Any, size: int, error: type[Exception] = RuntimeError) -> None:
    """Raise ``error`` unless all indices are in ``[0, size)``."""
    if index.size and not (index.min() >= 0 and index.max() < size):
        bad = index[(index < 0) | (index >= size)].flat[0]
        raise error(f"{name}(): index {bad} is out of range for a dimension of size {size}")


@numpy_names
def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """The elements ``index`` (a vector, int64 or int32) of dimension ``dim``.

    Raises:
        IndexError: an index is out of range, or ``index`` is no vector.
    """
    d, where = normalize_dim(dim, input.ndim), index_array("index_select", index)
    if where.ndim > 1:
        raise IndexError(f"index_select(): index must be a vector, got shape {list(where.shape)}")
    if not input.ndim:
        return index_select(input.reshape(1), 0, index).reshape(())
    need_in_range("index_select", where, input._array.shape[d], IndexError)
    return engine.apply(ops.take, input, key=(*[_WHOLE] * d, where.reshape(-1)))  # type: ignore[no-any-return]


def take(input: Tensor, index: Tensor) -> Tensor:
    """The elements whose numbers, row-major, are in ``index`` (int64, may be negative), in its shape.

    Raises:
        IndexError: an index is out of range.
    """
    where = index_array("take", index, only="int64")
    n = input.numel()
    if where.size and not n:
        raise IndexError("take(): cannot take from a tensor without elements")
    if where.size and not (where.min() >= -n and where.max() < n):
        raise IndexError(f"take(): indices must be in [{-n}, {n}), got {where.min()} to {where.max()}")
    if not where.size:
        where = where.reshape(where.shape)
    return engine.apply(ops.take, input.reshape(-1), key=(where,))  # type: ignore[no-any-return]


def put(input: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    """A copy of ``input`` with ``source`` written (or added) at the elements with the numbers ``index``, row-major.

    Raises:
        IndexError: an index is out of range, or there are more or fewer of them than elements of ``source``.
        RuntimeError: ``source`` has another type.
    """
    where, n = index_array("put", index, only="int64"), input.numel()
    need_tensors("put", source)
    if source.dtype is not input.dtype:
        raise RuntimeError(f"put(): source must be of {input.dtype} as input is, got {source.dtype}")
    if source.numel() != where.size:
        raise IndexError(f"put(): {source.numel()} elements for {where.size} indices")
    if where.size and not n:
        raise IndexError("put(): cannot put into a tensor without elements")
    if where.size and not (where.min() >= -n and where.max() < n):
        raise IndexError(f"put(): indices must be in [{-n}, {n}), got {where.min()} to {where.max()}")
    key = (where.reshape(-1),)
    flat = engine.apply(ops.put, input.reshape(-1), source.reshape(-1), key=key, accumulate=accumulate)
    return flat.reshape(input.shape)  # type: ignore[no-any-return]


def put_(input: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    """:func:`put` in place."""
    return overwrite(input, put, index, source, accumulate)


def masked_select(input: Tensor, mask: Tensor) -> Tensor:
    """The elements where ``mask`` (boolean, broadcast) holds, in one dimension."""
    need_tensors("masked_select", input, mask)
    if mask.dtype.category:
        raise RuntimeError(f"masked_select(): the mask must be boolean, got {mask.dtype}")
    x, where = broadcast_tensors(input, mask)
    return getitem(x, where)


def masked_scatter(input: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """A copy of ``input`` with the elements of ``source``, in their order, where ``mask`` (boolean, broadcast) holds.

    Raises:
        RuntimeError: ``source`` has too few elements or another type, or the mask is not boolean.
    """
    need_tensors("masked_scatter", input, mask, source)
    if mask.dtype.category:
        raise RuntimeError(f"masked_scatter(): the mask must be boolean, got {mask.dtype}")
    if source.dtype is not input.dtype:
        raise RuntimeError(
            f"masked_scatter(): source must be of {input.dtype} as input is, got {source.dtype}"
        )
    x, where = broadcast_tensors(input, mask)
    reads_values("masked_scatter(), which takes as many elements as the mask holds,")
    count = int(np.count_nonzero(where._array))
    if count > source.numel():
        raise RuntimeError(
            f"masked_scatter(): the mask holds {count} times, source has {source.numel()} elements"
        )
    value = source.reshape(-1)[:count]
    return engine.apply(ops.put, x, value, key=(where._array,), accumulate=False)  # type: ignore[no-any-return]


def masked_scatter_(input: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """:func:`masked_scatter` in place."""
    return overwrite(input, masked_scatter, mask, source)


def nonzero(input: Tensor, *, as_tuple: bool = False) -> Any:
    """The indices of the elements that are not zero: ``(count, ndim)`` int64, or a tuple with one per dimension."""
    reads_values("nonzero(), whose result has a shape that depends on values,")
    if as_tuple and not input.ndim:
        input = expand(input, 1)
    rows = engine.apply(ops.nonzero, input)
    return tuple(rows[:, i] for i in range(input.ndim)) if as_tuple else rows


def argwhere(input: Tensor) -> Tensor:
    """The indices of the elements that are not zero, ``(count, ndim)`` int64."""
    return nonzero(input)  # type: ignore[no-any-return]
