"""Sparse linear maps and maxima along single axes: what pooling, padding and interpolation are made of."""

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy

from disttrain.kernels import buffers, cuda
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import jit


@dataclass(frozen=True, eq=False)
class AxisMap:
    """A sparse matrix: element ``i`` of the result is the sum of ``weight[k] * x[index[k]]`` over
    ``starts[i] <= k < starts[i + 1]``. The arrays are NumPy's."""

    starts: Array
    index: Array
    weight: Array
    size: int
    """How many elements ``x`` has."""

    @property
    def out_size(self) -> int:
        """How many elements the result has."""
        return len(self.starts) - 1

    @functools.cached_property
    def transposed(self) -> "AxisMap":
        """The transpose of the matrix."""
        order = numpy.argsort(self.index, kind="stable")
        rows = numpy.repeat(numpy.arange(self.out_size), numpy.diff(self.starts))
        counts = numpy.bincount(self.index, minlength=self.size)
        starts = numpy.concatenate([[0], numpy.cumsum(counts)])
        return AxisMap(starts, rows[order], self.weight[order], self.out_size)

    @functools.cached_property
    def is_selection(self) -> bool:
        """Whether each element of the result is one of ``x``."""
        return len(self.index) == self.out_size and bool(
            (numpy.diff(self.starts) == 1).all() and (self.weight == 1).all()
        )


def selection(index: Any, size: int) -> AxisMap:
    """Return the map whose result is ``x[index]``, for ``x`` of ``size`` elements."""
    index = numpy.asarray(index, numpy.int64)
    return AxisMap(numpy.arange(len(index) + 1), index, numpy.ones(len(index)), size)


def spans(starts: Any, stops: Any, weight: Any, size: int) -> AxisMap:
    """Return the map whose result ``i`` is ``weight[i]`` times the sum of ``x[starts[i] : stops[i]]``."""
    starts, counts = numpy.asarray(starts, numpy.int64), numpy.subtract(stops, starts)
    edges = numpy.concatenate([[0], numpy.cumsum(counts)])
    inside = numpy.arange(edges[-1]) - numpy.repeat(edges[:-1], counts)
    return AxisMap(
        edges, inside + numpy.repeat(starts, counts), numpy.repeat(numpy.asarray(weight, float), counts), size
    )


Maps = tuple[tuple[int, AxisMap], ...]
"""Axes, and the map along each."""


def map_axes(x: Array, maps: Maps) -> Array:
    """Return ``x`` after a map along each of some axes; the order of its axes in memory stays."""
    if get_array_module(x) is not numpy:
        return _map_axes_cuda(x, maps)
    order = sorted(range(x.ndim), key=lambda a: -abs(x.strides[a]))  # as the memory lies
    x = x.transpose(order)
    for axis, m in sorted(
        maps, key=lambda pair: pair[1].out_size / max(pair[1].size, 1)
    ):  # the smallest first
        x = _map_axis(x, order.index(axis), m)
    return x.transpose(sorted(range(x.ndim), key=order.__getitem__))


def _map_axis(x: Array, axis: int, m: AxisMap) -> Array:
    if m.is_selection:
        return x.take(m.index, axis)
    A, B = (int(numpy.prod(part, dtype=numpy.int64)) for part in (x.shape[:axis], x.shape[axis + 1 :]))
    out = buffers.empty((A, m.out_size, B), x.dtype)
    weight = m.weight.astype(x.dtype)
    flat = buffers.contiguous(x).reshape(A, m.size, B)
    if B == 1:
        _map_last(flat[:, :, 0], m.starts, m.index, weight, out[:, :, 0])
    else:
        _map_middle(flat, m.starts, m.index, weight, out)
    return out.reshape(*x.shape[:axis], m.out_size, *x.shape[axis + 1 :])


def map_axes_reference(x: Array, maps: Maps) -> Array:
    """What :func:`map_axes` must equal up to rounding."""
    xp = get_array_module(x)
    for axis, m in maps:
        if m.is_selection:
            x = xp.take(x, xp.asarray(m.index), axis)
            continue
        matrix = numpy.zeros((m.out_size, m.size), x.dtype)
        rows = numpy.repeat(numpy.arange(m.out_size), numpy.diff(m.starts))
        numpy.add.at(matrix, (rows, m.index), m.weight.astype(x.dtype))
        x = xp.moveaxis(xp.tensordot(xp.asarray(matrix), x, (1, axis)), 0, axis)
    return x


@jit
def _map_last(x, starts, index, weight, out):  # type: ignore[no-untyped-def]
    for a in range(x.shape[0]):
        for i in range(len(starts) - 1):
            total = weight.dtype.type(0)
            for k in range(starts[i], starts[i + 1]):
                total += weight[k] * x[a, index[k]]
            out[a, i] = total


@jit
def _map_middle(x, starts, index, weight, out):  # type: ignore[no-untyped-def]
    A, _, B = x.shape
    columns = numpy.uint64(
        B
    )  # an unsigned index: Numba's test of a signed one keeps the loop from being vectorised
    for a in range(A):
        for i in range(len(starts) - 1):
            to = out[a, i]
            first, last = starts[i], starts[i + 1]
            if first == last:
                for b in range(columns):
                    to[b] = 0
            else:
                w, row = weight[first], x[a, index[first]]
                for b in range(columns):
                    to[b] = w * row[b]
                for k in range(first + 1, last):
                    w, row = weight[k], x[a, index[k]]
                    for b in range(columns):
                        to[b] += w * row[b]


class Spans(NamedTuple):
    """Stretches of an axis: elements ``starts[i]``, ``starts[i] + step`` and so on, below ``stops[i]``."""

    starts: Array
    stops: Array
    step: int = 1


def max_spans(x: Array, spans: tuple[Spans, ...]) -> tuple[Array, Array]:
    """Return the largest element of each product of stretches of the last axes, and where it is (int64).

    The place counts over all those axes, row-major, within each image. The first of equal ones counts, and NaN
    is larger than anything. A product that holds nothing gives the lowest number, at -1.
    """
    xp = get_array_module(x)
    first, sizes, where = x.ndim - len(spans), x.shape, None
    for axis in range(x.ndim - 1, first - 1, -1):
        x, along = max_axis(x, axis, spans[axis - first])
        if where is None:
            where = along
            continue
        inner = xp.take_along_axis(where, along, axis)
        where = xp.where((along < 0) | (inner < 0), -1, inner + along * math.prod(sizes[axis + 1 :]))
    return x, where


def max_axis(x: Array, axis: int, span: Spans) -> tuple[Array, Array]:
    """Return the largest element of each stretch of one axis, and its index (int64), as :func:`max_spans`."""
    if get_array_module(x) is not numpy:
        return _max_axis_cuda(x, axis, span)
    A, B = (int(numpy.prod(part, dtype=numpy.int64)) for part in (x.shape[:axis], x.shape[axis + 1 :]))
    flat = buffers.contiguous(x).reshape(A, x.shape[axis], B)
    shape = (*x.shape[:axis], len(span.starts), *x.shape[axis + 1 :])
    out, where = (
        buffers.empty((A, len(span.starts), B), x.dtype),
        buffers.empty((A, len(span.starts), B), numpy.int64),
    )
    _max_axis(flat, span.starts, span.stops, span.step, lowest(x.dtype), out, where)
    return out.reshape(shape), where.reshape(shape)


def lowest(dtype: Any) -> Any:
    """Return the lowest number of a type."""
    dtype = numpy.dtype(dtype)
    return dtype.type(-numpy.inf) if dtype.kind == "f" else dtype.type(numpy.iinfo(dtype).min)


def max_axis_reference(x: Array, axis: int, span: Spans) -> tuple[Array, Array]:
    """What :func:`max_axis` must equal."""
    xp = get_array_module(x)
    outs, places = [], []
    for start, stop in zip(span.starts.tolist(), span.stops.tolist(), strict=True):
        seen = xp.moveaxis(x, axis, 0)[start : stop : span.step]
        if not len(seen):
            outs.append(xp.full(seen.shape[1:], lowest(x.dtype), x.dtype))
            places.append(xp.full(seen.shape[1:], -1))
            continue
        top = seen.max(0)
        last_nan = len(seen) - 1 - xp.argmax((seen != seen)[::-1], 0)
        at = xp.where(top != top, last_nan, xp.argmax(seen, 0))
        outs.append(top)
        places.append(start + at * span.step)
    return xp.stack(outs, axis), xp.stack(places, axis).astype(xp.int64)


@jit
def _max_axis(x, starts, stops, step, low, out, where):  # type: ignore[no-untyped-def]
    A, _, B = x.shape
    columns = numpy.uint64(B)
    for a in range(A):
        for i in range(len(starts)):
            best, place = out[a, i], where[a, i]
            for b in range(columns):
                best[b] = low
                place[b] = -1
            for k in range(starts[i], stops[i], step):
                row = x[a, k]
                for b in range(columns):
                    v, old, was = row[b], best[b], place[b]
                    better = (v > old) | (v != v) | (was < 0)
                    best[b] = v if better else old
                    place[b] = k if better else was


_program = cuda.Program(__file__, T=cuda.FLOATS)


@functools.lru_cache(maxsize=64)
def _on_gpu(m: AxisMap, dtype: Any, device: object) -> tuple[Array, Array, Array]:
    """Return a map's arrays on the current GPU, which ``device`` tells from others."""
    starts, index = (cuda.upload(numpy.ascontiguousarray(a, numpy.int64)) for a in (m.starts, m.index))
    return starts, index, cuda.upload(m.weight.astype(dtype))


def _map_axes_cuda(x: Array, maps: Maps) -> Array:
    xp = get_array_module(x)
    for axis, m in maps:
        if m.is_selection:
            x = xp.take(x, cuda.upload(m.index), axis)
            continue
        x = xp.ascontiguousarray(x)
        shape, B = (*x.shape[:axis], m.out_size, *x.shape[axis + 1 :]), math.prod(x.shape[axis + 1 :])
        out = cuda.empty(shape, x.dtype)
        arrays = _on_gpu(m, cuda.wide(x.dtype), cuda.device())
        args = (x, *arrays, out, m.size, m.out_size, B, out.size)
        _program.launch("map_axis", (cuda.blocks(out.size, 256),), (256,), *args, T=cuda.c_type(x.dtype))
        x = out
    return x


def _max_axis_cuda(x: Array, axis: int, span: Spans) -> tuple[Array, Array]:
    x = get_array_module(x).ascontiguousarray(x)
    shape, B = (*x.shape[:axis], len(span.starts), *x.shape[axis + 1 :]), math.prod(x.shape[axis + 1 :])
    out, where = cuda.empty(shape, x.dtype), cuda.empty(shape, numpy.int64)
    edges = (cuda.upload(numpy.ascontiguousarray(a, numpy.int64)) for a in (span.starts, span.stops))
    args = (x, *edges, out, where, span.step, x.shape[axis], len(span.starts), B, out.size)
    _program.launch("max_axis", (cuda.blocks(out.size, 256),), (256,), *args, T=cuda.c_type(x.dtype))
    return out, where
