"""The vectorised recursions against all ways to label the steps, counted one by one."""

import itertools

import numpy as np
import pytest

from disttrain.ops import ctc as ops

rng = np.random.default_rng(0)


def by_hand(p, labels, blank):
    """Return -log of the summed probability of all paths that collapse to ``labels``."""
    total = 0.0
    for path in itertools.product(range(p.shape[1]), repeat=len(p)):
        collapsed = [k for k, _ in itertools.groupby(path) if k != blank]
        if collapsed == list(labels):
            total += np.prod([p[t, k] for t, k in enumerate(path)])
    return -np.log(total) if total else np.inf


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("labels", [(), (1,), (1, 1), (1, 3, 1), (3, 3, 3), (1, 1, 3, 1, 1)])
def test_ctc_loss_is_the_sum_over_all_paths(labels, blank):
    scores = rng.standard_normal((5, 2, 4))
    lp = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    targets = np.full((2, max(len(labels), 1)), blank)
    targets[:, : len(labels)] = labels

    out, saved, vjp = ops.ctc_loss(
        lp, targets, np.array([5, 4]), np.full(2, len(labels)), blank=blank, zero_infinity=False
    )

    np.testing.assert_allclose(
        out, [by_hand(np.exp(lp[:5, 0]), labels, blank), by_hand(np.exp(lp[:4, 1]), labels, blank)]
    )
    possible = np.isfinite(out)
    gx = vjp(np.ones(2), (True, False, False, False), *saved)[0]
    np.testing.assert_allclose(gx[:4, possible].sum(-1), 0, atol=1e-12)
    assert (gx[4, 1] == 0).all()
    assert vjp(np.ones(2), (False,) * 4, *saved) == (None,) * 4


def test_ctc_loss_grad_says_that_it_has_no_derivative():
    with pytest.raises(RuntimeError, match="no derivative of its own"):
        ops.ctc_loss_grad_vjp(None, (True,))
    assert ops.ctc_loss_grad.__annotations__["return"]
