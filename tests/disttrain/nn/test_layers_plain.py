"""Activations, losses, dropout, distances and bags as layers against PyTorch."""

from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain import nn

rng = np.random.default_rng(11)
X, Y, Z = (rng.standard_normal((4, 6)) * 2 for _ in range(3))
P = rng.random((4, 6)) * 0.9 + 0.05
IMAGES = rng.standard_normal((2, 4, 3, 2))
LABELS = np.array([5, 0, 3, 1])
SETS = np.array([[1, 3, -1, 2, 0, 0], [0, -1, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0], [-1, 2, 0, 0, 0, 0]])
SIGNS = np.array([1, -1, -1, 1])
BAGS = np.array([[0, 2, 2], [4, 1, 0]])


def act(*args: Any, **options: Any) -> Any:
    return (args, options, (X,))


# name: [(arguments of the constructor, its options, inputs)]; arrays among the arguments become tensors.
CASES: dict[str, list[tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]]] = {
    "AlphaDropout": [act(0.0), act(1.0)],
    "CELU": [act(), act(0.5)],
    "CTCLoss": [],
    "CosineEmbeddingLoss": [((0.1,), {}, (X, Y, SIGNS)), ((), {"reduction": "sum"}, (X, Y, SIGNS))],
    "CosineSimilarity": [((), {}, (X, Y)), ((0, 0.1), {}, (X, Y))],
    "Dropout1d": [((0.0,), {}, (IMAGES[0],)), ((1.0,), {}, (IMAGES[0],))],
    "Dropout2d": [((0.0,), {}, (IMAGES,)), ((1.0,), {}, (IMAGES,))],
    "Dropout3d": [((0.0,), {}, (IMAGES,)), ((1.0,), {}, (IMAGES,))],
    "EmbeddingBag": [
        ((5, 3), {"mode": "sum"}, (BAGS,)),
        ((5, 3), {"padding_idx": 2}, (BAGS,)),
        ((5, 3), {}, (BAGS.reshape(-1), np.array([0, 4]))),
    ],
    "FeatureAlphaDropout": [((0.0,), {}, (IMAGES,)), ((1.0,), {}, (IMAGES,))],
    "GLU": [act(), act(0)],
    "GaussianNLLLoss": [((), {"full": True, "eps": 0.2}, (X, Y, P)), ((), {"reduction": "none"}, (X, Y, P))],
    "Hardshrink": [act(), act(1.0)],
    "Hardsigmoid": [],
    "Hardswish": [act()],
    "Hardtanh": [act(), act(-0.5, 1.5)],
    "HingeEmbeddingLoss": [((0.4,), {"reduction": "sum"}, (X, np.sign(Y).astype(np.int64)))],
    "HuberLoss": [((), {"delta": 0.5}, (X, Y))],
    "KLDivLoss": [
        ((), {"reduction": "batchmean"}, (X, P)),
        ((), {"reduction": "sum", "log_target": True}, (X, Y)),
    ],
    "LogSigmoid": [act()],
    "MarginRankingLoss": [((0.2,), {"reduction": "sum"}, (X, Y, np.sign(Z).astype(np.int64)))],
    "Mish": [act()],
    "MultiLabelMarginLoss": [((), {"reduction": "none"}, (X, SETS))],
    "MultiLabelSoftMarginLoss": [((), {"weight": P[0]}, (X, P))],
    "MultiMarginLoss": [
        ((2, 0.5), {"weight": P[0], "reduction": "sum"}, (X, LABELS)),
        ((), {}, (X, LABELS)),
    ],
    "PReLU": [act(), act(6, 0.1)],
    "PairwiseDistance": [((), {}, (X, Y)), ((3.0, 0.1, True), {}, (X, Y))],
    "PoissonNLLLoss": [
        ((), {"full": True}, (X, (P * 9).astype(np.int64))),
        ((False,), {}, (P, (P * 9).astype(np.int64))),
    ],
    "RReLU": [],
    "ReLU6": [act()],
    "SELU": [act()],
    "SmoothL1Loss": [((), {"beta": 0.5}, (X, Y))],
    "SoftMarginLoss": [((), {"reduction": "sum"}, (X, np.sign(Y).astype(np.int64)))],
    "Softmax2d": [((), {}, (IMAGES,)), ((), {}, (IMAGES[0],))],
    "Softmin": [act(1)],
    "Softshrink": [act(), act(1.0)],
    "Softsign": [act()],
    "Tanhshrink": [act()],
    "Threshold": [act(0.5, 3.0)],
    "TripletMarginLoss": [((3.0,), {}, (X, Y, Z)), ((3.0,), {"swap": True, "p": 1.5}, (X, Y, Z))],
    "TripletMarginWithDistanceLoss": [((), {"margin": 3.0, "swap": True}, (X, Y, Z))],
}
ALL = [pytest.param(n, case, id=f"{n}-{i}") for n, cases in CASES.items() for i, case in enumerate(cases)]
MADE = {
    "CELU": (0.5, True),
    "ELU": (0.5, True),
    "Embedding": (5, 3, 1, 2.0, 1.0, True),
    "EmbeddingBag": (5, 3, 2.0, 1.0, True, "sum"),
    "Hardtanh": (-1.0, 2.0, True),
    "LeakyReLU": (0.2, True),
    "Linear": (2, 3, False),
    "Bilinear": (2, 3, 4),
    "MultiMarginLoss": (2,),
    "PReLU": (3,),
    "RReLU": (0.1, 0.2, True),
    "Threshold": (0.1, 0.2, True),
    "Hardswish": (True,),
    "ReLU6": (True,),
    "Unflatten": (1, (2, 3)),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("name", "case"), ALL)
def test_layer_is_that_of_torch(name, case, dtype, layer_like_torch):
    layer_like_torch(name, case, dtype)


@pytest.mark.parametrize("name", sorted({*CASES, *MADE}))
def test_layer_prints_and_keeps_its_options_as_in_torch(name):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    args = MADE.get(name, (2,) if name == "Dropout" else ())

    ours, theirs = getattr(nn, name)(*args), getattr(torch.nn, name)(*args)

    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in vars(theirs).items():
        if not key.startswith("_") and isinstance(value, bool | int | float | str | type(None)):
            assert getattr(ours, key) == value, key


def test_losses_that_are_compared_as_functions_only_hand_over_their_options():
    lp = dt.tensor(np.log(P)[:, None])
    loss = nn.CTCLoss(blank=1, reduction="sum", zero_infinity=True)(lp, dt.tensor([[2, 3]]), (4,), (2,))
    assert loss == nn.functional.ctc_loss(lp, dt.tensor([[2, 3]]), (4,), (2,), 1, "sum", True)
    x = dt.tensor(X)
    assert (nn.Hardsigmoid()(x) == nn.functional.hardsigmoid(x)).all()
    layer = nn.RReLU(0.1, 0.3)
    assert ((layer.eval()(x) - nn.functional.leaky_relu(x, 0.2)).abs() < 1e-12).all()
    drawn = layer.train()(x)
    assert (drawn != layer(x)).any()


def test_embedding_of_given_vectors_keeps_options():
    table = dt.randn(5, 3)

    bag = nn.EmbeddingBag.from_pretrained(table, mode="max", include_last_offset=True)
    layer = nn.Embedding.from_pretrained(table, freeze=False, max_norm=1.0, scale_grad_by_freq=True)

    assert bag.weight.data_ptr() == table.data_ptr()
    assert not bag.weight.requires_grad
    assert (bag.mode, bag.include_last_offset) == ("max", True)
    assert layer.weight.requires_grad
    assert (layer.max_norm, layer.scale_grad_by_freq) == (1.0, True)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Hardtanh(1.0, 0.0), ValueError, "max_val must be above min_val, got 0.0 and 1.0"),
        (lambda: nn.MultiMarginLoss(3), ValueError, "p is 1 or 2, got 3"),
        (lambda: nn.MultiMarginLoss(1, weight=dt.ones(2, 2)), ValueError, "weight is a vector"),
        (lambda: nn.TripletMarginLoss(0), ValueError, "positive, got 0"),
        (lambda: nn.TripletMarginWithDistanceLoss(margin=-1), ValueError, "positive, got -1"),
        (lambda: nn.AlphaDropout(-1), ValueError, r"in \[0, 1\], got -1"),
        (lambda: nn.Softmax2d()(dt.ones(2, 3)), ValueError, r"got shape \(2, 3\)"),
        (lambda: nn.EmbeddingBag.from_pretrained(dt.ones(2)), ValueError, "must be a matrix"),
        (lambda: nn.Embedding(2, 2, _weight=dt.ones(2, 3)), ValueError, r"not \(2, 2\)"),
        (lambda: nn.Embedding(2, 2, padding_idx=2), ValueError, r"padding_idx must be in \[-2, 2\), got 2"),
    ],
)
def test_what_torch_refuses_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_deprecated_names_of_the_limits():
    with pytest.warns(FutureWarning, match="min_value is the old name of min_val"):
        assert nn.Hardtanh(min_value=-3.0).min_val == -3.0
    with pytest.warns(FutureWarning, match="max_value is the old name of max_val"):
        assert nn.Hardtanh(max_value=3.0).max_val == 3.0
    with pytest.warns(UserWarning, match="size_average and reduce"):
        assert nn.MSELoss(size_average=False).reduction == "sum"
