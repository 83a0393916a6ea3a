"""One time step of recurrent layers, after the products with the weights. Float32 or float64, C-contiguous.

B rows of one step, H hidden units. ``gates`` holds what the input and the biases give to each gate, gate after
gate along a row; ``recurrent`` what the hidden state gives. A step overwrites ``gates`` with the activated
gates, which is what its gradient needs.
"""

import numpy

from disttrain.kernels import cuda
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import jit, sigmoid, tanh


def _sigmoid(x: Array) -> Array:
    xp = get_array_module(x)
    e = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, x.dtype.type(1), e) / (1 + e)


def rnn_step(gates: Array, recurrent: Array, relu: bool, h: Array) -> None:
    """Write the new hidden state (B, H), the tanh (or the rectified sum) of both products, to ``gates`` and ``h``."""
    if get_array_module(h) is not numpy:
        return _launch("rnn_step", h, gates, recurrent, h, int(relu))
    return _rnn_step(gates, recurrent, relu, h)  # type: ignore[no-any-return]


def rnn_step_reference(gates: Array, recurrent: Array, relu: bool, h: Array) -> None:
    """What :func:`rnn_step` must equal up to rounding."""
    xp = get_array_module(h)
    total = gates + recurrent
    gates[...] = xp.maximum(total, total.dtype.type(0)) if relu else xp.tanh(total)
    h[...] = gates


@jit
def _rnn_step(gates, recurrent, relu, h):  # type: ignore[no-untyped-def]
    zero = h.dtype.type(0)
    B, H = h.shape
    for b in range(B):
        y, r, to = gates[b], recurrent[b], h[b]
        if relu:
            for j in range(H):
                v = y[j] + r[j]
                y[j] = zero if v <= 0 else v
        else:
            for j in range(H):
                y[j] = tanh(y[j] + r[j])
        for j in range(H):
            to[j] = y[j]


def rnn_step_grad(y: Array, dh: Array, relu: bool, d: Array) -> None:
    """Write to ``d`` (B, H) the gradient of the sum, given that of the hidden state ``y``, ``dh``."""
    if get_array_module(dh) is not numpy:
        return _launch("rnn_step_grad", dh, y, dh, d, int(relu))
    return _rnn_step_grad(y, dh, relu, d)  # type: ignore[no-any-return]


def rnn_step_grad_reference(y: Array, dh: Array, relu: bool, d: Array) -> None:
    """What :func:`rnn_step_grad` must equal up to rounding."""
    d[...] = dh * (y != 0) if relu else dh * (1 - y * y)


@jit
def _rnn_step_grad(y, dh, relu, d):  # type: ignore[no-untyped-def]
    zero, one = dh.dtype.type(0), dh.dtype.type(1)
    B, H = dh.shape
    for b in range(B):
        yb, gb, to = y[b], dh[b], d[b]
        if relu:
            for j in range(H):
                to[j] = gb[j] if yb[j] != 0 else zero
        else:
            for j in range(H):
                to[j] = gb[j] * (one - yb[j] * yb[j])


def lstm_step(gates: Array, recurrent: Array, c: Array, h: Array) -> None:
    """Step a cell (Hochreiter and Schmidhuber 1997, with forget gates).

    Args:
        gates: (B, 4H): input gate, forget gate, candidate, output gate; overwritten with the activated ones.
        recurrent: (B, 4H).
        c: the cell's state (B, H), overwritten with the new one.
        h: where the new hidden state (B, H) goes.
    """
    if get_array_module(h) is not numpy:
        return _launch("lstm_step", h, gates, recurrent, c, h)
    return _lstm_step(gates, recurrent, c, h)  # type: ignore[no-any-return]


def lstm_step_reference(gates: Array, recurrent: Array, c: Array, h: Array) -> None:
    """What :func:`lstm_step` must equal up to rounding."""
    xp = get_array_module(h)
    H = h.shape[1]
    total = gates + recurrent
    gates[...] = _sigmoid(total)
    gates[:, 2 * H : 3 * H] = xp.tanh(total[:, 2 * H : 3 * H])
    i, f, g, o = (gates[:, k * H : (k + 1) * H] for k in range(4))
    c[...] = f * c + i * g
    h[...] = o * xp.tanh(c)


@jit
def _lstm_step(gates, recurrent, c, h):  # type: ignore[no-untyped-def]
    B, H = h.shape
    for b in range(B):
        a, r, cb, to = gates[b], recurrent[b], c[b], h[b]
        i, f, g, o = a[:H], a[H : 2 * H], a[2 * H : 3 * H], a[3 * H :]
        gr, or_ = r[2 * H : 3 * H], r[3 * H :]
        for j in range(2 * H):
            a[j] = sigmoid(a[j] + r[j])
        for j in range(H):  # a loop from 0 over a part of the row vectorises, one from 2 * H does not
            g[j] = tanh(g[j] + gr[j])
        for j in range(H):
            o[j] = sigmoid(o[j] + or_[j])
        for j in range(H):
            cb[j] = f[j] * cb[j] + i[j] * g[j]
        for j in range(H):
            to[j] = o[j] * tanh(cb[j])


def lstm_step_grad(gates: Array, c_before: Array, dh: Array, dc: Array, d: Array) -> None:
    """Write to ``d`` (B, 4H) the gradient of the sums, and to ``dc`` that of the cell's state before the step.

    Args:
        gates: the activated gates (B, 4H).
        c_before: the cell's state before the step (B, H).
        dh: gradient of the new hidden state (B, H).
        dc: that of the new state of the cell (B, H), overwritten.
        d: where the gradient of the sums goes.
    """
    if get_array_module(dh) is not numpy:
        return _launch("lstm_step_grad", dh, gates, c_before, dh, dc, d)
    return _lstm_step_grad(gates, c_before, dh, dc, d)  # type: ignore[no-any-return]


def lstm_step_grad_reference(gates: Array, c_before: Array, dh: Array, dc: Array, d: Array) -> None:
    """What :func:`lstm_step_grad` must equal up to rounding."""
    xp = get_array_module(dh)
    H = dh.shape[1]
    i, f, g, o = (gates[:, k * H : (k + 1) * H] for k in range(4))
    t = xp.tanh(f * c_before + i * g)
    inner = dc + dh * o * (1 - t * t)
    d[:, :H] = inner * g * i * (1 - i)
    d[:, H : 2 * H] = inner * c_before * f * (1 - f)
    d[:, 2 * H : 3 * H] = inner * i * (1 - g * g)
    d[:, 3 * H :] = dh * t * o * (1 - o)
    dc[...] = inner * f


@jit
def _lstm_step_grad(gates, c_before, dh, dc, d):  # type: ignore[no-untyped-def]
    one = dh.dtype.type(1)
    B, H = dh.shape
    for b in range(B):
        a, before, gh, gc, to = gates[b], c_before[b], dh[b], dc[b], d[b]
        i, f, g, o = a[:H], a[H : 2 * H], a[2 * H : 3 * H], a[3 * H :]
        di, df, dg, do = to[:H], to[H : 2 * H], to[2 * H : 3 * H], to[3 * H :]
        for j in range(H):
            do[j] = tanh(f[j] * before[j] + i[j] * g[j])
        for j in range(H):
            gc[j] += gh[j] * o[j] * (one - do[j] * do[j])
        for j in range(H):
            do[j] = gh[j] * do[j] * o[j] * (one - o[j])
        for j in range(H):
            di[j] = gc[j] * g[j] * i[j] * (one - i[j])
        for j in range(H):
            df[j] = gc[j] * before[j] * f[j] * (one - f[j])
        for j in range(H):
            dg[j] = gc[j] * i[j] * (one - g[j] * g[j])
        for j in range(H):
            gc[j] *= f[j]


def gru_step(gates: Array, recurrent: Array, before: Array, h: Array) -> None:
    """Step a gated recurrent unit (Cho et al. 2014) whose reset gate acts on the product, as in cuDNN.

    Args:
        gates: (B, 3H): reset gate, update gate, candidate; overwritten with the activated ones.
        recurrent: (B, 3H), with its bias.
        before: the hidden state (B, H).
        h: where the new one goes.
    """
    if get_array_module(h) is not numpy:
        return _launch("gru_step", h, gates, recurrent, before, h)
    return _gru_step(gates, recurrent, before, h)  # type: ignore[no-any-return]


def gru_step_reference(gates: Array, recurrent: Array, before: Array, h: Array) -> None:
    """What :func:`gru_step` must equal up to rounding."""
    xp = get_array_module(h)
    H = h.shape[1]
    gates[:, : 2 * H] = _sigmoid(gates[:, : 2 * H] + recurrent[:, : 2 * H])
    r, z = gates[:, :H], gates[:, H : 2 * H]
    n = gates[:, 2 * H :] = xp.tanh(gates[:, 2 * H :] + r * recurrent[:, 2 * H :])
    h[...] = n + z * (before - n)


@jit
def _gru_step(gates, recurrent, before, h):  # type: ignore[no-untyped-def]
    B, H = h.shape
    for b in range(B):
        a, s = gates[b], recurrent[b]
        for j in range(2 * H):
            a[j] = sigmoid(a[j] + s[j])
        r, z, n, m = a[:H], a[H : 2 * H], a[2 * H :], s[2 * H :]
        for j in range(H):
            n[j] = tanh(n[j] + r[j] * m[j])
        hb, to = before[b], h[b]
        for j in range(H):
            to[j] = n[j] + z[j] * (hb[j] - n[j])


def gru_step_grad(
    gates: Array, product: Array, before: Array, dh: Array, d_input: Array, d_recurrent: Array
) -> None:
    """Write the gradients of what the input and what the hidden state gave, and multiply ``dh`` by the update gate.

    Args:
        gates: the activated gates (B, 3H).
        product: what the hidden state gave to the candidate (B, H).
        before: the hidden state before the step (B, H).
        dh: gradient of the new hidden state (B, H), overwritten with what goes straight to the one before.
        d_input: where the gradient of the input's part (B, 3H) goes.
        d_recurrent: where that of the hidden state's part (B, 3H) goes.
    """
    if get_array_module(dh) is not numpy:
        return _launch("gru_step_grad", dh, gates, product, before, dh, d_input, d_recurrent)
    return _gru_step_grad(gates, product, before, dh, d_input, d_recurrent)  # type: ignore[no-any-return]


def gru_step_grad_reference(
    gates: Array, product: Array, before: Array, dh: Array, d_input: Array, d_recurrent: Array
) -> None:
    """What :func:`gru_step_grad` must equal up to rounding."""
    H = dh.shape[1]
    r, z, n = (gates[:, k * H : (k + 1) * H] for k in range(3))
    dn = dh * (1 - z) * (1 - n * n)
    d_input[:, :H] = d_recurrent[:, :H] = dn * product * r * (1 - r)
    d_input[:, H : 2 * H] = d_recurrent[:, H : 2 * H] = dh * (before - n) * z * (1 - z)
    d_input[:, 2 * H :] = dn
    d_recurrent[:, 2 * H :] = dn * r
    dh *= z


@jit
def _gru_step_grad(gates, product, before, dh, d_input, d_recurrent):  # type: ignore[no-untyped-def]
    one = dh.dtype.type(1)
    B, H = dh.shape
    for b in range(B):
        a, p, hb, g, to, to_h = gates[b], product[b], before[b], dh[b], d_input[b], d_recurrent[b]
        r, z, n = a[:H], a[H : 2 * H], a[2 * H :]
        dr, dz, dn, dm = to[:H], to[H : 2 * H], to[2 * H :], to_h[2 * H :]
        for j in range(H):
            dn[j] = g[j] * (one - z[j]) * (one - n[j] * n[j])
        for j in range(H):
            dr[j] = dn[j] * p[j] * r[j] * (one - r[j])
        for j in range(H):
            dz[j] = g[j] * (hb[j] - n[j]) * z[j] * (one - z[j])
        for j in range(H):
            dm[j] = dn[j] * r[j]
        for j in range(2 * H):
            to_h[j] = to[j]
        for j in range(H):
            g[j] *= z[j]


_program = cuda.Program(__file__, T=cuda.FLOATS)


def _launch(kernel: str, hidden: Array, *args: cuda.Argument) -> None:
    """Launch over the hidden units of all rows of ``hidden`` (B, H)."""
    sizes = (hidden.size,) if kernel.startswith("rnn") else (hidden.size, hidden.shape[1])
    grid = (cuda.blocks(hidden.size, 256),)
    _program.launch(kernel, grid, (256,), *args, *sizes, T=cuda.c_type(hidden.dtype))
