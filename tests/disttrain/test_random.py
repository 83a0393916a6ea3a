"""Random numbers: the bits by the paper, the distributions by their moments, the streams by their seeds."""

from __future__ import annotations

import math
import statistics
import warnings
from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain import random
from disttrain.kernels import random as kernels

MASK = (1 << 64) - 1


def philox4x64(counter: list[int], key: list[int]) -> list[int]:
    """Return one block of Philox4x64-10 as Salmon et al. (SC 2011) define it, in plain integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & MASK, (p0 >> 64) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return [c0, c1, c2, c3]


def test_the_plain_implementation_gives_the_answers_of_the_paper() -> None:
    """From ``kat_vectors`` of Random123, the authors' own library."""
    zeros = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    ones = [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0]
    assert philox4x64([0] * 4, [0] * 2) == zeros
    assert philox4x64([MASK] * 4, [MASK] * 2) == ones


@pytest.mark.parametrize(
    ("key", "counter"), [((0, 0), (0, 0, 0)), ((1234, 3), (7, 0, 1)), ((MASK, 5), (2**40, 9, 2))]
)
def test_bits_are_those_of_philox(key: Any, counter: Any) -> None:
    drawn = random.philox(key, 10, counter)

    # NumPy counts up before it makes a block, so the first has number 1.
    expected = [w for block in range(1, 4) for w in philox4x64([block, *counter], list(key))]
    assert drawn.tolist() == expected[:10]


def test_a_seed_gives_the_same_numbers_and_streams_differ() -> None:
    dt.manual_seed(5)
    first, second = dt.randn(7).tolist(), dt.randn(7).tolist()
    dt.manual_seed(5)
    assert [first, second] == [dt.randn(7).tolist(), dt.randn(7).tolist()]
    assert first != second
    streams = []
    for stream in range(3):
        g = dt.Generator().manual_seed(5)
        g._stream = stream
        streams.append(tuple(dt.randn(7, generator=g).tolist()))
    assert streams[0] == tuple(first)
    assert len(set(streams)) == 3
    assert dt.Generator().manual_seed(6).raw(4).tolist() != dt.Generator().manual_seed(5).raw(4).tolist()


def test_state_continues_where_it_was_taken() -> None:
    dt.manual_seed(-3)
    dt.randn(5)
    state = dt.get_rng_state()
    first = dt.rand(5).tolist()
    dt.set_rng_state(state)
    assert dt.rand(5).tolist() == first
    g = dt.Generator()
    g.set_state(state)
    assert dt.rand(5, generator=g).tolist() == first
    assert state.dtype is dt.uint8
    with pytest.raises(TypeError, match=r"must be a tensor of uint8, got disttrain\.float32"):
        dt.set_rng_state(dt.zeros(3))
    with pytest.raises(RuntimeError, match=r"24 bytes, got shape \[3\]"):
        dt.set_rng_state(dt.zeros(3, dtype=dt.uint8))
    assert dt.initial_seed() == -3 & MASK
    with pytest.raises(ValueError, match="64 bits"):
        dt.manual_seed(1 << 64)
    assert dt.seed() == dt.initial_seed()


def ks_distance(values: Any, cdf: Any) -> float:
    ordered = np.sort(values.astype(np.float64))
    ideal, n = cdf(ordered), len(values)
    return float(max(np.abs(ideal - np.arange(n) / n).max(), np.abs(ideal - np.arange(1, n + 1) / n).max()))


@pytest.mark.parametrize("name", ["uniform_", "normal_", "exponential_", "random_", "bernoulli_", "cauchy_"])
@pytest.mark.parametrize("dtype", [dt.float32, dt.float64, dt.float16, dt.bfloat16])
def test_tensors_without_dimensions_are_filled(name: str, dtype: Any) -> None:
    x = dt.full((), 7.25, dtype=dtype)

    assert getattr(x, name)() is x
    assert (x.shape, x.dtype) == ((), dtype)
    assert x.item() != 7.25


def test_noise_on_tensors_without_dimensions() -> None:
    x = dt.tensor(-1.0)

    assert -1 / 3 <= dt.nn.functional.rrelu(x, training=True).item() <= -1 / 8
    assert dt.nn.functional.alpha_dropout(x, training=True).shape == ()


def test_uniform_and_normal_have_their_distributions() -> None:
    n = 100_000
    limit = 1.95 / math.sqrt(n)  # the Kolmogorov-Smirnov distance stays below in 99.9 % of draws
    dt.manual_seed(11)
    u, z = dt.rand(n).numpy(), dt.randn(n).numpy()
    assert u.dtype == z.dtype == np.float32
    assert u.min() >= 0
    assert u.max() < 1
    assert ks_distance(u, lambda x: x) < limit
    assert ks_distance(z, lambda x: 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))) < limit
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert abs((z.astype(float) ** power).mean() - moment) < 0.06
    assert abs(np.corrcoef(z[: n // 2], z[n // 2 :])[0, 1]) < 0.02
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 0.02


def test_normal_numbers_are_finite() -> None:
    dt.manual_seed(12)
    for _ in range(10):
        z = dt.randn(1_000_000).numpy()
        assert np.isfinite(z).all()
        assert np.abs(z).max() < 7

    class Edge(dt.Generator):
        def raw(self, count: int) -> Any:
            return np.resize(
                np.array([0, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0], np.uint32), 2 * count
            ).view(np.uint64)

    assert np.isfinite(dt.randn(8, generator=Edge()).numpy()).all()
    assert dt.rand(8, generator=Edge()).numpy().max() < 1


def test_integers_and_permutations() -> None:
    dt.manual_seed(13)
    x = dt.randint(-3, 4, (70_000,)).numpy()
    assert x.dtype == np.int64
    assert set(x.tolist()) == set(range(-3, 4))
    assert np.abs(np.bincount(x + 3) - 10_000).max() < 400
    assert dt.randint(5, (2, 3)).shape == (2, 3)
    with pytest.raises(RuntimeError, match=r"randint\(\): nothing lies in \[3, 3\)"):
        dt.randint(3, 3, (1,))
    p = dt.randperm(1000).tolist()
    assert sorted(p) == list(range(1000))
    assert p != list(range(1000))
    first = [int(dt.randperm(4)[0].item()) for _ in range(2000)]
    assert np.abs(np.bincount(first) - 500).max() < 100


def test_multinomial_follows_the_weights() -> None:
    dt.manual_seed(14)
    weights = dt.tensor([1.0, 0.0, 3.0, 6.0])
    counts = np.bincount(dt.multinomial(weights, 50_000, replacement=True).numpy(), minlength=4)
    assert counts[1] == 0
    assert np.abs(counts / 50_000 - np.array([0.1, 0, 0.3, 0.6])).max() < 0.01
    rows = dt.multinomial(weights.expand(20_000, 4), 2).numpy()
    assert (rows[:, 0] != rows[:, 1]).all()
    assert abs((rows[:, 0] == 3).mean() - 0.6) < 0.015
    assert abs(((rows[:, 0] == 3) & (rows[:, 1] == 2)).mean() - 0.6 * 0.75) < 0.015
    assert dt.multinomial(weights.expand(50, 4), 4)[:, 3].unique().tolist() == [
        1
    ]  # no weight: last, as in PyTorch
    with pytest.raises(RuntimeError, match="must be finite, not negative"):
        dt.multinomial(dt.tensor([-1.0, 2.0]), 1)


def test_like_bernoulli_and_in_place() -> None:
    dt.manual_seed(15)
    x = dt.zeros(1000, dtype=dt.float64)
    assert dt.rand_like(x).dtype is dt.float64
    assert dt.randn_like(x).shape == (1000,)
    assert abs(dt.bernoulli(x + 0.3).mean().item() - 0.3) < 0.05
    assert abs(dt.bernoulli(x, 0.7).mean().item() - 0.7) < 0.05
    assert abs(x.normal_(2, 3).mean().item() - 2) < 0.4
    assert abs(x.std().item() - 3) < 0.3
    x.uniform_(-2, -1)
    assert x.min().item() >= -2
    assert x.max().item() < -1
    assert set(x.bernoulli_(0.5).tolist()) == {0.0, 1.0}
    with pytest.raises(RuntimeError, match="leaf"):
        dt.zeros(1, requires_grad=True).normal_()


# ------------------------------------------------------------------------------ against PyTorch and NumPy


def reference_normal(word: int, bits: int) -> float:
    """Return what the specification says of one word, by the standard library's own inverse."""
    odd = word | 1
    if odd == (1 << bits) - 1:
        return math.nan  # the middle, where one half minus the probability rounds away
    beyond = odd * 2.0 ** -(bits + 1)
    z = -statistics.NormalDist().inv_cdf(beyond)
    return -z if word & 1 else z


@pytest.mark.parametrize(("kind", "bits", "near"), [(np.uint32, 32, 1e-6), (np.uint64, 64, 1e-9)])
def test_normal_numbers_are_the_inverse_of_the_distribution_function(
    kind: Any, bits: int, near: float
) -> None:
    edges = [0, 1, 2, 3, (1 << bits) - 2, 1 << (bits - 1), (1 << (bits - 1)) - 1, 1 << (bits - 4)]
    words = np.array([*edges, *(int(w) >> (64 - bits) for w in random.philox((3, 4), 3000).tolist())], kind)

    z = kernels.normal(words)

    expected = np.array([reference_normal(int(w), bits) for w in words])
    known = ~np.isnan(expected)
    np.testing.assert_allclose(z[known], expected[known], rtol=near, atol=near)
    assert np.isfinite(z).all()
    np.testing.assert_array_equal(kernels.normal(words ^ kind(1))[words > 1], -z[words > 1])


def test_log_and_exp_need_no_library() -> None:
    rng = np.random.default_rng(0)
    wide = np.exp(rng.uniform(-80, 80, 20_000))
    near_one = 1 + rng.uniform(-1e-3, 1e-3, 1000)
    for kind, rtol in ((np.float32, 4e-7), (np.float64, 8e-16)):
        x = np.concatenate([wide, near_one, [1.0, 2.0, 0.5, 2**-0.5, 2**0.5]]).astype(kind)
        np.testing.assert_allclose(
            kernels.log(x), np.log(x.astype(np.longdouble)).astype(float), rtol=rtol, atol=1e-45
        )
    x = rng.uniform(-740, 709, 20_000)
    np.testing.assert_allclose(kernels.exp(x), np.exp(x), rtol=4e-16, atol=5e-324)
    assert kernels.exp(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 1.0, math.inf]
    for n in (1, 2, 3, 10, 1000, 10**9):
        assert kernels.log_gamma(np.array([float(n)]))[0] == pytest.approx(
            math.lgamma(n), rel=1e-14, abs=2e-14
        )


NUMBERS = [
    [0.3725370168685913, 0.33472365140914917],
    [-0.07586874067783356, 1.1756590604782104],
    [0.3208084499780951, -1.2741213564156948],
    [394, 690, 550],
    [1, 0, 4, 2, 3],
    [0.9304733778817103, 1.3856554753894281],
]


def test_numbers_are_what_they_were() -> None:
    """A change of these is a change of what every seed means: say so in the change log."""
    dt.manual_seed(1234)
    found = [
        dt.rand(2).tolist(),
        dt.randn(2).tolist(),
        dt.randn(2, dtype=dt.float64).tolist(),
        dt.randint(0, 1000, (3,)).tolist(),
        dt.randperm(5).tolist(),
        dt.zeros(2, dtype=dt.float64).exponential_().tolist(),
    ]
    assert found == NUMBERS


def integers(low: float, high: float) -> Any:
    return lambda k: np.clip((np.floor(k) - low + 1) / (high - low), 0, 1)


def erf_cdf(z: Any) -> Any:
    return 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))


CONTINUOUS: dict[str, tuple[Any, Any]] = {
    "uniform_": (lambda t: t.uniform_(-2, 3), lambda x: (x + 2) / 5),
    "normal_": (lambda t: t.normal_(1, 2), lambda x: erf_cdf((x - 1) / 2)),
    "exponential_": (lambda t: t.exponential_(2), lambda x: 1 - np.exp(-2 * x)),
    "cauchy_": (lambda t: t.cauchy_(1, 2), lambda x: 0.5 + np.arctan((x - 1) / 2) / np.pi),
    "log_normal_": (lambda t: t.log_normal_(0.5, 0.7), lambda x: erf_cdf((np.log(x) - 0.5) / 0.7)),
    "normal of means": (lambda t: dt.normal(t + 2, 3.0), lambda x: erf_cdf((x - 2) / 3)),
    "normal of deviations": (lambda t: dt.normal(1.0, t + 3), lambda x: erf_cdf((x - 1) / 3)),
    "normal of a size": (lambda t: dt.normal(1.0, 3.0, (len(t),)), lambda x: erf_cdf((x - 1) / 3)),
    "rand_like": (dt.rand_like, lambda x: x),
    "randn_like": (dt.randn_like, erf_cdf),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_distributions(name: str, dtype: str) -> None:
    n = 20_000
    draw, cdf = CONTINUOUS[name]
    dt.manual_seed(21)
    x = draw(dt.zeros(n, dtype=getattr(dt, dtype))).numpy()

    assert x.dtype == dtype or name == "normal of a size"
    assert ks_distance(x, cdf) < 1.95 / math.sqrt(n)


def poisson_chances(rate: float, n: int) -> Any:
    return np.array([math.exp(k * math.log(rate) - rate - math.lgamma(k + 1)) for k in range(n)])


def binomial_chances(n: int, p: float) -> Any:
    return np.array([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])


DISCRETE: dict[str, tuple[Any, Any]] = {
    "geometric_": (lambda t: t.geometric_(0.3), np.array([0, *(0.3 * 0.7**k for k in range(40))])),
    "random_": (lambda t: t.random_(3, 8), np.array([0, 0, 0, 0.2, 0.2, 0.2, 0.2, 0.2])),
    "random_ below": (lambda t: t.random_(4), np.full(4, 0.25)),
    "bernoulli": (lambda t: dt.bernoulli(t + 0.3), np.array([0.7, 0.3])),
    "bernoulli_ of a tensor": (lambda t: t.bernoulli_(t.clone() + 0.3), np.array([0.7, 0.3])),
    "poisson, few": (lambda t: dt.poisson(t + 2.5), poisson_chances(2.5, 40)),
    "poisson, some": (lambda t: dt.poisson(t + 12), poisson_chances(12, 80)),
    "poisson, many": (lambda t: dt.poisson(t + 300), poisson_chances(300, 600)),
    "binomial, few": (lambda t: dt.binomial(t + 12, t + 0.3), binomial_chances(12, 0.3)),
    "binomial, mostly": (lambda t: dt.binomial(t + 12, t + 0.9), binomial_chances(12, 0.9)),
    "binomial, some": (lambda t: dt.binomial(t + 40, t + 0.3), binomial_chances(40, 0.3)),
    "binomial, many": (lambda t: dt.binomial(t + 600, t + 0.7), binomial_chances(600, 0.7)),
    "binomial, none": (lambda t: dt.binomial(t + 3, t), np.array([1.0])),
    "binomial, all": (lambda t: dt.binomial(t + 3, t + 1), np.array([0, 0, 0, 1.0])),
    "randint_like": (lambda t: dt.randint_like(t, 1, 4), np.array([0, 1, 1, 1]) / 3),
}


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_distributions(name: str) -> None:
    n = 40_000
    draw, chances = DISCRETE[name]
    dt.manual_seed(22)
    x = draw(dt.zeros(n)).numpy()

    counts = np.bincount(x.astype(int), minlength=len(chances))
    assert (x == np.round(x)).all()
    assert (counts[len(chances) :] <= 2).all()
    cumulated = np.abs(np.cumsum(counts[: len(chances)]) / n - np.cumsum(chances))
    assert cumulated.max() < 1.95 / math.sqrt(n)


def test_halves_never_reach_the_end_of_their_range() -> None:
    dt.manual_seed(23)
    for dtype in (dt.float16, dt.bfloat16, dt.float32):
        x = dt.rand(200_000, dtype=dtype)
        assert x.min().item() >= 0
        assert x.max().item() < 1
        y = dt.zeros(200_000, dtype=dtype).uniform_(-1, 1)
        assert y.min().item() >= -1
        assert y.max().item() < 1


def test_an_element_depends_on_its_place_alone() -> None:
    for draw in (dt.rand, dt.randn, lambda n: dt.zeros(n).exponential_()):
        dt.manual_seed(24)
        long = draw(200_000).numpy()
        dt.manual_seed(24)
        np.testing.assert_array_equal(draw(1000).numpy(), long[:1000])


def test_a_tensor_that_is_not_contiguous_is_filled_in_its_own_order() -> None:
    dt.manual_seed(25)
    plain = dt.zeros(3, 4).normal_()
    dt.manual_seed(25)
    turned = dt.zeros(4, 3).t().normal_()
    assert turned.tolist() == plain.tolist()


def test_random_numbers_have_no_gradient() -> None:
    x = dt.full((3,), 0.5, requires_grad=True)
    for drawn in (dt.bernoulli(x), dt.poisson(x), dt.normal(x, 1.0), (x * 1).normal_(), (x * 1).random_(5)):
        (g,) = dt.autograd.grad(drawn.sum(), x)
        assert g.tolist() == [0, 0, 0]
    assert not dt.multinomial(x, 2).requires_grad
    with pytest.raises(RuntimeError, match="leaf"):
        x.uniform_()


def test_fork_rng_puts_the_generator_back() -> None:
    dt.manual_seed(26)
    before = dt.get_rng_state().tolist()
    with dt.random.fork_rng():
        dt.rand(3)
    assert dt.get_rng_state().tolist() == before
    with dt.random.fork_rng(enabled=False):
        dt.rand(3)
    assert dt.get_rng_state().tolist() != before
    g = dt.Generator().manual_seed(1)
    h = g.clone_state()
    assert dt.rand(3, generator=g).tolist() == dt.rand(3, generator=h).tolist()


def test_the_default_generator_is_that_of_the_rank() -> None:
    dt.manual_seed(27)
    first = dt.rand(3).tolist()
    dt.default_generator.manual_seed(27)
    state = dt.get_rng_state()
    assert dt.rand(3, generator=dt.default_generator).tolist() == first
    assert dt.rand(3).tolist() != first
    dt.default_generator.set_state(state)
    assert dt.rand(3).tolist() == first
    assert dt.default_generator.clone_state().get_state().tolist() == dt.get_rng_state().tolist()


CALLS = """
rand(3) | rand(2,3) | rand((2,3)) | rand(size=(2,3)) | rand(()) | rand([]) | rand(-1) | rand(2.0)
rand("a") | rand(True) | rand(2,dtype=L.int64) | rand(2,dtype=L.float64,requires_grad=True)
rand(2,generator=3) | rand(2,out=Z(2)) | rand(2,bogus=1) | randn(3,4) | randn(2,dtype=L.int32)
rand_like(Z(2,dtype=L.int64)) | rand_like([1]) | rand_like(Z(2),dtype=L.float64)
randn_like(Z(2),requires_grad=True) | rand_like(Z(2,requires_grad=True)) | randint(5,(2,))
randint(1,5,(2,)) | randint(high=5,size=(2,)) | randint(5,size=(2,)) | randint(3,3,(2,)) | randint(5,2)
randint(0,300,(2,),dtype=L.uint8) | randint(-1,2,(2,),dtype=L.bool) | randint(5,(2,),dtype=L.float32)
randint(2.5,(2,)) | randint(0,5,(2,),requires_grad=True) | randint(5) | randint(0,5,(-1,))
randint(L.tensor(5),(2,)) | randint_like(Z(2),5) | randint_like(Z(2),1,5) | randint_like(Z(2),5,5)
randint_like(Z(2),low=1,high=5,dtype=L.int32) | randperm(5) | randperm(0) | randperm(-1)
randperm(300,dtype=L.uint8) | randperm(256,dtype=L.uint8) | randperm(2.5)
randperm(3000,dtype=L.float16) | randperm(128,dtype=L.int8) | randperm(129,dtype=L.int8)
randperm(5,dtype=L.int32) | bernoulli(Z(2)+.5) | bernoulli(Z(2)+2) | bernoulli(Z(2,dtype=L.int64))
bernoulli(Z(2,dtype=L.int64),0.5) | bernoulli(Z(2),1.5) | bernoulli(Z(2,requires_grad=True))
bernoulli(Z(2)*float('nan')) | bernoulli(0.5) | multinomial(L.ones(3),2) | multinomial(L.ones(3),4)
multinomial(L.ones(3),4,True) | multinomial(L.ones(2,2,3),1) | multinomial(L.ones(3),0)
multinomial(-L.ones(3),1) | multinomial(Z(3),1) | multinomial(L.ones(3,dtype=L.int64),1)
multinomial(L.ones(3,0),1) | multinomial(L.ones(()),1) | multinomial(L.ones(2,3),num_samples=2)
normal(0.,1.,(2,)) | normal(mean=0.,std=1.,size=(2,)) | normal(Z(2)) | normal(0.,Z(2)+1)
normal(Z(2,1),Z(3)+1) | normal(Z(2),-1.) | normal(Z(2),Z(2)-1) | normal(0.,1.) | normal(Z(2),1.,(2,))
normal(Z(2),Z(3)+1) | normal(Z(2),Z(2,dtype=L.float64)+1) | normal(Z(2,dtype=L.int64),1.)
normal(0.,1.,(2,),dtype=L.int64) | poisson(L.ones(3)) | poisson(-L.ones(3))
poisson(L.ones(3,dtype=L.int64)) | poisson(L.ones(3,requires_grad=True)) | Z(2).uniform_(2,1)
Z(2,dtype=L.int64).uniform_() | Z(2).uniform_(**{'from':0.,'to':2.}) | Z(2).uniform_(0.,float('inf'))
Z(2,dtype=L.float16).uniform_(0,1e6) | Z(2).uniform_(-3e38,3e38) | Z(2).uniform_(1,2,3)
Z(2,requires_grad=True).uniform_() | (Z(2,requires_grad=True)*1).uniform_() | Z(2).normal_(std=-1)
Z(2,dtype=L.int64).normal_() | Z(0).normal_() | Z(2).bernoulli_() | Z(2).bernoulli_(2)
Z(2,dtype=L.int64).bernoulli_() | Z(2).bernoulli_(Z(3)+.5) | Z(2).bernoulli(0.3)
Z(2,2).bernoulli_(Z(2)+.5) | Z(2).bernoulli_(Z(2,dtype=L.int64)) | Z(2).bernoulli_(Z(2)+2)
Z(2).random_() | Z(2).random_(5,5) | Z(2).random_(to=5) | Z(2,dtype=L.uint8).random_(300)
Z(2).random_(2.5) | Z(2).random_(0) | Z(2,dtype=L.float16).random_(0,70000)
Z(2,dtype=L.int8).random_(-200,100) | Z(2,dtype=L.bool).random_(0,3) | Z(2).exponential_(0)
Z(2,dtype=L.int64).exponential_() | Z(2).exponential_(lambd=2) | Z(2).geometric_(0) | Z(2).geometric_(1)
Z(2,dtype=L.int64).geometric_(.5) | Z(2).geometric_() | Z(2).log_normal_(0,-1) | Z(2).log_normal_(0,0)
Z(2,dtype=L.int64).log_normal_() | Z(2).cauchy_(0,0) | Z(2,dtype=L.int64).cauchy_()
Z(2).cauchy_(median=1.,sigma=2.) | manual_seed(-1).initial_seed() | manual_seed(1<<64)
manual_seed(1.7).initial_seed() | manual_seed("a") | manual_seed(None) | Generator().manual_seed(1.5)
Generator().initial_seed() | set_rng_state(Z(3)) | set_rng_state([1]) | random.initial_seed()>=0
rand_like(Z(2,3).t()).stride() | randn_like(Z(2,3).t()).stride() | randint_like(Z(2,3).t(),5).stride()
randint(0,2**63,(2,)) | randint(0,2**63-1,(2,)) | randint_like(Z(2,dtype=L.int64),2**63)
binomial(L.ones(3)*4,L.ones(3)/2) | binomial(L.ones(2,1)*4,L.ones(3)/2) | binomial(L.ones(2),L.ones(3)/2)
binomial(L.ones(2),L.ones(2,dtype=L.float64)/2) | binomial(L.ones(2,requires_grad=True),L.ones(2)/2)
binomial(L.ones(2,dtype=L.int64),L.ones(2)/2) | default_generator.manual_seed(4).initial_seed()
rand(2,generator=default_generator)
random.default_generator is L.default_generator
set_rng_state(Z(3,dtype=L.uint8)) | randn(3,out=Z(0)) | multinomial(L.ones(3),2,out=Z(2,dtype=L.int64))
"""


@pytest.mark.parametrize("call", [c.strip() for c in CALLS.replace("\n", "|").split("|") if c.strip()])
def test_arguments_are_taken_and_refused_as_pytorch_does(call: str) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")

    def outcome(lib: Any) -> Any:
        names = {"L": lib, "Z": lib.zeros}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                r = eval(call if call[0] in "Z(" else f"L.{call}", names)
        except Exception as e:
            return RuntimeError if isinstance(e, RuntimeError) else type(e)
        if not lib.is_tensor(r):
            return r
        return str(r.dtype).split(".")[1], tuple(r.shape), r.requires_grad

    assert outcome(dt) == outcome(torch)
