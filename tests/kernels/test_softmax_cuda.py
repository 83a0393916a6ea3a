"""The CUDA kernels of softmax and cross-entropy, run on the CPU, equal the plain array operations."""

import numpy as np
import pytest
from cuda_cases import DTYPES, cast, exact, near, wide

from disttrain.kernels import softmax

rng = np.random.default_rng(0)
SHAPES = [(1, 1), (11, 10), (9, 64), (2, 1024), (2, 1501)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_softmax(shape, dtype, shim):
    x, g = cast(rng.standard_normal(shape) * 5, dtype), cast(rng.standard_normal(shape), dtype)
    y = cast(softmax.softmax_reference(*exact(x)), dtype)
    log_y = cast(softmax.log_softmax_reference(*exact(x)), dtype)

    near(softmax._softmax_cuda(x), softmax.softmax_reference(*exact(x)), dtype)
    near(softmax._softmax_grad_cuda(g, y), softmax.softmax_grad_reference(*exact(g, y)), dtype)
    near(softmax._log_softmax_cuda(x), softmax.log_softmax_reference(*exact(x)), dtype)
    near(
        softmax._log_softmax_grad_cuda(g, log_y), softmax.log_softmax_grad_reference(*exact(g, log_y)), dtype
    )
    near(softmax._row_stats_cuda(x), softmax.row_stats_reference(*exact(x)), str(wide(dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy(shape, smoothing, dtype, shim):
    M, K = shape
    A = str(wide(dtype))
    x, weight, g = (
        cast(rng.standard_normal(shape) * 5, dtype),
        cast(rng.random(K), A),
        cast(rng.random(M), A),
    )
    target = cast(rng.integers(0, K, M), "int64")
    target[0 if M > 1 else M :] = -100
    target[1:] = rng.integers(0, K, max(M - 1, 0))
    options = target, weight.astype(np.float64), smoothing, -100

    loss, stats = softmax._cross_entropy_cuda(x, target, weight, smoothing, -100)
    near((loss, stats), softmax.cross_entropy_reference(*exact(x), *options), A)
    expected = softmax.cross_entropy_grad_reference(*exact(g, x), *options, stats.astype(np.float64))
    near(
        softmax._cross_entropy_grad_cuda(g, x, target, weight, smoothing, -100, stats, None), expected, dtype
    )
    out = softmax._cross_entropy_grad_cuda(g, x, target, weight, smoothing, -100, stats, x)
    assert out is x
    near(x, expected, dtype)


def test_rows_with_what_is_not_finite_are_as_the_reference_has_them(shim):
    x = cast(rng.standard_normal((4, 40)), "float32")
    x[0, 3], x[1, 5], x[2] = np.nan, -np.inf, -np.inf

    with np.errstate(invalid="ignore"):
        near(softmax._softmax_cuda(x), softmax.softmax_reference(*exact(x)), "float32")


def test_scores_that_are_not_contiguous_or_not_numbers_of_ours_are_refused(shim):
    with pytest.raises(ValueError, match="softmax needs C-contiguous arrays, got strides"):
        softmax._softmax_cuda(np.zeros((4, 6), np.float32)[:, ::2])
    with pytest.raises(
        TypeError, match="takes float32, float64, float16, bfloat16, got int32; cast the array"
    ):
        softmax._softmax_cuda(np.zeros((4, 6), np.int32))
