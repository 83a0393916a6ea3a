"""Memory for results: the arrays that NumPy would make, whoever provides it."""

import numpy as np
import pytest

from disttrain.kernels import buffers


class Source:
    """Provides memory, and counts."""

    def __init__(self):
        self.bytes = 0

    def __call__(self, shape, dtype):
        out = np.full(shape, 7, dtype)
        self.bytes += out.nbytes
        return out


@pytest.fixture(params=["system", "source"])
def source(request):
    """Memory of the system, and of a source that must have provided all that was made."""
    if request.param == "system":
        yield None
        return
    source = Source()
    with buffers.taken_from(source):
        yield source


LAYOUTS = {
    "rows": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "channels last": np.arange(24, dtype=np.float32).reshape(2, 4, 3).transpose(0, 2, 1),
    "turned": np.arange(24, dtype=np.float32).reshape(4, 3, 2).T,
    "gaps": np.arange(48, dtype=np.float32).reshape(2, 3, 8)[..., ::2],
    "repeats": np.broadcast_to(np.arange(4, dtype=np.float32), (2, 3, 4)),
    "scalar": np.array(3, np.float32),
    "nothing": np.empty((0, 3), np.float32),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_are_those_of_numpy_in_values_type_and_layout(source, layout):
    x = LAYOUTS[layout]
    pairs = [
        (buffers.convert(x, np.float64), x.astype(np.float64)),
        (buffers.contiguous(x), np.ascontiguousarray(x)),
        (buffers.contiguous(x, np.float16), np.ascontiguousarray(x, np.float16)),
        (buffers.copy(x), x.copy()),
        (buffers.zeros(x.shape, x.dtype), np.zeros(x.shape, x.dtype)),
        (buffers.reshape(x, (-1,)), x.reshape(-1)),
        (buffers.sum_over(x, tuple(range(x.ndim)), np.float64), x.sum(dtype=np.float64)),
    ]

    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours, theirs, strict=isinstance(ours, np.ndarray) and theirs.ndim > 0)
        if theirs.size > 1:
            assert ours.strides == theirs.strides
    like, known = buffers.empty_like(x), np.empty_like(x)
    assert (like.shape, like.dtype) == (known.shape, known.dtype)
    if x.size > 1:
        assert like.strides == known.strides


def test_nothing_is_made_of_what_is_there():
    x = LAYOUTS["rows"]
    source = Source()

    with buffers.taken_from(source):
        assert buffers.convert(x, np.float32) is x
        assert buffers.contiguous(x) is x
        assert buffers.reshape(x, (6, 4)).base is not None
        # A view, for axes are only divided.
        assert buffers.reshape(x.transpose(1, 0, 2), (3, 2, 2, 2)).size == 24

    assert source.bytes == 0


def test_all_that_is_made_is_provided():
    x, source = LAYOUTS["channels last"], Source()

    with buffers.taken_from(source):
        made = [
            buffers.empty(24, np.float32),
            buffers.copy(x),
            buffers.contiguous(x),
            buffers.reshape(x, (24,)),
            buffers.empty_like(x),
            buffers.convert(x, np.int32),
            buffers.spare(x),
        ]
        total = buffers.sum_over(LAYOUTS["rows"], (0,), np.float32, keepdims=True)

    assert source.bytes == 7 * 24 * 4 + total.nbytes
    assert all(m.nbytes == 96 for m in made)
    assert total.shape == (1, 3, 4)


def test_without_a_source_numpy_makes_its_results_itself():
    assert buffers.spare(LAYOUTS["rows"]) is None


def test_calls_apart_have_no_source_and_hand_on_errors():
    source = Source()

    def make(n, *, fail=False):
        if fail:
            raise ValueError("no")
        return buffers.empty(n, np.float32)

    with buffers.taken_from(source):
        assert buffers.apart(make)(3).shape == (3,)
        with pytest.raises(ValueError, match="no"):
            buffers.apart(make)(3, fail=True)
        assert source.bytes == 0
        make(3)
    assert source.bytes == 12


def test_choices_and_constants_are_those_of_numpy(source):
    x, mask = LAYOUTS["rows"], LAYOUTS["rows"] % 2 == 0
    pairs = [
        (buffers.where(mask, x, np.float32(1)), np.where(mask, x, np.float32(1))),
        (buffers.where(mask, 2.0, x), np.where(mask, 2.0, x)),
        (
            buffers.where(mask[:, :1], x, x[0].astype(np.float64)),
            np.where(mask[:, :1], x, x[0].astype(np.float64)),
        ),
        (buffers.where(LAYOUTS["turned"] > 3, 1, 0), np.where(LAYOUTS["turned"] > 3, 1, 0)),
        (buffers.full_like(x, 3), np.full_like(x, 3)),
        (buffers.full_like(LAYOUTS["turned"], np.float64(3)), np.full_like(LAYOUTS["turned"], 3)),
    ]

    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours, theirs, strict=True)
        assert ours.strides == theirs.strides


def test_results_are_laid_out_as_numpy_would():
    x, rows = LAYOUTS["channels last"], LAYOUTS["rows"].reshape(2, 3, 4)
    alike = x.astype(np.bool_)

    with buffers.taken_from(Source()):
        assert buffers.spare(x, alike).strides == (x * alike).strides
        assert buffers.spare(rows, rows > 2).strides == rows.strides
        assert buffers.spare(x, rows) is None
        assert buffers.spare(rows, rows[:1]) is None
        assert buffers.spare(LAYOUTS["gaps"], LAYOUTS["gaps"]) is None
