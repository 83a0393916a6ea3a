"""Many arrays in one flat bucket and back, with a cast and a factor, and the sum of buckets in one fixed order."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy

from disttrain.kernels import cuda
from disttrain.kernels.arrays import Array, address, get_array_module


def pack(arrays: Sequence[Array], flat: Array, factor: Array | None = None) -> None:
    """Write the elements of ``arrays``, one array after the other, times ``factor`` to ``flat``.

    Args:
        arrays: C-contiguous, of one type.
        flat: as many elements as all arrays have, of any floating point type.
        factor: a float32 number in an array (1,); None for 1.

    Raises:
        ValueError: another number of elements.
    """
    _check(arrays, flat)
    if get_array_module(flat) is not numpy:
        return _move_cuda("pack", arrays, flat, factor)
    return pack_reference(arrays, flat, factor)


def pack_reference(arrays: Sequence[Array], flat: Array, factor: Array | None = None) -> None:
    """What :func:`pack` must equal."""
    begin = 0
    for a in arrays:
        flat[begin : begin + a.size] = _times(a.reshape(-1), factor, flat.dtype)
        begin += a.size


def unpack(flat: Array, arrays: Sequence[Array], factor: Array | None = None) -> None:
    """Write what :func:`pack` has put into ``flat``, times ``factor``, to ``arrays``.

    Raises:
        ValueError: another number of elements.
    """
    _check(arrays, flat)
    if get_array_module(flat) is not numpy:
        return _move_cuda("unpack", arrays, flat, factor)
    return unpack_reference(flat, arrays, factor)


def unpack_reference(flat: Array, arrays: Sequence[Array], factor: Array | None = None) -> None:
    """What :func:`unpack` must equal."""
    begin = 0
    for a in arrays:
        a[...] = _times(flat[begin : begin + a.size], factor, a.dtype).reshape(a.shape)
        begin += a.size


def fold_tree(parts: Array, out: Array) -> None:
    """Write the sum of the rows of ``parts`` (ranks, count) to ``out`` (count,), which may be one of them.

    Along the tree over the ranks that splits at the largest power of two below its width, rounded at every node: so
    have partial sums of whole subtrees the bits that they have inside.
    """
    if get_array_module(parts) is not numpy:
        return _fold_tree_cuda(parts, out)
    return fold_tree_reference(parts, out)


def fold_tree_reference(parts: Array, out: Array) -> None:
    """What :func:`fold_tree` must equal, to the bit."""

    def total(lo: int, hi: int) -> Array:
        if hi - lo == 1:
            return parts[lo]
        middle = lo + (1 << ((hi - lo - 1).bit_length() - 1))
        return total(lo, middle) + total(middle, hi)

    out[...] = total(0, len(parts))


def _times(x: Array, factor: Array | None, dtype: Any) -> Array:
    """Return ``x`` times ``factor`` in another type; float64 becomes half precision by way of float32."""
    wide = x.astype(cuda.wide(x.dtype))
    product = wide if factor is None else wide * factor.astype(wide.dtype)
    return product.astype(cuda.wide(dtype)).astype(dtype)


def _check(arrays: Sequence[Array], flat: Array) -> None:
    sizes = [a.size for a in arrays]
    if flat.shape != (sum(sizes),):
        raise ValueError(f"a bucket of {sum(sizes)} elements is needed, got shape {flat.shape}")
    if any(a.dtype != arrays[0].dtype or not a.flags.c_contiguous for a in arrays):
        raise ValueError("a bucket takes C-contiguous arrays of one type")


_program = cuda.Program(__file__, T=cuda.FLOATS, U=cuda.FLOATS)
_TILE = 4096


@functools.lru_cache(maxsize=256)
def _tiles(sizes: tuple[int, ...], device: object) -> Array:
    """Return what each block does, on the current GPU, which ``device`` tells from others."""
    rows, begin = [], 0
    for number, size in enumerate(sizes):
        rows += [(number, at, begin + at, min(_TILE, size - at)) for at in range(0, size, _TILE)]
        begin += size
    return cuda.upload(numpy.array(rows, numpy.int64).reshape(-1, 4))


@functools.lru_cache(maxsize=256)
def _addresses(where: tuple[int, ...], device: object) -> Array:
    return cuda.upload(numpy.array(where, numpy.uint64))


def _move_cuda(kernel: str, arrays: Sequence[Array], flat: Array, factor: Array | None) -> None:
    if not flat.size:
        return
    tiles = _tiles(tuple(a.size for a in arrays), cuda.device())
    where = _addresses(tuple(address(a) for a in arrays), cuda.device())
    T, U = cuda.c_type(arrays[0].dtype), cuda.c_type(flat.dtype)
    _program.launch(kernel, (len(tiles),), (256,), where, tiles, flat, factor, T=T, U=U)


def _fold_tree_cuda(parts: Array, out: Array) -> None:
    ranks, count = parts.shape
    U = cuda.c_type(out.dtype)
    grid = (cuda.blocks(count, 256),)
    _program.launch("fold_tree", grid, (256,), parts, out, ranks, count, T=U, U=U)
