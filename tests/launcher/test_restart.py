"""What a restart does: a new generation that knows nothing of the old one, and an end when the number is used up."""

import json
import os
import re
import signal

import pytest

FAILS = """
    import os
    generation = int(os.environ["DISTTRAIN_GENERATION"])
    assert os.environ["TORCHELASTIC_RESTART_COUNT"] == str(generation)
    assert os.environ["TORCHELASTIC_MAX_RESTARTS"] == "2"
    print("began", generation, flush=True)
    if os.environ["RANK"] == "1" and {when}:
        raise ValueError("bad batch")
    """


def test_a_job_that_fails_each_time_ends_after_the_set_number_and_says_the_cause_once(start):
    job = start(FAILS.format(when="True"), "launch", "-n", "2", "--max-restarts", "2")

    code, out, err = job.end()

    assert code == 1
    assert sorted(re.findall(r"\[1\] began (\d)", out)) == ["0", "1", "2"]
    assert err.count("Traceback") == 1
    assert err.count("raised ValueError: bad batch, as in generation 0") == 2
    assert "  restart 1 of 2: generation 1\n" in err
    assert "  restart 2 of 2 in 1 s: generation 2\n" in err
    assert re.search(r"exit code 1 after .* s, 2 restarts; logs and report.json in", err)
    (directory,) = job.run_directories()
    report = json.loads((directory / "report.json").read_text())
    assert report["generation"] == 2
    assert [a["generation"] for a in report["attempts"]] == [0, 1]
    assert "bad batch" in report["attempts"][0]["failures"][0]["traceback"]
    assert (directory / "rank1.log").read_text() == "began 0\n"
    assert (directory / "rank1-generation2.log").read_text() == "began 2\n"


def test_a_job_that_recovers_ends_well(start):
    job = start(FAILS.format(when="generation == 0"), "launch", "-n", "2", "--max-restarts", "2")

    code, out, err = job.end()

    assert code == 0
    assert sorted(re.findall(r"\[1\] began (\d)", out)) == ["0", "1"]
    assert "disttrain: ended well after 1 restart; logs and report.json in " in err


STEPS = """
    import os, signal
    import numpy as np
    from disttrain.collectives import connect
    comm = connect()
    generation = int(os.environ["DISTTRAIN_GENERATION"])
    total = np.ones(1000, np.float32)
    comm.all_reduce(total, total)
    assert total[0] == comm.size
    total[:] = 0
    print(f"generation {{generation}} steps as {{os.getpid()}}", flush=True)
    while generation < {last}:
        comm.all_reduce(total, total)
    """


@pytest.mark.mpi
def test_each_of_ten_killed_generations_is_followed_by_one_that_communicates(start):
    job = start(STEPS.format(last=10), "launch", "-n", "2", "--max-restarts", "10")

    for generation in range(10):
        pids = {}
        while len(pids) < 2:
            match = job.wait_for(rf"\[(\d)\] generation {generation} steps as (\d+)")
            pids[match[1]] = int(match[2])
        os.kill(pids[str(generation % 2)], signal.SIGKILL)
    code, _, err = job.end()

    assert code == 0
    assert err.count("was killed by SIGKILL") == 10
    assert " s: generation" not in err  # each one communicated: nothing to wait for
    assert "ended well after 10 restarts" in err


ELASTIC = """
    import os
    import numpy as np
    from disttrain.collectives import connect
    comm = connect()
    total = np.ones(1, np.float32)
    comm.all_reduce(total, total)
    print("generation", os.environ["DISTTRAIN_GENERATION"], "has", int(total[0]), "ranks", flush=True)
    if comm.rank == (1 if comm.size == 3 else 0):
        raise ValueError("bad device")
    comm.barrier()
    """


@pytest.mark.mpi
def test_a_process_that_fails_twice_is_left_out_down_to_the_least_number(start):
    job = start(ELASTIC, "launch", "-n", "2:3", "--max-restarts", "4")

    code, out, err = job.end()

    assert code == 1
    sizes = dict(re.findall(r"^\[0\] generation (\d) has (\d) ranks$", out, re.MULTILINE))
    assert sizes == {
        "0": "3",
        "1": "3",
        "2": "2",
        "3": "2",
        "4": "2",
    }  # another one fails as often, and stays
    host = os.uname().nodename
    assert re.findall(r"going on without (.*)", err) == [f"process 1 of {host}: it has failed 2 times"]


@pytest.mark.mpi
def test_ranks_stay_as_many_where_processes_are_left_out(start):
    script = ELASTIC.replace(
        "comm.rank == (1 if comm.size == 3 else 0)", 'os.environ["DISTTRAIN_PROCESS"] == "1"'
    )
    job = start(script, "launch", "-n", "1:2", "--ranks", "4", "--max-restarts", "2")

    code, out, _ = job.end()

    assert code == 0
    sizes = dict(re.findall(r"^\[0\] generation (\d) has (\d) ranks$", out, re.MULTILINE))
    assert sizes == {"0": "4", "1": "4", "2": "4"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("3:2", "-n 3:2: MIN <= MAX must hold; try -n 2:3"),
        ("some:2", "-n must be N or MIN:MAX with a number as MIN, got 'some:2'; try -n 1:2"),
        ("0:2", "-n must be N or MIN:MAX with a number as MIN, got '0:2'; try -n 1:2"),
        ("1:many", "-n must be a number, auto, cpu or gpu; got 'many'"),
        ("999:cpu", "-n asks for 999"),
    ],
)
def test_a_wrong_range_of_processes_is_refused(start, wrong, said):
    code, out, err = start("print('ran')", "launch", "-n", wrong).end()

    assert (code, out) == (2, "")
    assert said in err


def test_a_stop_does_not_wait_for_a_restart(start):
    job = start("raise ValueError('x')", "launch", "--max-restarts", "20")

    job.wait_for(r"restart 4 of 20 in 4 s", on_stderr=True)
    job.process.terminate()
    code, _, err = job.end(within=3)

    assert code == 143
    assert "stopped by SIGTERM" in err


def test_a_user_who_stops_a_job_gets_no_restart(start):
    job = start(
        "import signal; print('[0] ready', flush=True); signal.pause()", "launch", "--max-restarts", "3"
    )
    job.wait_for("ready")

    job.process.terminate()

    assert job.end()[0] == 143


def test_a_negative_number_of_restarts_is_refused(start):
    code, _, err = start("pass", "launch", "--max-restarts", "-1").end()

    assert code == 2
    assert "--max-restarts must be 0 or more, got -1" in err
