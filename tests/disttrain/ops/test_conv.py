import re

import numpy as np
import pytest

from disttrain.kernels.conv import Window
from disttrain.ops.conv import (
    check_window,
    conv_transpose,
    convolution,
    convolution_input_grad,
    convolution_weight_grad,
)

torch = pytest.importorskip("torch", reason="PyTorch is the reference")
F = torch.nn.functional
rng = np.random.default_rng(0)


def images(*shape, layout="nchw"):
    x = rng.standard_normal(shape)
    if layout == "nchw":
        return x
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def window(w, options):
    """Return where filters of shape ``w`` stand, with PyTorch's options."""
    n = len(w) - 2
    return Window(
        w[2:],
        *(
            options.get(name, (default,) * n)
            for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
        ),
    )


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
    "volumes": ((2, 3, 5, 6, 4), (4, 3, 3, 2, 3), {}),
    "volumes in groups": (
        (2, 4, 6, 5, 7),
        (6, 2, 2, 3, 2),
        {"groups": 2, "stride": (2, 1, 3), "padding": (1, 0, 1), "dilation": (2, 1, 1)},
    ),
    "volumes pointwise": ((2, 4, 3, 4, 5), (3, 4, 1, 1, 1), {}),
    "padding wider than the volume": ((1, 2, 2, 2, 1), (2, 2, 3, 2, 1), {"padding": (4, 3, 0)}),
    "no images": ((0, 3, 7, 6), (4, 3, 3, 3), {}),
}


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(("x", "w", "options"), CASES.values(), ids=CASES.keys())
def test_is_that_of_torch(compare, x, w, options, layout):
    arrays = images(*x, layout=layout), rng.standard_normal(w), rng.standard_normal(w[0])
    reference = F.conv2d if len(x) == 4 else F.conv3d

    compare(
        convolution,
        lambda x, w, b: reference(x, w, b, **options),
        *arrays,
        window=window(w, options),
        groups=options.get("groups", 1),
    )


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize(("x", "w", "options"), list(CASES.values())[:-1], ids=list(CASES.keys())[:-1])
def test_the_transpose_is_that_of_torch(compare, x, w, options, more):
    n, groups = len(w) - 2, options.get("groups", 1)
    stands = window(w, options | {"dilation": (2,) * n})
    size = tuple(
        (m - 1) * s - 2 * p + d * (k - 1) + 1 + more for m, k, s, p, d in zip(x[2:], *stands, strict=True)
    )
    if min(size) < 1:
        stands = stands._replace(padding=(0,) * n)
        size = tuple(
            (m - 1) * s + d * (k - 1) + 1 + more for m, k, s, _, d in zip(x[2:], *stands, strict=True)
        )
    arrays = images(x[0], w[0], *x[2:]), rng.standard_normal(w), rng.standard_normal(w[1] * groups)
    reference = F.conv_transpose2d if n == 2 else F.conv_transpose3d

    compare(
        conv_transpose,
        lambda x, w, b: reference(x, w, b, *stands[1:3], more, groups, stands.dilation),
        *arrays,
        window=stands,
        groups=groups,
        size=size,
    )


@pytest.mark.parametrize(("x", "w", "options"), list(CASES.values())[:-1], ids=list(CASES.keys())[:-1])
def test_gradients_are_those_of_differences(check, x, w, options):
    stands, groups = window(w, options), options.get("groups", 1)
    g = images(x[0], w[0], *stands.out_size(*x[2:]))

    check(convolution, images(*x), rng.standard_normal(w), window=stands, groups=groups)
    check(convolution_input_grad, g, rng.standard_normal(w), window=stands, groups=groups, size=x[2:])
    check(convolution_weight_grad, g, images(*x), window=stands, groups=groups)
    check(conv_transpose, g, rng.standard_normal(w), window=stands, groups=groups, size=x[2:])


def test_a_matrix_of_many_blocks_is_summed_up(compare):
    x, w = images(3, 8, 64, 64), rng.standard_normal((4, 8, 5, 5))

    compare(convolution, F.conv2d, x, w, dtypes=("float32",), second=False, window=window(w.shape, {}))


@pytest.mark.parametrize("size", [(7, 7), (5, 7, 7)])
def test_result_is_in_channels_last_memory(size):
    w = rng.standard_normal((4, 3, *[3] * len(size)))
    out = convolution(images(2, 3, *size), w, window=window(w.shape, {}))[0]

    assert np.moveaxis(out, 1, -1).flags.c_contiguous


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_gradient_asked_for_is_computed(needs):
    w = rng.standard_normal((4, 3, 3, 3))
    out, saved, vjp = convolution(images(2, 3, 7, 7), w, np.zeros(4), window=window(w.shape, {}))

    grads = vjp(out, needs, *saved)

    assert tuple(g is not None for g in grads) == needs


@pytest.mark.parametrize(
    ("x", "w", "options", "message"),
    [
        ((2, 1, 7, 7), (4, 3, 3, 3), {}, r"take 3 channels, got shape \(2, 1, 7, 7\)"),
        ((3, 7, 7), (4, 3, 3, 3), {}, r"images of shape \(3, 7, 7\) and filters .* do not fit"),
        ((2, 3, 7, 7), (4, 3, 3, 3), {"groups": 3}, "groups must divide .* 4, got groups=3"),
        ((2, 3, 7, 7), (4, 3, 8, 3), {}, r"filters of \(8, 3\) pixels .* do not fit into \(7, 7\)"),
    ],
)
def test_names_what_is_wrong(x, w, options, message):
    with pytest.raises(RuntimeError, match=message):
        convolution(np.zeros(x), np.zeros(w), window=window(w, options), groups=options.get("groups", 1))


@pytest.mark.parametrize("options", [{"stride": (0, 1)}, {"padding": (-1, 1)}, {"dilation": (1, 0)}])
def test_names_a_window_that_cannot_be(options):
    given = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)} | options
    (name, value), *_ = options.items()

    with pytest.raises(RuntimeError, match=re.escape(f"{name}={value}")):
        check_window("conv2d", **given)


def test_names_a_bias_that_does_not_fit():
    w = np.zeros((4, 3, 3, 3))

    with pytest.raises(RuntimeError, match=r"bias must have shape \(4,\), got \(3,\)"):
        convolution(np.zeros((2, 3, 7, 7)), w, np.zeros(3), window=window(w.shape, {}))
