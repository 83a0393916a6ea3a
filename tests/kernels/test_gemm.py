import numpy as np
import pytest

from disttrain.kernels import gemm, threads

SHAPES = [
    (1, 640, 128),
    (7, 300, 90),
    (13, 64, 256),
    (128, 10, 1024),
    (61, 77, 513),
    (1000, 65, 7),
    (90, 1100, 300),
    (64, 150, 300),
    (128, 256, 20),
]
"""M, N, K: below, above and off the sizes of tiles and blocks; the last two for transposed products."""


def matrix(rng, rows, columns, by_column):
    x = rng.standard_normal((columns, rows) if by_column else (rows, columns)).astype(np.float32)
    return x.T if by_column else x


@pytest.fixture
def one_thread(monkeypatch):
    monkeypatch.setattr(threads, "_chosen", 1)
    monkeypatch.setattr(gemm, "_FROM", 1)  # small products too


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("columns_first", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_product_equals_its_reference(size, columns_first, with_bias):
    M, N, K = size
    rng = np.random.default_rng(0)
    a, b = matrix(rng, M, K, columns_first[0]), matrix(rng, K, N, columns_first[1])
    bias = rng.standard_normal(N).astype(np.float32) if with_bias else None

    out = gemm.matmul(a, b, bias=bias)

    exact = gemm.matmul_reference(a.astype(np.float64), b.astype(np.float64), bias=bias)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, exact, rtol=0, atol=1e-5 * np.sqrt(K))


@pytest.mark.usefixtures("one_thread")
def test_parts_of_matrices_are_copied_first():
    rng = np.random.default_rng(0)
    a, b = matrix(rng, 50, 200, False)[:, 10:150], matrix(rng, 280, 60, True)[::2]

    np.testing.assert_allclose(gemm.matmul(a, b), a @ b, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("size", SHAPES)
def test_nothing_beside_the_result_is_written(size):
    M, N, K = size
    rng = np.random.default_rng(0)
    a, b = matrix(rng, M, K, False), matrix(rng, K, N, M % 64 == 0)
    memory = np.full(M * N + 128, np.float32(7))

    gemm.matmul(a, b, memory[64:-64].reshape(M, N))

    assert (memory[:64] == 7).all()
    assert (memory[-64:] == 7).all()


@pytest.mark.usefixtures("one_thread")
def test_an_element_does_not_depend_on_what_is_beside_it():
    rng = np.random.default_rng(0)
    a, b = matrix(rng, 100, 700, False), matrix(rng, 700, 200, False)

    whole = gemm.matmul(a, b)

    assert np.array_equal(gemm.matmul(a[:31], b), whole[:31])
    assert np.array_equal(gemm.matmul(a[40:], b[:, :90].copy()), whole[40:, :90])


@pytest.mark.usefixtures("one_thread")
def test_a_transposed_product_has_the_same_bits():
    rng = np.random.default_rng(0)
    a, b = matrix(rng, 64, 700, False), matrix(rng, 700, 200, True)
    bias = rng.standard_normal(200).astype(np.float32)

    turned = gemm.matmul(a, b, bias=bias)

    assert np.array_equal(turned, gemm.matmul(a, np.ascontiguousarray(b), bias=bias))
    assert np.array_equal(turned[:31], gemm.matmul(a[:31], b, bias=bias))


@pytest.mark.usefixtures("one_thread")
def test_infinities_and_nan_stay_in_their_row_and_column():
    a, b = np.ones((100, 100), np.float32), np.ones((100, 100), np.float32)
    a[3, 50], b[20, 99] = np.inf, np.nan

    out = gemm.matmul(a, b)

    assert np.isinf(out[3, :99]).all()
    assert np.isnan(out[:, 99]).all()
    assert (np.delete(out, 3, 0)[:, :99] == 100).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_out_gets_the_result(dtype):
    rng = np.random.default_rng(0)
    a, b, out = (
        rng.standard_normal((64, 64)).astype(dtype),
        np.eye(64, dtype=dtype),
        np.zeros((64, 64), dtype),
    )

    assert gemm.matmul(a, b, out) is out
    assert np.array_equal(out, a)


@pytest.mark.parametrize("rows", [3, 300])
def test_shapes_that_do_not_fit_are_an_error(rows):
    with pytest.raises(ValueError, match="mismatch"):
        gemm.matmul(np.ones((rows, 40), np.float32), np.ones((41, 30), np.float32))
