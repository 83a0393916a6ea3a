"""Products of matrices and vectors, with PyTorch's names and checks."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from disttrain import engine
from disttrain.functions.common import (
    need_tensors,
    normalize_dim,
    numpy_names,
    overwrite,
    promote,
    refuse_bool,
)
from disttrain.functions.rearrange import roll
from disttrain.functions.shape import broadcast_tensors, clone, permute, reshape
from disttrain.ops import linalg
from disttrain.precision import autocasts

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


@autocasts
def matmul(input: Tensor, other: Tensor) -> Tensor:
    """The product of two matrices, vectors, or batches of them (leading dimensions broadcast).

    Raises:
        RuntimeError: the inner sizes or the types differ, they are boolean, or one has no dimensions.
    """
    _check("matmul", input, other)
    return engine.apply(linalg.matmul, input, other)  # type: ignore[no-any-return]


def _check(name: str, input: Tensor, other: Tensor) -> None:
    if not isinstance(other, engine.Tensor_) or not isinstance(input, engine.Tensor_):
        raise TypeError(f"{name}() needs two Tensors, got {type(input).__name__} and {type(other).__name__}")
    a, b = input._array, other._array
    if not a.ndim or not b.ndim:
        raise RuntimeError(f"{name}(): both arguments need at least 1 dimension, got {a.ndim} and {b.ndim}")
    inner = b.shape[0 if b.ndim == 1 else -2]
    if a.shape[-1] != inner:
        raise RuntimeError(
            f"{name}(): shapes {list(a.shape)} and {list(b.shape)} do not fit: "
            f"{a.shape[-1]} columns against {inner} rows"
        )
    if a.dtype != b.dtype:
        raise RuntimeError(
            f"{name}() expects one dtype, got {input.dtype} and {other.dtype}; convert one with .to()"
        )
    if a.dtype.kind == "b":
        raise RuntimeError(f"{name}() of booleans is not defined; convert them with .to()")


def _ranked(name: str, input: Tensor, other: Tensor, a: int, b: int) -> Tensor:
    need_tensors(name, input, other)
    if input.ndim != a or other.ndim != b:
        raise RuntimeError(
            f"{name}() expects tensors of {a} and {b} dimensions, got shapes {list(input.shape)} and "
            f"{list(other.shape)}"
        )
    return matmul(input, other)


@autocasts
def mm(input: Tensor, mat2: Tensor) -> Tensor:
    """The product of two matrices."""
    return _ranked("mm", input, mat2, 2, 2)


@autocasts
def mv(input: Tensor, vec: Tensor) -> Tensor:
    """The product of a matrix and a vector."""
    return _ranked("mv", input, vec, 2, 1)


@autocasts
def dot(input: Tensor, tensor: Tensor) -> Tensor:
    """The inner product of two vectors."""
    return _ranked("dot", input, tensor, 1, 1)


@autocasts
def vdot(input: Tensor, other: Tensor) -> Tensor:
    """The inner product of two vectors."""
    return _ranked("vdot", input, other, 1, 1)


@autocasts
def bmm(input: Tensor, mat2: Tensor) -> Tensor:
    """The products of two batches of matrices.

    Raises:
        RuntimeError: the batches have different sizes.
    """
    need_tensors("bmm", input, mat2)
    if input.ndim == mat2.ndim == 3 and input.shape[0] != mat2.shape[0]:
        raise RuntimeError(f"bmm(): batches of {input.shape[0]} and {mat2.shape[0]} matrices")
    return _ranked("bmm", input, mat2, 3, 3)


def inner(input: Tensor, other: Tensor) -> Tensor:
    """The sums of products over the last dimensions of both; a number multiplies.

    Raises:
        RuntimeError: the last dimensions or the types differ.
    """
    need_tensors("inner", input, other)
    if not input.ndim or not other.ndim:
        return input * other
    if input.shape[-1] != other.shape[-1]:
        raise RuntimeError(
            f"inner(): the last dimensions must be equal, got shapes {list(input.shape)} and {list(other.shape)}"
        )
    if input.ndim == 1 == other.ndim:
        return dot(input, other)
    return tensordot(input, other, ((-1,), (-1,)))


def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """All products of an element of one vector and one of another."""
    need_tensors("outer", input, vec2)
    if input.ndim != 1 or vec2.ndim != 1:
        raise RuntimeError(f"outer() expects vectors, got shapes {list(input.shape)} and {list(vec2.shape)}")
    return input.unsqueeze(1) * vec2.unsqueeze(0)


def ger(input: Tensor, vec2: Tensor) -> Tensor:
    """:func:`outer`."""
    return outer(input, vec2)


# ------------------------------------------------------------------------------------------------ and a sum


def _add(
    name: str,
    input: Tensor,
    multiply: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    beta: Any,
    alpha: Any,
) -> Tensor:
    """Return ``beta * input + alpha * product``; ``input`` broadcasts, and with ``beta`` 0 does not count at all."""
    need_tensors(name, input, x, y)
    if input.dtype is x.dtype is y.dtype and x.dtype.itemsize == 2 and x.dtype.is_floating_point:
        wide = _add(name, input.float(), multiply, x.float(), y.float(), beta, alpha)  # rounded once
        return wide.to(input.dtype)
    product = multiply(x, y)
    if input.dtype is not product.dtype:
        raise RuntimeError(
            f"{name}() expects one dtype, got {input.dtype} and {product.dtype}; convert one with .to()"
        )
    if not product.dtype.is_floating_point:
        beta, alpha = int(beta), int(alpha)
    _fit(name, product, input)
    out = product if alpha == 1 else product * alpha
    if beta == 0:
        return out
    return (input if beta == 1 else input * beta) + out


def _fit(name: str, product: Tensor, input: Tensor) -> None:
    shape = product._array.shape
    extra = len(shape) - input.ndim
    if extra < 0 or any(
        n not in (1, m) for n, m in zip(input._array.shape, shape[max(extra, 0) :], strict=False)
    ):
        raise RuntimeError(
            f"{name}(): input of shape {list(input.shape)} does not broadcast to that of the product, {list(shape)}"
        )


@autocasts
def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``beta * input + alpha * (mat1 @ mat2)``; with ``beta`` 0, ``input`` does not count, be it nan.

    Raises:
        RuntimeError: shapes or types do not fit, or a factor of integers is none.
    """
    return _add("addmm", input, mm, mat1, mat2, beta, alpha)


@autocasts
def addmv(input: Tensor, mat: Tensor, vec: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``beta * input + alpha * (mat @ vec)``; see :func:`addmm`."""
    return _add("addmv", input, mv, mat, vec, beta, alpha)


@autocasts
def addr(input: Tensor, vec1: Tensor, vec2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``beta * input + alpha * outer(vec1, vec2)``, in the common type; see :func:`addmm`."""
    need_tensors("addr", input)
    product = outer(vec1, vec2)
    _fit("addr", product, input)
    kind = promote(input.reshape(-1), product.reshape(-1))[0].dtype
    if kind.category == 0:
        both = product if alpha else product.new_zeros(product.shape)
        return both.logical_or(input) if beta else both
    for word, factor in (("beta", beta), ("alpha", alpha)):
        if isinstance(factor, float) and not kind.is_floating_point:
            raise RuntimeError(f"addr(): {word} must be an integer for {kind}, got {factor}")
    out = product if alpha == 1 else product * alpha
    if beta == 0:
        return out.to(kind)
    return (input if beta == 1 else input * beta) + out


@autocasts
def baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``beta * input + alpha * bmm(batch1, batch2)``; see :func:`addmm`."""
    return _add("baddbmm", input, bmm, batch1, batch2, beta, alpha)


@autocasts
def addbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """``beta * input + alpha * bmm(batch1, batch2).sum(0)``; see :func:`addmm`."""
    need_tensors("addbmm", batch1, batch2)
    if batch1.ndim != 3 or batch2.ndim != 3 or batch1.shape[0] != batch2.shape[0]:
        raise RuntimeError(
            f"addbmm() needs two batches of as many matrices, got shapes {list(batch1.shape)} and "
            f"{list(batch2.shape)}"
        )
    # All the products and their sum are one product of the batches side by side.
    b, n, k = batch1.shape
    rows = reshape(permute(batch1, 1, 0, 2), n, b * k)
    if batch2.shape[1] != k:
        raise RuntimeError(f"addbmm(): shapes {list(batch1.shape)} and {list(batch2.shape)} do not fit")
    return _add("addbmm", input, mm, rows, reshape(batch2, b * k, batch2.shape[2]), beta, alpha)


def addmm_(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """:func:`addmm` in place."""
    return overwrite(input, addmm, mat1, mat2, beta=beta, alpha=alpha)


def addmv_(input: Tensor, mat: Tensor, vec: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """:func:`addmv` in place."""
    return overwrite(input, addmv, mat, vec, beta=beta, alpha=alpha)


def addr_(input: Tensor, vec1: Tensor, vec2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """:func:`addr` in place."""
    return overwrite(input, addr, vec1, vec2, beta=beta, alpha=alpha)


def baddbmm_(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """:func:`baddbmm` in place."""
    return overwrite(input, baddbmm, batch1, batch2, beta=beta, alpha=alpha)


def addbmm_(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """:func:`addbmm` in place."""
    return overwrite(input, addbmm, batch1, batch2, beta=beta, alpha=alpha)


# ------------------------------------------------------------------------------------------------ of tensors


@autocasts
def tensordot(a: Tensor, b: Tensor, dims: Any = 2) -> Tensor:
    """The sums of products over pairs of dimensions.

    Args:
        a: a tensor; its other dimensions come first in the result.
        b: a tensor of the same type; its other dimensions come last.
        dims: how many dimensions, the last of ``a`` and the first of ``b``; or the dimensions of each.

    Raises:
        RuntimeError: paired dimensions or the types differ.
    """
    need_tensors("tensordot", a, b)
    if isinstance(dims, engine.Tensor_):
        dims = dims.tolist()
    if isinstance(dims, int):
        if dims < 0 or dims > min(a.ndim, b.ndim):
            raise RuntimeError(
                f"tensordot(): dims must be in [0, {min(a.ndim, b.ndim)}] for shapes {list(a.shape)} and "
                f"{list(b.shape)}, got {dims}"
            )
        left, right = list(range(a.ndim - dims, a.ndim)), list(range(dims))
    else:
        first, second = dims
        left = [normalize_dim(d, a.ndim) for d in ([first] if isinstance(first, int) else first)]
        right = [normalize_dim(d, b.ndim) for d in ([second] if isinstance(second, int) else second)]
    if len(left) != len(right):
        raise RuntimeError(f"tensordot(): {len(left)} dimensions of a, but {len(right)} of b")
    if len(set(left)) < len(left) or len(set(right)) < len(right):
        raise RuntimeError(f"tensordot(): a dimension appears twice in dims={dims!r}")
    for i, j in zip(left, right, strict=True):
        n, m = a._array.shape[i], b._array.shape[j]
        if n == 1 or m == 1:  # size 1 broadcasts: sum the other
            a = a if n == 1 else a.sum(i, keepdim=True, dtype=a.dtype)
            b = b if m == 1 else b.sum(j, keepdim=True, dtype=b.dtype)
        elif n != m:
            raise RuntimeError(f"tensordot(): dimension {i} of a has size {n}, dimension {j} of b size {m}")
    free_a = [d for d in range(a.ndim) if d not in left]
    free_b = [d for d in range(b.ndim) if d not in right]
    x, y, inner_ = a._array.shape, b._array.shape, math.prod(a._array.shape[d] for d in left)
    rows = reshape(permute(a, free_a + left), math.prod(x[d] for d in free_a), inner_)
    columns = reshape(permute(b, right + free_b), inner_, math.prod(y[d] for d in free_b))
    return reshape(mm(rows, columns), [x[d] for d in free_a] + [y[d] for d in free_b])


def kron(input: Tensor, other: Tensor) -> Tensor:
    """The Kronecker product: ``other`` once for each element of ``input``, times that element."""
    need_tensors("kron", input, other)
    n = max(input.ndim, other.ndim)
    a = (1,) * (n - input.ndim) + tuple(input._array.shape)
    b = (1,) * (n - other.ndim) + tuple(other._array.shape)
    x = reshape(input, [m for k in a for m in (k, 1)])
    y = reshape(other, [m for k in b for m in (1, k)])
    return reshape(x * y, [p * q for p, q in zip(a, b, strict=True)])


@numpy_names
@autocasts
def cross(input: Tensor, other: Tensor, dim: int | None = None) -> Tensor:
    """The vectors that stand upright on those of both, along the first dimension of size 3 unless ``dim`` is given.

    Raises:
        RuntimeError: the dimension has not size 3, or the tensors do not broadcast.
    """
    need_tensors("cross", input, other)
    if dim is None:
        common, _ = broadcast_tensors(input, other)
        dim = next((i for i, n in enumerate(common.shape) if n == 3), None)
        if dim is None:
            raise RuntimeError(f"cross(): no dimension has size 3 in shape {list(input.shape)}")
    return linalg_cross(input, other, dim=dim)


@numpy_names
def linalg_cross(input: Tensor, other: Tensor, *, dim: int = -1) -> Tensor:
    """The vectors that stand upright on those of both, along ``dim``.

    Raises:
        RuntimeError: the dimension has not size 3, or the tensors do not broadcast.
    """
    need_tensors("linalg.cross", input, other)
    if input.ndim != other.ndim:
        raise RuntimeError(
            f"linalg.cross(): both need as many dimensions, got shapes {list(input.shape)} and {list(other.shape)}"
        )
    if input.dtype.category == 0:
        raise RuntimeError("cross() of booleans is not defined; convert them with .to()")
    x, y = input, other
    d = normalize_dim(dim, x.ndim)
    if not x.ndim or x.shape[d] != 3 or y.shape[d] != 3:
        raise RuntimeError(
            f"linalg.cross(): dimension {dim} must have size 3, got shapes {list(input.shape)} and "
            f"{list(other.shape)}"
        )
    x, y = broadcast_tensors(x, y)
    return roll(x, -1, d) * roll(y, -2, d) - roll(x, -2, d) * roll(y, -1, d)


@numpy_names
@autocasts
def vecdot(x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
    """The sums of products along ``dim``; the others broadcast."""
    need_tensors("linalg.vecdot", x, y)
    if x.dtype is not y.dtype:
        raise RuntimeError(f"linalg.vecdot(): needs one dtype, got {x.dtype} and {y.dtype}")
    if not x.dtype.is_floating_point:
        raise RuntimeError(f"linalg.vecdot(): needs floating point numbers, got {x.dtype}")
    n = max(x.ndim, y.ndim)
    return (x * y).sum(normalize_dim(dim, n))


@autocasts
def multi_dot(tensors: Sequence[Tensor]) -> Tensor:
    """The product of several matrices in the order that takes least work; the first and last may be vectors.

    Raises:
        RuntimeError: there are fewer than two, or shapes or types do not fit.
    """
    factors = list(tensors)
    need_tensors("linalg.multi_dot", *factors)
    if len(factors) < 2:
        raise RuntimeError(f"linalg.multi_dot() needs at least 2 tensors, got {len(factors)}")
    shown = [list(x.shape) for x in factors]
    row, column = factors[0].ndim == 1, factors[-1].ndim == 1
    if row:
        factors[0] = factors[0].unsqueeze(0)
    if column:
        factors[-1] = factors[-1].unsqueeze(1)
    if any(x.ndim != 2 for x in factors):
        raise RuntimeError(
            f"linalg.multi_dot() needs matrices, and vectors only at the ends; got shapes {shown}"
        )
    for x, y in itertools.pairwise(factors):
        _check("linalg.multi_dot", x, y)
    out = _chain(factors, _order([x.shape[0] for x in factors] + [factors[-1].shape[1]]), 0, len(factors) - 1)
    if row:
        out = out.squeeze(0)
    return out.squeeze(-1) if column else out


def _order(sizes: list[int]) -> list[list[int]]:
    """Return where to cut each stretch of a chain of matrices (the textbook's dynamic programme)."""
    n = len(sizes) - 1
    work = [[0] * n for _ in range(n)]
    cut = [[0] * n for _ in range(n)]
    for length in range(2, n + 1):
        for i in range(n - length + 1):
            j = i + length - 1
            work[i][j], cut[i][j] = min(
                (work[i][k] + work[k + 1][j] + sizes[i] * sizes[k + 1] * sizes[j + 1], k) for k in range(i, j)
            )
    return cut


def _chain(factors: list[Tensor], cut: list[list[int]], i: int, j: int) -> Tensor:
    if i == j:
        return factors[i]
    k = cut[i][j]
    return mm(_chain(factors, cut, i, k), _chain(factors, cut, k + 1, j))


@autocasts
def chain_matmul(*matrices: Tensor) -> Tensor:
    """The product of several matrices in the order that takes least work."""
    factors = (
        list(matrices[0]) if len(matrices) == 1 and isinstance(matrices[0], list | tuple) else list(matrices)
    )
    need_tensors("chain_matmul", *factors)
    if not factors or any(x.ndim != 2 for x in factors):
        raise RuntimeError(f"chain_matmul() needs matrices, got shapes {[list(x.shape) for x in factors]}")
    return clone(factors[0]) if len(factors) == 1 else multi_dot(factors)


# ------------------------------------------------------------------------------------------ covariance


def cov(
    input: Tensor, *, correction: int = 1, fweights: Tensor | None = None, aweights: Tensor | None = None
) -> Tensor:
    """The covariances of the rows of ``input``, ``(variables, observations)``; the variance of a vector.

    Args:
        input: of at most two dimensions, no booleans.
        correction: what is subtracted from the number of observations.
        fweights: how often each observation occurs, integers.
        aweights: how much each counts, floating point numbers.

    Raises:
        RuntimeError: other dimensions or types, weights that are negative or of another number.
    """
    refuse_bool("cov", input)
    if input.ndim > 2:
        raise RuntimeError(f"cov() needs at most two dimensions, got shape {list(input.shape)}")
    rows = input if input.ndim == 2 else input.reshape(1, -1)
    count = rows.shape[1]
    for name, weight, whole in (("fweights", fweights, True), ("aweights", aweights, False)):
        if weight is None:
            continue
        need_tensors("cov", weight)
        if weight.shape != (count,) or weight.dtype.category != (1 if whole else 2):
            raise RuntimeError(
                f"cov(): {name} must be {count} {'integers' if whole else 'floating point numbers'}, "
                f"got {weight.dtype} of shape {list(weight.shape)}"
            )
        if (weight < 0).any():
            raise RuntimeError(f"cov(): {name} must not be negative, got {weight.tolist()!r:.80}")
    weights = fweights if aweights is None else aweights if fweights is None else fweights * aweights
    total: Any = count if weights is None else weights.sum()
    if not count or (weights is not None and not total):
        raise RuntimeError(f"cov() needs observations, got shape {list(input.shape)} and no weight in all")
    mean = (rows if weights is None else rows * weights).sum(1, keepdim=True) / total
    divisor = total - correction
    if aweights is not None and correction:
        divisor = total - correction * (weights * aweights).sum() / total
    if divisor <= 0:
        warnings.warn("cov(): there are no more observations than correction", stacklevel=2)
        divisor = 0
    centred = rows - mean
    products = centred @ (centred if weights is None else centred * weights).t()
    return (products / divisor).squeeze()  # type: ignore[no-any-return]


def corrcoef(input: Tensor) -> Tensor:
    """The correlations of the rows of ``input``, ``(variables, observations)``: 1 of each with itself.

    Raises:
        RuntimeError: see :func:`cov`.
    """
    c = cov(input)
    if not c.ndim:
        return c / c
    deviation = c.diagonal().sqrt()
    return (c / deviation.unsqueeze(1) / deviation).clamp(-1, 1)
