"""Ordered faults happen, once, at their step; they are announced and recorded."""

import json

import pytest

pytestmark = pytest.mark.mpi

TRAIN = """
    import os
    import disttrain as dt
    dt.manual_seed(0)
    model = dt.nn.parallel.DistributedDataParallel(dt.nn.Linear(4, 2))
    optimizer = dt.optim.SGD(model.parameters(), lr=0.1)
    for step in range(1, 11):
        optimizer.zero_grad()
        model(dt.ones(3, 4)).sum().backward()
        optimizer.step()
        print(f"step {step} of generation {os.environ['DISTTRAIN_GENERATION']}", flush=True)
    print("weight", sum(p.sum().item() for p in model.parameters()))
    """


def recorded(job):
    (directory,) = job.run_directories()
    return [
        (c["fault"], c["rank"], c["generation"])
        for c in json.loads((directory / "report.json").read_text())["chaos"]
    ]


def test_each_fault_happens_once_also_when_the_job_is_restarted(start):
    job = start(
        TRAIN,
        "launch",
        "-n",
        "2",
        "--max-restarts",
        "2",
        "--chaos",
        "kill:1@step=3,kill:0@4",
        PYTHONWARNINGS="",
    )

    code, out, err = job.end()

    assert code == 0
    assert "disttrain: chaos ordered: kill:1@step=3, kill:0@step=4\n" in err
    assert "[1] disttrain: chaos: kill:1@step=3\n" in err
    assert "[0] disttrain: chaos: kill:0@step=4\n" in err
    assert "[1] step 4 of generation 0" not in out
    assert "[0] step 5 of generation 1" not in out
    assert "[0] step 10 of generation 2" in out
    assert recorded(job) == [("kill:1@step=3", 1, 0), ("kill:0@step=4", 0, 1)]
    calm = start(TRAIN, "launch", "-n", "2", PYTHONWARNINGS="").end()[1]
    assert weights(out) == weights(calm)


def weights(out):
    found = {line for line in out.splitlines() if " weight " in line}
    assert len(found) == 2
    return found


def test_gradients_that_are_no_numbers_come_from_the_rank_that_was_drawn(start):
    job = start(TRAIN, "launch", "-n", "2", "--chaos", "nan:*@3-5", "--chaos-seed", "3", PYTHONWARNINGS="")

    code, out, err = job.end()

    assert code == 0
    ((fault, rank, _),) = recorded(job)
    assert fault == f"nan:{rank}@step=5"
    assert f"rank {rank}: 2 nan in the gradient of 'bias'" in err
    assert out.count("weight nan") == 2


def test_a_slow_rank_is_slow_from_its_step_on(start):
    job = start(TRAIN, "launch", "-n", "2", "--chaos", "slow:1x2@9", PYTHONWARNINGS="")

    assert job.end()[0] == 0
    assert recorded(job) == [("slow:1x2@step=9", 1, 0)]


def test_a_stopped_rank_is_stopped_after_its_step(start):
    job = start(TRAIN, "launch", "-n", "2", "--timeout", "2", "--chaos", "stop:1@step=3", PYTHONWARNINGS="")

    code, out, err = job.end()

    assert code != 0
    assert "rank 1: is stopped (SIGSTOP)" in err
    assert "[1] step 3 " not in out
    assert recorded(job) == [("stop:1@step=3", 1, 0)]


def test_a_wrong_order_starts_nothing(start):
    code, out, err = start("print('ran')", "launch", "-n", "2", "--chaos", "kill:2@3").end()

    assert code == 2
    assert out == ""
    assert "Error: --chaos kill:2@3: there is no rank 2, the ranks are 0 to 1" in err


RESUMES = """
    import os
    import disttrain as dt
    dt.manual_seed(0)
    data = dt.utils.data.TensorDataset(dt.randn(96, 8), dt.randn(96, 2))
    layers = dt.nn.Sequential(dt.nn.Linear(8, 8), dt.nn.Tanh(), dt.nn.Linear(8, 2))
    model = dt.nn.parallel.DistributedDataParallel(layers)
    optimizer = dt.optim.Adam(model.parameters(), lr=0.1)
    done = 0
    if os.path.exists("last.pt"):
        last = dt.load("last.pt")
        model.load_state_dict(last["model"])
        optimizer.load_state_dict(last["optimizer"])
        done = last["done"]
    print("from", done, flush=True)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    while done < 16:
        mine = [data[(done * size + rank) * 2 % 96 + i] for i in range(2)]
        optimizer.zero_grad()
        loss = dt.nn.functional.mse_loss(model(dt.stack([x for x, _ in mine])), dt.stack([y for _, y in mine]))
        loss.backward()
        optimizer.step()
        done += 1
        if rank == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "done": done}
            dt.save(state, "last.pt")
    print("weights", [p.tolist() for p in model.parameters()])
    """


@pytest.mark.parametrize("shape", [("-n", "2"), ("-n", "2", "--ranks", "4")])
def test_a_job_that_is_killed_again_and_again_ends_with_the_bits_of_one_that_is_not(start, tmp_path, shape):
    chaos = ("--max-restarts", "3", "--chaos", "kill:1@3,kill:0@4,kill:0@5")
    job = start(RESUMES, "launch", *shape, *chaos, PYTHONWARNINGS="")
    code, out, err = job.end(within=60)
    (tmp_path / "last.pt").unlink()
    calm = start(RESUMES, "launch", *shape, PYTHONWARNINGS="").end(within=60)

    assert code == calm[0] == 0
    assert "ended well after 3 restarts" in err
    begun = {int(line.split()[-1]) for line in out.splitlines() if " from " in line}
    assert len(begun) == 4  # generations, each from where the one before had come to
    ends = [
        {line.split("] ", 1)[1] for line in text.splitlines() if " weights " in line}
        for text in (out, calm[1])
    ]
    assert len(ends[0]) == 1
    assert ends[0] == ends[1]
