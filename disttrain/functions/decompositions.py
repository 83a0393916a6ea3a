"""Inverses, determinants, factorisations and norms of matrices: what ``torch.linalg`` has, with its names."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from disttrain import engine
from disttrain.errors import LinAlgError
from disttrain.functions.arithmetic import where
from disttrain.functions.common import need_tensors, normalize_dim
from disttrain.functions.diagonals import diagonal, tril, triu
from disttrain.functions.linalg import matmul
from disttrain.functions.shape import movedim
from disttrain.kernels.arrays import to_host
from disttrain.ops import decompositions as ops
from disttrain.precision import autocasts

if TYPE_CHECKING:
    from disttrain.tensors import Tensor


class SVD(NamedTuple):
    """What ``linalg.svd`` returns."""

    U: Tensor
    S: Tensor
    Vh: Tensor


class TopSVD(NamedTuple):
    """What ``svd`` returns, whose third part is not transposed."""

    U: Tensor
    S: Tensor
    V: Tensor


class QR(NamedTuple):
    """What ``linalg.qr`` returns."""

    Q: Tensor
    R: Tensor


class Eigh(NamedTuple):
    """What ``linalg.eigh`` returns."""

    eigenvalues: Tensor
    eigenvectors: Tensor


class Slogdet(NamedTuple):
    """What ``linalg.slogdet`` returns."""

    sign: Tensor
    logabsdet: Tensor


class Lstsq(NamedTuple):
    """What ``linalg.lstsq`` returns."""

    solution: Tensor
    residuals: Tensor
    rank: Tensor
    singular_values: Tensor


class WithInfo(NamedTuple):
    """What ``linalg.inv_ex`` returns."""

    inverse: Tensor
    info: Tensor


class CholeskyWithInfo(NamedTuple):
    """What ``linalg.cholesky_ex`` returns."""

    L: Tensor
    info: Tensor


class Triangular(NamedTuple):
    """What ``triangular_solve`` returns."""

    solution: Tensor
    cloned_coefficient: Tensor


# ------------------------------------------------------------------------------------------------ checks


def _matrices(name: str, input: Any, *, square: bool = False) -> None:
    """Raise unless ``input`` holds matrices of float32 or float64."""
    need_tensors(name, input)
    if input.ndim < 2:
        raise RuntimeError(f"{name}(): needs at least 2 dimensions, got shape {list(input.shape)}")
    if input._array.dtype.kind != "f" or input._array.dtype.itemsize < 4:
        raise RuntimeError(f"{name}(): needs float32 or float64, got {input.dtype}; convert with .to()")
    if square and input.shape[-1] != input.shape[-2]:
        raise RuntimeError(f"{name}(): needs square matrices, got shape {list(input.shape)}")


def _same_type(name: str, a: Tensor, b: Any) -> None:
    need_tensors(name, b)
    if a.dtype is not b.dtype:
        raise RuntimeError(f"{name}(): needs one dtype, got {a.dtype} and {b.dtype}; convert one with .to()")


def _try(name: str, why: str, op: Any, *inputs: Tensor, **options: Any) -> Any:
    try:
        return engine.apply(op, *inputs, **options)
    except np.linalg.LinAlgError as e:
        raise LinAlgError(f"{name}(): {why}") from e


_SINGULAR = (
    "the matrix is singular (or one of the batch is): it has no inverse; add to its diagonal, or use pinv()"
)
_INDEFINITE = "the matrix is not positive-definite (or one of the batch is not)"


# ------------------------------------------------------------------------------------------------ solving


@autocasts
def inv(A: Tensor) -> Tensor:
    """The inverses of square matrices.

    Raises:
        LinAlgError: a matrix is singular.
    """
    _matrices("linalg.inv", A, square=True)
    return _try("linalg.inv", _SINGULAR, ops.inv, A)  # type: ignore[no-any-return]


@autocasts
def inverse(input: Tensor) -> Tensor:
    """:func:`inv`."""
    return inv(input)


@autocasts
def inv_ex(A: Tensor, *, check_errors: bool = False) -> WithInfo:
    """:func:`inv`, and for each matrix 0, or which pivot (counted from 1, int32) is zero; its inverse is nan then.

    Raises:
        LinAlgError: a matrix is singular, and ``check_errors`` is True.
    """
    _matrices("linalg.inv_ex", A, square=True)
    inverse, info = _with_info("linalg.inv_ex", _SINGULAR, ops.inv, A, _zero_pivot, check_errors)
    return WithInfo(inverse, info)


def _with_info(
    name: str, why: str, op: Any, A: Tensor, failure: Callable[[Any], int], check_errors: bool
) -> tuple[Tensor, Tensor]:
    """Return ``op`` of each matrix, nan where it fails, and what ``failure`` says of those."""
    info = np.zeros(A.shape[:-2], np.int32)
    try:
        return engine.apply(op, A), engine.Tensor_._of(info)
    except np.linalg.LinAlgError as error:
        if check_errors:
            raise LinAlgError(f"{name}(): {why}") from error
    matrices = to_host(A._array)
    for i in np.ndindex(info.shape):
        try:
            op(matrices[i])
        except np.linalg.LinAlgError:
            info[i] = failure(matrices[i])
    failed = engine.Tensor_._of(info[..., None, None] != 0)
    eye = engine.Tensor_._of(np.eye(A.shape[-1], dtype=matrices.dtype))
    return where(failed, math.nan, engine.apply(op, where(failed, eye, A))), engine.Tensor_._of(info)


def _zero_pivot(matrix: Any) -> int:
    """Return the number, from 1, of the first pivot that elimination with row exchanges finds to be zero."""
    rest = matrix.copy()
    for k in range(1, len(matrix)):
        first = np.abs(rest[:, 0]).argmax()
        rest[[0, first]] = rest[[first, 0]]
        if rest[0, 0] == 0:
            return k
        rest = rest[1:, 1:] - np.outer(rest[1:, 0] / rest[0, 0], rest[0, 1:])
    return len(matrix)


def _indefinite_minor(matrix: Any) -> int:
    """Return the order of the first leading minor that is not positive-definite."""
    for k in range(1, len(matrix)):
        try:
            np.linalg.cholesky(matrix[:k, :k])
        except np.linalg.LinAlgError:
            return k
    return len(matrix)


@autocasts
def solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    """``X`` with ``A @ X == B`` (``X @ A == B`` unless ``left``).

    Args:
        A: ``(…, n, n)``.
        B: ``(…, n, k)``, or vectors ``(…, n)``; batches broadcast.
        left: on which side ``A`` stands.

    Raises:
        LinAlgError: a matrix is singular.
        RuntimeError: shapes or types do not fit.
    """
    _matrices("linalg.solve", A, square=True)
    _same_type("linalg.solve", A, B)
    vector = B.ndim == 1 or (A.ndim - 1 == B.ndim and B.shape == A.shape[:-1])
    if vector and not left:
        raise RuntimeError("linalg.solve(): a vector B needs left=True")
    if vector:
        return _solve("linalg.solve", A, B.unsqueeze(-1)).squeeze(-1)
    if not left:
        return _solve("linalg.solve", A.mT, B.mT).mT
    return _solve("linalg.solve", A, B)


def _solve(name: str, A: Tensor, B: Tensor) -> Tensor:
    _fits(name, A, B)
    return _try(name, _SINGULAR, ops.solve, A, B)  # type: ignore[no-any-return]


def _fits(name: str, A: Tensor, B: Tensor) -> None:
    if B.ndim < 2:
        raise RuntimeError(f"{name}(): B must hold matrices, got shape {list(B.shape)}")
    if A.shape[-1] != B.shape[-2]:
        raise RuntimeError(
            f"{name}(): {A.shape[-1]} unknowns, but {B.shape[-2]} rows of B (shapes {list(A.shape)}, {list(B.shape)})"
        )
    try:
        np.broadcast_shapes(A._array.shape[:-2], B._array.shape[:-2])
    except ValueError:
        raise RuntimeError(
            f"{name}(): the batches of shapes {list(A.shape)} and {list(B.shape)} do not broadcast"
        ) from None


def solve_triangular(
    A: Tensor, B: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    """``X`` with ``A @ X == B`` (``X @ A == B`` unless ``left``), for triangular ``A``.

    Args:
        A: ``(…, n, n)``; only one half is read.
        B: ``(…, n, k)``; batches broadcast.
        upper: which half.
        left: on which side ``A`` stands.
        unitriangular: take ones for the diagonal of ``A``.
    """
    name = "linalg.solve_triangular"
    _matrices(name, A, square=True)
    _matrices(name, B)
    _same_type(name, A, B)
    T = A
    if unitriangular:
        T = (triu if upper else tril)(A, 1 if upper else -1) + engine.Tensor_._of(
            np.eye(A.shape[-1], dtype=A._array.dtype)
        )
    if not left:
        _fits(name, T.mT, B.mT)
        return engine.apply(ops.solve_triangular, T.mT, B.mT, upper=not upper).mT  # type: ignore[no-any-return]
    _fits(name, T, B)
    return engine.apply(ops.solve_triangular, T, B, upper=upper)  # type: ignore[no-any-return]


@autocasts
def triangular_solve(
    input: Tensor, A: Tensor, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> Triangular:
    """``X`` with ``A @ X == input`` (``A.mT`` if ``transpose``) for triangular ``A``, and a copy of ``A``."""
    name = "triangular_solve"
    _matrices(name, A, square=True)
    _matrices(name, input)
    matrix = A.mT if transpose else A
    x = solve_triangular(matrix, input, upper=upper != transpose, unitriangular=unitriangular)
    return Triangular(x, A.clone())


@autocasts
def cholesky_solve(input: Tensor, input2: Tensor, upper: bool = False) -> Tensor:
    """``X`` with ``A @ X == input``, given the factor ``input2`` of ``A``.

    Args:
        input: ``(…, n, k)``.
        input2: ``(…, n, n)``: ``L`` of ``A == L @ L.mT``, or ``U`` of ``A == U.mT @ U`` if ``upper``.
        upper: which triangle ``input2`` is.
    """
    _matrices("cholesky_solve", input2, square=True)
    _matrices("cholesky_solve", input)
    _same_type("cholesky_solve", input2, input)
    _fits("cholesky_solve", input2, input)
    return engine.apply(ops.cholesky_solve, input, input2, upper=upper)  # type: ignore[no-any-return]


@autocasts
def cholesky_inverse(input: Tensor, upper: bool = False) -> Tensor:
    """The inverse of ``input @ input.mT`` (``input.mT @ input`` if ``upper``)."""
    _matrices("cholesky_inverse", input, square=True)
    eye = engine.Tensor_._of(
        np.broadcast_to(np.eye(input.shape[-1], dtype=input._array.dtype), input._array.shape)
    )
    return cholesky_solve(eye, input, upper)


def pinv(
    A: Tensor, rcond: Any = None, hermitian: bool = False, *, atol: Any = None, rtol: Any = None
) -> Tensor:
    """The pseudo-inverses of matrices, ``(…, n, m)`` of ``(…, m, n)``.

    Singular values up to ``max(atol, rtol * largest)`` count as zero; ``rtol`` is ``max(m, n) * eps`` unless one of
    the two is given. ``rcond`` is ``rtol`` by an older name. If ``hermitian``, the matrices count as symmetric and only
    their lower halves are read.
    """
    _matrices("linalg.pinv", A, square=hermitian)
    atol, rtol = _tolerances(A, atol, rcond if rtol is None else rtol)
    return engine.apply(ops.pinv, A, least=atol, share=rtol, symmetric=hermitian)  # type: ignore[no-any-return]


@autocasts
def pinverse(input: Tensor, rcond: float = 1e-15) -> Tensor:
    """:func:`pinv`."""
    return pinv(input, rtol=rcond)


def _tolerances(A: Tensor, atol: Any, rtol: Any) -> tuple[Any, Any]:
    def plain(x: Any) -> Any:
        return x._array if isinstance(x, engine.Tensor_) else np.asarray(x, np.float64)

    if rtol is None:
        usual = max(A.shape[-2:]) * float(np.finfo(A._array.dtype).eps)
        rtol = usual if atol is None else np.where(plain(atol) > 0, 0.0, usual)
    return plain(0.0 if atol is None else atol), plain(rtol)


@autocasts
def matrix_rank(
    A: Tensor, tol: Any = None, hermitian: bool = False, *, atol: Any = None, rtol: Any = None
) -> Tensor:
    """The number, int64, of singular values above ``max(atol, rtol * largest)``; see :func:`pinv`.

    ``tol`` is ``atol`` with ``rtol`` 0, by an older name. ``hermitian`` takes eigenvalues' absolute values.
    """
    _matrices("linalg.matrix_rank", A, square=hermitian)
    if tol is not None:
        atol, rtol = tol, 0.0
    atol, rtol = _tolerances(A, atol, rtol)
    x = A._array
    s = abs(np.linalg.eigvalsh(x)) if hermitian else np.linalg.svd(x, compute_uv=False)
    limit = np.maximum(atol, rtol * s.max(-1, initial=0))
    return engine.Tensor_._of(np.asarray((s > limit[..., None]).sum(-1, dtype=np.int64)))  # type: ignore[no-any-return]


@autocasts
def lstsq(A: Tensor, B: Tensor, rcond: Any = None, *, driver: str | None = None) -> Lstsq:
    """The ``X`` of least norm among those that make ``A @ X - B`` smallest.

    Args:
        A: ``(…, m, n)``.
        B: ``(…, m, k)``, or vectors ``(…, m)``.
        rcond: singular values up to this share of the largest count as zero; by default ``max(m, n) * eps``.
        driver: ``gelsy`` (by default), ``gelsd``, ``gelss`` or ``gels``: decides which results besides the solution
            are filled. All are computed alike, by the singular values.

    Returns:
        ``solution``; ``residuals``, the squares summed over rows if ``m > n`` and the rank is full; ``rank`` unless
        ``gels``; ``singular_values`` for ``gelsd`` and ``gelss``. What is not filled is empty.
    """
    name = "linalg.lstsq"
    _matrices(name, A)
    _same_type(name, A, B)
    if driver not in (None, "gels", "gelsy", "gelsd", "gelss"):
        raise RuntimeError(f"{name}(): driver must be gels, gelsy, gelsd or gelss, got {driver!r}")
    if B.ndim < 1:
        raise RuntimeError(f"{name}(): B needs at least 1 dimension")
    vector = A.ndim - 1 == B.ndim and B.shape == A.shape[:-1]
    right = B.unsqueeze(-1) if vector else B
    if right.ndim < 2 or right.shape[-2] != A.shape[-2]:
        raise RuntimeError(f"{name}(): shapes {list(A.shape)} and {list(B.shape)} do not fit")
    rtol = None if rcond is None or (isinstance(rcond, float) and rcond < 0) else rcond
    x = matmul(pinv(A, rtol=rtol), right)
    m, n = A.shape[-2:]
    rank = matrix_rank(A, rtol=rtol)
    empty = engine.Tensor_._of(np.empty(0, A._array.dtype))
    full = driver in ("gels", "gelsd", "gelss") and m > n and bool((rank._array == n).all())
    residuals = (matmul(A, x) - right).square().sum(-2) if full else x.reshape(-1)[:0]
    s = (
        engine.Tensor_._of(np.linalg.svd(A._array, compute_uv=False))
        if driver in ("gelsd", "gelss")
        else empty
    )
    known = rank if driver != "gels" else engine.Tensor_._of(np.empty(0, np.int64))
    return Lstsq(x.squeeze(-1) if vector else x, residuals, known, s)


# ------------------------------------------------------------------------------------------------ determinants


def det(A: Tensor) -> Tensor:
    """The determinants of square matrices."""
    _matrices("linalg.det", A, square=True)
    return engine.apply(ops.det, A)  # type: ignore[no-any-return]


def slogdet(A: Tensor) -> Slogdet:
    """The signs of determinants (0 of singular matrices), and the logarithms of their absolute values."""
    _matrices("linalg.slogdet", A, square=True)
    return Slogdet(*engine.apply(ops.slogdet, A))


def logdet(input: Tensor) -> Tensor:
    """The logarithms of determinants; nan of negative ones, ``-inf`` of zero."""
    _matrices("logdet", input, square=True)
    sign, logarithm = engine.apply(ops.slogdet, input)
    return where(sign < 0, float("nan"), logarithm)  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------ factorisations


@autocasts
def cholesky(A: Tensor, *, upper: bool = False) -> Tensor:
    """The triangular factor ``L`` of symmetric positive-definite ``A == L @ L.mT`` (``U.mT @ U`` if ``upper``).

    Raises:
        LinAlgError: a matrix is not positive-definite.
    """
    _matrices("linalg.cholesky", A, square=True)
    lower = _try("linalg.cholesky", _INDEFINITE, ops.cholesky, A.mT if upper else A)
    return lower.mT if upper else lower  # type: ignore[no-any-return]


def top_cholesky(input: Tensor, upper: bool = False) -> Tensor:
    """:func:`cholesky`, as ``torch.cholesky``."""
    return cholesky(input, upper=upper)


@autocasts
def cholesky_ex(A: Tensor, *, upper: bool = False, check_errors: bool = False) -> CholeskyWithInfo:
    """:func:`cholesky`, and for each matrix 0, or the order (int32) of its first leading minor that is not
    positive-definite; its factor is nan then.

    Raises:
        LinAlgError: a matrix is not positive-definite, and ``check_errors`` is True.
    """
    _matrices("linalg.cholesky_ex", A, square=True)
    given = A.mT if upper else A
    lower, info = _with_info(
        "linalg.cholesky_ex", _INDEFINITE, ops.cholesky, given, _indefinite_minor, check_errors
    )
    return CholeskyWithInfo(lower.mT if upper else lower, info)


@autocasts
def qr(A: Tensor, mode: str = "reduced") -> QR:
    """``Q @ R == A`` with orthonormal columns of ``Q`` and upper triangular ``R``.

    Args:
        A: ``(…, m, n)``.
        mode: ``"reduced"``, ``"complete"`` (a square ``Q``; no gradient if ``m > n``) or ``"r"`` (an empty ``Q``; no
            gradient).
    """
    _matrices("linalg.qr", A)
    if mode not in ("reduced", "complete", "r"):
        raise RuntimeError(f"linalg.qr(): mode must be 'reduced', 'complete' or 'r', got {mode!r}")
    if mode == "complete" and A.shape[-2] > A.shape[-1]:
        return QR(
            *engine.apply(
                _without_gradient(ops.qr, f"qr with mode={mode!r} and more rows than columns"), A, mode=mode
            )
        )
    if mode == "r":
        _, R = engine.apply(
            _without_gradient(ops.qr, "qr with mode='r', which computes no Q"), A, mode="reduced"
        )
        return QR(engine.Tensor_._of(np.empty(0, A._array.dtype)), R)
    return QR(*engine.apply(ops.qr, A, mode=mode))


def _without_gradient(op: Any, what: str) -> Any:
    def vjp(*args: Any) -> Any:
        raise RuntimeError(f"the derivative of {what} is not defined")

    def run(*arrays: Any, **options: Any) -> Any:
        return op(*arrays, **options)[0], (), vjp

    run.__name__ = op.__name__
    return run


def top_qr(input: Tensor, some: bool = True) -> QR:
    """:func:`qr`, as ``torch.qr``: ``"complete"`` unless ``some``."""
    return qr(input, "reduced" if some else "complete")


@autocasts
def svd(A: Tensor, full_matrices: bool = True, *, driver: str | None = None) -> SVD:
    """``U @ diag(S) @ Vh == A`` with orthonormal ``U`` and ``Vh``, and ``S`` falling.

    Args:
        A: ``(…, m, n)``.
        full_matrices: ``U`` and ``Vh`` are square; else they have ``min(m, n)`` columns and rows.
        driver: for GPUs in PyTorch; must be ``None``.
    """
    _matrices("linalg.svd", A)
    if driver is not None:
        raise RuntimeError(f"linalg.svd(): there are no drivers to choose from, got {driver!r}")
    return SVD(*_try("linalg.svd", "it did not converge", ops.svd, A, full=full_matrices))


def top_svd(input: Tensor, some: bool = True, compute_uv: bool = True) -> TopSVD:
    """``U @ diag(S) @ V.mT == input``, as ``torch.svd``; zeros for ``U`` and ``V`` unless ``compute_uv``."""
    _matrices("svd", input)
    u, s, vh = svd(input, full_matrices=not some)
    if not compute_uv:
        m, n = input.shape[-2:]
        return TopSVD(input.new_zeros(*input.shape[:-2], m, m), s, input.new_zeros(*input.shape[:-2], n, n))
    return TopSVD(u, s, vh.mT)


@autocasts
def svdvals(A: Tensor, *, driver: str | None = None) -> Tensor:
    """The singular values of matrices, falling."""
    _matrices("linalg.svdvals", A)
    return svd(A, full_matrices=False, driver=driver).S


@autocasts
def eigh(A: Tensor, UPLO: str = "L") -> Eigh:
    """Eigenvalues, rising, and eigenvectors as columns, of symmetric matrices.

    Args:
        A: ``(…, n, n)``; only one half is read.
        UPLO: which half: ``"L"`` for the lower, ``"U"`` for the upper.
    """
    _matrices("linalg.eigh", A, square=True)
    if str(UPLO).upper() not in ("L", "U"):
        raise RuntimeError(f"linalg.eigh(): UPLO must be 'L' or 'U', got {UPLO!r}")
    upper = UPLO.upper() == "U"
    return Eigh(*_try("linalg.eigh", "it did not converge", ops.eigh, A, upper=upper))


@autocasts
def eigvalsh(A: Tensor, UPLO: str = "L") -> Tensor:
    """The eigenvalues of symmetric matrices, rising; see :func:`eigh`."""
    return eigh(A, UPLO).eigenvalues


# ------------------------------------------------------------------------------------------------ functions


def matrix_exp(A: Tensor) -> Tensor:
    """``e ** A`` as a power series of square matrices."""
    _matrices("linalg.matrix_exp", A, square=True)
    return engine.apply(ops.matrix_exp, A)  # type: ignore[no-any-return]


def matrix_power(input: Tensor, n: int) -> Tensor:
    """The product of ``n`` times a square matrix; of its inverse if ``n`` is negative.

    Raises:
        LinAlgError: ``n`` is negative and a matrix is singular.
    """
    need_tensors("linalg.matrix_power", input)
    if input.ndim < 2 or input.shape[-1] != input.shape[-2]:
        raise RuntimeError(f"linalg.matrix_power(): needs square matrices, got shape {list(input.shape)}")
    n = operator.index(n)
    if n == 0:
        ones: Tensor = engine.Tensor_._of(
            np.zeros_like(input._array) + np.eye(input.shape[-1], dtype=input._array.dtype)
        )
        return ones + 0 * input
    base, result = (input if n > 0 else inv(input)), None
    n = abs(n)
    while n:
        if n & 1:
            result = base if result is None else matmul(result, base)
        n >>= 1
        if n:
            base = matmul(base, base)
    assert result is not None
    return result.clone() if result is input else result


@autocasts
def matrix_norm(
    A: Tensor, ord: Any = "fro", dim: Sequence[int] = (-2, -1), keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """Norms of matrices.

    Args:
        A: floating point.
        ord: ``"fro"`` (all squares), ``"nuc"`` (the sum of singular values), 2 or -2 (the largest, the smallest),
            1 or -1 (the largest, the smallest sum of absolute values of a column), ``inf`` or ``-inf`` (of a row).
        dim: the two dimensions of the matrices.
        keepdim: keep them with size 1.
        dtype: convert to it first.
    """
    name = "linalg.matrix_norm"
    need_tensors(name, A)
    if A.ndim < 2:
        raise RuntimeError(f"{name}(): needs at least 2 dimensions, got shape {list(A.shape)}")
    if not A.dtype.is_floating_point:
        raise RuntimeError(f"{name}(): needs floating point numbers, got {A.dtype}")
    if not isinstance(dim, list | tuple):
        raise TypeError(f"{name}(): dim must be a pair of integers, got {dim!r}")
    if len(dim) != 2:
        raise RuntimeError(f"{name}(): dim must hold 2 dimensions, got {dim!r}")
    a, b = (normalize_dim(d, A.ndim) for d in dim)
    if a == b:
        raise RuntimeError(f"{name}(): dim must hold different dimensions, got {tuple(dim)}")
    x = A if dtype is None else A.to(dtype)
    if ord == "fro":
        out = _frobenius(x, (a, b))
    elif isinstance(ord, str) and ord != "nuc":
        raise RuntimeError(f"{name}(): ord must be 'fro', 'nuc', or one of ±1, ±2, ±inf, got {ord!r}")
    elif ord == "nuc" or abs(ord) == 2:
        s = svdvals(movedim(x, (a, b), (-2, -1)))
        out = s.sum(-1) if ord == "nuc" else s.amax(-1) if ord > 0 else s.amin(-1)
    elif abs(ord) in (1, float("inf")):
        add, over = (a, b) if abs(ord) == 1 else (b, a)
        sums = x.abs().sum(add, keepdim=True)
        out = (sums.amax(over, keepdim=True) if ord > 0 else sums.amin(over, keepdim=True)).squeeze((a, b))
    else:
        raise RuntimeError(f"{name}(): ord must be 'fro', 'nuc', or one of ±1, ±2, ±inf, got {ord!r}")
    if keepdim:
        for d in sorted((a, b)):
            out = out.unsqueeze(d)
    return out


def _frobenius(x: Tensor, dims: tuple[int, int]) -> Tensor:
    return x.norm(2, dims)


@autocasts
def cond(A: Tensor, p: Any = None) -> Tensor:
    """Condition numbers: ``norm(A, p) * norm(inv(A), p)``; the ratio of singular values for 2, the default."""
    _matrices("linalg.cond", A)
    if p is None or p in (2, -2):
        s = svdvals(A)
        return s[..., 0] / s[..., -1] if p != -2 else s[..., -1] / s[..., 0]
    _matrices("linalg.cond", A, square=True)
    try:
        inverse_ = inv(A)
    except LinAlgError:
        if A.ndim == 2:
            return A.new_full((), float("inf"))
        raise
    return matrix_norm(A, p) * matrix_norm(inverse_, p)


@autocasts
def tensorinv(A: Tensor, ind: int = 2) -> Tensor:
    """The inverse of ``A`` as a map from its dimensions behind ``ind`` to those before."""
    if ind <= 0:
        raise RuntimeError(f"linalg.tensorinv(): ind must be positive, got {ind}")
    before, behind = A.shape[:ind], A.shape[ind:]
    n = int(np.prod(before))
    if n != int(np.prod(behind)):
        raise RuntimeError(
            f"linalg.tensorinv(): {list(before)} and {list(behind)} must hold as many elements"
        )
    return inv(A.reshape(n, n)).reshape(*behind, *before)


@autocasts
def tensorsolve(A: Tensor, B: Tensor, dims: Sequence[int] | None = None) -> Tensor:
    """``X`` with ``tensordot(A, X, X.ndim) == B``; ``dims`` of ``A`` are moved to its end first."""
    x = A if dims is None else movedim(A, tuple(dims), tuple(range(A.ndim - len(dims), A.ndim)))
    behind = x.shape[B.ndim :]
    n = int(np.prod(behind))
    if B.numel() != n:
        raise RuntimeError(f"linalg.tensorsolve(): shapes {list(A.shape)} and {list(B.shape)} do not fit")
    return solve(x.reshape(n, n), B.reshape(-1)).reshape(behind)


def linalg_diagonal(A: Tensor, *, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """A view of the diagonal of two dimensions, by default the last, as the last dimension."""
    return diagonal(A, offset, dim1, dim2)
