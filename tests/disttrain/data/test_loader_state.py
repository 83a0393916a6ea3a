"""The state of a DataLoader: what is left of an epoch, dealt to any number of ranks, in batches of any size."""

import itertools

import numpy as np
import pytest

import disttrain as dt
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.local import run_ranks
from disttrain.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)

N = 103


def world(size, body):
    return run_ranks(WorkerEnv(world_size=size, hosted=size, local_world_size=size, fixed_order=True), body)


def make_loader(batch_size=4, **options):
    return DataLoader(
        TensorDataset(dt.arange(N)), batch_size=batch_size, seed=7, **{"shuffle": True} | options
    )


def samples(batches):
    return [batch[0].tolist() for batch in batches]


def begin(ranks, steps, **options):
    """Return the batches of each rank in ``steps`` steps, the state after them, and the rest of the epoch."""

    def body(rank):
        loader = make_loader(**options)
        running = iter(loader)
        used = [next(running)[0].tolist() for _ in range(steps)]
        state = loader.state_dict()
        return used, state, samples(running)

    return world(ranks, body)


def resume(ranks, state, epochs=1, **options):
    def body(rank):
        loader = make_loader(**options)
        loader.load_state_dict(state)
        return [samples(loader) for _ in range(epochs)]

    return world(ranks, body)


def flat(nested):
    return [x for batches in nested for batch in batches for x in batch]


@pytest.mark.parametrize("steps", [0, 1, 5, 12, 13])
@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"shuffle": False}])
def test_the_same_ranks_go_on_with_the_same_batches(steps, options):
    if steps == 13 and "drop_last" in options:
        steps = 12
    begun = begin(2, steps, **options)
    states = [state for _, state, _ in begun]
    assert states[0] == states[1]

    found = resume(2, states[0], **options)

    assert [epochs[0] for epochs in found] == [rest for _, _, rest in begun]


@pytest.mark.parametrize(("ranks", "others", "batch_size"), [(4, 2, 4), (1, 3, 4), (2, 2, 5), (3, 1, 7)])
def test_other_ranks_and_batches_use_each_sample_that_is_left_once(ranks, others, batch_size):
    begun = begin(ranks, 3)
    used = flat(used for used, _, _ in begun)

    found = resume(others, begun[0][1], epochs=2, batch_size=batch_size)
    rest = flat(epochs[0] for epochs in found)

    assert sorted(used + rest) == list(range(N))
    assert sorted(flat(epochs[1] for epochs in found)) == list(range(N))


def test_an_epoch_that_is_used_up_is_resumed_empty_and_one_that_has_ended_is_not():
    loader = make_loader()
    states = []
    for _ in loader:
        states.append(loader.state_dict())  # noqa: PERF401  in the body of the loop
    after = loader.state_dict()

    inside = make_loader()
    inside.load_state_dict(states[-1])
    outside = make_loader()
    outside.load_state_dict(after)

    assert (states[-1]["epoch"], states[-1]["position"]) == (0, N)
    assert (after["epoch"], after["position"]) == (1, 0)
    assert samples(inside) == []
    assert (inside.epoch, outside.epoch) == (1, 1)
    assert samples(inside) == samples(outside) == samples(loader)


def test_a_loop_that_was_left_early_is_followed_by_the_next_epoch():
    loader = make_loader()
    for _ in loader:
        break

    assert loader.state_dict()["epoch"] == 1
    assert loader.state_dict()["position"] == 0


def test_a_state_that_was_loaded_is_the_state_until_the_loader_runs():
    state = begin(1, 3)[0][1]
    loader = make_loader()
    loader.load_state_dict(state)

    assert loader.state_dict() == state
    assert loader.epoch == 0
    assert len(loader) == 26


def test_batches_that_workers_have_read_ahead_are_not_used():
    loader = make_loader(num_workers=2)
    running = iter(loader)
    used = [next(running)[0].tolist() for _ in range(3)]
    state = loader.state_dict()
    del running

    again = make_loader(num_workers=1)
    again.load_state_dict(state)

    assert state["position"] == 12
    assert sorted(x for batch in used + samples(again) for x in batch) == list(range(N))


def test_the_seed_is_part_of_the_state():
    state = begin(1, 3)[0][1]
    loader = DataLoader(TensorDataset(dt.arange(N)), batch_size=4, shuffle=True, seed=1)
    loader.load_state_dict(state)

    assert samples(loader) == resume(1, state)[0][0]


def test_a_data_set_of_another_size_is_refused_and_nothing_changes():
    loader = DataLoader(TensorDataset(dt.arange(50)), batch_size=4, shuffle=True, seed=7)
    before = loader.state_dict()

    with pytest.raises(ValueError, match="is of a data set of 103 samples, and this one has 50"):
        loader.load_state_dict(begin(1, 3)[0][1])

    assert loader.state_dict() == before


def test_single_samples_are_counted_too():
    def body(rank):
        loader = DataLoader(TensorDataset(dt.arange(12)), batch_size=None, shuffle=True, seed=1)
        running = iter(loader)
        next(running), next(running)
        state, rest = loader.state_dict(), [x[0].item() for x in running]
        again = DataLoader(TensorDataset(dt.arange(12)), batch_size=None, shuffle=True, seed=1)
        again.load_state_dict(state)
        assert [x[0].item() for x in again] == rest
        return state["position"]

    assert world(2, body) == [4, 4]


def test_a_distributed_sampler_is_skipped_to_its_place():
    def body(rank):
        def make():
            data = TensorDataset(dt.arange(N))
            return DataLoader(data, batch_size=4, sampler=DistributedSampler(data, seed=3))

        loader = make()
        running = iter(loader)
        next(running), next(running)
        state, rest = loader.state_dict(), samples(running)
        again = make()
        again.load_state_dict(state)
        assert samples(again) == rest
        return state

    assert world(2, body) == [{"epoch": 0, "batches": 2, "ranks": 2}] * 2
    data = TensorDataset(dt.arange(N))
    alone = DataLoader(data, batch_size=4, sampler=DistributedSampler(data, 1, 0))
    with pytest.raises(ValueError, match="dealt to 2 ranks, and there are 1"):
        alone.load_state_dict({"epoch": 0, "batches": 2, "ranks": 2})


class Stream(IterableDataset):
    def __iter__(self):
        return iter(np.arange(10))


@pytest.mark.parametrize("stream", [True, False])
def test_an_order_that_may_be_another_next_time_is_refused_in_mid_epoch(stream):
    data = Stream() if stream else TensorDataset(dt.arange(N))
    loader = DataLoader(data, batch_size=2, sampler=None if stream else RandomSampler(data))
    assert loader.state_dict()["batches"] == 0
    running = iter(loader)
    next(running)

    with pytest.raises(ValueError, match="in the middle of an epoch is not known"):
        loader.state_dict()

    list(running)
    assert loader.state_dict() == {"epoch": 1, "batches": 0, "ranks": 1}


def test_a_state_of_another_kind_of_order_is_refused():
    with pytest.raises(ValueError, match="needs a state with epoch, position, samples, seed, got batches"):
        make_loader().load_state_dict({"epoch": 0, "batches": 2, "ranks": 2})


@pytest.mark.parametrize("ranks", [2, 4])
def test_what_a_sample_draws_does_not_depend_on_the_ranks(ranks):
    class Noisy(Dataset):
        def __getitem__(self, index):
            return index, dt.rand(2)

        def __len__(self):
            return 10

    def drawn(size):
        def body(rank):
            return [
                (i, tuple(noise))
                for x, y in DataLoader(Noisy(), 2, shuffle=True, seed=5)
                for i, noise in zip(x.tolist(), y.tolist(), strict=True)
            ]

        return sorted(itertools.chain(*world(size, body)))

    assert drawn(ranks) == drawn(1)
