"""Every function of nn.functional against PyTorch: value, gradients and second derivatives."""

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
    "adaptive_avg_pool2d": [((IMAGES, (2, None)), {}), ((IMAGES[0], 3), {})],
    "avg_pool2d": [
        ((IMAGES, 2), {"stride": (2, 1), "padding": 1, "count_include_pad": False, "ceil_mode": True})
    ],
    "batch_norm": [
        ((X, None, None, floats(6), floats(6)), {"training": True}),
        ((IMAGES, floats(4), probabilities(4), floats(4), floats(4)), {"eps": 1e-3}),
        ((IMAGES, None, None, None, None, True), {}),
    ],
    "bilinear": [((X, floats(4, 3), floats(5, 6, 3), floats(5)), {})],
    "binary_cross_entropy": [((probabilities(4, 3), probabilities(4, 3)), {"reduction": "sum"})],
    "binary_cross_entropy_with_logits": [
        ((X, probabilities(4, 6)), {}),
        ((X, probabilities(4, 6)), {"reduction": "none"}),
    ],
    "conv2d": [
        ((IMAGES, floats(6, 4, 3, 3), floats(6)), {"stride": 2, "padding": (1, 2)}),
        ((IMAGES, floats(6, 2, 2, 3)), {"groups": 2, "dilation": (1, 2), "padding": "valid"}),
        ((IMAGES[0], floats(6, 4, 3, 3), floats(6)), {"padding": "same"}),
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
    "layer_norm": [((X, (6,), floats(6), floats(6)), {}), ((X, (4, 6)), {"eps": 1e-2})],
    "leaky_relu": [((X,), {}), ((X, 0.3), {})],
    "linear": [
        ((X, floats(3, 6), floats(3)), {}),
        ((IMAGES, floats(3, 5)), {}),
        ((floats(6), floats(3, 6)), {}),
    ],
    "log_softmax": [((X,), {"dim": -1}), ((IMAGES,), {"dim": 1})],
    "max_pool2d": [
        ((IMAGES, (3, 2)), {"stride": 2, "padding": 1, "ceil_mode": True, "return_indices": True})
    ],
    "mse_loss": [((X, floats(4, 6)), {"reduction": r}) for r in ("mean", "sum", "none")],
    "nll_loss": [((X, LABELS), {"ignore_index": 0})],
    "normalize": [((X,), {}), ((IMAGES,), {"p": 1.0, "dim": -1}), ((X * 1e-3,), {"eps": 1.0})],
    "one_hot": [((LABELS,), {}), ((LABELS, 8), {})],
    "pad": [((IMAGES, (1, 2, 0, 3)), {}), ((X, (1, 1)), {"value": 2.0})],
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
@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "softmax", "log_softmax", "linear", "layer_norm"])
def test_half_precision_comes_back_in_its_own_type(name, dtype):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    args, options = CASES[name][0]
    theirs = [torch.tensor(a).to(getattr(torch, dtype)) if isinstance(a, np.ndarray) else a for a in args]
    ours = [dt.tensor(a).to(getattr(dt, dtype)) if isinstance(a, np.ndarray) else a for a in args]

    out, want = getattr(F, name)(*ours, **options), getattr(torch.nn.functional, name)(*theirs, **options)

    assert out.dtype is getattr(dt, dtype)
    limit = {"float16": 4e-3, "bfloat16": 3e-2}[dtype]
    np.testing.assert_allclose(out.float().numpy(), want.float().numpy(), limit, limit)


def test_batch_norm_keeps_running_values_as_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    mean, var = floats(4), probabilities(4)
    ours, theirs = [dt.tensor(v) for v in (mean, var)], [torch.tensor(v) for v in (mean, var)]

    F.batch_norm(dt.tensor(IMAGES), *ours, training=True, momentum=0.3)
    torch.nn.functional.batch_norm(torch.tensor(IMAGES), *theirs, training=True, momentum=0.3)

    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), 1e-12)


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
        (lambda x: F.softmax(x, 2), IndexError, "Dimension out of range.*but got 2"),
        (
            lambda x: F.softmax(x.long(), 1),
            NotImplementedError,
            "needs a floating point tensor, got disttrain.int64",
        ),
        (lambda x: F.gelu(x, "erf"), RuntimeError, "got 'erf'"),
        (lambda x: F.dropout(x, -0.1), ValueError, r"p must be a probability in \[0, 1\], got -0.1"),
        (
            lambda x: F.linear(x, x.T),
            RuntimeError,
            r"expected input of shape \(\*, 4\) for a weight of shape \(6, 4\)",
        ),
        (lambda x: F.linear(x, x, x[0]), RuntimeError, r"bias must have shape \(4,\), got \(6,\)"),
        (lambda x: F.linear(x, x[None]), RuntimeError, r"weight must be \(out_features, in_features\)"),
        (
            lambda x: F.conv2d(x[None], x),
            ValueError,
            r"weight must be \(O, C // groups, KH, KW\), got shape \(4, 6\)",
        ),
        (
            lambda x: F.adaptive_avg_pool2d(x[None], (1, 2, 3)),
            ValueError,
            "output_size must be one or two numbers",
        ),
        (lambda x: F.embedding([1], x), TypeError, "needs a Tensor of integers, got list"),
        (lambda x: F.embedding(x, x), RuntimeError, "indices must be integers.*float64"),
    ],
)
def test_bad_input_is_an_error_that_says_what_to_do(call, error, message):
    with pytest.raises(error, match=message):
        call(dt.tensor(X))
