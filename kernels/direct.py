"""Convolution of float32 images with filters of any size: im2col, product and back in one compiled call.

A block of output pixels at a time, what they see is gathered as the rows of a matrix, which is multiplied while it is
in cache. Sizes as in :mod:`~disttrain.kernels.conv`: images are contiguous (N, H, W, C), each of the groups has c of
the C channels and o of the O outputs, a filter has T taps, and K = T * c. Filters and their gradients lie in panels of
16 outputs, in multiples of which the inner product works.
"""

import numpy

from disttrain.kernels import buffers
from disttrain.kernels.arrays import Array
from disttrain.kernels.jit import helper, jit
from disttrain.kernels.simd import (
    LANES,
    TILE_ROWS,
    broadcast,
    load,
    multiply_tile,
    pointer,
    shift,
    store,
    transpose,
)
from disttrain.kernels.threads import spread

_BLOCK_BYTES = 256 * 1024
"""Of what a block of pixels sees."""
_MIN_PIXELS = 128
"""A block has at least so many pixels, even if it is larger then: each block reads all filters again."""
_CHUNK = 256
"""Terms that are summed at a time: long sums lose digits."""


def convolve(x: Array, w: Array, out: Array, window: tuple[int, ...], groups: int) -> None:
    """Write the cross-correlation of ``x`` (N, H, W, C) with ``w`` (O, c, KH, KW) into ``out`` (N, OH, OW, O).

    ``window`` is (KH, KW, vertical and horizontal stride, padding, dilation).
    """
    together = _together(groups, len(w) // groups)
    w, groups = _merge(w, groups, together), groups // together

    def images(first: int, last: int) -> None:
        part = out[first:last]
        filters = buffers.zeros(_panels(len(w), groups) * w[0].size * LANES, numpy.float32)
        _convolve(x[first:last], w, part, window, groups, *_columns(part, w[0].size), filters)

    spread(images, len(x), out[0].size * w[0].size)


def input_grad(g: Array, w: Array, gx: Array, window: tuple[int, ...], groups: int) -> None:
    """Add the gradient of the images to ``gx`` (N, H, W, C), given that of the output (N, OH, OW, O)."""
    together = _together(groups, len(w) // groups)
    w, groups = _merge(w, groups, together), groups // together

    def images(first: int, last: int) -> None:
        part = g[first:last]
        block, columns, stride = _columns(part, w[0].size)
        filters = buffers.zeros(len(w) * stride + len(w) // groups * TILE_ROWS, numpy.float32)
        _input_grad(part, w, gx[first:last], window, groups, block, columns, stride, filters)

    spread(images, len(g), g[0].size * w[0].size)


def weight_grad(g: Array, x: Array, window: tuple[int, ...], groups: int) -> Array:
    """Return the gradient of the filters (O, c, KH, KW), given that of the output (N, OH, OW, O) and the images."""
    together = _together(groups, g.shape[3] // groups)
    merged = groups // together
    gw = buffers.empty((g.shape[3], x.shape[3] // merged, *window[:2]), numpy.float32)

    def panels(first: int, last: int) -> None:
        to, part = gw[first * LANES : last * LANES], g
        if len(to) < len(gw):
            part = buffers.contiguous(g[..., first * LANES : last * LANES])
        _sum(part, x, to, window, merged)

    if merged == 1:
        spread(panels, -(-len(gw) // LANES), LANES * gw[0].size * g[..., 0].size)
    else:  # the outputs of a group see only its channels
        _sum(g, x, gw, window, merged)
    if together == 1:
        return gw
    parts = gw.reshape(merged, together, len(gw) // groups, together, -1, *window[:2])
    return numpy.stack([parts[:, i, :, i] for i in range(together)], 1).reshape(len(gw), -1, *window[:2])


def _sum(g: Array, x: Array, gw: Array, window: tuple[int, ...], groups: int) -> None:
    """Write the gradient of filters."""
    block, columns, stride = _columns(g, gw[0].size)
    sums = buffers.zeros(_panels(len(gw), groups) * stride * LANES, numpy.float32)
    given = buffers.zeros(block * LANES, numpy.float32)
    _weight_grad(g, x, gw, window, groups, block, columns, stride, sums, given)


def _panels(outputs: int, groups: int) -> int:
    """Return how many panels of 16 outputs there are: each group has its own."""
    return groups * -(-(outputs // groups) // LANES)


def _together(groups: int, o: int) -> int:
    """Return how many groups of ``o`` outputs to treat as one, so that they fill a panel."""
    return max(n for n in range(1, max(1, LANES // o) + 1) if groups % n == 0)


def _merge(w: Array, groups: int, together: int) -> Array:
    """Return filters of fewer, larger groups that do the same: with zeros for the channels of other groups."""
    if together == 1:
        return buffers.contiguous(w)
    O, c, KH, KW = w.shape  # noqa: E741
    parts = w.reshape(groups // together, together, O // groups, c, KH, KW)
    out = buffers.zeros((*parts.shape[:3], together, c, KH, KW), w.dtype)
    for i in range(together):
        out[:, i, :, i] = parts[:, i]
    return out.reshape(O, together * c, KH, KW)


def _columns(out: Array, K: int) -> tuple[int, Array, int]:
    """Return how many pixels of ``out`` are a block, and memory for what they see with the distance of its rows."""
    stride = -(-K // LANES) * LANES
    pixels = out.size // out.shape[3]
    block = min(pixels, max(_MIN_PIXELS, _BLOCK_BYTES // (4 * stride)))
    block = -(-block // TILE_ROWS) * TILE_ROWS
    return (
        block,
        buffers.empty(block * stride + LANES, numpy.float32),
        stride,
    )  # a vector may stick out at the end


@helper
def _next(n, row, col, OH, OW):  # type: ignore[no-untyped-def]
    """Return the pixel after this one, without a division."""
    col += 1
    if col == OW:
        col, row = 0, row + 1
        if row == OH:
            row, n = 0, n + 1
    return n, row, col


@helper
def _copy(to, i, of, at, size, limit):  # type: ignore[no-untyped-def]
    """Copy ``size`` elements, and what follows them in the last vector: whatever comes there is written later."""
    if at + size + LANES <= limit:
        for t in range(0, size, LANES):
            store(to, i + t, load(of, at + t))
    else:
        for t in range(size):
            to[i + t] = of[at + t]


@helper
def _clear(to, i, size):  # type: ignore[no-untyped-def]
    for t in range(0, size, LANES):
        store(to, i + t, broadcast(numpy.float32(0)))


@helper
def _add(to, i, of, at, size):  # type: ignore[no-untyped-def]
    whole = size // LANES * LANES
    for t in range(0, whole, LANES):
        store(to, i + t, load(to, i + t) + load(of, at + t))
    for t in range(whole, size):
        to[i + t] += of[at + t]


@helper
def _gather(x, size, window, start, count, OH, OW, first, c, cols, stride):  # type: ignore[no-untyped-def]
    """Write what each of ``count`` pixels from ``start`` on sees of ``c`` channels as a row of ``cols``."""
    KH, KW, sh, sw, ph, pw, dh, dw = window
    N, H, W, C = size
    whole = dw == 1 and c == C  # a row of the window is one stretch of memory
    n, oh, ow = start // OW // OH, start // OW % OH, start % OW
    for t in range(count):
        to = t * stride
        for i in range(KH):
            ih, iw = oh * sh - ph + i * dh, ow * sw - pw
            at = ((n * H + ih) * W + iw) * C + first
            if ih < 0 or ih >= H:
                _clear(cols, to, KW * c)
                to += KW * c
            elif whole and iw >= 0 and iw + KW <= W:
                _copy(cols, to, x, at, KW * c, N * H * W * C)
                to += KW * c
            else:
                for j in range(KW):
                    if iw + j * dw >= 0 and iw + j * dw < W:
                        _copy(cols, to, x, at + j * dw * C, c, N * H * W * C)
                    else:
                        _clear(cols, to, c)
                    to += c
        n, oh, ow = _next(n, oh, ow, OH, OW)


@helper
def _scatter(cols, stride, gx, size, window, start, count, OH, OW, first, c):  # type: ignore[no-untyped-def]
    """Add rows of ``cols`` where :func:`_gather` would have taken them from."""
    KH, KW, sh, sw, ph, pw, dh, dw = window
    _, H, W, C = size
    whole = dw == 1 and c == C
    n, oh, ow = start // OW // OH, start // OW % OH, start % OW
    for t in range(count):
        part = t * stride
        for i in range(KH):
            ih, iw = oh * sh - ph + i * dh, ow * sw - pw
            at = ((n * H + ih) * W + iw) * C + first
            if ih < 0 or ih >= H:
                part += KW * c
            elif whole and iw >= 0 and iw + KW <= W:
                _add(gx, at, cols, part, KW * c)
                part += KW * c
            else:
                for j in range(KW):
                    if iw + j * dw >= 0 and iw + j * dw < W:
                        _add(gx, at + j * dw * C, cols, part, c)
                    part += c
        n, oh, ow = _next(n, oh, ow, OH, OW)


@helper
def _turn(w, line, K, T, c, panel, width, back, square):  # type: ignore[no-untyped-def]
    """Write filters of 16 outputs as a panel (T, c, 16), or (``back``) a panel as filters.

    Args:
        w: filters (O, c, T).
        line: where the first of them begins.
        K: T * c.
        T: taps.
        c: channels.
        panel: the panel, whose lanes of no output are left as they are.
        width: outputs, at most 16.
        back: see above.
        square: room for 16 x 16 elements.
    """
    whole = K // LANES * LANES if width == LANES else 0
    tap = k = 0
    for row in range(0, whole, LANES):
        if not back:
            transpose(shift(w, line + row), K, square, LANES)
        for i in range(LANES):
            at = (tap * c + k) * LANES
            if back:
                store(square, i * LANES, load(panel, at))
            else:
                store(panel, at, load(square, i * LANES))
            tap += 1
            if tap == T:
                tap, k = 0, k + 1
        if back:
            transpose(square, LANES, shift(w, line + row), K)
    for row in range(whole, K):
        for lane in range(width):
            at = (tap * c + k) * LANES + lane
            if back:
                w[line + lane * K + row] = panel[at]
            else:
                panel[at] = w[line + lane * K + row]
        tap += 1
        if tap == T:
            tap, k = 0, k + 1


@jit
def _convolve(x, w, out, window, groups, block, cols, stride, filters):  # type: ignore[no-untyped-def]
    N, OH, OW, O = out.shape  # noqa: E741
    C = x.shape[3]
    c, o = C // groups, O // groups
    T = window[0] * window[1]
    K, panels = T * c, -(-o // LANES)
    square = numpy.empty(LANES * LANES, numpy.float32)
    for q in range(groups * panels):
        first, panel = q // panels * o + q % panels * LANES, pointer(filters, q * K * LANES)
        width = min(LANES, o - q % panels * LANES)
        _turn(pointer(w, 0), first * K, K, T, c, panel, width, False, pointer(square, 0))
    images, seen, edge = pointer(x, 0), pointer(cols, 0), numpy.empty(TILE_ROWS * LANES, numpy.float32)
    for start in range(0, N * OH * OW, block):
        count = min(block, N * OH * OW - start)
        for q in range(groups * panels):
            group, panel = q // panels, q % panels
            if panel == 0:
                _gather(images, x.shape, window, start, count, OH, OW, group * c, c, seen, stride)
            width = min(LANES, o - panel * LANES)
            for t in range(0, count, TILE_ROWS):
                rows, corner = min(TILE_ROWS, count - t), (start + t) * O + group * o + panel * LANES
                whole = rows == TILE_ROWS and width == LANES
                to, row = (pointer(out, corner), O) if whole else (pointer(edge, 0), LANES)
                for k in range(0, K, _CHUNK):
                    a, b = pointer(cols, t * stride + k), pointer(filters, (q * K + k) * LANES)
                    multiply_tile(a, stride, 1, b, LANES, to, row, min(_CHUNK, K - k), k > 0)
                if not whole:
                    result = pointer(out, corner)
                    for i in range(rows):
                        for lane in range(width):
                            result[i * O + lane] = edge[i * LANES + lane]


@jit
def _input_grad(g, w, gx, window, groups, block, cols, stride, filters):  # type: ignore[no-untyped-def]
    N, OH, OW, O = g.shape  # noqa: E741
    c, o = gx.shape[3] // groups, O // groups
    T = window[0] * window[1]
    K, panels = T * c, stride // LANES
    taps = w.reshape(-1)
    squares = numpy.empty(LANES * LANES, numpy.float32)
    given, made, square = pointer(w, 0), pointer(filters, 0), pointer(squares, 0)
    for line in range(O):
        group, k = line // o, line % o
        for first in range(0, c, LANES):
            at = line * K + first * T
            if c % LANES == 0 and T <= LANES and at + (LANES - 1) * T + LANES <= w.size:
                transpose(shift(given, at), T, square, LANES)  # of what comes after T taps nothing is used
                for tap in range(T):
                    to = ((group * panels + (tap * c + first) // LANES) * o + k) * LANES
                    store(made, to, load(square, tap * LANES))
                continue
            for channel in range(first, min(first + LANES, c)):
                for tap in range(T):
                    column = tap * c + channel
                    to = ((group * panels + column // LANES) * o + k) * LANES + column % LANES
                    filters[to] = taps[line * K + channel * T + tap]
    seen, result, rest = pointer(cols, 0), pointer(gx, 0), filters[O * stride :]
    grads = g.reshape(-1)
    for start in range(0, N * OH * OW, block):
        count = min(block, N * OH * OW - start)
        whole = count // TILE_ROWS * TILE_ROWS
        for group in range(groups):
            for t in range(whole, count):
                for k in range(o):
                    rest[(t - whole) * o + k] = grads[(start + t) * O + group * o + k]
            for panel in range(panels):
                for t in range(0, count, TILE_ROWS):
                    a, row = (
                        (pointer(g, (start + t) * O + group * o), O) if t < whole else (pointer(rest, 0), o)
                    )
                    to = pointer(cols, t * stride + panel * LANES)
                    for k in range(0, o, _CHUNK):
                        b = pointer(filters, ((group * panels + panel) * o + k) * LANES)
                        multiply_tile(shift(a, k), row, 1, b, LANES, to, stride, min(_CHUNK, o - k), k > 0)
            _scatter(seen, stride, result, gx.shape, window, start, count, OH, OW, group * c, c)


@jit
def _weight_grad(g, x, gw, window, groups, block, cols, stride, sums, given):  # type: ignore[no-untyped-def]
    N, OH, OW, O = g.shape  # noqa: E741
    c, o = x.shape[3] // groups, O // groups
    T = window[0] * window[1]
    K, panels = T * c, -(-o // LANES)
    images, seen, grads, line = pointer(x, 0), pointer(cols, 0), pointer(g, 0), pointer(given, 0)
    for start in range(0, N * OH * OW, block):
        count = min(block, N * OH * OW - start)
        for q in range(groups * panels):
            group, panel = q // panels, q % panels
            if panel == 0:
                _gather(images, x.shape, window, start, count, OH, OW, group * c, c, seen, stride)
            width, corner = min(LANES, o - panel * LANES), start * O + group * o + panel * LANES
            if width == LANES:
                for t in range(count):
                    store(line, t * LANES, load(grads, corner + t * O))
            else:
                for t in range(count):
                    for lane in range(width):
                        line[t * LANES + lane] = grads[corner + t * O + lane]
            for k in range(0, K, TILE_ROWS):  # the last rows may be no channels; nobody reads them
                to = pointer(sums, (q * stride + k) * LANES)
                for t in range(0, count, _CHUNK):
                    a, b = pointer(cols, t * stride + k), pointer(given, t * LANES)
                    multiply_tile(a, 1, stride, b, LANES, to, LANES, min(_CHUNK, count - t), True)
    square = numpy.empty(LANES * LANES, numpy.float32)
    for q in range(groups * panels):
        first, panel = q // panels * o + q % panels * LANES, pointer(sums, q * stride * LANES)
        width = min(LANES, o - q % panels * LANES)
        _turn(pointer(gw, 0), first * K, K, T, c, panel, width, True, pointer(square, 0))
