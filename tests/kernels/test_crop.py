"""Crops of a batch: the compiled kernels equal the plain array operations."""

import numpy as np
import pytest
from cuda_cases import cast

from disttrain.kernels import crop

rng = np.random.default_rng(0)


def some(shape, size, channels_last):
    N, C, H, W = shape
    x = rng.integers(0, 256, shape, np.uint8)
    if channels_last:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    corners = np.stack([rng.integers(-2, H - size[0] + 3, N), rng.integers(-2, W - size[1] + 3, N)], 1)
    scale, shift = (rng.standard_normal(C).astype(np.float32) for _ in range(2))
    return x, corners, rng.integers(0, 2, N), size, scale, shift


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("shape", "size"), [((5, 3, 8, 9), (6, 5)), ((1, 1, 4, 4), (4, 4)), ((2, 4, 20, 30), (17, 24))]
)
def test_crops(shape, size, channels_last):
    args = some(shape, size, channels_last)

    out = crop.crop_flip_normalize(*args)

    np.testing.assert_allclose(out, crop.crop_flip_normalize_reference(*args), rtol=1e-6, atol=1e-5)
    assert (out.dtype, out.shape) == (np.float32, (*shape[:2], *size))
    assert out.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("channels_last", [False, True])
def test_crops_by_cuda(channels_last, shim):
    x, corners, flips, size, scale, shift = some((3, 3, 20, 25), (18, 17), channels_last)
    x = cast(x.transpose(0, 2, 3, 1), "uint8").transpose(0, 3, 1, 2) if channels_last else cast(x, "uint8")
    args = (
        x,
        cast(corners, "int64"),
        cast(flips, "int64"),
        size,
        cast(scale, "float32"),
        cast(shift, "float32"),
    )

    out = crop._crop_flip_normalize_cuda(*args)

    np.testing.assert_allclose(out, crop.crop_flip_normalize_reference(*args), rtol=1e-6, atol=1e-5)
