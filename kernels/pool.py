"""The largest of each window of images, in channels-last memory.

Images are (N, C, H, W) in shape, of any layout; results are views of (N, OH, OW, C) memory. Floating point
arrays are float32 or float64, on a GPU float16 and bfloat16 too.
"""

import functools
import math
from collections.abc import Callable

import numpy

from disttrain.kernels import buffers, cuda
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.axes import Spans, lowest
from disttrain.kernels.conv import Sizes, Window, to_channels_last
from disttrain.kernels.jit import jit


def max_pool2d(x: Array, window: Window, out_size: Sizes) -> tuple[Array, Array]:
    """Return the largest element of each window and where it is in the image, ``row * W + column`` (int32).

    The first of equal ones counts, and NaN is larger than anything. Padding never counts.
    """
    if get_array_module(x) is not numpy:
        return _max_pool2d_cuda(x, window, out_size)
    x = to_channels_last(x)
    N, _, _, C = x.shape
    out = buffers.empty((N, *out_size, C), x.dtype)
    where = buffers.empty(out.shape, numpy.int32)
    _max_pool(x, out, where, tuple(n for pair in window for n in pair), lowest(x.dtype))
    return out.transpose(0, 3, 1, 2), where.transpose(0, 3, 1, 2)


def max_pool2d_reference(x: Array, window: Window, out_size: Sizes) -> tuple[Array, Array]:
    """What :func:`max_pool2d` must equal."""
    xp = get_array_module(x)
    N, C, H, W = x.shape
    out = xp.full((N, C, *out_size), lowest(x.dtype), x.dtype)
    where = xp.full(out.shape, -1, xp.int32)
    for inside, seen, start in _taps(window, (H, W), out_size):
        v = x[(..., *seen)]
        rows = start[0] + window.stride[0] * xp.arange(v.shape[2])
        cols = start[1] + window.stride[1] * xp.arange(v.shape[3])
        best, at = out[(..., *inside)], where[(..., *inside)]
        better = (v > best) | xp.isnan(v) | (at < 0)
        best[...] = xp.where(better, v, best)
        at[...] = xp.where(better, rows[:, None] * W + cols, at)
    return out, where


def _taps(window: Window, size: Sizes, out_size: Sizes):  # type: ignore[no-untyped-def]
    """Yield for each place in the window: the outputs that see the image there, what they see, its start."""
    (KH, KW), (sh, sw), (ph, pw), (dh, dw) = window
    for i in range(KH):
        for j in range(KW):
            ranges = []
            for k, s, p, d, n, o in (
                (i, sh, ph, dh, size[0], out_size[0]),
                (j, sw, pw, dw, size[1], out_size[1]),
            ):
                offset = k * d - p
                first = max(0, -(offset // s))
                last = min(o, (n - 1 - offset) // s + 1)
                ranges.append((first, max(first, last), first * s + offset))
            (a, b, y), (c, e, x) = ranges
            if a < b and c < e:
                seen = slice(y, y + (b - a - 1) * sh + 1, sh), slice(x, x + (e - c - 1) * sw + 1, sw)
                yield (slice(a, b), slice(c, e)), seen, (y, x)


# Unsigned indices: a signed one may be negative, and Numba's test for it keeps the loop from being vectorised.


@jit
def _max_pool(x, out, where, window, low):  # type: ignore[no-untyped-def]
    KH, KW, sh, sw, ph, pw, dh, dw = window
    _, H, W, C = x.shape
    N, OH, OW, _ = out.shape
    flat, best, place = x.reshape(-1), out.reshape(-1), where.reshape(-1)
    channels, line = numpy.uint64(C), numpy.uint64(OW * C)
    for row in range(N * OH):
        n, oh = row // OH, row % OH
        start = numpy.uint64(row * OW * C)
        for t in range(line):
            best[start + t] = low
            place[start + t] = -1
        for i in range(KH):
            ih = oh * sh - ph + i * dh
            if ih < 0 or ih >= H:
                continue
            for j in range(KW):
                for ow in range(OW):
                    iw = ow * sw - pw + j * dw
                    if iw < 0 or iw >= W:
                        continue
                    here = numpy.int32(ih * W + iw)
                    at = numpy.uint64(((n * H + ih) * W + iw) * C)
                    to = start + numpy.uint64(ow * C)
                    for c in range(channels):
                        v = flat[at + c]
                        old, was = best[to + c], place[to + c]
                        better = (v > old) | (v != v) | (was < 0)
                        best[to + c] = v if better else old
                        place[to + c] = here if better else was


def max_pool2d_input_grad(g: Array, where: Array, size: Sizes) -> Array:
    """Return ``g`` (N, C, OH, OW) added up at the places ``where`` of an image of ``size``."""
    if get_array_module(g) is not numpy:
        return _max_pool2d_input_grad_cuda(g, where, size)
    g, where = to_channels_last(g), to_channels_last(where)
    gx = buffers.zeros((g.shape[0], *size, g.shape[3]), g.dtype)
    _scatter_pixels(g, where, gx)
    return gx.transpose(0, 3, 1, 2)


def max_pool2d_input_grad_reference(g: Array, where: Array, size: Sizes) -> Array:
    """What :func:`max_pool2d_input_grad` must equal."""
    xp = get_array_module(g)
    N, C = g.shape[:2]
    gx = xp.zeros((N * C, size[0] * size[1]), g.dtype)
    at = where.reshape(N * C, -1)
    kept = at >= 0
    rows = xp.broadcast_to(xp.arange(N * C)[:, None], at.shape)
    xp.add.at(gx, (rows[kept], at[kept]), g.reshape(N * C, -1)[kept])
    return gx.reshape(N, C, *size)


@jit
def _scatter_pixels(g, where, gx):  # type: ignore[no-untyped-def]
    N, H, W, C = gx.shape
    _, OH, OW, _ = g.shape
    flat, given, place = gx.reshape(-1), g.reshape(-1), where.reshape(-1)
    t = numpy.uint64(0)
    for n in range(N):
        for _ in range(OH * OW):
            for c in range(C):
                at = place[t]
                if at >= 0:
                    flat[numpy.uint64((n * H * W + at) * C + c)] += given[t]
                t += numpy.uint64(1)


def max_spans_input_grad(g: Array, where: Array, size: Sizes, spans: tuple[Spans, ...]) -> Array:
    """Return ``g`` (N, C, ...) added up at the places ``where`` of images of ``size``, of any number of axes.

    Args:
        g: what is added.
        where: row-major places in each image; those below 0 are left out.
        size: of the images.
        spans: for each axis the stretches that the places come from: no place is outside of its stretches. So each
            pixel knows which few places to look at.
    """
    if get_array_module(g) is not numpy:
        return _max_spans_input_grad_cuda(g, where, size, spans)
    return _as_rows(max_pool2d_input_grad, g, where, size)


def max_spans_input_grad_reference(g: Array, where: Array, size: Sizes, spans: tuple[Spans, ...]) -> Array:
    """What :func:`max_spans_input_grad` must equal."""
    return _as_rows(max_pool2d_input_grad_reference, g, where, size)


def _as_rows(grad: Callable[..., Array], g: Array, where: Array, size: Sizes) -> Array:
    """Return ``grad`` of images of one row."""
    flat = (*g.shape[:2], 1, math.prod(g.shape[2:]))
    return grad(g.reshape(flat), where.reshape(flat), (1, math.prod(size))).reshape(*g.shape[:2], *size)


_program = cuda.Program(__file__, T=cuda.FLOATS, PLACE=("int", "long long"))


def _max_pool2d_cuda(x: Array, window: Window, out_size: Sizes) -> tuple[Array, Array]:
    x = to_channels_last(x)
    N, H, W, C = x.shape
    out, where = cuda.empty((N, *out_size, C), x.dtype), cuda.empty((N, *out_size, C), numpy.int32)
    args = (x, out, where, H, W, C, *out_size, *(n for pair in window for n in pair), out.size)
    grid, T = (cuda.blocks(out.size, 256),), cuda.c_type(x.dtype)
    _program.launch("max_pool", grid, (256,), *args, T=T, PLACE="int")
    return out.transpose(0, 3, 1, 2), where.transpose(0, 3, 1, 2)


def _max_pool2d_input_grad_cuda(g: Array, where: Array, size: Sizes) -> Array:
    g, where = to_channels_last(g), to_channels_last(where)
    N, OH, OW, C = g.shape
    gx = cuda.empty((N, *size, C), g.dtype)
    gx.fill(0)
    grid, T = (N * cuda.blocks(C, 32),), cuda.c_type(g.dtype)
    place = cuda.c_type(where.dtype, ("int", "long long"))
    args = (g, where, gx, size[0] * size[1], OH * OW, C)
    _program.launch("scatter_pixels", grid, (32, 8), *args, T=T, PLACE=place)
    return gx.transpose(0, 3, 1, 2)


def _max_spans_input_grad_cuda(g: Array, where: Array, size: Sizes, spans: tuple[Spans, ...]) -> Array:
    N, C, *outs = g.shape
    images, channels = (N, C) if len(size) == 2 else (N * C, 1)
    if channels == 1:
        xp = get_array_module(g)
        g, where = xp.ascontiguousarray(g), xp.ascontiguousarray(where)
    else:
        g, where = to_channels_last(g), to_channels_last(where)
    gx = cuda.empty((images, *size, channels), g.dtype)
    lead = (1,) * (3 - len(size))
    stretches = tuple((s.starts.tobytes(), s.stops.tobytes()) for s in spans)
    args = (
        g,
        where,
        _reach(size, stretches, cuda.device()),
        gx,
        *lead,
        *size,
        *lead,
        *outs,
        channels,
        gx.size,
    )
    T, place = cuda.c_type(g.dtype), cuda.c_type(where.dtype, ("int", "long long"))
    _program.launch("gather_places", (cuda.blocks(gx.size, 256),), (256,), *args, T=T, PLACE=place)
    if channels == 1:
        return gx.reshape(N, C, *size)
    return gx.transpose(0, 3, 1, 2)


@functools.lru_cache(maxsize=64)
def _reach(size: Sizes, stretches: tuple[tuple[bytes, bytes], ...], device: object) -> Array:
    """Return, on the current GPU, for each index of each of three axes the first stretch that may hold it, and the end.

    Args:
        size: of up to three axes; those that lack come first, of one index and one stretch.
        stretches: for each axis where they begin and end.
        device: what tells the GPU from others.
    """
    ends = [numpy.array([[0, 1]])] * (3 - len(size))
    for n, stretch in zip(size, stretches, strict=True):
        starts, stops = (numpy.frombuffer(e, numpy.int64)[:, None] for e in stretch)
        holds: Array = (starts <= numpy.arange(n)) & (numpy.arange(n) < stops)
        first, last = holds.argmax(0), len(holds) - holds[::-1].argmax(0)
        ends.append(numpy.stack([first, last], 1) * holds.any(0)[:, None])
    return cuda.upload(numpy.concatenate(ends))
