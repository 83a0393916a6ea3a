"""Resizing, turning and recoloring of arrays of shape ``(..., C, H, W)``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def _triangle(x: Array) -> Array:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _cubic(a: float) -> Callable[[Array], Array]:
    """Return Keys' kernel ("Cubic convolution interpolation for digital image processing", 1981)."""

    def kernel(x: Array) -> Array:
        x = np.abs(x)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = a * (((x - 5) * x + 8) * x - 4)
        return np.where(x < 1, near, np.where(x < 2, far, 0.0))

    return kernel


def weights(source: int, target: int, mode: str, antialias: bool) -> Array:
    """Return the matrix ``(target, source)`` that resizes an axis.

    With ``antialias`` the kernel is as wide as the scale and what lies outside is left out, as in Pillow; without,
    the pixels at the edge are repeated.
    """
    scale = source / target
    matrix = np.zeros((target, source))
    if mode.startswith("nearest"):
        middle = 0.5 if mode == "nearest-exact" else 0.0
        picked = np.minimum(((np.arange(target) + middle) * scale).astype(np.int64), source - 1)
        matrix[np.arange(target), picked] = 1
        return matrix
    reach = 1 if mode == "bilinear" else 2
    if not antialias:
        kernel = _triangle if mode == "bilinear" else _cubic(-0.75)
        center = (np.arange(target) + 0.5) * scale - 0.5
        first = np.floor(center).astype(np.int64)
        for k in range(1 - reach, 1 + reach):
            np.add.at(
                matrix, (np.arange(target), np.clip(first + k, 0, source - 1)), kernel(first + k - center)
            )
        return matrix
    kernel = _triangle if mode == "bilinear" else _cubic(-0.5)
    stretch = max(scale, 1.0)
    center = (np.arange(target) + 0.5) * scale
    first = np.maximum((center - reach * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((center + reach * stretch + 0.5).astype(np.int64), source)
    j = np.arange(source)
    inside = (j >= first[:, None]) & (j < last[:, None])
    matrix = np.where(inside, kernel((j + 0.5 - center[:, None]) / stretch), 0.0)
    return matrix / matrix.sum(1, keepdims=True)  # type: ignore[no-any-return]


def resize(a: Array, height: int, width: int, mode: str, antialias: bool) -> Array:
    """Return ``a`` with its last two axes resized, in its own type; integers are rounded and kept in range."""
    kind = a.dtype
    rows = weights(a.shape[-2], height, mode, antialias)
    columns = weights(a.shape[-1], width, mode, antialias)
    work = np.float32 if kind.kind != "f" or kind.itemsize < 8 else np.float64
    out = rows.astype(work) @ (a.astype(work) @ columns.T.astype(work))
    return _as(out, kind)


def _as(out: Array, kind: np.dtype[Any]) -> Array:
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        out = np.clip(np.rint(out), limits.min, limits.max)
    return out.astype(kind)


def rotate(
    a: Array, angle: float, mode: str, expand: bool, center: Sequence[float] | None, fill: Any
) -> Array:
    """Return ``a`` with its last two axes turned counter-clockwise by ``angle`` degrees."""
    height, width = a.shape[-2:]
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # Pixel centers, measured from the middle of the image.
    cx, cy = (0.0, 0.0) if center is None else (center[0] - width * 0.5, center[1] - height * 0.5)
    new_width, new_height = width, height
    if expand:
        corners = [(sx * width / 2, sy * height / 2) for sx in (-1, 1) for sy in (-1, 1)]
        xs = [x * cos + y * sin + width / 2 for x, y in corners]
        ys = [-x * sin + y * cos + height / 2 for x, y in corners]
        new_width, new_height = (
            int(math.ceil(round(max(v), 4)) - math.floor(round(min(v), 4))) for v in (xs, ys)
        )
    x = np.arange(new_width) + 0.5 - new_width * 0.5 - cx
    y = (np.arange(new_height) + 0.5 - new_height * 0.5 - cy)[:, None]
    from_x = x * cos - y * sin + cx + width * 0.5 - 0.5
    from_y = x * sin + y * cos + cy + height * 0.5 - 0.5
    value = 0 if fill is None else np.asarray(fill, np.float64)
    outside = np.broadcast_to(
        np.asarray(value).reshape(-1, 1, 1), (*a.shape[:-2], new_height, new_width)
    ).astype(np.float64)
    if mode == "nearest":
        return _as(_pick(a, np.rint(from_y), np.rint(from_x), outside), a.dtype)
    top, left = np.floor(from_y), np.floor(from_x)
    v, u = from_y - top, from_x - left
    mixed = (
        (1 - v) * ((1 - u) * _pick(a, top, left, outside) + u * _pick(a, top, left + 1, outside))
        + v * ((1 - u) * _pick(a, top + 1, left, outside) + u * _pick(a, top + 1, left + 1, outside))
    )  # fmt: skip
    return _as(mixed, a.dtype)


def _pick(a: Array, y: Array, x: Array, outside: Array) -> Array:
    height, width = a.shape[-2:]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    rows = np.clip(y, 0, height - 1).astype(np.int64)
    columns = np.clip(x, 0, width - 1).astype(np.int64)
    return np.where(inside, a[..., rows, columns], outside)


def turn_hue(a: Array, factor: float) -> Array:
    """Return RGB pixels with their hue moved by ``factor`` of a whole turn, through HSV (Smith, 1978)."""
    kind = a.dtype
    rgb = a.astype(np.float32) / (255 if kind.kind in "iu" else 1)
    r, g, b = np.moveaxis(rgb, -3, 0)
    high, low = rgb.max(-3), rgb.min(-3)
    span = high - low
    safe = np.where(span == 0, 1, span)
    hue = np.where(high == r, (g - b) / safe, np.where(high == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
    hue = (np.where(span == 0, 0, hue) / 6 + factor) % 1.0 * 6
    sector = np.floor(hue)
    part = hue - sector
    saturation = span / np.where(high == 0, 1, high)
    p, q = high * (1 - saturation), high * (1 - saturation * part)
    t = high * (1 - saturation * (1 - part))
    choices = [(high, t, p), (q, high, p), (p, high, t), (p, q, high), (t, p, high), (high, p, q)]
    index = sector.astype(np.int64) % 6
    out = np.stack([np.choose(index, [c[k] for c in choices]) for k in range(3)], -3)
    return _as(out * 255, kind) if kind.kind in "iu" else out.astype(kind)
