"""The sample ledger: that each sample was used once is proven over ranks and restarts; what is not so is listed."""

import json
from itertools import chain

import numpy as np
import pytest
from click.testing import CliRunner

import disttrain as dt
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.local import run_ranks
from disttrain.data import BatchSampler, DataLoader, Dataset, DistributedSampler, TensorDataset
from disttrain.data.command import data as command
from disttrain.data.ledger import Account, Use, sample_hash
from disttrain.data.sampler import epoch_order
from disttrain.errors import SampleDamaged

N = 103
SEED = 7


def world(size, body):
    return run_ranks(WorkerEnv(world_size=size, hosted=size, local_world_size=size, fixed_order=True), body)


def make_loader(batch_size=4, **options):
    return DataLoader(
        TensorDataset(dt.arange(N)), batch_size=batch_size, seed=SEED, **{"shuffle": True} | options
    )


def train(ranks, folder, batches, make=make_loader):
    """Read so many batches, over ends of epochs, with a checkpoint at the beginning and at the end."""

    def body(rank):
        loader = make()
        last = dt.checkpoint.load(folder, loader=loader)
        read = 0
        while read < batches:
            for _ in loader:
                read += 1
                if read == batches:
                    dt.checkpoint.save(folder, step=(last.step if last else 0) + read, loader=loader)
                    break
        dt.checkpoint.close()

    world(ranks, body)


def account(folder):
    return dt.checkpoint.ledgers(folder)["loader"]


def lines(folder):
    return list(account(folder).lines())


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_epochs_of_every_number_of_ranks_are_proven(tmp_path, ranks):
    per_epoch = -(-N // (4 * ranks))

    train(ranks, tmp_path, 2 * per_epoch + 3)

    found = account(tmp_path)
    assert found.whole
    assert list(found.lines()) == [
        f"each sample was used once: epochs 0 to 1 of 103 samples and {12 * ranks} samples of epoch 2"
    ]
    assert [(use.begin, use.end, use.count) for use in found.uses] == [(0, 2, 2 * N), (2, 3, 12 * ranks)]


def test_restarts_in_mid_epoch_on_other_numbers_of_ranks_are_proven(tmp_path):
    for ranks, batches in [(4, 5), (2, 3), (3, 1), (1, 20), (4, 7)]:
        train(ranks, tmp_path, batches)
        assert account(tmp_path).whole, ranks

    assert lines(tmp_path) == [
        "each sample was used once: epochs 0 to 1 of 103 samples and 96 samples of epoch 2"
    ]


def test_what_was_done_after_the_checkpoint_is_not_in_it(tmp_path):
    train(2, tmp_path, 5)

    def lost(rank):  # steps that nobody saves
        loader = make_loader()
        dt.checkpoint.load(tmp_path, loader=loader)
        for _ in loader:
            pass

    world(2, lost)
    train(2, tmp_path, 4)

    assert lines(tmp_path) == ["each sample was used once: 72 samples of epoch 0"]


def replay(folder, ranks, start, batches):
    """Go on from a wrong place, as a program would whose state of the loader is not that of its model."""

    def body(rank):
        loader = make_loader()
        dt.checkpoint.load(folder, loader=loader)
        loader.load_state_dict(loader.state_dict() | {"position": start})
        running = iter(loader)
        for _ in range(batches):
            next(running)
        dt.checkpoint.save(folder, step=99, loader=loader)
        dt.checkpoint.close()

    world(ranks, body)


def test_samples_that_are_used_again_are_listed(tmp_path):
    train(4, tmp_path, 3)  # positions 0 to 47

    replay(tmp_path, 2, 40, 2)  # 40 to 55

    order = epoch_order(N, SEED, 0)
    found = account(tmp_path)
    assert [part[:4] for part in found.repeats] == [(0, 1, 40, 48)]
    assert (found.gaps, found.wrong) == ([], [])
    assert list(found.lines()) == [
        f"epoch 0: used again: 8 samples at the positions 40 to 47 ({', '.join(map(str, order[40:48]))})"
    ]


def test_samples_that_are_never_used_are_listed(tmp_path):
    train(2, tmp_path, 3)  # 0 to 23

    replay(tmp_path, 4, 25, 1)  # 25 to 40

    found = account(tmp_path)
    assert (found.repeats, found.gaps) == ([], [(0, 1, 24, 25)])
    assert lines(tmp_path) == [
        f"epoch 0: never used: 1 sample at the positions 24 to 24 ({epoch_order(N, SEED, 0)[24]})"
    ]


def test_an_epoch_that_is_left_early_and_one_that_is_read_twice_are_listed():
    loader = make_loader(batch_size=8)
    for _ in loader:
        break
    list(loader)
    loader.set_epoch(1)
    list(loader)

    found = Account(N, 2, loader.ledger.uses, 0, SEED)

    assert found.gaps == [(0, 1, 8, N)]
    assert found.repeats == [(1, 2, 0, N)]


def test_other_samples_at_the_right_positions_are_noticed():
    loader = make_loader()
    loader._epochs.next_order = lambda: np.roll(epoch_order(N, SEED, 0), 1)[:100]
    running = iter(loader)
    next(running), next(running)

    found = Account(N, 0, loader.ledger.uses, 8, SEED)

    assert not found.repeats + found.gaps
    assert found.wrong == [(0, 1)]
    assert list(found.lines()) == [
        "epoch 0: the samples that were handed out are not those at the positions that were noted"
    ]


def test_a_batch_that_raises_is_a_gap_and_the_state_is_after_it():
    class Spoilt(Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, index):
            if index == 9:
                raise ArithmeticError("spoilt")
            return index

    loader = DataLoader(Spoilt(), 4)
    running = iter(loader)
    next(running), next(running)
    with pytest.raises(ArithmeticError):
        next(running)
    assert next(running).tolist() == [12, 13, 14, 15]

    assert loader.state_dict()["position"] == 16
    assert Account(20, 0, loader.ledger.uses, 16, None).gaps == [(0, 1, 8, 12)]


def test_damaged_samples_that_are_skipped_are_counted():
    class Gone(SampleDamaged):
        skipped = True

    class Holed(Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            if index == 5:
                raise Gone("not there any more")
            return index

    loader = DataLoader(Holed(), 4)
    list(loader)

    found = Account(8, 1, loader.ledger.uses, 0, None)

    assert found.whole
    assert list(found.lines())[1] == "1 sample is damaged, and was left out of its batch"


@pytest.mark.parametrize(
    "options", [{"num_workers": 2}, {"shuffle": False}, {"batch_size": 1}, {"batch_size": N}]
)
def test_every_kind_of_loader_keeps_it(options):
    loader = make_loader(**options)
    for _ in range(3):
        list(loader)

    seed = None if options.get("shuffle") is False else SEED
    assert Account(N, 3, loader.ledger.uses, 0, seed).whole
    assert len(loader.ledger.uses) == 1


def test_single_samples_and_dropped_ends_are_counted():
    def body(rank):
        single = DataLoader(TensorDataset(dt.arange(12)), batch_size=None, shuffle=True, seed=1)
        list(single)
        dropping = make_loader(drop_last=True)
        list(dropping), list(dropping)
        return single.ledger.uses, dropping.ledger.uses

    singles, droppings = zip(*world(2, body), strict=True)

    assert Account(12, 1, list(chain(*singles)), 0, 1).whole
    found = Account(N, 2, list(chain(*droppings)), 0, SEED)
    assert found.whole
    assert list(found.lines()) == [
        "each sample was used once: epochs 0 to 1 of 103 samples, without 14 that drop_last left over"
    ]


def test_a_sampler_of_the_users_is_compared_whole():
    def body(rank):
        def read(count):
            data = TensorDataset(dt.arange(count))
            loader = DataLoader(data, 4, sampler=DistributedSampler(data, seed=3))
            list(loader), next(iter(loader))
            return loader.ledger.uses

        return read(104), read(103)

    even, padded = zip(*world(2, body), strict=True)

    assert Account(104, 1, list(chain(*even)), None, None).whole
    found = Account(103, 1, list(chain(*padded)), None, None)
    assert list(found.lines()) == [
        "epoch 0: not each of 103 samples was used once; a sampler dealt them, so which cannot be told"
    ]


def test_a_sampler_of_names_is_not_followed():
    class Named(Dataset):
        def __getitem__(self, name):
            return len(name)

        def __len__(self):
            return 3

    loader = DataLoader(Named(), batch_sampler=BatchSampler(["a", "b", "c"], 2, False))

    assert len(list(loader)) == 2
    assert loader.ledger.state_dict() == []


def test_the_hash_knows_the_epoch_and_no_order():
    samples = np.arange(10_000)
    mixed = epoch_order(10_000, 0, 0)
    again = mixed.copy()
    again[0] = again[1]

    assert sample_hash(3, samples) == sample_hash(3, mixed) != sample_hash(4, samples)
    assert sample_hash(3, again) != sample_hash(3, samples)
    parts = [sample_hash(3, part) for part in np.array_split(mixed, 7)]
    assert tuple(sum(words) % 2**64 for words in zip(*parts, strict=True)) == sample_hash(3, samples)


def test_a_use_of_any_length_is_a_few_numbers():
    def body(rank):
        loader = DataLoader(TensorDataset(dt.arange(10_000)), 2, shuffle=True)
        for _ in range(20):
            list(loader)
        return json.dumps(loader.ledger.state_dict())

    assert max(map(len, world(3, body))) < 300


@pytest.mark.parametrize(
    "change",
    [
        {"hash": "00"},
        {"hash": "g" * 32},
        {"epochs": [2, 1]},
        {"count": -1},
        {"blocks": [[0, 0, 1, 1]]},
        {"blocks": [[0, 8, 4, 1]]},
        {"blocks": [[0, 4, 4, 10**15]]},
        {"blocks": [[0, 4, 4]]},
    ],
)
def test_a_ledger_that_makes_no_sense_is_refused(change):
    use = Use(0, 1)
    use.add(0, [1, 2, 3], 3)

    with pytest.raises((TypeError, ValueError)):
        Use.decode(use.encode() | change, 103)


def test_the_command_tells_and_its_exit_code_too(tmp_path):
    train(2, tmp_path / "good", 4)
    train(2, tmp_path / "bad", 4)
    replay(tmp_path / "bad", 1, 10, 1)
    run = CliRunner()

    good = run.invoke(command, ["ledger", str(tmp_path / "good")])
    bad = run.invoke(command, ["ledger", str(tmp_path / "bad")])

    assert (good.exit_code, good.output) == (0, "loader: each sample was used once: 32 samples of epoch 0\n")
    assert bad.exit_code == 1
    assert "loader: epoch 0: used again: 22 samples at the positions 10 to 31" not in bad.output
    assert "used again" in bad.output
    assert bad.output.endswith("Error: not every sample was used once\n")
