"""Indexing, gathering, scattering, sorting, with PyTorch's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from disttrain import engine
from disttrain.functions.common import normalize_dim, overwrite
from disttrain.ops import index as ops
from disttrain.ops import shape as shape_ops

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


class Sorted(NamedTuple):
    """What ``sort`` and ``topk`` return: the values, and where each came from."""

    values: Tensor
    indices: Tensor


def _key(key: Any) -> tuple[tuple[Any, ...], bool]:
    """Return a key as NumPy wants it, and whether it is basic (gives a view)."""
    parts = key if isinstance(key, tuple) else (key,)
    basic, out = True, []
    for k in parts:
        if isinstance(k, engine.Tensor_):
            if k.dtype.is_floating_point:
                raise IndexError(f"tensors used as indices must hold integers or booleans, got {k.dtype}")
            if k.dtype.category == 1 and not k.ndim:
                out.append(int(k._array))
                continue
            k, basic = k._array, False
        elif isinstance(k, bool | np.bool_):
            k, basic = np.asarray(k), False
        elif isinstance(k, list | np.ndarray | range):
            k, basic = np.asarray(k), False
            if k.dtype.kind == "f" and not k.size:
                k = k.astype(np.int64)
        elif isinstance(k, np.integer):
            k = int(k)
        elif isinstance(k, slice):
            k = slice(*[None if e is None else int(e) for e in (k.start, k.stop, k.step)])
            if k.step is not None and k.step < 0:
                raise ValueError(f"step must be greater than zero, got {k.step}; use flip()")
        elif not (k is None or k is Ellipsis or isinstance(k, int)):
            raise IndexError(
                f"indices must be integers, slices, ..., None, or tensors of integers or booleans, "
                f"got {type(k).__name__}: {k!r}"
            )
        out.append(k)
    if basic and not any(k is Ellipsis for k in out):
        out.append(Ellipsis)
    return tuple(out), basic


def getitem(input: Tensor, key: Any) -> Tensor:
    """``input[key]``: a view for integers, slices, ``None`` and ``...``; a copy for index and mask tensors.

    Raises:
        IndexError: an index is out of range, or of a type that cannot index.
    """
    where, basic = _key(key)
    if basic:
        return engine.apply_view(shape_ops.index, input, key=where)
    return engine.apply(ops.take, input, key=where)  # type: ignore[no-any-return]


def setitem(input: Tensor, key: Any, value: Any) -> None:
    """``input[key] = value``, recorded."""
    where, basic = _key(key)
    if not isinstance(value, engine.Tensor_):
        value = engine.Tensor_(np.asarray(value, input._array.dtype))
    if basic:
        part = engine.apply_view(shape_ops.index, input, key=where)
        while value.ndim > part.ndim and value.shape[0] == 1:
            value = value.reshape(value.shape[1:])
        part.copy_(value)
        return
    engine.write_in_place(input, ops.put, value.to(input.dtype), key=where, accumulate=False)


def _index_array(index: Tensor) -> Any:
    if index.dtype.category != 1:
        raise IndexError(f"an index must hold integers (int64), got {index.dtype}")
    return index._array


def _in_range(name: str, index: Any, size: int) -> None:
    if index.size and not (index.min() >= 0 and index.max() < size):
        bad = index[(index < 0) | (index >= size)].flat[0]
        raise IndexError(f"{name}(): index {bad} is out of range for a dimension of size {size}")


def gather(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """``out[i][j] = input[index[i][j]][j]`` for ``dim`` 0."""
    d, where = normalize_dim(dim, input.ndim), _index_array(index)
    if index.ndim != input.ndim:
        raise RuntimeError(
            f"gather(): index has {index.ndim} dimensions, input {input.ndim}; they must be equal"
        )
    _in_range("gather", where, input.shape[d])
    return engine.apply(ops.gather, input, where, axis=d)  # type: ignore[no-any-return]


take_along_dim = gather


def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """The elements ``index`` (a vector) of dimension ``dim``."""
    d, where = normalize_dim(dim, input.ndim), _index_array(index)
    if where.ndim > 1:
        raise IndexError(f"index_select(): index must be a vector, got shape {list(where.shape)}")
    _in_range("index_select", where, input.shape[d] if input.ndim else 1)
    return engine.apply(ops.take, input, key=(*[slice(None)] * d, where.reshape(-1)))  # type: ignore[no-any-return]


def scatter(input: Tensor, dim: int, index: Tensor, src: Any) -> Tensor:
    """A copy of ``input`` with ``src`` (a tensor or a number) written at ``index`` along ``dim``."""
    d, where = normalize_dim(dim, input.ndim), _index_array(index)
    _in_range("scatter", where, input.shape[d])
    value = src if isinstance(src, engine.Tensor_) else engine.Tensor_(np.asarray(src, input._array.dtype))
    return engine.apply(ops.scatter, input, where, value, axis=d)  # type: ignore[no-any-return]


def scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """A copy of ``input`` with ``src`` added at ``index`` along ``dim``."""
    d, where = normalize_dim(dim, input.ndim), _index_array(index)
    _in_range("scatter_add", where, input.shape[d])
    return engine.apply(ops.scatter_add, input, where, src, axis=d)  # type: ignore[no-any-return]


def scatter_(input: Tensor, dim: int, index: Tensor, src: Any = None, *, value: Any = None) -> Tensor:
    """:func:`scatter` in place."""
    return overwrite(input, scatter, dim, index, value if src is None else src)


def scatter_add_(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """:func:`scatter_add` in place."""
    return overwrite(input, scatter_add, dim, index, src)


def masked_select(input: Tensor, mask: Tensor) -> Tensor:
    """The elements where ``mask`` (boolean, broadcast) holds, in one dimension."""
    shape = np.broadcast_shapes(input.shape, mask.shape)
    return getitem(input.expand(shape), mask.expand(shape))


def sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Sorted:
    """The elements in order along ``dim``, and where each came from. Equal ones always keep their order."""
    if not input.ndim:
        normalize_dim(dim, 0)
        return Sorted(input.clone(), engine.Tensor_.full_(0))
    return Sorted(*engine.apply(ops.sort, input, axis=normalize_dim(dim, input.ndim), descending=descending))


def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    """Where the elements in order along ``dim`` come from."""
    return sort(input, dim, descending).indices


def topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Sorted:
    """The ``k`` largest (or smallest) elements along ``dim`` in order, and where each came from.

    Raises:
        RuntimeError: ``k`` is larger than the dimension.
    """
    d = normalize_dim(dim, input.ndim)
    n = input.shape[d] if input.ndim else 1
    if not 0 <= k <= n:
        raise RuntimeError(f"topk(): k must be in [0, {n}], got {k}")
    values, indices = sort(input, d, descending=largest)
    if not input.ndim:
        return Sorted(values, indices)
    return Sorted(values.narrow(d, 0, k), indices.narrow(d, 0, k))


def nonzero(input: Tensor, *, as_tuple: bool = False) -> Any:
    """The indices of the elements that are not zero: ``(count, ndim)`` int64, or a tuple with one per dimension."""
    rows = engine.apply(ops.nonzero, input)
    return tuple(rows[:, i] for i in range(max(input.ndim, 1))) if as_tuple else rows


def tril(input: Tensor, diagonal: int = 0) -> Tensor:
    """Zeros above a diagonal of the last two dimensions."""
    return engine.apply(ops.triangle, input, diagonal=diagonal, upper=False)  # type: ignore[no-any-return]


def triu(input: Tensor, diagonal: int = 0) -> Tensor:
    """Zeros below a diagonal of the last two dimensions."""
    return engine.apply(ops.triangle, input, diagonal=diagonal, upper=True)  # type: ignore[no-any-return]
