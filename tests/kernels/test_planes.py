"""Depthwise convolution of images that lie as (N, C, H, W) against array operations, and which images are served."""

import numpy as np
import pytest

from disttrain.kernels import conv, planes

WINDOWS = {
    "3x3": conv.Window((3, 3), (1, 1), (1, 1), (1, 1)),
    "no padding": conv.Window((3, 2), (1, 1), (0, 0), (1, 1)),
    "most padding": conv.Window((2, 4), (1, 1), (1, 3), (1, 1)),
    "columns apart": conv.Window((3, 3), (1, 1), (2, 3), (1, 3)),
    "one pixel": conv.Window((1, 1), (1, 1), (0, 0), (1, 1)),
    "7x7": conv.Window((7, 7), (1, 1), (3, 3), (1, 1)),
}
SIZES = [(9, 12), (8, 16), (28, 28), (7, 33)]


def some(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def as_flat(window):
    return tuple(n for pair in window for n in pair)


@pytest.fixture(params=WINDOWS.values(), ids=WINDOWS)
def window(request):
    return request.param


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_convolution_equals_its_reference(window, size, with_bias):
    rng = np.random.default_rng(0)
    x, w = some(rng, 2, 5, *size), some(rng, 5, 1, *window.kernel)
    bias = some(rng, 5) if with_bias else None

    out = planes.convolve(x, w, bias, as_flat(window))

    exact = conv.conv2d_reference(x.astype(np.float64), w.astype(np.float64), bias, window, 5)
    assert out.flags.c_contiguous
    np.testing.assert_allclose(out, exact, rtol=0, atol=5e-5)


@pytest.mark.parametrize("size", SIZES)
def test_gradients_equal_their_references(window, size):
    rng = np.random.default_rng(0)
    x, w, g = (
        some(rng, 2, 5, *size),
        some(rng, 5, 1, *window.kernel),
        some(rng, 2, 5, *window.out_size(*size)),
    )

    gx = planes.input_grad(g, w, as_flat(window))
    gw = planes.weight_grad(g, x, as_flat(window))

    x, g, w = (a.astype(np.float64) for a in (x, g, w))
    of_input = conv.conv2d_input_grad_reference(g, w, window, 5, size)
    np.testing.assert_allclose(gx, of_input, rtol=0, atol=5e-5)
    of_weight = conv.conv2d_weight_grad_reference(g, x, window, 5)
    np.testing.assert_allclose(gw, of_weight, rtol=0, atol=2e-4)


def test_an_image_has_the_same_bits_beside_others(window):
    rng = np.random.default_rng(0)
    x, w = some(rng, 3, 4, 10, 20), some(rng, 4, 1, *window.kernel)

    together = planes.convolve(x, w, None, as_flat(window))
    alone = planes.convolve(x[1:2], w, None, as_flat(window))

    np.testing.assert_array_equal(together[1:2], alone)


def test_no_images_give_none():
    window = as_flat(WINDOWS["3x3"])
    x, w = np.empty((0, 4, 6, 6), np.float32), np.ones((4, 1, 3, 3), np.float32)

    assert planes.convolve(x, w, None, window).shape == (0, 4, 6, 6)
    assert not planes.weight_grad(x, x, window).any()


def test_which_images_are_served():
    x = np.ones((2, 4, 6, 6), np.float32)
    window = WINDOWS["3x3"]
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)

    assert planes.serves(x, 4, 4, as_flat(window))
    assert not planes.serves(last, 4, 4, as_flat(window))
    assert not planes.serves(x.astype(np.float64), 4, 4, as_flat(window))
    assert not planes.serves(x, 2, 4, as_flat(window))
    assert not planes.serves(x, 4, 8, as_flat(window))
    assert not planes.serves(x, 4, 4, as_flat(window._replace(stride=(1, 2))))
    assert not planes.serves(x, 4, 4, as_flat(window._replace(dilation=(2, 1))))
    assert not planes.serves(x, 4, 4, as_flat(window._replace(padding=(3, 1))))


def test_planes_and_channels_last_images_give_the_same():
    rng = np.random.default_rng(0)
    x, w, g = some(rng, 2, 16, 9, 20), some(rng, 16, 1, 3, 3), some(rng, 2, 16, 9, 20)
    last, g_last = (np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for a in (x, g))
    window = WINDOWS["3x3"]

    def results(x, g):
        return (
            conv.conv2d(x, w, None, window, 16),
            conv.conv2d_input_grad(g, w, window, 16, (9, 20)),
            conv.conv2d_weight_grad(g, x, window, 16),
        )

    for a, b in zip(results(x, g), results(last, g_last), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
    np.testing.assert_allclose(
        conv.conv2d_weight_grad(g_last, x, window, 16), results(x, g)[2], rtol=0, atol=1e-4
    )
