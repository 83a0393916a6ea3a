"""What a user sees when a rank fails, or is killed, or the launcher is; and that nothing is left."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

PROMISED = 2.0  # seconds from a failure to the end of the job

WAIT = """
    import os, pathlib, signal, sys
    print("ready", os.getpid(), flush=True)
    pathlib.Path("up" + os.environ["RANK"]).touch()
    while len(list(pathlib.Path().glob("up*"))) < int(os.environ["WORLD_SIZE"]):
        os.sched_yield()
    if os.environ["RANK"] == "1":
        {fault}
    signal.pause()
    """


def ready(job, ranks=2):
    """Wait until all ranks are up; return rank → pid."""
    matches = [job.wait_for(r"\[(\d+)\] ready (\d+)") for _ in range(ranks)]
    return {int(m.group(1)): int(m.group(2)) for m in matches}


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("raise ValueError('bad batch')", 1, "raised ValueError: bad batch"),
        ("sys.exit(3)", 3, "left with exit code 3 (sys.exit)"),
        ("sys.exit('no data')", 1, "left with sys.exit('no data')"),
        ("os._exit(0)", 1, "left with code 0 before the end"),
        ("os._exit(7)", 7, "left with code 7 before the end"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "was killed by SIGKILL (kill -9 or the kernel's"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "was killed by SIGTERM"),
        ("import faulthandler; faulthandler._sigsegv()", 139, "was killed by SIGSEGV"),
        ("os.abort()", 134, "was killed by SIGABRT"),
    ],
)
def test_the_failing_rank_is_named_and_the_others_end(start, fault, code, said):
    job = start(WAIT.format(fault=fault), "launch", "-n", "2")
    pids = ready(job)

    got, _, err = job.end(within=PROMISED)

    assert got == code
    headline, *rest = err[err.index("disttrain: ") :].splitlines()  # a crash has printed something before
    assert headline.startswith("disttrain: rank 1 (host ")
    assert f"pid {pids[1]}) {said}" in headline
    assert "  rank 0 stopped by the launcher" in rest
    assert f"  exit code {code} after " in rest[-1]
    assert len(rest) <= 12


IN_CALLS = """
    import os, threading
    from disttrain.collectives import connect
    comm = connect()
    part = comm.split(0)
    part.barrier()
    if comm.rank == 1:
        print("ready", os.getpid(), flush=True)
        threading.Event().wait()
    work = comm.start_barrier()
    print("ready", os.getpid(), flush=True)
    work.wait()
    """


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
def test_a_failed_job_tells_where_all_ranks_were(start, ranks, number):
    job = start(IN_CALLS, "launch", "-n", str(ranks), "--timeout", "3")
    pids = ready(job, ranks)

    os.kill(pids[1], number)
    code, _, err = job.end(within=20)

    assert code == (1 if number == signal.SIGSTOP else 128 + number)
    *_, places = err.partition("  where the ranks were:\n")
    assert re.search(
        r"^    ranks? 0.*: .* (in|flight:|last,) barrier\(\) at script.py:10 \(call 1 of the world\)",
        places,
        re.M,
    )
    last = r"in no call; its last, barrier\(\) at script.py:6 \(call 0 of group 0 of ranks 0-\d\), ended \d+\.\d s ago"
    assert re.search(rf"^    rank 1: {last}$", places, re.M)
    if number == signal.SIGSTOP:
        assert "for rank 1; look for a rank that stopped" in err
        assert re.search(rf"^    rank 1: is stopped \(SIGSTOP\) and {last}$", err, re.M)


NOT_CONNECTED = """
    import os, signal, threading, time
    from disttrain.collectives import connect
    def load_the_data():
        {fault}
    if os.environ["RANK"] == "1":
        load_the_data()
    else:
        connect()
    """


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("fault", "where"),
    [
        (
            "threading.Event().wait()",
            r"  rank 1: has not called .*\n(    .*\n)*    script.py:5 in load_the_data\n",
        ),
        ("os.kill(os.getpid(), signal.SIGSTOP)", r"  rank 1: is stopped \(SIGSTOP\)\n"),
    ],
    ids=["waits", "stops"],
)
def test_a_rank_that_does_not_connect_is_named(start, fault, where):
    job = start(NOT_CONNECTED.format(fault=fault), "launch", "-n", "3", "--timeout", "2")

    code, _, err = job.end()

    assert code == 1
    assert re.search(rf"disttrain: ranks 0, 2 have waited 2\.\d s for rank 1 to connect, .*\n{where}", err)
    assert re.search(
        r"disttrain: rank 1 \(host .*\) did not connect to the others within 2 s \(--timeout\)\n", err
    )
    assert "  ranks 0, 2 stopped by the launcher" in err


@pytest.mark.mpi
def test_a_rank_that_ends_without_having_connected_is_named(start):
    job = start(NOT_CONNECTED.format(fault="pass"), "launch", "-n", "2")

    code, _, err = job.end()

    assert code == 1
    assert re.search(r"disttrain: rank 1 \(host .*\) ended without having connected to the others", err)


@pytest.mark.mpi
def test_a_hung_job_that_is_stopped_tells_where_all_ranks_were(start):
    job = start(IN_CALLS, "launch", "-n", "2")
    ready(job)

    waits = r"rank 0 has waited \d\.\d s in barrier\(\) at script.py:10 \(call 1 of the world\) for rank 1"
    job.wait_for(waits, on_stderr=True)
    job.wait_for(r"  rank 1: in no call; its last, barrier", on_stderr=True)
    job.wait_for(r"    script.py:9 in <module>", on_stderr=True)
    job.process.terminate()
    code, _, err = job.end()

    assert code == 143
    assert "disttrain: stopped by SIGTERM\n  where the ranks were:\n    rank 0: for " in err


def test_an_exception_is_shown_once_with_the_users_frames_only(start):
    job = start(
        """
        import os, signal
        def load(n):
            raise ValueError(f"no batch {n}")
        if os.environ["RANK"] == "1":
            try:
                load(7)
            except ValueError as e:
                raise RuntimeError("epoch 3 failed") from e
        signal.pause()
        """,
        "launch", "-n", "2",
    )  # fmt: skip

    code, out, err = job.end()

    assert code == 1
    assert out == ""
    lines = [line.strip() for line in err.splitlines()]
    assert lines.count("Traceback (most recent call last):") == 2  # the error and its cause
    assert lines.count("RuntimeError: epoch 3 failed") == 1
    files = [line for line in lines if line.startswith("File ")]
    assert files == [
        'File "script.py", line 7, in <module>',
        'File "script.py", line 4, in load',
        'File "script.py", line 9, in <module>',
    ]


def test_a_call_that_does_not_fit_is_shown_with_the_users_frames_only(start):
    script = """
        import disttrain as dt
        import disttrain.distributed as dist
        x = dt.ones(2)
        dist.all_reduce(x) if dist.get_rank() == 0 else dist.broadcast(x, 0)
        """

    code, _, err = start(script, "launch", "-n", "2").end()

    assert code == 1
    assert re.findall(r'^ +File "(.*)", line (\d+)', err, re.MULTILINE) == [("script.py", "5")], err
    assert "rank 1: broadcast(float32, shape (2,), root 0) at script.py:5" in err


def test_the_same_failure_on_all_ranks_is_one_report(start):
    job = start(
        """
        import os, pathlib
        pathlib.Path("up" + os.environ["RANK"]).touch()
        while len(list(pathlib.Path().glob("up*"))) < 4:
            pass
        import no_such_module
        """,
        "launch", "-n", "4",
    )  # fmt: skip

    code, _, err = job.end()

    assert code == 1
    assert err.count("ModuleNotFoundError: No module named 'no_such_module'") == 2  # headline and traceback
    assert "disttrain: rank 0 " in err
    assert "  the same on ranks 1-3" in err


def test_a_script_that_is_no_python_is_reported(start):
    code, _, err = start("x = = 1\n", "launch").end()

    assert code == 1
    assert 'File "script.py", line 1' in err
    assert "SyntaxError: invalid syntax" in err


def test_a_crash_in_native_code_shows_where_python_was(start):
    job = start(
        """
        import faulthandler, threading
        for _ in range(3):  # as every rank that communicates has: what they do says nothing
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        def crash():
            faulthandler._sigsegv()
        crash()
        """,
        "launch",
    )

    code, _, err = job.end()

    assert code == 139
    report = err[err.index("disttrain: rank 0") :]
    assert "last lines that it printed:" in report
    assert 'File "script.py", line 6 in crash' in report
    assert "in wait" not in report


def test_a_failure_keeps_a_report_and_logs(start):
    job = start("print('hello'); raise KeyError('x')", "launch", "-n", "2")

    _, _, err = job.end()

    (directory,) = job.run_directories()
    assert str(directory) in err
    assert directory.stat().st_mode & 0o077 == 0
    report = json.loads((directory / "report.json").read_text())
    assert report["code"] == 1
    assert report["failures"][0]["ranks"] == [0]
    assert "KeyError: 'x'" in report["failures"][0]["traceback"]
    assert (directory / "rank1.log").read_text() == "hello\n"


def test_a_failing_rank_of_a_shared_process_is_named(start):
    job = start(
        """
        import os
        if os.environ["RANK"] == "2":
            raise ValueError("two")
        """,
        "launch", "-n", "2", "--ranks", "4",
    )  # fmt: skip

    code, _, err = job.end()

    assert code == 1
    assert "disttrain: rank 2 (host " in err
    assert err.count("Traceback") == 1


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_to_the_launcher_ends_the_job(start, number, code):
    job = start(WAIT.format(fault="pass"), "launch", "-n", "2")
    ready(job)

    job.process.send_signal(number)
    got, _, err = job.end(within=PROMISED)

    assert got == code
    assert err == f"disttrain: stopped by {number.name}\n"
    assert job.run_directories() == []


def test_a_rank_may_use_the_grace_period(start, tmp_path):
    job = start(
        """
        import signal, sys, os, pathlib
        def save(*_):
            pathlib.Path("saved").touch()
            sys.exit(0)
        signal.signal(signal.SIGTERM, save)
        print("[0] ready", os.getpid(), flush=True)
        signal.pause()
        """,
        "launch",
    )
    ready(job, ranks=1)

    job.process.terminate()

    assert job.end(within=PROMISED)[0] == 143
    assert (tmp_path / "saved").exists()


DEAF = """
    import os, signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready", os.getpid(), flush=True)
    while True:
        signal.pause()
    """


def test_a_rank_deaf_to_sigterm_is_killed_after_the_grace_period(start):
    job = start(DEAF, "launch", "-n", "2")
    ready(job)

    began = time.monotonic()
    job.process.terminate()
    code, _, err = job.end(within=2 * PROMISED + 1)

    assert code == 143
    assert time.monotonic() - began >= 2.0  # the grace that was promised to the rank
    assert "stopped by SIGTERM; ranks 0-1 had to be killed" in err


def test_a_second_signal_does_not_wait(start):
    job = start(DEAF, "launch", "-n", "2")
    ready(job)

    job.process.send_signal(signal.SIGINT)
    job.process.send_signal(signal.SIGTERM)

    assert job.end(within=1.5)[0] in (130, 143)  # the kernel may deliver them in either order


def test_a_stopped_rank_can_be_ended(start):
    job = start(WAIT.format(fault="os.kill(os.getpid(), signal.SIGSTOP)"), "launch", "-n", "2")
    ready(job)

    job.process.terminate()

    assert job.end(within=PROMISED)[0] == 143


FAMILY = """
    import os, signal
    for new_session in (False, True):
        if os.fork() == 0:
            if new_session:
                os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("[9] child", os.getpid(), flush=True)
            while True:
                signal.pause()
    print("ready", os.getpid(), flush=True)
    {fault}
    while True:
        signal.pause()
    """


def test_nothing_survives_a_launcher_that_is_killed(start):
    job = start(FAMILY.format(fault="pass"), "launch", "-n", "2")
    for _ in range(6):
        job.wait_for(r"ready|child")
    assert len(job.members()) == 8  # launcher, guardian, two ranks with two children each

    job.process.kill()
    job.process.wait()

    job.assert_nothing_left(within=PROMISED)
    assert job.run_directories() == []


def test_children_of_a_rank_that_is_killed_end_too(start):
    fault = 'if os.environ["RANK"] == "1": os.kill(os.getpid(), signal.SIGKILL)'
    job = start(FAMILY.format(fault=fault), "launch", "-n", "2")
    for _ in range(6):
        job.wait_for(r"ready|child")

    assert job.end(within=PROMISED)[0] == 137


def test_a_flood_of_output_does_not_delay_the_report(start):
    job = start(
        """
        import os
        if os.environ["RANK"] == "1":
            raise ValueError("one")
        while True:
            print("x" * 100)
        """,
        "launch", "-n", "2",
    )  # fmt: skip

    code, _, err = job.end()

    assert code == 1
    assert "rank 1" in err


def test_what_a_dead_launcher_left_goes_at_the_next_start(start, runtime: Path):
    stale = runtime / "disttrain" / "0123456789ab"
    stale.mkdir(parents=True, mode=0o700)
    stale.parent.chmod(0o700)
    (stale / "lock").touch()
    segment = Path(f"/dev/shm/disttrain_test_{os.getpid()}")
    segment.touch()

    start("pass", "launch").end()

    assert not stale.exists()
    assert not segment.exists()
