"""Matrix products. Half-precision products accumulate in float32."""

import math
from typing import Any

import numpy as np

from disttrain.kernels import buffers, gemm
from disttrain.kernels.arrays import on_gpu
from disttrain.kernels.columns import column_sums
from disttrain.ops import shape
from disttrain.ops.types import Array, Result, call, is_array, saved_for, writes

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]
Shape = tuple[int, ...]


def _dot(x: Array, y: Array, bias: Array | None = None, into: Array | None = None) -> Array:
    if on_gpu(x):
        if x.ndim == 1 or y.ndim == 1:
            return _dot_vectors(x, y, bias)
    elif x.itemsize == 2 and x.dtype.kind in "fV":
        wide = np.asarray(_dot(buffers.convert(x, np.float32), buffers.convert(y, np.float32)))
        out = buffers.convert(wide, x.dtype)
        return out if bias is None else out + bias
    if x.ndim == y.ndim == 2:
        return gemm.matmul(x, y, into, bias)
    if x.ndim > 2 and y.ndim == 2:  # one product of all rows: up to six times as fast as one for each matrix
        out = buffers.empty((*x.shape[:-1], y.shape[1]), x.dtype, x) if into is None else into
        rows = math.prod(x.shape[:-1])
        gemm.matmul(buffers.reshape(x, (rows, x.shape[-1])), y, out.reshape(rows, y.shape[1]), bias)
        return out
    out = gemm.batched(x, y) if x.ndim > 1 < y.ndim else shape.row_major(x @ y)
    return out if bias is None else out + bias


def _dot_vectors(x: Array, y: Array, bias: Array | None) -> Array:
    """Return the product of a vector with a vector or matrices on a GPU, as one of matrices."""
    a = x[None] if x.ndim == 1 else x
    out = _dot(a, y[:, None] if y.ndim == 1 else y)
    if y.ndim == 1:
        out = out[..., 0]
    if x.ndim == 1:
        out = out[..., 0, :] if y.ndim > 1 else out[..., 0]
    return out if bias is None else out + bias


def matmul(x: Array, y: Array) -> Result:
    """``x @ y`` with NumPy's (and PyTorch's) rules for one and for more than two dimensions."""
    with np.errstate(all="ignore"):
        return _dot(x, y), (x, y, x.shape, y.shape), matmul_vjp


@saved_for((1,), (0,), (0, 1), (0, 1))
def matmul_vjp(g: Any, needs: Needs, x: Any, y: Any, x_shape: Shape, y_shape: Shape) -> Grads:
    # As matrices: a vector on the left is a row, on the right a column.
    row, column = len(x_shape) == 1, len(y_shape) == 1
    a_shape = (1, *x_shape) if row else x_shape
    b_shape = (*y_shape, 1) if column else y_shape
    if row or column:
        full = list(g.shape)
        if row:
            full.insert(len(full) if column else len(full) - 1, 1)
        if column:
            full.append(1)
        g = call(shape.reshape, g, shape=tuple(full))
    ga = gb = None
    if needs[0]:
        ga = call(matmul, g, _swap(call(shape.reshape, y, shape=b_shape) if column else y))
        if row:
            ga = call(shape.reshape, call(shape.sum_to_shape, ga, shape=a_shape), shape=x_shape)
    if needs[1]:
        a = call(shape.reshape, x, shape=a_shape) if row else x
        if len(b_shape) == 2 and g.ndim > 2 and a.ndim == g.ndim:
            # One product over all batches, instead of one for each and then their sum.
            gb = call(matmul, _swap(_rows(a)), _rows(g))
        else:
            gb = call(matmul, _swap(a), g)
        if column:
            gb = call(shape.reshape, call(shape.sum_to_shape, gb, shape=b_shape), shape=y_shape)
    return ga, gb


def _swap(x: Any) -> Any:
    n = x.ndim
    return call(shape.transpose, x, axes=(*range(n - 2), n - 1, n - 2))


def _rows(x: Any) -> Any:
    return call(shape.reshape, x, shape=(math.prod(x.shape[:-1]), x.shape[-1]))


def linear(x: Array, weight: Array, bias: Array | None) -> Result:
    """``x @ weight.T + bias``: x ``(…, in)``, weight ``(out, in)``, bias ``(out,)`` or ``None``."""
    return _dot(x, weight.T, bias), (x, weight), linear_vjp


@writes(1)
@saved_for((1,), (0,))
def linear_vjp(g: Any, needs: Needs, x: Any, weight: Any, into: Array | None = None) -> Grads:
    gx = gw = None
    if g.ndim == 1:
        if needs[0]:
            gx = call(matmul, g, weight)
        return gx, g[:, None] * x if needs[1] else None, g if needs[2] else None
    if not is_array(g):
        if needs[0]:
            gx = call(matmul, g, weight)
        if needs[1]:
            gw = call(matmul, _swap(_rows(g)), _rows(x))
        return gx, gw, g if needs[2] else None
    if needs[0]:
        gx = _dot(g, weight)
    rows = g if g.ndim == 2 else _rows(g)
    if needs[1]:
        of = x if x.ndim == 2 else _rows(x)
        if needs[2] and on_gpu(g):
            return gx, *gemm.weight_grad(rows, of, into)
        gw = _dot(rows.T, of, into=into)
    return gx, gw, column_sums(rows) if needs[2] else None
