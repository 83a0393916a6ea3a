"""Faults around a job: a full disk, little memory, closed pipes, floods of output, clocks that jump, other jobs."""

import os
import re
import resource
import shutil
import signal
import subprocess
import textwrap

import pytest

PAUSE = """
    import os, signal
    print("ready", os.getpid(), flush=True)
    signal.pause()
    """


@pytest.fixture
def small_disk(runtime):
    """Return how to make the folder of run directories a small disk."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    mounted = []

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "none", runtime], check=True)
        mounted.append(runtime)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_neither_ends_nor_delays_the_job(start, small_disk):
    small_disk("size=64k")
    job = start(
        """
        import os
        for i in range(10_000):
            print("line", i)
        if os.environ["RANK"] == "1":
            raise ValueError("bad batch")
        """,
        "launch", "-n", "2",
    )  # fmt: skip

    code, out, err = job.end()

    assert code == 1
    assert out.count("[0] line ") == 10_000 or "rank 0 stopped by the launcher" in err
    assert out.count("[1] line ") == 10_000
    assert "raised ValueError: bad batch" in err
    assert "report.json could not be written: No space left on device" in err


def test_a_disk_without_room_for_a_run_directory_is_said(start, small_disk, runtime):
    small_disk("nr_inodes=3")  # its root, our folder, our lock

    code, out, err = start("print('ran')", "launch", "-n", "2").end()

    assert (code, out) == (1, "")
    assert re.fullmatch(
        rf"Error: the run directory {runtime}/disttrain/\w+ cannot be made: No space left on device; make room, .*\n",
        err,
    )


def test_too_little_address_space_is_a_memory_error_of_the_rank(start):
    job = start(
        f"""
        import os, resource, signal
        print("ready", os.getpid(), flush=True)
        if os.environ["RANK"] == "1":
            resource.setrlimit(resource.RLIMIT_AS, ({1 << 30}, {resource.RLIM_INFINITY}))
            bytearray(2 << 30)
        signal.pause()
        """,
        "launch", "-n", "2",
    )  # fmt: skip

    code, _, err = job.end()

    assert code == 1
    assert "rank 1 (host " in err
    assert "raised MemoryError" in err


USE_UP = {
    "MemoryError": """
        with open("/proc/self/statm") as file:
            number = int(file.read().split()[0]) * resource.getpagesize() + (1 << 20)  # little more than is in use
        limit(resource.RLIMIT_AS, number)
        bytearray(2 << 30)
        """,
    "OSError": """
        limit(resource.RLIMIT_NOFILE, 40)
        held = []
        while True:
            held.append(open("/dev/null"))
        """,
}


@pytest.mark.parametrize("error", USE_UP)
def test_a_script_that_has_used_up_a_limit_is_told_with_its_own_error(start, error):
    limit = "limit = lambda which, number: resource.setrlimit(which, (number, resource.getrlimit(which)[1]))"
    job = start(f"import resource\n{limit}\n" + textwrap.dedent(USE_UP[error]), "launch", "-n", "2")

    code, _, err = job.end()

    assert code == 1
    report = err[err.index("disttrain: rank 0 (host ") :]
    assert f"raised {error}" in report
    assert "the same on rank 1" in report


@pytest.mark.parametrize(("error", "loaded"), [("MemoryError", "sys"), ("OSError", "zmq")])
def test_an_error_that_cannot_be_reported_is_printed(start, error, loaded):
    limit = "limit = lambda which, number: resource.setrlimit(which, (number, number))"  # nobody may lift it
    job = start(f"import resource, {loaded}\n{limit}\n" + textwrap.dedent(USE_UP[error]), "launch", "-n", "2")

    code, _, err = job.end()

    assert code == 1
    report = err[err.index("disttrain: rank 0 (host ") :]
    assert "left with code 1 before the end" in report
    assert f"    {error}" in report
    assert "zmq" not in err.replace("import resource, zmq", "")
    assert "launcher/worker.py" not in err


def test_a_million_lines_of_a_rank_all_come(start):
    script = """
        import os
        for i in range(1_000_000 if os.environ["RANK"] == "0" else 1000):
            print(i)
        """
    job = start(script, "launch", "-n", "2")

    code, out, err = job.end(within=100)

    assert (code, err) == (0, "")
    for rank, count in enumerate((1_000_000, 1000)):
        mine = [line for line in out.splitlines() if line.startswith(f"[{rank}] ")]
        assert len(mine) == count
        assert mine[-1] == f"[{rank}] {count - 1}"


def test_a_rank_may_close_its_output(start, tmp_path):
    job = start(
        """
        import os, pathlib
        print("before", flush=True)
        os.close(1)
        os.close(2)
        os.open(os.devnull, os.O_RDWR)
        os.open(os.devnull, os.O_RDWR)
        pathlib.Path("after" + os.environ["RANK"]).touch()
        """,
        "launch", "-n", "2",
    )  # fmt: skip

    code, out, _ = job.end()

    assert code == 0
    assert sorted(out.splitlines()) == ["[0] before", "[1] before"]
    assert (tmp_path / "after0").exists()
    assert (tmp_path / "after1").exists()


SHIFTED = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
#include <sys/time.h>
static long shift(void) { static int calls; return ++calls % 2 ? 3600 : -3600; }
int clock_gettime(clockid_t which, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(which, now);
    if (which == CLOCK_REALTIME) now->tv_sec += shift();
    return result;
}
time_t time(time_t *) { struct timespec t; clock_gettime(CLOCK_REALTIME, &t); return t.tv_sec; }
"""


@pytest.mark.mpi
def test_clocks_that_jump_by_an_hour_change_nothing(start, tmp_path):
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    (tmp_path / "shift.c").write_text(SHIFTED)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", "shift.so", "shift.c", "-ldl"], cwd=tmp_path, check=True)
    job = start(
        """
        import time
        import numpy as np
        from disttrain.collectives import connect
        comm = connect()
        x = np.ones(10, np.float32)
        for _ in range(50):
            comm.all_reduce(x, x)
            x[:] = 1
        print("jumped", abs(time.time() - time.time()) > 3000, flush=True)
        """,
        "launch", "-n", "2", "--timeout", "60", LD_PRELOAD=str(tmp_path / "shift.so"),
    )  # fmt: skip

    code, out, err = job.end()

    assert code == 0
    assert sorted(out.splitlines()) == ["[0] jumped True", "[1] jumped True"]
    assert "rank" not in err.replace("between", "")


def test_a_stopped_rank_is_named_and_then_given_up(start):
    job = start(PAUSE, "launch", "-n", "2")
    pids = {}
    while len(pids) < 2:
        match = job.wait_for(r"\[(\d)\] ready (\d+)")
        pids[match[1]] = int(match[2])

    os.kill(pids["1"], signal.SIGSTOP)
    job.wait_for(
        rf"rank 1 \(host .*, pid {pids['1']}\) is stopped \(SIGSTOP\); the job ends in \d s", on_stderr=True
    )
    code, _, err = job.end(within=15)

    assert code == 128 + signal.SIGSTOP
    assert re.search(r"rank 1 \(host .*\) was stopped \(SIGSTOP\) for 1\d s while others ran", err)
    assert "  rank 0 stopped by the launcher" in err


def test_a_rank_that_was_stopped_for_a_while_goes_on(start):
    job = start(
        PAUSE.replace("signal.pause()", "signal.sigwait([signal.SIGUSR2])"),
        "launch",
        "-n",
        "2",
        "--env",
        "X=1",
    )
    pids = [int(job.wait_for(r"ready (\d+)")[1]) for _ in range(2)]

    os.kill(pids[0], signal.SIGSTOP)
    job.wait_for("is stopped", on_stderr=True)
    os.kill(pids[0], signal.SIGCONT)
    job.process.terminate()

    code, _, err = job.end()
    assert code == 143
    assert "while others ran" not in err


@pytest.mark.mpi
def test_a_rank_deaf_to_sigterm_inside_a_collective_is_killed(start):
    job = start(
        """
        import signal
        from disttrain.collectives import connect
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        comm = connect()
        comm.barrier()
        print("ready", flush=True)
        if comm.rank == 0:
            comm.barrier()
        signal.pause()
        """,
        "launch", "-n", "2",
    )  # fmt: skip
    for _ in range(2):
        job.wait_for("ready")

    job.process.terminate()
    code, _, err = job.end(within=5)

    assert code == 143
    assert "stopped by SIGTERM; ranks 0-1 had to be killed" in err


@pytest.mark.mpi
def test_a_rank_that_holds_the_interpreter_is_named_with_its_line_and_goes_on(start):
    job = start(
        """
        import time
        from disttrain.collectives import connect
        comm = connect()
        comm.barrier()
        if comm.rank == 1:
            began = time.perf_counter()
            sum(range(10_000_000))
            sum(range(int(12e7 / (time.perf_counter() - began))))
        comm.barrier()
        print("went on", flush=True)
        """,
        "launch", "-n", "2",
    )  # fmt: skip

    code, out, err = job.end(within=60)

    assert code == 0
    assert out.count("went on") == 2
    assert re.search(r"rank 0 has waited \d+\.\d s in barrier\(\) at script.py:10 .* for rank 1", err)
    assert "script.py:9 in <module>" in err
