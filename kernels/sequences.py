"""Recurrent layers over all time steps in one call, float32 and C-contiguous; see :mod:`~disttrain.kernels.rnn`.

R rows in all, B rows of the first step, H hidden units. The weight of the hidden state is packed once, for all steps.
Step t has ``sizes[t]`` rows from ``begins[t]`` on, in the order in which the layer takes the steps; both are int64.
"""

from __future__ import annotations

import numpy

from disttrain.kernels import buffers, rnn
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import helper, jit, sigmoid, tanh
from disttrain.kernels.simd import (
    LANES,
    broadcast,
    load,
    load_part,
    multiply,
    pointer,
    shift,
    store,
    store_part,
    transpose,
)


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
    w, memory = buffers.contiguous(w_hh), buffers.zeros(sum(_memory_of_lstm(*h.shape)), numpy.float32)
    return _lstm(gates, w, h, c, before, c_before, out, begins, sizes, memory)  # type: ignore[no-any-return]


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
    w = buffers.contiguous(w_hh)
    memory = buffers.zeros(sum(_memory_of_grad(*dh.shape, 4)), numpy.float32)
    return _lstm_grad(gates, w, c_before, _given(g, dh), dh, dc, d, begins, sizes, memory)  # type: ignore[no-any-return]


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
    w = buffers.contiguous(w_hh)
    added = buffers.zeros(len(w_hh), w_hh.dtype) if bias is None else buffers.contiguous(bias)
    memory = buffers.zeros(sum(_memory_of_gru(*h.shape)), numpy.float32)
    return _gru(gates, w, added, h, before, products, out, begins, sizes, memory)  # type: ignore[no-any-return]


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
    w, up = buffers.contiguous(w_hh), _given(g, dh)
    memory = buffers.zeros(sum(_memory_of_grad(*dh.shape, 3)), numpy.float32)
    return _gru_grad(  # type: ignore[no-any-return]
        gates, w, products, before, up, dh, d_input, d_recurrent, begins, sizes, memory
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
    return buffers.empty((0, like.shape[1]), like.dtype) if g is None else buffers.contiguous(g)


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
def _times(x, stride, rows, K, packed, padded, out):  # type: ignore[no-untyped-def]
    """Write the product of rows of ``K`` elements, ``stride`` apart, with a packed weight of ``padded`` columns."""
    nothing = numpy.zeros(LANES * 4, numpy.float32)
    fives = (-rows) % 6
    if 5 * fives > rows:
        fives = 0
    sixes = (rows - 5 * fives) // 6
    i = n = 0
    while i < rows:
        step = 6 if n < sixes else 5 if n < sixes + fives else 1
        n += 1
        left = shift(x, i * stride)
        j = 0
        while j < padded:
            zero, to = pointer(nothing, 0), pointer(out, i * padded + j)
            if j + 64 <= padded:
                if step == 6:
                    multiply(6, 4, left, stride, 1, pointer(packed, j), padded, K, zero, 0, to, padded)
                elif step == 5:
                    multiply(5, 4, left, stride, 1, pointer(packed, j), padded, K, zero, 0, to, padded)
                else:
                    multiply(1, 4, left, stride, 1, pointer(packed, j), padded, K, zero, 0, to, padded)
                j += 64
            else:
                if step == 6:
                    multiply(6, 1, left, stride, 1, pointer(packed, j), padded, K, zero, 0, to, padded)
                elif step == 5:
                    multiply(5, 1, left, stride, 1, pointer(packed, j), padded, K, zero, 0, to, padded)
                else:
                    multiply(1, 1, left, stride, 1, pointer(packed, j), padded, K, zero, 0, to, padded)
                j += LANES
        i += step


@helper
def _whole(n):  # type: ignore[no-untyped-def]
    """Return the elements of the vectors that hold ``n``."""
    return -(-n // LANES) * LANES


@helper
def _copy(of, i, to, j, size):  # type: ignore[no-untyped-def]
    for k in range(0, size, LANES):
        store_part(to, j + k, load_part(of, i + k, size - k), size - k)


@helper
def _pack(w, packed, padded):  # type: ignore[no-untyped-def]
    """Write the rows of ``w`` as rows of ``padded`` elements."""
    rows, columns = w.shape
    for k in range(rows):
        _copy(pointer(w, 0), k * columns, pointer(packed, 0), k * padded, columns)


# In what follows rows that are computed with are padded to whole vectors: what LLVM makes of a loop, like that over a
# tanh, has no remainder then, and each remainder takes as long as a vector. Lanes of no hidden unit hold other gates.


# They work in memory that is zero at first.


@helper
def _memory_of_lstm(B, H):  # type: ignore[no-untyped-def]
    """Return the elements of the packed weight, sums, states, cells, opened gates, candidates and output gates."""
    padded, wide, pair = _whole(4 * H), _whole(H), _whole(2 * H)
    return H * padded, B * padded + LANES, B * wide, B * wide, pair + LANES, wide, wide


@helper
def _memory_of_gru(B, H):  # type: ignore[no-untyped-def]
    """Return the elements of the packed weight, sums, states, opened gates and candidates."""
    padded, wide, pair = _whole(3 * H), _whole(H), _whole(2 * H)
    return H * padded, B * padded, B * wide, pair + LANES, wide


@helper
def _memory_of_grad(B, H, gates):  # type: ignore[no-untyped-def]
    """Return the elements of the packed weight, of states or sums, and of a row of cells."""
    wide = _whole(H)
    return gates * H * wide, B * wide, wide


@helper
def _cut(memory, size):  # type: ignore[no-untyped-def]
    """Return the first elements of some memory, and the rest."""
    return memory[:size], memory[size:]


@jit
def _lstm(gates, w_hh, h, c, before, c_before, out, begins, sizes, memory):  # type: ignore[no-untyped-def]
    B, H = h.shape
    padded, wide, pair = _whole(4 * H), _whole(H), _whole(2 * H)
    size, size_sums, size_states, _, size_opened, _, _ = _memory_of_lstm(B, H)
    packed, rest = _cut(memory, size)
    sums, rest = _cut(rest, size_sums)
    states, rest = _cut(rest, size_states)
    cells, rest = _cut(rest, size_states)
    opened, rest = _cut(rest, size_opened)
    news, outs = _cut(rest, wide)
    _pack_transposed(w_hh, packed, padded)
    for r in range(B):
        _copy(pointer(h, 0), r * H, pointer(states, 0), r * wide, H)
        _copy(pointer(c, 0), r * H, pointer(cells, 0), r * wide, H)
    first, news_at, outs_at = pointer(opened, 0), pointer(news, 0), pointer(outs, 0)
    for t in range(begins.size):
        begin, b = begins[t], sizes[t]
        for r in range(b):
            _copy(pointer(states, 0), r * wide, pointer(before, 0), (begin + r) * H, H)
            _copy(pointer(cells, 0), r * wide, pointer(c_before, 0), (begin + r) * H, H)
        _times(pointer(states, 0), wide, b, H, packed, padded, sums)
        for r in range(b):
            a, s = pointer(gates, (begin + r) * 4 * H), pointer(sums, r * padded)
            for j in range(0, 4 * H, LANES):
                store(s, j, load(s, j) + load_part(a, j, 4 * H - j))
            sn, so = shift(s, 2 * H), shift(s, 3 * H)
            for j in range(pair):
                first[j] = sigmoid(s[j])
            for j in range(wide):
                news_at[j] = tanh(sn[j])
            for j in range(wide):
                outs_at[j] = sigmoid(so[j])
            cell, state = pointer(cells, r * wide), pointer(states, r * wide)
            for j in range(0, wide, LANES):
                store(cell, j, load(first, H + j) * load(cell, j) + load(first, j) * load(news_at, j))
            for j in range(wide):
                state[j] = tanh(cell[j])
            for j in range(0, wide, LANES):
                store(state, j, load(state, j) * load(outs_at, j))
            _copy(first, 0, a, 0, 2 * H)
            _copy(news_at, 0, a, 2 * H, H)
            _copy(outs_at, 0, a, 3 * H, H)
            _copy(state, 0, pointer(out, 0), (begin + r) * H, H)
    for r in range(B):
        _copy(pointer(states, 0), r * wide, pointer(h, 0), r * H, H)
        _copy(pointer(cells, 0), r * wide, pointer(c, 0), r * H, H)


@jit
def _lstm_grad(gates, w_hh, c_before, g, dh, dc, d, begins, sizes, memory):  # type: ignore[no-untyped-def]
    one = broadcast(numpy.float32(1))
    B, H = dh.shape
    wide = _whole(H)
    size, size_states, _ = _memory_of_grad(B, H, 4)
    packed, rest = _cut(memory, size)
    states, cells = _cut(rest, size_states)
    _pack(w_hh, packed, wide)
    for r in range(B):
        _copy(pointer(dh, 0), r * H, pointer(states, 0), r * wide, H)
    cell = pointer(cells, 0)
    for t in range(begins.size - 1, -1, -1):
        begin, b = begins[t], sizes[t]
        for r in range(b):
            row = begin + r
            i, u, gc = pointer(gates, row * 4 * H), pointer(c_before, row * H), pointer(dc, r * H)
            f, n, o, gh = shift(i, H), shift(i, 2 * H), shift(i, 3 * H), pointer(states, r * wide)
            di = pointer(d, row * 4 * H)
            df, dn, do = shift(di, H), shift(di, 2 * H), shift(di, 3 * H)
            for j in range(0, H, LANES):
                k = H - j
                kept, new = load_part(f, j, k) * load_part(u, j, k), load_part(i, j, k) * load_part(n, j, k)
                store(cell, j, kept + new)
            for j in range(wide):
                cell[j] = tanh(cell[j])
            for j in range(0, H, LANES):
                k = H - j
                iv, fv, nv, ov = (
                    load_part(i, j, k),
                    load_part(f, j, k),
                    load_part(n, j, k),
                    load_part(o, j, k),
                )
                up, th = load(gh, j), load(cell, j)
                if g.size:
                    up = up + load_part(pointer(g, row * H), j, k)
                inner = load_part(gc, j, k) + up * ov * (one - th * th)
                store_part(di, j, inner * nv * iv * (one - iv), k)
                store_part(df, j, inner * load_part(u, j, k) * fv * (one - fv), k)
                store_part(dn, j, inner * iv * (one - nv * nv), k)
                store_part(do, j, up * th * ov * (one - ov), k)
                store_part(gc, j, inner * fv, k)
        _times(pointer(d, begin * 4 * H), 4 * H, b, 4 * H, packed, wide, states)
    for r in range(B):
        _copy(pointer(states, 0), r * wide, pointer(dh, 0), r * H, H)


@jit
def _gru(gates, w_hh, bias, h, before, products, out, begins, sizes, memory):  # type: ignore[no-untyped-def]
    B, H = h.shape
    padded, wide, pair = _whole(3 * H), _whole(H), _whole(2 * H)
    size, size_sums, size_states, size_opened, _ = _memory_of_gru(B, H)
    packed, rest = _cut(memory, size)
    sums, rest = _cut(rest, size_sums)
    states, rest = _cut(rest, size_states)
    opened, news = _cut(rest, size_opened)
    _pack_transposed(w_hh, packed, padded)
    for r in range(B):
        _copy(pointer(h, 0), r * H, pointer(states, 0), r * wide, H)
    first, new = pointer(opened, 0), pointer(news, 0)
    for t in range(begins.size):
        begin, b = begins[t], sizes[t]
        for r in range(b):
            _copy(pointer(states, 0), r * wide, pointer(before, 0), (begin + r) * H, H)
        _times(pointer(states, 0), wide, b, H, packed, padded, sums)
        for r in range(b):
            row = begin + r
            a, s, added = pointer(gates, row * 3 * H), pointer(sums, r * padded), pointer(bias, 0)
            for j in range(0, 3 * H, LANES):
                store(s, j, load(s, j) + load_part(added, j, 3 * H - j))
            for j in range(0, pair, LANES):
                store(first, j, load_part(a, j, 2 * H - j) + load(s, j))
            for j in range(pair):
                first[j] = sigmoid(first[j])
            an, m, p = shift(a, 2 * H), shift(s, 2 * H), pointer(products, row * H)
            for j in range(0, H, LANES):
                product = load_part(m, j, H - j)
                store_part(p, j, product, H - j)
                store(new, j, load_part(an, j, H - j) + load(first, j) * product)
            for j in range(wide):
                new[j] = tanh(new[j])
            state = pointer(states, r * wide)
            for j in range(0, wide, LANES):
                n = load(new, j)
                store(state, j, n + load(first, H + j) * (load(state, j) - n))
            _copy(first, 0, a, 0, 2 * H)
            _copy(new, 0, a, 2 * H, H)
            _copy(state, 0, pointer(out, 0), row * H, H)
    for r in range(B):
        _copy(pointer(states, 0), r * wide, pointer(h, 0), r * H, H)


@jit
def _gru_grad(  # type: ignore[no-untyped-def]
    gates, w_hh, products, before, g, dh, d_input, d_recurrent, begins, sizes, memory
):
    one = broadcast(numpy.float32(1))
    B, H = dh.shape
    wide = _whole(H)
    size, size_sums, _ = _memory_of_grad(B, H, 3)
    packed, rest = _cut(memory, size)
    sums, _ = _cut(rest, size_sums)
    _pack(w_hh, packed, wide)
    for t in range(begins.size - 1, -1, -1):
        begin, b = begins[t], sizes[t]
        for r in range(b):
            row = begin + r
            a, p, u = pointer(gates, row * 3 * H), pointer(products, row * H), pointer(before, row * H)
            z, n, gh = shift(a, H), shift(a, 2 * H), pointer(dh, r * H)
            dr, to = pointer(d_input, row * 3 * H), pointer(d_recurrent, row * 3 * H)
            dz, dn, to_z, to_n = shift(dr, H), shift(dr, 2 * H), shift(to, H), shift(to, 2 * H)
            for j in range(0, H, LANES):
                k = H - j
                rv, zv, nv, up = (
                    load_part(a, j, k),
                    load_part(z, j, k),
                    load_part(n, j, k),
                    load_part(gh, j, k),
                )
                if g.size:
                    up = up + load_part(pointer(g, row * H), j, k)
                new = up * (one - zv) * (one - nv * nv)
                reset = new * load_part(p, j, k) * rv * (one - rv)
                update = up * (load_part(u, j, k) - nv) * zv * (one - zv)
                store_part(dr, j, reset, k)
                store_part(to, j, reset, k)
                store_part(dz, j, update, k)
                store_part(to_z, j, update, k)
                store_part(dn, j, new, k)
                store_part(to_n, j, new * rv, k)
                store_part(gh, j, up * zv, k)
        _times(pointer(d_recurrent, begin * 3 * H), 3 * H, b, 3 * H, packed, wide, sums)
        for r in range(b):
            gh = pointer(dh, r * H)
            for j in range(0, H, LANES):
                store_part(gh, j, load_part(gh, j, H - j) + load(pointer(sums, r * wide), j), H - j)
