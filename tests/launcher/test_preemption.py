"""SIGTERM and SIGUSR1 have a script that can save do so on all ranks after the same step, and end with code 75."""

import os
import re
import signal

import pytest

pytestmark = pytest.mark.mpi

TRAIN = """
    import os, sys, time
    import disttrain as dt
    model = dt.nn.parallel.DistributedDataParallel(dt.nn.Linear(4, 2))
    optimizer = dt.optim.SGD(model.parameters(), lr=0.1)
    steps = 0
    def save():
        print("saved after", steps, flush=True)
    {on_save}
    while steps < 100_000:
        optimizer.zero_grad()
        model(dt.ones(3, 4)).sum().backward()
        steps += 1
        optimizer.step()
        if steps == 3:
            print("ready", os.getpid(), flush=True)
    """
CAN_SAVE = TRAIN.format(on_save="dt.on_save(save)")


def ready(job):
    matches = [job.wait_for(r"\[(\d)\] ready (\d+)") for _ in range(2)]
    return {int(m[1]): int(m[2]) for m in matches}


def saved(out):
    return sorted(re.findall(r"\[(\d)\] saved after (\d+)", out))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("to", ["launcher", "rank"])
def test_all_ranks_save_after_the_same_step(start, number, to):
    job = start(CAN_SAVE, "launch", "-n", "2", "--max-restarts", "3", PYTHONWARNINGS="")
    pids = ready(job)

    os.kill(pids[1] if to == "rank" else job.process.pid, number)
    code, out, err = job.end()

    assert code == 75
    (_, first), (_, second) = saved(out)
    assert first == second
    name = "SIGUSR1" if to == "rank" else number.name
    assert f"disttrain: {name}: the ranks save after the next step and stop" in err
    assert f"disttrain: stopped after step {first}, as asked by {name}" in err


def test_ctrl_c_stops_at_once(start):
    job = start(CAN_SAVE, "launch", "-n", "2", PYTHONWARNINGS="")
    ready(job)

    job.process.send_signal(signal.SIGINT)
    code, out, err = job.end(within=5)

    assert code == 130
    assert saved(out) == []
    assert "had to be killed" not in err


def test_a_second_sigterm_stops_at_once(start):
    held = TRAIN.format(
        on_save="""
    def save():
        print("saving", flush=True)
        time.sleep(60)
    dt.on_save(save)"""
    )
    job = start(held, "launch", "-n", "2", PYTHONWARNINGS="")
    ready(job)

    job.process.terminate()
    job.wait_for("saving")
    job.process.send_signal(signal.SIGUSR1)  # said before: changes nothing
    job.process.terminate()
    code, _, err = job.end(within=5)

    assert code == 143
    assert "disttrain: stopped by SIGTERM" in err


def test_a_script_that_cannot_save_is_not_disturbed_by_sigusr1(start):
    job = start(TRAIN.format(on_save=""), "launch", "-n", "2", PYTHONWARNINGS="")
    ready(job)

    job.process.send_signal(signal.SIGUSR1)
    job.wait_for("SIGUSR1 changes nothing: the script has not said how: no dt.on_save", on_stderr=True)
    job.process.terminate()

    assert job.end()[0] == 143


def test_a_child_of_a_rank_obeys_the_signals(start):
    job = start(
        """
        import os, signal
        import disttrain as dt
        dt.on_save(print)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            child = os.fork()
            if not child:
                os.kill(os.getpid(), number)
                signal.pause()
            assert os.WTERMSIG(os.waitpid(child, 0)[1]) == number
        """,
        "launch", "-n", "1", PYTHONWARNINGS="",
    )  # fmt: skip

    code, _, err = job.end()

    assert (code, err) == (0, "")
