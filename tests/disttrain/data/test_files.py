"""Data sets in plain files, whole and damaged."""

import os

import numpy as np
import pytest

import disttrain as dt
from disttrain.data import CSVDataset, DataLoader, NumpyDataset, TokenDataset
from disttrain.errors import FileDamaged, SampleDamaged

X = np.random.default_rng(0).standard_normal((7, 3, 2)).astype(np.float32)


@pytest.fixture
def npy(tmp_path):
    def save(array, name="x.npy"):
        np.save(tmp_path / name, array)
        return tmp_path / name

    return save


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_of_numpy_files(npy, workers):
    data = NumpyDataset(npy(X), npy(np.arange(7), "y.npy"))
    batches = list(DataLoader(data, 3, num_workers=workers))

    np.testing.assert_array_equal(np.concatenate([x.numpy() for x, _ in batches]), X)
    assert [y.tolist() for _, y in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert (data[-1][0].numpy() == X[6]).all()
    assert NumpyDataset(npy(X), transform=lambda x: x.sum())[2].item() == pytest.approx(X[2].sum())


@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">i8", "bool"])
def test_dtypes_of_numpy_files(npy, dtype):
    array = np.array([0, 1, 1, 0]).astype(dtype)

    row = NumpyDataset(npy(array))[1].numpy()

    assert row == array[1]
    assert row.dtype == array.dtype.newbyteorder("=")


def test_numpy_files_that_cannot_be_read_are_named(npy, tmp_path):
    with pytest.raises(FileDamaged, match=r"x\.npy holds Python objects"):
        NumpyDataset(npy(np.array([{}, {}], object)))
    with pytest.raises(FileDamaged, match="in C order"):
        NumpyDataset(npy(np.asfortranarray(np.ones((3, 4)))))
    with pytest.raises(ValueError, match="same number of rows"):
        NumpyDataset(npy(X), npy(np.arange(6), "y.npy"))
    with pytest.raises(TypeError, match=r"x\.npy: no Tensor type for arrays of complex64"):
        NumpyDataset(npy(np.ones(3, np.complex64)))
    path = npy(X)
    whole = path.read_bytes()
    for length in (0, 5, 60, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FileDamaged, match=r"x\.npy"):
            NumpyDataset(path)
    with pytest.raises(FileNotFoundError):
        NumpyDataset(tmp_path / "none.npy")


def test_a_file_that_changes_while_it_is_read_is_named(npy):
    path = npy(X)
    data = NumpyDataset(path)
    assert (data[0].numpy() == X[0]).all()
    os.truncate(path, path.stat().st_size - 30)

    with pytest.raises(
        SampleDamaged, match=r"x\.npy was changed while it was in use.*sample 6, offset \d+, rank 0"
    ):
        data[6]


def test_a_table(tmp_path):
    path = tmp_path / "flowers.csv"
    path.write_text('width,height,"kind"\n1.5,2,rose\n\n3,4e1,aster\n5,6,rose\n', encoding="utf-8")

    data = CSVDataset(path, "kind")
    alone = CSVDataset(path, columns=["height"])
    number = CSVDataset(path, "height", ["width"])

    assert (len(data), data.columns, data.classes) == (3, ["width", "height"], ["aster", "rose"])
    assert [(x.tolist(), y.item()) for x, y in data] == [([1.5, 2], 1), ([3, 40], 0), ([5, 6], 1)]
    assert data[0][0].dtype is dt.float32
    assert data[0][1].dtype is dt.int64
    assert [x.item() for x in alone] == [2, 40, 6]
    assert [(x.item(), y.item()) for x, y in number] == [(1.5, 2), (3, 40), (5, 6)]
    assert CSVDataset(path, "height", ["width"], classes=True).classes == ["2", "6", "4e1"]


def test_a_table_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n3,x\n")
    with pytest.raises(FileDamaged, match=r"t\.csv, line 3: column 'b' is 'x'"):
        CSVDataset(path)
    with pytest.raises(ValueError, match="no column 'c'; it has a, b"):
        CSVDataset(path, "c")
    path.write_text("a,b\n1,2\n3\n")
    with pytest.raises(FileDamaged, match="line 3: 1 columns, but the first line names 2"):
        CSVDataset(path)
    path.write_text("")
    with pytest.raises(FileDamaged, match="empty"):
        CSVDataset(path)


def test_tokens(tmp_path):
    for name, begin, count in (("a.bin", 0, 10), ("b.bin", 100, 7)):
        np.arange(begin, begin + count, dtype=np.uint16).tofile(tmp_path / name)
    files = [tmp_path / "a.bin", tmp_path / "b.bin"]

    data = TokenDataset(files, 3)

    seen = [(x.tolist(), y.tolist()) for x, y in (data[i] for i in range(len(data)))]
    assert seen == [(list(range(b, b + 3)), list(range(b + 1, b + 4))) for b in (0, 3, 6, 100, 103)]
    x, y = next(iter(DataLoader(data, 5)))
    assert (x.tolist(), y.tolist()) == ([a for a, _ in seen], [b for _, b in seen])
    assert (x.dtype, x.shape) == (dt.int64, (5, 3))
    assert len(TokenDataset(files[0], 3, stride=1)) == 7
    assert TokenDataset(files[0], 9)[-1][1].tolist() == list(range(1, 10))


def test_tokens_that_cannot_be_read_are_named(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(7))
    with pytest.raises(FileDamaged, match="7 bytes, which is no whole number of uint16"):
        TokenDataset(path, 2)
    path.write_bytes(bytes(8))
    with pytest.raises(ValueError, match="no file has 5 tokens"):
        TokenDataset(path, 4)
    data = TokenDataset(path, 3)
    path.write_bytes(bytes(6))
    with pytest.raises(SampleDamaged, match=r"a\.bin was changed"):
        data[0]
