"""The rank that the others wait for is named, with the reason, while the job runs; one that is late once is not."""

import json

import pytest

from disttrain.launcher.pace import Mark, Pace, Paces, find_slowest


def marks(step: int, *spent: tuple[float, float]) -> list[Mark]:
    """Ranks that are at ``step`` after 4 s more each, of which they have read and waited so many seconds in all."""
    return [Mark(rank, step, 0.4 * step, read, waited) for rank, (read, waited) in enumerate(spent)]


def test_a_rank_is_named_once_after_it_was_slow_three_times():
    paces = Paces()

    said = [paces.look(marks(10 * i, (0.0, 3.0 * i), (2.0 * i, 0.0), (0.0, 3.0 * i))) for i in range(1, 9)]

    assert [i for i, slow in enumerate(said) if slow is not None] == [3]
    assert (said[3].rank, said[3].why, said[3].factor, said[3].steps) == (1, "data", 4.0, 30)
    assert str(said[3]) == (
        "4 times as long as the others over 30 steps, by data: 50% of its time, the others 0%; they wait 75% of theirs"
    )


def test_a_rank_that_is_late_once_is_not_named():
    paces = Paces()
    waited = [0.0, 0.0, 2.0, 4.0, 4.0, 4.0]

    assert [paces.look(marks(10 * i + 10, (0.0, w), (0.0, 0.0))) for i, w in enumerate(waited)] == [None] * 6


def test_ranks_that_take_turns_at_being_late_are_not_named():
    paces = Paces()
    late = [(3.0 * ((i + 1) // 2), 3.0 * (i // 2)) for i in range(8)]

    assert [paces.look(marks(10 * i + 10, (0.0, a), (0.0, b))) for i, (a, b) in enumerate(late)] == [None] * 8


def test_steps_that_take_long_are_waited_for():
    paces = Paces()
    said = [paces.look(marks(i, (0.0, 0.3 * i), (0.0, 0.0))) for i in range(20)]

    assert [i for i, slow in enumerate(said) if slow is not None] == [
        10
    ]  # three of three steps, and the first


def test_a_rank_alone_and_ranks_alike_are_not_slow():
    assert find_slowest([Pace(0, 0.9, 0.0)]) is None
    assert find_slowest([Pace(0, 0.5, 0.15), Pace(1, 0.5, 0.1)]) is None


TRAIN = """
    import os, sys, time
    import disttrain as dt
    from disttrain.nn.parallel import DistributedDataParallel

    class Data(dt.utils.data.Dataset):
        def __len__(self):
            return 8
        def __getitem__(self, i):
            time.sleep(0.1 * (os.environ["RANK"] == "0" and "data" in sys.argv))
            return dt.ones(4)

    model = DistributedDataParallel(dt.nn.Linear(4, 1))
    optimizer = dt.optim.SGD(model.parameters(), lr=1e-4)
    while True:
        for x in dt.utils.data.DataLoader(Data(), batch_size=2):
            time.sleep(0.02)
            model(x).sum().backward()
            optimizer.step()
    """


@pytest.mark.mpi
def test_slow_ranks_are_named_while_their_jobs_run(start):
    """Two jobs, each with another reason, side by side."""
    jobs = {
        (0, "data"): start(TRAIN, "launch", "-n", "2", args=("data",)),
        (1, "compute"): start(TRAIN, "launch", "-n", "2", "--chaos", "slow:1x4", PYTHONWARNINGS=""),
    }

    for (rank, why), job in jobs.items():
        job.wait_for(
            rf"^disttrain: rank {rank} \(host \S+, pid \d+\) takes [\d.]+ times as long as the others over \d+ steps, "
            rf"by {why}: \d+% of its time, the others \d+%; they wait \d+% of theirs$",
            on_stderr=True,
        )
        job.process.terminate()
    for job in jobs.values():  # before either looks for what is left: they share a folder
        job.process.wait(30)
    assert [job.end()[0] for job in jobs.values()] == [143, 143]
    told = [json.loads((d / "report.json").read_text())["slow"] for d in jobs[1, "compute"].run_directories()]
    assert [(slow["rank"], slow["why"]) for (slow,) in told] == [(1, "compute")]
