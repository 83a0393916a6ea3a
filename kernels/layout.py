"""Arrays in another order in memory: images to channels-last and back, heads of attention apart and together."""

from __future__ import annotations

import math

import numpy

from disttrain.kernels import cuda
from disttrain.kernels.arrays import Array, get_array_module


def transpose(x: Array) -> Array:
    """Return ``x`` (N, R, C) as contiguous (N, C, R); so go images (N, C, H * W) to channels-last memory, and back."""
    if get_array_module(x) is not numpy:
        return _transpose_cuda(x)
    return transpose_reference(x)


def transpose_reference(x: Array) -> Array:
    """What :func:`transpose` must equal."""
    return get_array_module(x).ascontiguousarray(x.transpose(0, 2, 1))


def swap_middle(x: Array) -> Array:
    """Return ``x`` (A, B, C, D) as contiguous (A, C, B, D): heads of attention apart, and back."""
    if get_array_module(x) is not numpy:
        return _swap_middle_cuda(x)
    return swap_middle_reference(x)


def swap_middle_reference(x: Array) -> Array:
    """What :func:`swap_middle` must equal."""
    return get_array_module(x).ascontiguousarray(x.transpose(0, 2, 1, 3))


_SIZES = {1: "unsigned char", 2: "unsigned short", 4: "unsigned", 8: "unsigned long long"}
_program = cuda.Program(__file__, T=tuple(_SIZES.values()))


def _transpose_cuda(x: Array) -> Array:
    N, R, C = x.shape
    out, words = cuda.empty((N, C, R), x.dtype), f"u{x.itemsize}"
    tiles = cuda.blocks(R, 32) * cuda.blocks(C, 32)
    args = (x.view(words), out.view(words), R, C, tiles)
    _program.launch("transpose", (N * tiles,), (32, 8), *args, T=_SIZES[x.itemsize])
    return out


def _swap_middle_cuda(x: Array) -> Array:
    A, B, C, D = x.shape
    out = cuda.empty((A, C, B, D), x.dtype)
    size = math.gcd(D * x.itemsize, 8)  # several elements at once
    last, count = D * x.itemsize // size, x.nbytes // size
    args = (x.view(f"u{size}") if D else x, out.view(f"u{size}") if D else out, B, C, last, count)
    _program.launch("swap_middle", (cuda.blocks(count, 256),), (256,), *args, T=_SIZES[size])
    return out
