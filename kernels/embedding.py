"""Rows taken from a table, and the gradient of the table."""

import numpy

from disttrain.kernels import buffers, cuda
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import jit
from disttrain.kernels.simd import LANES, load, pointer, store


def take_rows(table: Array, indices: Array) -> Array:
    """Return row ``indices[i]`` of ``table`` (rows, D) for each ``i``, as (M, D).

    Args:
        table: of any type here, of floating point numbers on a GPU.
        indices: M int64, each in [0, rows).
    """
    if get_array_module(table) is not numpy:
        return _take_rows_cuda(table, indices)
    return take_rows_reference(table, indices)


def take_rows_reference(table: Array, indices: Array) -> Array:
    """What :func:`take_rows` must equal."""
    return table[indices]


def fill_rows(table: Array, indices: Array, out: Array) -> bool:
    """Write row ``indices[i]`` of a table in memory of the CPU to row i of ``out``, and check the indices beside it.

    Args:
        table: (rows, D).
        indices: integers, of any shape.
        out: (..., D), C-contiguous, of the type of ``table``.

    Returns:
        Whether that is done: not if an index is not in [0, rows), or for other arrays than contiguous float32
        and signed integers.
    """
    if table.dtype != numpy.float32 or not table.flags.c_contiguous or indices.dtype.kind != "i":
        return False
    return bool(_fill_rows(table, buffers.contiguous(indices).reshape(-1), out.reshape(-1)))


@jit
def _fill_rows(table, indices, out):  # type: ignore[no-untyped-def]
    rows, D = table.shape
    whole = D // LANES * LANES
    for i in range(indices.size):
        at = indices[i]
        if at < 0 or at >= rows:
            return False
        of, to = pointer(table, at * D), pointer(out, i * D)
        for k in range(0, whole, LANES):
            store(to, k, load(of, k))
        for k in range(whole, D):
            out[i * D + k] = table[at, k]
    return True


def add_rows(g: Array, indices: Array, rows: int, skip: int) -> Array:
    """Return (rows, D) zeros to which row ``g[i]`` is added at ``indices[i]``, in the order of ``i``.

    Args:
        g: (M, D), float32 or float64.
        indices: M int64, each in [0, rows).
        rows: number of rows of the table.
        skip: an index whose rows are not added; -1 for none.
    """
    if get_array_module(g) is not numpy:
        return _add_rows_cuda(g, indices, rows, skip)
    out = buffers.zeros((rows, g.shape[1]), g.dtype)
    _add_rows(buffers.contiguous(g), buffers.contiguous(indices), skip, out)
    return out


def add_rows_reference(g: Array, indices: Array, rows: int, skip: int) -> Array:
    """What :func:`add_rows` must equal."""
    xp = get_array_module(g)
    out = xp.zeros((rows, g.shape[1]), g.dtype)
    kept = indices != skip
    xp.add.at(out, indices[kept], g[kept])
    return out


@jit
def _add_rows(g, indices, skip, out):  # type: ignore[no-untyped-def]
    for i in range(indices.size):
        at = indices[i]
        if at != skip:
            for k in range(g.shape[1]):
                out[at, k] += g[i, k]


_program = cuda.Program(__file__, T=cuda.FLOATS, VECTOR=(0, 1))


def _take_rows_cuda(table: Array, indices: Array) -> Array:
    D = table.shape[1]
    out = cuda.empty((indices.size, D), table.dtype)
    T, vector = cuda.c_type(table.dtype), cuda.vector(D, table)
    _program.launch("take_rows", (indices.size,), (256,), table, indices, out, D, T=T, VECTOR=vector)
    return out


def _add_rows_cuda(g: Array, indices: Array, rows: int, skip: int) -> Array:
    """Sort the indices, with equal ones in their order; then each row of the table has one adder, so no two meet."""
    xp = get_array_module(g)
    g, indices = xp.ascontiguousarray(g), xp.ascontiguousarray(indices)
    M, D = g.shape
    order = xp.argsort(indices, kind="stable")
    out = cuda.empty((rows, D), g.dtype)
    out.fill(0)
    args = (g, indices[order], order, out, skip, M, D)
    T, vector = cuda.c_type(g.dtype), cuda.vector(D, g, out)
    _program.launch("add_rows", (M,), (256,), *args, T=T, VECTOR=vector)
    return out
