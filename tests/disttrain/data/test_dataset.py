import numpy as np
import pytest

import disttrain as dt
from disttrain.data import (
    ChainDataset,
    ConcatDataset,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
    datasets,
    random_split,
)


class Numbers(Dataset):
    def __init__(self, numbers):
        self.numbers = list(numbers)

    def __getitem__(self, index):
        return self.numbers[index]

    def __len__(self):
        return len(self.numbers)


class Stream(IterableDataset):
    def __init__(self, n):
        self.n = n

    def __iter__(self):
        return iter(range(self.n))

    def __len__(self):
        return self.n


def test_tensor_dataset_gives_rows():
    data = TensorDataset(dt.arange(6).reshape(3, 2), dt.tensor([7, 8, 9]))

    x, y = data[1]

    assert (x.tolist(), y.item(), len(data)) == ([2, 3], 8, 3)
    with pytest.raises(ValueError, match="same first dimension"):
        TensorDataset(dt.ones(2), dt.ones(3))
    with pytest.raises(ValueError, match="at least one"):
        TensorDataset()


def test_concatenation_counts_through():
    data = Numbers([1, 2]) + Numbers([]) + Numbers([3])

    assert [data[i] for i in range(-3, 3)] == [1, 2, 3, 1, 2, 3]
    assert len(data) == 3
    for index in (3, -4):
        with pytest.raises(IndexError, match="out of range"):
            data[index]
    with pytest.raises(ValueError, match="at least one"):
        ConcatDataset([])
    with pytest.raises(TypeError, match="ChainDataset"):
        ConcatDataset([Stream(2)])


def test_chains_of_streams():
    data = Stream(2) + Stream(3)

    assert list(data) == [0, 1, 0, 1, 2]
    assert len(data) == 5
    with pytest.raises(TypeError, match="IterableDataset"):
        list(ChainDataset([Numbers([1])]))


def test_subset():
    data = Subset(Numbers("abcd"), [3, 1])

    assert [data[0], data[1]] == ["d", "b"]


@pytest.mark.parametrize("lengths", [[0.5, 0.3, 0.2], [0.34, 0.33, 0.33], [4, 3, 4], [1.0], [0.1] * 10])
def test_split_lengths_equal_pytorch(lengths):
    torch = pytest.importorskip("torch")

    ours = random_split(Numbers(range(11)), lengths, dt.Generator().manual_seed(1))
    theirs = torch.utils.data.random_split(range(11), lengths)

    assert [len(part) for part in ours] == [len(part) for part in theirs]
    assert sorted(i for part in ours for i in part.indices) == list(range(11))
    again = random_split(Numbers(range(11)), lengths, dt.Generator().manual_seed(1))
    assert [part.indices for part in again] == [part.indices for part in ours]


def test_wrong_splits_are_refused():
    for lengths in ([3, 3], [0.5, 0.4], [12, -1]):
        with pytest.raises(ValueError, match="do not sum up"):
            random_split(Numbers(range(11)), lengths)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        random_split(Numbers(range(11)), [1.5, -0.5])
    with pytest.warns(UserWarning, match="part 1 of the split has no samples"):
        random_split(Numbers([1]), [0.9, 0.1])


def test_digits_are_the_ones_of_the_uci_set():
    train, test = datasets.Digits(train=True), datasets.Digits(train=False)

    assert (len(train), len(test)) == (1442, 355)
    for data in (train, test):
        assert data.images.shape == (len(data), 1, 8, 8)
        assert data.images.dtype is dt.float32
        assert (data.images.min().item(), data.images.max().item()) == (0, 1)
        counts = np.bincount(data.labels.numpy())
        assert len(counts) == 10
        assert counts.max() - counts.min() <= 9
    image, label = train[0]
    assert isinstance(label, int)
    assert image.shape == (1, 8, 8)


def test_digits_equal_the_copy_of_scikit_learn():
    source = pytest.importorskip("sklearn.datasets").load_digits()

    images = np.concatenate([datasets.Digits(train=t).images.numpy()[:, 0] * 16 for t in (True, False)])

    assert sorted(map(bytes, images.astype(np.uint8))) == sorted(map(bytes, source.images.astype(np.uint8)))


def test_no_digit_is_both_trained_and_tested_on():
    train, test = (datasets.Digits(train=t).images.numpy() for t in (True, False))

    assert not {a.tobytes() for a in train} & {a.tobytes() for a in test}


def test_digits_apply_transforms():
    data = datasets.Digits(transform=lambda image: image * 0, target_transform=lambda label: -label)

    image, label = data[3]

    assert image.sum().item() == 0
    assert label == -datasets.Digits()[3][1]


def test_stacked_data_sets_give_a_tuple_or_a_dict_of_a_sample_of_each():
    squares, words = Numbers([0, 1, 4]), Numbers(["a", "b", "c"])

    assert [StackDataset(squares, words)[i] for i in range(3)] == [(0, "a"), (1, "b"), (4, "c")]
    assert StackDataset(n=squares, word=words)[1] == {"n": 1, "word": "b"}
    assert len(StackDataset(squares)) == 3
    batch = next(iter(dt.data.DataLoader(StackDataset(n=squares, word=words), 3)))
    assert batch["n"].tolist() == [0, 1, 4]
    assert batch["word"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("positions", "names", "text"),
    [
        ((), {}, "needs data sets, either by position or by name"),
        ((Numbers([1]),), {"n": Numbers([1])}, "got 1 by position and 1 by name"),
        ((Numbers([1]), Numbers([1, 2])), {}, r"need the same length, got \[1, 2\]"),
    ],
)
def test_data_sets_that_cannot_be_stacked_are_refused(positions, names, text):
    with pytest.raises(ValueError, match=text):
        StackDataset(*positions, **names)
