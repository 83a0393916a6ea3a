"""Products of matrices: on a GPU by cuBLASLt, on the CPU float32 by a kernel of our own, the rest by NumPy.

The kernel makes a tile of the result after the other (Goto and van de Geijn 2008). M rows and N columns of the result,
K terms of each sum. The right factor is packed into panels as wide as a tile, which stay in the second cache; the left
one is read where it is. Where the right one is much larger and lies column by column, as a layer's weight does, the
transposed product is made in place of it, so that the smaller factor is packed. Each element is summed in the order of
k in either case: it does not depend on how many rows and columns there are beside it, nor on how many threads share
the rows.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy

from disttrain.kernels import buffers, columns, cublaslt, cuda
from disttrain.kernels.arrays import Array, get_array_module, on_gpu
from disttrain.kernels.jit import helper, jit
from disttrain.kernels.libraries import LibraryMissing
from disttrain.kernels.simd import LANES, load, load_part, multiply, pointer, store, store_part, transpose
from disttrain.kernels.threads import spread, threads

_logger = logging.getLogger("disttrain")

_FROM = 1 << 18
"""Terms of all sums from which packing pays; smaller products are NumPy's."""
_SINGLE = numpy.dtype(numpy.float32)
_TERMS = 256
"""Most terms of a sum in one block: as much of six rows as stays in the first cache, with a panel."""
_COLUMNS = 512
"""Most columns in one block: with so many terms they stay in the second cache."""
_TURNED = 48
"""Rows of a transposed product that are made before they are turned: whole tiles, and whole squares."""

_NOTHING = numpy.empty(0, numpy.float32)
"""For no bias: of the same type as one, so that the kernel is compiled once."""


def matmul(a: Array, b: Array, out: Array | None = None, bias: Array | None = None) -> Array:
    """Return ``a @ b + bias`` for matrices.

    Args:
        a: (M, K), float32 or float64; on a GPU float16 or bfloat16 too, summed in float32.
        b: (K, N), of the same type.
        out: where the result goes: (M, N), C-contiguous, overlapping no argument; made if ``None``.
        bias: (N,), of the same type; or ``None``.

    Raises:
        ValueError: the shapes do not fit; from NumPy.
    """
    (M, K), N = a.shape, b.shape[1]
    if out is None:
        out = buffers.empty((M, N), a.dtype, a)
    if on_gpu(a):
        return _matmul_cuda(a, b, out, bias)
    if M * N * K < _FROM or not _is_ours(a, b, out):
        get_array_module(a).matmul(a, b, out=out)
        if bias is not None:
            out += bias
        return out
    begin = _NOTHING if bias is None else buffers.contiguous(bias)
    (left, row, step), right, flat = _flat(a), _flat(b), out.reshape(-1)
    if threads() == 1:
        kernel, size = _kernel(M, N, K, right[1])
        kernel(left, row, step, *right, M, N, K, begin, flat, buffers.empty(size, numpy.float32))
        return out

    def rows(first: int, last: int) -> None:
        of, to = left[first * row :], flat[first * N : last * N]
        kernel, size = _kernel(last - first, N, K, right[1])
        memory = buffers.empty(size, numpy.float32)
        kernel(of, row, step, *right, last - first, N, K, begin, to, memory)

    spread(rows, M, N * K)
    return out


def matmul_reference(a: Array, b: Array, out: Array | None = None, bias: Array | None = None) -> Array:
    """What :func:`matmul` must equal up to rounding."""
    product = a @ b if bias is None else a @ b + bias
    if out is None:
        return product
    out[...] = product
    return out


def batched(a: Array, b: Array, out: Array | None = None) -> Array:
    """Return ``a @ b`` for matrices (..., M, K) and (..., K, N), whose leading axes are broadcast.

    On the CPU this is NumPy's product, which is as quick as any for small ones; on a GPU one of cuBLASLt for all.
    """
    if out is None:
        lead = numpy.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        out = buffers.empty((*lead, a.shape[-2], b.shape[-1]), a.dtype, a)
    return _matmul_cuda(a, b, out, None) if on_gpu(a) else numpy.matmul(a, b, out=out)


def weight_grad(g: Array, x: Array, out: Array | None = None) -> tuple[Array, Array]:
    """Return the gradients of the weight and the bias of ``x @ weight.T + bias`` on a GPU: ``g.T @ x``, ``g.sum(0)``.

    Args:
        g: (rows, outputs).
        x: (rows, inputs), of the same type.
        out: where the first goes: (outputs, inputs), C-contiguous; made if ``None``.
    """
    xp = get_array_module(g)
    if out is None:
        out = xp.empty((g.shape[1], x.shape[1]), g.dtype)
    total = xp.empty(g.shape[1], g.dtype)
    if x.size and _serves(g):
        try:
            epilogue = cublaslt.Epilogue.BGRADB
            cublaslt.multiply(g.T, x, out, epilogue=epilogue, bias=total, tf32=cublaslt.settings.tf32)
            return out, total
        except cublaslt.Unsupported as error:
            _say(f"the sums of a gradient's columns are made apart from its product: {error}")
    return _matmul_cuda(g.T, x, out, None), columns.column_sums(xp.ascontiguousarray(g))


def activated(a: Array, b: Array, bias: Array, activation: str) -> tuple[Array, Array] | None:
    """Return the activation of ``a @ b + bias``, and what its gradient needs, in one product on a GPU; or None.

    Args:
        a: (M, K), float32, float16 or bfloat16.
        b: (K, N), of the same type.
        bias: (N,), of the same type.
        activation: ``"relu"`` or ``"gelu_tanh"``; no product applies another.

    Returns:
        (M, N); for ReLU a bit for each element, for GELU its argument (M, N). None where cuBLASLt has no such product.
    """
    xp, shape = get_array_module(a), (a.shape[0], b.shape[1])
    if not _activates(a, b, activation):
        return None
    out = xp.empty(shape, a.dtype)
    aux = cublaslt.relu_bits(shape) if activation == "relu" else xp.empty(shape, a.dtype)
    epilogue = cublaslt.Epilogue.RELU_AUX_BIAS if activation == "relu" else cublaslt.Epilogue.GELU_AUX_BIAS
    bias = xp.ascontiguousarray(bias)
    done = _fused(a, b, out, epilogue, bias, aux)
    return (out, aux) if done else None


def activated_grad(g: Array, b: Array, aux: Array, activation: str) -> tuple[Array, Array] | None:
    """Return ``g @ b`` times the slope of an activation, and the sums of its columns, in one product on a GPU; or None.

    Args:
        g: (M, K), the gradient of what ``b.T`` makes of the activation's results.
        b: (K, N), of the same type.
        aux: what :func:`activated` has returned; for GELU its argument.
        activation: see there.

    Returns:
        (M, N), the gradient of the activation's argument; (N,), that of the bias in it.
    """
    xp = get_array_module(g)
    if not _activates(g, b, activation):
        return None
    out, total = xp.empty((g.shape[0], b.shape[1]), g.dtype), xp.empty(b.shape[1], g.dtype)
    epilogue = cublaslt.Epilogue.DRELU_BGRAD if activation == "relu" else cublaslt.Epilogue.DGELU_BGRAD
    return (out, total) if _fused(g, b, out, epilogue, total, aux) else None


def _activates(a: Array, b: Array, activation: str) -> bool:
    return bool(
        a.size
        and b.size
        and a.dtype != numpy.float64  # the library has no such epilogues for it
        and (activation == "relu" or (activation == "gelu_tanh" and cublaslt.fits_gelu(b.shape[1])))
        and _serves(a)
    )


def _fused(a: Array, b: Array, out: Array, epilogue: cublaslt.Epilogue, bias: Array, aux: Array) -> bool:
    """Write ``a @ b`` and what the epilogue makes of it, and return whether that was possible."""
    try:
        cublaslt.multiply(a, b, out, epilogue=epilogue, bias=bias, aux=aux, tf32=cublaslt.settings.tf32)
    except cublaslt.Unsupported as error:
        _say(f"an activation is applied apart from the product before it: {error}")
        return False
    return True


def weight_grad_reference(g: Array, x: Array) -> tuple[Array, Array]:
    """What :func:`weight_grad` must equal up to rounding."""
    return g.T @ x, g.sum(0)


def _matmul_cuda(a: Array, b: Array, out: Array, bias: Array | None) -> Array:
    fused = (
        bias is not None and out.ndim == 2 and a.dtype != numpy.float64
    )  # the library has no such epilogue for it
    if a.size and b.size and _serves(a) and out.flags.c_contiguous:
        try:
            epilogue = cublaslt.Epilogue.BIAS if fused else cublaslt.Epilogue.DEFAULT
            cublaslt.multiply(
                *(a, b, out),
                epilogue=epilogue,
                bias=get_array_module(a).ascontiguousarray(bias) if fused else None,
                tf32=cublaslt.settings.tf32,
            )
        except cublaslt.Unsupported as error:
            _say(f"a product of matrices goes through cupy.matmul: {error}")
        else:
            if bias is not None and not fused:
                out += bias
            return out
    _through_cupy(a, b, out)
    if bias is not None:
        out += bias
    return out


def _through_cupy(a: Array, b: Array, out: Array) -> None:
    """Multiply as CuPy does; half precision in float32, as its batched products of that are slow or broken (14.2)."""
    xp = get_array_module(a)
    if a.itemsize == 2 and a.dtype.kind in "fV":
        out[...] = xp.matmul(a.astype(numpy.float32), b.astype(numpy.float32)).astype(out.dtype)
    elif out.flags.c_contiguous:
        xp.matmul(a, b, out=out)
    else:
        out[...] = xp.matmul(a, b)


def _serves(x: Array) -> bool:
    """Return whether cuBLASLt can be used for arrays of this type."""
    return x.dtype.name in cublaslt.DATA_TYPES and _is_there(cuda.device())


@functools.cache
def _is_there(device: int) -> bool:
    try:
        cublaslt.handle(device)
    except (LibraryMissing, cublaslt.LtError) as error:
        _say(f"products of matrices on the GPU go through cupy.matmul, which no graph can capture: {error}")
        return False
    return True


@functools.cache
def _say(what: str) -> None:
    """Warn, once."""
    _logger.warning("%s", what)


def _is_ours(a: Array, b: Array, out: Array) -> bool:
    """Return whether the kernel below is for these arrays."""
    return (
        type(out) is numpy.ndarray
        and out.dtype == a.dtype == b.dtype == _SINGLE
        and a.shape[1] == b.shape[0]
        and out.flags.c_contiguous
    )


def _kernel(M: int, N: int, K: int, b_row: int) -> tuple[Any, int]:
    """Return the kernel for so many rows and columns, and how much memory it works in; all make the same bits."""
    if b_row == 1 and M % (4 * LANES) == 0 and 2 * M <= N and M <= _COLUMNS:
        return _product_turned, sum(_memory_turned(M, K))
    return _product, sum(_memory(N, K))


@helper
def _memory(N, K):  # type: ignore[no-untyped-def]
    """Return the elements of a padded row of the result, and of a packed block of the right factor."""
    lanes = LANES
    return -(-N // lanes) * lanes, -(-min(N, _COLUMNS) // lanes) * lanes * _length(K)


@helper
def _memory_turned(M, K):  # type: ignore[no-untyped-def]
    """Return the elements of the packed factor, and of the rows of the transposed product that are made at a time."""
    return K * M, _TURNED * M


@helper
def _length(K):  # type: ignore[no-untyped-def]
    """Return the terms of a block."""
    return -(-K // -(-K // _TERMS))


def _flat(x: Array) -> tuple[Array, int, int]:
    """Return the memory of a matrix, which is copied if its rows or columns are not side by side, and its strides."""
    if x.flags.c_contiguous:
        return x.reshape(-1), x.shape[1], 1
    if x.flags.f_contiguous:
        return x.T.reshape(-1), 1, x.shape[0]
    return buffers.contiguous(x).reshape(-1), x.shape[1], 1


@jit
def _product(a, a_row, a_step, b, b_row, b_step, M, N, K, bias, out, memory):  # type: ignore[no-untyped-def]
    terms, padded = _length(K), _memory(N, K)[0]
    begin, packed = memory[:padded], memory[padded:]
    begin[:] = 0
    if bias.size:
        begin[:N] = bias
    for j0 in range(0, N, _COLUMNS):
        columns = min(_COLUMNS, N - j0)
        for k0 in range(0, K, terms):
            length = min(terms, K - k0)
            _pack(b, k0 * b_row + j0 * b_step, b_row, b_step, length, columns, packed, 0)
            start, start_row = (out, N) if k0 else (begin, 0)
            left = k0 * a_step
            _tiles(a, left, a_row, a_step, M, packed, 0, length, columns, start, start_row, out, j0, N)


@jit
def _product_turned(  # type: ignore[no-untyped-def]
    a, a_row, a_step, b, b_row, b_step, M, N, K, bias, out, memory
):
    lanes, terms = LANES, _length(K)
    packed, turned = memory[: K * M], memory[K * M :]
    for k0 in range(0, K, terms):
        _pack(a, k0 * a_step, a_step, a_row, min(terms, K - k0), M, packed, k0 * M)
    for n0 in range(0, N, _TURNED):
        rows = min(_TURNED, N - n0)
        for n in range(rows):
            turned[n * M : (n + 1) * M] = bias[n0 + n] if bias.size else numpy.float32(0)
        for k0 in range(0, K, terms):
            length, left = min(terms, K - k0), n0 * b_step + k0 * b_row
            _tiles(b, left, b_step, b_row, rows, packed, k0 * M, length, M, turned, M, turned, 0, M)
        whole = rows // lanes * lanes
        for m in range(0, M, lanes):
            for n in range(0, whole, lanes):
                transpose(pointer(turned, n * M + m), M, pointer(out, m * N + n0 + n), N)
            for n in range(whole, rows):
                for c in range(m, m + lanes):
                    out[c * N + n0 + n] = turned[n * M + c]


@helper
def _pack(b, first, b_row, b_step, length, columns, packed, place):  # type: ignore[no-untyped-def]
    """Write panels, as wide as a tile, of ``length`` rows of the right factor to ``packed``, from ``place`` on."""
    lanes, wide = LANES, 4 * LANES
    wides = columns // wide * wide
    whole = columns // lanes * lanes
    if b_step == 1:
        # Two panels at once: more are as far apart as lines that share a set of the cache.
        for j in range(0, wides, 2 * wide):
            for k in range(length):
                of, to = pointer(b, first + k * b_row + j), pointer(packed, place + j * length + k * wide)
                for c in range(0, wide, lanes):
                    store(to, c, load(of, c))
                if j + wide < wides:
                    for c in range(0, wide, lanes):
                        store(to, wide * length + c, load(of, wide + c))
        for j in range(wides, whole, lanes):
            for k in range(length):
                of = pointer(b, first + k * b_row + j)
                store(pointer(packed, place + j * length + k * lanes), 0, load(of, 0))
    else:
        for j in range(0, whole, lanes):
            width = wide if j < wides else lanes
            to = place + (j - j % width) * length + j % width
            at = first + j * b_step
            k = 0
            while k + lanes <= length:
                transpose(pointer(b, at + k), b_step, pointer(packed, to + k * width), width)
                k += lanes
            while k < length:
                for c in range(lanes):
                    packed[to + k * width + c] = b[at + k + c * b_step]
                k += 1
    if whole < columns:
        at = first + whole * b_step
        for k in range(length):
            to = place + whole * length + k * lanes
            for c in range(columns - whole):
                packed[to + c] = b[at + k * b_row + c * b_step]
            for c in range(columns - whole, lanes):
                packed[to + c] = 0


@helper
def _tiles(  # type: ignore[no-untyped-def]
    a, first, a_row, a_step, M, packed, place, length, columns, start, start_row, out, corner, out_row
):
    """Add products of ``length`` terms, of M rows from ``a[first]`` on and packed panels, to ``start``, into ``out``.

    Both are read and written from ``corner`` on, their rows ``start_row`` and ``out_row`` apart. Rows of ``start``
    have whole vectors where they are 0 apart: it is one row, for all.
    """
    lanes, wide = LANES, 4 * LANES
    wides = columns // wide * wide
    whole = columns // lanes * lanes
    edges = numpy.empty(6 * lanes, numpy.float32)
    edge = pointer(edges, 0)
    fives = (-M) % 6  # M = 6 * sixes + 5 * fives, if it is large enough
    if 5 * fives > M:
        fives = 0
    sixes = (M - 5 * fives) // 6
    i = n = 0
    while i < M:
        rows = 6 if n < sixes else 5 if n < sixes + fives else 1
        n += 1
        left = pointer(a, first + i * a_row)
        begin, at = start_row * i + corner, out_row * i + corner
        for j in range(0, wides, wide):
            right = pointer(packed, place + j * length)
            of, to = pointer(start, begin + j), pointer(out, at + j)
            if rows == 6:
                multiply(6, 4, left, a_row, a_step, right, wide, length, of, start_row, to, out_row)
            elif rows == 5:
                multiply(5, 4, left, a_row, a_step, right, wide, length, of, start_row, to, out_row)
            else:
                multiply(1, 4, left, a_row, a_step, right, wide, length, of, start_row, to, out_row)
        for j in range(wides, columns, lanes):
            right = pointer(packed, place + j * length)
            of, of_row, to, to_row = pointer(start, begin + j), start_row, pointer(out, at + j), out_row
            if j == whole:  # the last columns, which are no whole vector
                if start_row:
                    for r in range(rows):
                        store(edge, r * lanes, load_part(of, r * start_row, columns - j))
                    of, of_row = edge, lanes
                to, to_row = edge, lanes
            if rows == 6:
                multiply(6, 1, left, a_row, a_step, right, lanes, length, of, of_row, to, to_row)
            elif rows == 5:
                multiply(5, 1, left, a_row, a_step, right, lanes, length, of, of_row, to, to_row)
            else:
                multiply(1, 1, left, a_row, a_step, right, lanes, length, of, of_row, to, to_row)
            if j == whole:
                result = pointer(out, at + j)
                for r in range(rows):
                    store_part(result, r * out_row, load(edge, r * lanes), columns - j)
        i += rows
