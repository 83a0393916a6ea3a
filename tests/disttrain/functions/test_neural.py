"""What PyTorch has of neural networks at the top level, as functions and methods, against its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

rng = np.random.default_rng(0)
f = rng.standard_normal
X, Y, P = f((4, 6)), f((4, 6)), rng.random((4, 6)) * 0.9 + 0.05
SIGNS = np.array([1, -1, -1, 1])


def c(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def reductions(*args: Any) -> list[Any]:
    return [c(*args), *[c(*args, reduction=r) for r in (0, 1, 2)]]


LINES, GAIN, SHIFT, MEAN, VAR = (
    a.astype(np.float32) for a in (f((2, 6, 9)), f(6), f(6), f(6), rng.random(6))
)
FEW = LINES[:, :, 0]

CASES: dict[str, list[Any]] = {
    "adaptive_max_pool1d": [c(LINES, 4), c(LINES[0], (2,)), c(LINES, -1)],
    "alpha_dropout": [c(X, 0.5, False), c(X, 1.0, True), c(X, 0.0, True), c(X, 2.0, True)],
    "alpha_dropout_": [c(np.abs(X), 0.5, False)],
    "batch_norm": [
        c(FEW, GAIN, SHIFT, MEAN, VAR, True, 0.1, 1e-5, False),
        c(LINES, GAIN, None, MEAN, VAR, False, 0.1, 0.1, True),
        c(FEW, None, None, None, None, True, 0.1, 1e-5),
        c(FEW, GAIN, SHIFT, MEAN, None, True, 0.1, 1e-5, True),
    ],
    "bilinear": [c(X, f((4, 3)), f((5, 6, 3)), f(5)), c(X, Y, f((5, 6, 3)))],
    "binary_cross_entropy_with_logits": reductions(X, P),
    "celu": [c(X), c(X, 0.5), c(X, 0)],
    "celu_": [c(X, 0.5)],
    "cosine_embedding_loss": reductions(X, Y, SIGNS, 0.1),
    "cosine_similarity": [c(X, Y), c(X, Y, 0), c(X, Y[:, :5]), c(X, Y, dim=2), c(X, np.arange(6.0) * 0)],
    "ctc_loss": [
        c(np.log(P)[:, None], np.array([[1, 2]]), np.array([4]), np.array([2])),
        c(np.log(P)[:, None], np.array([[1, 2]]), (4,), (2,), 0, 2),
    ],
    "dropout": [c(X, 0.5, False), c(X, 1.0, True), c(X, 0.0, True), c(X, -1.0, True)],
    "dropout_": [c(X, 0.5, False), c(X, 1.0, True)],
    "embedding": [
        c(f((5, 3)), np.array([1, 4, 1])),
        c(f((5, 3)), np.array([[1, 5]])),
        c(f((5, 3)), np.array([1, 4]), 4),
    ],
    "feature_alpha_dropout": [c(X, 0.5, False), c(X, 1.0, True)],
    "feature_alpha_dropout_": [c(X, 0.5, False)],
    "group_norm": [c(LINES, 2, GAIN, SHIFT, 1e-3, False), c(X, 3), c(X, 4)],
    "hardshrink": [c(X), c(X, 1.0), c(np.arange(3))],
    "hinge_embedding_loss": reductions(X, np.sign(f((4, 6)).astype(np.float32)).astype(np.int64), 0.4),
    "kl_div": [*reductions(np.log(P), P), c(X, Y, 2, log_target=True)],
    "margin_ranking_loss": reductions(X, Y, np.sign(f((4, 6)))),
    "pairwise_distance": [c(X, Y), c(X, Y, 1.0, 0.1, True), c(X, Y[:, :4])],
    "pdist": [c(X), c(X, 1.0), c(X[0])],
    "poisson_nll_loss": [c(X, P, True, False, 1e-8, 1), c(P, P, False, True, 1e-8, 0)],
    "prelu": [c(X, f(6)), c(X, f(1)), c(X, f(4)), c(X, np.array(0.3))],
    "relu_": [c(X)],
    "rrelu": [c(X), c(X, 0.1, 0.2), c(X, 0.3, 0.1)],
    "rrelu_": [c(X, 0.1, 0.2)],
    "selu": [c(X), c(np.arange(3))],
    "selu_": [c(X)],
    "threshold": [c(X, 0.1, 3.0), c(np.arange(5), 2, 7)],
    "instance_norm": [
        c(LINES, GAIN, SHIFT, None, None, True, 0.1, 1e-5, False),
        c(LINES, GAIN, SHIFT, MEAN, VAR, True, 0.3, 0.1, True),
        c(LINES, None, None, MEAN, VAR, False, 0.3, 0.1, True),
    ],
    "layer_norm": [c(FEW, [6], GAIN, None, 1e-3, False), c(LINES, (6, 9)), c(X, 6)],
    "max_pool1d_with_indices": [c(LINES, 3, 2, 1, 1, True), c(LINES[0], 4), c(LINES, 20)],
    "threshold_": [c(X, 0.1, 3.0)],
    "triplet_margin_loss": [*reductions(X, Y, P, 2.0), c(X, Y, P, 2.0, 1.0, 1e-5, True)],
}


@pytest.mark.parametrize("name", CASES)
def test_as_pytorch_does(name: str, against_torch: Any) -> None:
    against_torch(name, CASES[name])
