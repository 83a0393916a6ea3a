import contextvars
import inspect
import logging
import threading

import numpy as np
import pytest

import disttrain as dt
from disttrain import context
from disttrain.collectives.env import HostedRank, WorkerEnv, enter_rank
from disttrain.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    datasets,
)
from disttrain.data.sampler import epoch_order


class Squares(Dataset):
    def __init__(self, n):
        self.n = n

    def __getitem__(self, index):
        if not 0 <= index < self.n:
            raise IndexError(index)
        return np.float32(index**2), index

    def __len__(self):
        return self.n


class Stream(IterableDataset):
    def __init__(self, n, reported=None):
        self.n = n
        self.reported = n if reported is None else reported

    def __iter__(self):
        return iter(range(self.n))

    def __len__(self):
        return self.reported


def on_rank(monkeypatch, rank, world_size):
    env = WorkerEnv(rank=rank, world_size=world_size, process=rank, processes=world_size)
    for name, value in env.to_environ().items():
        monkeypatch.setenv(name, value)


def deal(monkeypatch, world_size, make, epochs=1):
    """Return for each rank its batches of indices in the last of some epochs."""
    dealt = []
    for rank in range(world_size):
        on_rank(monkeypatch, rank, world_size)
        loader = make()
        for _ in range(epochs):
            batches = [index.tolist() for _, index in loader]
        assert len(batches) == len(loader)
        dealt.append(batches)
    return dealt


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("n", [1, 7, 24, 37])
def test_ranks_use_each_sample_once_in_equal_numbers_of_steps(monkeypatch, n, world_size):
    dealt = deal(monkeypatch, world_size, lambda: DataLoader(Squares(n), 3, shuffle=True, seed=1))

    assert len({len(batches) for batches in dealt}) == 1
    in_order = [i for step in zip(*dealt, strict=True) for batch in step for i in batch]
    assert in_order == epoch_order(n, 1, 0).tolist()


def test_drop_last_drops_the_same_step_on_all_ranks(monkeypatch):
    dealt = deal(monkeypatch, 2, lambda: DataLoader(Squares(11), 3, drop_last=True))

    assert dealt == [[[0, 1, 2]], [[3, 4, 5]]]


def test_an_uneven_last_step_is_split_evenly(monkeypatch):
    dealt = deal(monkeypatch, 4, lambda: DataLoader(Squares(14), 3))

    assert [batches[-1] for batches in dealt] == [[12], [13], [], []]


def test_each_epoch_is_shuffled_anew_and_alike_in_every_loader(monkeypatch):
    def make():
        return DataLoader(Squares(20), 20, shuffle=True, seed=4)

    epochs = [deal(monkeypatch, 1, make, epochs=k)[0][0] for k in (1, 2, 3)]

    assert len({tuple(order) for order in epochs}) == 3
    assert epochs[2] == epoch_order(20, 4, 2).tolist()
    resumed = make()
    resumed.set_epoch(2)
    assert next(iter(resumed))[1].tolist() == epochs[2]


def test_the_order_follows_manual_seed_and_generators():
    def first(**options):
        return next(iter(DataLoader(Squares(20), 20, shuffle=True, **options)))[1].tolist()

    dt.manual_seed(11)
    assert first() == epoch_order(20, 11, 0).tolist()
    assert first(generator=dt.Generator().manual_seed(12)) == epoch_order(20, 12, 0).tolist()
    assert first(seed=13, generator=dt.Generator().manual_seed(12)) == epoch_order(20, 13, 0).tolist()


def test_shuffling_takes_no_numbers_from_the_program():
    dt.manual_seed(1)
    before = dt.get_rng_state().tolist()

    list(DataLoader(Squares(5), shuffle=True))

    assert dt.get_rng_state().tolist() == before


def test_ranks_that_nobody_seeded_agree(monkeypatch):
    monkeypatch.setattr(context._process, "generator", None)

    dealt = deal(monkeypatch, 2, lambda: DataLoader(Squares(10), 5, shuffle=True))

    assert dealt[0][0] + dealt[1][0] == epoch_order(10, 0, 0).tolist()


def test_the_size_of_each_batch_is_noted(monkeypatch):
    for rank, sizes in ((0, [2, 1]), (1, [2, 0])):
        on_rank(monkeypatch, rank, 2)
        seen = []
        for x, _ in DataLoader(Squares(5), 2):
            seen.append(context.current().dealt.samples)
            assert len(x) == seen[-1]
        assert seen == sizes


def test_what_was_dealt_is_noted(monkeypatch):
    on_rank(monkeypatch, 1, 2)
    loader = DataLoader(Squares(7), 2)
    seen = []
    for _ in range(2):
        for _ in loader:
            dealt = context.current().dealt
            seen.append((list(dealt.indices), dealt.position))
    assert seen == [([2, 3], (0, 0)), ([6], (0, 1)), ([2, 3], (1, 0)), ([6], (1, 1))]
    for _ in DataLoader(Squares(7), batch_sampler=[[4, 1], [0]]):  # the user's order may differ between ranks
        dealt = context.current().dealt
        assert dealt.position is None
    assert dealt.indices == [0]


def test_a_loop_inside_a_loop_leaves_what_the_outer_one_has_dealt():
    for _ in DataLoader(Squares(6), 3):
        dealt = context.current().dealt
        for _ in DataLoader(Squares(4), 4):
            assert context.current().dealt.samples == 4
        assert context.current().dealt is dealt
    for _ in DataLoader(Squares(6), 3):
        break  # and is gone
    for _ in DataLoader(Squares(4), 4):
        pass
    assert context.current().dealt is None


def test_the_indices_of_a_batch_are_those_after_one_that_raised():
    class Holey(Squares):
        def __getitem__(self, i):
            if i == 2:
                raise KeyError(i)
            return super().__getitem__(i)

    batches = iter(DataLoader(Holey(6), 2))
    next(batches)
    with pytest.raises(KeyError):
        next(batches)
    next(batches)
    assert context.current().dealt.indices == [4, 5]


def test_an_empty_batch_has_the_types_and_shapes_of_others(monkeypatch):
    on_rank(monkeypatch, 2, 3)
    digits = Subset(datasets.Digits(), range(7))

    *_, (images, labels) = DataLoader(digits, 2)

    assert (images.shape, images.dtype) == ((0, 1, 8, 8), dt.float32)
    assert (labels.shape, labels.dtype) == ((0,), dt.int64)
    own = list(DataLoader(digits, 2, collate_fn=lambda samples: {"n": dt.ones(len(samples), 5)}))
    assert own[-1]["n"].shape == (0, 5)


def test_single_samples_are_dealt_only_evenly(monkeypatch):
    on_rank(monkeypatch, 1, 2)

    assert [i for _, i in DataLoader(Squares(6), None)] == [1, 3, 5]
    with pytest.raises(ValueError, match="5 samples cannot be dealt to 2 ranks evenly"):
        iter(DataLoader(Squares(5), None))


def test_a_sampler_of_the_user_decides_alone(monkeypatch):
    on_rank(monkeypatch, 1, 2)

    dealt = []
    for _, i in DataLoader(Squares(5), 2, sampler=SequentialSampler(range(5))):
        dealt.append((i.tolist(), context.current().dealt.samples))
    assert dealt == [([0, 1], 2), ([2, 3], 2), ([4], 1)]
    assert context.current().dealt is None
    mine = DistributedSampler(Squares(5), shuffle=False)
    assert [i.tolist() for _, i in DataLoader(Squares(5), 2, sampler=mine)] == [[1, 3], [0]]
    batches = [[4, 0], [1]]
    assert [i.tolist() for _, i in DataLoader(Squares(5), batch_sampler=batches)] == batches


def configurations():
    yield {"batch_size": 3}
    yield {"batch_size": 3, "drop_last": True}
    yield {"batch_size": None}
    yield {"sampler": [4, 2, 9], "batch_size": 2}
    yield {"sampler": [4, 2, 9], "batch_size": None}
    yield {"batch_sampler": [[1, 2], [3]]}
    yield {"batch_size": 4, "collate_fn": len}


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (data, options)
        for data in (TensorDataset, Squares, Stream)
        for options in configurations()
        if not (data is Stream and {"sampler", "batch_sampler"} & set(options))  # a stream takes none
    ],
    ids=str,
)
def test_batches_equal_pytorch(data, options):
    torch = pytest.importorskip("torch")
    if data is TensorDataset:
        x = np.arange(20.0).reshape(10, 2)
        ours, theirs = TensorDataset(dt.from_numpy(x)), torch.utils.data.TensorDataset(torch.from_numpy(x))
    elif data is Squares:
        ours = theirs = Squares(10)
    else:
        ours = Stream(10)
        body = {"__iter__": lambda self: iter(range(10)), "__len__": lambda self: 10}
        theirs = type("Theirs", (torch.utils.data.IterableDataset,), body)()

    mine, other = DataLoader(ours, **options), torch.utils.data.DataLoader(theirs, **options)

    assert len(mine) == len(other)
    assert plain(list(mine)) == plain(list(other))
    assert plain(list(mine)) == plain(list(other))  # a second epoch


def plain(batch):
    if isinstance(batch, list | tuple):
        return [plain(b) for b in batch]
    return (str(batch.dtype).split(".")[-1], batch.tolist()) if hasattr(batch, "tolist") else batch


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_workers": -1}, "num_workers"),
        ({"timeout": -1}, "timeout"),
        ({"prefetch_factor": 2}, "prefetch_factor"),
        ({"prefetch_factor": 0, "num_workers": 1}, "prefetch_factor"),
        ({"persistent_workers": True}, "persistent_workers"),
        ({"multiprocessing_context": "spawn", "num_workers": 1}, "fork"),
        ({"multiprocessing_context": "fork"}, "num_workers"),
        ({"sampler": [1], "shuffle": True}, "exclude"),
        ({"batch_sampler": [[1]], "shuffle": True}, "batch_sampler excludes"),
        ({"batch_sampler": [[1]], "batch_size": 2}, "batch_sampler excludes"),
        ({"batch_sampler": [[1]], "drop_last": True}, "batch_sampler excludes"),
        ({"batch_sampler": [[1]], "sampler": [1]}, "batch_sampler excludes"),
        ({"batch_size": None, "drop_last": True}, "batch_size=None"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"batch_size": 2.0}, "batch_size must be"),
    ],
    ids=str,
)
def test_arguments_that_exclude_each_other_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        DataLoader(Squares(3), **options)


@pytest.mark.parametrize("options", [{"shuffle": True}, {"sampler": [1]}, {"batch_sampler": [[1]]}], ids=str)
def test_streams_take_no_sampler(options):
    with pytest.raises(ValueError, match="IterableDataset has its own order"):
        DataLoader(Stream(3), **options)


@pytest.mark.parametrize(
    "name", ["batch_size", "sampler", "batch_sampler", "drop_last", "dataset", "persistent_workers"]
)
def test_a_loader_cannot_be_changed(name):
    loader = DataLoader(Squares(3))

    with pytest.raises(ValueError, match=f"{name} of a DataLoader cannot be changed"):
        setattr(loader, name, 1)
    loader.timeout = 0


def test_a_dataset_may_grow():
    data = Squares(3)
    loader = DataLoader(data, 2)
    assert len(loader) == 2

    data.n = 5

    assert len(loader) == len(list(loader)) == 3


def test_an_empty_dataset_has_no_batches():
    assert list(DataLoader(Squares(0), 2)) == []
    with pytest.raises(ValueError, match="num_samples"):
        DataLoader(Squares(0), 2, shuffle=True)


def test_a_stream_that_is_longer_than_it_said():
    loader = DataLoader(Stream(5, reported=3))
    len(loader)

    with pytest.warns(UserWarning, match=r"said that it has 3 samples, but batch 4"):
        list(loader)


def test_samples_of_a_stream_are_counted():
    sizes = [context.current().dealt.samples for _ in DataLoader(Stream(5), 2)]

    assert sizes == [2, 2, 1]


def test_one_loader_in_two_loops_at_once():
    loader = DataLoader(Squares(4), 2)

    assert [(a.tolist(), b.tolist()) for (_, a), (_, b) in zip(loader, loader, strict=True)] == [
        ([0, 1], [0, 1]),
        ([2, 3], [2, 3]),
    ]


def test_an_error_in_the_dataset_comes_through_and_the_next_batch_can_be_read():
    class Bad(Squares):
        def __getitem__(self, index):
            if index == 1:
                raise KeyError("no such sample")
            return super().__getitem__(index)

    batches = iter(DataLoader(Bad(3)))

    assert next(batches)[1].tolist() == [0]
    with pytest.raises(KeyError, match="no such sample"):
        next(batches)
    assert next(batches)[1].tolist() == [2]


def test_a_stray_stop_iteration_does_not_end_an_epoch_silently():
    class Careless(Squares):
        def __getitem__(self, index):
            return next(iter(()))

    with pytest.raises(RuntimeError, match="StopIteration"):
        list(DataLoader(Careless(3)))


def test_getitems_is_used_where_there_is_one():
    class Many(Squares):
        def __getitems__(self, indices):
            return [-i for i in indices]

    assert [b.tolist() for b in DataLoader(Many(3), 2)] == [[0, -1], [-2]]


def test_a_changed_getitem_of_a_tensor_dataset_is_respected():
    class Negated(TensorDataset):
        def __getitem__(self, index):
            return tuple(-t for t in super().__getitem__(index))

    data = Negated(dt.arange(3))

    assert [b[0].tolist() for b in DataLoader(data, 3)] == [[0, -1, -2]]
    assert [b[0].tolist() for b in DataLoader(Subset(data, [2, 1]), 3)] == [[-2, -1]]


def test_fast_and_slow_reading_of_digits_agree():
    fast = DataLoader(datasets.Digits(), 100)
    slow = DataLoader(datasets.Digits(transform=lambda image: image), 100)

    for (x, y), (slow_x, slow_y) in zip(fast, slow, strict=True):
        assert (x == slow_x).all()
        assert (y == slow_y).all()
        assert y.dtype is slow_y.dtype


def test_other_samplers_work_in_a_loader():
    loader = DataLoader(Squares(6), batch_sampler=BatchSampler(RandomSampler(range(6)), 4, True))

    assert [len(i) for _, i in loader] == [4]


def test_ranks_that_are_threads_read_in_line_and_say_so(caplog):
    seen = {}

    def rank(r):
        enter_rank(HostedRank(WorkerEnv(rank=r, world_size=2)))
        seen[r] = [i.tolist() for _, i in DataLoader(Squares(8), 2, num_workers=1)]

    with caplog.at_level(logging.WARNING, "disttrain"):
        for r in range(2):
            thread = threading.Thread(target=contextvars.copy_context().run, args=(rank, r))
            thread.start()
            thread.join(20)

    assert seen == {0: [[0, 1], [4, 5]], 1: [[2, 3], [6, 7]]}
    assert sum("num_workers=1 is not used" in r.message for r in caplog.records) == 1


def test_the_signature_is_that_of_pytorch_and_a_seed():
    theirs = inspect.signature(pytest.importorskip("torch.utils.data").DataLoader).parameters
    ours = inspect.signature(DataLoader).parameters

    assert list(ours) == [*theirs, "seed"]
    for name, parameter in theirs.items():
        assert (ours[name].default, ours[name].kind) == (parameter.default, parameter.kind)


def test_batches_come_in_order_though_they_need_not():
    loader = DataLoader(
        TensorDataset(dt.arange(12)), 2, num_workers=2, in_order=False, pin_memory_device="cuda"
    )

    assert [x.tolist() for (x,) in loader] == [[2 * i, 2 * i + 1] for i in range(6)]
    assert (loader.in_order, loader.pin_memory_device) == (False, "cuda")
