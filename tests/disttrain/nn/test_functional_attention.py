"""Attention against PyTorch: value, gradients and second derivatives."""

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain.nn import functional as F
from disttrain.ops import attention as ops

rng = np.random.default_rng(4)


def floats(*shape: int) -> Any:
    return rng.standard_normal(shape)


def some_closed(*shape: int) -> Any:
    """Numbers to add, some minus infinity, and the first row nothing but that."""
    mask = np.where(rng.random(shape) < 0.3, -np.inf, floats(*shape))
    mask[..., 0, :] = -np.inf
    return mask


Q, K, V = floats(2, 4, 3, 5), floats(2, 4, 6, 5), floats(2, 4, 6, 2)
OPEN = rng.random((3, 6)) < 0.6
OPEN[1] = False
X, Y = floats(3, 2, 6), floats(4, 2, 6)
SELF = (X, X, X, 6, 2, floats(18, 6), floats(18))
CROSS = (X, Y, Y, 6, 3, floats(18, 6), None)
OUT = (floats(6, 6), floats(6))
SEPARATE = {
    "use_separate_proj_weight": True,
    "q_proj_weight": floats(6, 6),
    "k_proj_weight": floats(6, 4),
    "v_proj_weight": floats(6, 3),
}
PADDING = np.array([[False, False, True, False], [True, False, False, False]])
CAUSAL = np.triu(np.full((3, 3), -np.inf), 1)

CASES: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "scaled_dot_product_attention": [
        ((Q, K, V), {}),
        ((Q, K, V), {"is_causal": True, "scale": 0.3}),
        ((K, Q, V[:, :, :3]), {"is_causal": True}),
        ((Q, K, V, OPEN), {}),
        ((Q, K, V, some_closed(3, 6)), {"scale": -0.7}),
        ((Q, K, V, floats(2, 1, 3, 6)), {}),
        ((Q, K, V, some_closed(4, 3, 1)), {}),
        ((Q, K, V, floats(1, 4, 1, 6)), {}),
        ((Q[0, 0], K[0, 0], V[0, 0]), {}),
        ((Q[:, :1], K, V[:1]), {}),
        ((Q, K[:, :2], V[:, :2]), {"enable_gqa": True}),
        ((Q, K[:, :2], V[:, :1]), {"enable_gqa": True, "is_causal": True}),
        ((Q, K[:, :, :0], V[:, :, :0]), {}),
        ((Q[:, :, :0], K, V), {}),
        ((Q, K, V), {"dropout_p": 1.0}),
    ],
    "multi_head_attention_forward": [
        ((*SELF, None, None, False, 0.0, *OUT), {}),
        ((*SELF, None, None, False, 0.5, *OUT, False), {"average_attn_weights": False}),
        ((*SELF, floats(1, 1, 6), floats(1, 1, 6), True, 0.0, *OUT), {"attn_mask": CAUSAL}),
        ((*CROSS, None, None, True, 0.0, *OUT), {"key_padding_mask": PADDING}),
        (
            (*CROSS, None, None, False, 0.0, *OUT),
            {"key_padding_mask": floats(2, 4), "attn_mask": floats(6, 3, 4), "need_weights": False},
        ),
        (
            (X, floats(4, 2, 4), floats(4, 2, 3), 6, 2, None, floats(18), None, None, False, 0.0, *OUT),
            SEPARATE,
        ),
        ((X[:, 0], Y[:, 0], Y[:, 0], 6, 2, floats(18, 6), None, None, None, False, 0.0, *OUT), {}),
        (
            (*CROSS, None, None, False, 0.0, *OUT),
            {"static_k": floats(6, 5, 2), "static_v": floats(6, 5, 2)},
        ),
    ],
}
ALL = [pytest.param(n, *case, id=f"{n}-{i}") for n, cases in CASES.items() for i, case in enumerate(cases)]


@pytest.mark.parametrize("block", [1 << 18, 20, 1])
@pytest.mark.parametrize(("name", "args", "options"), ALL)
def test_function_is_that_of_torch_whatever_the_blocks(name, args, options, block, like_torch, monkeypatch):
    monkeypatch.setattr(ops, "_BLOCK", block)
    monkeypatch.setattr(ops, "_ROWS", 2)
    like_torch(name, args, options)


def test_a_causal_mask_and_one_more_both_hold():
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    outs = []
    for library in (torch, dt):
        q, k, mask = (library.tensor(a) for a in (Q, K, OPEN))
        outs.append(library.nn.functional.scaled_dot_product_attention(q, k, k, mask, is_causal=True).numpy())

    np.testing.assert_allclose(outs[1], outs[0], 1e-10)


def test_the_hint_that_a_mask_is_causal_changes_nothing():
    x, w = dt.tensor(X).requires_grad_(), dt.tensor(SELF[5]).requires_grad_()
    runs = []
    for hint in (False, True):
        out, weights = F.multi_head_attention_forward(
            *(x, x, x, 6, 2, w, None, None, None, False, 0.0, dt.tensor(OUT[0]), None),
            attn_mask=dt.tensor(CAUSAL),
            is_causal=hint,
            need_weights=False,
        )
        assert weights is None
        runs.append([out.detach().numpy(), *(g.numpy() for g in dt.autograd.grad((out * out).sum(), [x, w]))])

    for with_mask, with_hint in zip(*runs, strict=True):
        np.testing.assert_allclose(with_hint, with_mask, 1e-10, 1e-12)


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_query_that_sees_no_key_is_undefined_only_with_weights(need_weights):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    arguments = (*CROSS, None, None, False, 0.0, *OUT)
    nobody = np.ones((2, 4), np.bool_)
    outs = []
    for library in (torch, dt):
        tensors = [library.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
        out, _ = library.nn.functional.multi_head_attention_forward(
            *tensors, key_padding_mask=library.tensor(nobody), need_weights=need_weights
        )
        outs.append(out.numpy())

    np.testing.assert_allclose(outs[1], outs[0])
    assert np.isnan(outs[1]).all() == need_weights


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_types_are_computed_in_float32(dtype):
    kind = getattr(dt, dtype)
    leaves = [dt.tensor(8 * a).to(kind).requires_grad_() for a in (Q, K, V)]
    wide = [t.detach().double().requires_grad_() for t in leaves]

    results = []
    for tensors in (leaves, wide):
        out = F.scaled_dot_product_attention(*tensors)
        results.append([out, *dt.autograd.grad(out, tensors, dt.ones(*out.shape, dtype=out.dtype))])

    digits = {"float16": 2**-10, "bfloat16": 2**-7}[dtype]
    for ours, exact in zip(*results, strict=True):
        assert ours.dtype is kind
        limit = digits * float(exact.abs().max())
        np.testing.assert_allclose(ours.detach().double().numpy(), exact.detach().numpy(), atol=limit)


def test_dropout_drops_whole_weights_and_keeps_the_mean():
    dt.manual_seed(0)
    q, k = dt.zeros(200, 8, 4, dtype=dt.float64), dt.zeros(200, 10, 4, dtype=dt.float64)
    v = dt.eye(10, dtype=dt.float64).expand(200, 10, 10).clone().requires_grad_()

    weights = F.scaled_dot_product_attention(q, k, v, dropout_p=0.25)

    dropped = weights.detach().numpy() == 0
    assert 0.23 < dropped.mean() < 0.27
    np.testing.assert_allclose(weights.detach().numpy()[~dropped], 0.1 / 0.75)
    (g,) = dt.autograd.grad(weights.sum(), v)
    np.testing.assert_allclose(g.numpy(), np.repeat(weights.detach().numpy().sum(1)[..., None], 10, 2))


def test_derivatives_with_dropout(differences):
    keep = rng.random((2, 3, 4)) < 0.6
    arrays = floats(2, 3, 5), floats(2, 4, 5), floats(2, 4, 2)

    differences(ops.attention, *arrays, floats(3, 4), keep, scale=0.4, p=0.4)
    differences(ops.attention, *arrays, None, keep, scale=0.4, causal=True, p=0.4)


def test_a_gradient_that_nobody_wants_is_not_computed():
    _, saved, vjp = ops.attention(Q, K, V, floats(3, 6), scale=1.0)

    grads = vjp(floats(2, 4, 3, 2), (False, True, False, False, False), *saved)

    assert [g is not None for g in grads] == [False, True, False, False, False]


def test_the_output_lies_in_memory_as_the_queries():
    q = dt.zeros(2, 3, 4, 5).transpose(1, 2)

    out = F.scaled_dot_product_attention(q, q, q)

    assert out.stride() == q.stride()


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((5,), (6, 5), (6, 5)), {}, r"at least 2 dimensions, got query of shape \[5\]"),
        (((3, 5), (6, 4), (6, 5)), {}, r"key \(\*, S, E\)"),
        (((3, 5), (6, 5), (7, 5)), {}, r"value \(\*, S, F\)"),
        (((2, 3, 5), (4, 6, 5), (4, 6, 5)), {}, "cannot be broadcast"),
        (((4, 3, 5), (3, 6, 5), (3, 6, 5)), {"enable_gqa": True}, "must divide those of query, got 3 and 4"),
        (((3, 5), (6, 5), (6, 5)), {"dropout_p": 1.5}, r"in \[0, 1\], got 1.5"),
        (((3, 5), (6, 5), (6, 5)), {"attn_mask": np.zeros((2, 6))}, r"broadcast to \[3, 6\].* got \[2, 6\]"),
        (((3, 5), (6, 5), (6, 5)), {"attn_mask": np.zeros(6)}, r"at least \(L, S\), got \[6\]"),
        (
            ((3, 5), (6, 5), (6, 5)),
            {"attn_mask": np.zeros((3, 6), np.int64)},
            r"attn_mask of dtype bool.*int64",
        ),
    ],
)
def test_what_torch_refuses_is_refused(shapes, options, message):
    options = {k: dt.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}

    with pytest.raises(RuntimeError, match=message):
        F.scaled_dot_product_attention(*[dt.zeros(*s, dtype=dt.float64) for s in shapes], **options)


def test_dtypes_must_agree():
    q = dt.zeros(2, 3)

    with pytest.raises(RuntimeError, match=r"one floating point dtype, got .*float32, .*float64"):
        F.scaled_dot_product_attention(q, q.double(), q)
    with pytest.raises(RuntimeError, match=r"one floating point dtype, got .*int64"):
        F.scaled_dot_product_attention(q.long(), q.long(), q.long())
    with pytest.raises(TypeError, match="value must be a Tensor, got float"):
        F.scaled_dot_product_attention(q, q, 1.0)


def test_no_array_of_all_scores_is_made():
    T = 2048
    q = dt.zeros(1, 2, T, 8).requires_grad_()
    F.scaled_dot_product_attention(q[:, :, :4], q[:, :, :4], q[:, :, :4]).sum().backward()

    tracemalloc.start()
    F.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < T * T * 4 / 2
    assert math.isfinite(float(q.grad.sum()))
