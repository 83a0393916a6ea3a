from collections import defaultdict, namedtuple

import numpy as np
import pytest

import disttrain as dt
from disttrain.data import default_collate, default_convert
from disttrain.data.collate import empty_like

Point = namedtuple("Point", ["x", "y"])


def plain(batch):
    """Return the batch with tensors as (dtype, values), to compare across libraries."""
    if hasattr(batch, "dtype") and hasattr(batch, "tolist"):
        return (str(batch.dtype).split(".")[-1], batch.tolist())
    if isinstance(batch, dict):
        return (type(batch).__name__, {key: plain(value) for key, value in batch.items()})
    if isinstance(batch, list | tuple):
        return (type(batch).__name__, [plain(value) for value in batch])
    return batch


SAMPLES = {
    "floats": [1.5, 2.0],
    "ints": [1, 2],
    "ints and more": [1, 2.5],
    "bools and more": [True, 2],
    "bools": [True, False],
    "strings": ["a", "b"],
    "bytes": [b"a", b"b"],
    "tuples": [(1, 2.0), (3, 4.0)],
    "lists": [[1, 2], [3, 4]],
    "dicts": [{"a": 1, "b": [1.0]}, {"a": 2, "b": [2.0]}],
    "named": [Point(1, 2.0), Point(3, 4.0)],
    "arrays": [np.array([1.0, 2.0], np.float32), np.array([3.0, 4.0], np.float32)],
    "scalars": [np.float32(1), np.float32(2)],
    "numpy bools": [np.bool_(True), np.bool_(False)],
    "zero-dimensional": [np.array(1), np.array(2)],
    "one": [3],
    "nested": [({"a": (np.zeros(2), "s")}, 1), ({"a": (np.ones(2), "t")}, 2)],
}


@pytest.mark.parametrize("samples", SAMPLES.values(), ids=SAMPLES)
def test_batches_equal_pytorch(samples):
    torch_data = pytest.importorskip("torch.utils.data")

    assert plain(default_collate(samples)) == plain(torch_data.default_collate(samples))
    assert plain(default_convert(samples)) == plain(torch_data.default_convert(samples))


def test_tensors_are_stacked():
    batch = default_collate([dt.tensor([1.0, 2.0]), dt.tensor([3.0, 4.0])])

    assert batch.tolist() == [[1, 2], [3, 4]]
    assert default_collate([dt.ones(2, dtype=dt.bfloat16)] * 3).dtype is dt.bfloat16


def test_mapping_and_sequence_types_are_kept():
    class Words(list):
        pass

    counts = defaultdict(int, a=1)

    batch = default_collate([counts, counts])
    words = default_collate([Words([1]), Words([2])])

    assert isinstance(batch, defaultdict)
    assert batch.default_factory is int
    assert isinstance(words, Words)
    assert [type(x) for x in default_collate([range(2), range(2)])] == [dt.Tensor, dt.Tensor]


def test_memory_maps_are_copied_into_a_batch(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(4))
    rows = np.load(tmp_path / "a.npy", mmap_mode="r")

    assert default_collate([rows[:2], rows[2:]]).tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("samples", "error", "words"),
    [
        ([object()], TypeError, "give the DataLoader a collate_fn"),
        ([None], TypeError, "NoneType"),
        ([np.array(["a"])], TypeError, "arrays of <U1"),
        ([np.array([None])], TypeError, "arrays of object"),
        ([np.zeros(2, np.uint16)], TypeError, "uint16"),
        ([[1], [1, 2]], RuntimeError, "equal lengths"),
        ([np.zeros(2), np.zeros(3)], RuntimeError, r"\[2\] for sample 0 and \[3\] for sample 1"),
    ],
)
def test_what_makes_no_batch_is_refused(samples, error, words):
    with pytest.raises(error, match=words):
        default_collate(samples)


def test_an_empty_batch_has_the_same_form():
    batch = default_collate([(np.zeros((2, 3), np.float32), {"label": 1, "name": "a"}, Point(1.0, [2]))])

    image, fields, point = empty_like(batch)

    assert (image.shape, image.dtype) == ((0, 2, 3), dt.float32)
    assert (fields["label"].shape, fields["label"].dtype, fields["name"]) == ((0,), dt.int64, [])
    assert isinstance(point, Point)
    assert (point.x.shape, point.x.dtype, point.y[0].shape) == ((0,), dt.float64, (0,))
