"""Padding and packing of sequences against PyTorch."""

import itertools
from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain.nn.utils import rnn as ours

rng = np.random.default_rng(0)
X = rng.standard_normal((5, 3, 2))


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is the reference")


def same(a: Any, b: Any) -> None:
    """Compare results, whatever they are made of."""
    if isinstance(b, tuple | list):
        assert len(a) == len(b)
        for i, j in zip(a, b, strict=True):
            same(i, j)
    elif b is None:
        assert a is None
    else:
        assert str(a.dtype).split(".")[1] == str(b.dtype).split(".")[1]
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [[5, 3, 3], [4, 4, 1], [2, 5, 3], [1, 1, 1]])
def test_packing_and_padding(torch, lengths, batch_first):
    x = X.swapaxes(0, 1) if batch_first else X
    for given, total in itertools.product((list, "tensor"), (None, 7)):
        found = []
        for library, tools in ((torch, torch.nn.utils.rnn), (dt, ours)):
            leaf = library.from_numpy(x.copy()).requires_grad_()
            sizes = lengths if given is list else library.tensor(lengths)
            packed = tools.pack_padded_sequence(leaf, sizes, batch_first, enforce_sorted=False)
            padded, back = tools.pad_packed_sequence(packed, batch_first, -1.5, total)
            (g,) = library.autograd.grad((padded * padded).sum(), leaf)
            found.append(
                [
                    packed.data,
                    packed.batch_sizes,
                    packed.sorted_indices,
                    packed.unsorted_indices,
                    padded,
                    back,
                    g,
                ]
            )
        same(found[1], found[0])


def test_sorted_sequences_have_no_indices(torch):
    same(
        ours.pack_padded_sequence(dt.tensor(X), [5, 3, 2]),
        torch.nn.utils.rnn.pack_padded_sequence(torch.tensor(X), [5, 3, 2]),
    )


@pytest.mark.parametrize(
    ("shape", "lengths", "options", "message"),
    [
        ((5, 3, 2), [2, 5, 3], {}, "longest sequence must come first"),
        ((5, 3, 2), [5, 3, 0], {}, "lengths must be positive, got 0"),
        ((5, 3, 2), [5, 3], {}, "each of 3 sequences needs its length, got 2"),
        ((5, 0, 2), [], {}, "nothing to pack"),
        ((5, 3, 2), [[5, 3, 2]], {}, "one dimension"),
        ((5, 3, 2), [6, 3, 2], {}, "has 6, but the padded sequences have 5 steps"),
    ],
)
def test_what_cannot_be_packed(shape, lengths, options, message):
    with pytest.raises(RuntimeError, match=message):
        ours.pack_padded_sequence(dt.zeros(*shape), lengths, **options)


def test_what_cannot_be_padded():
    packed = ours.pack_padded_sequence(dt.zeros(5, 3, 2), [5, 3, 2])

    with pytest.raises(ValueError, match="total_length=4 is too short for a sequence of 5"):
        ours.pad_packed_sequence(packed, total_length=4)
    with pytest.raises(IndexError, match=r"got shape \(5,\)"):
        ours.pack_padded_sequence(dt.zeros(5), [5])


def test_sequences_of_different_lengths(torch):
    arrays = [X[:2, 0], X[:5, 1], X[:3, 2]]
    for library_pair in itertools.product((False, True), ("left", "right"), (0.0, 2.5)):
        batch_first, side, value = library_pair
        found = []
        for library, tools in ((torch, torch.nn.utils.rnn), (dt, ours)):
            leaves = [library.from_numpy(a.copy()).requires_grad_() for a in arrays]
            padded = tools.pad_sequence(leaves, batch_first, value, side)
            found.append([padded, *library.autograd.grad((padded * padded).sum(), leaves)])
        same(found[1], found[0])
    for tools, library in ((torch.nn.utils.rnn, torch), (ours, dt)):
        tensors = [library.from_numpy(a.copy()) for a in arrays]
        packed = tools.pack_sequence(tensors, enforce_sorted=False)
        same(tools.unpack_sequence(packed), tensors)
        padded = tools.pad_sequence(tensors, batch_first=True)
        same(tools.unpad_sequence(padded, library.tensor([2, 5, 3]), batch_first=True), tensors)


def test_padding_takes_any_iterable_and_keeps_the_first_type(torch):
    for library, tools, found in ((torch, torch.nn.utils.rnn, []), (dt, ours, [])):
        found.append(tools.pad_sequence(library.ones(n) for n in (2, 3)))
        found.append(tools.pad_sequence([library.ones(2), library.ones(3).double()]))
        found.append(tools.pad_sequence([library.ones(2).long(), library.ones(3).long()], padding_value=1.5))
        found.append(tools.pad_sequence(library.from_numpy(X.copy())))
        if library is torch:
            wanted = found
    same(found, wanted)


def test_what_cannot_be_put_together():
    with pytest.raises(RuntimeError, match="no sequences to pad"):
        ours.pad_sequence([])
    with pytest.raises(RuntimeError, match="'left' or 'right', got 'middle'"):
        ours.pad_sequence([dt.ones(2)], padding_side="middle")
    with pytest.raises(RuntimeError, match=r"differ in length only, got \[2, 3\] beside \[2, 2\]"):
        ours.pad_sequence([dt.ones(2, 2), dt.ones(2, 3)])
    with pytest.raises(RuntimeError, match="expected an iterable of tensors for sequences, got int"):
        ours.pad_sequence(5)
    with pytest.raises(ValueError, match="expected 3 lengths, one per sequence, got 2"):
        ours.unpad_sequence(dt.ones(5, 3), dt.tensor([1, 2]))


def test_a_packed_sequence_is_a_tuple_that_converts():
    packed = ours.pack_padded_sequence(dt.tensor(X), [2, 5, 3], enforce_sorted=False)

    assert packed._fields == ("data", "batch_sizes", "sorted_indices", "unsorted_indices")
    assert packed.cpu() is packed
    assert packed.to(dt.float64) is packed
    assert not packed.is_cuda
    kinds = {"float": "float32", "double": "float64", "half": "float16"}
    kinds |= {"long": "int64", "int": "int32", "short": "int16", "char": "int8", "byte": "uint8"}
    for name, kind in kinds.items():
        other = getattr(packed, name)()
        assert isinstance(other, ours.PackedSequence)
        assert other.data.dtype is getattr(dt, kind)
        assert other.batch_sizes is packed.batch_sizes
    again = ours.PackedSequence(packed.data, packed.batch_sizes, packed.sorted_indices)
    assert again.unsorted_indices.tolist() == packed.unsorted_indices.tolist()
    assert ours.invert_permutation(dt.tensor([2, 0, 1])).tolist() == [1, 2, 0]
    assert ours.invert_permutation(None) is None
    with pytest.raises(ValueError, match="make it with pack_padded_sequence"):
        ours.PackedSequence(packed.data)
