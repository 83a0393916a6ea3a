"""Rows taken from a table on the CPU: against indexing, and what is refused."""

import numpy as np
import pytest

from disttrain.kernels import embedding


@pytest.mark.parametrize("D", [1, 16, 40, 128])
@pytest.mark.parametrize("kind", [np.int64, np.int32])
def test_rows_are_those_of_the_table(D, kind):
    rng = np.random.default_rng(0)
    table, indices = rng.standard_normal((50, D)).astype(np.float32), rng.integers(0, 50, (7, 6)).astype(kind)
    memory = np.full(42 * D + 32, np.float32(7))
    out = memory[16:-16].reshape(7, 6, D)

    assert embedding.fill_rows(table, indices.T, out.reshape(6, 7, D))

    np.testing.assert_array_equal(out.reshape(6, 7, D), table[indices.T])
    assert (memory[:16] == 7).all()
    assert (memory[-16:] == 7).all()


@pytest.mark.parametrize("wrong", [-1, 50, np.iinfo(np.int64).min, np.iinfo(np.int64).max])
@pytest.mark.parametrize("place", [0, 5, 9])
def test_an_index_out_of_range_is_seen(wrong, place):
    indices = np.arange(10)
    indices[place] = wrong

    assert not embedding.fill_rows(np.ones((50, 20), np.float32), indices, np.empty((10, 20), np.float32))


def test_other_arrays_are_not_served():
    indices, out = np.arange(3), np.empty((3, 4))

    assert not embedding.fill_rows(np.ones((5, 4)), indices, out)
    assert not embedding.fill_rows(np.ones((4, 5), np.float32).T, indices, out.astype(np.float32))
    assert not embedding.fill_rows(
        np.ones((5, 4), np.float32), indices.astype(np.uint8), out.astype(np.float32)
    )
