import numpy as np
import pytest

from disttrain.ops.embedding import (
    bag_maximum,
    embedding,
    embedding_grad,
    inverse_frequency,
    pick_winners,
    spread_to_winners,
)

torch = pytest.importorskip("torch", reason="PyTorch is the reference")
rng = np.random.default_rng(0)
TABLE = rng.standard_normal((7, 3))
INDICES = np.array([[0, 2, 2, 6], [6, 2, 1, 0]])


@pytest.mark.parametrize("padding_idx", [None, 2, -1])
def test_is_that_of_torch(compare, padding_idx):
    def reference(w, i):
        return torch.nn.functional.embedding(i, w, padding_idx=padding_idx)

    compare(embedding, reference, TABLE, INDICES, padding_idx=padding_idx)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64])
def test_gradients_are_those_of_differences(check, dtype):
    check(embedding, TABLE, INDICES.astype(dtype))
    check(embedding_grad, rng.standard_normal((2, 4, 3)), INDICES.astype(dtype), rows=7, padding_idx=6)


def test_gradients_by_frequency_are_those_of_torch(compare):
    def reference(w, i):
        return torch.nn.functional.embedding(i, w, scale_grad_by_freq=True)

    compare(embedding, reference, TABLE, INDICES, by_frequency=True, second=False)
    out = inverse_frequency(INDICES, rows=7, like=np.dtype(np.float32))[0]
    np.testing.assert_allclose(out[..., 0], [[1 / 2, 1 / 3, 1 / 3, 1 / 2], [1 / 2, 1 / 3, 1, 1 / 2]], 1e-6)
    assert out.dtype == np.float32


def test_maxima_of_bags(check):
    bags = np.array([0, 0, 0, 2, 2, 3, 3])

    out = bag_maximum(TABLE, bags, count=4)[0]

    np.testing.assert_array_equal(out, [TABLE[:3].max(0), np.zeros(3), TABLE[3:5].max(0), TABLE[5:].max(0)])
    check(bag_maximum, TABLE, bags, count=4)
    winners = np.array([[0, 2, 1], [-1, -1, -1], [3, 3, 4]])
    check(spread_to_winners, rng.standard_normal((3, 3)), winners, shape=(7, 3))
    check(pick_winners, TABLE, winners)


def test_no_indices_give_no_rows_and_a_zero_gradient():
    out, saved, vjp = embedding(TABLE, np.zeros((0, 2), np.int64))

    assert out.shape == (0, 2, 3)
    np.testing.assert_array_equal(vjp(out, (True, False), *saved)[0], np.zeros((7, 3)))


def test_rows_add_up_in_the_order_of_the_indices():
    g = np.array([[1e8], [1.0], [-1e8], [1.0]], np.float32)

    out = embedding_grad(g, np.zeros(4, np.int64), rows=1, padding_idx=None)[0]

    assert out[0, 0] == ((np.float32(1e8) + np.float32(1)) - np.float32(1e8)) + np.float32(1)


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        (
            np.array([[0, 7]]),
            IndexError,
            r"index 7 at position \[0, 1\] is out of range: must be in \[0, 7\)",
        ),
        (np.array([0, 1, -1]), IndexError, r"index -1 at position \[2\]"),
        (
            np.arange(3000).reshape(2, 1500) % 8,
            IndexError,
            r"index 7 at position \[0, 7\]",
        ),  # a compiled kernel's
        (np.array([0.0]), RuntimeError, "indices must be integers, got float64"),
    ],
)
def test_names_what_is_wrong(indices, error, message):
    with pytest.raises(error, match=message):
        embedding(TABLE, indices)
