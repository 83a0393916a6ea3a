"""Convolution of float32 images with one filter for each channel, where each channel lies in memory as one plane.

Images that come as (N, C, H, W) would otherwise be turned to channels-last memory and their gradients back, which takes
longer than the convolution. A plane is copied to one with its padding. There each tap of 16 neighbouring pixels is one
vector, which serves all of four rows that see it: stride 1 only, and no dilation from row to row.
"""

from __future__ import annotations

import math

import numpy

from disttrain.kernels import buffers
from disttrain.kernels.arrays import Array
from disttrain.kernels.jit import helper, jit
from disttrain.kernels.simd import (
    LANES,
    add_up,
    broadcast,
    fused,
    load,
    load_part,
    pointer,
    store,
    store_part,
)
from disttrain.kernels.threads import spread

_ROWS = 4
"""Rows that are computed at once. The kernels are written for these."""


def serves(x: Array, groups: int, outputs: int, window: tuple[int, ...]) -> bool:
    """Return whether the functions below are for images ``x`` (or gradients of outputs); ``window`` as of them."""
    KH, KW, sh, sw, ph, pw, dh, dw = window
    return (
        type(x) is numpy.ndarray
        and x.dtype == numpy.float32
        and groups == x.shape[1] == outputs
        and (sh, sw, dh) == (1, 1, 1)
        and ph < KH  # else the gradient of the images would have less than no padding
        and pw <= dw * (KW - 1)
        and x.flags.c_contiguous
        and not x.transpose(0, 2, 3, 1).flags.c_contiguous
    )


def convolve(x: Array, w: Array, bias: Array | None, window: tuple[int, ...]) -> Array:
    """Return the cross-correlation of ``x`` (N, C, H, W) with ``w`` (C, 1, KH, KW), plus ``bias``; C-contiguous.

    ``window`` is (KH, KW, vertical and horizontal stride, padding, dilation).
    """
    (N, C, H, W), (KH, KW, _, _, ph, pw, _, dw) = x.shape, window
    begin = numpy.zeros(C, numpy.float32) if bias is None else numpy.ascontiguousarray(bias)
    filters = buffers.contiguous(w).reshape(-1)
    out = buffers.empty((N, C, H + 2 * ph - KH + 1, W + 2 * pw - dw * (KW - 1)), x.dtype)

    def images(first: int, last: int) -> None:
        _correlate(x[first:last], filters, begin, out[first:last], (KH, KW, ph, pw, dw))

    spread(images, N, math.prod(out.shape[1:]) * KH * KW)
    return out


def input_grad(g: Array, w: Array, window: tuple[int, ...]) -> Array:
    """Return the gradient of the images, given that of the output, ``g`` (N, C, OH, OW): a convolution as well."""
    KH, KW, _, _, ph, pw, _, dw = window
    return convolve(g, w[:, :, ::-1, ::-1], None, (KH, KW, 1, 1, KH - 1 - ph, dw * (KW - 1) - pw, 1, dw))


def weight_grad(g: Array, x: Array, window: tuple[int, ...]) -> Array:
    """Return the gradient of the filters (C, 1, KH, KW), given that of the output (N, C, OH, OW) and the images."""
    (N, C, _, _), (KH, KW, _, _, ph, pw, _, dw) = x.shape, window
    parts = buffers.empty((N, C, 1, KH, KW), numpy.float32)  # image by image: long sums lose digits

    def images(first: int, last: int) -> None:
        _weight_grad(g[first:last], x[first:last], parts[first:last], (KH, KW, ph, pw, dw))

    spread(images, N, math.prod(g.shape[1:]) * KH * KW)
    return buffers.sum_over(parts, (0,), numpy.float32)


@helper
def _copy(plane, H, W, to, corner, row):  # type: ignore[no-untyped-def]
    """Copy a plane to rows that begin ``row`` elements apart, from ``to[corner]`` on."""
    for y in range(H):
        if W < LANES:
            store_part(to, corner + y * row, load_part(plane, y * W, W), W)
            continue
        for v in range(0, W, LANES):
            # The last vector ends with the row: a part of one takes as long as several.
            at = min(v, W - LANES)
            store(to, corner + y * row + at, load(plane, y * W + at))


@helper
def _write(to, at, s, count):  # type: ignore[no-untyped-def]
    if count < LANES:
        store_part(to, at, s, count)
    else:
        store(to, at, s)


@jit
def _correlate(x, filters, bias, out, taps):  # type: ignore[no-untyped-def]
    KH, KW, ph, pw, dw = taps
    N, C, H, W = x.shape
    OH, OW = out.shape[2:]
    row = -(-OW // LANES) * LANES + dw * (KW - 1)
    padded = numpy.zeros((-(-OH // _ROWS) * _ROWS + KH - 1) * row, numpy.float32)
    image, result = pointer(padded, 0), pointer(out, 0)
    for plane in range(N * C):
        c = plane % C
        _copy(pointer(x, plane * H * W), H, W, image, ph * row + pw, row)
        start = broadcast(bias[c])
        for y in range(0, OH, _ROWS):
            for first in range(0, OW, LANES):
                v = max(min(first, OW - LANES), 0)  # the last vector ends with the row
                s, t, u, z = start, start, start, start
                for j in range(KW):
                    at = y * row + v + j * dw
                    a, b, d = load(image, at), load(image, at + row), load(image, at + 2 * row)
                    for i in range(KH):
                        f, e = broadcast(filters[(c * KH + i) * KW + j]), load(image, at + (i + 3) * row)
                        s, t, u, z = fused(f, a, s), fused(f, b, t), fused(f, d, u), fused(f, e, z)
                        a, b, d = b, d, e
                to, rest = (plane * OH + y) * OW + v, OW
                _write(result, to, s, rest)
                if y + 1 < OH:
                    _write(result, to + OW, t, rest)
                if y + 2 < OH:
                    _write(result, to + 2 * OW, u, rest)
                if y + 3 < OH:
                    _write(result, to + 3 * OW, z, rest)


@jit
def _weight_grad(g, x, parts, taps):  # type: ignore[no-untyped-def]
    KH, KW, ph, pw, dw = taps
    N, C, H, W = x.shape
    OH, OW = g.shape[2:]
    line = -(-OW // LANES) * LANES
    row, rows = line + dw * (KW - 1), -(-OH // _ROWS) * _ROWS
    padded = numpy.zeros((rows + KH - 1) * row, numpy.float32)
    # 0 beyond the output's edge, as what is there in the image.
    grads = numpy.zeros(rows * line, numpy.float32)
    sums = numpy.empty(KH * KW * LANES, numpy.float32)
    image, of, kept, result = pointer(padded, 0), pointer(grads, 0), pointer(sums, 0), parts.reshape(-1)
    for plane in range(N * C):
        _copy(pointer(x, plane * H * W), H, W, image, ph * row + pw, row)
        _copy(pointer(g, plane * OH * OW), OH, OW, of, 0, line)
        sums[:] = 0
        for y in range(0, rows, _ROWS):
            for v in range(0, OW, LANES):
                at = y * line + v
                s, t, u, z = (
                    load(of, at),
                    load(of, at + line),
                    load(of, at + 2 * line),
                    load(of, at + 3 * line),
                )
                for j in range(KW):
                    at = y * row + v + j * dw
                    a, b, d = load(image, at), load(image, at + row), load(image, at + 2 * row)
                    for i in range(KH):
                        tap, e = (i * KW + j) * LANES, load(image, at + (i + 3) * row)
                        store(kept, tap, fused(z, e, fused(u, d, fused(t, b, fused(s, a, load(kept, tap))))))
                        a, b, d = b, d, e
        for tap in range(KH * KW):
            result[plane * KH * KW + tap] = add_up(load(kept, tap * LANES))
