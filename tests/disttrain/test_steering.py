"""What a script tells, and what ranks do when they are asked: ranks as threads of this process."""

import json
import os

import numpy as np
import pytest

import disttrain as dt
from disttrain import context, steering
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.errors import RankFailed
from disttrain.collectives.ledger import ledger_file
from disttrain.collectives.local import run_ranks
from disttrain.collectives.meter import Wish, ask, read_meters, resume
from disttrain.distributed.fsdp import fully_shard
from disttrain.nn.parallel import DistributedDataParallel


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """A job of one rank: the descriptor that its launcher reads."""
    descriptor = ledger_file(1)
    env = WorkerEnv(ledger=descriptor, history=str(tmp_path / "history.jsonl"))
    for name, value in env.to_environ().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(context, "_process", context.RankContext())
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def three(monkeypatch):
    """A job of three ranks that are threads: its descriptor, and what runs a function of the rank on each."""
    descriptor = ledger_file(3)
    env = WorkerEnv(world_size=3, hosted=3, local_world_size=3, ledger=descriptor)
    for name, value in env.to_environ().items():
        monkeypatch.setenv(name, value)
    yield descriptor, lambda body: run_ranks(env, body)
    os.close(descriptor)


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(dt.ones(2, 3)).sum().backward()
        optimizer.step()


# ---------------------------------------------------------------------------------------------- telling


def test_log_of_a_tensor_is_the_logarithm():
    x = dt.tensor([1.0, 2.0], requires_grad=True)
    out = dt.empty(2)

    dt.log(x).sum().backward()
    dt.log(input=x.detach(), out=out)

    np.testing.assert_allclose(x.grad.numpy(), [1.0, 0.5])
    np.testing.assert_allclose(out.numpy(), np.log([1.0, 2.0]), rtol=1e-6)


def test_log_of_names_goes_into_the_history(alone, tmp_path):
    weight = dt.nn.Parameter(dt.ones(2))
    weight.grad = dt.ones(2)
    dt.optim.SGD([weight], lr=0.1).step()

    dt.log(loss=dt.tensor(0.25, requires_grad=True), n=np.int64(3), rate=float("inf"))

    (line,) = (tmp_path / "history.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry.pop("time") > 0
    assert entry == {
        "generation": 0,
        "rank": 0,
        "step": 1,
        "log": {"loss": 0.25, "n": 3, "rate": "inf"},
    }
    (reading,) = read_meters(alone, 0, 1)
    assert (reading.loss, reading.steps) == (0.25, 1)


@pytest.mark.parametrize(
    ("told", "match"),
    [
        ({}, "needs a tensor for its logarithm, or numbers by name"),
        ({"loss": "low"}, r"log\(loss=...\) needs a number, got str"),
        ({"loss": np.ones(3)}, r"needs one number, got 3 in shape \[3\]; take its mean"),
    ],
)
def test_what_is_no_number_cannot_be_told(told, match):
    with pytest.raises(TypeError, match=match):
        dt.log(**told)


def test_a_history_that_cannot_be_written_does_not_end_the_run(monkeypatch, tmp_path, caplog, alone):
    monkeypatch.setenv("DISTTRAIN_HISTORY", str(tmp_path / "no" / "folder"))
    monkeypatch.setattr("disttrain.steering._logger.propagate", True)

    dt.log(loss=1)

    assert "no history is written" in caplog.text


# ---------------------------------------------------------------------------------------------- being asked


def test_on_save_is_called_after_the_step_and_once_for_each_time_it_is_asked(alone):
    weight = dt.nn.Parameter(dt.zeros(1))
    optimizer = dt.optim.SGD([weight], lr=1.0)
    saved = []
    dt.on_save(lambda: saved.append(weight.item()))
    for _ in range(2):
        ask(alone, Wish.SAVE)

    for _ in range(4):
        weight.grad = -dt.ones(1)
        optimizer.step()

    assert saved == [1.0, 2.0]
    (reading,) = read_meters(alone, 0, 1)
    assert (reading.done[Wish.SAVE], reading.acted_at, reading.can_save) == (2, 2, True)


def test_stop_saves_and_ends_the_script_with_exit_code_0(alone):
    weight = dt.nn.Parameter(dt.zeros(1))
    weight.grad = dt.ones(1)
    saved = []
    dt.on_save(lambda: saved.append(True))
    ask(alone, Wish.STOP)

    with pytest.raises(SystemExit) as stopped:
        dt.optim.SGD([weight], lr=1.0).step()

    assert stopped.value.code == 0
    assert saved == [True]
    assert read_meters(alone, 0, 1)[0].done[Wish.STOP] == 1


def test_on_save_wants_a_function():
    with pytest.raises(TypeError, match="needs a function without arguments, got int"):
        dt.on_save(3)


@pytest.mark.parametrize("wrap", [DistributedDataParallel, fully_shard], ids=lambda f: f.__name__)
def test_all_ranks_save_after_the_same_step_though_one_alone_was_asked_in_time(three, wrap):
    """Rank 0 has cast its vote when rank 1 asks, as where the wish comes later to another host."""
    descriptor, run = three

    def body(rank):
        model = dt.nn.Linear(3, 1)
        model = wrap(model) or model
        optimizer = dt.optim.SGD(model.parameters(), lr=0.1)
        saved = []
        dt.on_save(lambda: saved.append(optimizer._steps))
        train(model, optimizer, 2)
        if rank == 1:
            ask(descriptor, Wish.SAVE)
        train(model, optimizer, 4)
        return saved

    assert run(body) == [[3], [3], [3]]


def test_two_models_that_vote_on_the_same_wish_save_once(three):
    descriptor, run = three

    def body(rank):
        models = [DistributedDataParallel(dt.nn.Linear(3, 1)) for _ in range(2)]
        optimizers = [dt.optim.SGD(model.parameters(), lr=0.1) for model in models]
        saved = []
        dt.on_save(lambda: saved.append([o._steps for o in optimizers]))
        if rank == 0:
            ask(descriptor, Wish.SAVE)
        for _ in range(2):
            for model in models:
                model(dt.ones(2, 3)).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return saved

    assert run(body) == [[[1, 0]]] * 3


def test_all_ranks_stop_after_the_same_step(three):
    descriptor, run = three
    steps = {}

    def body(rank):
        model = DistributedDataParallel(dt.nn.Linear(3, 1))
        optimizer = dt.optim.SGD(model.parameters(), lr=0.1)
        try:
            train(model, optimizer, 2)
            if rank == 2:
                ask(descriptor, Wish.STOP)
            train(model, optimizer, 100)
        finally:
            steps[rank] = optimizer._steps

    run(body)

    assert steps == {0: 3, 1: 3, 2: 3}


def test_ranks_that_have_no_batch_left_save_with_the_others(three):
    descriptor, run = three

    def body(rank):
        model = DistributedDataParallel(dt.nn.Linear(3, 1))
        optimizer = dt.optim.SGD(model.parameters(), lr=0.1)
        saved = []
        dt.on_save(lambda: saved.append(dt.distributed.all_reduce(dt.ones(1))))
        with model.join():
            for i in range(2 + rank):
                if rank == 2 and i == 3:
                    ask(descriptor, Wish.SAVE)
                train(model, optimizer, 1)
        return len(saved)

    assert run(body) == [1, 1, 1]


def test_all_ranks_pause_after_the_same_step(three):
    descriptor, run = three
    seen = []

    def body(rank):
        model = DistributedDataParallel(dt.nn.Linear(3, 1))
        optimizer = dt.optim.SGD(model.parameters(), lr=0.1)
        if rank == 0:
            ask(descriptor, Wish.PAUSE)
        pause = steering.meter().pause

        def look_then_go_on():
            if not seen:
                seen.extend(read_meters(descriptor, 0, 3))
                resume(descriptor)
            pause()

        steering.meter().pause = look_then_go_on
        train(model, optimizer, 3)

    run(body)

    assert [(r.done[Wish.PAUSE], r.steps) for r in seen] == [(1, 1)] * 3
    assert not any(r.paused for r in read_meters(descriptor, 0, 3))


def test_an_error_in_on_save_is_the_ranks_error(three):
    descriptor, run = three

    def body(rank):
        model = DistributedDataParallel(dt.nn.Linear(3, 1))
        dt.on_save(lambda: 1 / (rank - 1))
        ask(descriptor, Wish.SAVE)
        train(model, dt.optim.SGD(model.parameters(), lr=0.1), 1)

    with pytest.raises(RankFailed) as failed:
        run(body)

    assert (failed.value.rank, type(failed.value.exception)) == (1, ZeroDivisionError)


def test_the_loader_counts_samples_and_the_time_spent_on_them(alone):
    loader = dt.utils.data.DataLoader(dt.utils.data.TensorDataset(dt.ones(10, 1)), batch_size=4)

    list(loader)

    (reading,) = read_meters(alone, 0, 1)
    assert round(reading.samples_per_second * reading.seconds) == 10
    assert reading.data > 0
    assert reading.reading == 0
