"""Convolution on a GPU by im2col and the product of matrices: the fallback where no library does it.

Images are channels-last and contiguous, (N, H, W, C); ``c`` channels from ``first`` on take part, those of a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from disttrain.kernels import columns, cuda, gemm
from disttrain.kernels.arrays import Array, get_array_module

if TYPE_CHECKING:
    from disttrain.kernels.conv import Sizes, Window

_MOST_BYTES = 256 << 20
"""Of the matrix that exists at a time, unless one image needs more."""


def conv2d(x: Array, w: Array, bias: Array | None, window: Window, groups: int) -> Array:
    """Return the cross-correlation of ``x`` (N, H, W, C) with ``w`` (O, C // groups, KH, KW), as (N, OH, OW, O)."""
    N, H, W, _ = x.shape
    O, c = w.shape[:2]  # noqa: E741
    OH, OW = window.out_size(H, W)
    out = cuda.empty((N, OH, OW, O), x.dtype)
    if c == 1 and groups > 1:
        _depthwise("depthwise", x, w, out, x, window, (OH, OW), O // groups, out.size)
        return out if bias is None else out + bias
    for group, of in _groups(groups, O):
        kernel = _matrix(w[of])
        for images in _images(x, window, c):
            cols = im2col(x[images], window, (OH, OW), group * c, c)
            out[images, :, :, of] = gemm.batched(cols, kernel.T).reshape(-1, OH, OW, kernel.shape[0])
    if bias is not None:
        out += bias
    return out


def conv2d_input_grad(g: Array, w: Array, window: Window, groups: int, size: Sizes) -> Array:
    """Return the gradient of ``x``, (N, H, W, C), for ``g`` (N, OH, OW, O)."""
    N, OH, OW, O = g.shape  # noqa: E741
    c = w.shape[1]
    gx = cuda.empty((N, *size, c * groups), g.dtype)
    if c == 1 and groups > 1:
        _depthwise("depthwise_input_grad", g, w, gx, gx, window, (OH, OW), O // groups, gx.size)
        return gx
    for group, of in _groups(groups, O):
        kernel = _matrix(w[of])
        for images in _images(gx, window, c):
            rows = g[images, :, :, of].reshape(-1, kernel.shape[0])
            col2im(gemm.batched(rows, kernel), gx[images], window, (OH, OW), group * c, c)
    return gx


def conv2d_weight_grad(g: Array, x: Array, window: Window, groups: int) -> Array:
    """Return the gradient of ``w``, (O, C // groups, KH, KW), for ``g`` (N, OH, OW, O)."""
    _, OH, OW, O = g.shape  # noqa: E741
    c = x.shape[3] // groups
    if c == 1 and groups > 1:
        return _depthwise_weight_grad(g, x, window)
    gw = cuda.empty((O, c, *window.kernel), g.dtype)
    for group, of in _groups(groups, O):
        total = 0
        for images in _images(x, window, c):
            rows = g[images, :, :, of].reshape(-1, O // groups)
            part = gemm.batched(rows.T, im2col(x[images], window, (OH, OW), group * c, c))
            total = total + part.astype(cuda.wide(part.dtype), copy=False)
        gw[of] = total.reshape(-1, *window.kernel, c).transpose(0, 3, 1, 2)  # type: ignore[attr-defined]
    return gw


def im2col(x: Array, window: Window, out_size: Sizes, first: int, c: int) -> Array:
    """Return (N * OH * OW, KH * KW * c): what each window sees of ``x``, zeros outside of the image."""
    rows = len(x) * out_size[0] * out_size[1]
    cols = cuda.empty((rows, window.kernel[0] * window.kernel[1] * c), x.dtype)
    _launch("im2col", x, cols, cols.size, x, window, out_size, first, c)
    return cols


def col2im(cols: Array, gx: Array, window: Window, out_size: Sizes, first: int, c: int) -> None:
    """Write to each pixel of those channels of ``gx`` the sum of what :func:`im2col` would take from there."""
    _launch("col2im", cols, gx, gx.size // gx.shape[3] * c, gx, window, out_size, first, c)


def _groups(groups: int, O: int) -> Iterator[tuple[int, slice]]:  # noqa: E741
    return ((g, slice(g * O // groups, (g + 1) * O // groups)) for g in range(groups))


def _matrix(w: Array) -> Array:
    return get_array_module(w).ascontiguousarray(w.transpose(0, 2, 3, 1)).reshape(len(w), -1)


def _images(x: Array, window: Window, c: int) -> Iterator[slice]:
    """Yield stretches of images whose matrices are small enough."""
    OH, OW = window.out_size(*x.shape[1:3])
    each = max(1, OH * OW * window.kernel[0] * window.kernel[1] * c * x.itemsize)
    step = max(1, _MOST_BYTES // each)
    return (slice(i, min(i + step, len(x))) for i in range(0, len(x), step))


_program = cuda.Program(__file__, T=cuda.FLOATS, VECTOR=(0, 1))


def _launch(
    kernel: str,
    source: Array,
    to: Array,
    count: int,
    image: Array,
    window: Window,
    out_size: Sizes,
    first: int,
    c: int,
) -> None:
    _, H, W, C = image.shape
    vector = cuda.vector(c, source, to) and cuda.vector(C, to) and cuda.vector(first, to)
    grid = (cuda.blocks(count, 256 * (16 // to.itemsize if vector else 1)),)
    numbers = (n for pair in window for n in pair)
    args = (source, to, H, W, C, first, c, *out_size, *numbers, count)
    _program.launch(kernel, grid, (256,), *args, T=cuda.c_type(to.dtype), VECTOR=vector)


def _depthwise(
    kernel: str,
    source: Array,
    w: Array,
    to: Array,
    image: Array,
    window: Window,
    out_size: Sizes,
    filters: int,
    count: int,
) -> None:
    """Launch a convolution whose groups have one input channel and ``filters`` output channels each."""
    numbers = (*image.shape[1:], *out_size, *(n for pair in window for n in pair), filters, count)
    w = get_array_module(w).ascontiguousarray(w)
    grid = (cuda.blocks(count, 256),)
    _program.launch(kernel, grid, (256,), source, w, to, *numbers, T=cuda.c_type(to.dtype), VECTOR=0)


def _depthwise_weight_grad(g: Array, x: Array, window: Window) -> Array:
    N, OH, OW, O = g.shape  # noqa: E741
    KH, KW = window.kernel
    pixels = N * OH * OW
    each = cuda.part(pixels)
    part = cuda.empty((cuda.blocks(pixels, each), KH * KW, O), cuda.wide(g.dtype))
    numbers = (*x.shape[1:], OH, OW, *(n for pair in window for n in pair), O // x.shape[3], each, pixels)
    grid, T = (KH * KW * cuda.blocks(O, 32), len(part)), cuda.c_type(g.dtype)
    _program.launch("depthwise_weight_grad", grid, (32, 8), g, x, part, *numbers, T=T, VECTOR=0)
    gw = columns.column_sums(part.reshape(len(part), -1))
    return gw.astype(g.dtype, copy=False).reshape(KH, KW, 1, O).transpose(3, 2, 0, 1)
