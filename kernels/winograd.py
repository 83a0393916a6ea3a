"""Convolution with 3 x 3 filters, stride 1, by the minimal algorithm F(2x2, 3x3) of Winograd.

Four neighbouring outputs of a channel take 16 multiplications for each channel that they see, not 36 (Lavin and Gray
2016, "Fast Algorithms for Convolutional Neural Networks"). With ``d`` the 4 x 4 pixels that a 2 x 2 tile of the output
sees, ``f`` a filter and ``g`` the gradient of the tile:

    output of the tile          A' [(G f G') * (B' d B)] A
    its share of f's gradient   G' [(A g A') * (B' d B)] G

where the products in brackets are element by element, and summed over channels (or over tiles): 16 matrix products.

Arrays are float32. Images are contiguous (N, H, W, C), and channels come in multiples of 16. The factors are 0, 1 and
1/2, so that the error stays near that of direct summation: its root mean square against float64 was 0.7 to 1.7 times
im2col's for 16 to 512 channels. The larger F(4x4, 3x3) would lose a digit. An infinity or NaN in the image may turn
all outputs of the tiles that see it into NaN.
"""

import numpy

from disttrain.kernels import buffers
from disttrain.kernels.arrays import Array
from disttrain.kernels.jit import helper, jit
from disttrain.kernels.simd import LANES, TILE_ROWS, broadcast, load, multiply_tile, pointer, store
from disttrain.kernels.threads import spread

_BLOCK_BYTES = 768 * 1024
"""Of tiles of the images: a block of them is transformed, and read for each 16 outputs while it is in the L2 cache."""
_MIN_TILES = 128
"""A block has at least so many tiles, even if it is larger then: every further block reads all filters again."""
_CHUNK = 128
"""Channels, or tiles, that are summed at a time: long sums lose digits."""


def convolve(
    x: Array, w: Array, bias: Array | None, padding: tuple[int, int], *, turned: bool = False
) -> Array:
    """Return the cross-correlation of images with filters as (N, H + 2 ph - 2, W + 2 pw - 2, O).

    Args:
        x: (N, H, W, C).
        w: (O, C, 3, 3); if ``turned`` (C, O, 3, 3) and turned by 180 degrees, so that the result is the gradient of
            the images of a convolution with ``w`` and a padding of (2 - ph, 2 - pw).
        bias: (O,), or ``None``.
        padding: (ph, pw) rows and columns of zeros on each side of the images.
        turned: see ``w``.
    """
    (N, H, W, C), (ph, pw) = x.shape, padding
    O = w.shape[1 if turned else 0]  # noqa: E741
    out = buffers.empty((N, H + 2 * ph - 2, W + 2 * pw - 2, O), numpy.float32)
    if bias is None:
        bias = buffers.zeros(O, numpy.float32)
    w = buffers.contiguous(w)

    def images(first: int, last: int) -> None:
        part = out[first:last]
        tiles, panels = _divide(part.shape, C)
        seen, filters = _points(1, tiles * C), _points(panels, C * LANES)
        _convolve(x[first:last], w, turned, bias, part, ph, pw, tiles, seen, filters, *_panel(tiles))

    spread(images, N, out[0].size * C * 4)
    return out


def weight_grad(g: Array, x: Array, padding: tuple[int, int]) -> Array:
    """Return the gradient (O, C, 3, 3) of filters, given that of the output (N, OH, OW, O) and the images."""
    C, O = x.shape[3], g.shape[3]  # noqa: E741
    gw = buffers.empty((O, C, 3, 3), numpy.float32)

    def outputs(first: int, last: int) -> None:
        to, part = gw[first * LANES : last * LANES], g
        if len(to) < O:
            part = buffers.contiguous(g[..., first * LANES : last * LANES])
        tiles, panels = _divide(part.shape, C)
        seen, sums = _points(1, tiles * C), _points(panels, C * LANES)
        _sum_tiles(x, part, to, *padding, tiles, seen, sums, *_panel(tiles))

    spread(outputs, O // LANES, LANES * C * 4 * g[..., 0].size)
    return gw


def _divide(size: tuple[int, ...], C: int) -> tuple[int, int]:
    """Return the tiles of a block, and for how many panels of 16 outputs there must be memory.

    Of an output of ``size`` (N, OH, OW, O) that sees C channels. Where there is a single block, all panels can use the
    same memory: each is done with before the next.
    """
    tiles = count_tiles(size)
    block = max(_MIN_TILES, _BLOCK_BYTES // (16 * 4 * C))
    if tiles > block:
        return -(-block // TILE_ROWS) * TILE_ROWS, size[3] // LANES
    return -(-tiles // TILE_ROWS) * TILE_ROWS, 1


def _points(panels: int, size: int) -> Array:
    """Return memory for ``panels`` times 16 matrices of ``size`` elements.

    A little more: matrices that are powers of two apart would push each other out of the cache.
    """
    return buffers.empty((panels, 16, size + LANES), numpy.float32)


def _panel(tiles: int) -> tuple[Array, Array]:
    """Return memory for what a panel of 16 outputs makes of the tiles of a block, and for 16 filters of 16 channels."""
    return _points(1, tiles * LANES)[0], buffers.empty(LANES * 9 * LANES, numpy.float32)


def count_tiles(size: tuple[int, ...]) -> int:
    """Return how many tiles an output of ``size`` (N, OH, OW, ...) has."""
    return size[0] * -(-size[1] // 2) * -(-size[2] // 2)


@helper
def _see(x, at, row_step, step, rows, cols):  # type: ignore[no-untyped-def]
    """Return ``B' d B`` for 16 channels as columns of 4 vectors. Bits of ``rows`` and ``cols`` say what is inside."""
    zero = broadcast(numpy.float32(0))
    if rows == 15 and cols == 15:
        a0, a1, a2, a3 = _mix4(*_load4(x, at, step))
        at += row_step
        b0, b1, b2, b3 = _mix4(*_load4(x, at, step))
        at += row_step
        c0, c1, c2, c3 = _mix4(*_load4(x, at, step))
        at += row_step
        d0, d1, d2, d3 = _mix4(*_load4(x, at, step))
    else:
        a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = zero
        if rows & 1:
            a0, a1, a2, a3 = _edge_row(x, at, step, cols)
        at += row_step
        if rows & 2:
            b0, b1, b2, b3 = _edge_row(x, at, step, cols)
        at += row_step
        if rows & 4:
            c0, c1, c2, c3 = _edge_row(x, at, step, cols)
        at += row_step
        if rows & 8:
            d0, d1, d2, d3 = _edge_row(x, at, step, cols)
    return _mix4(a0, b0, c0, d0), _mix4(a1, b1, c1, d1), _mix4(a2, b2, c2, d2), _mix4(a3, b3, c3, d3)


@helper
def _edge_row(x, at, step, cols):  # type: ignore[no-untyped-def]
    a = b = c = d = broadcast(numpy.float32(0))
    if cols & 1:
        a = load(x, at)
    if cols & 2:
        b = load(x, at + step)
    if cols & 4:
        c = load(x, at + 2 * step)
    if cols & 8:
        d = load(x, at + 3 * step)
    return _mix4(a, b, c, d)


@helper
def _mix4(a, b, c, d):  # type: ignore[no-untyped-def]
    """Return ``B'`` times a column."""
    return a - c, b + c, c - b, b - d


@helper
def _fold4(a, b, c, d):  # type: ignore[no-untyped-def]
    """Return ``A'`` times a column."""
    return a + b + c, b - c - d


@helper
def _spread2(a, b, zero):  # type: ignore[no-untyped-def]
    """Return ``A`` times a column."""
    return a, a + b, a - b, zero - b


@helper
def _spread3(a, b, c, half):  # type: ignore[no-untyped-def]
    """Return ``G`` times a column."""
    ends, middle = half * (a + c), half * b
    return a, ends + middle, ends - middle, c


@helper
def _fold3(a, b, c, d, half):  # type: ignore[no-untyped-def]
    """Return ``G'`` times a column."""
    both = half * (b + c)
    return a + both, half * (b - c), both + d


@helper
def _load4(a, at, step):  # type: ignore[no-untyped-def]
    return load(a, at), load(a, at + step), load(a, at + 2 * step), load(a, at + 3 * step)


@helper
def _load3(a, at):  # type: ignore[no-untyped-def]
    return load(a, at), load(a, at + 3 * LANES), load(a, at + 6 * LANES)


@helper
def _store3(a, at, v):  # type: ignore[no-untyped-def]
    store(a, at, v[0])
    store(a, at + LANES, v[1])
    store(a, at + 2 * LANES, v[2])


@helper
def _store4(a, at, step, v):  # type: ignore[no-untyped-def]
    store(a, at, v[0])
    store(a, at + step, v[1])
    store(a, at + 2 * step, v[2])
    store(a, at + 3 * step, v[3])


@helper
def _locate(t, TH, TW):  # type: ignore[no-untyped-def]
    """Return image, row and column of tile ``t``."""
    return t // TW // TH, t // TW % TH, t % TW


@helper
def _next(n, row, col, TH, TW):  # type: ignore[no-untyped-def]
    """Return what follows a place in the order of :func:`_locate`, without a division."""
    col += 1
    if col == TW:
        col, row = 0, row + 1
        if row == TH:
            row, n = 0, n + 1
    return n, row, col


@helper
def _see_tiles(x, H, W, C, place, count, TH, TW, ph, pw, seen, point, tile_step, channel_step):  # type: ignore[no-untyped-def]
    """Write ``B' d B`` of ``count`` tiles from ``place`` on into ``seen``, whose points are ``point`` apart."""
    n, i, j = place
    for t in range(count):
        row, col = 2 * i - ph, 2 * j - pw
        rows = cols = 0
        for k in range(4):
            rows |= (row + k >= 0 and row + k < H) << k
            cols |= (col + k >= 0 and col + k < W) << k
        at, to = ((n * H + row) * W + col) * C, t * tile_step
        for c in range(0, C, LANES):
            v0, v1, v2, v3 = _see(x, at + c, W * C, C, rows, cols)
            here = to + c * channel_step
            _store4(seen, here, 4 * point, v0)
            _store4(seen, here + point, 4 * point, v1)
            _store4(seen, here + 2 * point, 4 * point, v2)
            _store4(seen, here + 3 * point, 4 * point, v3)
        n, i, j = _next(n, i, j, TH, TW)


@jit
def _convolve(x, w, turned, bias, out, ph, pw, tiles, seen, filters, made, part):  # type: ignore[no-untyped-def]
    _, H, W, C = x.shape
    N, OH, OW, O = out.shape  # noqa: E741
    TH, TW = (OH + 1) // 2, (OW + 1) // 2
    taps, lane_step, step = w.reshape(-1), (9 if turned else C * 9), (O * 9 if turned else 9)
    left, result, images, shifts = pointer(seen, 0), pointer(out, 0), pointer(x, 0), pointer(bias, 0)
    seen_point, panel_size, point = seen.shape[2], filters[0].size, made.shape[1]
    for start in range(0, N * TH * TW, tiles):
        count = min(tiles, N * TH * TW - start)
        place = _locate(start, TH, TW)
        _see_tiles(images, H, W, C, place, count, TH, TW, ph, pw, left, seen_point, C, 1)
        for o in range(0, O, LANES):
            panel = o // LANES % len(filters) * panel_size
            if start == 0:
                _transform_filters(
                    taps, o, C, lane_step, step, turned, part, pointer(filters, panel), filters.shape[2]
                )
            for p in range(16):
                for c in range(0, C, _CHUNK):
                    b = pointer(filters, panel + p * filters.shape[2] + c * LANES)
                    for t in range(0, count, TILE_ROWS):  # the last rows may be no tiles; nobody reads them
                        a, to = (
                            pointer(seen, p * seen_point + t * C + c),
                            pointer(made, p * point + t * LANES),
                        )
                        multiply_tile(a, C, 1, b, LANES, to, LANES, min(_CHUNK, C - c), c > 0)
            n, i, j = place
            products, shift = pointer(made, 0), load(shifts, o)
            for t in range(count):
                at, m = ((n * OH + 2 * i) * OW + 2 * j) * O + o, t * LANES
                below, right = 2 * i + 1 < OH, 2 * j + 1 < OW
                a0, b0 = _fold4(*_load4(products, m, 4 * point))
                a1, b1 = _fold4(*_load4(products, m + point, 4 * point))
                a2, b2 = _fold4(*_load4(products, m + 2 * point, 4 * point))
                a3, b3 = _fold4(*_load4(products, m + 3 * point, 4 * point))
                a0, a1 = _fold4(a0, a1, a2, a3)
                b0, b1 = _fold4(b0, b1, b2, b3)
                store(result, at, a0 + shift)
                if right:
                    store(result, at + O, a1 + shift)
                if below:
                    store(result, at + OW * O, b0 + shift)
                    if right:
                        store(result, at + OW * O + O, b1 + shift)
                n, i, j = _next(n, i, j, TH, TW)


@jit
def _sum_tiles(x, g, gw, ph, pw, tiles, seen, sums, given, part):  # type: ignore[no-untyped-def]
    """Write the gradient of filters. In ``seen`` 16 channels lie side by side."""
    _, H, W, C = x.shape
    N, OH, OW, O = g.shape  # noqa: E741
    TH, TW = (OH + 1) // 2, (OW + 1) // 2
    taps = gw.reshape(-1)
    left, right, images, grads = pointer(seen, 0), pointer(given, 0), pointer(x, 0), pointer(g, 0)
    seen_point, panel_size, point = seen.shape[2], sums[0].size, given.shape[1]
    zero = broadcast(numpy.float32(0))
    for start in range(0, N * TH * TW, tiles):
        count = min(tiles, N * TH * TW - start)
        place = _locate(start, TH, TW)
        _see_tiles(images, H, W, C, place, count, TH, TW, ph, pw, left, seen_point, LANES, tiles)
        for o in range(0, O, LANES):
            n, i, j = place
            for t in range(count):
                at, to = ((n * OH + 2 * i) * OW + 2 * j) * O + o, t * LANES
                has_below, has_right = 2 * i + 1 < OH, 2 * j + 1 < OW
                a = load(grads, at)
                b = c = d = zero
                if has_right:
                    b = load(grads, at + O)
                if has_below:
                    c = load(grads, at + OW * O)
                    if has_right:
                        d = load(grads, at + OW * O + O)
                a0, a1, a2, a3 = _spread2(a, c, zero)
                b0, b1, b2, b3 = _spread2(b, d, zero)
                _store4(right, to, point, _spread2(a0, b0, zero))
                _store4(right, to + 4 * point, point, _spread2(a1, b1, zero))
                _store4(right, to + 8 * point, point, _spread2(a2, b2, zero))
                _store4(right, to + 12 * point, point, _spread2(a3, b3, zero))
                n, i, j = _next(n, i, j, TH, TW)
            panel = o // LANES % len(sums) * panel_size
            for p in range(16):
                for k in range(0, C, TILE_ROWS):
                    columns = p * seen_point + k // LANES * LANES * tiles + k % LANES
                    to = pointer(sums, panel + p * sums.shape[2] + k * LANES)
                    for t in range(0, count, _CHUNK):
                        a, b = pointer(seen, columns + t * LANES), pointer(given, p * point + t * LANES)
                        multiply_tile(a, 1, LANES, b, LANES, to, LANES, min(_CHUNK, count - t), start + t > 0)
            if start + count == N * TH * TW:
                _transform_sums(pointer(sums, panel), sums.shape[2], C, o, part, taps)


@helper
def _transform_filters(taps, o, C, lane_step, step, turned, part, out, point):  # type: ignore[no-untyped-def]
    """Write ``G f G'`` of the filters of 16 outputs from ``o`` on as (16, C, 16), whose points are ``point`` apart."""
    lines, half = pointer(part, 0), broadcast(numpy.float32(0.5))
    for first in range(0, C, LANES):
        for lane in range(LANES):
            for c in range(LANES):
                at, to = (o + lane) * lane_step + (first + c) * step, c * 9 * LANES + lane
                for tap in range(9):
                    part[to + tap * LANES] = taps[at + (8 - tap if turned else tap)]
        for c in range(LANES):
            at, to = c * 9 * LANES, (first + c) * LANES
            a0, a1, a2, a3 = _spread3(*_load3(lines, at), half)
            b0, b1, b2, b3 = _spread3(*_load3(lines, at + LANES), half)
            c0, c1, c2, c3 = _spread3(*_load3(lines, at + 2 * LANES), half)
            _store4(out, to, point, _spread3(a0, b0, c0, half))
            _store4(out, to + 4 * point, point, _spread3(a1, b1, c1, half))
            _store4(out, to + 8 * point, point, _spread3(a2, b2, c2, half))
            _store4(out, to + 12 * point, point, _spread3(a3, b3, c3, half))


@helper
def _transform_sums(given, point, C, o, part, taps):  # type: ignore[no-untyped-def]
    """Write ``G' s G`` of sums (16, C, 16), whose points are ``point`` apart, as gradients of filters from ``o`` on."""
    lines, half = pointer(part, 0), broadcast(numpy.float32(0.5))
    for first in range(0, C, LANES):
        for c in range(LANES):
            at, to = (first + c) * LANES, c * 9 * LANES
            a0, b0, c0 = _fold3(*_load4(given, at, 4 * point), half)
            a1, b1, c1 = _fold3(*_load4(given, at + point, 4 * point), half)
            a2, b2, c2 = _fold3(*_load4(given, at + 2 * point, 4 * point), half)
            a3, b3, c3 = _fold3(*_load4(given, at + 3 * point, 4 * point), half)
            _store3(lines, to, _fold3(a0, a1, a2, a3, half))
            _store3(lines, to + 3 * LANES, _fold3(b0, b1, b2, b3, half))
            _store3(lines, to + 6 * LANES, _fold3(c0, c1, c2, c3, half))
        for lane in range(LANES):
            for c in range(LANES):
                at, to = c * 9 * LANES + lane, ((o + lane) * C + first + c) * 9
                for tap in range(9):
                    taps[to + tap] = part[at + tap * LANES]
