"""A crop of each image of a batch, flipped or not, and normalised, in one pass over bytes.

``x`` is uint8 of shape (N, C, H, W), in NCHW or channels-last memory; out comes float32 (N, C, OH, OW) as a view of
channels-last memory. What a crop sees beyond the image is 0 before it is normalised.
"""

import numpy

from disttrain.kernels import cuda
from disttrain.kernels.arrays import Array, get_array_module
from disttrain.kernels.jit import jit


def crop_flip_normalize(
    x: Array, corners: Array, flips: Array, size: tuple[int, int], scale: Array, shift: Array
) -> Array:
    """Return ``crop * scale + shift`` for a crop of each image.

    Args:
        x: the images.
        corners: (N, 2) int64, the row and the column in the image where its crop begins; may be negative.
        flips: (N,) int64; where it is not 0 the crop is mirrored, left to right.
        size: (OH, OW).
        scale: (C,) float32.
        shift: (C,) float32.
    """
    if get_array_module(x) is not numpy:
        return _crop_flip_normalize_cuda(x, corners, flips, size, scale, shift)
    memory, strides = _memory(x)
    out = numpy.empty((x.shape[0], *size, x.shape[1]), numpy.float32)
    _crop(memory.reshape(-1), strides, x.shape[2:], corners, flips, scale, shift, out)
    return out.transpose(0, 3, 1, 2)


def crop_flip_normalize_reference(
    x: Array, corners: Array, flips: Array, size: tuple[int, int], scale: Array, shift: Array
) -> Array:
    """What :func:`crop_flip_normalize` must equal up to rounding."""
    xp = get_array_module(x)
    (H, W), (OH, OW) = x.shape[2:], size
    n = xp.arange(len(x))[:, None, None]
    columns = xp.where(flips[:, None] != 0, xp.arange(OW)[::-1], xp.arange(OW))
    h = (corners[:, :1] + xp.arange(OH))[:, :, None]
    w = (corners[:, 1:] + columns)[:, None, :]
    inside = (h >= 0) & (h < H) & (w >= 0) & (w < W)
    pixels = x[n, :, h.clip(0, H - 1), w.clip(0, W - 1)] * inside[..., None]
    return (pixels * scale + shift).transpose(0, 3, 1, 2)


def _memory(x: Array) -> tuple[Array, tuple[int, ...]]:
    """Return C-contiguous memory of the images, copied if it is neither NCHW nor channels-last, and their strides."""
    memory = x if x.flags.c_contiguous else get_array_module(x).ascontiguousarray(x.transpose(0, 2, 3, 1))
    C, H, W = x.shape[1:]
    return memory, (C * H * W, H * W, W, 1) if memory is x else (C * H * W, 1, W * C, C)


@jit
def _crop(x, strides, image, corners, flips, scale, shift, out):  # type: ignore[no-untyped-def]
    H, W = image
    N, OH, OW, C = out.shape
    for n in range(N):
        for i in range(OH):
            h = corners[n, 0] + i
            for j in range(OW):
                w = corners[n, 1] + (OW - 1 - j if flips[n] else j)
                inside = h >= 0 and h < H and w >= 0 and w < W
                at = n * strides[0] + h * strides[2] + w * strides[3]
                for c in range(C):
                    pixel = x[at + c * strides[1]] if inside else 0
                    out[n, i, j, c] = numpy.float32(pixel) * scale[c] + shift[c]


_program = cuda.Program(__file__)
_THREADS = 256


def _crop_flip_normalize_cuda(
    x: Array, corners: Array, flips: Array, size: tuple[int, int], scale: Array, shift: Array
) -> Array:
    memory, strides = _memory(x)
    N, C, H, W = x.shape
    out = cuda.empty((N, *size, C), numpy.float32)
    grid = (cuda.blocks(size[0] * size[1], _THREADS), N)
    args = (memory, corners, flips, scale, shift, out, C, H, W, *size, *strides)
    _program.launch("crop_flip_normalize", grid, (_THREADS,), *args)
    return out.transpose(0, 3, 1, 2)
