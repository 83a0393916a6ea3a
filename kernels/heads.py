"""Attention of whole heads in one call, float32: products and softmax in tiles, only of what a query may see.

B and H leading axes, L queries, S keys, E features of queries and keys, F of values; features are side by side in
memory. Six queries go together; where one sees fewer keys than the others, the rest are zeros.
"""

from __future__ import annotations

import math

import numpy

from disttrain.kernels import buffers
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import exp, helper, jit
from disttrain.kernels.simd import (
    LANES,
    add_up,
    broadcast,
    highest,
    load,
    maximum,
    multiply,
    pointer,
    shift,
    store,
    transpose,
)
from disttrain.kernels.threads import spread

_TILE = 6
_KEPT = 1 << 15
"""Probabilities kept at a time for the gradients of keys and values: they and theirs stay in the second cache."""


def fits(q: Array, k: Array, v: Array) -> bool:
    """Return whether the functions below take such arrays (B, H, ., .)."""
    return (
        get_array_module(q, k, v) is numpy
        and q.dtype == k.dtype == v.dtype == numpy.float32
        and q.shape[-1] > 0 < v.shape[-1]
        and q.shape[-1] % LANES == v.shape[-1] % LANES == 0
        and q.shape[-2] >= _TILE
        and k.shape[-2] > 0 < math.prod(q.shape[:-2])
        and all(x.strides[-1] == x.itemsize for x in (q, k, v))
    )


def attention(q: Array, k: Array, v: Array, scale: float, causal: bool, out: Array, lse: Array) -> None:
    """Write ``softmax(scale * q @ k.T) @ v`` for arrays that :func:`fits` takes.

    Args:
        q: (B, H, L, E).
        k: (B, H, S, E).
        v: (B, H, S, F).
        scale: a positive factor.
        causal: query i sees the keys 0 to i only.
        out: where the result goes, (B, H, L, F).
        lse: where the logarithm of the sum of each row of ``e ** (scale * q @ k.T)`` goes, (B, H, L), C-contiguous.
    """
    B, H, L, E = q.shape
    S, F = v.shape[2:]

    def batches(first: int, last: int) -> None:
        of = slice(first, last)
        places = [part for x in (q, k, v, out) for part in _place(x[of])]
        sizes = (last - first, H, L, S, E, F)
        memory = buffers.empty(sum(_memory(S, E, F)), numpy.float32)
        _attention(*places, lse[of].reshape(-1), sizes, numpy.float32(scale), causal, memory)

    spread(batches, B, H * L * S * (E + F))


def attention_reference(
    q: Array, k: Array, v: Array, scale: float, causal: bool, out: Array, lse: Array
) -> None:
    """What :func:`attention` must equal up to rounding."""
    scores = _scores(q, k, scale, causal)
    top = scores.max(-1, keepdims=True)
    e = numpy.exp(scores - top)
    out[...] = (e / e.sum(-1, keepdims=True)) @ v
    lse[...] = (numpy.log(e.sum(-1, keepdims=True)) + top)[..., 0]


def _scores(q: Array, k: Array, scale: float, causal: bool) -> Array:
    scores = q @ k.swapaxes(-1, -2) * q.dtype.type(scale)
    if not causal:
        return scores
    L, S = scores.shape[-2:]
    return numpy.where(numpy.arange(S) <= numpy.arange(L)[:, None], scores, scores.dtype.type(-numpy.inf))


def attention_grad(
    g: Array,
    q: Array,
    k: Array,
    v: Array,
    scale: float,
    causal: bool,
    out: Array,
    lse: Array,
    gq: Array,
    gk: Array,
    gv: Array,
) -> None:
    """Write the gradients of the queries, the keys and the values to ``gq``, ``gk`` and ``gv``, of their shapes.

    Args:
        g: gradient of the result, (B, H, L, F).
        q: see :func:`attention`; so are the next four.
        k: keys.
        v: values.
        scale: factor of the scores.
        causal: whether query i sees the keys 0 to i only.
        out: what :func:`attention` wrote, (B, H, L, F).
        lse: what it wrote beside, (B, H, L), C-contiguous.
        gq: (B, H, L, E).
        gk: (B, H, S, E).
        gv: (B, H, S, F).
    """
    B, H, L, E = q.shape
    S, F = v.shape[2:]

    def batches(first: int, last: int) -> None:
        of = slice(first, last)
        given = [part for x in (g, q, k, v, out) for part in _place(x[of])]
        wanted = [part for x in (gq, gk, gv) for part in _place(x[of])]
        sizes = (last - first, H, L, S, E, F)
        memory = buffers.empty(sum(_memory_of_grad(L, S, E, F)), numpy.float32)
        _attention_grad(*given, lse[of].reshape(-1), *wanted, sizes, numpy.float32(scale), causal, memory)

    spread(batches, B, H * L * S * (3 * E + 2 * F))


def attention_grad_reference(
    g: Array,
    q: Array,
    k: Array,
    v: Array,
    scale: float,
    causal: bool,
    out: Array,
    lse: Array,
    gq: Array,
    gk: Array,
    gv: Array,
) -> None:
    """What :func:`attention_grad` must equal up to rounding."""
    dot = (g * out).sum(-1)
    p = numpy.exp(_scores(q, k, scale, causal) - lse[..., None])
    d = p * (g @ v.swapaxes(-1, -2) - dot[..., None]) * q.dtype.type(scale)
    gq[...] = d @ k
    gk[...] = d.swapaxes(-1, -2) @ q
    gv[...] = p.swapaxes(-1, -2) @ g


def _place(x: Array) -> tuple[Array, tuple[int, int, int]]:
    """Return the first row, which says where the memory is, and the strides of the other axes in elements."""
    a, b, c, _ = x.strides
    return x[0, 0, 0], (a // 4, b // 4, c // 4)


@helper
def _pack(x, row, rows, width, to, padded):  # type: ignore[no-untyped-def]
    """Write rows as columns, followed by zeros up to ``padded`` columns; ``to`` holds (width, padded)."""
    whole = rows - rows % LANES
    for j in range(0, whole, LANES):
        for e in range(0, width, LANES):
            transpose(shift(x, j * row + e), row, pointer(to, e * padded + j), padded)
    if whole < rows:
        square = numpy.zeros(LANES * LANES, numpy.float32)
        for e in range(0, width, LANES):
            for j in range(whole, rows):
                store(pointer(square, (j - whole) * LANES), 0, load(x, j * row + e))
            transpose(pointer(square, 0), LANES, pointer(to, e * padded + whole), padded)


@helper
def _six_rows(a, am, ak, b, bk, K, start, sm, out, om, width):  # type: ignore[no-untyped-def]
    """Write six rows of a product, which are a multiple of a vector wide; as :func:`multiply`."""
    n = 0
    while width - n >= 64:
        multiply(6, 4, a, am, ak, shift(b, n), bk, K, shift(start, n), sm, shift(out, n), om)
        n += 64
    if width - n >= 32:
        multiply(6, 2, a, am, ak, shift(b, n), bk, K, shift(start, n), sm, shift(out, n), om)
        n += 32
    if n < width:
        multiply(6, 1, a, am, ak, shift(b, n), bk, K, shift(start, n), sm, shift(out, n), om)


@helper
def _memory(S, E, F):  # type: ignore[no-untyped-def]
    """Return the elements of packed keys, of zeros, and of the scores of six queries."""
    padded = -(-S // LANES) * LANES
    return E * padded, max(padded, F), 6 * padded


@helper
def _memory_of_grad(L, S, E, F):  # type: ignore[no-untyped-def]
    """Return the elements of packed keys, packed values, zeros, probabilities, their gradients, and sums for both."""
    padded = -(-S // LANES) * LANES
    line = padded + LANES  # tiles of six keys may look beyond the last one
    kept = min(L, max(_KEPT // line, 12)) * line
    return E * padded, F * padded, max(padded, E, F), kept, kept, (S + 6) * E, (S + 6) * F


@jit
def _attention(  # type: ignore[no-untyped-def]
    q, q_by, k, k_by, v, v_by, out, out_by, lse, sizes, scale, causal, memory
):
    B, H, L, S, E, F = sizes
    padded = -(-S // LANES) * LANES
    size, width, _ = _memory(S, E, F)
    packed, zeros, scores = memory[:size], memory[size : size + width], memory[size + width :]
    zeros[:] = 0
    shares = numpy.empty(6, numpy.float32)
    for head in range(B * H):
        b, h = head // H, head % H
        queries = pointer(q, b * q_by[0] + h * q_by[1])
        values = pointer(v, b * v_by[0] + h * v_by[1])
        to = pointer(out, b * out_by[0] + h * out_by[1])
        _pack(pointer(k, b * k_by[0] + h * k_by[1]), k_by[2], S, E, packed, padded)
        for tile in range(0, L, 6):
            i = min(tile, L - 6)  # the last tile does some of its rows again
            n = min(S, i + 6) if causal else S
            _six_rows(
                shift(queries, i * q_by[2]),
                q_by[2],
                1,
                pointer(packed, 0),
                padded,
                E,
                pointer(zeros, 0),
                0,
                pointer(scores, 0),
                padded,
                -(-n // LANES) * LANES,
            )
            for r in range(6):
                m = min(S, i + r + 1) if causal else S
                full = -(-m // LANES) * LANES
                row = pointer(scores, r * padded)
                for c in range(m, full):
                    row[c] = -numpy.inf
                best = load(row, 0)
                for c in range(LANES, full, LANES):
                    best = maximum(best, load(row, c))
                top = highest(best)
                if top == -numpy.inf:
                    top = numpy.float32(0)
                for c in range(full):
                    row[c] = exp((row[c] - top) * scale)
                for c in range(m, max(n, full)):
                    row[c] = 0
                sums = load(row, 0)
                for c in range(LANES, full, LANES):
                    sums = sums + load(row, c)
                whole = add_up(sums)
                if whole == 0:
                    lse[head * L + i + r], shares[r] = -numpy.inf, 0
                else:
                    lse[head * L + i + r] = numpy.log(whole) + top * scale
                    shares[r] = numpy.float32(1) / whole
            here = shift(to, i * out_by[2])
            _six_rows(
                pointer(scores, 0),
                padded,
                1,
                values,
                v_by[2],
                n,
                pointer(zeros, 0),
                0,
                here,
                out_by[2],
                F,
            )
            for r in range(6):
                share = broadcast(shares[r])
                for c in range(0, F, LANES):
                    at = r * out_by[2] + c
                    store(here, at, load(here, at) * share)


@jit
def _attention_grad(  # type: ignore[no-untyped-def]
    g,
    g_by,
    q,
    q_by,
    k,
    k_by,
    v,
    v_by,
    out,
    out_by,
    lse,
    gq,
    gq_by,
    gk,
    gk_by,
    gv,
    gv_by,
    sizes,
    scale,
    causal,
    memory,
):
    B, H, L, S, E, F = sizes
    padded = -(-S // LANES) * LANES
    line = padded + LANES
    size_k, size_v, width, kept, _, size_sums, _ = _memory_of_grad(L, S, E, F)
    blocks = -(-L // (kept // line))
    packed_k, packed_v, rest = memory[:size_k], memory[size_k : size_k + size_v], memory[size_k + size_v :]
    zeros, p, d, rest = (
        rest[:width],
        rest[width : width + kept],
        rest[width + kept :][:kept],
        rest[width + 2 * kept :],
    )
    sum_k, sum_v = rest[:size_sums], rest[size_sums:]
    zeros[:] = 0
    p[:] = 0
    d[:] = 0
    for head in range(B * H):
        b, h = head // H, head % H
        zero = pointer(zeros, 0)  # here, for Numba frees an array after its last use
        up = pointer(g, b * g_by[0] + h * g_by[1])
        queries = pointer(q, b * q_by[0] + h * q_by[1])
        keys = pointer(k, b * k_by[0] + h * k_by[1])
        values = pointer(v, b * v_by[0] + h * v_by[1])
        results = pointer(out, b * out_by[0] + h * out_by[1])
        to_q = pointer(gq, b * gq_by[0] + h * gq_by[1])
        _pack(keys, k_by[2], S, E, packed_k, padded)
        _pack(values, v_by[2], S, F, packed_v, padded)
        sum_k[:] = 0
        sum_v[:] = 0
        for block in range(blocks):
            first, stop = L * block // blocks, L * (block + 1) // blocks
            rows = stop - first
            for tile in range(0, rows, 6):
                i = min(tile, rows - 6)
                n = min(S, first + i + 6) if causal else S
                width = -(-n // LANES) * LANES
                at_p, at_d = pointer(p, i * line), pointer(d, i * line)
                of_q, of_g = shift(queries, (first + i) * q_by[2]), shift(up, (first + i) * g_by[2])
                _six_rows(of_q, q_by[2], 1, pointer(packed_k, 0), padded, E, zero, 0, at_p, line, width)
                _six_rows(of_g, g_by[2], 1, pointer(packed_v, 0), padded, F, zero, 0, at_d, line, width)
                for r in range(6):
                    row = head * L + first + i + r
                    m = min(S, first + i + r + 1) if causal else S
                    less, result = lse[row], shift(results, (first + i + r) * out_by[2])
                    both = load(of_g, r * g_by[2]) * load(result, 0)
                    for c in range(LANES, F, LANES):
                        both = both + load(of_g, r * g_by[2] + c) * load(result, c)
                    product = add_up(both)
                    if less == -numpy.inf:
                        m = 0
                    full = -(-m // LANES) * LANES
                    pr, dr = shift(at_p, r * line), shift(at_d, r * line)
                    for c in range(full):
                        pr[c] = exp(pr[c] * scale - less)
                    for c in range(full):
                        dr[c] = pr[c] * (dr[c] - product) * scale
                    for c in range(m, min(line, max(full, n + 6))):
                        pr[c] = dr[c] = 0
                to = shift(to_q, (first + i) * gq_by[2])
                _six_rows(at_d, line, 1, keys, k_by[2], n, zero, 0, to, gq_by[2], E)
            for j in range(0, min(S, stop) if causal else S, 6):
                i = max(j - first, 0) if causal else 0  # the first query that sees any of these keys
                at = first + i
                begin = i * line + j
                to = pointer(sum_k, j * E)
                of = shift(queries, at * q_by[2])
                _six_rows(pointer(d, begin), 1, line, of, q_by[2], rows - i, to, E, to, E, E)
                to, of = pointer(sum_v, j * F), shift(up, at * g_by[2])
                _six_rows(pointer(p, begin), 1, line, of, g_by[2], rows - i, to, F, to, F, F)
        to_k = pointer(gk, b * gk_by[0] + h * gk_by[1])
        to_v = pointer(gv, b * gv_by[0] + h * gv_by[1])
        for j in range(S):
            for e in range(0, E, LANES):
                store(to_k, j * gk_by[2] + e, load(pointer(sum_k, j * E), e))
            for e in range(0, F, LANES):
                store(to_v, j * gv_by[2] + e, load(pointer(sum_v, j * F), e))
