import numpy as np
import pytest

from disttrain.kernels import heads

SIZES = [(2, 3, 17, 33, 32, 48), (1, 2, 100, 70, 16, 64), (1, 2, 70, 300, 64, 16), (1, 1, 6, 1, 16, 16)]
"""B, H, L, S, E, F."""


def some(rng, shape, by_time):
    x = rng.standard_normal(shape).astype(np.float32)
    return x.transpose(0, 2, 1, 3).copy().transpose(0, 2, 1, 3) if by_time else x


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("by_time", [False, True])
def test_attention_of_whole_heads_equals_its_reference(size, causal, by_time):
    B, H, L, S, E, F = size
    rng = np.random.default_rng(0)
    q, k, v, g = (some(rng, (B, H, *of), by_time) for of in ((L, E), (S, E), (S, F), (L, F)))
    out, lse = np.empty((B, H, L, F), np.float32), np.empty((B, H, L), np.float32)
    grads = [np.empty_like(x) for x in (q, k, v)]

    heads.attention(q, k, v, 0.3, causal, out, lse)
    heads.attention_grad(g, q, k, v, 0.3, causal, out, lse, *grads)

    wide = [x.astype(np.float64) for x in (q, k, v)]
    exact, exact_lse = np.empty(out.shape), np.empty(lse.shape)
    exact_grads = [np.empty(x.shape) for x in (q, k, v)]
    heads.attention_reference(*wide, 0.3, causal, exact, exact_lse)
    heads.attention_grad_reference(g, *wide, 0.3, causal, exact, exact_lse, *exact_grads)
    for mine, right in zip((out, lse, *grads), (exact, exact_lse, *exact_grads), strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-5, atol=1e-5)


def test_a_query_does_not_depend_on_keys_after_it():
    rng = np.random.default_rng(0)
    q, k, v = (some(rng, (1, 1, 40, 16), False) for _ in range(3))
    out, lse = np.empty_like(q), np.empty((1, 1, 40), np.float32)
    again = np.empty_like(out)
    heads.attention(q, k, v, 0.25, True, out, lse)

    k[..., 23:, :], v[..., 23:, :] = 50, -1e6
    heads.attention(q, k, v, 0.25, True, again, lse)

    assert np.array_equal(again[..., :23, :], out[..., :23, :])
    assert (again[..., 23:, :] != out[..., 23:, :]).all()


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 1, 8, 24), np.float32), ((1, 1, 5, 16), np.float32), ((1, 1, 8, 16), np.float64)],
    ids=["24 features", "5 queries", "float64"],
)
def test_what_does_not_fit(shape, dtype):
    x = np.ones(shape, dtype)

    assert not heads.fits(x, x, x)
    assert heads.fits(*[np.ones((1, 1, 8, 16), np.float32)] * 3)
