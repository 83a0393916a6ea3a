import numpy as np
import pytest

from disttrain.kernels.axes import Spans
from disttrain.kernels.conv import Window
from disttrain.ops import pool as ops

torch = pytest.importorskip("torch", reason="PyTorch is the reference")
F = torch.nn.functional
rng = np.random.default_rng(0)
SIZES = {1: (72,), 2: (9, 8), 3: (4, 3, 6)}
X = {
    n: rng.permutation(2 * 3 * 72).reshape(2, 3, *size) / 10.0 for n, size in SIZES.items()
}  # no two equal, exact in every type up to rounding
IMAGES = X[2]
NHWC = np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
LAYOUTS = pytest.mark.parametrize("x", [IMAGES, NHWC, IMAGES[:0]], ids=["nchw", "nhwc", "no images"])

WINDOWS = [
    {"kernel_size": (2, 2), "stride": (2, 2)},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 1)},
    {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1), "ceil_mode": True},
    {"kernel_size": (2, 2), "stride": (3, 3), "ceil_mode": True},
    {"kernel_size": (4, 4), "stride": (4, 4), "padding": (2, 2), "ceil_mode": True},
]
OTHERS = [
    (1, {"kernel_size": (3,), "stride": (2,), "padding": (1,), "dilation": (2,)}),
    (1, {"kernel_size": (5,), "stride": (4,), "ceil_mode": True}),
    (3, {"kernel_size": (2, 3, 2), "stride": (1, 1, 2), "padding": (1, 1, 0)}),
    (3, {"kernel_size": (2, 2, 3), "stride": (2, 2, 2), "padding": (0, 1, 1), "ceil_mode": True}),
    (3, {"kernel_size": (2, 2, 2), "stride": (1, 1, 1), "padding": (1, 0, 1), "dilation": (3, 1, 2)}),
]


def to_ours(options):
    """Return the options as those of our ops."""
    rest = dict(options)
    kernel = rest.pop("kernel_size")
    n = len(kernel)
    stands = [rest.pop(k, (d,) * n) for k, d in (("stride", 1), ("padding", 0), ("dilation", 1))]
    return {"window": Window(kernel, *stands), **rest}


@LAYOUTS
@pytest.mark.parametrize("options", [*WINDOWS, {"kernel_size": (2, 3), "stride": (1, 1), "dilation": (3, 2)}])
def test_max_pool_is_that_of_torch(compare, options, x):
    small = x / 8  # few enough steps that bfloat16 meets ties where torch does

    compare(ops.max_pool, lambda x: F.max_pool2d(x, **options), small, **to_ours(options))


@pytest.mark.parametrize(("n", "options"), OTHERS)
def test_max_pool_of_lines_and_volumes_is_that_of_torch(compare, n, options):
    reference = F.max_pool1d if n == 1 else F.max_pool3d

    compare(ops.max_pool, lambda x: reference(x, **options), X[n] / 8, **to_ours(options))


@pytest.mark.parametrize(("n", "options"), [*((2, w) for w in WINDOWS), *OTHERS])
def test_max_pool_says_where_the_largest_are(n, options):
    x = np.round(X[n] / 4)  # with ties
    (out, where), _, _ = ops.max_pool(x, **to_ours(options))
    reference = getattr(F, f"max_pool{n}d")
    expected, places = reference(torch.tensor(x), **options, return_indices=True)

    np.testing.assert_array_equal(out, expected.numpy())
    np.testing.assert_array_equal(where, places.numpy())
    np.testing.assert_array_equal(ops.gather_pixels(x, where)[0], out)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_max_pool_takes_nan_and_infinities_as_torch_does(n):
    x = np.full((1, 1, *[4] * n), -np.inf)
    x.reshape(-1)[[1, 2, -2]] = [np.nan, np.nan, 5]
    window = Window((2,) * n, (2,) * n, (0,) * n, (1,) * n)

    (out, where), _, _ = ops.max_pool(x, window=window)
    expected, places = getattr(F, f"max_pool{n}d")(torch.tensor(x), 2, return_indices=True)

    np.testing.assert_array_equal(out, expected.numpy())
    np.testing.assert_array_equal(where, places.numpy())


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64"])
@pytest.mark.parametrize("n", [2, 3])
def test_max_pool_takes_integers(n, dtype):
    x = (X[n] * 10 % 101).astype(dtype)
    options = {"kernel_size": (2,) * n, "stride": (1,) * n, "padding": (1,) * n}

    (out, _), _, _ = ops.max_pool(x, **to_ours(options))

    assert out.dtype == dtype
    np.testing.assert_array_equal(out, getattr(F, f"max_pool{n}d")(torch.tensor(x), **options).numpy())


@LAYOUTS
@pytest.mark.parametrize("size", [(1, 1), (9, 8), (3, 4), (4, 3), (10, 11)])
def test_adaptive_max_pool_is_that_of_torch(compare, size, x):
    compare(ops.adaptive_max_pool, lambda x: F.adaptive_max_pool2d(x, size), x / 8, output_size=size)


def test_adaptive_max_pool_of_volumes_is_that_of_torch(compare):
    compare(ops.adaptive_max_pool, lambda x: F.adaptive_max_pool3d(x, (3, 2, 5)), X[3], output_size=(3, 2, 5))


@pytest.mark.parametrize("more", [{}, {"count_include_pad": False}, {"divisor_override": 3}])
@pytest.mark.parametrize("options", WINDOWS)
@LAYOUTS
def test_avg_pool_is_that_of_torch(compare, options, more, x):
    compare(ops.avg_pool, lambda x: F.avg_pool2d(x, **options | more), x / 8, **to_ours(options), **more)


@pytest.mark.parametrize("more", [{}, {"count_include_pad": False}])
@pytest.mark.parametrize(("n", "options"), [case for case in OTHERS if "dilation" not in case[1]])
def test_avg_pool_of_lines_and_volumes_is_that_of_torch(compare, n, options, more):
    reference = F.avg_pool1d if n == 1 else F.avg_pool3d

    dtypes = ("float64", "float32")  # torch has no other for volumes

    compare(
        ops.avg_pool,
        lambda x: reference(x, **options | more),
        X[n] / 8,
        dtypes=dtypes,
        **to_ours(options),
        **more,
    )


@pytest.mark.parametrize("more", [{}, {"count_include_pad": False}, {"divisor_override": -3}])
def test_avg_pool_of_integers_is_that_of_torch(more):
    x = rng.integers(-50, 50, (2, 3, 9, 8))
    options = {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1), "ceil_mode": True}

    out = ops.avg_pool(x, **to_ours(options), **more)[0]

    np.testing.assert_array_equal(out, F.avg_pool2d(torch.tensor(x), **options | more).numpy())


@LAYOUTS
@pytest.mark.parametrize("size", [(1, 1), (9, 8), (3, 4), (4, 3), (10, 11)])
def test_adaptive_avg_pool_is_that_of_torch(compare, size, x):
    compare(ops.adaptive_avg_pool, lambda x: F.adaptive_avg_pool2d(x, size), x / 8, output_size=size)


@pytest.mark.parametrize(("n", "size"), [(1, (5,)), (3, (2, 3, 7))])
def test_adaptive_avg_pool_of_lines_and_volumes_is_that_of_torch(compare, n, size):
    reference = F.adaptive_avg_pool1d if n == 1 else F.adaptive_avg_pool3d

    compare(ops.adaptive_avg_pool, lambda x: reference(x, size), X[n] / 8, output_size=size)


def test_gradients_are_those_of_differences(check):
    window = Window((3, 2), (1, 2), (1, 1), (1, 1))
    g = rng.standard_normal((2, 3, 9, 5))
    where = ops.max_pool(IMAGES, window=window)[0][1]
    spans = (Spans(np.array([0, 2]), np.array([5, 9])), Spans(np.array([1, 0, 3]), np.array([2, 8, 8]), 2))

    check(ops.max_pool, IMAGES, window=window)
    check(ops.max_spans, IMAGES, spans=spans)
    check(ops.adaptive_max_pool, IMAGES, output_size=(4, 3))
    check(ops.scatter_pixels, g, where, size=(9, 8))
    check(ops.scatter_pixels, g.reshape(2, 3, 45), where.reshape(2, 3, 45), size=(72,))
    check(ops.gather_pixels, IMAGES, where)
    check(ops.place_pixels, g[..., :1, :1], where[..., :1, :1], size=(9, 8))
    check(ops.avg_pool, IMAGES, window=window)
    check(ops.adaptive_avg_pool, IMAGES, output_size=(4, 3))


def test_pixels_below_zero_are_nowhere():
    where = np.array([[[2, -1]]])

    np.testing.assert_array_equal(ops.gather_pixels(np.array([[[5.0, 6, 7]]]), where)[0], [[[7, 0]]])
    np.testing.assert_array_equal(ops.scatter_pixels(np.ones((1, 1, 2)), where, size=(3,))[0], [[[0, 0, 1]]])


@pytest.mark.parametrize("op", [ops.max_pool, ops.avg_pool])
@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 0, 4, 4), {"kernel_size": (2, 2)}, r"at least one channel and pixel, got shape \(1, 0, 4, 4\)"),
        ((1, 3, 4, 4), {"kernel_size": (5, 5)}, r"windows of \(5, 5\) pixels do not fit"),
        ((1, 3, 4, 4), {"kernel_size": (2, 2), "padding": (2, 2)}, "at most half of the kernel"),
        ((1, 3, 4, 4), {"kernel_size": (2, 2), "stride": (0, 1)}, r"stride=\(0, 1\)"),
    ],
)
def test_names_what_is_wrong(op, shape, options, message):
    with pytest.raises(RuntimeError, match=message):
        op(np.zeros(shape), **to_ours(options))


def test_names_a_divisor_of_zero():
    with pytest.raises(RuntimeError, match="divisor_override must not be 0"):
        ops.avg_pool(IMAGES, window=Window((2, 2), (2, 2), (0, 0), (1, 1)), divisor_override=0)
