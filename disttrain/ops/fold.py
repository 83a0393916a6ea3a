"""Windows of images as columns, and back."""

from typing import Any

from disttrain.kernels import buffers
from disttrain.kernels.conv import Sizes, Window
from disttrain.ops.types import Array, Result, call, get_array_module

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]


def unfold(x: Array, *, window: Window) -> Result:
    """What each window of ``x`` (N, C, H, W) sees, as columns (N, C * KH * KW, windows)."""
    xp = get_array_module(x)
    (KH, KW), (sh, sw), (ph, pw), (dh, dw) = window
    N, C, H, W = x.shape
    OH, OW = window.out_size(H, W)
    padded = xp.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    out = buffers.empty((N, C, KH, KW, OH, OW), x.dtype, x)
    for i in range(KH):
        for j in range(KW):
            rows = slice(i * dh, i * dh + (OH - 1) * sh + 1, sh)
            out[:, :, i, j] = padded[:, :, rows, j * dw : j * dw + (OW - 1) * sw + 1 : sw]
    return out.reshape(N, C * KH * KW, OH * OW), (window, (H, W)), unfold_vjp


def unfold_vjp(g: Any, needs: Needs, window: Window, size: Sizes) -> Grads:
    return (call(fold, g, window=window, size=size),)


def fold(x: Array, *, window: Window, size: Sizes) -> Result:
    """Images of ``size`` to which the columns ``x`` are added where :func:`unfold` takes them."""
    xp = get_array_module(x)
    (KH, KW), (sh, sw), (ph, pw), (dh, dw) = window
    OH, OW = window.out_size(*size)
    N, C = x.shape[0], x.shape[1] // (KH * KW)
    parts = x.reshape(N, C, KH, KW, OH, OW)
    wide = xp.float32 if x.dtype.itemsize == 2 else x.dtype  # half-precision sums
    out = buffers.zeros((N, C, size[0] + 2 * ph, size[1] + 2 * pw), wide, x)
    for i in range(KH):
        for j in range(KW):
            rows = slice(i * dh, i * dh + (OH - 1) * sh + 1, sh)
            out[:, :, rows, j * dw : j * dw + (OW - 1) * sw + 1 : sw] += parts[:, :, i, j]
    inside = out[:, :, ph : ph + size[0], pw : pw + size[1]]
    return buffers.convert(inside, x.dtype), (window,), fold_vjp


def fold_vjp(g: Any, needs: Needs, window: Window) -> Grads:
    return (call(unfold, g, window=window),)
