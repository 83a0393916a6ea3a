"""The CUDA kernels of reductions, run on the CPU, equal the plain array operations."""

import numpy as np
import pytest
from cuda_cases import DTYPES, cast, exact, near

from disttrain.kernels import rows

rng = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (0, 4), (11, 10), (9, 64), (2, 1024), (3, 1501)])
def test_rows(shape, dtype, shim):
    x = cast(rng.standard_normal(shape), dtype)

    near(rows._row_sums_cuda(x), rows.row_sums(*exact(x)), dtype, 4)
    near(rows.row_sums(x), rows.row_sums(*exact(x)), dtype, 4)
    np.testing.assert_array_equal(rows._row_largest_cuda(x), rows.row_largest(x))
    x[:1, -1] = np.nan
    np.testing.assert_array_equal(rows._row_largest_cuda(x).astype(float), x.astype(float).max(1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 3000, 16384, 40003])
def test_whole_arrays(count, dtype, shim):
    x = cast(rng.random(count), dtype)

    near(rows._total_cuda(x), rows.total(*exact(x)), dtype)
    near(rows.total(x), rows.total(*exact(x)), dtype)
