"""What a user gets from ``disttrain launch`` when all goes well, and when the command is wrong."""

import json

import psutil
import pytest


def lines_of(out: str, rank: int) -> list[str]:
    prefix = f"[{rank}] "
    return [line.removeprefix(prefix) for line in out.splitlines() if line.startswith(prefix)]


def test_a_script_sees_what_python_would_give_it(start, tmp_path):
    (tmp_path / "neighbour.py").write_text("NAME = 'neighbour'\n")
    job = start(
        """
        import json, os, sys
        import neighbour
        if __name__ == "__main__":
            names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "EXTRA")
            print(json.dumps({
                "argv": sys.argv, "file": __file__, "path": sys.path[0], "neighbour": neighbour.NAME,
                "main": sys.modules["__main__"].__dict__ is globals(), "env": [os.environ[n] for n in names],
            }))
        """,
        "launch", "-n", "2", "--env", "EXTRA=a=b",
        args=("--lr", "0.1", "-n", "7"),
    )  # fmt: skip

    code, out, err = job.end()

    assert (code, err) == (0, "")
    for rank in (0, 1):
        (seen,) = map(json.loads, lines_of(out, rank))
        assert seen == {
            "argv": ["script.py", "--lr", "0.1", "-n", "7"],
            "file": "script.py",
            "path": str(tmp_path.resolve()),
            "neighbour": "neighbour",
            "main": True,
            "env": [str(rank), str(rank), "2", "2", "a=b"],
        }
    assert job.run_directories() == []


def test_a_module_runs_as_python_m_would_run_it(start, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sibling.py").write_text("NAME = 'sibling'\n")
    (package / "tool.py").write_text(
        "import sys\n"
        "from .sibling import NAME\n"
        "print(__name__, __package__, NAME, sys.argv[1:], __spec__.name)\n"
    )
    job = start(None, "launch", "-m", "package.tool", "--epochs", "3")

    code, out, err = job.end()

    assert (code, err) == (0, "")
    assert out == "__main__ package sibling ['--epochs', '3'] package.tool\n"


def test_one_rank_has_no_prefix_and_keeps_the_channels_apart(start):
    code, out, err = start("import sys; print('out'); print('err', file=sys.stderr)", "launch").end()

    assert (code, out, err) == (0, "out\n", "err\n")


def test_ranks_share_processes(start):
    job = start(
        """
        import os
        print(os.environ["RANK"], os.environ["WORLD_SIZE"], os.getpid(), __name__)
        mine = os.environ["RANK"]
        """,
        "launch", "-n", "1", "--ranks", "4",
    )  # fmt: skip

    code, out, err = job.end()

    assert (code, err) == (0, "disttrain: communicating over local (all ranks are in one process)\n")
    seen = [lines_of(out, rank) for rank in range(4)]
    assert [line.split()[:2] for (line,) in seen] == [[str(r), "4"] for r in range(4)]
    assert len({line.split()[2] for (line,) in seen}) == 1


def test_multiprocessing_and_fork_work_in_a_script(start):
    job = start(
        """
        import multiprocessing, os, sys
        def square(x):
            return x * x
        if __name__ == "__main__":
            for how in ("fork", "spawn"):
                with multiprocessing.get_context(how).Pool(2) as pool:
                    print(how, pool.map(square, range(3)))
            pid = os.fork()
            if pid == 0:
                sys.exit(5)  # the child comes to the end of the script: its own end, not the rank's
            print("fork", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """,
        "launch",
    )

    code, out, err = job.end()

    assert (code, err) == (0, "")
    assert out.splitlines() == ["fork [0, 1, 4]", "spawn [0, 1, 4]", "fork 5"]


def test_lines_of_ranks_are_never_cut_into_each_other(start):
    job = start(
        """
        import os
        for i in range(10_000):
            print(i, os.environ["RANK"] * 50)
        """,
        "launch", "-n", "2",
    )  # fmt: skip

    code, out, err = job.end()

    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 20_000
    for rank in (0, 1):
        assert lines_of(out, rank) == [f"{i} {str(rank) * 50}" for i in range(10_000)]


def test_a_reader_that_goes_away_does_not_end_the_job(start, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # what is left in a buffer is flushed at exit
    job = start(
        """
        import pathlib
        for i in range(20_000):
            print(i)
        pathlib.Path("done").touch()
        """,
        "launch",
    )
    job.wait_for("10")
    assert job.process.stdout is not None
    job.process.stdout.close()

    assert job.process.wait(20) == 0
    assert (tmp_path / "done").exists()


def test_what_a_script_leaves_running_is_ended_and_said(start):
    job = start(
        """
        import subprocess, sys
        p = subprocess.Popen(["sleep", "600"], start_new_session=True)
        print("left", p.pid)
        """,
        "launch",
    )
    pid = job.wait_for(r"left (\d+)").group(1)

    code, _, err = job.end()

    assert code == 0
    assert f"ended 1 processes that the script had left (pid {pid})" in err


def test_two_jobs_at_once(start):
    script = """
        import os, sys
        print("ready", flush=True)
        sys.exit(0)
        """
    jobs = [start(script, "launch", "-n", "2") for _ in range(2)]

    for job in jobs:
        job.process.wait(20)  # both, before the check that nothing is left in the folder that they share

    for job in jobs:
        code, out, err = job.end()
        assert (code, sorted(out.splitlines()), err) == (0, ["[0] ready", "[1] ready"], "")


def test_no_process_of_a_job_listens_on_a_port(start):
    pytest.importorskip("mpi4py")
    job = start(
        """
        import signal
        from mpi4py import MPI
        MPI.COMM_WORLD.Barrier()
        print("ready", MPI.COMM_WORLD.size)
        signal.pause()
        """,
        "launch", "-n", "2",
    )  # fmt: skip
    for _ in range(2):
        assert job.wait_for(r"ready (\d)").group(1) == "2"

    members = job.members()
    ports = [c for pid in members for c in psutil.Process(pid).net_connections("inet")]

    assert len(members) == 4  # launcher, guardian, two workers
    assert ports == []


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["-n", "0", "script.py"], "-n must be at least 1, got 0; try -n 2"),
        (["-n", "-3", "script.py"], "-n must be at least 1, got -3"),
        (["-n", "x", "script.py"], "-n must be a number, auto, cpu or gpu; got 'x'"),
        (["-n", "2", "missing.py"], "there is no script 'missing.py' in "),
        (["-n", "2", "."], "'.' is a directory; name the script inside it"),
        (["-n", "2"], "Missing argument 'PROGRAM'"),
        (["--ranks", "3", "script.py"], "the number of ranks must be a power of two, got 3; try 2 or 4"),
        (["-n", "4", "--ranks", "2", "script.py"], "--ranks 2 is fewer than the 4 processes of -n"),
        (["--env", "NAME", "script.py"], "--env must be NAME=VALUE, got 'NAME'"),
        (["--env", "RANK=3", "script.py"], "RANK is set by the launcher"),
        (["--timeout", "0", "script.py"], "--timeout must be a positive number of seconds, got 0"),
        (["--transport", "gloo", "script.py"], "'gloo' is not one of"),
        (["-n", "2", "--transport", "local", "script.py"], "--transport local connects ranks of one process"),
        (["--transport", "nccl", "script.py"], "--transport nccl needs a GPU for each process, got -n 1"),
        (["-m", "script.py/x"], "-m needs the dotted name of a module, got 'script.py/x'"),
        (["--surprise", "script.py"], "No such option"),
    ],
)
def test_a_wrong_command_is_refused_with_the_value_and_the_cure(start, tmp_path, command, said):
    (tmp_path / "script.py").touch()

    code, _, err = start(None, "launch", *command).end()

    assert code == 2
    assert said in err.replace("\n", " ")
    assert "Traceback" not in err
