import numpy as np
import pytest

from disttrain.ops import pool as ops

torch = pytest.importorskip("torch", reason="PyTorch is the reference")
F = torch.nn.functional
rng = np.random.default_rng(0)
X = (
    rng.permutation(2 * 3 * 9 * 8).reshape(2, 3, 9, 8) / 10.0
)  # no two equal, exact in every type up to rounding
NHWC = np.ascontiguousarray(X.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)

WINDOWS = [
    {"kernel": (2, 2), "stride": (2, 2)},
    {"kernel": (3, 2), "stride": (1, 2), "padding": (1, 1)},
    {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1), "ceil_mode": True},
    {"kernel": (2, 2), "stride": (3, 3), "ceil_mode": True},
    {"kernel": (4, 4), "stride": (4, 4), "padding": (2, 2), "ceil_mode": True},
]


def to_torch(options):
    renamed = dict(options)
    return {"kernel_size": renamed.pop("kernel"), **renamed}


@pytest.mark.parametrize("x", [X, NHWC, X[:0]], ids=["nchw", "nhwc", "no images"])
@pytest.mark.parametrize("options", [*WINDOWS, {"kernel": (2, 3), "stride": (1, 1), "dilation": (3, 2)}])
def test_max_pool2d_is_that_of_torch(compare, options, x):
    small = x / 8  # few enough steps that bfloat16 meets ties where torch does

    compare(ops.max_pool2d, lambda x: F.max_pool2d(x, **to_torch(options)), small, **options)


@pytest.mark.parametrize("options", WINDOWS)
def test_max_pool2d_says_where_the_largest_are(options):
    (out, where), _, _ = ops.max_pool2d(X, **options)
    _, expected = F.max_pool2d(torch.tensor(X), **to_torch(options), return_indices=True)

    np.testing.assert_array_equal(where, expected.numpy())
    np.testing.assert_array_equal(ops.gather_pixels(X, where)[0], out)


def test_max_pool2d_takes_nan_and_infinities_as_torch_does():
    x = np.full((1, 1, 4, 4), -np.inf)
    x[0, 0, 2, 1] = np.nan
    x[0, 0, 3, 3] = 5

    (out, where), _, _ = ops.max_pool2d(x, kernel=(2, 2), stride=(2, 2))
    expected, places = F.max_pool2d(torch.tensor(x), 2, return_indices=True)

    np.testing.assert_array_equal(out, expected.numpy())
    np.testing.assert_array_equal(where, places.numpy())


@pytest.mark.parametrize("x", [X, NHWC, X[:0]], ids=["nchw", "nhwc", "no images"])
@pytest.mark.parametrize("more", [{}, {"count_include_pad": False}, {"divisor_override": 3}])
@pytest.mark.parametrize("options", WINDOWS)
def test_avg_pool2d_is_that_of_torch(compare, options, more, x):
    compare(ops.avg_pool2d, lambda x: F.avg_pool2d(x, **to_torch(options | more)), x / 8, **options, **more)


@pytest.mark.parametrize("x", [X, NHWC, X[:0]], ids=["nchw", "nhwc", "no images"])
@pytest.mark.parametrize("size", [(1, 1), (9, 8), (3, 4), (4, 3), (10, 11)])
def test_adaptive_avg_pool2d_is_that_of_torch(compare, size, x):
    compare(ops.adaptive_avg_pool2d, lambda x: F.adaptive_avg_pool2d(x, size), x / 8, output_size=size)


def test_gradients_are_those_of_differences(check):
    window = ops.Window((3, 2), (1, 2), (1, 1), (1, 1))
    divisor = ((1.0,) * 9, (2.0, 3.0, 4.0, 5.0, 6.0))
    g = rng.standard_normal((2, 3, 9, 5))
    where = ops.max_pool2d(X, kernel=(3, 2), stride=(1, 2), padding=(1, 1))[0][1]

    check(ops.max_pool2d, X, kernel=(3, 2), stride=(1, 2))
    check(ops.scatter_pixels, g, where, size=(9, 8))
    check(ops.gather_pixels, X, where)
    check(ops.avg_pool2d, X, kernel=(3, 2), stride=(1, 2), padding=(1, 1))
    check(ops.window_mean, X, window=window, divisor=divisor)
    check(ops.window_mean_input_grad, g, window=window, divisor=divisor, size=(9, 8))
    check(ops.adaptive_avg_pool2d, X, output_size=(4, 3))
    check(ops.adaptive_avg_pool2d_input_grad, g, size=(10, 7))


@pytest.mark.parametrize("op", [ops.max_pool2d, ops.avg_pool2d])
@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (
            (3, 4, 4),
            {"kernel": (2, 2), "stride": (2, 2)},
            r"expected images \(N, C, H, W\), got shape \(3, 4, 4\)",
        ),
        ((1, 3, 4, 4), {"kernel": (5, 5), "stride": (1, 1)}, r"windows of \(5, 5\) pixels do not fit"),
        ((1, 3, 4, 4), {"kernel": (2, 2), "stride": (1, 1), "padding": (2, 2)}, "at most half of the kernel"),
        ((1, 3, 4, 4), {"kernel": (2, 2), "stride": (0, 1)}, r"stride=\(0, 1\)"),
    ],
)
def test_names_what_is_wrong(op, shape, options, message):
    with pytest.raises(ValueError, match=message):
        op(np.zeros(shape), **options)
