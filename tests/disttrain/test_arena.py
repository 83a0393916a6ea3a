"""The fixed memory of a replay: who shares it, who does not, and what happens where a replay is another."""

import itertools

import numpy as np
import pytest

from disttrain.arena import Arena, Life, lay_out
from disttrain.kernels import buffers


def lives_of(seed, count):
    """Return arrays of random sizes and times, some of which live on."""
    rng = np.random.default_rng(seed)
    lasts = rng.geometric(0.1, count)
    return [
        Life(
            int(rng.integers(0, 5000)), i, np.inf if rng.random() < 0.1 else min(i + int(lasts[i]) - 1, count)
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_arrays_that_are_held_at_one_time_do_not_overlap(seed):
    lives = lives_of(seed, 60)

    offsets, size = lay_out(lives)

    assert [at is None for at in offsets] == [x.end == np.inf for x in lives]
    placed = [(x, at) for x, at in zip(lives, offsets, strict=True) if at is not None]
    assert all(at % 64 == 0 and at + x.nbytes <= size for x, at in placed)
    for (x, at), (y, to) in itertools.combinations(placed, 2):
        together = x.begin <= y.end and y.begin <= x.end
        assert not together or at + x.nbytes <= to or to + y.nbytes <= at


@pytest.mark.parametrize("seed", range(5))
def test_little_more_memory_is_taken_than_is_held_at_one_time(seed):
    lives = [x for x in lives_of(seed, 200) if x.end != np.inf]
    most = max(sum(x.nbytes for x in lives if x.begin <= t <= x.end) for t in range(200))

    _, size = lay_out(lives)

    assert size <= 1.25 * most


def test_no_arrays_take_no_memory():
    assert lay_out([]) == ([], 0)
    assert lay_out([Life(100, 0, np.inf)]) == ([None], 0)


def address(x):
    return x.__array_interface__["data"][0]


def test_arrays_get_the_same_memory_each_time_and_share_it_once_they_are_gone():
    seen = []

    def step(x):
        a = buffers.empty((50, 10), np.float32)
        a[...] = x
        b = buffers.empty((500,), np.float32)
        b[...] = a.reshape(-1) * 2
        first = address(a), address(b)
        del a
        c = buffers.zeros((400,), np.float32)
        seen.append((*first, address(c)))
        assert not c.any()
        c += b[:400]
        return (buffers.copy(c),)

    arena = Arena(step)
    results = [arena.run(np.full((50, 10), i, np.float32))[0] for i in range(4)]

    assert [set(r.tolist()) for r in results] == [{2.0 * i} for i in range(4)]  # none is written again
    assert seen[1] == seen[2] == seen[3]
    a, b, c = seen[1]
    assert a == c != b
    assert a % 64 == b % 64 == 0
    assert arena.nbytes == 2 * 2048


def test_what_lives_on_is_made_anew():
    kept = []

    def step():
        a = buffers.empty((30,), np.float64)
        a[...] = len(kept)
        kept.append(a[::2])
        return ()

    arena = Arena(step)
    for _ in range(3):
        arena.run()

    assert [set(k.tolist()) for k in kept] == [{0.0}, {1.0}, {2.0}]
    assert arena.nbytes == 0


def test_a_replay_that_asks_for_other_arrays_gets_them_and_is_noted_again():
    sizes, seen = iter([8, 8, 6, 6, 6]), []

    def step():
        n = next(sizes)
        for k in (n, n + 1):
            a = buffers.empty((k, 100), np.float32)
            a[...] = k
            seen.append((a.shape, address(a)))
            assert a.sum() == 100 * k * k
            del a
        return ()

    arena = Arena(step)
    for _ in range(5):
        arena.run()

    shapes = [shape for shape, _ in seen]
    assert shapes == [(k, 100) for n in (8, 8, 6, 6, 6) for k in (n, n + 1)]
    assert arena.nbytes == 7 * 100 * 4 // 64 * 64 + 64
    assert seen[8][1] == seen[9][1]  # in the fixed memory of the last layout, one after the other


def test_calls_that_are_apart_get_memory_of_the_system():
    def make():
        return buffers.empty((40,), np.float32)

    seen = []

    def step():
        seen.append((address(make()), buffers.apart(make)()))
        return ()

    arena = Arena(step)
    for _ in range(3):
        arena.run()

    assert seen[1][0] == seen[2][0]
    assert len({address(other) for _, other in seen} | {seen[1][0]}) == 4
    assert arena.nbytes == 192


def test_an_error_leaves_the_memory_as_it_is_for_the_next_replay():
    fails = [False, False, True, False]

    def step():
        a = buffers.zeros((40,), np.float32)
        if fails.pop(0):
            raise RuntimeError("on the way")
        a += 1
        return (a.sum(),)

    arena = Arena(step)
    assert [float(arena.run()[0]) for _ in range(2)] == [40, 40]
    with pytest.raises(RuntimeError, match="on the way"):
        arena.run()
    assert float(arena.run()[0]) == 40
