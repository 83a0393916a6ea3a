"""Recurrent layers: one layer in one direction over whole sequences. Half precision is computed in float32.

The sequences of a batch lie time step after time step in the rows of one matrix; ``batch_sizes`` says how many
rows each step has, as ``PackedSequence.batch_sizes`` does: it never grows, and row j of a step continues row j of
the step before. What the input gives to the gates of all steps is one product, and so is each weight's gradient.

R rows in all, B rows of the first step, I input features, H hidden units, K gates, P features of the output
(H, or less where an LSTM projects it).
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from disttrain.kernels import buffers, gemm, sequences
from disttrain.kernels import rnn as kernels
from disttrain.kernels.columns import column_sums
from disttrain.ops import activation, linalg, reduce, shape
from disttrain.ops.activation import widen
from disttrain.ops.types import Array, Result, call, get_array_module, is_array

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]
_TRANSPOSE_FROM = 3
"""From so many time steps on a transposed copy of a weight pays: BLAS reads it faster at every step."""


def rnn(
    x: Array,
    h0: Array,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None = None,
    b_hh: Array | None = None,
    *,
    batch_sizes: Sequence[int],
    reverse: bool = False,
    relu: bool = False,
) -> Result:
    """``h = tanh(x @ w_ih.T + b_ih + h @ w_hh.T + b_hh)`` at each step (Elman 1990), as ``torch.nn.RNN``.

    Args:
        x: input (R, I).
        h0: hidden state before the first step (B, H).
        w_ih: (H, I).
        w_hh: (H, H).
        b_ih: (H,) or ``None``.
        b_hh: (H,) or ``None``.
        batch_sizes: rows of each time step.
        reverse: begin with the last step.
        relu: ``max(·, 0)`` in place of the hyperbolic tangent.

    Returns:
        The hidden state after each step (R, H), and each sequence's last one (B, H).
    """
    gates, h = _start(x, h0, w_ih, _sum_of(b_ih, b_hh))
    product_weight = _across(w_hh, batch_sizes)
    out, before = buffers.empty_like(gates), buffers.empty_like(gates)
    for rows, b in _steps(batch_sizes, reverse):
        before[rows] = h[:b]
        kernels.rnn_step(gates[rows], gemm.batched(h[:b], product_weight), relu, out[rows])
        h[:b] = out[rows]
    saved = (x, h0, w_ih, w_hh, b_ih, b_hh, gates, before, tuple(batch_sizes), reverse, relu)
    return (buffers.convert(out, x.dtype), buffers.convert(h, x.dtype)), saved, rnn_vjp


def rnn_vjp(
    g: Any,
    needs: Needs,
    x: Any,
    h0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    y: Any,
    before: Any,
    batch_sizes: tuple[int, ...],
    reverse: bool,
    relu: bool,
) -> Grads:
    if not is_array(x):
        return _rnn_recorded(g, needs, x, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, reverse, relu)
    g_out, dh = _begin(g[0], g[1], h0)
    d = buffers.empty_like(y)
    w = widen(w_hh)
    for rows, b in reversed(_steps(batch_sizes, reverse)):
        if g_out is not None:
            dh[:b] += g_out[rows]
        kernels.rnn_step_grad(y[rows], dh[:b], relu, d[rows])
        dh[:b] = gemm.batched(d[rows], w)
    dx, dw_ih, dw_hh, db = _products(needs, (0, 2, 3, 4, 5), x, w_ih, before, d, d)
    return _of_types(needs, (dx, dh, dw_ih, dw_hh, db, db), (x, h0, w_ih, w_hh, b_ih, b_hh))


def lstm(
    x: Array,
    h0: Array,
    c0: Array,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None = None,
    b_hh: Array | None = None,
    w_hr: Array | None = None,
    *,
    batch_sizes: Sequence[int],
    reverse: bool = False,
) -> Result:
    """Long short-term memory (Hochreiter and Schmidhuber 1997; projection: Sak et al. 2014), as ``torch.nn.LSTM``.

    Args:
        x: input (R, I).
        h0: hidden state before the first step (B, P).
        c0: state of the cells before it (B, H).
        w_ih: (4H, I): input gate, forget gate, candidate, output gate.
        w_hh: (4H, P).
        b_ih: (4H,) or ``None``.
        b_hh: (4H,) or ``None``.
        w_hr: projection of the hidden state (P, H), or ``None``.
        batch_sizes: rows of each time step.
        reverse: begin with the last step.

    Returns:
        The hidden state after each step (R, P), and each sequence's last one (B, P) and last cells (B, H).
    """
    gates, h = _start(x, h0, w_ih, _sum_of(b_ih, b_hh))
    R, H, P = len(gates), c0.shape[1], h0.shape[1]
    c = buffers.copy(widen(c0))
    c_before, before = buffers.empty((R, H), gates.dtype, gates), buffers.empty((R, P), gates.dtype, gates)
    out = buffers.empty((R, P), gates.dtype, gates)
    if w_hr is None:
        places = _places(tuple(batch_sizes), reverse)
        sequences.lstm(gates, widen(w_hh), h, c, before, c_before, out, *places)
    else:
        projection, product_weight, hidden = widen(w_hr).T, _across(w_hh, batch_sizes), buffers.empty_like(c)
        for rows, b in _steps(batch_sizes, reverse):
            before[rows], c_before[rows] = h[:b], c[:b]
            kernels.lstm_step(gates[rows], gemm.batched(h[:b], product_weight), c[:b], hidden[:b])
            out[rows] = gemm.batched(hidden[:b], projection)
            h[:b] = out[rows]
    saved = (x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, gates, before, c_before, tuple(batch_sizes), reverse)
    outs = tuple(buffers.convert(a, x.dtype) for a in (out, h, c))
    return outs, saved, lstm_vjp


def lstm_vjp(
    g: Any,
    needs: Needs,
    x: Any,
    h0: Any,
    c0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    w_hr: Any,
    gates: Any,
    before: Any,
    c_before: Any,
    batch_sizes: tuple[int, ...],
    reverse: bool,
) -> Grads:
    if not is_array(x):
        return _lstm_recorded(g, needs, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, reverse)
    xp = get_array_module(x)
    g_out, dh = _begin(g[0], g[1], h0)
    _, dc = _begin(None, g[2], c0)
    d = buffers.empty_like(gates)
    w = widen(w_hh)
    projected = None
    if w_hr is None:
        sequences.lstm_grad(gates, w, c_before, g_out, dh, dc, d, *_places(batch_sizes, reverse))
    else:
        projection, projected = widen(w_hr), buffers.empty_like(before)
        for rows, b in reversed(_steps(batch_sizes, reverse)):
            if g_out is not None:
                dh[:b] += g_out[rows]
            projected[rows] = dh[:b]
            kernels.lstm_step_grad(
                gates[rows], c_before[rows], gemm.batched(dh[:b], projection), dc[:b], d[rows]
            )
            dh[:b] = gemm.batched(d[rows], w)
    dx, dw_ih, dw_hh, db = _products(needs, (0, 3, 4, 5, 6), x, w_ih, before, d, d)
    dw_hr = None
    if projected is not None and needs[7]:
        i, f, n, o = (_part(gates, k, 4) for k in range(4))
        dw_hr = gemm.batched(projected.T, o * xp.tanh(f * c_before + i * n))
    grads = (dx, dh, dc, dw_ih, dw_hh, db, db, dw_hr)
    return _of_types(needs, grads, (x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr))


def gru(
    x: Array,
    h0: Array,
    w_ih: Array,
    w_hh: Array,
    b_ih: Array | None = None,
    b_hh: Array | None = None,
    *,
    batch_sizes: Sequence[int],
    reverse: bool = False,
) -> Result:
    """Gated recurrent units (Cho et al. 2014; the reset gate acts on the product), as ``torch.nn.GRU``.

    Args:
        x: input (R, I).
        h0: hidden state before the first step (B, H).
        w_ih: (3H, I): reset gate, update gate, candidate.
        w_hh: (3H, H).
        b_ih: (3H,) or ``None``.
        b_hh: (3H,) or ``None``.
        batch_sizes: rows of each time step.
        reverse: begin with the last step.

    Returns:
        The hidden state after each step (R, H), and each sequence's last one (B, H).
    """
    gates, h = _start(x, h0, w_ih, b_ih)
    R, H = len(gates), h0.shape[1]
    out, before, products = (buffers.empty((R, H), gates.dtype, gates) for _ in range(3))
    bias = None if b_hh is None else widen(b_hh)
    places = _places(tuple(batch_sizes), reverse)
    sequences.gru(gates, widen(w_hh), bias, h, before, products, out, *places)
    saved = (x, h0, w_ih, w_hh, b_ih, b_hh, gates, products, before, tuple(batch_sizes), reverse)
    return (buffers.convert(out, x.dtype), buffers.convert(h, x.dtype)), saved, gru_vjp


def gru_vjp(
    g: Any,
    needs: Needs,
    x: Any,
    h0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    gates: Any,
    products: Any,
    before: Any,
    batch_sizes: tuple[int, ...],
    reverse: bool,
) -> Grads:
    if not is_array(x):
        return _gru_recorded(g, needs, x, h0, w_ih, w_hh, b_ih, b_hh, batch_sizes, reverse)
    g_out, dh = _begin(g[0], g[1], h0)
    d, d_recurrent = buffers.empty_like(gates), buffers.empty_like(gates)
    places = _places(batch_sizes, reverse)
    sequences.gru_grad(gates, widen(w_hh), products, before, g_out, dh, d, d_recurrent, *places)
    dx, dw_ih, dw_hh, db_ih = _products(needs, (0, 2, 3, 4, 4), x, w_ih, before, d, d_recurrent)
    db_hh = column_sums(d_recurrent) if needs[5] else None
    grads = (dx, dh, dw_ih, dw_hh, db_ih, db_hh)
    return _of_types(needs, grads, (x, h0, w_ih, w_hh, b_ih, b_hh))


def take_rows(x: Array, *, rows: Array) -> Result:
    """``x[rows]``, for rows that are all different: how sequences are packed."""
    return x[rows], (rows, x.shape[0]), take_rows_vjp


def take_rows_vjp(g: Any, needs: Needs, rows: Any, size: int) -> Grads:
    return (call(put_rows, g, rows=_plain(rows), size=size, fill=0.0),)


def put_rows(x: Array, *, rows: Array, size: int, fill: float) -> Result:
    """``size`` rows of ``fill``, with ``x`` in ``rows``, which are all different: how packed sequences are padded."""
    out = get_array_module(x).full((size, *x.shape[1:]), fill, x.dtype)
    out[rows] = x
    return out, (rows,), put_rows_vjp


def put_rows_vjp(g: Any, needs: Needs, rows: Any) -> Grads:
    return (call(take_rows, g, rows=_plain(rows)),)


def _plain(x: Any) -> Array:
    """Return the array of what backward got as an array, or as a Tensor where it is recorded."""
    return getattr(x, "_array", x)


# ---------------------------------------------------------------------------------------------- shared, on arrays


def _steps(batch_sizes: Sequence[int], reverse: bool) -> list[tuple[slice, int]]:
    """Return the rows of each time step and their number, in the order in which the layer takes them."""
    steps, begin = [], 0
    for b in batch_sizes:
        steps.append((slice(begin, begin + b), b))
        begin += b
    return steps[::-1] if reverse else steps


def _sum_of(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else a + b


@functools.lru_cache(maxsize=64)
def _places(batch_sizes: tuple[int, ...], reverse: bool) -> tuple[Array, Array]:
    """Return the first row of each time step and their number, in the order in which the layer takes them.

    Whoever asks for the same gets the same arrays: they are to be read only.
    """
    sizes = np.array(batch_sizes, np.int64)
    begins = np.cumsum(sizes) - sizes
    return (begins[::-1].copy(), sizes[::-1].copy()) if reverse else (begins, sizes)


def _start(x: Array, h0: Array, w_ih: Array, bias: Array | None) -> tuple[Array, Array]:
    """Return what the input gives to the gates (R, KH), and the hidden state to step."""
    gates = gemm.matmul(widen(x), widen(w_ih).T, bias=None if bias is None else widen(bias))
    return gates, buffers.copy(widen(h0))


def _across(w_hh: Array, batch_sizes: Sequence[int]) -> Array:
    """Return ``w_hh.T``, to multiply the hidden state with at each step."""
    across = widen(w_hh).T
    return buffers.contiguous(across) if len(batch_sizes) >= _TRANSPOSE_FROM else across


def _begin(g_out: Array | None, g_last: Array | None, state: Array) -> tuple[Array | None, Array]:
    """Return the gradient of the output, and that of the last state, to be stepped back."""
    wide = widen(state)
    last = buffers.zeros(state.shape, wide.dtype, state) if g_last is None else buffers.copy(widen(g_last))
    return None if g_out is None else widen(g_out), last


def _products(
    needs: Needs, places: tuple[int, ...], x: Array, w_ih: Array, before: Array, d: Array, d_recurrent: Array
) -> tuple[Any, ...]:
    """Return the gradients that are one product over all steps: of the input, the two weights and the biases.

    Args:
        needs: which arguments want a gradient.
        places: of the input, the two weights and the two biases among them.
        x: the input (R, I).
        w_ih: (KH, I).
        before: the hidden state before each step (R, P).
        d: gradient of what the input gave (R, KH).
        d_recurrent: gradient of what the hidden state gave (R, KH).
    """
    need_x, need_ih, need_hh, need_b, need_other = (needs[p] for p in places)
    return (
        gemm.matmul(d, widen(w_ih)) if need_x else None,
        gemm.matmul(d.T, widen(x)) if need_ih else None,
        gemm.matmul(d_recurrent.T, before) if need_hh else None,
        column_sums(d) if need_b or need_other else None,
    )


def _of_types(needs: Needs, grads: Grads, arguments: Grads) -> Grads:
    """Return the gradients that are wanted, each of the type of its argument."""
    return tuple(
        buffers.convert(g, a.dtype) if need else None
        for need, g, a in zip(needs, grads, arguments, strict=False)
    )


def _part(gates: Any, k: int, of: int) -> Any:
    """Return gate ``k`` of as many as ``of``."""
    H = gates.shape[1] // of
    return call(shape.index, gates, key=(slice(None), slice(k * H, (k + 1) * H)))


# ------------------------------------------------------------------------------------------ shared, recorded
#
# With gradients of gradients everything is computed again, step by step, from the arguments.


def _rows(a: Any, rows: slice) -> Any:
    return call(shape.index, a, key=(rows,))


def _onto(state: Any, new: Any) -> Any:
    """Return the state with its first rows replaced."""
    b = new.shape[0]
    if b == state.shape[0]:
        return new
    return call(shape.concatenate, new, _rows(state, slice(b, None)), axis=0)


def _join(parts: list[Any], steps: list[tuple[slice, int]]) -> Any:
    """Return what was computed at each step as rows in the order of time."""
    order = sorted(range(len(steps)), key=lambda t: steps[t][0].start)
    return call(shape.concatenate, *[parts[t] for t in order], axis=0)


def _times(a: Any, w: Any) -> Any:
    return call(linalg.matmul, a, w)


def _flipped(w: Any) -> Any:
    return call(shape.transpose, w, axes=(1, 0))


def _inputs(x: Any, w_ih: Any, bias: Any) -> Any:
    product = _times(x, _flipped(w_ih))
    return product if bias is None else product + bias


def _last_grad(g: Any, state: Any) -> Any:
    """Return the gradient of a last state, or zeros; always on the right of an operator, for they are an array."""
    return np.zeros(tuple(state.shape), state.dtype.numpy) if g is None else g


def _of_step(g_out: Any, dh: Any, rows: slice, b: int) -> Any:
    of_state = _rows(dh, slice(0, b))
    return of_state if g_out is None else _rows(g_out, rows) + of_state


def _recorded_products(needs: Needs, x: Any, w_ih: Any, before: Any, d: Any, d_recurrent: Any) -> list[Any]:
    """Return the gradients of the input, the two weights and the two biases."""

    def total(v: Any) -> Any:
        return call(reduce.sum, v, axes=(0,), keepdims=False)

    return [
        _times(d, w_ih),
        _times(_flipped(d), x),
        _times(_flipped(d_recurrent), before),
        total(d),
        total(d_recurrent),
    ]


def _wanted(needs: Needs, grads: Sequence[Any]) -> Grads:
    return tuple(g if need else None for need, g in zip(needs, grads, strict=False))


def _rnn_recorded(
    g: Any,
    needs: Needs,
    x: Any,
    h0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    batch_sizes: tuple[int, ...],
    reverse: bool,
    relu: bool,
) -> Grads:
    steps = _steps(batch_sizes, reverse)
    inputs, across, h = _inputs(x, w_ih, _sum_of(b_ih, b_hh)), _flipped(w_hh), h0
    ys, befores = [], []
    for rows, b in steps:
        befores.append(_rows(h, slice(0, b)))
        total = _rows(inputs, rows) + _times(befores[-1], across)
        ys.append(call(activation.relu if relu else activation.tanh, total))
        h = _onto(h, ys[-1])
    dh, ds = _last_grad(g[1], h0), []
    for (rows, b), y in zip(reversed(steps), reversed(ys), strict=True):
        slope = (y != 0) if relu else 1 - y * y
        ds.append(slope * _of_step(g[0], dh, rows, b))
        dh = _onto(dh, _times(ds[-1], w_hh))
    d = _join(ds[::-1], steps)
    dx, dw_ih, dw_hh, db, _ = _recorded_products(needs, x, w_ih, _join(befores, steps), d, d)
    return _wanted(needs, (dx, dh, dw_ih, dw_hh, db, db))


def _lstm_recorded(
    g: Any,
    needs: Needs,
    x: Any,
    h0: Any,
    c0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    w_hr: Any,
    batch_sizes: tuple[int, ...],
    reverse: bool,
) -> Grads:
    steps = _steps(batch_sizes, reverse)
    inputs, across, h, c = _inputs(x, w_ih, _sum_of(b_ih, b_hh)), _flipped(w_hh), h0, c0
    kept, befores = [], []
    for rows, b in steps:
        before, c_before = _rows(h, slice(0, b)), _rows(c, slice(0, b))
        total = _rows(inputs, rows) + _times(before, across)
        i, f, o = (call(activation.sigmoid, _part(total, k, 4)) for k in (0, 1, 3))
        n = call(activation.tanh, _part(total, 2, 4))
        new_c = f * c_before + i * n
        t = call(activation.tanh, new_c)
        m = o * t
        new = m if w_hr is None else _times(m, _flipped(w_hr))
        kept.append((i, f, n, o, t, m, c_before))
        befores.append(before)
        h, c = _onto(h, new), _onto(c, new_c)
    dh, dc, ds, dhs = _last_grad(g[1], h0), _last_grad(g[2], c0), [], []
    for (rows, b), (i, f, n, o, t, _, c_before) in zip(reversed(steps), reversed(kept), strict=True):
        up = _of_step(g[0], dh, rows, b)
        dm = up if w_hr is None else call(linalg.matmul, up, w_hr)
        dhs.append(up)
        inner = o * (1 - t * t) * dm + _rows(dc, slice(0, b))
        parts = (
            inner * n * i * (1 - i),
            inner * c_before * f * (1 - f),
            inner * i * (1 - n * n),
            t * o * (1 - o) * dm,
        )
        ds.append(call(shape.concatenate, *parts, axis=1))
        dh, dc = _onto(dh, _times(ds[-1], w_hh)), _onto(dc, inner * f)
    d = _join(ds[::-1], steps)
    dx, dw_ih, dw_hh, db, _ = _recorded_products(needs, x, w_ih, _join(befores, steps), d, d)
    dw_hr = None
    if w_hr is not None:
        m = _join([k[5] for k in kept], steps)
        dw_hr = _times(_flipped(_join(dhs[::-1], steps)), m)
    return _wanted(needs, (dx, dh, dc, dw_ih, dw_hh, db, db, dw_hr))


def _gru_recorded(
    g: Any,
    needs: Needs,
    x: Any,
    h0: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any,
    b_hh: Any,
    batch_sizes: tuple[int, ...],
    reverse: bool,
) -> Grads:
    steps = _steps(batch_sizes, reverse)
    inputs, across, h = _inputs(x, w_ih, b_ih), _flipped(w_hh), h0
    kept, befores = [], []
    for rows, b in steps:
        before, of_input = _rows(h, slice(0, b)), _rows(inputs, rows)
        product = _times(before, across)
        if b_hh is not None:
            product = product + b_hh
        r, z = (call(activation.sigmoid, _part(of_input, k, 3) + _part(product, k, 3)) for k in (0, 1))
        p = _part(product, 2, 3)
        n = call(activation.tanh, _part(of_input, 2, 3) + r * p)
        kept.append((r, z, n, p, before))
        befores.append(before)
        h = _onto(h, n + z * (before - n))
    dh, ds, recurrent = _last_grad(g[1], h0), [], []
    for (rows, b), (r, z, n, p, before) in zip(reversed(steps), reversed(kept), strict=True):
        up = _of_step(g[0], dh, rows, b)
        dn = (1 - z) * (1 - n * n) * up
        dr, dz = dn * p * r * (1 - r), (before - n) * z * (1 - z) * up
        ds.append(call(shape.concatenate, dr, dz, dn, axis=1))
        recurrent.append(call(shape.concatenate, dr, dz, dn * r, axis=1))
        dh = _onto(dh, z * up + _times(recurrent[-1], w_hh))
    d, d_recurrent = _join(ds[::-1], steps), _join(recurrent[::-1], steps)
    products = _recorded_products(needs, x, w_ih, _join(befores, steps), d, d_recurrent)
    dx, dw_ih, dw_hh, db_ih, db_hh = products
    return _wanted(needs, (dx, dh, dw_ih, dw_hh, db_ih, db_hh))
