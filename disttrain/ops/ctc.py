"""Connectionist temporal classification (Graves et al. 2006).

T steps, N sequences, C classes, S labels of the longest target, L = 2 S + 1 labels with a blank around each.
``alpha`` and ``beta`` are the logarithms of the probabilities of all ways to label the steps up to, and from, one.
"""

from typing import Any

import numpy as np

from disttrain.ops.activation import widen
from disttrain.ops.types import Array, Result, call, get_array_module

Needs = tuple[bool, ...]
Grads = tuple[Any, ...]


def ctc_loss(
    log_probs_TNC: Array,
    targets_NS: Array,
    input_lengths: Array,
    target_lengths: Array,
    *,
    blank: int,
    zero_infinity: bool,
) -> Result:
    """The negative log-likelihood of each target, (N,).

    Args:
        log_probs_TNC: the log-probability of each class at each step.
        targets_NS: the labels; those after the end of a target do not matter, but must be classes.
        input_lengths: steps of each sequence, at most T.
        target_lengths: labels of each target, at most S.
        blank: the class that stands for no label.
        zero_infinity: give 0 and no gradient where a target is too long for its sequence.
    """
    xp = get_array_module(log_probs_TNC)
    lp = widen(log_probs_TNC)
    labels_NL = _with_blanks(targets_NS, blank)
    alpha_TNL = _alpha(xp, _of_labels(xp, lp, labels_NL), _may_skip(labels_NL, blank))
    ends = _at_ends(xp, alpha_TNL, input_lengths, target_lengths)
    loss = -xp.logaddexp(*ends)
    nothing = (input_lengths == 0) & (target_lengths == 0)
    loss = xp.where(nothing, loss.dtype.type(0), xp.where(input_lengths == 0, loss.dtype.type(np.inf), loss))
    out = xp.where(xp.isinf(loss), loss.dtype.type(0), loss) if zero_infinity else loss
    saved = (log_probs_TNC, targets_NS, input_lengths, target_lengths, alpha_TNL, loss, blank, zero_infinity)
    return out.astype(log_probs_TNC.dtype, copy=False), saved, ctc_loss_vjp


def ctc_loss_vjp(
    g: Any,
    needs: Needs,
    log_probs: Any,
    targets: Any,
    input_lengths: Any,
    target_lengths: Any,
    alpha: Any,
    loss: Any,
    blank: int,
    zero_infinity: bool,
) -> Grads:
    if not needs[0]:
        return (None,) * 4
    gx = call(
        ctc_loss_grad,
        g,
        log_probs,
        targets,
        input_lengths,
        target_lengths,
        alpha,
        loss,
        blank=blank,
        zero_infinity=zero_infinity,
    )
    return gx, None, None, None


def ctc_loss_grad(
    g: Array,
    log_probs_TNC: Array,
    targets_NS: Array,
    input_lengths: Array,
    target_lengths: Array,
    alpha_TNL: Array,
    loss: Array,
    *,
    blank: int,
    zero_infinity: bool,
) -> Result:
    """Return the gradient of the log-probabilities, as it is if these come from a log-softmax.

    It is what reaches the scores below the log-softmax, which passes it on unchanged since it adds up to zero over the
    classes; PyTorch returns the same.
    """
    xp = get_array_module(g)
    lp = widen(log_probs_TNC)
    T, N, _ = lp.shape
    labels_NL = _with_blanks(targets_NS, blank)
    own = _of_labels(xp, lp, labels_NL)
    beta = _beta(xp, own, _may_skip(labels_NL, blank), input_lengths, target_lengths)
    with np.errstate(all="ignore"):
        # Both alpha and beta hold the step's own probability: divide by it once, and by the likelihood.
        share_TNL = xp.exp(alpha_TNL + beta - own + loss[:, None])
        share_TNL = xp.where(xp.isneginf(alpha_TNL) | xp.isneginf(beta), share_TNL.dtype.type(0), share_TNL)
        gx = xp.exp(lp)
        rows = xp.arange(N)
        for i in range(labels_NL.shape[1]):  # each class once in a step of this loop: no two writes meet
            gx[:, rows, labels_NL[:, i]] -= share_TNL[:, :, i]
        gx *= widen(g)[:, None]
        gx = xp.where(xp.isinf(loss)[:, None], gx.dtype.type(0 if zero_infinity else np.nan), gx)
    gx[xp.arange(T)[:, None] >= input_lengths] = 0
    return gx.astype(log_probs_TNC.dtype, copy=False), (), ctc_loss_grad_vjp


def ctc_loss_grad_vjp(h: Any, needs: Needs) -> Grads:
    raise RuntimeError(
        "the gradient of ctc_loss has no derivative of its own, here as in PyTorch; do not give create_graph=True"
    )


def _with_blanks(targets_NS: Array, blank: int) -> Array:
    N, S = targets_NS.shape
    labels = np.full((N, 2 * S + 1), blank, np.int64)
    labels[:, 1::2] = targets_NS
    return labels


def _may_skip(labels_NL: Array, blank: int) -> Array:
    """Return where a label may follow the one two before it: the blank between is needed only between equal ones."""
    skip = np.zeros(labels_NL.shape, np.bool_)
    skip[:, 2:] = (labels_NL[:, 2:] != blank) & (labels_NL[:, 2:] != labels_NL[:, :-2])
    return skip


def _of_labels(xp: Any, lp_TNC: Array, labels_NL: Array) -> Array:
    index = xp.broadcast_to(labels_NL, (lp_TNC.shape[0], *labels_NL.shape))
    return xp.take_along_axis(lp_TNC, index, 2)


def _alpha(xp: Any, own_TNL: Array, skip_NL: Array) -> Array:
    alpha = xp.full_like(own_TNL, -np.inf)
    if not len(alpha):
        return alpha
    alpha[0, :, :2] = own_TNL[0, :, :2]
    for t in range(1, len(alpha)):
        before, here = alpha[t - 1], alpha[t]
        here[...] = before
        here[:, 1:] = xp.logaddexp(here[:, 1:], before[:, :-1])
        here[:, 2:] = xp.where(skip_NL[:, 2:], xp.logaddexp(here[:, 2:], before[:, :-2]), here[:, 2:])
        here += own_TNL[t]
    return alpha


def _beta(xp: Any, own_TNL: Array, skip_NL: Array, input_lengths: Array, target_lengths: Array) -> Array:
    beta = xp.full_like(own_TNL, -np.inf)
    T, N, _ = beta.shape
    rows, last = xp.arange(N), 2 * target_lengths
    for t in range(T - 1, -1, -1):
        here = beta[t]
        if t + 1 < T:
            after = beta[t + 1]
            here[...] = after
            here[:, :-1] = xp.logaddexp(here[:, :-1], after[:, 1:])
            here[:, :-2] = xp.where(skip_NL[:, 2:], xp.logaddexp(here[:, :-2], after[:, 2:]), here[:, :-2])
            here += own_TNL[t]
        ends = rows[input_lengths - 1 == t]
        here[ends, last[ends]] = own_TNL[t, ends, last[ends]]
        some = ends[target_lengths[ends] > 0]
        here[some, last[some] - 1] = own_TNL[t, some, last[some] - 1]
    return beta


def _at_ends(xp: Any, alpha_TNL: Array, input_lengths: Array, target_lengths: Array) -> tuple[Array, Array]:
    """Return alpha at the last step of each sequence, for the last blank and for the last label."""
    N = alpha_TNL.shape[1]
    nowhere = alpha_TNL.dtype.type(-np.inf)
    if not len(alpha_TNL):
        return xp.full(N, nowhere), xp.full(N, nowhere)
    rows, t = xp.arange(N), xp.maximum(input_lengths - 1, 0)
    blank = alpha_TNL[t, rows, 2 * target_lengths]
    label = alpha_TNL[t, rows, xp.maximum(2 * target_lengths - 1, 0)]
    return blank, xp.where(target_lengths > 0, label, nowhere)
