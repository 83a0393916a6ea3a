"""Embedding bags and dropout against PyTorch."""

from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain.nn import functional as F

rng = np.random.default_rng(4)
TABLE = rng.standard_normal((7, 3))
FLAT = np.array([1, 2, 2, 6, 0, 5, 2, 3])
GRID = FLAT.reshape(2, 4)
WEIGHTS = rng.standard_normal(8)
OFFSETS = np.array([0, 3, 3, 7])

Case = tuple[tuple[Any, ...], dict[str, Any]]

CASES: dict[str, list[Case]] = {
    "embedding_bag": [
        case
        for mode in ("sum", "mean", "max")
        for case in (
            ((GRID, TABLE), {"mode": mode}),
            ((FLAT, TABLE, OFFSETS), {"mode": mode}),
            ((FLAT, TABLE, OFFSETS), {"mode": mode, "padding_idx": 2}),
            ((FLAT, TABLE, OFFSETS), {"mode": mode, "include_last_offset": True}),
            ((FLAT[:0], TABLE, OFFSETS[:1]), {"mode": mode}),
        )
    ]
    + [
        ((FLAT, TABLE, OFFSETS, None, 2.0, False, "sum", False, WEIGHTS), {}),
    ],
    # Compared below: random.
    "dropout1d": [],
    "dropout2d": [],
    "dropout3d": [],
    "alpha_dropout": [],
    "feature_alpha_dropout": [],
}
ALL = [pytest.param(n, *case, id=f"{n}-{i}") for n, cases in CASES.items() for i, case in enumerate(cases)]


@pytest.mark.parametrize(("name", "args", "options"), ALL)
def test_function_is_that_of_torch(name, args, options):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    found = []
    for lib in (torch, dt):
        given = [lib.tensor(a) if isinstance(a, np.ndarray) else a for a in args]
        leaves = [t.requires_grad_() for t in given if lib.is_tensor(t) and t.dtype == lib.float64]
        out = getattr(lib.nn.functional, name)(*given, **options)
        grads = lib.autograd.grad((out * out).sum(), leaves)
        found.append([out.detach().numpy(), *(g.numpy() for g in grads)])

    for ours, theirs in zip(found[1], found[0], strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, 1e-12, 1e-12)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, float("inf")])
@pytest.mark.parametrize("bag", [False, True])
def test_norms_are_limited_in_place_as_in_torch(norm_type, bag):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    found = []
    for lib in (torch, dt):
        table = lib.tensor(TABLE * 2)
        if bag:
            out = lib.nn.functional.embedding_bag(lib.tensor(GRID), table, max_norm=1.0, norm_type=norm_type)
        else:
            out = lib.nn.functional.embedding(lib.tensor(GRID), table, max_norm=1.0, norm_type=norm_type)
        found.append((out.numpy(), table.numpy()))

    np.testing.assert_allclose(found[1][0], found[0][0], 1e-6)
    np.testing.assert_allclose(found[1][1], found[0][1], 1e-6)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("name", "shape", "channels"),
    [
        ("dropout1d", (40, 50, 3), 2),
        ("dropout1d", (2000, 3), 1),
        ("dropout2d", (40, 50, 2, 3), 2),
        ("dropout3d", (40, 50, 2, 1, 3), 2),
        ("dropout3d", (2000, 2, 1, 3), 1),
    ],
)
def test_whole_channels_are_dropped(name, shape, channels, inplace):
    dt.manual_seed(0)
    x = dt.ones(*shape, requires_grad=True)

    y = getattr(F, name)(x * 1, 0.3, True, inplace)

    rows = y.detach().numpy().reshape(2000, -1)
    assert (rows == rows[:, :1]).all()
    assert set(np.round(rows[:, 0], 5).tolist()) == {0.0, np.round(np.float32(1 / 0.7), 5)}
    assert abs((rows[:, 0] == 0).mean() - 0.3) < 0.04
    (g,) = dt.autograd.grad(y.sum(), x)
    np.testing.assert_array_equal(g.numpy(), y.detach().numpy())
    assert (getattr(F, name)(x, 0.3, False) == x).all()
    assert (getattr(F, name)(x, 1.0) == 0).all()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ["alpha_dropout", "feature_alpha_dropout"])
def test_alpha_dropout_keeps_mean_and_variance(name, inplace):
    dt.manual_seed(0)
    x = dt.randn(200, 100, 5, requires_grad=True)

    y = getattr(F, name)(x * 1, 0.2, True, inplace).detach().numpy()

    assert abs(y.mean()) < 0.03
    assert abs(y.std() - 1) < 0.03
    values, counts = np.unique(y, return_counts=True)
    low = values[counts.argmax()]
    rows = (y == low).reshape(-1, 5)
    assert abs(rows.mean() - 0.2) < 0.02
    assert rows.all(1).mean() > 0.15 if name == "feature_alpha_dropout" else rows.all(1).mean() < 0.01
    assert getattr(F, name)(x, 0.2) is x
    assert (getattr(F, name)(x, 1.0, True) == 0).all()


def test_dropout2d_warns_of_other_shapes_as_torch():
    with pytest.warns(UserWarning, match="dropout2d: an input of 2 dimensions"):
        F.dropout2d(dt.ones(2, 3))
    with pytest.warns(UserWarning, match="dropout2d: an input of 3 dimensions"):
        F.dropout2d(dt.ones(2, 3, 4))
    with pytest.warns(UserWarning, match="dropout3d: an input of 3 dimensions"):
        F.dropout3d(dt.ones(2, 3, 4))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda i, w: F.embedding_bag(i, w, dt.tensor([0])),
            ValueError,
            "so offsets must be None",
        ),
        (lambda i, w: F.embedding_bag(i[0], w), ValueError, "needs a vector of offsets"),
        (lambda i, w: F.embedding_bag(i[None], w), ValueError, r"a vector or \(bags"),
        (lambda i, w: F.embedding_bag(i, w[0]), ValueError, "weight is a table"),
        (lambda i, w: F.embedding_bag(i, w, mode="min"), ValueError, "'sum', 'mean' or 'max', got 'min'"),
        (
            lambda i, w: F.embedding_bag(i, w, mode="max", sparse=True),
            ValueError,
            "mode='max' goes with neither",
        ),
        (lambda i, w: F.embedding_bag(i, w, per_sample_weights=w), ValueError, "must have the shape"),
        (
            lambda i, w: F.embedding_bag(i, w, per_sample_weights=i.double()),
            NotImplementedError,
            "goes with mode='sum'",
        ),
        (
            lambda i, w: F.embedding_bag(i, w, mode="sum", per_sample_weights=i.float()),
            RuntimeError,
            "of one dtype",
        ),
        (
            lambda i, w: F.embedding_bag(i, w, padding_idx=7),
            RuntimeError,
            "one of the 7 rows, got 7",
        ),
        (lambda i, w: F.embedding_bag(i + 1, w), IndexError, r"out of range: must be in \[0, 7\)"),
        (lambda i, w: F.embedding_bag(i[0], w, dt.tensor([1, 2])), RuntimeError, r"offsets\[0\] has to be 0"),
        (lambda i, w: F.embedding_bag(i[0], w, dt.tensor([0, 9])), RuntimeError, "9, lies behind the 4"),
        (lambda i, w: F.embedding_bag(i[0], w, dt.tensor([0, 3, 2])), RuntimeError, "must not descend"),
        (lambda i, w: F.embedding(i, w, 7), ValueError, "padding_idx must be in"),
        (lambda i, w: F.embedding(i.to(dt.int16), w), RuntimeError, "int64 or int32, got disttrain.int16"),
        (lambda i, w: F.dropout1d(w[0]), RuntimeError, r"got shape \(3,\)"),
        (lambda i, w: F.dropout(i), RuntimeError, "dropout of disttrain.int64"),
        (lambda i, w: F.alpha_dropout(w, 2.0), ValueError, r"in \[0, 1\], got 2.0"),
        (
            lambda i, w: F.feature_alpha_dropout(w[0], 0.5, True),
            RuntimeError,
            "samples and features, got 1",
        ),
    ],
)
def test_what_torch_refuses_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(dt.tensor(GRID), dt.tensor(TABLE))


def test_one_hot_refuses_what_torch_refuses():
    i = dt.tensor([0, 2])
    for call, message in (
        (lambda: F.one_hot(i.int()), "int64, got disttrain.int32"),
        (lambda: F.one_hot(i, 2), r"must be in \[0, 2\), got 0 to 2"),
        (lambda: F.one_hot(i, 0), "must be positive"),
        (lambda: F.one_hot(i[:0]), "cannot infer"),
        (lambda: F.one_hot(i - 1), "must be in"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
    assert F.one_hot(i[:0], 3).shape == (0, 3)
