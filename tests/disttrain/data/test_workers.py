"""Worker processes: order, errors, and every way in which they or their rank can end."""

import contextlib
import faulthandler
import gc
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import disttrain as dt
from disttrain import context
from disttrain.data import DataLoader, Dataset, IterableDataset, TensorDataset, datasets, get_worker_info

pytestmark = pytest.mark.timeout(30)


class Reader(Dataset):
    """Sample ``i`` is ``read(i)``."""

    def __init__(self, n, read=lambda i: i):
        self.n = n
        self.read = read

    def __getitem__(self, index):
        return self.read(index)

    def __len__(self):
        return self.n


class Parts(IterableDataset):
    """Worker ``w`` reads ``lengths[w]`` samples."""

    def __init__(self, *lengths):
        self.lengths = lengths

    def __iter__(self):
        info = get_worker_info()
        return iter([(info.id, i) for i in range(self.lengths[info.id])])


def children():
    return [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]


def runs(pid):
    """Return whether a process runs; one that only waits for its parent to take note does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.01)


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    yield
    gc.collect()
    assert children() == []
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before


def test_batches_are_those_of_one_process_in_order():
    data = datasets.Digits()

    def batches(workers):
        return list(DataLoader(data, 100, shuffle=True, seed=3, num_workers=workers))

    for (x, y), (other_x, other_y) in zip(batches(2), batches(0), strict=True):
        assert (x == other_x).all()
        assert (y == other_y).all()
        assert y.dtype is other_y.dtype


def test_order_holds_when_a_worker_is_slow():
    def read(index):
        if get_worker_info().id == 0:
            threading.Event().wait(0.01)
        return index

    loader = DataLoader(Reader(12, read), 2, num_workers=2, prefetch_factor=3)

    assert [b.tolist() for b in loader] == [[i, i + 1] for i in range(0, 12, 2)]


def test_batches_larger_than_a_pipe_and_their_sizes():
    data = TensorDataset(dt.arange(7 * 100_000).reshape(7, 100_000), dt.ones(7, dtype=dt.bfloat16))

    seen = [
        (b[0].shape, b[1].dtype, context.current().dealt.samples) for b in DataLoader(data, 3, num_workers=2)
    ]

    assert seen == [((k, 100_000), dt.bfloat16, k) for k in (3, 3, 1)]


def test_the_memory_of_batches_that_have_gone_is_used_again():
    loader = DataLoader(Reader(60, lambda i: np.full(10_000, i)), 2, num_workers=2)

    places = set()
    for k, batch in enumerate(loader):
        assert batch[:, -1].tolist() == [2 * k, 2 * k + 1]
        places.add(batch.data_ptr())

    assert len(places) <= 10  # of 30: what is read ahead, and the batch in hand


def test_a_part_of_a_batch_that_somebody_keeps_stays_what_it_was():
    loader = DataLoader(Reader(60, lambda i: np.full((2, 5_000), i)), 2, num_workers=2)
    kept = [batch[1, 0] for batch in loader]

    for k, part in enumerate(kept):
        assert (part == 2 * k + 1).all()
        part += 1  # it may be written


def test_an_array_that_the_data_set_keeps_stays_what_it_was():
    def collate(samples, first=[]):  # noqa: B006
        first.append(dt.data.default_collate(samples))
        return first[0][0, 0], first[-1]

    loader = DataLoader(Reader(20, lambda i: np.full(10_000, i)), 1, num_workers=1, collate_fn=collate)

    assert [(a.item(), b[0, 0].item()) for a, b in loader] == [(0, i) for i in range(20)]


@pytest.fixture
def few_descriptors():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_batches_may_be_kept_than_there_are_file_descriptors(few_descriptors):
    batches = list(DataLoader(Reader(300, lambda i: np.full(5000, i)), num_workers=2))

    assert [int(b[0, 0]) for b in batches] == list(range(300))
    assert all((b == i).all() for i, b in enumerate(batches))


def test_without_a_file_descriptor_a_batch_is_refused_with_the_limit(few_descriptors):
    batches = iter(DataLoader(Reader(3, lambda i: np.full(5000, i)), num_workers=1))
    taken = [os.open(os.devnull, os.O_RDONLY)]
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.dup(taken[0]))

    try:
        with pytest.raises(OSError, match=r"no file descriptor is left .* \(limit 128\): .*ulimit -n"):
            next(batches)
    finally:
        for file in taken:
            os.close(file)


def test_a_worker_may_choose_its_processors():
    core = min(os.sched_getaffinity(0))

    def init(worker):
        os.sched_setaffinity(0, {core})

    loader = DataLoader(
        Reader(2, lambda i: sorted(os.sched_getaffinity(0))), num_workers=1, worker_init_fn=init
    )

    assert [int(b[0]) for b in loader] == [core] * 2


def test_batches_of_growing_size():
    loader = DataLoader(
        Reader(12, lambda i: {"x": np.full(1000 * 3**i % 100_003, i), "i": i}), None, num_workers=1
    )

    for i, sample in enumerate(loader):
        assert sample["i"] == i
        assert sample["x"].shape == (1000 * 3**i % 100_003,)
        assert (sample["x"] == i).all()


def test_workers_read_ahead(tmp_path: Path):
    def read(index):
        (tmp_path / str(index)).touch()
        return np.zeros(1_000_000)  # larger than the pipe holds

    batches = iter(DataLoader(Reader(10, read), num_workers=1, prefetch_factor=3))

    wait_until(lambda: len(list(tmp_path.iterdir())) == 3)
    next(batches)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 4)


def test_worker_info():
    assert get_worker_info() is None

    seen = list(
        DataLoader(Reader(4, lambda i: (get_worker_info().id, get_worker_info().num_workers)), num_workers=2)
    )

    assert [(w.item(), n.item()) for w, n in seen] == [(0, 2), (1, 2), (0, 2), (1, 2)]


def test_worker_seeds_are_reproducible_and_differ_by_worker_and_epoch():
    def read(index):
        seed = get_worker_info().seed
        assert dt.initial_seed() == seed
        return [random.random(), np.random.rand(), dt.rand(1, dtype=dt.float64).item(), float(seed % 2**50)]

    def epochs():
        loader = DataLoader(Reader(2, read), num_workers=2, seed=8)
        return [[tuple(x.item() for x in batch) for batch in loader] for _ in range(2)]

    first, again = epochs(), epochs()

    assert first == again
    drawn = [x for epoch in first for batch in epoch for x in batch]
    assert len(set(drawn)) == len(drawn)
    assert first[0][1][3] - first[0][0][3] in (1, 1 - 2**50)


def test_worker_init_fn_is_called_in_each_worker():
    def init(worker):
        get_worker_info().dataset.read = lambda index: 10 * worker + index

    assert [b.item() for b in DataLoader(Reader(4), num_workers=2, worker_init_fn=init)] == [0, 11, 2, 13]


class Picky(Exception):
    def __init__(self, code, reason):
        super().__init__(code, reason)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ValueError("bad"), ValueError),
        (KeyError("bad"), KeyError),
        (Picky(1, "bad"), RuntimeError),
        (StopIteration("bad"), RuntimeError),
    ],
)
def test_an_error_in_a_worker_comes_with_its_traceback(error, raised):
    def read_the_bad_one(index):
        if index == 1:
            raise error
        return index

    batches = iter(DataLoader(Reader(4, read_the_bad_one), num_workers=2))

    assert next(batches).item() == 0
    with pytest.raises(raised, match="in DataLoader worker process 1") as caught:
        next(batches)
    assert "read_the_bad_one" in str(caught.value)
    assert f"Caught {type(error).__name__} in" in str(caught.value)
    assert [b.item() for b in batches] == [2, 3]


def test_errors_have_the_type_and_the_end_of_those_of_pytorch():
    wrapper = pytest.importorskip("torch._utils").ExceptionWrapper

    def bad(index):
        raise ZeroDivisionError(f"sample {index}")

    with pytest.raises(ZeroDivisionError) as ours:
        list(DataLoader(Reader(2, bad), num_workers=1))
    try:
        bad(0)
    except ZeroDivisionError:
        wrapped = wrapper(where="in DataLoader worker process 0")
    with pytest.raises(ZeroDivisionError) as theirs:
        wrapped.reraise()

    assert type(ours.value) is type(theirs.value)
    assert str(ours.value).splitlines()[-1] == str(theirs.value).splitlines()[-1]


def test_an_error_of_a_class_that_cannot_travel():
    class Local(Exception):
        pass

    def bad(index):
        raise Local("here")

    with pytest.raises(RuntimeError, match=r"Caught Local in DataLoader worker process 0"):
        list(DataLoader(Reader(2, bad), num_workers=1))


def test_an_error_in_worker_init_fn():
    def init(worker):
        raise OSError("no disk")

    with pytest.raises(OSError, match=r"(?s)in DataLoader worker process 0.*no disk"):
        next(iter(DataLoader(Reader(2), num_workers=1, worker_init_fn=init)))


def test_a_batch_that_cannot_be_sent_is_named():
    with pytest.raises(Exception, match=r"in DataLoader worker process 0"):
        next(iter(DataLoader(Reader(2, lambda i: threading.Lock()), None, num_workers=1)))
    with pytest.raises(RuntimeError, match="with history"):
        next(iter(DataLoader(Reader(2, lambda i: dt.ones(1, requires_grad=True) * 2), None, num_workers=1)))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_is_named_at_once(victim):
    def read(index):
        if index >= 2 and get_worker_info().id == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        if index >= 2:
            time.sleep(60)  # the other one is busy, and must not be waited for
        return index

    batches = iter(DataLoader(Reader(8, read), num_workers=2))
    start = time.monotonic()

    with pytest.raises(RuntimeError, match=rf"DataLoader worker {victim} \(pid \d+\) was killed by SIGKILL"):
        list(batches)
    assert time.monotonic() - start < 5


def test_a_segmentation_fault_and_an_exit_are_told_apart():
    def crash(index):
        faulthandler.disable()  # pytest's would print its stack
        os.kill(os.getpid(), signal.SIGSEGV)

    with pytest.raises(RuntimeError, match=r"worker 0 .* was killed by SIGSEGV"):
        list(DataLoader(Reader(2, crash), num_workers=1))
    with pytest.raises(RuntimeError, match=r"worker 0 .* exited unexpectedly with code 7"):
        list(DataLoader(Reader(2, lambda index: os._exit(7)), num_workers=1))


def test_a_worker_killed_while_idle_is_named():
    loader = DataLoader(Reader(4), num_workers=1, persistent_workers=True)
    batches = iter(loader)
    next(batches)
    children()[0].kill()

    with pytest.raises(RuntimeError, match="was killed by SIGKILL"):
        list(batches)
    assert len(list(loader)) == 4  # with new workers
    del loader, batches


def test_a_stuck_worker_runs_into_the_timeout():
    def read_slowly(index):
        time.sleep(60)

    place = r"worker 0 \(pid \d+\), which is at .*test_workers\.py:\d+ in read_slowly, called from"
    with pytest.raises(RuntimeError, match=rf"timed out, 0.3 seconds are over for a batch of {place}"):
        list(DataLoader(Reader(2, read_slowly), num_workers=1, timeout=0.3))


def test_a_worker_that_takes_long_is_named_with_its_place(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr("disttrain.data.workers._NOTICE", 0.2)

    def read(index):
        while not (tmp_path / "go").exists():
            time.sleep(0.01)
        return index

    class Go(logging.Handler):
        def emit(self, record):
            if len(caplog.records) > 1:
                (tmp_path / "go").touch()

    with caplog.at_level(logging.WARNING, "disttrain"):
        logging.getLogger("disttrain").addHandler(handler := Go())
        try:
            batches = [b.item() for b in DataLoader(Reader(2, read), num_workers=1)]
        finally:
            logging.getLogger("disttrain").removeHandler(handler)

    assert batches == [0, 1]
    assert "waiting for 0 s for a batch of worker 0" in caplog.messages[0]
    assert "test_workers.py" in caplog.messages[0]
    assert " in read, called from" in caplog.messages[0]


def test_a_stopped_worker_is_said_to_be_stopped(monkeypatch, caplog):
    monkeypatch.setattr("disttrain.data.workers._NOTICE", 0.2)
    batches = iter(DataLoader(Reader(9), num_workers=1, prefetch_factor=1))
    next(batches)
    (worker,) = children()
    worker.send_signal(signal.SIGSTOP)
    threading.Timer(0.5, worker.send_signal, [signal.SIGCONT]).start()

    with caplog.at_level(logging.WARNING, "disttrain"):
        rest = list(batches)

    assert len(rest) == 8
    assert "which is stopped (SIGSTOP)" in caplog.messages[0]


def test_a_stopped_worker_runs_into_the_timeout_and_can_be_removed():
    batches = iter(DataLoader(Reader(9), num_workers=1, prefetch_factor=1, timeout=0.3))
    next(batches)
    children()[0].send_signal(signal.SIGSTOP)

    with pytest.raises(RuntimeError, match="timed out"):
        list(batches)


def test_leaving_an_epoch_early_stops_the_workers():
    for batch in DataLoader(Reader(100), num_workers=2):
        assert batch.item() == 0
        break
    batches = iter(DataLoader(Reader(100), num_workers=2))
    del batches


def test_two_loaders_at_once():
    a, b = DataLoader(Reader(6), num_workers=1), DataLoader(Reader(6, lambda i: -i), num_workers=1)

    assert [(x.item(), y.item()) for x, y in zip(a, b, strict=True)] == [(i, -i) for i in range(6)]
    assert [(x.item(), y.item()) for x, y in zip(a, a, strict=True)] == [(i, i) for i in range(6)]


def test_persistent_workers_are_kept_and_begin_epochs_anew():
    loader = DataLoader(Reader(6, lambda i: (i, os.getpid())), num_workers=2, persistent_workers=True)

    epochs = [[(i.item(), pid.item()) for i, pid in loader] for _ in range(3)]

    assert epochs[0] == epochs[1] == epochs[2]
    for i, _ in loader:  # left early: what was read ahead is not seen again
        assert i.item() == 0
        break
    assert [i.item() for i, _ in loader] == list(range(6))


def test_only_the_newest_iteration_goes_on_with_persistent_workers():
    loader = DataLoader(Reader(6), num_workers=1, persistent_workers=True)
    old, new = iter(loader), iter(loader)

    with pytest.raises(RuntimeError, match="a newer iteration"):
        next(old)
    assert [b.item() for b in new] == list(range(6))


@pytest.mark.parametrize("lengths", [(5, 5), (1, 9), (0, 4), (7, 2), (0, 0)])
@pytest.mark.parametrize(
    "options", [{"batch_size": 2}, {"batch_size": 2, "drop_last": True}, {"batch_size": None}], ids=str
)
def test_streams_come_as_with_pytorch(lengths, options):
    torch_data = pytest.importorskip("torch.utils.data")

    class Theirs(torch_data.IterableDataset):
        def __iter__(self):
            info = torch_data.get_worker_info()
            return iter([(info.id, i) for i in range(lengths[info.id])])

    ours = DataLoader(Parts(*lengths), num_workers=2, **options)
    theirs = torch_data.DataLoader(Theirs(), num_workers=2, **options)

    def plain(loader):
        return [[x.tolist() if hasattr(x, "tolist") else x for x in batch] for batch in loader]

    assert plain(ours) == plain(theirs)


def test_a_stream_begins_anew_with_persistent_workers():
    loader = DataLoader(Parts(3, 2), 2, num_workers=2, persistent_workers=True)

    assert [[x.tolist() for x in b] for b in loader] == [[x.tolist() for x in b] for b in loader]
    assert sum(1 for _ in loader) == 3


def test_large_indices():
    loader = DataLoader(Reader(2**62), batch_sampler=[[2**61], [2**40, 3]], num_workers=1)

    assert [b.tolist() for b in loader] == [[2**61], [2**40, 3]]


def test_many_indices_at_once():
    loader = DataLoader(Reader(100_000), 50_000, num_workers=1)

    assert [int(b.sum().item()) for b in loader] == [sum(range(50_000)), sum(range(50_000, 100_000))]


def test_more_workers_than_cores_or_batches():
    with pytest.warns(UserWarning, match="processor cores"):
        loader = DataLoader(Reader(3), num_workers=(os.cpu_count() or 1) + 2)

    assert [b.item() for b in loader] == [0, 1, 2]


def test_workers_ignore_the_interrupt_that_their_rank_gets():
    def read(index):
        os.kill(os.getpid(), signal.SIGINT)
        return index

    assert [b.item() for b in DataLoader(Reader(3, read), num_workers=1)] == [0, 1, 2]


def test_a_failing_start_leaves_no_worker(monkeypatch):
    from multiprocessing.context import ForkProcess

    start = ForkProcess.start

    def fail_second(process):
        if "worker 1" in process.name:
            raise OSError("Resource temporarily unavailable")
        start(process)

    monkeypatch.setattr(ForkProcess, "start", fail_second)
    with pytest.raises(OSError, match="temporarily unavailable"):
        iter(DataLoader(Reader(3), num_workers=2))


PROGRAM = """
import os, signal, sys, threading, time
import disttrain as dt
from disttrain.data import DataLoader, Dataset, workers

class Slow(Dataset):
    def __len__(self):
        return 100
    def __getitem__(self, index):
        os.write(1, b"%d " % os.getpid())
        if index >= 2:
            time.sleep(60)
        return index

if __name__ == "__main__":
    workers._GRACE = 0.2
    loader = DataLoader(Slow(), num_workers=2, persistent_workers={persistent})
    batches = iter(loader)
    next(batches), next(batches)
    {end}
"""


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("os.kill(os.getpid(), signal.SIGTERM)", -15),
        ("os._exit(3)", 3),
        ("sys.exit(4)", 4),
        ("raise ValueError('here')", 1),
        ("del loader, batches", 0),
        ("batches = None; loader = None; globals().clear()", 0),
        ("threading.Thread(target=lambda: (iter(loader), None)).start()", 0),
    ],
)
def test_no_worker_outlives_its_rank_however_it_ends(end, code, persistent):
    root = str(Path(dt.__file__).parents[1])
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(end=end, persistent=persistent)],
        capture_output=True, text=True, timeout=20, cwd=root, check=False,
    )  # fmt: skip

    assert process.returncode == code, process.stderr
    assert ("ValueError: here" in process.stderr) == (code == 1)
    assert code == 1 or process.stderr == ""
    workers = {int(line) for line in process.stdout.split()}
    assert len(workers) >= 2
    wait_until(lambda: not any(runs(pid) for pid in workers), 5)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_what_a_sample_draws_depends_on_its_index_and_the_epoch_only(workers):
    def epochs(batch_size, count):
        loader = DataLoader(
            Reader(10, lambda i: (i, dt.rand(2), dt.randint(1000, ()))),
            batch_size,
            shuffle=True,
            seed=5,
            num_workers=count,
        )
        return [
            sorted(
                (i, tuple(r), n)
                for batch in loader
                for i, r, n in zip(*map(dt.Tensor.tolist, batch), strict=True)
            )
            for _ in range(2)
        ]

    dt.manual_seed(1)
    state = dt.get_rng_state()
    drawn = epochs(3, workers)

    assert drawn == epochs(2, 0)
    assert drawn[0] != drawn[1]
    assert len({r for epoch in drawn for _, r, _ in epoch}) == 20
    assert (dt.get_rng_state() == state).all()  # training draws what it drew without augmentation


def test_a_seed_set_while_a_sample_is_read_holds_for_it_alone():
    def read(index):
        if index == 0:
            dt.manual_seed(3)
        return dt.rand(1)

    def rest(start):
        return [
            x.item() for x in list(DataLoader(dt.data.Subset(Reader(4, read), range(start, 4)), None, seed=1))
        ]

    assert rest(0)[1:] != rest(1)[:3]  # other indices of the subset
    assert rest(0) == rest(0)
    loader = DataLoader(Reader(4, read), None, seed=1)
    first = [x.item() for x in loader]
    assert first[1:] == [x.item() for x in DataLoader(Reader(4, lambda i: dt.rand(1)), None, seed=1)][1:]


def test_with_a_sampler_of_the_users_samples_draw_as_in_pytorch():
    dt.manual_seed(1)
    expected = dt.rand(3).tolist()
    dt.manual_seed(1)
    samples = list(DataLoader(Reader(3, lambda i: dt.rand(1)), None, sampler=[0, 0, 0]))

    assert len({x.item() for x in samples}) == 3
    assert samples[0].item() == expected[0]
