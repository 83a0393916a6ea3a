"""Indexing, gathering, scattering, with PyTorch's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import engine
from disttrain.functions.common import need_tensors, normalize_dim, overwrite
from disttrain.functions.shape import broadcast_tensors
from disttrain.kernels.arrays import is_array
from disttrain.ops import index as ops
from disttrain.ops import shape as shape_ops

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


def _parts(key: Any) -> list[Any]:
    """Return the parts of a key: integers, slices, ``None``, ``...``, and arrays of indices or booleans."""
    out: list[Any] = []
    for k in key if isinstance(key, tuple) else (key,):
        if isinstance(k, engine.Tensor_):
            if k.dtype.is_floating_point:
                raise IndexError(f"tensors used as indices must hold integers or booleans, got {k.dtype}")
            k = k._array
        elif isinstance(k, bool | np.bool_ | list | range):
            k = np.asarray(k)
            if k.dtype.kind == "f" and not k.size:
                k = k.astype(np.int64)
        elif isinstance(k, slice):
            k = slice(*[None if e is None else int(e) for e in (k.start, k.stop, k.step)])
            if k.step is not None and k.step < 0:
                raise ValueError(f"step must be greater than zero, got {k.step}; use flip()")
        elif not (k is None or k is Ellipsis or isinstance(k, int | np.integer | np.ndarray)):
            kind = TypeError if isinstance(k, str) else IndexError
            raise kind(
                f"indices must be integers, slices, ..., None, or tensors of integers or booleans, "
                f"got {type(k).__name__}: {k!r}"
            )
        if is_array(k) and k.dtype.kind not in "biu":
            raise IndexError(f"arrays used as indices must hold integers or booleans, got {k.dtype}")
        whole = isinstance(k, np.integer) or (is_array(k) and not k.ndim and k.dtype.kind in "iu")
        out.append(int(k) if whole else k)
    return out


def _split(key: Any) -> tuple[tuple[Any, ...], tuple[Any, ...] | None]:
    """Return a key as a basic one, which takes a view, and one of arrays (or ``None``) to index that view with.

    PyTorch takes integers first. NumPy, given both at once, would count them among the arrays.
    """
    basic: list[Any] = []
    arrays: list[Any] = []
    for k in _parts(key):
        if is_array(k):
            basic += [slice(None)] * (k.ndim if k.dtype.kind == "b" else 1)
            arrays.append(k)
            continue
        basic.append(k)
        if k is Ellipsis:
            arrays.append(k)
        elif not isinstance(k, int):
            arrays.append(slice(None))
    if not any(k is Ellipsis for k in basic):
        basic.append(Ellipsis)
    return tuple(basic), tuple(arrays) if any(map(is_array, arrays)) else None


def getitem(input: Tensor, key: Any) -> Tensor:
    """``input[key]``: a view for integers, slices, ``None`` and ``...``; a copy for index and mask tensors.

    Raises:
        IndexError: an index is out of range, or of a type that cannot index.
    """
    basic, arrays = _split(key)
    part = engine.apply_view(shape_ops.index, input, key=basic)
    return part if arrays is None else engine.apply(ops.take, part, key=arrays)


def setitem(input: Tensor, key: Any, value: Any) -> None:
    """``input[key] = value``, recorded.

    Raises:
        IndexError: an index is out of range, or of a type that cannot index.
        RuntimeError: ``value`` does not fit, or has another type where the key holds index tensors.
    """
    basic, arrays = _split(key)
    if not isinstance(value, engine.Tensor_):
        if isinstance(value, str):
            raise TypeError(f"a tensor of {input.dtype} cannot hold {value!r}")
        value = engine.Tensor_(np.asarray(value, input._array.dtype))
    part = engine.apply_view(shape_ops.index, input, key=basic)
    if arrays is None:
        while value.ndim > part.ndim and value.shape[0] == 1:
            value = value.reshape(value.shape[1:])
        part.copy_(value)
        return
    if value.ndim and value.dtype is not input.dtype:
        raise RuntimeError(
            f"values of {value.dtype} cannot be written by index tensors into {input.dtype}; "
            f"convert them with .to()"
        )
    engine.write_in_place(part, ops.put, value.to(input.dtype), key=arrays, accumulate=False)


def _index_array(index: Tensor) -> Any:
    if index.dtype.category != 1:
        raise RuntimeError(f"an index must hold integers (int64), got {index.dtype}")
    return index._array


def _in_range(name: str, index: Any, size: int, error: type[Exception] = RuntimeError) -> None:
    if index.size and not (index.min() >= 0 and index.max() < size):
        bad = index[(index < 0) | (index >= size)].flat[0]
        raise error(f"{name}(): index {bad} is out of range for a dimension of size {size}")


def gather(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """``out[i][j] = input[index[i][j]][j]`` for ``dim`` 0."""
    d, where = normalize_dim(dim, input.ndim), _index_array(index)
    if index.ndim != input.ndim:
        raise RuntimeError(
            f"gather(): index has {index.ndim} dimensions, input {input.ndim}; they must be equal"
        )
    if not input.ndim:
        return gather(input.reshape(1), 0, index.reshape(1)).reshape(())
    _in_range("gather", where, input.shape[d])
    return engine.apply(ops.gather, input, where, axis=d)  # type: ignore[no-any-return]


def take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """The elements at ``indices`` along ``dim``, both broadcast in the others; of the flattened tensor without it.

    Raises:
        RuntimeError: the numbers of dimensions differ, or an index is out of range.
    """
    need_tensors("take_along_dim", input, indices)
    if dim is None:
        return gather(input.reshape(-1), 0, indices.reshape(-1))
    if input.ndim != indices.ndim:
        raise RuntimeError(
            f"take_along_dim(): input has {input.ndim} dimensions, indices {indices.ndim}; they must be equal"
        )
    d = normalize_dim(dim, input.ndim)
    size = list(
        np.broadcast_shapes(*([1 if i == d else n for i, n in enumerate(t.shape)] for t in (input, indices)))
    )
    x = input.expand([n if i != d else -1 for i, n in enumerate(size)])
    return gather(x, d, indices.expand([n if i != d else -1 for i, n in enumerate(size)]))


def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """The elements ``index`` (a vector) of dimension ``dim``."""
    d, where = normalize_dim(dim, input.ndim), _index_array(index)
    if where.ndim > 1:
        raise IndexError(f"index_select(): index must be a vector, got shape {list(where.shape)}")
    if not input.ndim:
        return index_select(input.reshape(1), 0, index).reshape(())
    _in_range("index_select", where, input.shape[d], IndexError)
    return engine.apply(ops.take, input, key=(*[slice(None)] * d, where.reshape(-1)))  # type: ignore[no-any-return]


def _scatter_arguments(name: str, input: Tensor, dim: int, index: Tensor, src: Any) -> tuple[int, Any]:
    """Return the dimension, counted from the front, and the index array, after the checks of scatter."""
    d, where = normalize_dim(dim, input.ndim), _index_array(index)
    if not where.size:
        return d, where.reshape((0,) * input.ndim)
    others = [input, src] if isinstance(src, engine.Tensor_) else [input]
    for x in others:
        if x.ndim != where.ndim:
            raise RuntimeError(
                f"{name}(): index has {where.ndim} dimensions, but a tensor of shape {list(x.shape)}"
            )
        if x is src and src.dtype is not input.dtype:
            raise RuntimeError(f"{name}(): src must be of {input.dtype} as input is, got {src.dtype}")
        for i, (n, m) in enumerate(zip(where.shape, x.shape, strict=True)):
            if n > m and not (x is input and i == d):
                raise RuntimeError(
                    f"{name}(): index of shape {list(where.shape)} goes beyond a tensor of {list(x.shape)}"
                )
    _in_range(name, where, input.shape[d])
    return d, where


def scatter(input: Tensor, dim: int, index: Tensor, src: Any) -> Tensor:
    """A copy of ``input`` with ``src`` (a tensor or a number) written at ``index`` along ``dim``."""
    d, where = _scatter_arguments("scatter", input, dim, index, src)
    value = src if isinstance(src, engine.Tensor_) else engine.Tensor_(np.asarray(src, input._array.dtype))
    return engine.apply(ops.scatter, input, where, value, axis=d)  # type: ignore[no-any-return]


def scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """A copy of ``input`` with ``src`` added at ``index`` along ``dim``."""
    d, where = _scatter_arguments("scatter_add", input, dim, index, src)
    return engine.apply(ops.scatter_add, input, where, src, axis=d)  # type: ignore[no-any-return]


def scatter_(input: Tensor, dim: int, index: Tensor, src: Any = None, *, value: Any = None) -> Tensor:
    """:func:`scatter` in place."""
    return overwrite(input, scatter, dim, index, value if src is None else src)


def scatter_add_(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """:func:`scatter_add` in place."""
    return overwrite(input, scatter_add, dim, index, src)


def masked_select(input: Tensor, mask: Tensor) -> Tensor:
    """The elements where ``mask`` (boolean, broadcast) holds, in one dimension."""
    if mask.dtype.category:
        raise RuntimeError(f"masked_select(): the mask must be boolean, got {mask.dtype}")
    x, where = broadcast_tensors(input, mask)
    return getitem(x, where)


def nonzero(input: Tensor, *, as_tuple: bool = False) -> Any:
    """The indices of the elements that are not zero: ``(count, ndim)`` int64, or a tuple with one per dimension."""
    rows = engine.apply(ops.nonzero, input)
    return tuple(rows[:, i] for i in range(max(input.ndim, 1))) if as_tuple else rows


def tril(input: Tensor, diagonal: int = 0) -> Tensor:
    """Zeros above a diagonal of the last two dimensions."""
    if input.ndim < 2:
        raise RuntimeError(f"tril() and triu() need at least 2 dimensions, got shape {list(input.shape)}")
    return engine.apply(ops.triangle, input, diagonal=diagonal, upper=False)  # type: ignore[no-any-return]


def triu(input: Tensor, diagonal: int = 0) -> Tensor:
    """Zeros below a diagonal of the last two dimensions."""
    if input.ndim < 2:
        raise RuntimeError(f"tril() and triu() need at least 2 dimensions, got shape {list(input.shape)}")
    return engine.apply(ops.triangle, input, diagonal=diagonal, upper=True)  # type: ignore[no-any-return]
