"""Scaled dot product attention (Vaswani et al. 2017), block by block: no array of all scores is ever there.

Backward computes the scores again from queries and keys (Dao et al. 2022). Half precision is computed in float32.

B and H leading axes (the batch and the heads), L queries, S keys, E features of queries and keys, F of values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from disttrain.kernels import attention as kernels
from disttrain.kernels import buffers, cudnn, gemm, heads
from disttrain.kernels.arrays import on_gpu
from disttrain.ops import activation, elementwise, linalg, reduce, shape
from disttrain.ops.activation import widen
from disttrain.ops.types import Array, Result, call, get_array_module, is_array

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]

_BLOCK = 1 << 18
"""Scores in one block: they fit the second cache with what they are made of."""
_GPU_BLOCK = 1 << 26
"""The same on a GPU: enough work for each kernel."""
_ROWS = 128
"""Fewest queries in a block of one head: products of fewer rows are slow."""


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    keep: Array | None = None,
    *,
    scale: float,
    causal: bool = False,
    p: float = 0.0,
) -> Result:
    """``softmax(scale * q @ k.T + mask) @ v``.

    Args:
        q: queries (*, L, E).
        k: keys (*, S, E), with the same leading axes.
        v: values (*, S, F), likewise.
        mask: what to add to the scores, or booleans: which key a query sees; broadcast to (*, L, S). A query that sees
            no key gets zeros.
        keep: booleans (*, L, S): which probabilities dropout keeps; or ``None``.
        scale: factor of the scores.
        causal: query i sees the keys 0 to i only.
        p: probability of dropout, to scale what is kept.

    Returns:
        (*, L, F), laid out in memory as ``q``.
    """
    a = _views(q, k, v, mask, keep)
    if _by_library(a, causal):
        fused = _fused(a, scale, causal)
        if fused is not None:
            out, lse = fused
            result = out.reshape(*q.shape[:-1], v.shape[-1])
            return result, (q, k, v, mask, keep, result, lse, scale, causal, p), attention_vjp
    kind = widen(q).dtype
    out = _empty_like(a.q, a.v.shape[-1], kind)
    lse = buffers.empty(a.q.shape[:-1], kind, q)
    if _in_one_call(a, scale):
        heads.attention(a.q, a.k, a.v, scale, causal, out, lse)
        result = out.reshape(*q.shape[:-1], v.shape[-1])
        return result, (q, k, v, mask, keep, result, lse, scale, causal, p), attention_vjp
    before, factor = _factors(a, scale)
    for at in _blocks(a, causal):
        scores = _scores(a, at, before)
        flat = scores.reshape(math.prod(scores.shape[:-1]), scores.shape[-1])
        sums, share = buffers.empty(len(flat), kind, q), buffers.empty(len(flat), kind, q)
        kernels.softmax(flat, factor, causal, at.first, scores.shape[-2], sums, share)
        lse[at.queries] = sums.reshape(scores.shape[:-1])
        _drop(scores, a, at, p)
        into = out[at.queries]
        gemm.batched(scores, widen(a.v[at.keys]), into)
        into *= share.reshape(*scores.shape[:-1], 1)
    result = buffers.convert(out, q.dtype).reshape(*q.shape[:-1], v.shape[-1])
    kept = out if result.dtype != kind else result  # as precise as it was computed
    return result, (q, k, v, mask, keep, kept, lse, scale, causal, p), attention_vjp


def attention_vjp(
    g: Any,
    needs: Needs,
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    keep: Any,
    out: Any,
    lse: Any,
    scale: float,
    causal: bool,
    p: float,
) -> Grads:
    if not is_array(g):
        return _recorded(g, needs, q, k, v, mask, keep, scale, causal, p)
    a = _views(q, k, v, mask, keep)
    if out.dtype.itemsize == 2 and not (
        mask is not None and needs[3]
    ):  # as cuDNN's results are, and no others
        fused = _fused_grad(g, a, out, lse, scale, causal)
        if fused is not None:
            all_three = [x.reshape(to.shape) for x, to in zip(fused, (q, k, v), strict=True)]
            wanted = [x if need else None for x, need in zip(all_three, needs, strict=False)]
            return (*wanted, None, None)[: len(needs)]
    kind = lse.dtype
    up = widen(g).reshape(*a.q.shape[:-1], g.shape[-1])
    result = widen(out).reshape(up.shape)
    want_q, want_k, want_v = needs[:3]
    gq, gk, gv = (_empty_like(x, x.shape[-1], kind) for x in (a.q, a.k, a.v))
    if _in_one_call(a, scale):
        up, result = (x if x.strides[-1] == x.itemsize else buffers.contiguous(x) for x in (up, result))
        heads.attention_grad(up, a.q, a.k, a.v, scale, causal, result, lse, gq, gk, gv)
        grads = [x.reshape(to.shape) for x, to in zip((gq, gk, gv), (q, k, v), strict=True)]
        return (*[x if need else None for x, need in zip(grads, needs, strict=False)], None, None)[
            : len(needs)
        ]
    dot = (up * result).sum(-1)
    gk[...], gv[...] = 0, 0
    gm = buffers.zeros(a.mask.shape, kind, q) if a.mask is not None and needs[3] else None
    before, factor = _factors(a, scale)
    for at in _blocks(a, causal):
        probabilities = _scores(a, at, before)
        M, S = math.prod(probabilities.shape[:-1]), probabilities.shape[-1]
        flat = probabilities.reshape(M, S)
        kernels.softmax_again(
            flat,
            factor,
            causal,
            at.first,
            probabilities.shape[-2],
            lse[at.queries].reshape(M),
        )
        g_block = up[at.queries]
        if want_q or want_k or gm is not None:
            gs = gemm.batched(g_block, widen(a.v[at.keys]).swapaxes(-1, -2))
            _drop(gs, a, at, p)
            kernels.softmax_grad(gs.reshape(M, S), flat, dot[at.queries].reshape(M))
            if gm is not None:
                into = gm[at.mask]
                into += shape.sum_to_shape(gs[None], shape=into.shape)[0]
            gs *= kind.type(scale)
            if want_q:
                gemm.batched(gs, widen(a.k[at.keys]), gq[at.queries])
            if want_k:
                gk[at.keys] += gemm.batched(gs.swapaxes(-1, -2), widen(a.q[at.queries]))
        if want_v:
            _drop(probabilities, a, at, p)
            gv[at.keys] += gemm.batched(probabilities.swapaxes(-1, -2), g_block)
    grads = [
        buffers.convert(x, to.dtype).reshape(to.shape) if need else None
        for x, to, need in zip((gq, gk, gv), (q, k, v), needs, strict=False)
    ]
    if gm is not None:  # as large as the mask, or as what it was expanded to
        gm = gm.reshape(mask.shape if gm.size == mask.size else (*q.shape[:-3], *gm.shape[1:]))
    return (*grads, gm, None)[: len(needs)]


class _Views(NamedTuple):
    """The arguments with two leading axes each, sharing their memory; those of the mask may have size 1."""

    q: Array
    k: Array
    v: Array
    mask: Array | None
    keep: Array | None


class _Block(NamedTuple):
    """A part of the scores: keys of the queries, of the keys, of the mask, of what dropout keeps; the first query."""

    queries: Any
    keys: Any
    mask: Any
    keep: Any
    first: int


def _views(q: Array, k: Array, v: Array, mask: Array | None, keep: Array | None) -> _Views:
    lead = q.shape[:-2]
    plain = mask is None or math.prod(mask.shape[:-2]) == 1
    if plain and all(x.flags.c_contiguous for x in (q, k, v)):
        merged = (1, math.prod(lead))  # one long axis of heads: larger blocks of small heads
    else:
        merged = (math.prod(lead[:-1]), lead[-1] if lead else 1)
    if mask is not None:
        own = (1,) * (len(lead) + 2 - mask.ndim) + mask.shape
        if plain:
            mask = mask.reshape(1, 1, *own[-2:])
        elif math.prod(own[:-3]) not in (1, merged[0]):  # it varies along some of the axes that are one here
            own = (*lead[:-1], *own[-3:])
            mask = get_array_module(mask).broadcast_to(mask, own).reshape(merged[0], *own[-3:])
        else:
            mask = mask.reshape(math.prod(own[:-3]), *own[-3:])
    two = [None if x is None else x.reshape(*merged, *x.shape[-2:]) for x in (q, k, v, keep)]
    return _Views(two[0], two[1], two[2], mask, two[3])


def _in_one_call(a: _Views, scale: float) -> bool:
    """Return whether the kernel that takes whole heads is for these arguments."""
    return a.mask is None and a.keep is None and scale > 0 and heads.fits(a.q, a.k, a.v)


def _by_library(a: _Views, causal: bool) -> bool:
    """Return whether cuDNN's attention is for these arguments: what dropout keeps is drawn by us, as on the CPU."""
    return (
        on_gpu(a.q)
        and a.keep is None
        and not (causal and a.mask is not None)
        and cudnn.attends(a.q, a.k, a.v)
    )


def _fused(a: _Views, scale: float, causal: bool) -> tuple[Array, Array] | None:
    """Return the result and the logarithms of the sums as cuDNN makes them; None where it cannot."""
    xp = get_array_module(a.q)
    out = _empty_like(a.q, a.v.shape[-1], a.q.dtype)
    lse = buffers.empty(a.q.shape[:-1], np.float32, a.q)
    mask, blind = _additive(a)
    if not cudnn.attention(a.q, a.k, a.v, mask, scale, causal, out, lse):
        return None
    if blind is not None:
        xp.copyto(out, out.dtype.type(0), where=blind)
    return out, lse


def _fused_grad(
    g: Array, a: _Views, out: Array, lse: Array, scale: float, causal: bool
) -> tuple[Array, Array, Array] | None:
    """Return the gradients of queries, keys and values as cuDNN makes them; None where it cannot."""
    xp = get_array_module(a.q)
    g, out = (x.reshape(*a.q.shape[:-1], x.shape[-1]) for x in (g, out))
    mask, blind = _additive(a)
    if blind is not None:
        g = xp.where(blind, g.dtype.type(0), g)
    gq, gk, gv = (_empty_like(x, x.shape[-1], x.dtype) for x in (a.q, a.k, a.v))
    grads = gq, gk, gv
    made = cudnn.attention_grad(g, a.q, a.k, a.v, mask, scale, causal, out, lse, grads)
    return grads if made else None


def _additive(a: _Views) -> tuple[Array | None, Array | None]:
    """Return the mask as cuDNN wants it, finite and added to the scores, and which queries see no key at all."""
    mask, kind = a.mask, a.q.dtype
    if mask is None:
        return None, None
    xp = get_array_module(a.q)
    least = kind.type(-3e4)  # hides a key as well as minus infinity, which would make a row without keys NaN
    if mask.dtype == np.bool_:
        added, blind = xp.where(mask, kind.type(0), least), ~mask.any(-1, keepdims=True)
    else:
        added, blind = buffers.convert(mask, kind), xp.isneginf(mask.max(-1, keepdims=True))
        added = xp.where(added < least, least, added)
    whole = (*added.shape[:2], a.q.shape[2], a.k.shape[2])
    return buffers.contiguous(xp.broadcast_to(added, whole)), blind


def _blocks(a: _Views, causal: bool) -> Iterator[_Block]:
    """Yield the parts one after the other: some heads whole, or some queries of one head."""
    B, H, L, _ = a.q.shape
    S = a.k.shape[2]
    block = _GPU_BLOCK if on_gpu(a.q) else _BLOCK
    heads = min(max(block // max(L * S, 1), 1), max(H, 1))
    rows = L if heads > 1 else min(L, max(block // max(S, 1), _ROWS))
    for b in range(B):
        for h in range(0, H, heads):
            for first in range(0, L, max(rows, 1)):
                which, some = slice(h, h + heads), slice(first, first + rows)
                seen = slice(0, min(S, first + rows) if causal else S)
                mask = keep = None
                if a.mask is not None:
                    wide = [n != 1 for n in a.mask.shape]
                    mask = tuple(
                        part if w else slice(None)
                        for part, w in zip((slice(b, b + 1), which, some, seen), wide, strict=True)
                    )
                if a.keep is not None:
                    keep = (b, which, some, seen)
                yield _Block((b, which, some), (b, which, seen), mask, keep, first)


def _factors(a: _Views, scale: float) -> tuple[float, float]:
    """Return by what to multiply the scores, and what the kernel multiplies them with: a positive number."""
    return (1.0, scale) if a.mask is None and scale > 0 else (scale, 1.0)


def _scores(a: _Views, at: _Block, factor: float) -> Array:
    """Return the scores of a block (heads, queries, keys), times ``factor`` and plus the mask."""
    scores = gemm.batched(widen(a.q[at.queries]), widen(a.k[at.keys]).swapaxes(-1, -2))
    if factor != 1.0:
        scores *= scores.dtype.type(factor)
    if a.mask is not None:
        mask = a.mask[at.mask][0]
        if mask.dtype == np.bool_:
            xp = get_array_module(scores)
            xp.copyto(scores, scores.dtype.type(-xp.inf), where=~mask)
        else:
            scores += widen(mask)
    return scores


def _drop(x: Array, a: _Views, at: _Block, p: float) -> None:
    """Multiply a block by what dropout does."""
    if a.keep is not None:
        x *= a.keep[at.keep]
        x *= x.dtype.type(_factor(p))


def _factor(p: float) -> float:
    return 1 / (1 - p) if p < 1 else 0.0


def _empty_like(x: Array, features: int, kind: Any) -> Array:
    """Return an array of the shape of ``x`` but for the features, and of its layout in memory."""
    order = sorted(range(x.ndim - 1), key=lambda axis: -x.strides[axis])
    out = buffers.empty((*[x.shape[axis] for axis in order], features), kind, x)
    return out.transpose(*[order.index(axis) for axis in range(x.ndim - 1)], x.ndim - 1)


def _recorded(
    g: Any,
    needs: Needs,
    q: Any,
    k: Any,
    v: Any,
    mask: Any,
    keep: Any,
    scale: float,
    causal: bool,
    p: float,
) -> Grads:
    """Return the gradients where they are recorded: from the arguments, with all scores at once."""
    scores = _times(q, _swap(k)) * scale
    size = tuple(scores.shape)
    hidden = np.zeros(size, np.bool_)
    if causal:
        hidden |= ~np.tri(*size[-2:], dtype=np.bool_)
    if mask is not None:
        plain = mask._array
        closed = ~plain if plain.dtype == np.bool_ else np.isneginf(plain)
        hidden |= closed
        if plain.dtype != np.bool_:
            scores = scores + call(elementwise.where, closed, np.zeros((), plain.dtype), mask)
    blind = hidden.all(-1, keepdims=True)
    kind = q._array.dtype
    scores = call(elementwise.where, hidden & ~blind, np.full((), -np.inf, kind), scores)
    probabilities = call(activation.softmax, scores, dim=len(size) - 1) * call(
        shape.astype, ~blind, dtype=kind
    )
    if keep is not None:
        weight = keep._array.astype(kind) * kind.type(_factor(p))
        dropped = probabilities * weight
    else:
        weight, dropped = None, probabilities
    gs = _times(g, _swap(v))
    if weight is not None:
        gs = gs * weight
    total = call(reduce.sum, gs * probabilities, axes=(len(size) - 1,), keepdims=True)
    gs = probabilities * (gs - total)
    grads = (
        _times(gs, k) * scale,
        _times(_swap(gs), q) * scale,
        _times(_swap(dropped), g),
        gs if mask is not None else None,
        None,
    )
    return tuple(x if need else None for x, need in zip(grads, needs, strict=False))


def _times(x: Any, y: Any) -> Any:
    return call(linalg.matmul, x, y)


def _swap(x: Any) -> Any:
    n = x.ndim
    return call(shape.transpose, x, axes=(*range(n - 2), n - 1, n - 2))
