import numpy as np
import pytest

from disttrain.kernels import columns


@pytest.mark.parametrize("shape", [(1, 5000), (3, 2000), (64, 100), (203, 77), (5, 7)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_columns_are_summed_row_by_row(shape, dtype):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    exact = x[0].copy()
    for row in x[1:]:
        exact += row

    out = columns.column_sums(x)

    assert out.dtype == dtype
    np.testing.assert_array_equal(out, exact)


@pytest.mark.parametrize(
    "of", [lambda x: x.T, lambda x: x[:, ::2], lambda x: x[:0], lambda x: x.astype(np.float16)]
)
def test_any_matrix_can_be_summed(of):
    x = of(np.random.default_rng(0).standard_normal((100, 60)).astype(np.float32))

    out = columns.column_sums(x)

    assert out.dtype == x.dtype
    np.testing.assert_allclose(
        out, x.astype(np.float64).sum(0), rtol=2e-3, atol=1e-2 if x.itemsize == 2 else 1e-4
    )
