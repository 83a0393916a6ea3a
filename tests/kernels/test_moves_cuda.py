"""The CUDA kernels of column sums, layouts and buckets, run on the CPU, equal the plain array operations."""

import numpy as np
import pytest
from cuda_cases import DTYPES, arrays_at, cast, kind, near

from disttrain.kernels import buckets, casts, columns, layout

rng = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (5, 40), (300, 33), (1000, 2)])
def test_column_sums(shape, dtype, shim):
    x = cast(rng.standard_normal(shape), dtype)

    near(columns._column_sums_cuda(x), columns.column_sums_reference(x.astype(np.float64)), dtype)
    near(columns.column_sums(x), columns.column_sums_reference(x.astype(np.float64)), dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, "int64", "uint8"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 33, 31), (2, 64, 70), (0, 2, 3), (2, 1, 100)])
def test_transpose(shape, dtype, shim):
    x = cast(rng.integers(0, 100, shape), dtype)

    np.testing.assert_array_equal(layout._transpose_cuda(x), layout.transpose(x))


@pytest.mark.parametrize("dtype", [*DTYPES, "uint8"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 3, 7), (3, 4, 6, 8), (2, 0, 3, 4), (2, 3, 4, 0)])
def test_swap_middle(shape, dtype, shim):
    x = cast(rng.integers(0, 100, shape), dtype)

    np.testing.assert_array_equal(layout._swap_middle_cuda(x), layout.swap_middle(x))


@pytest.mark.parametrize("before", DTYPES)
@pytest.mark.parametrize("after", DTYPES)
@pytest.mark.parametrize("shape", [(0,), (7,), (3, 4096)])
def test_casts(shape, after, before, shim):
    x = cast(rng.standard_normal(shape), before)
    for key in (None, np.array([1, 2, 3, 4], np.uint64)):
        ours, theirs = casts._cast_cuda(x, kind(after), key), casts.cast(x, kind(after), key)
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("inside", DTYPES)
@pytest.mark.parametrize("outside", DTYPES)
def test_buckets(outside, inside, shim):
    upload, download = arrays_at(shim)  # the kernels are given addresses
    sizes = [(3,), (70, 60), (), (0, 4), (4096,), (5,)]
    arrays = [cast(rng.standard_normal(s), outside) for s in sizes]
    count, factor = sum(a.size for a in arrays), cast([0.3], "float32")
    for f in (None, factor):
        ours, theirs = cast(np.zeros(count), inside), cast(np.zeros(count), inside)
        there = upload(ours)
        buckets._move_cuda("pack", [upload(a) for a in arrays], there, f)
        ours = download(there)
        buckets.pack(arrays, theirs, f)
        assert ours.tobytes() == theirs.tobytes()
        back, expected = ([np.zeros_like(a) for a in arrays] for _ in range(2))
        back = [upload(a) for a in back]
        buckets._move_cuda("unpack", back, upload(ours), f)
        back = [download(a) for a in back]
        buckets.unpack(theirs, expected, f)
        assert [a.tobytes() for a in back] == [a.tobytes() for a in expected]


def test_buckets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"a bucket of 5 elements is needed, got shape \(4,\)"):
        buckets.pack([np.zeros(5)], np.zeros(4))
    with pytest.raises(ValueError, match="C-contiguous arrays of one type"):
        buckets.unpack(np.zeros(4), [np.zeros(2), np.zeros(2, np.float32)])


def tree_over(parts):
    """Return the tree of the ranks, whose left subtree has a power of two of them."""
    if len(parts) == 1:
        return parts[0]
    middle = 1 << ((len(parts) - 1).bit_length() - 1)
    return tree_over(parts[:middle]), tree_over(parts[middle:])


def leaning(parts, left):
    """Return a tree whose sums are taken one after another, from the left or from the right."""
    if len(parts) == 1:
        return parts[0]
    return (leaning(parts[:-1], left), parts[-1]) if left else (parts[0], leaning(parts[1:], left))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 7, 8, 13, 29])
def test_sums_of_ranks_have_the_bits_of_the_tree(ranks, dtype, shim):
    parts = list(cast(rng.standard_normal((ranks, 300)), dtype))
    wide = np.float64 if dtype == "float64" else np.float32

    for tree in (tree_over(parts), leaning(parts, True), leaning(parts, False)):
        for to in {parts[0].dtype, np.dtype(wide)}:
            ours, theirs = np.zeros(300, to), np.zeros(300, to)
            buckets.fold_tree(tree, theirs)
            buckets._fold_tree_cuda(tree, ours)
            assert ours.tobytes() == theirs.tobytes()
    theirs = np.zeros_like(parts[0])
    buckets.fold_tree(tree_over(parts), theirs)
    buckets._fold_tree_cuda(tree_over(parts), parts[-1])
    assert parts[-1].tobytes() == theirs.tobytes()
