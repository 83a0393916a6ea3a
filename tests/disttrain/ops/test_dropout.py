import numpy as np
import pytest

from disttrain.kernels import random
from disttrain.ops.dropout import dropout, dropout_by_key

rng = np.random.default_rng(0)
X = rng.standard_normal((4, 5))
KEEP = rng.random((4, 5)) < 0.6


def test_kept_elements_are_scaled():
    out, saved, vjp = dropout(X, KEEP, p=0.4)

    np.testing.assert_allclose(out, np.where(KEEP, X / 0.6, 0))
    gx, none = vjp(np.ones_like(X), (True, False), *saved)
    np.testing.assert_allclose(gx, np.where(KEEP, 1 / 0.6, 0))
    assert none is None


def test_gradient_is_that_of_differences(check):
    check(dropout, X, KEEP, p=0.4)
    check(dropout, X, KEEP[:, :1], p=0.4)


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_random_bits_drop_the_given_part(p):
    bits = np.random.default_rng(1).integers(0, 2**32, 40_000, dtype=np.uint32)

    out, _, _ = dropout(np.ones(40_000, np.float32), bits, p=p)

    assert abs(np.mean(out == 0) - p) < 0.01
    assert out.dtype == np.float32


@pytest.mark.parametrize(
    ("keep", "p", "error", "message"),
    [
        (KEEP, 1.5, ValueError, r"p must be in \[0, 1\], got 1.5"),
        (KEEP[None], 0.5, ValueError, r"keep must have the shape of x, \(4, 5\), got \(1, 4, 5\)"),
        (KEEP.astype(np.int8), 0.5, TypeError, "keep must be bool or uint32, got int8"),
    ],
)
def test_names_what_is_wrong(keep, p, error, message):
    with pytest.raises(error, match=message):
        dropout(X, keep, p=p)


def test_by_a_key_it_draws_its_bits_itself(check):
    key = np.array([5, 1, 9, 0], np.uint64)
    bits = random.words(key, 10).view(np.uint32).reshape(X.shape)

    out, saved, vjp = dropout_by_key(X, key, p=0.4)

    np.testing.assert_array_equal(out, dropout(X, bits, p=0.4)[0])
    assert vjp(X, (True, False), *saved)[1] is None
    check(dropout_by_key, X, key, p=0.4)
