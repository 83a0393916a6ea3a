"""The two folds over flat buffers that gradient clipping needs."""

from __future__ import annotations

import numpy

from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import jit
from disttrain.kernels.optim import common
from disttrain.kernels.optim.common import check_flat

CHUNK = 4096
"""Elements in one partial sum of :func:`sum_of_squares`. Another number gives other last bits."""
_NOWHERE = numpy.empty(0)


def sum_of_squares(x: Array) -> float:
    """Return the sum of the squares of a flat float32 or float64 array, in float64.

    Always added up in the same order (eight interleaved sums per chunk of 4096 elements, chunk after chunk),
    so that the result has the same bits whatever the number of threads or processes.
    """
    xp = get_array_module(x)
    if xp is not numpy:
        return float(sum_of_squares_reference(x))
    check_flat(x)
    return float(_sum_of_squares(x, CHUNK, _NOWHERE))


def sum_of_squares_reference(x: Array) -> Array:
    """What :func:`sum_of_squares` must equal up to rounding."""
    xp = get_array_module(x)
    return xp.square(x, dtype=xp.float64).sum()


def sums_of_squares(x: Array) -> Array:
    """Return the partial sums of :func:`sum_of_squares`, whose sum, one after the other, that is; in float64."""
    check_flat(x)
    out = numpy.empty(-(-x.size // CHUNK))
    _sum_of_squares(x, CHUNK, out)
    return out


def sums_of_squares_reference(x: Array) -> Array:
    """What :func:`sums_of_squares` must equal up to rounding."""
    edges = range(0, x.size, CHUNK)
    return numpy.array([numpy.square(x[i : i + CHUNK], dtype=numpy.float64).sum() for i in edges])


@jit
def _sum_of_squares(x, chunk, sums):  # type: ignore[no-untyped-def]
    total = 0.0
    for start in range(0, x.size, chunk):
        stop = min(start + chunk, x.size)
        a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = 0.0
        whole = stop - (stop - start) % 8
        for i in range(start, whole, 8):
            a0 += numpy.float64(x[i]) * numpy.float64(x[i])
            a1 += numpy.float64(x[i + 1]) * numpy.float64(x[i + 1])
            a2 += numpy.float64(x[i + 2]) * numpy.float64(x[i + 2])
            a3 += numpy.float64(x[i + 3]) * numpy.float64(x[i + 3])
            a4 += numpy.float64(x[i + 4]) * numpy.float64(x[i + 4])
            a5 += numpy.float64(x[i + 5]) * numpy.float64(x[i + 5])
            a6 += numpy.float64(x[i + 6]) * numpy.float64(x[i + 6])
            a7 += numpy.float64(x[i + 7]) * numpy.float64(x[i + 7])
        for i in range(whole, stop):
            a0 += numpy.float64(x[i]) * numpy.float64(x[i])
        part = ((a0 + a1) + (a2 + a3)) + ((a4 + a5) + (a6 + a7))
        total += part
        if sums.size:
            sums[start // chunk] = part
    return total


def all_finite(x: Array) -> bool:
    """Return whether a flat float32 or float64 array holds no infinity and no NaN."""
    xp = get_array_module(x)
    if xp is not numpy or x.size < common.SMALL:
        return bool(all_finite_reference(x))
    check_flat(x)
    return bool(_all_finite(x, CHUNK))


def all_finite_reference(x: Array) -> Array:
    """What :func:`all_finite` must equal."""
    return get_array_module(x).isfinite(x).all()


@jit
def _all_finite(x, chunk):  # type: ignore[no-untyped-def]
    for start in range(0, x.size, chunk):
        bad = 0
        for i in range(start, min(start + chunk, x.size)):
            bad += x[i] - x[i] != 0
        if bad:
            return False
    return True
