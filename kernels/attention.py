"""The softmax inside attention, on blocks of scores, in place. Float32 or float64, C-contiguous.

A block holds M rows of S scores, ``rows`` after ``rows`` for one head each, of which the first is query number
``first``. With ``causal`` query i sees the keys 0 to i only; S may end before the last key that anyone sees.
A row of nothing but minus infinity, of a query that may see no key, has probability 0 everywhere.
"""

import numpy

from disttrain.kernels import cuda
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import exp, jit, largest, total


def softmax(x: Array, scale: float, causal: bool, first: int, rows: int, lse: Array, share: Array) -> None:
    """Replace ``x`` (M, S) by ``e ** (scale * x)`` but for a factor in each row; dividing comes after the product.

    Args:
        x: the scores, overwritten.
        scale: a positive factor.
        causal: a query sees the keys up to its own number only.
        first: number of the first query.
        rows: number of queries.
        lse: where the logarithm of the sum of each row of ``e ** (scale * x)`` goes (M); minus infinity if it is 0.
        share: where the factors go that make each row of the result add up to 1 (M); 0 if it is 0.
    """
    if get_array_module(x) is not numpy:
        return _launch("softmax", x, lse, share, float(scale), int(causal), first, rows)
    return _softmax(x, x.dtype.type(scale), causal, first, rows, lse, share)  # type: ignore[no-any-return]


def softmax_reference(
    x: Array, scale: float, causal: bool, first: int, rows: int, lse: Array, share: Array
) -> None:
    """What :func:`softmax` must equal up to rounding."""
    xp = get_array_module(x)
    scores = _hidden(x * x.dtype.type(scale), causal, first, rows)
    top = scores.max(1, initial=-xp.inf)
    top = xp.where(xp.isneginf(top), 0, top).astype(x.dtype)
    x[...] = xp.exp(scores - top[:, None])
    whole = x.sum(1)
    seen = whole != 0
    safe = xp.where(seen, whole, 1)
    share[...] = xp.where(seen, 1 / safe, 0)
    lse[...] = xp.where(seen, xp.log(safe) + top, -xp.inf)


def _hidden(scores: Array, causal: bool, first: int, rows: int) -> Array:
    """Return the scores with minus infinity where a query must not see a key."""
    if not causal:
        return scores
    xp = get_array_module(scores)
    M, S = scores.shape
    query = first + xp.arange(M) % rows
    return xp.where(xp.arange(S) <= query[:, None], scores, scores.dtype.type(-xp.inf))


@jit
def _softmax(x, scale, causal, first, rows, lse, share):  # type: ignore[no-untyped-def]
    zero, one = x.dtype.type(0), x.dtype.type(1)
    M, S = x.shape
    for m in range(M):
        n = min(S, first + m % rows + 1) if causal else S
        row, rest = x[m, :n], x[m, n:]
        top = largest(row) if n else zero
        if top == -numpy.inf:
            top = zero
        for k in range(n):
            row[k] = exp((row[k] - top) * scale)
        whole = total(row) if n else zero
        if whole == 0:
            lse[m], share[m] = -numpy.inf, zero
        else:
            lse[m], share[m] = numpy.log(whole) + top * scale, one / whole
        for k in range(rest.size):
            rest[k] = zero


def softmax_again(x: Array, scale: float, causal: bool, first: int, rows: int, lse: Array) -> None:
    """Replace ``x`` (M, S) by what :func:`softmax` makes of it with its factors, given ``lse``."""
    if get_array_module(x) is not numpy:
        return _launch("softmax_again", x, lse, float(scale), int(causal), first, rows)
    return _softmax_again(x, x.dtype.type(scale), causal, first, rows, lse)  # type: ignore[no-any-return]


def softmax_again_reference(x: Array, scale: float, causal: bool, first: int, rows: int, lse: Array) -> None:
    """What :func:`softmax_again` must equal up to rounding."""
    xp = get_array_module(x)
    scores = _hidden(x * x.dtype.type(scale), causal, first, rows)
    blind = xp.isneginf(lse)[:, None]
    x[...] = xp.where(blind, 0, xp.exp(xp.where(blind, 0, scores - xp.where(blind[:, 0], 0, lse)[:, None])))


@jit
def _softmax_again(x, scale, causal, first, rows, lse):  # type: ignore[no-untyped-def]
    zero = x.dtype.type(0)
    M, S = x.shape
    for m in range(M):
        n = min(S, first + m % rows + 1) if causal else S
        shift = lse[m]
        if shift == -numpy.inf:
            n = 0
        row, rest = x[m, :n], x[m, n:]
        for k in range(n):
            row[k] = exp(row[k] * scale - shift)
        for k in range(rest.size):
            rest[k] = zero


def softmax_grad(g: Array, p: Array, dot: Array) -> None:
    """Replace ``g`` (M, S), the gradient of the softmax ``p``, by ``p * (g - dot)``; ``dot`` (M) is ``sum(p * g)``."""
    if get_array_module(g) is not numpy:
        return _launch("softmax_grad", g, p, dot, also=p)
    return _softmax_grad(g, p, dot)  # type: ignore[no-any-return]


def softmax_grad_reference(g: Array, p: Array, dot: Array) -> None:
    """What :func:`softmax_grad` must equal up to rounding."""
    g[...] = p * (g - dot[:, None])


@jit
def _softmax_grad(g, p, dot):  # type: ignore[no-untyped-def]
    M, S = g.shape
    for m in range(M):
        gm, pm, d = g[m], p[m], dot[m]
        for k in range(S):
            gm[k] = pm[k] * (gm[k] - d)


_LONG_ROW = 1024  # from here on a row has 256 threads, else 32
_program = cuda.Program(__file__, T=cuda.FLOATS, BLOCK=(32, 256), VECTOR=(0, 1))


def _launch(kernel: str, x: Array, *args: cuda.Argument, also: Array | None = None) -> None:
    """Launch over the rows of ``x``; ``also`` is read alongside, 16 bytes at a time."""
    M, S = x.shape
    block = 256 if S >= _LONG_ROW else 32
    _program.launch(
        *(kernel, (cuda.blocks(M, 256 // block),), (block, 256 // block), x, *args, M, S),
        T=cuda.c_type(x.dtype),
        BLOCK=block,
        VECTOR=cuda.vector(S, x, also),
    )
