import numpy as np
import pytest

from disttrain.kernels.conv import Window
from disttrain.ops.conv import conv2d, conv2d_input_grad, conv2d_weight_grad

torch = pytest.importorskip("torch", reason="PyTorch is the reference")
F = torch.nn.functional
rng = np.random.default_rng(0)


def images(*shape, layout="nchw"):
    x = rng.standard_normal(shape)
    return x if layout == "nchw" else np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


CASES = {
    "plain": ((2, 3, 7, 6), (4, 3, 3, 3), {}),
    "one channel": ((3, 1, 9, 9), (6, 1, 5, 5), {}),
    "stride and padding": ((2, 3, 9, 8), (4, 3, 3, 2), {"stride": (2, 3), "padding": (2, 1)}),
    "dilation": ((2, 2, 9, 10), (3, 2, 3, 2), {"dilation": (2, 3), "padding": (1, 2)}),
    "groups": ((2, 4, 6, 6), (6, 2, 3, 3), {"groups": 2, "padding": (1, 1)}),
    "depthwise": ((2, 4, 6, 6), (8, 1, 3, 3), {"groups": 4, "stride": (2, 2)}),
    "pointwise": ((2, 4, 5, 6), (3, 4, 1, 1), {}),
    "pointwise in groups": ((2, 4, 5, 6), (6, 2, 1, 1), {"groups": 2}),
    "pointwise with stride": ((2, 4, 5, 6), (3, 4, 1, 1), {"stride": (2, 2)}),
    "padding wider than the image": ((1, 2, 2, 2), (2, 2, 3, 3), {"padding": (4, 5)}),
    "no images": ((0, 3, 7, 6), (4, 3, 3, 3), {}),
}


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(("x", "w", "options"), CASES.values(), ids=CASES.keys())
def test_is_that_of_torch(compare, x, w, options, layout):
    arrays = images(*x, layout=layout), rng.standard_normal(w), rng.standard_normal(w[0])

    compare(conv2d, lambda x, w, b: F.conv2d(x, w, b, **options), *arrays, **options)


@pytest.mark.parametrize(("x", "w", "options"), list(CASES.values())[:-1], ids=list(CASES.keys())[:-1])
def test_gradients_are_those_of_differences(check, x, w, options):
    window = Window(
        w[2:],
        *(options.get(k, d) for k, d in (("stride", (1, 1)), ("padding", (0, 0)), ("dilation", (1, 1)))),
    )
    g = images(x[0], w[0], *window.out_size(*x[2:]))
    groups = options.get("groups", 1)

    check(conv2d, images(*x), rng.standard_normal(w), **options)
    check(conv2d_input_grad, g, rng.standard_normal(w), window=window, groups=groups, size=x[2:])
    check(conv2d_weight_grad, g, images(*x), window=window, groups=groups)


def test_a_matrix_of_many_blocks_is_summed_up(compare):
    x, w = images(3, 8, 64, 64), rng.standard_normal((4, 8, 5, 5))

    compare(conv2d, F.conv2d, x, w, dtypes=("float32",), second=False)


def test_result_is_in_channels_last_memory():
    out = conv2d(images(2, 3, 7, 7), rng.standard_normal((4, 3, 3, 3)))[0]

    assert out.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_gradient_asked_for_is_computed(needs):
    out, saved, vjp = conv2d(images(2, 3, 7, 7), rng.standard_normal((4, 3, 3, 3)), np.zeros(4))

    grads = vjp(out, needs, *saved)

    assert tuple(g is not None for g in grads) == needs


@pytest.mark.parametrize(
    ("x", "w", "options", "message"),
    [
        ((2, 1, 7, 7), (4, 3, 3, 3), {}, r"take images of 3 channels, got shape \(2, 1, 7, 7\)"),
        ((3, 7, 7), (4, 3, 3, 3), {}, r"expected images \(N, C, H, W\)"),
        ((2, 3, 7, 7), (4, 3, 3, 3), {"groups": 3}, "groups must divide the 4 output channels, got groups=3"),
        ((2, 3, 7, 7), (4, 3, 8, 3), {}, r"filters of \(8, 3\) pixels .* do not fit into images of \(7, 7\)"),
        ((2, 3, 7, 7), (4, 3, 3, 3), {"stride": (0, 1)}, r"stride=\(0, 1\)"),
        ((2, 3, 7, 7), (4, 3, 3, 3), {"padding": (-1, 1)}, r"padding=\(-1, 1\)"),
    ],
)
def test_names_what_is_wrong(x, w, options, message):
    with pytest.raises(ValueError, match=message):
        conv2d(np.zeros(x), np.zeros(w), **options)


def test_names_a_bias_that_does_not_fit():
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\), got \(3,\)"):
        conv2d(np.zeros((2, 3, 7, 7)), np.zeros((4, 3, 3, 3)), np.zeros(3))
