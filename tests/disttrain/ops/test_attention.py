import numpy as np
import pytest

from disttrain.ops import attention as ops
from disttrain.ops.attention import attention

rng = np.random.default_rng(0)
Q, K, V = (rng.standard_normal(s) for s in ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("block", [1 << 18, 30, 1])
def test_first_and_second_derivatives_are_those_of_differences(differences, block, causal, monkeypatch):
    monkeypatch.setattr(ops, "_BLOCK", block)
    monkeypatch.setattr(ops, "_ROWS", 2)

    differences(attention, Q, K, V, scale=0.4, causal=causal)


@pytest.mark.parametrize(
    "shape", [(5, 7), (1, 7), (5, 1), (1, 1), (3, 5, 7), (2, 1, 5, 7), (2, 1, 1, 7), (2, 3, 5, 7)]
)
def test_masks_of_all_shapes(differences, shape, monkeypatch):
    monkeypatch.setattr(ops, "_BLOCK", 20)
    monkeypatch.setattr(ops, "_ROWS", 2)

    differences(attention, Q, K, V, rng.standard_normal(shape), scale=0.4)


def test_a_mask_along_some_of_several_leading_axes(differences):
    q, k, v = (np.stack([a, a + 1]) for a in (Q, K, V))

    differences(attention, q, k, v, rng.standard_normal((2, 1, 3, 5, 7)), scale=0.4)


def test_layouts_do_not_matter(monkeypatch):
    monkeypatch.setattr(ops, "_BLOCK", 20)
    strided = [np.ascontiguousarray(a.transpose(2, 0, 1, 3)).transpose(1, 2, 0, 3) for a in (Q, K, V)]
    runs = []
    for arrays in ((Q, K, V), strided):
        out, saved, vjp = attention(*arrays, scale=0.4)
        runs.append((out, *vjp(np.cos(out), (True, True, True, False, False), *saved)[:3]))

    for plain, other in zip(*runs, strict=True):
        np.testing.assert_allclose(other, plain, 1e-12, 1e-12)


def test_rows_that_see_nothing_have_neither_output_nor_gradient():
    mask = np.ones((5, 7), np.bool_)
    mask[2] = False

    out, saved, vjp = attention(Q, K, V, mask, scale=0.4)
    gq, gk, gv, gm, _ = vjp(np.ones_like(out), (True, True, True, False, False), *saved)

    assert not out[:, :, 2].any()
    assert not gq[:, :, 2].any()
    assert all(np.isfinite(g).all() for g in (out, gq, gk, gv))
    assert gm is None


def test_large_scores_do_not_overflow():
    out = attention(Q.astype(np.float32) * 1e4, K.astype(np.float32), V.astype(np.float32), scale=1.0)[0]

    assert np.isfinite(out).all()
