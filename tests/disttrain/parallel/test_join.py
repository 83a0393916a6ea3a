"""``DistributedDataParallel.join``: ranks with different numbers of batches."""

import numpy as np
import pytest

import disttrain as dt
from disttrain.collectives import RankFailed
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.local import run_ranks
from disttrain.nn.parallel import DistributedDataParallel
from disttrain.parallel import comm_hooks

BATCHES = [3, 1, 5, 3]


def world(size, body):
    """Return what ``body(rank)`` returns on each of ``size`` ranks."""
    return run_ranks(WorkerEnv(world_size=size, hosted=size, local_world_size=size, fixed_order=True), body)


class Net(dt.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = dt.nn.Linear(1, 1, bias=False)
        self.register_buffer("seen", dt.zeros(1))

    def forward(self, x):
        if self.training:
            self.seen += 1
        return self.layer(x)


def train(rank, batches, hook=None, **options):
    """Return the weight after each step on this rank, and the model's state at the end."""
    net = Net().double()
    dt.nn.init.ones_(net.layer.weight)
    model = DistributedDataParallel(net)
    if hook:
        model.register_comm_hook(None, hook)
    optimizer = dt.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    weights = []
    with model.join(**options):
        for i in range(batches[rank]):
            optimizer.zero_grad()
            model(dt.full((2, 1), 1.0 + rank + i, dtype=dt.float64)).mean().backward()
            optimizer.step()
            weights.append(net.layer.weight.item())
    return weights, net.layer.weight.item(), net.seen.item()


def expected(batches, counts):
    weight, speed, weights = 1.0, 0.0, []
    for i in range(max(batches)):
        grads = [1.0 + rank + i for rank, n in enumerate(batches) if i < n]
        mean = sum(grads) / (len(batches) if counts else len(grads))
        speed = 0.5 * speed + mean
        weight -= 0.1 * speed
        weights.append(weight)
    return weights


@pytest.mark.parametrize("hook", [None, comm_hooks.allreduce_hook])
@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("batches", [BATCHES, [2, 2], [0, 3, 1], [4, 0]])
def test_ranks_that_have_ended_take_part_until_the_last(batches, counts, hook):
    results = world(
        len(batches), lambda rank: train(rank, batches, hook, divide_by_initial_world_size=counts)
    )

    wanted = expected(batches, counts)
    for rank, (weights, last, seen) in enumerate(results):
        np.testing.assert_allclose(weights, wanted[: batches[rank]], rtol=1e-12)
        assert last == results[batches.index(max(batches))][1]
        assert seen == max(batches)


def test_as_soon_as_one_rank_has_ended_all_can_raise():
    def body(rank):
        with pytest.raises(RuntimeError) as raised:
            train(rank, BATCHES, throw_on_early_termination=True)
        return str(raised.value)

    said = world(4, body)
    assert said == ["rank 1 had no batch left before the other ranks (throw_on_early_termination)"] * 4


def test_it_can_be_switched_off():
    assert [w for w, *_ in world(2, lambda rank: train(rank, [2, 2], enable=False))] == [
        [pytest.approx(w) for w in expected([2, 2], True)]
    ] * 2


def test_an_error_inside_is_raised_on_its_rank_and_known_to_the_others():
    def body(rank):
        model = DistributedDataParallel(Net())
        with model.join():
            for i in range(3):
                model(dt.ones(2, 1 + (rank == i == 1))).mean().backward()

    with pytest.raises(RankFailed) as failed:
        world(3, body)
    assert "rank 1 failed" in str(failed.value)
