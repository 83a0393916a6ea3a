"""Convolution of float32 images in groups of few channels, as in MobileNet (one each) and ResNeXt (4, 8).

A vector of 16 neighbouring channels holds whole groups, of ``width`` inputs and as many outputs each. What the vector
gives to its 16 outputs is the sum of ``width`` products: lane c of the k-th has input c ^ k, which is in the group of
c because ``width`` is a power of two. So no lane computes for another group, and nothing is gathered.

Images are contiguous (N, H, W, C). Filters and their gradients lie as (KH, KW, width, C), C padded to whole vectors:
``filters[i, j, k, c]`` goes from input c ^ k to output c.
"""

import math

import numpy

from disttrain.kernels import buffers
from disttrain.kernels.arrays import Array
from disttrain.kernels.jit import helper, jit
from disttrain.kernels.simd import (
    LANES,
    broadcast,
    fused,
    load,
    load_part,
    pointer,
    shift,
    store,
    store_part,
    twist,
)
from disttrain.kernels.threads import spread

Sizes = tuple[int, ...]
_WIDTHS = (1, 2, 4, 8)


def serves(dtype: numpy.dtype, groups: int, c: int, o: int) -> bool:
    """Return whether the functions below are for groups of ``c`` channels and ``o`` outputs."""
    return dtype == numpy.float32 and groups > 1 and c == o and c in _WIDTHS


def convolve(x: Array, w: Array, bias: Array | None, out: Array, window: tuple[int, ...]) -> None:
    """Write the cross-correlation of ``x`` (N, H, W, C) with ``w`` (C, width, KH, KW), plus ``bias``, into ``out``.

    ``window`` is (KH, KW, vertical and horizontal stride, padding, dilation).
    """
    (C, width), (KH, KW, sh, sw, ph, pw, dh, dw) = w.shape[:2], window
    outputs, inputs = _pairs(C, width)
    begin = buffers.zeros(_padded(C), numpy.float32)
    if bias is not None:
        begin[:C] = bias
    rows, columns = (sh, 1, -ph, dh), (sw, 1, -pw, dw)
    _spread(x, _pack(w[outputs, inputs]), begin, out, (KH, KW, width), rows, columns)


def input_grad(g: Array, w: Array, gx: Array, window: tuple[int, ...]) -> None:
    """Write the gradient of the images to ``gx`` (N, H, W, C), given that of the output (N, OH, OW, C)."""
    (C, width), (KH, KW, sh, sw, ph, pw, dh, dw) = w.shape[:2], window
    inputs, outputs = _pairs(C, width)  # the other way round
    filters = _pack(w[outputs + inputs // width * width, inputs % width])
    rows, columns = (1, sh, ph, -dh), (1, sw, pw, -dw)
    nothing = buffers.zeros(_padded(C), numpy.float32)
    _spread(g, filters, nothing, gx, (KH, KW, width), rows, columns)


def _spread(
    x: Array, packed: Array, bias: Array, out: Array, filters: Sizes, rows: Sizes, columns: Sizes
) -> None:
    def images(first: int, last: int) -> None:
        _correlate(x[first:last], packed, bias, out[first:last], filters, rows, columns)

    spread(images, len(x), min(x[0].size, out[0].size) * math.prod(filters))


def weight_grad(g: Array, x: Array, window: tuple[int, ...], width: int) -> Array:
    """Return the gradient of the filters (C, width, KH, KW), given that of the output (N, OH, OW, C) and the images."""
    (N, _, _, C), (KH, KW, sh, sw, ph, pw, dh, dw) = x.shape, window
    # One for each image: long sums lose digits.
    parts = buffers.zeros((N, KH * KW * width * _padded(C)), numpy.float32)

    def images(first: int, last: int) -> None:
        rows, columns = (sh, 1, -ph, dh), (sw, 1, -pw, dw)
        _weight_grad(g[first:last], x[first:last], parts[first:last], (KH, KW, width), rows, columns)

    spread(images, N, g[0].size * KH * KW * width)
    sums = parts.sum(0).reshape(KH, KW, width, -1)[..., :C]
    gw = buffers.empty((C, width, KH, KW), numpy.float32)
    outputs, inputs = _pairs(C, width)
    gw[outputs, inputs] = sums.transpose(3, 2, 0, 1)
    return gw


def _padded(C: int) -> int:
    return -(-C // LANES) * LANES


def _pairs(C: int, width: int) -> tuple[Array, Array]:
    """Return, as indices of the first two axes of a weight, channel c and what goes with it in the k-th product."""
    c = numpy.arange(C)[:, None]
    return c, c % width ^ numpy.arange(width)


def _pack(filters: Array) -> Array:
    """Return filters (C, width, KH, KW) as described above, in one axis."""
    C, width, KH, KW = filters.shape
    packed = buffers.zeros((KH, KW, width, _padded(C)), numpy.float32)
    packed[..., :C] = filters.transpose(2, 3, 1, 0)
    return packed.reshape(-1)


@helper
def _range(base, step, size, limit):  # type: ignore[no-untyped-def]
    """Return from which to which m < ``size`` a pixel at ``base + m * step`` is inside an image of ``limit``."""
    begin = 0 if base >= 0 else (step - 1 - base) // step
    end = (limit - 1 - base) // step + 1 if base < limit else 0
    return min(begin, size), max(min(begin, size), min(size, end))


@helper
def _add(v, f, s):  # type: ignore[no-untyped-def]
    return fused(v[0], f, s[0]), fused(v[1], f, s[1]), fused(v[2], f, s[2]), fused(v[3], f, s[3])


@helper
def _see(v, filters, at, C, width, s):  # type: ignore[no-untyped-def]
    """Return the sums ``s`` of four pixels with what one tap adds, whose inputs are ``v``."""
    s = _add(v, load(filters, at), s)
    if width > 1:
        s = _add(twist(v, 1), load(filters, at + C), s)
    if width > 2:
        s = _add(twist(v, 2), load(filters, at + 2 * C), s)
        s = _add(twist(v, 3), load(filters, at + 3 * C), s)
    if width > 4:
        s = _add(twist(v, 4), load(filters, at + 4 * C), s)
        s = _add(twist(v, 5), load(filters, at + 5 * C), s)
        s = _add(twist(v, 6), load(filters, at + 6 * C), s)
        s = _add(twist(v, 7), load(filters, at + 7 * C), s)
    return s


@helper
def _list(n, oh, phase, pixels, size, filters, rows, columns, padded, taps):  # type: ignore[no-untyped-def]
    """List the taps that pixels ``phase``, ``phase + apart``, ... of a line have in an image of ``size``.

    Tap i of pixel o is at ``(o * step + offset + i * distance) / apart``, if that is a whole number, where ``rows`` and
    ``columns`` are each (step, apart, offset, distance): a convolution has ``apart`` 1, its gradient ``step`` 1.

    Returns:
        How many there are, and from which to which pixel all of them are inside the image. Row 0 of ``taps`` gets
        where the first pixel's are in memory, row 1 where their filters are, row 2 their columns.
    """
    KH, KW, width = filters
    step_y, apart_y, offset_y, distance_y = rows
    step, apart, offset, distance = columns
    _, H, W, C = size
    count, first, last = 0, 0, pixels
    for i in range(KH):
        y = oh * step_y + offset_y + i * distance_y
        if y % apart_y or y < 0 or y >= H * apart_y:
            continue
        for j in range(KW):
            base = phase * step + offset + j * distance
            if base % apart == 0:
                base //= apart
                taps[0, count] = ((n * H + y // apart_y) * W + base) * C
                taps[1, count] = (i * KW + j) * width * padded
                taps[2, count] = base
                begin, end = _range(base, step, pixels, W)
                first, last = max(first, begin), min(last, end)
                count += 1
    return count, first, last


@helper
def _four(of, step, count):  # type: ignore[no-untyped-def]
    return (
        load_part(of, 0, count),
        load_part(of, step, count),
        load_part(of, 2 * step, count),
        load_part(of, 3 * step, count),
    )


@jit
def _correlate(x, packed, bias, out, filters, rows, columns):  # type: ignore[no-untyped-def]
    """Write to each pixel of ``out`` the bias and what its taps see; see :func:`_list`."""
    width, (step, apart, _, _) = filters[2], columns
    W, C = x.shape[2], x.shape[3]
    N, OH, OW, _ = out.shape
    zero = broadcast(numpy.float32(0))
    image, result, weights, begin = pointer(x, 0), pointer(out, 0), pointer(packed, 0), pointer(bias, 0)
    taps = numpy.empty((3, filters[0] * filters[1]), numpy.int64)
    for line in range(N * OH):
        for phase in range(min(apart, OW)):
            pixels, m = (OW - phase + apart - 1) // apart, 0
            count, first, last = _list(
                line // OH, line % OH, phase, pixels, x.shape, filters, rows, columns, bias.size, taps
            )
            while m < pixels:
                all_inside = m >= first and m + 4 <= last
                here, to = m * step * C, shift(result, (line * OW + phase + m * apart) * C)
                for c in range(0, C, LANES):
                    start, rest = load(begin, c), C - c
                    s = (start, start, start, start)
                    if all_inside:
                        for t in range(count):
                            v = _four(shift(image, here + taps[0, t] + c), step * C, rest)
                            s = _see(v, weights, taps[1, t] + c, bias.size, width, s)
                        store_part(to, c + apart * C, s[1], rest)
                        store_part(to, c + 2 * apart * C, s[2], rest)
                        store_part(to, c + 3 * apart * C, s[3], rest)
                    else:
                        for t in range(count):
                            if taps[2, t] + m * step >= 0 and taps[2, t] + m * step < W:
                                v = (load_part(image, here + taps[0, t] + c, rest), zero, zero, zero)
                                s = _see(v, weights, taps[1, t] + c, bias.size, width, s)
                    store_part(to, c, s[0], rest)
                m += 4 if all_inside else 1


@helper
def _learn_one(u, v, sums, at):  # type: ignore[no-untyped-def]
    s = fused(u[1], v[1], fused(u[0], v[0], load(sums, at)))
    store(sums, at, fused(u[3], v[3], fused(u[2], v[2], s)))


@helper
def _learn(u, v, sums, at, C, width):  # type: ignore[no-untyped-def]
    """Add what one tap adds to the gradients of its filters: ``u`` are four outputs' gradients, ``v`` their inputs."""
    _learn_one(u, v, sums, at)
    if width > 1:
        _learn_one(u, twist(v, 1), sums, at + C)
    if width > 2:
        _learn_one(u, twist(v, 2), sums, at + 2 * C)
        _learn_one(u, twist(v, 3), sums, at + 3 * C)
    if width > 4:
        _learn_one(u, twist(v, 4), sums, at + 4 * C)
        _learn_one(u, twist(v, 5), sums, at + 5 * C)
        _learn_one(u, twist(v, 6), sums, at + 6 * C)
        _learn_one(u, twist(v, 7), sums, at + 7 * C)


@jit
def _weight_grad(g, x, parts, filters, rows, columns):  # type: ignore[no-untyped-def]
    """Add to ``parts`` (N, KH * KW * width * C) the gradients of the filters that each image gives."""
    (KH, KW, width), step = filters, columns[0]
    W, C = x.shape[2], x.shape[3]
    N, OH, OW, _ = g.shape
    padded = parts.shape[1] // (KH * KW * width)
    zero = broadcast(numpy.float32(0))
    image, grads, taps = pointer(x, 0), pointer(g, 0), numpy.empty((3, KH * KW), numpy.int64)
    for line in range(N * OH):
        n, m = line // OH, 0
        sums = pointer(parts, n * parts.shape[1])
        count, first, last = _list(n, line % OH, 0, OW, x.shape, filters, rows, columns, padded, taps)
        while m < OW:
            all_inside = m >= first and m + 4 <= last
            here, of = m * step * C, shift(grads, (line * OW + m) * C)
            for c in range(0, C, LANES):
                rest = C - c
                if all_inside:
                    u = _four(shift(of, c), C, rest)
                    for t in range(count):
                        v = _four(shift(image, here + taps[0, t] + c), step * C, rest)
                        _learn(u, v, sums, taps[1, t] + c, padded, width)
                else:
                    u = (load_part(of, c, rest), zero, zero, zero)
                    for t in range(count):
                        if taps[2, t] + m * step >= 0 and taps[2, t] + m * step < W:
                            v = (load_part(image, here + taps[0, t] + c, rest), zero, zero, zero)
                            _learn(u, v, sums, taps[1, t] + c, padded, width)
            m += 4 if all_inside else 1
