"""Losses and distances against PyTorch: value, gradients and second derivatives."""

import warnings
from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain.nn import functional as F

rng = np.random.default_rng(4)
X, Y = rng.standard_normal((4, 6)), rng.standard_normal((4, 6))
P = rng.random((4, 6)) * 0.9 + 0.05
SIGNS = np.array([1, -1, -1, 1])
LABELS = np.array([5, 0, 3, 1])
SETS = np.array([[1, 3, -1, 2, 0, 0], [0, -1, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0], [-1, 2, 0, 0, 0, 0]])
A, B, C = (rng.standard_normal((4, 6)) for _ in range(3))

Case = tuple[tuple[Any, ...], dict[str, Any]]


def reductions(*args: Any, **options: Any) -> list[Case]:
    return [(args, {**options, "reduction": r}) for r in ("none", "mean", "sum")]


CASES: dict[str, list[Case]] = {
    "smooth_l1_loss": [*reductions(X, Y), *reductions(X, Y, beta=0.3), ((X, Y), {"beta": 0.0})],
    "huber_loss": [*reductions(X, Y), *reductions(X, Y, delta=0.3), ((X, Y, "sum", 0.5, P), {})],
    "kl_div": [
        *reductions(np.log(P), P),
        ((np.log(P), X), {"reduction": "batchmean", "log_target": True}),
    ],
    "gaussian_nll_loss": [
        *reductions(X, Y, P),
        *reductions(X, Y, P[:, :1], full=True, eps=0.2),
        *reductions(X, Y, P[:, 0]),
        ((X, Y, 0.5), {}),
    ],
    "poisson_nll_loss": [
        *reductions(X, P * 4),
        *reductions(X, P * 4, full=True),
        *reductions(P, P * 4, log_input=False, eps=1e-3),
    ],
    "hinge_embedding_loss": [*reductions(X, np.sign(Y)), *reductions(X, np.sign(Y), margin=0.4)],
    "margin_ranking_loss": reductions(X, Y, np.sign(P - 0.5), margin=0.2),
    "soft_margin_loss": reductions(X, np.sign(Y)),
    "cosine_embedding_loss": [*reductions(X, Y, SIGNS, margin=-0.2), ((X[0], Y[0], SIGNS[0:1].sum()), {})],
    "multi_margin_loss": [
        *reductions(X, LABELS),
        *reductions(X, LABELS, 2, 0.7),
        *reductions(X, LABELS, weight=P[0].astype(np.float64), margin=0.5),
        ((X[0], LABELS[0:1]), {"reduction": "none"}),
    ],
    "multilabel_margin_loss": [*reductions(X, SETS), ((X[0], SETS[0]), {})],
    "multilabel_soft_margin_loss": [*reductions(X, P), ((X, P, Y), {})],
    "triplet_margin_loss": [
        *reductions(A, B, C, margin=3.0),
        *reductions(A, B, C, margin=3.0, p=1.5, swap=True),
    ],
    "triplet_margin_with_distance_loss": reductions(A, B, C, margin=3.0, swap=True),
    "ctc_loss": [],  # below: its second derivative exists in neither library
    "cosine_similarity": [((X, Y), {}), ((X, Y[0]), {"dim": -1}), ((X * 1e-3, Y), {"dim": 0, "eps": 0.1})],
    "pairwise_distance": [((X, Y), {}), ((X, Y, 3.0, 0.1, True), {}), ((X[0], Y), {})],
    "pdist": [((X,), {}), ((X, 1.0), {}), ((X, 3.5), {})],
}
FIRST = {"soft_margin_loss", "multi_margin_loss", "multilabel_margin_loss", "pdist"}
"""PyTorch has no second derivative of these, nor any of the target."""
ALL = [pytest.param(n, *case, id=f"{n}-{i}") for n, cases in CASES.items() for i, case in enumerate(cases)]


@pytest.mark.parametrize(("name", "args", "options"), ALL)
def test_function_is_that_of_torch(name, args, options, like_torch):
    args = tuple(int(a) if isinstance(a, np.integer) else a for a in args)
    if name == "cosine_embedding_loss" and isinstance(args[2], int):
        args = (*args[:2], np.array(args[2]))
    if name in FIRST:
        torch = pytest.importorskip("torch", reason="PyTorch is the reference")
        found = []
        for lib in (torch, dt):
            x, *rest = (lib.tensor(a) if isinstance(a, np.ndarray) else a for a in args)
            given = {k: lib.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
            out = getattr(lib.nn.functional, name)(x.requires_grad_(), *rest, **given)
            found.append((out.detach().numpy(), lib.autograd.grad((out * out).sum(), x)[0].numpy()))
        for ours, theirs in zip(found[1], found[0], strict=True):
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, 1e-10, 1e-12)
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "reduction: 'mean' divides|kl_div: reduction='mean'")
        like_torch(name, args, options)


@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("form", ["padded", "concatenated", "single"])
def test_ctc_loss_is_that_of_torch(form, reduction, zero_infinity):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    T, N, K = 7, 4, 5
    scores = rng.standard_normal((T, N, K))
    lengths, steps = [3, 0, 5, 1], [7, 4, 5, 2]
    padded = rng.integers(1, K, (N, 6))
    padded[2] = [2, 2, 2, 3, 3, 1]  # repeats need blanks between: too long for 5 steps
    targets = (
        padded if form == "padded" else np.concatenate([p[:n] for p, n in zip(padded, lengths, strict=True)])
    )
    if form == "single":
        scores, targets, lengths, steps = scores[:, 0], padded[0, :3], [3], [7]
    found = []
    for lib in (torch, dt):
        x = lib.tensor(scores, requires_grad=True)
        loss = lib.nn.functional.ctc_loss(
            lib.nn.functional.log_softmax(x, -1),
            lib.tensor(targets),
            lib.tensor(steps),
            lib.tensor(lengths),
            reduction=reduction,
            zero_infinity=zero_infinity,
        )
        (g,) = lib.autograd.grad(loss.sum(), x)
        found.append((loss.detach().numpy(), g.numpy()))

    (theirs, their_grad), (ours, our_grad) = found
    np.testing.assert_allclose(ours, theirs, 1e-10)
    np.testing.assert_allclose(our_grad, their_grad, 1e-8, 1e-10)


def test_ctc_gradient_is_that_of_differences():
    x = rng.standard_normal((5, 2, 4))
    targets, steps, lengths = dt.tensor([[1, 1], [3, 2]]), (5, 4), (2, 2)

    def loss(a: Any) -> Any:
        return F.ctc_loss(F.log_softmax(a, -1), targets, steps, lengths, blank=0, reduction="sum")

    t = dt.tensor(x, requires_grad=True)
    (g,) = dt.autograd.grad(loss(t), t)
    along = rng.standard_normal(x.shape)
    numeric = (loss(dt.tensor(x + 1e-6 * along)).item() - loss(dt.tensor(x - 1e-6 * along)).item()) / 2e-6
    np.testing.assert_allclose((g.numpy() * along).sum(), numeric, 1e-6)
    (h,) = dt.autograd.grad(loss(t), t, create_graph=True)
    with pytest.raises(RuntimeError, match="the gradient of ctc_loss has no derivative"):
        h.sum().backward()


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"])
def test_other_shapes_broadcast_with_torchs_warning(name):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    with pytest.warns(UserWarning, match="target size"):
        theirs = getattr(torch.nn.functional, name)(torch.tensor(X), torch.tensor(Y[0]))
    with pytest.warns(UserWarning, match=r"target of shape \(6,\) is broadcast"):
        ours = getattr(F, name)(dt.tensor(X), dt.tensor(Y[0]))

    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), 1e-12)
    with pytest.raises(RuntimeError), pytest.warns(UserWarning, match="is broadcast with input"):
        getattr(F, name)(dt.tensor(X), dt.tensor(Y[:, :5]))


@pytest.mark.parametrize("name", ["mse_loss", "l1_loss"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_weights_of_elements_are_those_of_torch(name, reduction):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")

    ours = getattr(F, name)(dt.tensor(X), dt.tensor(Y), reduction=reduction, weight=dt.tensor(P))

    theirs = getattr(torch.nn.functional, name)(
        torch.tensor(X), torch.tensor(Y), reduction=reduction, weight=torch.tensor(P)
    )
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), 1e-12)
    with pytest.raises(ValueError, match=r"weight must have the shape of input, \(4, 6\)"):
        getattr(F, name)(dt.tensor(X), dt.tensor(Y), weight=dt.tensor(P[0]))


@pytest.mark.parametrize(
    ("size_average", "reduce"), [(True, None), (False, None), (None, False), (True, False), (False, True)]
)
@pytest.mark.parametrize("name", ["mse_loss", "cross_entropy", "soft_margin_loss", "poisson_nll_loss"])
def test_the_deprecated_arguments_work_with_a_warning(name, size_average, reduce):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    target = LABELS if name == "cross_entropy" else P
    results = []
    for lib in (torch, dt):
        with pytest.warns(UserWarning, match="size_average and reduce"):
            results.append(
                getattr(lib.nn.functional, name)(
                    lib.tensor(X), lib.tensor(target), size_average=size_average, reduce=reduce
                ).numpy()
            )

    np.testing.assert_allclose(results[1], results[0], 1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x, y: F.mse_loss(x, y, reduction="avg"),
            ValueError,
            "reduction is .*got 'avg'",
        ),
        (
            lambda x, y: F.cross_entropy(x, y.argmax(1), reduction="avg"),
            ValueError,
            "reduction is .*got 'avg'",
        ),
        (lambda x, y: F.mse_loss(x.long(), y.long()), NotImplementedError, "floating point"),
        (lambda x, y: F.smooth_l1_loss(x, y, beta=-1), RuntimeError, "beta must not be negative, got -1"),
        (lambda x, y: F.huber_loss(x, y, delta=0), RuntimeError, "delta must be positive, got 0"),
        (lambda x, y: F.gaussian_nll_loss(x, y, -x.abs()), ValueError, "negative"),
        (
            lambda x, y: F.gaussian_nll_loss(x, y, x.abs()[:, :3]),
            ValueError,
            r"var of shape \(4, 3\) does not fit",
        ),
        (lambda x, y: F.margin_ranking_loss(x, y, y[0]), RuntimeError, "must have as many dimensions"),
        (lambda x, y: F.cosine_embedding_loss(x, y, y), RuntimeError, "target is one number"),
        (lambda x, y: F.cosine_embedding_loss(x[0], y, y[:, 0]), RuntimeError, "1D target needs 2D inputs"),
        (lambda x, y: F.multi_margin_loss(x, y.argmax(1), p=3), ValueError, "p == 1 and p == 2"),
        (lambda x, y: F.multi_margin_loss(x, y.argmax(0)), RuntimeError, "with a target of shape"),
        (
            lambda x, y: F.multi_margin_loss(x, y.argmax(1) + 6),
            IndexError,
            r"out of range: must be in \[0, 6\)",
        ),
        (lambda x, y: F.multilabel_margin_loss(x, y.argmax(1)), RuntimeError, "with a target of shape"),
        (lambda x, y: F.multilabel_margin_loss(x, y.long() + 9), RuntimeError, r"in \[-1, 6\)"),
        (lambda x, y: F.triplet_margin_loss(x, y, y, margin=0), ValueError, "positive, got 0"),
        (lambda x, y: F.triplet_margin_loss(x, y, y[0]), RuntimeError, "must have as many dimensions"),
        (lambda x, y: F.kl_div(x, y, reduction="avg"), ValueError, "reduction is "),
        (
            lambda x, y: F.cross_entropy(x, y.argmax(1).int()),
            RuntimeError,
            "int64 or uint8, got disttrain.int32",
        ),
        (
            lambda x, y: F.cross_entropy(x, y.argmax(1), y[0].float()),
            RuntimeError,
            "weight of the input's dtype",
        ),
        (lambda x, y: F.nll_loss(x, y.argmax(1) + 6), IndexError, "out of range"),
        (
            lambda x, y: F.cross_entropy(x, y.abs(), ignore_index=1),
            RuntimeError,
            "ignore_index goes with classes",
        ),
        (lambda x, y: F.binary_cross_entropy(x, y), RuntimeError, r"must be in \[0, 1\]"),
        (lambda x, y: F.binary_cross_entropy(x.sigmoid(), y[0]), ValueError, "target must have the shape"),
        (
            lambda x, y: F.binary_cross_entropy(x.sigmoid(), y > 0),
            RuntimeError,
            "found a target of disttrain.bool",
        ),
        (lambda x, y: F.binary_cross_entropy_with_logits(x, y[0]), ValueError, "target must have the shape"),
        (lambda x, y: F.pdist(x[0]), RuntimeError, "2D"),
        (lambda x, y: F.pdist(x, -1), RuntimeError, "non-negative p"),
        (lambda x, y: F.ctc_loss(x, [1], (4,), (1,)), TypeError, "targets must be a Tensor, got list"),
        (
            lambda x, y: F.kl_div(x, y.long()),
            RuntimeError,
            "target must be floating point, got disttrain.int64",
        ),
        (lambda x, y: F.multilabel_margin_loss(x, y.int()), RuntimeError, "target must be int64"),
        (
            lambda x, y: F.binary_cross_entropy(x.sigmoid(), y.float()),
            RuntimeError,
            "found a target of disttrain.float32, expected disttrain.float64",
        ),
        (
            lambda x, y: F.ctc_loss(x, y.argmax(1), (4,), (4,), blank=6),
            RuntimeError,
            r"one of the classes, in \[0, 6\), got 6",
        ),
        (
            lambda x, y: F.ctc_loss(x, y.argmax(1), (5,), (4,)),
            RuntimeError,
            r"input_lengths to be in \[0, 4\]",
        ),
        (
            lambda x, y: F.ctc_loss(x, y.argmax(1), (4, 4), (4,)),
            RuntimeError,
            "for each of 1 sequences, got 2",
        ),
        (lambda x, y: F.ctc_loss(x, y.argmax(1), (4.0,), (4,)), RuntimeError, "must be integral"),
        (lambda x, y: F.ctc_loss(x[None, None], y.argmax(1), (4,), (4,)), RuntimeError, "must be .T, N, C."),
    ],
)
def test_what_torch_refuses_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(dt.tensor(X), dt.tensor(Y))
