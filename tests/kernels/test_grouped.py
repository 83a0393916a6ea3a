import numpy as np
import pytest

from disttrain.kernels import conv, grouped

WINDOWS = {
    "3x3": conv.Window((3, 3), (1, 1), (1, 1), (1, 1)),
    "stride": conv.Window((3, 3), (2, 2), (1, 1), (1, 1)),
    "stride larger than the filter": conv.Window((1, 2), (3, 3), (0, 0), (1, 1)),
    "dilation": conv.Window((3, 2), (2, 1), (2, 3), (2, 3)),
    "padding larger than the filter": conv.Window((2, 2), (1, 2), (3, 4), (1, 1)),
    "one pixel": conv.Window((1, 1), (1, 1), (0, 0), (1, 1)),
    "5x5": conv.Window((5, 5), (1, 1), (2, 2), (1, 1)),
}
CHANNELS = [(16, 1), (37, 1), (4, 2), (48, 2), (20, 4), (64, 8), (24, 8)]
"""In all and of a group: whole vectors, less and more."""


def some(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def as_flat(window):
    return tuple(n for pair in window for n in pair)


def images(rng, N, H, W, C):
    """Return an image among other memory, and that memory."""
    memory = np.full(N * H * W * C + 128, np.float32(7))
    view = memory[64:-64].reshape(N, H, W, C)
    view[...] = some(rng, *view.shape)
    return view, memory


def untouched(memory):
    return (memory[:64] == 7).all() and (memory[-64:] == 7).all()


@pytest.fixture(params=WINDOWS.values(), ids=WINDOWS)
def window(request):
    return request.param


@pytest.mark.parametrize(("C", "width"), CHANNELS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_convolution_equals_its_reference(window, C, width, with_bias):
    rng = np.random.default_rng(0)
    x, w = some(rng, 2, 9, 12, C), some(rng, C, width, *window.kernel)
    bias = some(rng, C) if with_bias else None
    out, memory = images(rng, 2, *window.out_size(9, 12), C)

    grouped.convolve(x, w, bias, out, as_flat(window))

    exact = conv.conv2d_reference(
        x.transpose(0, 3, 1, 2).astype(np.float64), w.astype(np.float64), bias, window, C // width
    )
    np.testing.assert_allclose(out.transpose(0, 3, 1, 2), exact, rtol=0, atol=5e-5)
    assert untouched(memory)


@pytest.mark.parametrize(("C", "width"), CHANNELS)
def test_gradients_equal_their_references(window, C, width):
    rng = np.random.default_rng(0)
    x, w = some(rng, 2, 9, 12, C), some(rng, C, width, *window.kernel)
    g = some(rng, 2, *window.out_size(9, 12), C)
    gx, memory = images(rng, 2, 9, 12, C)

    grouped.input_grad(g, w, gx, as_flat(window))
    gw = grouped.weight_grad(g, x, as_flat(window), width)

    x, g, w = (a.astype(np.float64) for a in (x.transpose(0, 3, 1, 2), g.transpose(0, 3, 1, 2), w))
    of_input = conv.conv2d_input_grad_reference(g, w, window, C // width, (9, 12))
    np.testing.assert_allclose(gx.transpose(0, 3, 1, 2), of_input, rtol=0, atol=5e-5)
    of_weight = conv.conv2d_weight_grad_reference(g, x, window, C // width)
    np.testing.assert_allclose(gw, of_weight, rtol=0, atol=1e-4)
    assert untouched(memory)


def test_only_groups_that_fit_into_a_vector_are_served():
    served = [n for n in range(1, 33) if grouped.serves(np.dtype(np.float32), 4, n, n)]

    assert served == [1, 2, 4, 8]
    assert not grouped.serves(np.dtype(np.float32), 4, 1, 2)
    assert not grouped.serves(np.dtype(np.float32), 1, 1, 1)
    assert not grouped.serves(np.dtype(np.float64), 4, 1, 1)
