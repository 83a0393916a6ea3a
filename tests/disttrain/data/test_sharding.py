import itertools

import pytest

from disttrain.data.sharding import share, steps

CASES = list(itertools.product([0, 1, 2, 5, 8, 9, 31, 97], [1, 3, 8, 100], [1, 2, 3, 8]))


@pytest.mark.parametrize(("n", "batch_size", "ranks"), CASES)
def test_every_position_is_dealt_once_in_step_order(n, batch_size, ranks):
    dealt = [
        position
        for step in range(steps(n, batch_size, ranks))
        for rank in range(ranks)
        for position in share(n, batch_size, ranks, rank, step)
    ]

    assert dealt == list(range(n))


@pytest.mark.parametrize(("n", "batch_size", "ranks"), CASES)
def test_shares_are_even_and_the_first_ranks_get_more(n, batch_size, ranks):
    for step in range(steps(n, batch_size, ranks)):
        sizes = [len(share(n, batch_size, ranks, rank, step)) for rank in range(ranks)]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] - sizes[-1] <= 1
        assert 1 <= sizes[0] <= batch_size


@pytest.mark.parametrize(("n", "batch_size", "ranks"), CASES)
def test_drop_last_leaves_whole_steps_only(n, batch_size, ranks):
    count = steps(n, batch_size, ranks, drop_last=True)

    assert count * batch_size * ranks <= n < (count + 1) * batch_size * ranks
    for step, rank in itertools.product(range(count), range(ranks)):
        assert len(share(n, batch_size, ranks, rank, step)) == batch_size


def test_a_step_deals_the_same_positions_to_any_number_of_ranks_of_one_global_batch():
    for step in range(steps(100, 4, 2)):
        two = [p for rank in range(2) for p in share(100, 4, 2, rank, step)]
        eight = [p for rank in range(8) for p in share(100, 1, 8, rank, step)]
        assert two == eight
