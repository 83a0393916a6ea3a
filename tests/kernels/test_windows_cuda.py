"""The CUDA kernels of pooling, of maps along axes and of convolution by im2col, run on the CPU."""

import numpy as np
import pytest
from cuda_cases import DTYPES, cast, exact, near

from disttrain.kernels import axes, conv, patches, pool
from disttrain.ops.activation import widen as wide
from disttrain.ops.pool import _windows

rng = np.random.default_rng(0)
WINDOWS = [
    conv.Window((3, 3), (1, 1), (0, 0), (1, 1)),
    conv.Window((3, 2), (2, 1), (1, 1), (1, 2)),
    conv.Window((2, 2), (2, 2), (1, 1), (1, 1)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", WINDOWS)
def test_max_pooling(window, dtype, shim):
    x = cast(rng.integers(0, 5, (2, 3, 9, 8)), dtype)
    x[0, 0, 4, 4] = np.nan
    x[1, 1, 2:6, 2:6] = -np.inf
    size = window.out_size(9, 8)

    out, where = pool._max_pool2d_cuda(x, window, size)
    expected, places = pool.max_pool2d_reference(*exact(x), window, size)
    np.testing.assert_array_equal(out.astype(np.float64), expected)
    np.testing.assert_array_equal(where, places)
    g = cast(rng.standard_normal((2, 3, *size)), dtype)
    for at in (where, where.astype(np.int64)):
        gx = pool._max_pool2d_input_grad_cuda(g, at, (9, 8))
        near(gx, pool.max_pool2d_input_grad_reference(*exact(g), where, (9, 8)), dtype, 4)
        if dtype in ("float32", "float64"):
            np.testing.assert_array_equal(gx, pool.max_pool2d_input_grad(g, where, (9, 8)))
        gx = pool._max_spans_input_grad_cuda(g, at, (9, 8), _windows((9, 8), size, window))
        np.testing.assert_array_equal(gx, pool.max_pool2d_input_grad(wide(g), where, (9, 8)).astype(g.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(9,), (5, 7), (4, 3, 6)])
def test_gradients_look_for_their_places(size, dtype, shim):
    """In stretches that overlap, leave gaps, or hold nothing."""
    ends = {3: ([0, 1], [2, 3]), 4: ([0, 1, 3], [4, 1, 4]), 5: ([0, 1, 4], [3, 5, 5]), 6: ([1, 4], [3, 5])}
    ends |= {7: ([0, 2, 2], [4, 3, 7]), 9: ([0, 3, 1, 8], [9, 5, 3, 9])}
    spans = tuple(axes.Spans(*map(np.array, ends[n])) for n in size)
    x = cast(rng.integers(0, 4, (2, 3, *size)), dtype)
    _, where = axes.max_spans(wide(x), spans)
    g = cast(rng.standard_normal(where.shape), dtype)

    gx = pool._max_spans_input_grad_cuda(g, where, size, spans)

    expected = pool.max_spans_input_grad(wide(g), where, size, spans)
    np.testing.assert_array_equal(gx, expected.astype(g.dtype))
    near(gx, pool.max_spans_input_grad_reference(*exact(g), where, size, spans), dtype, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_maps_and_maxima_along_axes(axis, dtype, shim):
    x = cast(rng.standard_normal((6, 6, 6)), dtype)
    m = axes.spans([0, 2, 2], [3, 6, 2], [0.5, 0.25, 1.0], 6)
    maps = ((axis, m), ((axis + 1) % 3, m))

    near(axes._map_axes_cuda(x, maps), axes.map_axes_reference(*exact(x), maps), dtype, 2)
    back = ((axis, m.transposed),)
    near(
        axes._map_axes_cuda(x[:3, :3, :3], back), axes.map_axes_reference(*exact(x[:3, :3, :3]), back), dtype
    )
    one = ((axis, axes.selection([5, 0, 0], 6)),)
    np.testing.assert_array_equal(axes._map_axes_cuda(x, one), axes.map_axes_reference(x, one))
    x[1, 2:4, 3] = np.nan
    span = axes.Spans(np.array([0, 1, 4, 5]), np.array([6, 4, 4, 6]), 2)
    out, where = axes._max_axis_cuda(x, axis, span)
    expected, places = axes.max_axis_reference(*exact(x), axis, span)
    np.testing.assert_array_equal(out.astype(np.float64), expected)
    np.testing.assert_array_equal(where, places)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [(5, 0, 5), (16, 8, 8), (6, 2, 3)])
@pytest.mark.parametrize("window", WINDOWS)
def test_patches_and_back(window, channels, dtype, shim):
    C, first, c = channels
    x, size = cast(rng.standard_normal((2, 9, 8, C)), dtype), window.out_size(9, 8)

    cols = patches.im2col(x, window, size, first, c)
    seen = conv._windows(x[..., first : first + c].transpose(0, 3, 1, 2), window)
    np.testing.assert_array_equal(cols, seen.transpose(0, 2, 3, 4, 5, 1).reshape(cols.shape))
    gx, g = np.full_like(x, 7), cast(rng.standard_normal(cols.shape), dtype)
    patches.col2im(g, gx, window, size, first, c)
    ones = np.eye(c)[:, :, None, None] * np.ones(
        (1, 1, *window.kernel)
    )  # one filter for each part of a column
    parts = g.astype(np.float64).reshape(2, *size, *window.kernel, c).transpose(0, 5, 1, 2, 3, 4)
    expected = sum(
        conv.conv2d_input_grad_reference(parts[..., i, j], ones * _at(i, j, window), window, 1, (9, 8))
        for i in range(window.kernel[0])
        for j in range(window.kernel[1])
    )
    near(gx[..., first : first + c].transpose(0, 3, 1, 2), expected, dtype, 4)
    assert (np.delete(gx, np.s_[first : first + c], 3) == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("groups", "filters"), [(5, 5), (4, 8), (33, 33)])
@pytest.mark.parametrize("window", WINDOWS)
def test_depthwise_convolution(window, groups, filters, dtype, shim):
    x = cast(rng.standard_normal((2, groups, 9, 8)), dtype)
    w = cast(rng.standard_normal((filters, 1, *window.kernel)), dtype)
    g = cast(rng.standard_normal((2, filters, *window.out_size(9, 8))), dtype)
    last, g_last = (np.ascontiguousarray(a.transpose(0, 2, 3, 1)) for a in (x, g))

    out = patches.conv2d(last, w, None, window, groups).transpose(0, 3, 1, 2)
    near(out, conv.conv2d_reference(*exact(x, w), None, window, groups), dtype, 2)
    gx = patches.conv2d_input_grad(g_last, w, window, groups, (9, 8)).transpose(0, 3, 1, 2)
    near(gx, conv.conv2d_input_grad_reference(*exact(g, w), window, groups, (9, 8)), dtype, 2)
    gw = patches.conv2d_weight_grad(g_last, last, window, groups)
    near(gw, conv.conv2d_weight_grad_reference(*exact(g, x), window, groups), dtype, 2)


def _at(i, j, window):
    only = np.zeros(window.kernel)
    only[i, j] = 1
    return only


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("window", WINDOWS)
def test_convolution(window, groups, dtype, shim, monkeypatch):
    monkeypatch.setattr(patches, "_MOST_BYTES", 1)  # image by image
    x, w = (
        cast(rng.standard_normal((3, 4, 9, 8)), dtype),
        cast(rng.standard_normal((8, 4 // groups, *window.kernel)), dtype),
    )
    g, bias = (
        cast(rng.standard_normal((3, 8, *window.out_size(9, 8))), dtype),
        cast(rng.standard_normal(8), dtype),
    )
    last, g_last = conv.to_channels_last(x), conv.to_channels_last(g)

    out = patches.conv2d(last, w, bias, window, groups).transpose(0, 3, 1, 2)
    near(out, conv.conv2d_reference(*exact(x, w, bias), window, groups), dtype)
    gx = patches.conv2d_input_grad(g_last, w, window, groups, (9, 8)).transpose(0, 3, 1, 2)
    near(gx, conv.conv2d_input_grad_reference(*exact(g, w), window, groups, (9, 8)), dtype)
    gw = patches.conv2d_weight_grad(g_last, last, window, groups)
    near(gw, conv.conv2d_weight_grad_reference(*exact(g, x), window, groups), dtype)
