"""Norms of vectors and matrices, and distances, with PyTorch's names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from disttrain import dtypes, engine
from disttrain.functions.arithmetic import sub, where
from disttrain.functions.common import (
    need_floats,
    need_tensors,
    normalize_dim,
    normalize_dims,
    numpy_names,
    overwrite,
)
from disttrain.ops import reduce
from disttrain.precision import autocasts

if TYPE_CHECKING:
    from disttrain.tensors import Tensor

Dims = int | Sequence[int] | None


@numpy_names
@autocasts
def vector_norm(
    x: Tensor, ord: float = 2, dim: Dims = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """``sum(|x| ** ord) ** (1 / ord)`` over ``dim`` (all by default), as ``torch.linalg.vector_norm``.

    ``ord`` may be infinite, negative, or 0 (the number of elements that are not zero).

    Raises:
        IndexError: there is no such dimension.
        RuntimeError: the tensor or ``dtype`` holds integers, ``dtype`` is narrower, or there is no element to
            choose from.
    """
    return _vector_norm("linalg.vector_norm", x, ord, dim, keepdim, dtype)


def _vector_norm(name: str, x: Tensor, order: float, dim: Dims, keepdim: bool, dtype: Any) -> Tensor:
    x = _converted(name, x, dtype)
    if not isinstance(order, int | float):
        raise RuntimeError(f"{name}() needs a number for its order, got {order!r}")
    axes = normalize_dims(dim, x.ndim)
    if (order < 0 or order == math.inf) and not all(x.shape[a] for a in axes):
        raise RuntimeError(
            f"{name}() of order {order}: a tensor of shape {list(x.shape)} holds no element to choose from"
        )
    return engine.apply(  # type: ignore[no-any-return]
        reduce.vector_norm, x, order=float(order), axes=axes, keepdims=bool(keepdim)
    )


def _converted(name: str, x: Tensor, dtype: Any) -> Tensor:
    need_tensors(name, x)
    if dtype is None:
        need_floats(name, x)
        return x
    kind = dtypes.as_dtype(dtype)
    if not kind.is_floating_point:
        raise RuntimeError(f"{name}() needs a floating point dtype, got {kind}")
    need_floats(name, x)
    if dtypes.promote_types(x.dtype, kind) is not kind:
        raise RuntimeError(f"{name}(): {x.dtype} would lose digits in dtype {kind}; convert the tensor first")
    return x.to(kind)


def _of_matrices(x: Tensor, order: Any, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    from disttrain.functions.decompositions import matrix_norm

    return matrix_norm(x, order, dims, keepdim)


@numpy_names
@autocasts
def linalg_norm(
    input: Tensor,
    ord: float | str | None = None,
    dim: Dims = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Tensor:
    """The norm of a vector or of matrices, as ``torch.linalg.norm``.

    Without ``dim`` and ``ord`` that of all elements; with ``ord`` the tensor must have one dimension or two, with
    ``dim`` its one or two numbers decide.

    Raises:
        RuntimeError: no such norm, or one of more than two dimensions.
    """
    name = "linalg.norm"
    need_tensors(name, input)
    dims = (dim,) if isinstance(dim, int) else None if dim is None else tuple(dim)
    if ord is None:
        return _vector_norm(name, input, 2, dims, keepdim, dtype)
    if (dims is not None and len(dims) not in (1, 2)) or (dims is None and input.ndim not in (1, 2)):
        raise RuntimeError(
            f"{name}() with ord={ord!r} needs one or two dimensions, got shape {list(input.shape)}, dim={dim}"
        )
    if len(dims) == 2 if dims is not None else input.ndim == 2:
        return _of_matrices(_converted(name, input, dtype), ord, (0, 1) if dims is None else dims, keepdim)
    if isinstance(ord, str):
        raise RuntimeError(f"{name}(): ord={ord!r} is a norm of matrices, got one dimension")
    return _vector_norm(name, input, ord, dims, keepdim, dtype)


@autocasts
def norm(
    input: Tensor,
    p: float | str | None = "fro",
    dim: Dims = None,
    keepdim: bool = False,
    dtype: Any = None,
) -> Tensor:
    """The ``p``-norm of the elements over ``dim``, as ``torch.norm``: ``"fro"`` is 2, ``"nuc"`` is of matrices.

    Raises:
        RuntimeError: ``p`` is another name, or the tensor holds integers.
    """
    need_tensors("norm", input)
    dims = (dim,) if isinstance(dim, int) else None if dim is None else tuple(dim)
    if p == "nuc":
        if (dims is None and input.ndim != 2) or (dims is not None and len(dims) != 2):
            raise RuntimeError(
                f"norm() with p='nuc' needs two dimensions, got shape {list(input.shape)}, dim={dim}"
            )
        return _of_matrices(_converted("norm", input, dtype), p, (0, 1) if dims is None else dims, keepdim)
    if p == "fro" and dims is not None and len(dims) > 2:
        raise RuntimeError(f"norm() with p='fro' needs one or two dimensions, got dim={dim}; give p=2")
    if p is None or p == "fro":
        p = 2.0
    if isinstance(p, str):
        raise RuntimeError(f"norm() knows p as a number, 'fro' or 'nuc', got {p!r}")
    return _vector_norm("norm", input, p, dims, keepdim, dtype)


@autocasts
def dist(input: Tensor, other: Tensor, p: float = 2) -> Tensor:
    """The ``p``-norm of ``input - other``, broadcast."""
    need_tensors("dist", input, other)
    return _vector_norm("dist", sub(input, other), p, None, False, None)


@autocasts
def renorm(input: Tensor, p: float, dim: int, maxnorm: float) -> Tensor:
    """``input`` with each slice at an index of ``dim`` scaled down to a ``p``-norm of at most ``maxnorm``.

    Raises:
        IndexError: there is no such dimension.
        RuntimeError: fewer than two dimensions, ``p`` is not positive, or ``maxnorm`` negative.
    """
    need_floats("renorm", input)
    if input.ndim < 2 or p <= 0 or maxnorm < 0:
        raise RuntimeError(
            f"renorm() needs two dimensions or more, p > 0 and maxnorm >= 0, got shape {list(input.shape)}, p={p}, "
            f"maxnorm={maxnorm}"
        )
    kept = normalize_dim(dim, input.ndim)
    norms = _vector_norm("renorm", input, p, [d for d in range(input.ndim) if d != kept], True, None)
    return input * where(norms > maxnorm, maxnorm / (norms + 1e-7), 1.0).to(input.dtype)  # type: ignore[no-any-return]


def renorm_(input: Tensor, p: float, dim: int, maxnorm: float) -> Tensor:
    """:func:`renorm` in place."""
    return overwrite(input, renorm, p, dim, maxnorm)
