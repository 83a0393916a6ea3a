"""Many arrays in one flat bucket and back, with a cast and a factor, and the sum of buckets in one fixed order."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy

from disttrain.kernels import cuda
from disttrain.kernels.arrays import Array, address, get_array_module

Tree = Any
"""An array, or a pair of trees."""


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


def fold_tree(tree: Tree, out: Array) -> None:
    """Write the sum of arrays along a binary tree to ``out``, rounded once.

    Args:
        tree: the arrays, C-contiguous (count,) and of one type of floating point: one of them, or a pair of trees.
        out: (count,), of any floating point type; it may be one of the arrays.
    """
    if get_array_module(out) is not numpy:
        return _fold_tree_cuda(tree, out)
    return fold_tree_reference(tree, out)


def fold_tree_reference(tree: Tree, out: Array) -> None:
    """What :func:`fold_tree` must equal, to the bit."""
    out[...] = _total(tree).astype(cuda.wide(out.dtype)).astype(out.dtype)


def _total(tree: Tree) -> Array:
    if isinstance(tree, tuple):
        return _total(tree[0]) + _total(tree[1])
    return tree.astype(cuda.wide(tree.dtype))


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
_MOST_PARTS = 8
"""So many arrays one launch adds up."""


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


def _fold_tree_cuda(tree: Tree, out: Array) -> None:
    arrays, merges = _in_order(tree)
    if len(arrays) > _MOST_PARTS:
        halves = tuple(cuda.empty(out.shape, cuda.wide(arrays[0].dtype)) for _ in range(2))
        for half, total in zip(tree, halves, strict=True):
            _fold_tree_cuda(half, total)
        tree, (arrays, merges) = halves, _in_order(halves)
    word = sum(count << 4 * i for i, count in enumerate(merges))
    unused = [None] * (_MOST_PARTS - len(arrays))
    grid, args = (cuda.blocks(out.size, 256),), (*arrays, *unused, out, word, len(arrays), out.size)
    T, U = cuda.c_type(arrays[0].dtype), cuda.c_type(out.dtype)
    _program.launch("fold_tree", grid, (256,), *args, T=T, U=U)


def _in_order(tree: Tree) -> tuple[list[Array], list[int]]:
    """Return the arrays of a tree, and for each how many of its pairs are complete with it, but not before."""
    if not isinstance(tree, tuple):
        return [tree], [0]
    (arrays, merges), (others, theirs) = map(_in_order, tree)
    theirs[-1] += 1
    return arrays + others, merges + theirs
