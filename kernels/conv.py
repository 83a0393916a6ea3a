"""Convolution over images in channels-last memory, by what is quickest for its size.

* 3 x 3 filters of stride 1 over whole multiples of 16 channels in float32: :mod:`~disttrain.kernels.winograd`;
* filters of one pixel: a product of matrices, without a copy;
* groups of one channel and stride 1 in float32, of images that lie as (N, C, H, W): :mod:`~disttrain.kernels.planes`;
* groups of one, 2, 4 or 8 channels in float32: :mod:`~disttrain.kernels.grouped`;
* one filter for each channel in float64: a loop over the image;
* other filters in float32: :mod:`~disttrain.kernels.direct`;
* all others: im2col in blocks of about the L2 cache, then the BLAS library's product;
* on a GPU: cuDNN, or :mod:`~disttrain.kernels.patches` where that is not there.

``x`` is (N, C, H, W), ``w`` is (O, C // groups, KH, KW), ``out`` and its gradient ``g`` are (N, O, OH, OW).
These are shapes only: any memory layout is accepted, images come back as views of (N, H, W, C) memory, but for those
of ``planes``, which keep theirs.
Arrays are float32 or float64, on a GPU also float16 or bfloat16, all of one type.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy

from disttrain.kernels import buffers, cudnn, direct, gemm, grouped, patches, planes, winograd
from disttrain.kernels.arrays import Array, get_array_module, on_gpu
from disttrain.kernels.jit import jit
from disttrain.kernels.simd import LANES, pointer, transpose

Sizes = tuple[int, ...]
"""A number for each axis of an image but the first two, (N, C)."""
_BLOCK_BYTES = 512 * 1024
_BLOCK_PIXELS = 512
"""A block has at least so many output pixels, even if it is larger then: GEMM repacks the filters for each."""
_MIN_TILES = 32
"""Of 2 x 2 outputs: for fewer, transforming the filters costs more than Winograd's algorithm saves."""


class Window(NamedTuple):
    """Where a window of a convolution or a pooling stands, in pixels: (vertical, horizontal), before them the depth."""

    kernel: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Sizes

    def out_size(self, *size: int) -> Sizes:
        """Return how many windows fit into an image of ``size`` along each axis; below 1 if none does."""
        return tuple(
            [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(size, *self, strict=True)]
        )


def to_channels_last(x: Array) -> Array:
    """Return (N, C, H, W) as contiguous (N, H, W, C): a view if the memory is so already, else a copy."""
    last = x.transpose(0, 2, 3, 1)
    if on_gpu(x) or last.flags.c_contiguous or not x.flags.c_contiguous or x.dtype != numpy.float32:
        return buffers.contiguous(last)
    out = buffers.empty(last.shape, x.dtype)
    _to_channels_last(x.reshape(-1), out.reshape(-1), len(x), x.shape[1], x.shape[2] * x.shape[3])
    return out


@jit
def _to_channels_last(x, out, N, C, P):  # type: ignore[no-untyped-def]
    whole = P // LANES * LANES if C % LANES == 0 else 0
    for n in range(N):
        for p in range(0, whole, LANES):
            for c in range(0, C, LANES):
                transpose(pointer(x, (n * C + c) * P + p), P, pointer(out, (n * P + p) * C + c), C)
        for first in range(whole, P, LANES):  # few pixels at a time, so that what is written stays in cache
            for c in range(C):
                of, to = (n * C + c) * P, n * C * P + c
                for p in range(first, min(first + LANES, P)):
                    out[to + p * C] = x[of + p]


def conv2d(x: Array, w: Array, bias: Array | None, window: Window, groups: int) -> Array:
    """Return the cross-correlation of ``x`` with ``w``, plus ``bias`` (O,)"""
    if planes.serves(x, groups, len(w), _flat(window)):
        return planes.convolve(x, w, bias, _flat(window))
    x = to_channels_last(x)
    if on_gpu(x):
        out = cudnn.convolution(x, w, bias, window, groups)
        if out is None:
            out = patches.conv2d(x, w, bias, window, groups)
        return out.transpose(0, 3, 1, 2)
    N, H, W, _ = x.shape
    OH, OW = window.out_size(H, W)
    O = w.shape[0]  # noqa: E741
    if _is_winograd(x.dtype, window, groups, x.shape[3], (N, OH, OW, O)):
        return winograd.convolve(x, w, bias, _pair(window.padding)).transpose(0, 3, 1, 2)
    out = (buffers.zeros if _is_depthwise(w, groups) else buffers.empty)((N, OH, OW, O), x.dtype)
    if grouped.serves(x.dtype, groups, w.shape[1], O // groups):
        grouped.convolve(x, w, bias, out, _flat(window))
        return out.transpose(0, 3, 1, 2)
    if _is_depthwise(w, groups):
        _depthwise(x, out, _by_tap(w), _flat(window), _OUT)
    elif _is_pointwise(window) and groups == 1:
        gemm.matmul(x.reshape(-1, x.shape[3]), w[:, :, 0, 0].T, out.reshape(-1, O), bias)
        return out.transpose(0, 3, 1, 2)
    elif _is_direct(x, w, out):
        direct.convolve(x, w, out, _flat(window), groups)
    else:
        out_rows = out.reshape(-1, O)
        kernel = buffers.reshape(w.transpose(0, 2, 3, 1), (O, -1))
        o = O // groups
        for group in range(groups):
            to = slice(group * o, (group + 1) * o)
            for rows, cols in _blocks(x, (OH, OW), window, group, w.shape[1]):
                numpy.matmul(cols, kernel[to].T, out=out_rows[rows, to])
    if bias is not None:
        lines = out.reshape(-1, OW * O)  # far quicker than pixel by pixel if O is small
        line = buffers.empty((OW, O), x.dtype)
        line[...] = bias
        lines += line.reshape(-1)
    return out.transpose(0, 3, 1, 2)


def conv2d_input_grad(g: Array, w: Array, window: Window, groups: int, size: Sizes) -> Array:
    """Return the gradient of the input, an image of ``size`` = (H, W)."""
    if planes.serves(g, groups, w.shape[1] * groups, _flat(window)) and window.out_size(*size) == g.shape[2:]:
        return planes.input_grad(g, w, _flat(window))
    g = to_channels_last(g)
    if on_gpu(g):
        gx = cudnn.convolution_input_grad(g, w, window, groups, size)
        if gx is None:
            gx = patches.conv2d_input_grad(g, w, window, groups, size)
        return gx.transpose(0, 3, 1, 2)
    N, OH, OW, O = g.shape  # noqa: E741
    c = w.shape[1]
    ph, pw = _pair(window.padding)
    if (
        max(ph, pw) <= 2
        and size == (OH + 2 - 2 * ph, OW + 2 - 2 * pw)
        and _is_winograd(g.dtype, window, groups, O, (N, *size, c))
    ):
        return winograd.convolve(g, w, None, (2 - ph, 2 - pw), turned=True).transpose(0, 3, 1, 2)
    o = O // groups
    if grouped.serves(g.dtype, groups, c, o):
        gx = buffers.empty((N, *size, O), g.dtype)
        grouped.input_grad(g, w, gx, _flat(window))
        return gx.transpose(0, 3, 1, 2)
    g_rows = g.reshape(-1, O)
    kernel = buffers.reshape(w.transpose(0, 2, 3, 1), (O, -1))
    if _is_pointwise(window) and size == (OH, OW):
        gx = buffers.empty((N, *size, c * groups), g.dtype)
        if groups == 1:
            gemm.matmul(g_rows, w[:, :, 0, 0], gx.reshape(-1, c))
            return gx.transpose(0, 3, 1, 2)
        for group in range(groups):
            of, to = slice(group * o, (group + 1) * o), slice(group * c, (group + 1) * c)
            numpy.matmul(g_rows[:, of], kernel[of], out=gx.reshape(-1, c * groups)[:, to])
        return gx.transpose(0, 3, 1, 2)
    gx = buffers.zeros((N, *size, c * groups), g.dtype)
    if _is_depthwise(w, groups):
        _depthwise(gx, g, _by_tap(w), _flat(window), _IMAGE)
        return gx.transpose(0, 3, 1, 2)
    if _is_direct(gx, w, g):
        direct.input_grad(g, w, gx, _flat(window), groups)
        return gx.transpose(0, 3, 1, 2)
    lines, step = N * OH, _lines_per_block(OW, kernel.shape[1] * g.itemsize)
    cols = buffers.empty((min(step, lines) * OW, kernel.shape[1]), g.dtype)
    for group in range(groups):
        of = slice(group * o, (group + 1) * o)
        for start in range(0, lines, step):
            stop = min(start + step, lines)
            part = cols[: (stop - start) * OW]
            numpy.matmul(g_rows[start * OW : stop * OW, of], kernel[of], out=part)
            _col2im(part, gx, start, stop, OH, OW, _flat(window), group * c, c)
    return gx.transpose(0, 3, 1, 2)


def conv2d_weight_grad(g: Array, x: Array, window: Window, groups: int) -> Array:
    """Return the gradient of the weight, (O, C // groups, KH, KW)."""
    if planes.serves(x, groups, g.shape[1], _flat(window)) and planes.serves(
        g, groups, x.shape[1], _flat(window)
    ):
        return planes.weight_grad(g, x, _flat(window))
    g, x = to_channels_last(g), to_channels_last(x)
    if on_gpu(g):
        gw = cudnn.convolution_weight_grad(g, x, window, groups)
        return patches.conv2d_weight_grad(g, x, window, groups) if gw is None else gw
    _, OH, OW, O = g.shape  # noqa: E741
    o, c = O // groups, x.shape[3] // groups
    if _is_winograd(x.dtype, window, groups, c, g.shape) and window.out_size(*x.shape[1:3]) == (OH, OW):
        return winograd.weight_grad(g, x, _pair(window.padding))
    if grouped.serves(x.dtype, groups, c, o):
        return grouped.weight_grad(g, x, _flat(window), c)
    if o == c == 1 and groups > 1:
        parts = buffers.zeros((len(g), *window.kernel, O), g.dtype)  # image by image: long sums lose digits
        for image, out, part in zip(x, g, parts, strict=True):
            _depthwise(image[None], out[None], part, _flat(window), _FILTERS)
        return parts.sum(0)[None].transpose(3, 0, 1, 2)
    g_rows = g.reshape(-1, O)
    if _is_pointwise(window) and groups == 1 and x.shape[:3] == g.shape[:3]:
        return gemm.matmul(g_rows.T, x.reshape(-1, c))[:, :, None, None]
    if _is_direct(x, g, g):
        return direct.weight_grad(g, x, _flat(window), groups)
    gw = buffers.zeros((window.kernel[0] * window.kernel[1] * c, O), g.dtype)
    part = buffers.empty((len(gw), o), g.dtype)
    for group in range(groups):
        of = slice(group * o, (group + 1) * o)
        for rows, cols in _blocks(x, (OH, OW), window, group, c):
            numpy.matmul(cols.T, g_rows[rows, of], out=part)  # this way round GEMM is quicker if O is small
            gw[:, of] += part
    return gw.reshape(*window.kernel, c, O).transpose(3, 2, 0, 1)


def _blocks(x: Array, out_size: Sizes, window: Window, group: int, c: int) -> Iterator[tuple[slice, Array]]:
    """Yield stretches of output pixels, and for each the matrix (pixels, KH * KW * c) of what they see.

    The matrix lives in one buffer, which the next block overwrites.
    """
    N, H, W, C = x.shape
    OH, OW = out_size
    if _is_pointwise(window) and (H, W) == (OH, OW):
        yield slice(0, N * OH * OW), x.reshape(-1, C)[:, group * c : (group + 1) * c]
        return
    taps = window.kernel[0] * window.kernel[1] * c
    lines, step = N * OH, _lines_per_block(OW, taps * x.itemsize)
    one = C == 1 and window.stride[1] == 1  # then a tap sees whole stretches of memory: fill tap by tap
    pixels = min(step, lines) * OW
    cols = buffers.empty((taps, pixels), x.dtype).T if one else buffers.empty((pixels, taps), x.dtype)
    for start in range(0, lines, step):
        stop = min(start + step, lines)
        part = cols[: (stop - start) * OW]
        if one:
            _im2col_one_channel(x.reshape(x.shape[:3]), cols.T, start, stop, OH, OW, _flat(window))
            yield slice(start * OW, stop * OW), part
            continue
        _im2col(x, part, start, stop, OH, OW, _flat(window), group * c, c)
        yield slice(start * OW, stop * OW), part


def _lines_per_block(width: int, pixel_bytes: int) -> int:
    return max(1, max(_BLOCK_PIXELS, _BLOCK_BYTES // max(1, pixel_bytes)) // max(1, width))


def _is_pointwise(window: Window) -> bool:
    return window.kernel == (1, 1) and window.stride == (1, 1) and window.padding == (0, 0)


def _is_winograd(kind: Array, window: Window, groups: int, C: int, size: Sizes) -> bool:
    """Return whether Winograd's algorithm is quickest, for an output of ``size`` (N, H, W, O) that sees C channels."""
    return (
        window[:2] == ((3, 3), (1, 1))
        and window.dilation == (1, 1)
        and groups == 1
        and kind == numpy.float32
        and C % LANES == size[3] % LANES == 0
        and winograd.count_tiles(size) >= _MIN_TILES
    )


def _is_direct(x: Array, w: Array, out: Array) -> bool:
    """Return whether a convolution, or its gradient, is computed in :mod:`~disttrain.kernels.direct`."""
    return bool(
        out.dtype == numpy.float32
        and x.shape[3] > 1  # stretches of one channel are too short to be gathered one by one
        and min(x.size, w.size, out.size) > 0
    )


def _pair(sizes: Sizes) -> tuple[int, int]:
    return sizes[0], sizes[1]


def _is_depthwise(w: Array, groups: int) -> bool:
    return groups > 1 and bool(w.shape[:2] == (groups, 1))


def _by_tap(w: Array) -> Array:
    """Return filters (C, 1, KH, KW) as (KH, KW, C)."""
    return buffers.contiguous(w[:, 0].transpose(1, 2, 0))


def _flat(window: Window) -> tuple[int, ...]:
    return tuple(n for pair in window for n in pair)


# The kernels below compute the start of each stretch as a signed number and walk it by an unsigned index: that of a
# signed one may be negative, and Numba's test for it keeps the loop from being vectorised.


_OUT, _IMAGE, _FILTERS = range(3)


@jit
def _depthwise(x, out, w, window, wanted):  # type: ignore[no-untyped-def]
    """Add to ``out`` what it is, or to ``x`` or ``w`` its gradient, given the two others: each filter, one channel."""
    KH, KW, sh, sw, ph, pw, dh, dw = window
    _, H, W, C = x.shape
    N, OH, OW, _ = out.shape
    image, result, filters, channels = x.reshape(-1), out.reshape(-1), w.reshape(-1), numpy.uint64(C)
    for line in range(N * OH):
        n, oh = line // OH, line % OH
        for ow in range(OW):
            to = numpy.uint64((line * OW + ow) * C)
            for i in range(KH):
                ih = oh * sh - ph + i * dh
                for j in range(KW):
                    iw = ow * sw - pw + j * dw
                    if ih < 0 or ih >= H or iw < 0 or iw >= W:
                        continue
                    at, tap = numpy.uint64(((n * H + ih) * W + iw) * C), numpy.uint64((i * KW + j) * C)
                    if wanted == 0:
                        for c in range(channels):
                            result[to + c] += image[at + c] * filters[tap + c]
                    elif wanted == 1:
                        for c in range(channels):
                            image[at + c] += result[to + c] * filters[tap + c]
                    else:
                        for c in range(channels):
                            filters[tap + c] += result[to + c] * image[at + c]


@jit
def _im2col(x, cols, start, stop, OH, OW, window, first, c):  # type: ignore[no-untyped-def]
    KH, KW, sh, sw, ph, pw, dh, dw = window
    _, H, W, C = x.shape
    whole = dw == 1 and c == C  # a row of the window is one stretch of memory
    flat, out = x.reshape(-1), cols.reshape(-1)
    tap, run = numpy.uint64(c), numpy.uint64(KW * c)
    for line in range(start, stop):
        n, oh = line // OH, line % OH
        for i in range(KH):
            ih = oh * sh - ph + i * dh
            row_inside = ih >= 0 and ih < H
            for ow in range(OW):
                iw0 = ow * sw - pw
                to = numpy.uint64((((line - start) * OW + ow) * KH + i) * KW * c)
                if not row_inside:
                    for t in range(run):
                        out[to + t] = 0
                elif whole and iw0 >= 0 and iw0 + KW <= W:
                    at = numpy.uint64(((n * H + ih) * W + iw0) * C)
                    for t in range(run):
                        out[to + t] = flat[at + t]
                else:
                    for j in range(KW):
                        iw = iw0 + j * dw
                        if iw >= 0 and iw < W:
                            at = numpy.uint64(((n * H + ih) * W + iw) * C + first)
                            for t in range(tap):
                                out[to + t] = flat[at + t]
                        else:
                            for t in range(tap):
                                out[to + t] = 0
                        to += tap


@jit
def _im2col_one_channel(x, cols, start, stop, OH, OW, window):  # type: ignore[no-untyped-def]
    KH, KW, sh, _, ph, pw, dh, dw = window
    _, H, W = x.shape
    flat, out = x.reshape(-1), cols.reshape(-1)
    pixels = cols.shape[1]
    for i in range(KH):
        for j in range(KW):
            shift = j * dw - pw
            line = start
            while line < stop:
                to = (i * KW + j) * pixels + (line - start) * OW
                if (
                    i > 0 and sh == 1 and dh == 1
                ):  # what the tap above saw one line further down, in one stretch
                    known = (min(stop, (line // OH + 1) * OH) - 1 - line) * OW
                    here, above = numpy.uint64(to), numpy.uint64(to - KW * pixels + OW)
                    for t in range(numpy.uint64(known)):
                        out[here + t] = out[above + t]
                    line += known // OW
                    to += known
                n, ih = line // OH, line % OH * sh - ph + i * dh
                first = min(max(0, -shift), OW) if ih >= 0 and ih < H else OW
                last = max(first, min(OW, W - shift))
                before, after = numpy.uint64(to), numpy.uint64(to + last)
                for t in range(numpy.uint64(first)):
                    out[before + t] = 0
                middle, at = numpy.uint64(to + first), numpy.uint64((n * H + ih) * W + first + shift)
                for t in range(numpy.uint64(last - first)):
                    out[middle + t] = flat[at + t]
                for t in range(numpy.uint64(OW - last)):
                    out[after + t] = 0
                line += 1


@jit
def _col2im(cols, gx, start, stop, OH, OW, window, first, c):  # type: ignore[no-untyped-def]
    KH, KW, sh, sw, ph, pw, dh, dw = window
    _, H, W, C = gx.shape
    whole = dw == 1 and c == C
    flat, parts = gx.reshape(-1), cols.reshape(-1)
    tap, run = numpy.uint64(c), numpy.uint64(KW * c)
    for line in range(start, stop):
        n, oh = line // OH, line % OH
        for i in range(KH):
            ih = oh * sh - ph + i * dh
            if ih < 0 or ih >= H:
                continue
            for ow in range(OW):
                iw0 = ow * sw - pw
                part = numpy.uint64((((line - start) * OW + ow) * KH + i) * KW * c)
                if whole and iw0 >= 0 and iw0 + KW <= W:
                    at = numpy.uint64(((n * H + ih) * W + iw0) * C)
                    for t in range(run):
                        flat[at + t] += parts[part + t]
                    continue
                for j in range(KW):
                    iw = iw0 + j * dw
                    if iw >= 0 and iw < W:
                        at = numpy.uint64(((n * H + ih) * W + iw) * C + first)
                        for t in range(tap):
                            flat[at + t] += parts[part + t]
                    part += tap


def _windows(x: Array, window: Window) -> Array:
    """Return the padded image as (N, C, OH, OW, KH, KW)."""
    xp = get_array_module(x)
    (KH, KW), (sh, sw), (ph, pw), (dh, dw) = window
    x = xp.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    span = (dh * (KH - 1) + 1, dw * (KW - 1) + 1)
    view: Any = xp.lib.stride_tricks.sliding_window_view(x, span, axis=(2, 3))
    return view[:, :, ::sh, ::sw, ::dh, ::dw]


def _split(x: Array, axis: int, groups: int) -> Array:
    return x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])


def conv2d_reference(x: Array, w: Array, bias: Array | None, window: Window, groups: int) -> Array:
    """What :func:`conv2d` must equal up to rounding."""
    seen = _split(_windows(x, window), 1, groups)
    out = get_array_module(x).einsum("ngcyxij,gocij->ngoyx", seen, _split(w, 0, groups))
    out = out.reshape(out.shape[0], w.shape[0], *out.shape[3:])
    return out if bias is None else out + bias[:, None, None]


def conv2d_weight_grad_reference(g: Array, x: Array, window: Window, groups: int) -> Array:
    """What :func:`conv2d_weight_grad` must equal up to rounding."""
    seen = _split(_windows(x, window)[:, :, : g.shape[2], : g.shape[3]], 1, groups)
    gw = get_array_module(x).einsum("ngcyxij,ngoyx->gocij", seen, _split(g, 1, groups))
    return gw.reshape(g.shape[1], *gw.shape[2:])


def conv2d_input_grad_reference(g: Array, w: Array, window: Window, groups: int, size: Sizes) -> Array:
    """What :func:`conv2d_input_grad` must equal up to rounding."""
    xp = get_array_module(g)
    (KH, KW), (sh, sw), (ph, pw), (dh, dw) = window
    N, _, OH, OW = g.shape
    parts = xp.einsum("ngoyx,gocij->ngcyxij", _split(g, 1, groups), _split(w, 0, groups))
    parts = parts.reshape(N, -1, OH, OW, KH, KW)
    gx = xp.zeros((N, parts.shape[1], size[0] + 2 * ph, size[1] + 2 * pw), g.dtype)
    for i in range(KH):
        for j in range(KW):
            rows = slice(i * dh, i * dh + (OH - 1) * sh + 1, sh)
            cols = slice(j * dw, j * dw + (OW - 1) * sw + 1, sw)
            gx[:, :, rows, cols] += parts[..., i, j]
    return gx[:, :, ph : ph + size[0], pw : pw + size[1]]
