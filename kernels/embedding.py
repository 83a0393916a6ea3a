"""The gradient of a table of rows from which some were taken."""

import numpy

from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import jit


def add_rows(g: Array, indices: Array, rows: int, skip: int) -> Array:
    """Return (rows, D) zeros to which row ``g[i]`` is added at ``indices[i]``, in the order of ``i``.

    Args:
        g: (M, D), float32 or float64.
        indices: M int64, each in [0, rows).
        rows: number of rows of the table.
        skip: an index whose rows are not added; -1 for none.
    """
    if get_array_module(g) is not numpy:
        return add_rows_reference(g, indices, rows, skip)
    out = numpy.zeros((rows, g.shape[1]), g.dtype)
    _add_rows(numpy.ascontiguousarray(g), numpy.ascontiguousarray(indices), skip, out)
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
