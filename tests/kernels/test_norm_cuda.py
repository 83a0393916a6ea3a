"""The CUDA kernels of normalisation, run on the CPU, equal the plain array operations."""

import cuda_shim
import numpy as np
import pytest
from cuda_cases import DTYPES, cast, exact, near, wide

from disttrain.kernels import norm

rng = np.random.default_rng(0)
SHAPES = [(1, 3), (9, 40), (2, 1024), (3, 1501)]


def some(dtype, *shape):
    return cast(rng.standard_normal(shape), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_over_rows(shape, dtype, shim):
    x, residual, g = (some(dtype, *shape) for _ in range(3))
    A = str(wide(dtype))
    weight, bias = some(A, shape[1]), some(A, shape[1])
    mean, rstd = some(A, shape[0]), cast(rng.random(shape[0]) + 0.5, A)
    w, b, mu, r = exact(weight, bias, mean, rstd)

    out, *stats = norm._layer_norm_cuda(x, None, weight, bias, 1e-5)[1:]
    expected, *of_rows = norm.layer_norm_reference(*exact(x), w, b, 1e-5)
    near(out, expected, dtype, 2)
    near(tuple(stats), tuple(of_rows), A, 2)
    out, r_only = norm._rms_norm_cuda(x, None, weight, 1e-5)[1:]
    expected = norm.rms_norm_reference(*exact(x), w, 1e-5)
    near(out, expected[0], dtype, 2)
    near(r_only, expected[1], A)

    total = norm._layer_norm_cuda(x, residual, weight, bias, 1e-5)
    near(total[0], x.astype(np.float64) + residual.astype(np.float64), dtype)
    near(total[1], norm.layer_norm_reference(*exact(total[0]), w, b, 1e-5)[0], dtype, 2)
    total = norm._rms_norm_cuda(x, residual, weight, 1e-5)
    near(total[1], norm.rms_norm_reference(*exact(total[0]), w, 1e-5)[0], dtype, 2)

    gx, gw, gb = norm._layer_norm_grad_cuda(g, x, weight, mean, rstd)
    expected = norm.layer_norm_grad_reference(*exact(g, x), w, mu, r)
    near(gx, expected[0], dtype, 4)
    near((gw, gb), expected[1:], A, 4)
    gx, gw = norm._rms_norm_grad_cuda(g, x, weight, rstd)
    expected = norm.rms_norm_grad_reference(*exact(g, x), w, r)
    near(gx, expected[0], dtype, 4)
    near(gw, expected[1], A, 4)
    also = residual.astype(np.float64)
    gx, *_ = norm._layer_norm_grad_cuda(g, x, weight, mean, rstd, residual)
    near(gx, norm.layer_norm_grad_reference(*exact(g, x), w, mu, r, also=also)[0], dtype, 4)
    gx, _ = norm._rms_norm_grad_cuda(g, x, weight, rstd, residual)
    near(gx, norm.rms_norm_grad_reference(*exact(g, x), w, r, also=also)[0], dtype, 4)


def test_of_no_rows_there_is_nothing_to_add_up(shim):
    none, c = np.zeros((0, 7), np.float32), some("float32", 7)

    gx, gw, gb = norm._layer_norm_grad_cuda(none, none, c, c[:0], c[:0])

    assert gx.shape == (0, 7)
    assert not gw.any()
    assert not gb.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (150, 33), (513, 8)])
def test_over_columns(shape, dtype, shim):
    x, g, residual = (some(dtype, *shape) for _ in range(3))
    far = cast(rng.standard_normal(shape) + 100, dtype)
    A = str(wide(dtype))
    mean, a, b, c = (some(A, shape[1]) for _ in range(4))
    coefficients = exact(mean, a, b, c)
    y = cast(rng.integers(0, 2, shape), dtype)

    near(norm._channel_moments_cuda(far), norm.channel_moments_reference(*exact(far)), A)
    near(
        norm._channel_grad_sums_cuda(g, x, mean, None),
        norm.channel_grad_sums_reference(*exact(g, x, mean)),
        A,
    )
    near(
        norm._channel_grad_sums_cuda(g, x, mean, y),
        norm.channel_grad_sums_reference(*exact(g, x, mean), y=y),
        A,
    )
    near(
        norm._channel_affine_cuda(x, mean, a, b, None, False),
        norm.channel_affine_reference(*exact(x, mean, a, b)),
        dtype,
        2,
    )
    near(
        norm._channel_affine_cuda(x, mean, a, b, residual, True),
        norm.channel_affine_reference(*exact(x, mean, a, b), residual=residual.astype(np.float64), relu=True),
        dtype,
        2,
    )
    out = norm._channel_grad_cuda(g, x, None, mean, a, b, c, None)
    near(out, norm.channel_grad_reference(*exact(g, x), *coefficients), dtype, 2)
    out = norm._channel_grad_cuda(g, x, y, mean, a, b, c, None)
    near(out, norm.channel_grad_reference(*exact(g, x), *coefficients, y=y), dtype, 2)
    masked = cuda_shim.poisoned(g.shape, g.dtype)
    out = norm._channel_grad_cuda(g, x, y, mean, a, b, c, masked)
    expected = norm.channel_relu_grad_reference(*exact(g, x), y, *coefficients)
    near((out, masked), expected, dtype, 2)
