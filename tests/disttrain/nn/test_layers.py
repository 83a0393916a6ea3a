"""Every layer against PyTorch: output, gradients, changed buffers, state dict and repr, in training and evaluation."""

import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain import nn

rng = np.random.default_rng(3)


def floats(*shape: int) -> Any:
    return rng.standard_normal(shape)


def probabilities(*shape: int) -> Any:
    return rng.random(shape) * 0.9 + 0.05


def classes(count: int, *shape: int) -> Any:
    return rng.integers(0, count, shape)


X = floats(4, 6)
IMAGES = floats(3, 4, 7, 6)
IMAGE = floats(4, 7, 6)
SCORES = floats(5, 4)
LABELS = np.array([0, 3, 1, 1, 2])

# name: [(arguments of the constructor, its options, inputs)]; arrays among the arguments become tensors.
CASES: dict[str, list[tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]]] = {
    "Identity": [((1, 2), {"a": 3}, (X,))],
    "Linear": [
        ((6, 3), {}, (X,)),
        ((6, 3), {"bias": False}, (floats(2, 3, 6),)),
        ((6, 3), {}, (floats(6),)),
    ],
    "Bilinear": [
        ((6, 5, 3), {}, (X, floats(4, 5))),
        ((6, 5, 3), {"bias": False}, (floats(2, 4, 6), floats(2, 4, 5))),
    ],
    "Embedding": [
        ((7, 3), {}, (classes(7, 4, 2),)),
        ((7, 3), {"padding_idx": -1}, (np.array([6, 0, 6, 2]),)),
    ],
    "Dropout": [((), {"p": 0.0}, (X,)), ((1.0,), {"inplace": False}, (X,))],
    "Flatten": [((), {}, (IMAGES,)), ((2, 3), {}, (IMAGES,))],
    "Unflatten": [((1, (2, 3)), {}, (X,)), ((-1, (2, -1)), {}, (X,))],
    "ReLU": [((), {}, (X,))],
    "LeakyReLU": [((), {}, (X,)), ((0.2,), {}, (X,))],
    "ELU": [((), {}, (X,)), ((0.5,), {}, (X,))],
    "SiLU": [((), {}, (X,))],
    "GELU": [((), {}, (X,)), (("tanh",), {}, (X,))],
    "Sigmoid": [((), {}, (X,))],
    "Tanh": [((), {}, (X,))],
    "Softplus": [((), {}, (X,)), ((2.0, 1.0), {}, (X,))],
    "Softmax": [((1,), {}, (X,)), ((-2,), {}, (IMAGES,))],
    "LogSoftmax": [((1,), {}, (X,)), ((0,), {}, (IMAGES,))],
    "CrossEntropyLoss": [
        ((), {}, (SCORES, LABELS)),
        ((), {"weight": probabilities(4), "ignore_index": 1, "label_smoothing": 0.1}, (SCORES, LABELS)),
        ((), {"reduction": "none"}, (floats(2, 4, 3), classes(4, 2, 3))),
        ((), {"reduction": "sum"}, (SCORES, probabilities(5, 4))),
        ((), {}, (floats(4), np.array(2))),
    ],
    "NLLLoss": [
        ((), {}, (SCORES, LABELS)),
        ((), {"weight": probabilities(4), "ignore_index": 3}, (SCORES, LABELS)),
        ((), {"reduction": "none"}, (floats(2, 4, 3), classes(4, 2, 3))),
    ],
    "MSELoss": [((), {"reduction": r}, (X, floats(4, 6))) for r in ("mean", "sum", "none")],
    "L1Loss": [((), {"reduction": r}, (X, floats(4, 6))) for r in ("mean", "sum", "none")],
    "BCELoss": [
        ((), {}, (probabilities(4, 3), probabilities(4, 3))),
        ((), {"weight": probabilities(3), "reduction": "sum"}, (probabilities(4, 3), probabilities(4, 3))),
    ],
    "BCEWithLogitsLoss": [
        ((), {}, (X, probabilities(4, 6))),
        (
            (),
            {"weight": probabilities(6), "pos_weight": probabilities(6), "reduction": "none"},
            (X, probabilities(4, 6)),
        ),
    ],
}
ELSEWHERE = {
    "test_module.py": "Module Parameter Buffer",
    "test_functional.py": "functional",
    "test_containers.py": "Sequential ModuleList ModuleDict ParameterDict ParameterList",
    "test_rnn.py": "RNN LSTM GRU RNNCell LSTMCell GRUCell RNNBase RNNCellBase",
    "test_transformer.py": (
        "MultiheadAttention Transformer TransformerDecoder TransformerDecoderLayer TransformerEncoder "
        "TransformerEncoderLayer"
    ),
    "test_lazy.py": (
        "LazyBatchNorm1d LazyBatchNorm2d LazyBatchNorm3d LazyConv1d LazyConv2d LazyConv3d LazyConvTranspose1d "
        "LazyConvTranspose2d LazyConvTranspose3d LazyInstanceNorm1d LazyInstanceNorm2d LazyInstanceNorm3d LazyLinear "
        "UninitializedBuffer UninitializedParameter"
    ),
    "test_adaptive.py": "AdaptiveLogSoftmaxWithLoss",
    "test_init.py": "init",
    "test_utils.py": "utils",
    "../test_settings.py": "DataParallel parallel",
}
ALL = [
    pytest.param(name, case, id=f"{name}-{i}")
    for name, cases in CASES.items()
    for i, case in enumerate(cases)
]


def test_every_layer_has_a_case():
    tables = [runpy.run_path(str(file))["CASES"] for file in Path(__file__).parent.glob("test_layers*.py")]
    cases = [name for table in tables for name in table]

    for file, names in ELSEWHERE.items():
        text = (Path(__file__).parent / file).read_text()
        assert [n for n in names.split() if not re.search(rf"\b{n}\b", text)] == []
        cases += names.split()

    assert sorted(cases) == sorted(nn.__all__)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("name", "case"), ALL)
def test_layer_is_that_of_torch(name, case, dtype, layer_like_torch):
    layer_like_torch(name, case, dtype)


@pytest.mark.parametrize(("name", "case"), ALL)
def test_gradients_are_those_of_differences(name, case, layer_differences):
    layer_differences(name, case)


@pytest.mark.parametrize("name", ["ReLU", "LeakyReLU", "ELU", "SiLU", "Dropout"])
def test_in_place_writes_over_the_input(name):
    layer = getattr(nn, name)(inplace=True)
    x = dt.tensor(X, requires_grad=True)
    between = x * 1

    out = layer(between)
    out.sum().backward()

    assert out is between
    assert x.grad is not None
    assert "inplace=True" in repr(layer)


def test_dropout_zeroes_a_share_and_scales_the_rest():
    dt.manual_seed(7)
    x = dt.ones(100, 1000, requires_grad=True)

    out = nn.Dropout(0.3)(x)
    out.sum().backward()

    kept = out.detach().numpy() != 0
    np.testing.assert_allclose(out.detach().numpy()[kept], 1 / 0.7, rtol=1e-6)
    assert abs(kept.mean() - 0.7) < 0.01
    np.testing.assert_array_equal(x.grad.numpy(), out.detach().numpy())


def test_dropout_draws_from_the_generator_of_the_rank():
    layer, x = nn.Dropout(), dt.ones(50)
    dt.manual_seed(1)
    first, second = layer(x), layer(x)
    dt.manual_seed(1)

    again = layer(x)

    assert (first == again).all()
    assert not (first == second).all()


def test_embedding_of_given_vectors_shares_them():
    table = dt.randn(5, 3)

    layer = nn.Embedding.from_pretrained(table, padding_idx=2)

    assert not layer.weight.requires_grad
    assert layer.weight.data_ptr() == table.data_ptr()
    assert (layer(dt.tensor([1, 2])) == table[1:3]).all()


LAYERS = [
    (nn.Linear(784, 10), (64, 28, 28), r"expected input of shape \(\*, 784\) .* got \(64, 28, 28\); flatten"),
    (nn.Bilinear(2, 3, 4), (5, 2), "missing 1 required positional argument: 'input2'"),
]


@pytest.mark.parametrize(("layer", "shape", "message"), LAYERS, ids=lambda v: str(v)[:30])
def test_a_batch_of_the_wrong_shape_is_an_error_that_says_what_fits(layer, shape, message):
    with pytest.raises((RuntimeError, TypeError), match=message):
        layer(dt.zeros(*shape))


def test_labels_out_of_range_are_named():
    with pytest.raises(IndexError, match=r"class 10 at position \[1\] is out of range: must be in \[0, 10\)"):
        nn.CrossEntropyLoss()(dt.zeros(2, 10), dt.tensor([3, 10]))
    with pytest.raises(IndexError, match=r"index -1 at position \[0\] is out of range: must be in \[0, 5\)"):
        nn.Embedding(5, 2)(dt.tensor([-1]))
    with pytest.raises(ValueError, match=r"x of shape \(2, 10\) needs a target of shape \(2,\), got \(3,\)"):
        nn.CrossEntropyLoss()(dt.zeros(2, 10), dt.tensor([0, 1, 2]))
    with pytest.warns(UserWarning, match=r"target of shape \(2,\) is broadcast with input of shape \(2, 1\)"):
        nn.MSELoss()(dt.zeros(2, 1), dt.zeros(2))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Dropout(1.5), ValueError, r"Dropout: p is a probability, in \[0, 1\], got 1.5"),
        (lambda: nn.Embedding(3, 2, padding_idx=3), ValueError, r"padding_idx must be in \[-3, 3\), got 3"),
        (
            lambda: nn.MSELoss(reduction="avg")(dt.ones(2), dt.ones(2)),
            ValueError,
            "reduction is .*got 'avg'",
        ),
        (lambda: nn.Bilinear(0, 2, 3), ValueError, "in1_features must be positive"),
    ],
)
def test_wrong_options_are_refused_when_the_layer_is_made(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_inputs_of_the_wrong_type_are_refused_with_the_cure():
    layer = nn.Linear(3, 2)
    with pytest.raises(TypeError, match=r"needs Tensors, got ndarray; convert it with disttrain\.tensor"):
        layer(np.zeros((2, 3)))
    with pytest.raises(
        RuntimeError, match=r"input disttrain\.int64, weight disttrain\.float32 .*convert with"
    ):
        layer(dt.tensor([1, 2, 3]))
    with pytest.raises(
        RuntimeError, match=r"input disttrain\.float64, weight disttrain\.float32 .*convert with"
    ):
        layer(dt.zeros(2, 3, dtype=dt.float64))
    with pytest.raises(TypeError, match=r"needs a Tensor as target, got list"):
        nn.CrossEntropyLoss()(dt.zeros(2, 3), [0, 1])


@pytest.fixture(params=["torch", "disttrain"])
def lib(request):
    """PyTorch and disttrain: what a test says holds for both."""
    return pytest.importorskip(request.param, reason="PyTorch is the reference")


@pytest.mark.parametrize(("mine", "given"), [("float32", "float64"), ("float16", "float32")])
@pytest.mark.parametrize(
    "make", [lambda n: n.BatchNorm1d(3), lambda n: n.LayerNorm(3), lambda n: n.GroupNorm(1, 3)]
)
def test_a_normalisation_of_another_dtype_than_its_input_is_refused(lib, make, mine, given):
    layer = make(lib.nn).to(getattr(lib, mine))

    with pytest.raises(RuntimeError):
        layer(lib.ones(2, 3, 2, dtype=getattr(lib, given))[..., 0])


def test_a_float32_normalisation_takes_halves(lib):
    for layer in (lib.nn.BatchNorm1d(3), lib.nn.LayerNorm(3), lib.nn.GroupNorm(1, 3)):
        x = lib.arange(12.0).reshape(4, 3).sin().to(lib.bfloat16)

        out = layer(x)
        out.float().square().sum().backward()

        assert out.dtype is lib.bfloat16
        assert layer.weight.grad.dtype is lib.float32


def test_a_normalisation_says_what_does_not_fit(lib):
    F = lib.nn.functional
    x = lib.ones(4, 3)

    with pytest.raises(RuntimeError):
        lib.nn.BatchNorm1d(2)(x)  # channels
    with pytest.raises(ValueError):
        lib.nn.BatchNorm1d(2)(x[0])  # dimensions
    with pytest.raises(ValueError):
        F.batch_norm(x, lib.zeros(3), None, training=True)
    for norm in (F.layer_norm, F.rms_norm):
        with pytest.raises(TypeError):
            norm(x, 3)


def test_unflatten_takes_a_tuple_of_integers(lib):
    for sizes in (5, "23", (2.0, 3)):
        with pytest.raises(TypeError):
            lib.nn.Unflatten(1, sizes)
    with pytest.raises(TypeError):
        lib.nn.Unflatten("features", (("a", 2), ("b", 3)) if lib is dt else ((2, 3),))


def test_the_argument_of_a_layer_has_the_name_that_torch_gives_it(lib):
    assert lib.nn.RMSNorm(3)(x=lib.ones(2, 3)).shape == (2, 3)
    assert lib.nn.LayerNorm(3)(input=lib.ones(2, 3)).shape == (2, 3)
