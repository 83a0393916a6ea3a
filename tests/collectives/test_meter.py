"""What a rank counts in the ledger's file, and what is asked of it there, in one process."""

import os

import pytest

from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.ledger import Ledger, ledger_file
from disttrain.collectives.meter import Meter, Wish, ask, read_meters, resume

PROCESS = {"world_size": 4, "processes": 2, "process": 1, "rank": 2, "hosted": 2}


@pytest.fixture
def file():
    descriptor = ledger_file(2)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def meters(file):
    """The meters of ranks 2 and 3, which one process hosts."""
    process = WorkerEnv(**PROCESS, ledger=file)
    return [Meter(process.of_rank(rank), process) for rank in (2, 3)]


def test_each_rank_counts_for_itself(file, meters):
    meters[1].stepped(7)
    since = meters[1].begin_reading()
    meters[1].end_reading(since, 32)
    meters[1].note_loss(float("nan"))
    meters[0].note_loss(0.5)

    two, three = read_meters(file, 2, 2)

    assert (two.rank, two.steps, two.loss) == (2, 0, 0.5)
    assert (three.rank, three.steps) == (3, 7)
    assert three.loss != three.loss
    assert two.samples_per_second == 0 < three.samples_per_second
    assert 0 <= three.data <= 1


def test_a_rank_that_has_not_begun_has_no_numbers(file):
    (first, _) = read_meters(file, 2, 2)

    assert (first.steps, first.loss, first.samples_per_second, first.can_save) == (0, None, 0, False)


def test_waiting_for_a_batch_or_for_a_call_is_seen_while_it_lasts(file, meters):
    tables = {"verbs": [], "ops": [], "dtypes": [], "generation": 0}
    page = Ledger(range(2, 4), tables, file).pages[2]
    meters[0].begin_reading()
    page.wait(0)

    (two, three) = read_meters(file, 2, 2)

    assert two.reading > 0
    assert two.wait > 0
    assert (three.reading, three.wait) == (0, 0)


def test_shares_and_rates_are_those_of_the_last_windows(file, meters, monkeypatch):
    now = 10_000_000_000
    monkeypatch.setattr("time.monotonic_ns", lambda: now)
    process = WorkerEnv(world_size=1, ledger=(alone := ledger_file(1)))
    meter = Meter(process, process)
    for step in range(1, 21):  # of a second each: half of the later ones is reading
        since = meter.begin_reading()
        now += 500_000_000 if step > 10 else 0
        meter.end_reading(since, 8)
        now += 500_000_000 if step > 10 else 1_000_000_000
        meter.stepped(step)

    (reading,) = read_meters(alone, 0, 1)
    os.close(alone)

    assert reading.steps_per_second == pytest.approx(1.0)
    assert reading.samples_per_second == pytest.approx(8.0)
    assert (reading.data, reading.wait, reading.compute) == (pytest.approx(0.5), 0, pytest.approx(0.5))
    assert reading.seconds <= 6


def test_a_wish_is_due_until_it_has_been_done(file, meters):
    assert meters[0].due == []

    ask(file, Wish.SAVE)
    ask(file, Wish.STOP)
    meters[0].stepped(5)
    meters[0].do(Wish.SAVE)

    assert meters[0].due == [Wish.STOP]
    assert meters[1].due == [Wish.SAVE, Wish.STOP]
    two, three = read_meters(file, 2, 2)
    assert (two.done, two.acted_at) == ((1, 0, 0), 5)
    assert three.done == (0, 0, 0)


def test_a_pause_that_was_ended_already_does_not_begin(file, meters):
    ask(file, Wish.PAUSE)
    resume(file)
    meters[0].do(Wish.PAUSE)

    meters[0].pause()

    assert not read_meters(file, 2, 2)[0].paused


def test_without_a_launcher_a_rank_counts_for_nobody():
    meter = Meter(WorkerEnv(), WorkerEnv())

    meter.stepped(3)

    assert meter.steps == 3
    assert meter.alone
    assert meter.due == []
