"""Random numbers: the bits by the paper, the distributions by their moments, the streams by their seeds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import disttrain as dt
from disttrain import random

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
    with pytest.raises(ValueError, match="3 int64"):
        dt.set_rng_state(dt.zeros(3))
    assert dt.initial_seed() == -3 & MASK
    with pytest.raises(ValueError, match="64 bits"):
        dt.manual_seed(1 << 64)
    assert dt.seed() == dt.initial_seed()


def ks_distance(values: Any, cdf: Any) -> float:
    ordered = np.sort(values.astype(np.float64))
    ideal, n = cdf(ordered), len(values)
    return float(max(np.abs(ideal - np.arange(n) / n).max(), np.abs(ideal - np.arange(1, n + 1) / n).max()))


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
    with pytest.raises(RuntimeError, match=r"nothing lies in \[3, 3\)"):
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
    with pytest.raises(RuntimeError, match="fewer than 4 positive weights"):
        dt.multinomial(weights, 4)
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
