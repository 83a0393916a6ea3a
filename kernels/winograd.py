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

from disttrain.kernels.arrays import Array
from disttrain.kernels.jit import helper, jit
from disttrain.kernels.simd import LANES, TILE_ROWS, broadcast, load, multiply_tile, store

_BLOCK_BYTES = 768 * 1024
"""Of transformed tiles, which are written and read again while they are in the L2 cache."""
_MIN_TILES = 48
"""A block has at least so many tiles, even if it is larger then: it reads the transformed filters once."""

_CHUNK = 128
"""Channels that are summed at a time."""


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
    out = numpy.empty((N, H + 2 * ph - 2, W + 2 * pw - 2, O), numpy.float32)
    filters = numpy.empty(16 * C * O, numpy.float32)
    part = numpy.empty(9 * C * LANES, numpy.float32)
    _transform_filters(numpy.ascontiguousarray(w).reshape(-1), filters, C, O, turned, part)
    if bias is None:
        bias = numpy.zeros(O, numpy.float32)
    tiles = _tiles_per_block(out.shape, C + O)
    seen = numpy.empty(16 * tiles * C, numpy.float32)
    products = numpy.empty(16 * tiles * O, numpy.float32)
    _convolve(x, filters, bias, out, ph, pw, seen, products, tiles)
    return out


def weight_grad(g: Array, x: Array, padding: tuple[int, int]) -> Array:
    """Return the gradient (O, C, 3, 3) of filters, given that of the output (N, OH, OW, O) and the images."""
    C, O = x.shape[3], g.shape[3]  # noqa: E741
    tiles = _tiles_per_block(g.shape, C + O)
    seen = numpy.empty(16 * tiles * C, numpy.float32)
    given = numpy.empty(16 * tiles * O, numpy.float32)
    sums = numpy.zeros(16 * C * O, numpy.float32)
    _sum_tiles(x, g, *padding, seen, given, tiles, sums)
    gw = numpy.empty((O, C, 3, 3), numpy.float32)
    _transform_sums(sums, gw.reshape(-1), C, O, numpy.empty(9 * C * LANES, numpy.float32))
    return gw


def count_tiles(size: tuple[int, ...]) -> int:
    """Return how many tiles an output of ``size`` (N, OH, OW, ...) has."""
    return size[0] * -(-size[1] // 2) * -(-size[2] // 2)


def _tiles_per_block(size: tuple[int, ...], channels: int) -> int:
    tiles = min(count_tiles(size), max(_MIN_TILES, _BLOCK_BYTES // (16 * 4 * channels)))
    return -(-tiles // TILE_ROWS) * TILE_ROWS


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
def _store4(a, at, step, v):  # type: ignore[no-untyped-def]
    store(a, at, v[0])
    store(a, at + step, v[1])
    store(a, at + 2 * step, v[2])
    store(a, at + 3 * step, v[3])


@helper
def _see_tiles(x, start, count, OH, OW, ph, pw, seen, tiles, tile_step, channel_step):  # type: ignore[no-untyped-def]
    """Write ``B' d B`` of ``count`` tiles into ``seen``: point by point, and for each point tiles and channels."""
    _, H, W, C = x.shape
    flat = x.reshape(-1)
    TH, TW = (OH + 1) // 2, (OW + 1) // 2
    point = tiles * C
    for t in range(count):
        line = (start + t) // TW
        row, col = line % TH * 2 - ph, (start + t) % TW * 2 - pw
        rows = cols = 0
        for i in range(4):
            rows |= (row + i >= 0 and row + i < H) << i
            cols |= (col + i >= 0 and col + i < W) << i
        at, to = ((line // TH * H + row) * W + col) * C, t * tile_step
        for c in range(0, C, LANES):
            v0, v1, v2, v3 = _see(flat, at + c, W * C, C, rows, cols)
            here = to + c * channel_step
            _store4(seen, here, 4 * point, v0)
            _store4(seen, here + point, 4 * point, v1)
            _store4(seen, here + 2 * point, 4 * point, v2)
            _store4(seen, here + 3 * point, 4 * point, v3)


@jit
def _convolve(x, filters, bias, out, ph, pw, seen, products, tiles):  # type: ignore[no-untyped-def]
    C = x.shape[3]
    N, OH, OW, O = out.shape  # noqa: E741
    flat = out.reshape(-1)
    TH, TW = (OH + 1) // 2, (OW + 1) // 2
    point = tiles * O
    for start in range(0, N * TH * TW, tiles):
        count = min(tiles, N * TH * TW - start)
        _see_tiles(x, start, count, OH, OW, ph, pw, seen, tiles, C, 1)
        for p in range(16):
            for o in range(0, O, LANES):
                panel = (p * O + o) * C
                for c in range(0, C, _CHUNK):  # long sums lose digits
                    for t in range(
                        0, count, TILE_ROWS
                    ):  # the last rows may belong to no tile: nobody reads them
                        here = p * tiles + t
                        multiply_tile(
                            seen,
                            here * C + c,
                            C,
                            1,
                            filters,
                            panel + c * LANES,
                            LANES,
                            products,
                            here * O + o,
                            O,
                            min(_CHUNK, C - c),
                            c > 0,
                        )
        for t in range(count):
            line = (start + t) // TW
            row, col = line % TH * 2, (start + t) % TW * 2
            to = ((line // TH * OH + row) * OW + col) * O
            below, right = row + 1 < OH, col + 1 < OW
            for o in range(0, O, LANES):
                m = t * O + o
                a0, b0 = _fold4(*_load4(products, m, 4 * point))
                m += point
                a1, b1 = _fold4(*_load4(products, m, 4 * point))
                m += point
                a2, b2 = _fold4(*_load4(products, m, 4 * point))
                m += point
                a3, b3 = _fold4(*_load4(products, m, 4 * point))
                shift = load(bias, o)
                a0, a1 = _fold4(a0, a1, a2, a3)
                b0, b1 = _fold4(b0, b1, b2, b3)
                store(flat, to + o, a0 + shift)
                if right:
                    store(flat, to + o + O, a1 + shift)
                if below:
                    store(flat, to + o + OW * O, b0 + shift)
                    if right:
                        store(flat, to + o + OW * O + O, b1 + shift)


@jit
def _sum_tiles(x, g, ph, pw, seen, given, tiles, sums):  # type: ignore[no-untyped-def]
    """Add the products of tiles to ``sums`` (16, C, O). In ``seen`` and ``given`` 16 channels lie side by side."""
    C = x.shape[3]
    N, OH, OW, O = g.shape  # noqa: E741
    flat = g.reshape(-1)
    TH, TW = (OH + 1) // 2, (OW + 1) // 2
    point = tiles * O
    zero = broadcast(numpy.float32(0))
    for start in range(0, N * TH * TW, tiles):
        count = min(tiles, N * TH * TW - start)
        _see_tiles(x, start, count, OH, OW, ph, pw, seen, tiles, LANES, tiles)
        for t in range(count):
            line = (start + t) // TW
            row, col = line % TH * 2, (start + t) % TW * 2
            at = ((line // TH * OH + row) * OW + col) * O
            below, right = row + 1 < OH, col + 1 < OW
            for o in range(0, O, LANES):
                a = load(flat, at + o)
                b = c = d = zero
                if right:
                    b = load(flat, at + o + O)
                if below:
                    c = load(flat, at + o + OW * O)
                    if right:
                        d = load(flat, at + o + OW * O + O)
                a0, a1, a2, a3 = _spread2(a, c, zero)
                b0, b1, b2, b3 = _spread2(b, d, zero)
                to = o * tiles + t * LANES
                _store4(given, to, point, _spread2(a0, b0, zero))
                _store4(given, to + 4 * point, point, _spread2(a1, b1, zero))
                _store4(given, to + 8 * point, point, _spread2(a2, b2, zero))
                _store4(given, to + 12 * point, point, _spread2(a3, b3, zero))
        for p in range(16):
            for c8 in range(0, C, TILE_ROWS):
                left = p * tiles * C + c8 // LANES * LANES * tiles + c8 % LANES
                for o in range(0, O, LANES):
                    multiply_tile(
                        seen,
                        left,
                        1,
                        LANES,
                        given,
                        p * point + o * tiles,
                        LANES,
                        sums,
                        (p * C + c8) * O + o,
                        O,
                        count,
                        True,
                    )


@jit
def _transform_filters(w, filters, C, O, turned, part):  # type: ignore[no-untyped-def]  # noqa: E741
    """Write ``G f G'`` of all filters as (16, O / 16, C, 16). ``part`` is (C, 9, 16)."""
    half = broadcast(numpy.float32(0.5))
    lane_step, step = (9, O * 9) if turned else (C * 9, 9)
    point = C * O
    for o in range(0, O, LANES):
        for lane in range(LANES):
            for c in range(C):
                at = (o + lane) * lane_step + c * step
                for tap in range(9):
                    part[(c * 9 + (8 - tap if turned else tap)) * LANES + lane] = w[at + tap]
        for c in range(C):
            at = c * 9 * LANES
            a0, a1, a2, a3 = _spread3(load(part, at), load(part, at + 48), load(part, at + 96), half)
            b0, b1, b2, b3 = _spread3(load(part, at + 16), load(part, at + 64), load(part, at + 112), half)
            c0, c1, c2, c3 = _spread3(load(part, at + 32), load(part, at + 80), load(part, at + 128), half)
            to = (o * C) + c * LANES
            _store4(filters, to, point, _spread3(a0, b0, c0, half))
            _store4(filters, to + 4 * point, point, _spread3(a1, b1, c1, half))
            _store4(filters, to + 8 * point, point, _spread3(a2, b2, c2, half))
            _store4(filters, to + 12 * point, point, _spread3(a3, b3, c3, half))


@jit
def _transform_sums(sums, gw, C, O, part):  # type: ignore[no-untyped-def]  # noqa: E741
    """Write ``G' s G`` of sums (16, C, O) as (O, C, 9). ``part`` is (C, 9, 16)."""
    half = broadcast(numpy.float32(0.5))
    point = C * O
    for o in range(0, O, LANES):
        for c in range(C):
            at = c * O + o
            a0, b0, c0 = _fold3(*_load4(sums, at, 4 * point), half)
            at += point
            a1, b1, c1 = _fold3(*_load4(sums, at, 4 * point), half)
            at += point
            a2, b2, c2 = _fold3(*_load4(sums, at, 4 * point), half)
            at += point
            a3, b3, c3 = _fold3(*_load4(sums, at, 4 * point), half)
            to = c * 9 * LANES
            for tap, v in enumerate(
                (*_fold3(a0, a1, a2, a3, half), *_fold3(b0, b1, b2, b3, half), *_fold3(c0, c1, c2, c3, half))
            ):
                store(part, to + tap * LANES, v)
        for lane in range(LANES):
            for c in range(C):
                for tap in range(9):
                    gw[((o + lane) * C + c) * 9 + tap] = part[(c * 9 + tap) * LANES + lane]
