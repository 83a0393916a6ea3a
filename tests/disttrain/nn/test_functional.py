"""Every function of nn.functional against PyTorch: value, gradients and second derivatives."""

import inspect
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain.nn import functional as F

rng = np.random.default_rng(4)


def floats(*shape: int) -> Any:
    return rng.standard_normal(shape)


def probabilities(*shape: int) -> Any:
    return rng.random(shape) * 0.9 + 0.05


X = floats(4, 6)
IMAGES = floats(2, 4, 6, 5)
LABELS = np.array([5, 0, 3, 1])

# name: [(arguments, options)]; arrays become tensors, those of float64 ask for gradients.
CASES: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "bilinear": [((X, floats(4, 3), floats(5, 6, 3), floats(5)), {})],
    "binary_cross_entropy": [((probabilities(4, 3), probabilities(4, 3)), {"reduction": "sum"})],
    "binary_cross_entropy_with_logits": [
        ((X, probabilities(4, 6)), {}),
        ((X, probabilities(4, 6)), {"reduction": "none"}),
    ],
    "cross_entropy": [
        ((X, LABELS), {}),
        ((X, LABELS), {"label_smoothing": 0.2, "ignore_index": 3, "reduction": "sum"}),
        ((X, probabilities(4, 6)), {"reduction": "none"}),
    ],
    "dropout": [((X, 0.5, False), {}), ((X, 1.0), {}), ((X, 0.0), {})],
    "elu": [((X,), {}), ((X, 0.3), {})],
    "embedding": [((LABELS, floats(6, 3)), {}), ((LABELS, floats(6, 3), 3), {})],
    "gelu": [((X,), {}), ((X,), {"approximate": "tanh"})],
    "l1_loss": [((X, floats(4, 6)), {"reduction": r}) for r in ("mean", "sum", "none")],
    "leaky_relu": [((X,), {}), ((X, 0.3), {})],
    "linear": [
        ((X, floats(3, 6), floats(3)), {}),
        ((IMAGES, floats(3, 5)), {}),
        ((floats(6), floats(3, 6)), {}),
    ],
    "log_softmax": [((X,), {"dim": -1}), ((IMAGES,), {"dim": 1})],
    "mse_loss": [((X, floats(4, 6)), {"reduction": r}) for r in ("mean", "sum", "none")],
    "nll_loss": [((X, LABELS), {"ignore_index": 0})],
    "one_hot": [((LABELS,), {}), ((LABELS, 8), {})],
    "relu": [((X,), {})],
    "sigmoid": [((X,), {})],
    "silu": [((X,), {})],
    "softmax": [((X,), {"dim": 0}), ((IMAGES,), {"dim": 1})],
    "softplus": [((X,), {}), ((X,), {"beta": 3.0, "threshold": 1.0})],
    "tanh": [((X,), {})],
}
ALL = [
    pytest.param(name, *case, id=f"{name}-{i}")
    for name, cases in CASES.items()
    for i, case in enumerate(cases)
]


def test_every_function_has_a_case():
    tables = [
        runpy.run_path(str(file))["CASES"] for file in Path(__file__).parent.glob("test_functional*.py")
    ]
    cases = [name for table in tables for name in table]

    assert sorted(cases) == sorted(F.__all__)


def test_every_public_function_is_listed():
    assert all(callable(getattr(F, name)) for name in F.__all__)
    assert F.__all__ == sorted(F.__all__)


@pytest.mark.parametrize(("name", "args", "options"), ALL)
def test_function_is_that_of_torch(name, args, options, like_torch):
    like_torch(name, args, options)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "softmax", "log_softmax", "linear"])
def test_half_precision_comes_back_in_its_own_type(name, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    args, options = CASES[name][0]
    theirs = [torch.tensor(a).to(getattr(torch, dtype)) if isinstance(a, np.ndarray) else a for a in args]
    ours = [dt.tensor(a).to(getattr(dt, dtype)) if isinstance(a, np.ndarray) else a for a in args]

    out, want = getattr(F, name)(*ours, **options), getattr(torch.nn.functional, name)(*theirs, **options)

    assert out.dtype is getattr(dt, dtype)
    limit = {"float16": 4e-3, "bfloat16": 3e-2}[dtype]
    np.testing.assert_allclose(out.float().numpy(), want.float().numpy(), limit, limit)


def test_softmax_is_also_a_function_and_a_method():
    x = dt.tensor(X, dtype=dt.float32)

    for name in ("softmax", "log_softmax"):
        expected = getattr(F, name)(x, -1)
        assert (getattr(dt, name)(x, -1) == expected).all()
        assert (getattr(x, name)(-1) == expected).all()
        assert getattr(dt, name)(x, 1, dtype=dt.float64).dtype is dt.float64


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: F.softmax(x, 2), IndexError, "Dimension out of range: 2 is not in"),
        (
            lambda x: F.softmax(x.long(), 1),
            NotImplementedError,
            "needs a floating point tensor, got disttrain.int64",
        ),
        (lambda x: F.gelu(x, "erf"), RuntimeError, "got 'erf'"),
        (lambda x: F.dropout(x, -0.1), ValueError, r"p is a probability, in \[0, 1\], got -0.1"),
        (
            lambda x: F.linear(x, x.T),
            RuntimeError,
            r"expected input of shape \(\*, 4\) for a weight of shape \(6, 4\)",
        ),
        (lambda x: F.linear(x, x, x[0]), RuntimeError, r"bias must have shape \(4,\), got \(6,\)"),
        (lambda x: F.linear(x, x[None]), RuntimeError, r"weight must be \(out_features, in_features\)"),
        (lambda x: F.embedding([1], x), TypeError, "needs a Tensor of integers, got list"),
        (lambda x: F.embedding(x, x), RuntimeError, "indices must be integers.*float64"),
    ],
)
def test_bad_input_is_an_error_that_says_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call(dt.tensor(X))


@pytest.mark.parametrize(
    "name",
    [
        *("cosine_embedding_loss", "cosine_similarity", "gumbel_softmax", "hardtanh", "hinge_embedding_loss"),
        *("kl_div", "margin_ranking_loss", "one_hot", "pdist", "poisson_nll_loss", "relu", "relu6", "relu_"),
        *("threshold", "threshold_", "triplet_margin_loss"),
    ],
)
def test_what_is_no_tensor_is_refused_by_name(name):
    function = getattr(F, name)
    needed = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]

    with pytest.raises(TypeError, match=rf"{name.removesuffix('_')}_?\(\) needs Tensors, got list"):
        function(*[[1.0, 2.0]] * len(needed))
