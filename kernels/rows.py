"""Reductions of the rows of a matrix, and of a whole array, in an order that depends on the shape alone."""

from __future__ import annotations

from disttrain.kernels import cuda
from disttrain.kernels.arrays import Array, on_gpu


def row_sums(x: Array) -> Array:
    """Return the sum of each row of ``x`` (M, K), of its type; accumulated in float32, or float64 for float64."""
    return _row_sums_cuda(x) if on_gpu(x) else row_sums_reference(x)


def row_sums_reference(x: Array) -> Array:
    """What :func:`row_sums` must equal up to rounding."""
    return x.sum(1, dtype=cuda.wide(x.dtype)).astype(x.dtype, copy=False)


def row_largest(x: Array) -> Array:
    """Return the largest element of each row of ``x`` (M, K > 0); NaN if there is one."""
    return _row_largest_cuda(x) if on_gpu(x) else row_largest_reference(x)


def row_largest_reference(x: Array) -> Array:
    """What :func:`row_largest` must equal."""
    return x.max(1)


def total(x: Array) -> Array:
    """Return the sum of a flat array, (1,) of its type."""
    return _total_cuda(x) if on_gpu(x) else total_reference(x)


def total_reference(x: Array) -> Array:
    """What :func:`total` must equal up to rounding."""
    return row_sums_reference(x.reshape(1, -1))


_LONG_ROW = 1024  # from here on a row has 256 threads, else 32
_PART = 16384  # elements of a whole array that are added up by themselves
_program = cuda.Program(__file__, T=cuda.FLOATS, BLOCK=(32, 256), VECTOR=(0, 1))


def _launch(kernel: str, x: Array, out: Array | None, wide: Array | None) -> None:
    M, K = x.shape
    block = 256 if K >= _LONG_ROW else 32
    grid, shape = (cuda.blocks(M, 256 // block),), (block, 256 // block)
    T, vector = cuda.c_type(x.dtype), cuda.vector(K, x)
    _program.launch(kernel, grid, shape, x, out, wide, M, K, T=T, BLOCK=block, VECTOR=vector)


def _row_sums_cuda(x: Array) -> Array:
    out = cuda.empty(len(x), x.dtype)
    _launch("sums", x, out, None)
    return out


def _row_largest_cuda(x: Array) -> Array:
    out = cuda.empty(len(x), x.dtype)
    _launch("largest", x, out, None)
    return out


def _total_cuda(x: Array) -> Array:
    whole = x.size // _PART
    parts = cuda.empty(whole + 1, cuda.wide(x.dtype))
    _launch("sums", x[: whole * _PART].reshape(whole, _PART), None, parts[:whole])
    _launch("sums", x[whole * _PART :].reshape(1, -1), None, parts[whole:])
    return _row_sums_cuda(parts.reshape(1, -1)).astype(x.dtype, copy=False)
