"""Images larger, smaller, shuffled and sampled, with PyTorch's names and defaults."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from disttrain import engine
from disttrain.kernels.axes import AxisMap, Maps, selection
from disttrain.nn.functional.checks import check_kind, each
from disttrain.nn.functional.pooling import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d
from disttrain.ops import axes as axes_ops
from disttrain.ops.pool import gather_pixels
from disttrain.precision import autocasts, autocasts_as
from disttrain.tensors import Tensor

_DIMENSIONS = {"linear": 1, "bilinear": 2, "bicubic": 2, "lanczos": 2, "trilinear": 3}
_UNALIGNED = ("nearest", "nearest-exact", "area")


def interpolate(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """Images in another size.

    Args:
        input: ``(N, C, L)``, ``(N, C, H, W)`` or ``(N, C, D, H, W)``.
        size: the new size, one number or one per axis; or
        scale_factor: by what to multiply the size, likewise.
        mode: ``"nearest"``, ``"nearest-exact"``, ``"area"`` for all of them; ``"linear"`` for lines,
            ``"bilinear"`` and ``"bicubic"`` (Keys 1981, a = -0.75) for images, ``"trilinear"`` for volumes.
        align_corners: place the centres of the first and last pixels over each other, not their outer edges.
        recompute_scale_factor: take the scale from the sizes, which are whole, and not from ``scale_factor``.
        antialias: when making images smaller, weigh all pixels under the filter; ``"bilinear"``, ``"bicubic"``,
            and ``"lanczos"`` (of three lobes), which needs it.

    Raises:
        ValueError: arguments that exclude each other, or too many sizes.
        NotImplementedError: a mode that the number of dimensions or the dtype does not have.
        RuntimeError: images without pixels, before or after.
    """
    whole = mode in ("nearest", "nearest-exact", *_FILTERS)
    check_kind("interpolate", input, "fV", *(["uint8"] if whole else []))
    n = input.ndim - 2
    if mode in _UNALIGNED and align_corners is not None:
        raise ValueError(f"interpolate: align_corners has no meaning in mode {mode!r}, got {align_corners}")
    if mode not in _UNALIGNED and mode not in _DIMENSIONS:
        raise NotImplementedError(
            f"interpolate: unknown mode {mode!r}; known are {[*_UNALIGNED, *_DIMENSIONS]}"
        )
    if n not in (1, 2, 3) or _DIMENSIONS.get(mode, n) != n:
        raise NotImplementedError(
            f"interpolate: mode {mode!r} does not take an input of shape {tuple(input.shape)}"
        )
    if antialias and mode not in _FILTERS:
        raise ValueError(
            f"interpolate: antialias needs mode 'bilinear', 'bicubic' or 'lanczos', got {mode!r}"
        )
    if mode == "lanczos" and not antialias:
        raise ValueError("interpolate: mode 'lanczos' needs antialias=True")
    if mode == "lanczos" and align_corners:
        raise ValueError("interpolate: mode 'lanczos' does not know align_corners=True")
    old = input._array.shape[2:]
    new, scales = _new_size(old, size, scale_factor)
    if recompute_scale_factor:
        if size is not None:
            raise ValueError(
                "interpolate: recompute_scale_factor has no meaning with size; give scale_factor"
            )
        scales = (None,) * n
    if 0 in input._array.shape[1:] or min(new) < 1:
        raise RuntimeError(
            f"interpolate: cannot make images of size {new} from input of shape {tuple(input.shape)}"
        )
    if mode == "area":
        pools: Any = (adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d)
        return pools[n - 1](input, new)  # type: ignore[no-any-return]
    real = np.float64 if input._array.dtype.name in ("float64", "uint8") else np.float32
    maps = tuple(
        (axis, _resize(mode, a, b, s, bool(align_corners), antialias, real))
        for axis, (a, b, s) in enumerate(zip(old, new, scales, strict=True), 2)
    )
    if input._array.dtype == np.uint8 and not mode.startswith("nearest"):
        return _resize_bytes(input, maps)
    return _resized(input, maps)


@autocasts_as("resize")
def _resized(input: Tensor, maps: Maps) -> Tensor:
    return engine.apply(axes_ops.map_axes, input, maps=maps)  # type: ignore[no-any-return]


def _resize_bytes(input: Tensor, maps: Maps) -> Tensor:
    """Return bytes in another size as PyTorch and Pillow do: axis by axis, the last first, in 16-bit fixed point."""
    x = input._array
    for axis, m in reversed(maps):
        if m.size == m.out_size:
            continue
        rows = np.repeat(np.arange(m.out_size), np.diff(m.starts))
        places, of = np.unique(
            rows * m.size + m.index, return_inverse=True
        )  # a pixel twice at the edge counts once
        exact, bits = np.bincount(of, m.weight), 0
        while bits < 21 and int(0.5 + exact.max() * 2 ** (bits + 1)) < 1 << 15:
            bits += 1
        weight = np.trunc(exact * 2**bits + np.copysign(0.5, exact))
        starts = np.searchsorted(places // m.size, np.arange(m.out_size + 1))
        fixed = AxisMap(starts, places % m.size, weight, m.size)
        wide = axes_ops.map_axes(x.astype(np.int64), maps=((axis, fixed),))[0]
        x = np.clip((wide + (1 << (bits - 1))) >> bits, 0, 255).astype(np.uint8)
    return Tensor._of(x.copy() if x is input._array else x)


def _new_size(old: Any, size: Any, scale_factor: Any) -> tuple[tuple[int, ...], tuple[float | None, ...]]:
    n = len(old)
    if (size is None) == (scale_factor is None):
        raise ValueError("interpolate: give one of size and scale_factor")
    given = size if size is not None else scale_factor
    if isinstance(given, Sequence) and len(given) != n:
        raise ValueError(
            f"interpolate: size or scale_factor must have a number for each of {n} dimensions, got {tuple(given)}"
        )
    if size is not None:
        return each("interpolate", "size", size, n), (None,) * n
    scales = tuple(map(float, given if isinstance(given, Sequence) else (given,) * n))
    return tuple(math.floor(float(m) * s) for m, s in zip(old, scales, strict=True)), scales


@functools.lru_cache(maxsize=256)
def _resize(
    mode: str, old: int, new: int, factor: float | None, align_corners: bool, antialias: bool, real: Any
) -> AxisMap:
    """Return the map of one axis from ``old`` to ``new`` pixels, whose places are rounded to ``real`` as PyTorch's."""
    if mode.startswith("nearest"):
        if old == new and mode == "nearest":
            return selection(np.arange(new), old)
        step = np.float32(1 / factor if factor else old / new)  # in float32, as PyTorch rounds
        place = np.arange(new, dtype=np.float32) + np.float32(0.5 if mode == "nearest-exact" else 0)
        return selection(np.minimum(np.floor(place * step).astype(np.int64), old - 1), old)
    if align_corners:
        scale = real((old - 1) / (new - 1) if new > 1 else 0.0)
    else:
        scale = real(1 / factor if factor else old / new)
    cubic = mode == "bicubic"
    if antialias and old == new:
        return selection(np.arange(new), old)
    if antialias:
        return _filtered(old, new, scale, *_FILTERS[mode])
    i = np.arange(new, dtype=real)
    at = i * scale if align_corners else (i + 0.5) * scale - 0.5
    if cubic:
        first = np.floor(at)
        index = np.clip(first[:, None].astype(np.int64) + np.arange(-1, 3), 0, old - 1)
        weight = np.stack(_cubic_weights(at - first), 1)
    else:
        at = i if old == new else np.maximum(at, 0)
        low = np.minimum(at.astype(np.int64), old - 1)
        index = np.stack([low, np.minimum(low + 1, old - 1)], 1)
        part = np.minimum(at - low, 1)
        weight = np.stack([1 - part, part], 1)
    return AxisMap(np.arange(new + 1) * index.shape[1], index.ravel(), weight.ravel(), old)


def _cubic_weights(t: Any, a: float = -0.75) -> list[Any]:
    """Return the weights of the four pixels around a point that is ``t`` behind the second."""

    def near(x: Any) -> Any:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Any) -> Any:
        return ((x - 5) * x + 8) * x * a - 4 * a

    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


def _hat_filter(x: Any) -> Any:
    return np.maximum(1 - np.abs(x), 0)


def _cubic_filter(x: Any, a: float = -0.5) -> Any:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos_filter(x: Any) -> Any:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


_FILTERS: dict[str, tuple[Callable[[Any], Any], int]] = {
    "bilinear": (_hat_filter, 1),
    "bicubic": (_cubic_filter, 2),
    "lanczos": (_lanczos_filter, 3),
}
"""What weighs pixels at a distance, and the distance from which that is nothing."""


def _filtered(old: int, new: int, scale: Any, shape: Callable[[Any], Any], radius: int) -> AxisMap:
    """Return the map that weighs all pixels under a filter, which is as wide as a new pixel if that is larger."""
    widen = max(scale, 1.0)
    starts, index, weight = [0], [], []
    for i in range(new):
        centre = scale * (i + 0.5)
        first = max(int(centre - radius * widen + 0.5), 0)
        seen = np.arange(first, min(int(centre + radius * widen + 0.5), old))
        w = shape((seen - centre + 0.5) / widen)
        starts.append(starts[-1] + len(seen))
        index.append(seen)
        weight.append(w / w.sum() if w.sum() else w)
    return AxisMap(np.array(starts), np.concatenate(index), np.concatenate(weight), old)


def upsample(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Tensor:
    """An old name of :func:`interpolate`."""
    return interpolate(input, size, scale_factor, mode, align_corners)


def upsample_nearest(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
) -> Tensor:
    """:func:`interpolate` with ``mode="nearest"``."""
    return interpolate(input, size, scale_factor, "nearest")


def upsample_bilinear(
    input: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
) -> Tensor:
    """:func:`interpolate` with ``mode="bilinear"`` and ``align_corners=True``."""
    return interpolate(input, size, scale_factor, "bilinear", True)


def pixel_shuffle(input: Tensor, upscale_factor: int) -> Tensor:
    """``(*, C * r * r, H, W)`` as ``(*, C, H * r, W * r)``: channels become pixels (Shi et al. 2016).

    Raises:
        RuntimeError: fewer than 3 dimensions, a factor below 1, or channels that it does not divide.
    """
    r = _factor("pixel_shuffle", input, upscale_factor, 3)
    *batch, C, H, W = input.shape
    if C % (r * r):
        raise RuntimeError(
            f"pixel_shuffle: upscale_factor {r} needs a multiple of {r * r} channels, got shape {tuple(input.shape)}"
        )
    n = len(batch)
    parts = input.reshape(*batch, C // (r * r), r, r, H, W)
    order = (*range(n), n, n + 3, n + 1, n + 4, n + 2)
    return parts.permute(order).reshape(*batch, C // (r * r), H * r, W * r)


def pixel_unshuffle(input: Tensor, downscale_factor: int) -> Tensor:
    """``(*, C, H * r, W * r)`` as ``(*, C * r * r, H, W)``, undoing :func:`pixel_shuffle`.

    Raises:
        RuntimeError: fewer than 3 dimensions, a factor below 1, or sizes that it does not divide.
    """
    r = _factor("pixel_unshuffle", input, downscale_factor, 3)
    *batch, C, H, W = input.shape
    if H % r or W % r:
        raise RuntimeError(
            f"pixel_unshuffle: downscale_factor {r} must divide height and width, got shape {tuple(input.shape)}"
        )
    n = len(batch)
    parts = input.reshape(*batch, C, H // r, r, W // r, r)
    order = (*range(n), n, n + 2, n + 4, n + 1, n + 3)
    return parts.permute(order).reshape(*batch, C * r * r, H // r, W // r)


def channel_shuffle(input: Tensor, groups: int) -> Tensor:
    """``(N, C, *)`` with the channels of its groups dealt in turn (Zhang et al. 2018).

    Raises:
        RuntimeError: fewer than 3 dimensions, or ``groups`` that does not divide the channels.
    """
    groups = _factor("channel_shuffle", input, groups, 3)
    N, C, *size = input.shape
    if C % groups:
        raise RuntimeError(
            f"channel_shuffle: groups={groups} must divide the channels, got shape {tuple(input.shape)}"
        )
    return input.reshape(N, groups, C // groups, *size).transpose(1, 2).reshape(N, C, *size)


def _factor(name: str, input: Any, factor: Any, least: int) -> int:
    check_kind(name, input, "fViub")
    (value,) = each(name, "the factor", factor, 1)
    if input.ndim < least or value < 1:
        raise RuntimeError(
            f"{name}: expected at least {least} dimensions and a factor of at least 1, got shape "
            f"{tuple(input.shape)} and {value}"
        )
    return value


def affine_grid(theta: Tensor, size: Sequence[int], align_corners: bool | None = None) -> Tensor:
    """Places for :func:`grid_sample` that turn, stretch and move images (Jaderberg et al. 2015).

    Args:
        theta: matrices ``(N, 2, 3)`` for images, ``(N, 3, 4)`` for volumes.
        size: of the images to make, ``(N, C, H, W)`` or ``(N, C, D, H, W)``.
        align_corners: -1 and 1 are the centres of the first and last pixels, not their outer edges.

    Returns:
        ``(N, H, W, 2)`` or ``(N, D, H, W, 3)``.

    Raises:
        ValueError: matrices that do not fit ``size``, or that are no floating point numbers.
        NotImplementedError: another number of sizes.
        RuntimeError: a size below 1.
    """
    if not isinstance(theta, Tensor):
        raise TypeError(f"affine_grid() needs a Tensor as theta, got {type(theta).__name__}")
    if theta._array.dtype.kind not in "fV":
        raise ValueError(f"affine_grid: theta must be of floating point type, got {theta.dtype}")
    if len(size) not in (4, 5):
        raise NotImplementedError(
            f"affine_grid: size must be (N, C, H, W) or (N, C, D, H, W), got {tuple(size)}"
        )
    n = len(size) - 2
    if theta.ndim != 3 or tuple(theta.shape[1:]) != (n, n + 1) or theta.shape[0] != size[0]:
        raise ValueError(
            f"affine_grid: size {tuple(size)} needs theta of shape ({size[0]}, {n}, {n + 1}), got "
            f"{tuple(theta.shape)}"
        )
    if min(size) < 1:
        raise RuntimeError(f"affine_grid: sizes must be at least 1, got {tuple(size)}")
    steps = [_steps(m, bool(align_corners)) for m in size[2:]]
    places = np.stack([*np.meshgrid(*steps, indexing="ij")[::-1], np.ones(tuple(size[2:]))], -1)
    base = Tensor._of(places.reshape(-1, n + 1).astype(theta._array.dtype))
    return (base @ theta.transpose(1, 2)).reshape(size[0], *size[2:], n)


def _steps(n: int, align_corners: bool) -> Any:
    if n == 1:
        return np.zeros(1)
    steps = np.linspace(-1, 1, n)
    return steps if align_corners else steps * ((n - 1) / n)


@autocasts
def grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    """The values of images at given places (Jaderberg et al. 2015).

    Args:
        input: ``(N, C, H, W)`` or ``(N, C, D, H, W)``.
        grid: places ``(N, OH, OW, 2)`` as (x, y), or ``(N, OD, OH, OW, 3)`` as (x, y, z), -1 to 1 over the image.
        mode: ``"bilinear"``, ``"nearest"`` or, for images, ``"bicubic"``.
        padding_mode: what is outside: ``"zeros"``, ``"border"`` (the nearest pixel) or ``"reflection"``.
        align_corners: -1 and 1 are the centres of the first and last pixels, not their outer edges.

    Returns:
        ``(N, C, OH, OW)`` or ``(N, C, OD, OH, OW)``.

    Raises:
        ValueError: an unknown mode.
        RuntimeError: shapes or dtypes that do not fit together.
    """
    if mode not in ("bilinear", "nearest", "bicubic"):
        raise ValueError(f'grid_sample: mode must be "bilinear", "nearest" or "bicubic", got {mode!r}')
    if padding_mode not in ("zeros", "border", "reflection"):
        raise ValueError(
            f'grid_sample: padding_mode must be "zeros", "border" or "reflection", got {padding_mode!r}'
        )
    check_kind("grid_sample", input, "fV")
    check_kind("grid_sample", grid, "fV")
    n = input.ndim - 2
    if (
        n not in (2, 3)
        or grid.ndim != n + 2
        or grid.shape[0] != input.shape[0]
        or grid.shape[-1] != n
        or 0 in input._array.shape[2:]
        or grid.dtype is not input.dtype
        or (mode == "bicubic" and n != 2)
    ):
        raise RuntimeError(
            f"grid_sample: mode {mode!r} with input of shape {tuple(input.shape)} and {input.dtype} does not take a "
            f"grid of shape {tuple(grid.shape)} and {grid.dtype}; expected (N, OH, OW, 2), or (N, OD, OH, OW, 3) for "
            f"volumes"
        )
    aligned = bool(align_corners)
    sizes = input._array.shape[2:]
    places = []
    for axis, m in enumerate(sizes):
        x = grid.select(-1, n - 1 - axis)  # the last axis comes first
        places.append((x + 1) * (0.5 * (m - 1)) if aligned else (x + 1) * (m / 2) - 0.5)
    if mode != "bicubic":
        places = [_inside(x, m, padding_mode, aligned) for x, m in zip(places, sizes, strict=True)]
    if mode == "nearest":
        at = [np.rint(x._array.astype(np.float64)) for x in places]
        nearest = _pixels(input, at)
        if grid.requires_grad:  # it has a gradient, of zeros
            return nearest + grid.where(Tensor._of(np.zeros((), bool)), 0.0).sum(-1).unsqueeze(1)
        return nearest
    pixels: list[list[Any]] = []
    weights: list[list[Tensor]] = []
    for x, m in zip(places, sizes, strict=True):
        low = np.floor(x._array.astype(np.float64))
        part = x - Tensor._of(low.astype(x._array.dtype))
        if mode == "bicubic":
            around = [Tensor._of(low + k) for k in range(-1, 3)]
            pixels.append([_inside(p, m, padding_mode, aligned)._array for p in around])
            weights.append(_cubic_weights(part))
        else:
            pixels.append([low, low + 1])
            weights.append([1 - part, part])
    out = None
    for corner in itertools.product(range(len(pixels[0])), repeat=n):
        weight = functools.reduce(lambda a, b: a * b, [w[k] for w, k in zip(weights, corner, strict=True)])
        part = _pixels(input, [p[k] for p, k in zip(pixels, corner, strict=True)]) * weight.unsqueeze(1)
        out = part if out is None else out + part
    assert out is not None
    return out


def _inside(x: Tensor, m: int, padding_mode: str, aligned: bool) -> Tensor:
    """Return places, in pixels, that ``padding_mode`` moves into an axis of ``m`` pixels; nan to its first one."""
    if padding_mode == "zeros":
        return x
    if padding_mode == "reflection":
        low, span = (0.0, m - 1.0) if aligned else (-0.5, float(m))
        if span == 0:
            return x * 0
        away = (x - low).abs()
        turns = np.floor(away._array.astype(np.float64) / span)
        rest = away - Tensor._of((turns * span).astype(x._array.dtype))
        odd = Tensor._of(turns % 2 == 1)
        x = (span - rest).where(odd, rest) + low
    edge = Tensor._of(np.clip(np.where(np.isnan(x._array), x._array.dtype.type(0), x._array), 0, m - 1))
    return x.where((x > 0) & (x < m - 1), edge)  # no gradient at the edge itself, as in PyTorch


def _pixels(input: Tensor, at: list[Any]) -> Tensor:
    """Return the pixels of ``input`` at whole places, 0 where they are outside."""
    sizes = input._array.shape[2:]
    inside = np.ones(at[0].shape, bool)
    flat = np.zeros(at[0].shape, np.int64)
    for place, m in zip(at, sizes, strict=True):
        inside &= (place >= 0) & (place < m)  # never where it is nan
        flat = flat * m + np.where(inside, place, 0).astype(np.int64)
    where = np.where(inside, flat, -1)[:, None]
    where = np.broadcast_to(where, (where.shape[0], input._array.shape[1], *where.shape[2:]))
    return engine.apply(gather_pixels, input, where)  # type: ignore[no-any-return]
