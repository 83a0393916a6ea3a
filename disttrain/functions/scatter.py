"""Elements gathered and scattered along one dimension, with PyTorch's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from disttrain import engine
from disttrain.functions.common import (
    as_operand,
    fitting,
    need_tensors,
    normalize_dim,
    numpy_names,
    overwrite,
)
from disttrain.functions.index import index_array, need_in_range
from disttrain.functions.shape import broadcast_shapes, expand
from disttrain.ops import index as index_ops
from disttrain.ops import scatter as ops
from disttrain.precision import autocasts

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


@numpy_names
def gather(input: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    """``out[i][j] = input[index[i][j]][j]`` for ``dim`` 0. ``sparse_grad`` changes nothing here.

    Raises:
        RuntimeError: an index is out of range, or goes beyond ``input`` in another dimension.
    """
    d = normalize_dim(dim, input.ndim)
    need_tensors("gather", index)
    if not index.numel():
        if index.dtype.category != 1:
            raise RuntimeError(f"gather(): index must hold integers, got {index.dtype}")
        nothing = (index._array.astype(np.int64),)
        return engine.apply(index_ops.take, input.reshape(-1), key=nothing)  # type: ignore[no-any-return]
    where = index_array("gather", index)
    if max(where.ndim, 1) != max(input.ndim, 1):
        raise RuntimeError(
            f"gather(): index has {index.ndim} dimensions, input {input.ndim}; they must be equal"
        )
    if input.ndim != where.ndim or not input.ndim:
        flat = where.reshape(-1)
        need_in_range("gather", flat, input.numel())
        return engine.apply(ops.gather, input.reshape(-1), flat, axis=0).reshape(where.shape)  # type: ignore[no-any-return]
    shape = input._array.shape
    for i, (n, m) in enumerate(zip(where.shape, shape, strict=True)):
        if n > m and i != d:
            raise RuntimeError(
                f"gather(): index of shape {list(where.shape)} goes beyond input of {list(shape)} in dimension {i}"
            )
    need_in_range("gather", where, shape[d])
    return engine.apply(ops.gather, input, where, axis=d)  # type: ignore[no-any-return]


@numpy_names
def take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """The elements at ``indices`` along ``dim``, both broadcast in the others; of the flattened tensor without it.

    Raises:
        RuntimeError: the numbers of dimensions differ, or an index is out of range.
    """
    need_tensors("take_along_dim", input, indices)
    if dim is None:
        return take_along_dim(input.reshape(-1), indices.reshape(-1), 0)
    if input.ndim != indices.ndim:
        raise RuntimeError(
            f"take_along_dim(): input has {input.ndim} dimensions, indices {indices.ndim}; they must be equal"
        )
    if indices.dtype.name != "int64":
        raise RuntimeError(f"take_along_dim(): indices must be int64, got {indices.dtype}")
    d = normalize_dim(dim, input.ndim)
    if not input.ndim:
        return gather(input, 0, indices)
    shapes = [[1 if i == d else n for i, n in enumerate(t.shape)] for t in (input, indices)]
    size = [-1 if i == d else n for i, n in enumerate(broadcast_shapes(*shapes))]
    x, n = expand(input, size), input.shape[d]
    where = indices._array
    if where.size and where.min() < 0:  # counted from the end, as PyTorch allows here and not in gather
        where = np.where(where < 0, where + n, where)
    return gather(x, d, expand(engine.Tensor_._of(where), size))


def _arguments(name: str, input: Tensor, dim: int, index: Tensor, src: Any) -> tuple[int, Any]:
    """Return the dimension, counted from the front, and the index array, after the checks of scatter."""
    d, where = normalize_dim(dim, input.ndim), index_array(name, index)
    if isinstance(src, engine.Tensor_) and src.dtype is not input.dtype:
        raise RuntimeError(f"{name}(): src must be of {input.dtype} as input is, got {src.dtype}")
    if not where.size:
        return d, where.reshape((0,) * max(input.ndim, 1))
    others = [input, src] if isinstance(src, engine.Tensor_) else [input]
    for x in others:
        if max(x.ndim, 1) != max(where.ndim, 1):
            raise RuntimeError(
                f"{name}(): index has {where.ndim} dimensions, but a tensor of shape {list(x.shape)}"
            )
        for i, (n, m) in enumerate(zip(where.shape, x._array.shape, strict=False)):
            if n > m and not (x is input and i == d):
                raise RuntimeError(
                    f"{name}(): index of shape {list(where.shape)} goes beyond a tensor of {list(x.shape)}"
                )
    need_in_range(name, where, input._array.shape[d] if input.ndim else 1)
    return d, where


def _scattered(
    name: str, op: Any, input: Tensor, dim: int, index: Tensor, src: Any, **options: Any
) -> Tensor:
    d, where = _arguments(name, input, dim, index, src)
    value = (
        src if isinstance(src, engine.Tensor_) else engine.Tensor_._of(np.asarray(src, input._array.dtype))
    )
    if not input.ndim or not where.ndim:  # a tensor without dimensions counts as a vector of one
        one = value if op is ops.scatter and not isinstance(src, engine.Tensor_) else value.reshape(-1)
        flat = engine.apply(op, input.reshape(-1), where.reshape(-1), one, axis=0, **options)
        return flat.reshape(input.shape)  # type: ignore[no-any-return]
    return engine.apply(op, input, where, value, axis=d, **options)  # type: ignore[no-any-return]


@numpy_names
def scatter(
    input: Tensor, dim: int, index: Tensor, src: Any = None, *, value: Any = None, reduce: str | None = None
) -> Tensor:
    """A copy of ``input`` with ``src`` (a tensor or a number) written at ``index`` along ``dim``.

    Args:
        input: copied.
        dim: the dimension.
        index: int64 or int32, of as many dimensions.
        src: at least as large as ``index``; or a number.
        value: the number, by another name.
        reduce: ``"add"`` or ``"multiply"``, to combine with what is there.

    Raises:
        RuntimeError: an index is out of range, shapes or types do not fit, or ``reduce`` is unknown.
    """
    need_tensors("scatter", input, index)
    what = src if value is None else value
    if what is None:
        raise TypeError("scatter() needs src or value")
    if value is not None and isinstance(value, engine.Tensor_):
        what = value.item()
    if isinstance(what, int | float):
        what = fitting("scatter", what, input._array.dtype)
    if reduce is None:
        return _scattered("scatter", ops.scatter, input, dim, index, what)
    if reduce not in ("add", "multiply"):
        raise RuntimeError(f"scatter(): reduce must be 'add' or 'multiply', got {reduce!r}")
    if not isinstance(what, engine.Tensor_):
        what = engine.Tensor_._of(np.full(index.shape, what, input._array.dtype))
    if reduce == "add":
        return _scattered("scatter", ops.scatter_add, input, dim, index, what)
    return _scattered(
        "scatter", ops.scatter_reduce, input, dim, index, what, reduce="prod", include_self=True
    )


@numpy_names
@autocasts
def scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """A copy of ``input`` with ``src`` added at ``index`` along ``dim``."""
    need_tensors("scatter_add", input, index, src)
    return _scattered("scatter_add", ops.scatter_add, input, dim, index, src)


@numpy_names
def scatter_reduce(
    input: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """A copy of ``input`` with the elements of ``src`` that go to one place along ``dim`` reduced.

    Args:
        input: copied; takes part if ``include_self``, and stays where nothing goes.
        dim: the dimension.
        index: int64 or int32, of as many dimensions.
        src: at least as large as ``index``.
        reduce: ``"sum"``, ``"prod"``, ``"mean"``, ``"amax"`` or ``"amin"``.
        include_self: see ``input``.
    """
    need_tensors("scatter_reduce", input, index, src)
    if reduce not in ("sum", "prod", "mean", "amax", "amin"):
        raise RuntimeError(f"scatter_reduce(): reduce must be sum, prod, mean, amax or amin, got {reduce!r}")
    if reduce == "sum":
        if not include_self:
            input = scatter(input, dim, index, 0)
        return _scattered("scatter_reduce", ops.scatter_add, input, dim, index, src)
    return _scattered(
        "scatter_reduce", ops.scatter_reduce, input, dim, index, src, reduce=reduce, include_self=include_self
    )


def scatter_(
    input: Tensor, dim: int, index: Tensor, src: Any = None, *, value: Any = None, reduce: str | None = None
) -> Tensor:
    """:func:`scatter` in place."""
    return overwrite(input, scatter, dim, index, src, value=value, reduce=reduce)


def scatter_add_(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """:func:`scatter_add` in place."""
    return overwrite(input, scatter_add, dim, index, src)


def scatter_reduce_(
    input: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """:func:`scatter_reduce` in place."""
    return overwrite(input, scatter_reduce, dim, index, src, reduce, include_self=include_self)


# ------------------------------------------------------------------------------------------------ by a vector


def _vector(name: str, input: Tensor, dim: int, index: Tensor, only: str) -> tuple[int, tuple[Any, ...]]:
    """Return the dimension and the key of an index vector along it."""
    need_tensors(name, input, index)
    d = normalize_dim(dim, input.ndim)
    where = index_array(name, index, only=only)
    if where.ndim > 1:
        raise IndexError(f"{name}(): index must be a vector, got shape {list(where.shape)}")
    error = RuntimeError if name == "index_add" and input.ndim > 1 else IndexError  # as PyTorch
    need_in_range(name, where, input._array.shape[d] if input.ndim else 1, error)
    return d, (*[slice(None)] * d, where.reshape(-1))


def _by_vector(
    name: str, input: Tensor, dim: int, index: Tensor, source: Tensor, only: str, accumulate: bool
) -> Tensor:
    d, key = _vector(name, input, dim, index, only)
    need_tensors(name, source)
    if source.dtype is not input.dtype:
        raise RuntimeError(f"{name}(): source must be of {input.dtype} as input is, got {source.dtype}")
    count = key[-1].size
    x = input if input.ndim else input.reshape(1)
    s = source if source.ndim else source.reshape(1)
    wanted = [count if i == d else n for i, n in enumerate(x.shape)]
    if list(s.shape) != wanted and not (source.numel() == count == 1 and input.ndim <= 1):
        raise RuntimeError(
            f"{name}(): source must have shape {wanted} for {count} indices along dimension {d} of an input of "
            f"{list(input.shape)}, got {list(source.shape)}"
        )
    out = engine.apply(index_ops.put, x, s.reshape(wanted), key=key, accumulate=accumulate)
    return out if input.ndim else out.reshape(())  # type: ignore[no-any-return]


@numpy_names
def index_add(input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """A copy of ``input`` with ``alpha * source`` added at the elements ``index`` (a vector) of dimension ``dim``.

    Raises:
        IndexError: an index is out of range, or ``index`` is no vector.
        RuntimeError: shapes or types do not fit.
    """
    need_tensors("index_add", source)
    if not input.dtype.is_floating_point:
        alpha = int(alpha)
    if alpha != 1:
        source = source * alpha
    return _by_vector("index_add", input, dim, index, source, "int64 int32", True)


@numpy_names
@autocasts
def index_copy(input: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """A copy of ``input`` with ``source`` written at the elements ``index`` (a vector) of dimension ``dim``."""
    need_tensors("index_copy", source)
    return _by_vector("index_copy", input, dim, index, source, "int64", False)


@numpy_names
def index_fill(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """A copy of ``input`` with ``value``, a number, at the elements ``index`` (a vector) of dimension ``dim``.

    Raises:
        IndexError: an index is out of range, or ``index`` is no int64 vector.
        RuntimeError: ``value`` is a tensor with dimensions.
    """
    if index.dtype.name != "int64":
        raise IndexError(f"index_fill(): index must be int64, got {index.dtype}")
    n = input._array.shape[normalize_dim(dim, input.ndim)] if input.ndim else 1
    counted = engine.Tensor_._of(np.where(index._array < 0, index._array + n, index._array))
    _, key = _vector("index_fill", input, dim, counted, "int64")
    key = (*key[:-1], np.unique(key[-1]))  # an index that repeats counts once in the gradient of value
    if isinstance(value, engine.Tensor_):
        if value.ndim:
            raise RuntimeError(f"index_fill(): value must have no dimensions, got shape {list(value.shape)}")
        v = value.to(input.dtype)
    else:
        kind = input._array.dtype
        v = engine.Tensor_._of(np.asarray(fitting("index_fill", as_operand(value), kind), kind))
    x = input if input.ndim else input.reshape(1)
    out = engine.apply(index_ops.put, x, v, key=key, accumulate=False)
    return out if input.ndim else out.reshape(())  # type: ignore[no-any-return]


def index_add_(input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """:func:`index_add` in place."""
    return overwrite(input, index_add, dim, index, source, alpha=alpha)


def index_copy_(input: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """:func:`index_copy` in place."""
    return overwrite(input, index_copy, dim, index, source)


def index_fill_(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """:func:`index_fill` in place."""
    return overwrite(input, index_fill, dim, index, value)
