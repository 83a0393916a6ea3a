import itertools

import numpy as np
import pytest

import disttrain as dt
from disttrain.collectives.env import WorkerEnv
from disttrain.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from disttrain.data.sampler import epoch_order


def generator(seed=0):
    return dt.Generator().manual_seed(seed)


def test_orders_are_permutations_that_depend_on_seed_and_epoch():
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]

    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert tuple(epoch_order(50, 1, 1)) == orders[3]


def test_the_order_of_a_seed_never_changes():
    assert epoch_order(8, 0, 0).tolist() == [7, 4, 2, 6, 5, 0, 1, 3]
    assert epoch_order(8, 0, 1).tolist() == [0, 1, 5, 4, 6, 2, 3, 7]


def test_first_places_are_evenly_distributed():
    counts = np.bincount([epoch_order(10, 3, epoch)[0] for epoch in range(2000)], minlength=10)

    assert (np.abs(counts - 200) < 70).all()  # five standard deviations


def test_random_sampler_without_replacement_is_a_permutation_of_its_generator():
    sampler = RandomSampler(range(20), generator=generator())
    first, second = list(sampler), list(sampler)

    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert list(RandomSampler(range(20), generator=generator())) == first
    assert sorted(list(RandomSampler(range(3), num_samples=8))[:6]) == [0, 0, 1, 1, 2, 2]


def test_random_sampler_with_replacement():
    drawn = list(RandomSampler(range(5), replacement=True, num_samples=1000, generator=generator()))

    assert len(drawn) == 1000
    assert (np.bincount(drawn) > 140).all()


def test_weighted_sampler_follows_the_weights():
    drawn = list(WeightedRandomSampler([0.0, 1.0, 3.0], 4000, generator=generator()))

    counts = np.bincount(drawn, minlength=3)
    assert counts[0] == 0
    assert 2850 < counts[2] < 3150
    assert sorted(WeightedRandomSampler([0.1, 5, 2], 3, replacement=False)) == [0, 1, 2]


def test_subset_sampler_gives_its_indices():
    assert sorted(SubsetRandomSampler([3, 5, 9], generator())) == [3, 5, 9]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("n", [0, 1, 6, 7])
def test_batch_sampler_equals_pytorch(n, drop_last):
    torch_data = pytest.importorskip("torch.utils.data")

    ours = BatchSampler(SequentialSampler(range(n)), 3, drop_last)
    theirs = torch_data.BatchSampler(torch_data.SequentialSampler(range(n)), 3, drop_last)

    assert list(ours) == list(theirs)
    assert len(ours) == len(theirs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomSampler(range(3), num_samples=0),
        lambda: RandomSampler([]),
        lambda: BatchSampler(range(3), 0, False),
        lambda: BatchSampler(range(3), True, False),
        lambda: BatchSampler(range(3), 2, 1),
        lambda: WeightedRandomSampler([1.0], 0),
        lambda: WeightedRandomSampler([[1.0]], 1),
        lambda: WeightedRandomSampler([1.0], 1, 2),
        lambda: DistributedSampler(range(3), 2, 2),
        lambda: DistributedSampler(range(3), 2, -1),
    ],
)
def test_wrong_arguments_are_refused(make):
    with pytest.raises(ValueError, match="must"):
        make()


@pytest.mark.parametrize(
    ("n", "replicas", "drop_last"),
    list(itertools.product([1, 2, 5, 10, 11, 12], [1, 2, 3, 4, 7], [False, True])),
)
def test_distributed_sampler_deals_as_pytorch(n, replicas, drop_last):
    torch_data = pytest.importorskip("torch.utils.data")
    options = {"num_replicas": replicas, "shuffle": False, "drop_last": drop_last}

    for rank in range(replicas):
        ours = DistributedSampler(range(n), rank=rank, **options)
        theirs = torch_data.DistributedSampler(range(n), rank=rank, **options)
        assert list(ours) == list(theirs)
        assert (len(ours), ours.total_size) == (len(theirs), theirs.total_size)


def test_distributed_sampler_shuffles_alike_on_all_ranks():
    samplers = [DistributedSampler(range(10), 4, rank, seed=5) for rank in range(4)]
    for sampler in samplers:
        sampler.set_epoch(2)

    dealt = [list(sampler) for sampler in samplers]

    order = epoch_order(10, 5, 2).tolist()
    assert [dealt[i % 4][i // 4] for i in range(12)] == order + order[:2]
    assert dealt == [list(sampler) for sampler in samplers]
    samplers[0].set_epoch(3)
    assert list(samplers[0]) != dealt[0]


def test_distributed_sampler_knows_its_rank(monkeypatch):
    for name, value in WorkerEnv(rank=1, world_size=3, process=1, processes=3).to_environ().items():
        monkeypatch.setenv(name, value)

    sampler = DistributedSampler(range(9))

    assert (sampler.rank, sampler.num_replicas) == (1, 3)
