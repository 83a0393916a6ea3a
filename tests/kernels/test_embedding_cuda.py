"""The CUDA kernels of embedding, run on the CPU, equal the plain array operations; the gradient sums in one order."""

import numpy as np
import pytest
from cuda_cases import DTYPES, cast, near

from disttrain.kernels import embedding

rng = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [1, 5, 64, 300])
def test_rows(D, dtype, shim):
    table, g = cast(rng.standard_normal((7, D)), dtype), cast(rng.standard_normal((40, D)), dtype)
    indices = cast(rng.integers(0, 6, 40), "int64")

    np.testing.assert_array_equal(
        embedding._take_rows_cuda(table, indices), embedding.take_rows(table, indices)
    )
    for skip in (-1, 3):
        ours = embedding._add_rows_cuda(g, indices, 7, skip)
        if dtype in ("float32", "float64"):
            np.testing.assert_array_equal(ours, embedding.add_rows_reference(g, indices, 7, skip))
        near(ours, embedding.add_rows_reference(g.astype(np.float64), indices, 7, skip), dtype)


def test_of_nothing_comes_nothing(shim):
    none = np.zeros(0, np.int64)

    assert embedding._take_rows_cuda(np.ones((3, 2), np.float32), none).shape == (0, 2)
    assert not embedding._add_rows_cuda(np.ones((0, 2), np.float32), none, 3, -1).any()
