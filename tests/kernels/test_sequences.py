import numpy as np
import pytest

from disttrain.kernels import sequences

STEPS = {
    "equal": ([0, 10, 20, 30], [10, 10, 10, 10]),
    "packed": ([0, 7, 11, 12], [7, 4, 1, 1]),
    "reversed": ([12, 11, 7, 0], [1, 1, 4, 7]),
    "one row": ([0, 1], [1, 1]),
}
HIDDEN = [1, 16, 50, 70]


def some(rng, *shape):
    return rng.standard_normal(shape)


GUARD = np.full(64, 7.0)


def guarded(a, dtype):
    """Return a copy of an array with other memory on both sides, and that memory."""
    memory = np.concatenate([GUARD, a.reshape(-1), GUARD]).astype(dtype)
    return memory[64:-64].reshape(a.shape), memory


def run(function, arrays, places, dtype):
    """Return all arrays after a call: those that it writes are among them. Beside them it writes nothing."""
    arrays = [(None, None) if a is None else guarded(a, dtype) for a in arrays]
    function(*(a for a, _ in arrays), *(np.array(p, np.int64) for p in places))
    for a, memory in arrays:
        assert a is None or ((memory[:64] == 7).all() and (memory[-64:] == 7).all())
    return [a for a, _ in arrays if a is not None]


def check(name, arrays, places):
    mine = run(getattr(sequences, name), arrays, places, np.float32)
    exact = run(getattr(sequences, f"{name}_reference"), arrays, places, np.float64)
    for a, b in zip(mine, exact, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("places", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("H", HIDDEN)
def test_lstm(H, places):
    rng = np.random.default_rng(0)
    R, B = sum(places[1]), max(places[1])
    zeros = np.zeros((R, H))

    check(
        "lstm",
        [some(rng, R, 4 * H), some(rng, 4 * H, H) / 8, some(rng, B, H), some(rng, B, H), zeros, zeros, zeros],
        places,
    )


@pytest.mark.parametrize("places", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("H", HIDDEN)
@pytest.mark.parametrize("with_g", [False, True])
def test_lstm_grad(H, places, with_g):
    rng = np.random.default_rng(0)
    R, B = sum(places[1]), max(places[1])
    gates, g = rng.uniform(size=(R, 4 * H)), some(rng, R, H) if with_g else None

    check(
        "lstm_grad",
        [
            gates,
            some(rng, 4 * H, H) / 8,
            some(rng, R, H),
            g,
            some(rng, B, H),
            some(rng, B, H),
            np.zeros((R, 4 * H)),
        ],
        places,
    )


@pytest.mark.parametrize("places", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("H", HIDDEN)
@pytest.mark.parametrize("with_bias", [False, True])
def test_gru(H, places, with_bias):
    rng = np.random.default_rng(0)
    R, B = sum(places[1]), max(places[1])
    bias, zeros = some(rng, 3 * H) if with_bias else None, np.zeros((R, H))

    check(
        "gru",
        [some(rng, R, 3 * H), some(rng, 3 * H, H) / 8, bias, some(rng, B, H), zeros, zeros, zeros],
        places,
    )


@pytest.mark.parametrize("places", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("H", HIDDEN)
@pytest.mark.parametrize("with_g", [False, True])
def test_gru_grad(H, places, with_g):
    rng = np.random.default_rng(0)
    R, B = sum(places[1]), max(places[1])
    gates, g = rng.uniform(size=(R, 3 * H)), some(rng, R, H) if with_g else None
    products, before, zeros = some(rng, R, H), some(rng, R, H), np.zeros((R, 3 * H))

    check(
        "gru_grad",
        [gates, some(rng, 3 * H, H) / 8, products, before, g, some(rng, B, H), zeros, zeros],
        places,
    )
