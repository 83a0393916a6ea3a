"""Recurrent layers over all time steps in one call, float32 and C-contiguous; see :mod:`~disttrain.kernels.rnn`.

R rows in all, B rows of the first step, H hidden units. The weight of the hidden state is packed once, for all steps.
Step t has ``sizes[t]`` rows from ``begins[t]`` on, in the order in which the layer takes the steps; both are int64.
"""

from __future__ import annotations

import numpy

from disttrain.kernels import rnn
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import helper, jit, sigmoid, tanh
from disttrain.kernels.simd import LANES, multiply, pointer, shift, transpose


def _is_ours(gates: Array, h: Array) -> bool:
    """Return whether the kernels below are for these arrays."""
    return (
        get_array_module(gates, h) is numpy
        and gates.dtype == h.dtype == numpy.float32
        and gates.size > 0 < h.size
    )


def _steps(begins: Array, sizes: Array) -> list[tuple[slice, int]]:
    """Return the rows of each step and their number."""
    return [(slice(at, at + b), b) for at, b in zip(begins.tolist(), sizes.tolist(), strict=True)]


def lstm(
    gates: Array,
    w_hh: Array,
    h: Array,
    c: Array,
    before: Array,
    c_before: Array,
    out: Array,
    begins: Array,
    sizes: Array,
) -> None:
    """Step an LSTM through all steps.

    Args:
        gates: what the input and the biases give to the gates, (R, 4H); overwritten with the activated gates.
        w_hh: (4H, H).
        h: the hidden state (B, H), overwritten with the last one of each sequence.
        c: the cell's state (B, H), likewise.
        before: where the hidden state before each step goes, (R, H).
        c_before: where the cell's goes, (R, H).
        out: where the new hidden states go, (R, H).
        begins: see above.
        sizes: see above.
    """
    if not _is_ours(gates, h):
        return lstm_reference(gates, w_hh, h, c, before, c_before, out, begins, sizes)
    return _lstm(gates, numpy.ascontiguousarray(w_hh), h, c, before, c_before, out, begins, sizes)  # type: ignore[no-any-return]


def lstm_reference(
    gates: Array,
    w_hh: Array,
    h: Array,
    c: Array,
    before: Array,
    c_before: Array,
    out: Array,
    begins: Array,
    sizes: Array,
) -> None:
    """What :func:`lstm` must equal up to rounding: step by step, for any type and device."""
    across = get_array_module(w_hh).ascontiguousarray(w_hh.T)
    for rows, b in _steps(begins, sizes):
        before[rows], c_before[rows] = h[:b], c[:b]
        rnn.lstm_step(gates[rows], h[:b] @ across, c[:b], out[rows])
        h[:b] = out[rows]


def lstm_grad(
    gates: Array,
    w_hh: Array,
    c_before: Array,
    g: Array | None,
    dh: Array,
    dc: Array,
    d: Array,
    begins: Array,
    sizes: Array,
) -> None:
    """Write the gradient of the sums before the gates of all steps to ``d``.

    Args:
        gates: the activated gates (R, 4H).
        w_hh: (4H, H).
        c_before: the cell's state before each step (R, H).
        g: gradient of the hidden states (R, H), or ``None``.
        dh: that of the last ones (B, H), overwritten with that of the first ones.
        dc: that of the last states of the cell (B, H), likewise.
        d: (R, 4H).
        begins: see above.
        sizes: see above.
    """
    if not _is_ours(gates, dh):
        return lstm_grad_reference(gates, w_hh, c_before, g, dh, dc, d, begins, sizes)
    w = numpy.ascontiguousarray(w_hh)
    return _lstm_grad(gates, w, c_before, _given(g, dh), dh, dc, d, begins, sizes)  # type: ignore[no-any-return]


def lstm_grad_reference(
    gates: Array,
    w_hh: Array,
    c_before: Array,
    g: Array | None,
    dh: Array,
    dc: Array,
    d: Array,
    begins: Array,
    sizes: Array,
) -> None:
    """What :func:`lstm_grad` must equal up to rounding."""
    for rows, b in reversed(_steps(begins, sizes)):
        if g is not None:
            dh[:b] += g[rows]
        rnn.lstm_step_grad(gates[rows], c_before[rows], dh[:b], dc[:b], d[rows])
        dh[:b] = d[rows] @ w_hh


def gru(
    gates: Array,
    w_hh: Array,
    bias: Array | None,
    h: Array,
    before: Array,
    products: Array,
    out: Array,
    begins: Array,
    sizes: Array,
) -> None:
    """Step gated recurrent units through all steps.

    Args:
        gates: what the input and its bias give to the gates, (R, 3H); overwritten with the activated gates.
        w_hh: (3H, H).
        bias: what is added to its products, (3H,), or ``None``.
        h: the hidden state (B, H), overwritten with the last one of each sequence.
        before: where the hidden state before each step goes, (R, H).
        products: where what it gives to the candidate goes, (R, H).
        out: where the new hidden states go, (R, H).
        begins: see above.
        sizes: see above.
    """
    if not _is_ours(gates, h):
        return gru_reference(gates, w_hh, bias, h, before, products, out, begins, sizes)
    w = numpy.ascontiguousarray(w_hh)
    added = numpy.zeros(len(w_hh), w_hh.dtype) if bias is None else numpy.ascontiguousarray(bias)
    return _gru(gates, w, added, h, before, products, out, begins, sizes)  # type: ignore[no-any-return]


def gru_reference(
    gates: Array,
    w_hh: Array,
    bias: Array | None,
    h: Array,
    before: Array,
    products: Array,
    out: Array,
    begins: Array,
    sizes: Array,
) -> None:
    """What :func:`gru` must equal up to rounding."""
    H = h.shape[1]
    across = get_array_module(w_hh).ascontiguousarray(w_hh.T)
    for rows, b in _steps(begins, sizes):
        before[rows] = h[:b]
        product = h[:b] @ across
        if bias is not None:
            product += bias
        products[rows] = product[:, 2 * H :]
        rnn.gru_step(gates[rows], product, before[rows], out[rows])
        h[:b] = out[rows]


def gru_grad(
    gates: Array,
    w_hh: Array,
    products: Array,
    before: Array,
    g: Array | None,
    dh: Array,
    d_input: Array,
    d_recurrent: Array,
    begins: Array,
    sizes: Array,
) -> None:
    """Write the gradients of what the input and what the hidden state gave to the gates of all steps.

    Args:
        gates: the activated gates (R, 3H).
        w_hh: (3H, H).
        products: what the hidden state gave to the candidate (R, H).
        before: the hidden state before each step (R, H).
        g: gradient of the hidden states (R, H), or ``None``.
        dh: that of the last ones (B, H), overwritten with that of the first ones.
        d_input: where that of the input's part goes, (R, 3H).
        d_recurrent: where that of the hidden state's part goes, (R, 3H).
        begins: see above.
        sizes: see above.
    """
    if not _is_ours(gates, dh):
        return gru_grad_reference(gates, w_hh, products, before, g, dh, d_input, d_recurrent, begins, sizes)
    w, up = numpy.ascontiguousarray(w_hh), _given(g, dh)
    return _gru_grad(  # type: ignore[no-any-return]
        gates, w, products, before, up, dh, d_input, d_recurrent, begins, sizes
    )


def gru_grad_reference(
    gates: Array,
    w_hh: Array,
    products: Array,
    before: Array,
    g: Array | None,
    dh: Array,
    d_input: Array,
    d_recurrent: Array,
    begins: Array,
    sizes: Array,
) -> None:
    """What :func:`gru_grad` must equal up to rounding."""
    for rows, b in reversed(_steps(begins, sizes)):
        if g is not None:
            dh[:b] += g[rows]
        rnn.gru_step_grad(gates[rows], products[rows], before[rows], dh[:b], d_input[rows], d_recurrent[rows])
        dh[:b] += d_recurrent[rows] @ w_hh


def _given(g: Array | None, like: Array) -> Array:
    """Return a gradient, or no rows if there is none: a kernel takes one type."""
    return numpy.empty((0, like.shape[1]), like.dtype) if g is None else numpy.ascontiguousarray(g)


@helper
def _pack_transposed(w, packed, padded):  # type: ignore[no-untyped-def]
    """Write the rows of ``w`` as columns, rows of ``padded`` elements; what is beyond them stays."""
    N, K = w.shape
    n = N - N % LANES
    whole = K - K % LANES
    for j in range(0, n, LANES):
        for k in range(0, whole, LANES):
            transpose(pointer(w, j * K + k), K, pointer(packed, k * padded + j), padded)
        for k in range(whole, K):
            for c in range(LANES):
                packed[k * padded + j + c] = w[j + c, k]
    for j in range(n, N):
        for k in range(K):
            packed[k * padded + j] = w[j, k]


@helper
def _times(x, rows, K, packed, padded, out):  # type: ignore[no-untyped-def]
    """Write the product of ``rows`` rows of ``K`` elements with a packed weight, rows of ``padded`` elements."""
    nothing = numpy.zeros(LANES * 4, numpy.float32)
    fives = (-rows) % 6
    if 5 * fives > rows:
        fives = 0
    sixes = (rows - 5 * fives) // 6
    i = n = 0
    while i < rows:
        step = 6 if n < sixes else 5 if n < sixes + fives else 1
        n += 1
        left = shift(x, i * K)
        j = 0
        while j < padded:
            zero, to = pointer(nothing, 0), pointer(out, i * padded + j)
            if j + 64 <= padded:
                if step == 6:
                    multiply(6, 4, left, K, 1, pointer(packed, j), padded, K, zero, 0, to, padded)
                elif step == 5:
                    multiply(5, 4, left, K, 1, pointer(packed, j), padded, K, zero, 0, to, padded)
                else:
                    multiply(1, 4, left, K, 1, pointer(packed, j), padded, K, zero, 0, to, padded)
                j += 64
            else:
                if step == 6:
                    multiply(6, 1, left, K, 1, pointer(packed, j), padded, K, zero, 0, to, padded)
                elif step == 5:
                    multiply(5, 1, left, K, 1, pointer(packed, j), padded, K, zero, 0, to, padded)
                else:
                    multiply(1, 1, left, K, 1, pointer(packed, j), padded, K, zero, 0, to, padded)
                j += LANES
        i += step


@jit
def _lstm(gates, w_hh, h, c, before, c_before, out, begins, sizes):  # type: ignore[no-untyped-def]
    H = h.shape[1]
    padded = -(-4 * H // LANES) * LANES
    packed = numpy.zeros(H * padded, numpy.float32)
    sums = numpy.empty(h.shape[0] * padded, numpy.float32)
    _pack_transposed(w_hh, packed, padded)
    for t in range(begins.size):
        begin, b = begins[t], sizes[t]
        before[begin : begin + b] = h[:b]
        c_before[begin : begin + b] = c[:b]
        _times(pointer(before, begin * H), b, H, packed, padded, sums)
        for r in range(b):
            a, s = pointer(gates, (begin + r) * 4 * H), pointer(sums, r * padded)
            cb, hb, to = pointer(c, r * H), pointer(h, r * H), pointer(out, (begin + r) * H)
            for j in range(4 * H):
                s[j] = a[j] + s[j]
            for j in range(4 * H):
                a[j] = sigmoid(s[j])
            n, sn = shift(a, 2 * H), shift(s, 2 * H)
            for j in range(H):
                n[j] = tanh(sn[j])
            f, o = shift(a, H), shift(a, 3 * H)
            for j in range(H):
                cb[j] = f[j] * cb[j] + a[j] * n[j]
            for j in range(H):
                hb[j] = o[j] * tanh(cb[j])
            for j in range(H):
                to[j] = hb[j]


@jit
def _lstm_grad(gates, w_hh, c_before, g, dh, dc, d, begins, sizes):  # type: ignore[no-untyped-def]
    one = numpy.float32(1)
    B, H = dh.shape
    padded = -(-H // LANES) * LANES
    packed, state = numpy.zeros(4 * H * padded, numpy.float32), numpy.empty(B * padded, numpy.float32)
    for k in range(4 * H):
        for j in range(H):
            packed[k * padded + j] = w_hh[k, j]
    for t in range(begins.size - 1, -1, -1):
        begin, b = begins[t], sizes[t]
        for r in range(b):
            row = begin + r
            i, u, gc = pointer(gates, row * 4 * H), pointer(c_before, row * H), pointer(dc, r * H)
            f, n, o, gh = shift(i, H), shift(i, 2 * H), shift(i, 3 * H), pointer(dh, r * H)
            di = pointer(d, row * 4 * H)
            df, dn, do = shift(di, H), shift(di, 2 * H), shift(di, 3 * H)
            if g.size:
                up = pointer(g, row * H)
                for j in range(H):
                    gh[j] += up[j]
            for j in range(H):
                do[j] = tanh(f[j] * u[j] + i[j] * n[j])
            for j in range(H):
                gc[j] += gh[j] * o[j] * (one - do[j] * do[j])
            for j in range(H):
                do[j] = gh[j] * do[j] * o[j] * (one - o[j])
            for j in range(H):
                di[j] = gc[j] * n[j] * i[j] * (one - i[j])
            for j in range(H):
                df[j] = gc[j] * u[j] * f[j] * (one - f[j])
            for j in range(H):
                dn[j] = gc[j] * i[j] * (one - n[j] * n[j])
            for j in range(H):
                gc[j] *= f[j]
        _times(pointer(d, begin * 4 * H), b, 4 * H, packed, padded, state)
        for r in range(b):
            for j in range(H):
                dh[r, j] = state[r * padded + j]


@jit
def _gru(gates, w_hh, bias, h, before, products, out, begins, sizes):  # type: ignore[no-untyped-def]
    H = h.shape[1]
    padded = -(-3 * H // LANES) * LANES
    packed = numpy.zeros(H * padded, numpy.float32)
    sums = numpy.empty(h.shape[0] * padded, numpy.float32)
    _pack_transposed(w_hh, packed, padded)
    for t in range(begins.size):
        begin, b = begins[t], sizes[t]
        before[begin : begin + b] = h[:b]
        _times(pointer(before, begin * H), b, H, packed, padded, sums)
        for r in range(b):
            row = begin + r
            a, s, added = pointer(gates, row * 3 * H), pointer(sums, r * padded), pointer(bias, 0)
            for j in range(3 * H):
                s[j] += added[j]
            for j in range(2 * H):
                a[j] = sigmoid(a[j] + s[j])
            z, n, m, p = shift(a, H), shift(a, 2 * H), shift(s, 2 * H), pointer(products, row * H)
            for j in range(H):
                p[j] = m[j]
            for j in range(H):
                n[j] = tanh(n[j] + a[j] * m[j])
            hb, to = pointer(h, r * H), pointer(out, row * H)
            for j in range(H):
                hb[j] = n[j] + z[j] * (hb[j] - n[j])
            for j in range(H):
                to[j] = hb[j]


@jit
def _gru_grad(  # type: ignore[no-untyped-def]
    gates, w_hh, products, before, g, dh, d_input, d_recurrent, begins, sizes
):
    one = numpy.float32(1)
    B, H = dh.shape
    padded = -(-H // LANES) * LANES
    packed, state = numpy.zeros(3 * H * padded, numpy.float32), numpy.empty(B * padded, numpy.float32)
    for k in range(3 * H):
        for j in range(H):
            packed[k * padded + j] = w_hh[k, j]
    for t in range(begins.size - 1, -1, -1):
        begin, b = begins[t], sizes[t]
        for r in range(b):
            row = begin + r
            a, p, u = pointer(gates, row * 3 * H), pointer(products, row * H), pointer(before, row * H)
            z, n, gh = shift(a, H), shift(a, 2 * H), pointer(dh, r * H)
            dr, to = pointer(d_input, row * 3 * H), pointer(d_recurrent, row * 3 * H)
            dz, dn, dm = shift(dr, H), shift(dr, 2 * H), shift(to, 2 * H)
            if g.size:
                up = pointer(g, row * H)
                for j in range(H):
                    gh[j] += up[j]
            for j in range(H):
                dn[j] = gh[j] * (one - z[j]) * (one - n[j] * n[j])
            for j in range(H):
                dr[j] = dn[j] * p[j] * a[j] * (one - a[j])
            for j in range(H):
                dz[j] = gh[j] * (u[j] - n[j]) * z[j] * (one - z[j])
            for j in range(H):
                dm[j] = dn[j] * a[j]
            for j in range(2 * H):
                to[j] = dr[j]
            for j in range(H):
                gh[j] *= z[j]
        _times(pointer(d_recurrent, begin * 3 * H), b, 3 * H, packed, padded, state)
        for r in range(b):
            for j in range(H):
                dh[r, j] += state[r * padded + j]
