"""Inverses, determinants and factorisations of batches of matrices, by LAPACK through NumPy.

A matrix that has none raises the library's ``LinAlgError``. Gradients: M. Giles, "An extended collection of matrix
derivative results for forward and reverse mode algorithmic differentiation", 2008; of the pseudo-inverse, G. Golub
and V. Pereyra, 1973; of the QR factorisation, S. Walter and L. Lehmann, 2010.
"""

from typing import Any

import numpy as np

from disttrain.ops import shape
from disttrain.ops.index import triangle
from disttrain.ops.linalg import matmul
from disttrain.ops.types import Array, Result, call, get_array_module

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]


def _mm(*factors: Any) -> Any:
    product = factors[0]
    for f in factors[1:]:
        product = call(matmul, product, f)
    return product


def _t(x: Any) -> Any:
    n = x.ndim
    return call(shape.transpose, x, axes=(*range(n - 2), n - 1, n - 2))


def _cut(x: Any, rows: slice, columns: slice) -> Any:
    return call(shape.index, x, key=(..., rows, columns))


def _eye(n: int, like: Any) -> Any:
    return np.eye(n, dtype=getattr(like, "_array", like).dtype)


_ALL = slice(None)

# ------------------------------------------------------------------------------------------ solving


def inv(x: Array) -> Result:
    """The inverses of square matrices."""
    y = get_array_module(x).linalg.inv(x)
    return y, (y,), inv_vjp


def inv_vjp(g: Any, needs: Needs, y: Any) -> Grads:
    return (-_mm(_t(y), g, _t(y)),)


def solve(a: Array, b: Array) -> Result:
    """``x`` with ``a @ x == b``: a ``(…, n, n)``, b ``(…, n, k)``; batches broadcast."""
    x = get_array_module(a).linalg.solve(a, b)
    return x, (a, x), solve_vjp


def solve_vjp(g: Any, needs: Needs, a: Any, x: Any) -> Grads:
    gb = call(solve, _t(a), g)
    return -_mm(gb, _t(x)) if needs[0] else None, gb


def solve_triangular(a: Array, b: Array, *, upper: bool) -> Result:
    """``x`` with ``a @ x == b`` for triangular ``a``, of which one half is read.

    A zero on the diagonal gives infinities or nan, as division by it does.
    """
    xp = get_array_module(a)
    half = (xp.triu if upper else xp.tril)(a)
    if (xp.diagonal(a, 0, -2, -1) != 0).all():
        x = xp.linalg.solve(half, b)
    else:
        x = _substitute(half, b, upper)
    return x, (a, x, upper), solve_triangular_vjp


def _substitute(a: Array, b: Array, upper: bool) -> Array:
    xp, n = get_array_module(a), a.shape[-1]
    x = xp.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), *b.shape[-2:]), b.dtype)
    with np.errstate(all="ignore"):
        for i in reversed(range(n)) if upper else range(n):
            known = slice(i + 1, n) if upper else slice(0, i)
            row = a[..., i : i + 1, known] @ x[..., known, :]
            x[..., i : i + 1, :] = (b[..., i : i + 1, :] - row) / a[..., i : i + 1, i : i + 1]
    return x


def solve_triangular_vjp(g: Any, needs: Needs, a: Any, x: Any, upper: bool) -> Grads:
    gb = call(solve_triangular, _t(a), g, upper=not upper)
    return call(triangle, -_mm(gb, _t(x)), diagonal=0, upper=upper) if needs[0] else None, gb


def cholesky_solve(b: Array, factor: Array, *, upper: bool) -> Result:
    """``x`` with ``a @ x == b``, where ``a`` is ``l @ l.T`` (``u.T @ u`` if ``upper``) for a triangular factor.

    Of the factor one half is read, but its gradient is that of the whole product, as PyTorch's.
    """
    xp = get_array_module(b)
    lower = xp.tril(_t(factor) if upper else factor)
    half = solve_triangular(lower, b, upper=False)[0]
    x = solve_triangular(_t(lower), half, upper=True)[0]
    return x, (factor, x, upper), cholesky_solve_vjp


def cholesky_solve_vjp(g: Any, needs: Needs, factor: Any, x: Any, upper: bool) -> Grads:
    gb = call(cholesky_solve, g, factor, upper=upper)
    if not needs[1]:
        return gb, None
    both = _mm(gb, _t(x))
    both = both + _t(both)
    return gb, -_mm(factor, both) if upper else -_mm(both, factor)


def pinv(x: Array, *, least: Any, share: Any, symmetric: bool) -> Result:
    """The pseudo-inverses; singular values up to ``max(least, share * largest)`` count as zero.

    Of ``symmetric`` matrices the lower half is read.
    """
    xp = get_array_module(x)
    if symmetric:
        s, u = xp.linalg.eigh(x)
        vh = _t(u)
    else:
        u, s, vh = xp.linalg.svd(x, full_matrices=False)
    size = abs(s)
    kept = size > xp.maximum(least, share * size.max(-1, initial=0))[..., None]
    inverse = xp.where(kept, 1 / xp.where(kept, s, 1), 0).astype(x.dtype)
    y = _t(vh) @ (inverse[..., None] * _t(u))
    return y, (x, y), pinv_vjp


def pinv_vjp(g: Any, needs: Needs, x: Any, y: Any) -> Grads:
    yt, gt = _t(y), _t(g)
    first = gt - _mm(x, y, gt)
    last = gt - _mm(gt, y, x)
    return (_mm(first, y, yt) + _mm(yt, y, last) - _mm(yt, g, yt),)


# ------------------------------------------------------------------------------------------ determinants


def det(x: Array) -> Result:
    """The determinants of square matrices."""
    return get_array_module(x).linalg.det(x), (x,), det_vjp


def det_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    return (g[..., None, None] * call(cofactors, x),)


def cofactors(x: Array) -> Result:
    """The matrices of cofactors, ``det(x) * inv(x).T`` where there is an inverse: the derivative of :func:`det`."""
    xp = get_array_module(x)
    u, s, vh = xp.linalg.svd(x)
    n = s.shape[-1]
    others = xp.stack([xp.prod(xp.delete(s, i, -1), -1) for i in range(n)], -1) if n else s
    sign = xp.linalg.det(u) * xp.linalg.det(vh)
    c = (u * (others * sign[..., None])[..., None, :]) @ vh
    return c, (x, c), cofactors_vjp


def cofactors_vjp(g: Any, needs: Needs, x: Any, c: Any) -> Grads:
    y = call(inv, x)
    along = (g * _t(y)).sum((-2, -1))[..., None, None]
    return (along * c - _mm(c, _t(g), _t(y)),)


def slogdet(x: Array) -> Result:
    """The signs of determinants, and the logarithms of their absolute values."""
    with np.errstate(all="ignore"):
        sign, logarithm = get_array_module(x).linalg.slogdet(x)
    return (np.asarray(sign), np.asarray(logarithm)), (x,), slogdet_vjp


def slogdet_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    if g[1] is None:
        return (None,)
    return (g[1][..., None, None] * _t(call(inv, x)),)


# ------------------------------------------------------------------------------------------ factorisations


def cholesky(x: Array) -> Result:
    """The lower triangular ``l`` with ``l @ l.T == x``; of ``x`` only the lower half is read."""
    lower = get_array_module(x).linalg.cholesky(x)
    return lower, (lower,), cholesky_vjp


def cholesky_vjp(g: Any, needs: Needs, lower: Any) -> Grads:
    n = lower.shape[-1]
    half = np.tril(np.ones((n, n)), -1) + 0.5 * np.eye(n)
    inner = _mm(_t(lower), g) * half.astype(_eye(0, lower).dtype)
    left = call(solve_triangular, _t(lower), inner, upper=True)
    s = _t(call(solve_triangular, _t(lower), _t(left), upper=True))
    return (0.5 * (s + _t(s)),)


def qr(x: Array, *, mode: str) -> Result:
    """``q @ r == x`` with orthonormal columns of ``q`` and upper triangular ``r``; ``mode`` as in NumPy."""
    q, r = get_array_module(x).linalg.qr(x, mode)
    return (q, r), (q, r), qr_vjp


def qr_vjp(g: Any, needs: Needs, q: Any, r: Any) -> Grads:
    gq, gr = g
    m, n = q.shape[-1], r.shape[-1]
    if m >= n:
        return (_square_qr(gq, gr, q, r),)
    # The columns behind the first m are q times those of r: their part of the gradient goes to q.
    u, v = _cut(r, _ALL, slice(m)), _cut(r, _ALL, slice(m, n))
    if gr is None:
        rest, gu = None, None
    else:
        gv = _cut(gr, _ALL, slice(m, n))
        rest, gu = _mm(q, gv), _cut(gr, _ALL, slice(m))
        more = _mm(q, v, _t(gv))
        gq = more if gq is None else gq + more
    first = _square_qr(gq, gu, q, u)
    if rest is None:
        rest = 0 * _mm(q, v)
    return (call(shape.concatenate, first, rest, axis=first.ndim - 1),)


def _square_qr(gq: Any, gr: Any, q: Any, r: Any) -> Any:
    inner = 0
    if gr is not None:
        inner = _mm(r, _t(gr))
    if gq is not None:
        inner = inner - _mm(_t(gq), q)
    low = call(triangle, inner, diagonal=0, upper=False)
    strict = call(triangle, inner, diagonal=-1, upper=False)
    out = _mm(q, low + _t(strict))
    if gq is not None:
        out = out + gq
    return _t(call(solve_triangular, r, _t(out), upper=True))


def svd(x: Array, *, full: bool) -> Result:
    """``u @ diag(s) @ vh == x``: orthonormal ``u`` and ``vh``, ``s`` falling; square ones if ``full``."""
    u, s, vh = get_array_module(x).linalg.svd(x, full_matrices=full)
    return (u, s, vh), (u, s, vh), svd_vjp


def svd_vjp(g: Any, needs: Needs, u: Any, s: Any, vh: Any) -> Grads:
    gu, gs, gvh = g
    m, k, n = u.shape[-2], s.shape[-1], vh.shape[-1]
    first = slice(k)
    u, vh = _cut(u, _ALL, first), _cut(vh, first, _ALL)
    gu = None if gu is None else _cut(gu, _ALL, first)
    gvh = None if gvh is None else _cut(gvh, first, _ALL)
    eye = _eye(k, s)
    if gu is None and gvh is None:
        return (_mm(u * gs[..., None, :], vh),)
    row, column = s[..., None, :], s[..., :, None]
    gaps = (row - column) * (row + column) + eye
    inner = 0
    if gs is not None:
        inner = gs[..., None, :] * eye
    if gu is not None:
        turn = _mm(_t(u), gu)
        inner = inner + (turn - _t(turn)) / gaps * row
    if gvh is not None:
        turn = _mm(vh, _t(gvh))
        inner = inner + column * ((turn - _t(turn)) / gaps)
    out = _mm(u, inner, vh)
    if m > k and gu is not None:
        out = out + _mm((gu - _mm(u, _t(u), gu)) / row, vh)
    if n > k and gvh is not None:
        out = out + _mm(u, (gvh - _mm(gvh, _t(vh), vh)) / column)
    return (out,)


def eigh(x: Array, *, upper: bool) -> Result:
    """Eigenvalues, rising, and eigenvectors as columns, of symmetric matrices of which one half is read."""
    values, vectors = get_array_module(x).linalg.eigh(x, "U" if upper else "L")
    return (values, vectors), (values, vectors), eigh_vjp


def eigh_vjp(g: Any, needs: Needs, values: Any, vectors: Any) -> Grads:
    gl, gv = g
    eye = _eye(values.shape[-1], values)
    if gv is None:
        return (_mm(vectors * gl[..., None, :], _t(vectors)),)
    gaps = values[..., None, :] - values[..., :, None] + eye
    inner = _mm(_t(vectors), gv) / gaps * (1 - eye)
    inner = (inner + _t(inner)) * 0.5  # of the gradients that serve a symmetric matrix, the symmetric one
    if gl is not None:
        inner = inner + gl[..., None, :] * eye
    return (_mm(vectors, inner, _t(vectors)),)


# ------------------------------------------------------------------------------------------ functions of matrices

_PADE = (
    64764752532480000, 32382376266240000, 7771770303897600, 1187353796428800, 129060195264000, 10559470521600,
    670442572800, 33522128640, 1323241920, 40840800, 960960, 16380, 182, 1,
)  # fmt: skip


def matrix_exp(x: Array) -> Result:
    """``e ** x`` as a power series of matrices: scaling and squaring (N. Higham, 2005)."""
    xp, n = get_array_module(x), x.shape[-1]
    largest = float(abs(x).sum(-2).max(initial=0))
    doublings = max(0, int(np.ceil(np.log2(largest / 5.37)))) if 0 < largest < np.inf else 0
    a = x.astype(np.float64) / 2.0**doublings
    even = odd = 0.0 * a
    power = xp.broadcast_to(xp.eye(n), a.shape)
    square = a @ a
    for k in range(0, len(_PADE), 2):
        even = even + _PADE[k] * power
        odd = odd + _PADE[k + 1] * power
        power = power @ square
    odd = a @ odd
    y = xp.linalg.solve(even - odd, even + odd)
    for _ in range(doublings):
        y = y @ y
    return y.astype(x.dtype), (x,), matrix_exp_vjp


def matrix_exp_vjp(g: Any, needs: Needs, x: Any) -> Grads:
    n, xt = x.shape[-1], _t(x)
    above = call(shape.concatenate, xt, g, axis=x.ndim - 1)
    below = call(shape.concatenate, 0 * xt, xt, axis=x.ndim - 1)
    block = call(shape.concatenate, above, below, axis=x.ndim - 2)
    return (_cut(call(matrix_exp, block), slice(n), slice(n, 2 * n)),)
