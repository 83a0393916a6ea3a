"""Jobs of one host without MPI: they connect, fail, restart and end as others do, and leave nothing."""

import os
import re
import signal

import pytest

STEPS = """
    import os
    import numpy as np
    from disttrain import collectives
    comm = collectives.connect()
    generation = int(os.environ["DISTTRAIN_GENERATION"])
    total = collectives.empty(1000)
    total[:] = 1
    comm.all_reduce(total, total)
    with open("/proc/self/maps") as maps:
        files = [line.split()[-1] for line in maps if "/dev/shm" in line]
    print("generation", generation, "sums", total[0], "as", os.getpid(), *files, flush=True)
    while generation < {last}:
        comm.all_reduce(total, total)
    """


@pytest.fixture
def without_mpi(tmp_path):
    """Variables with which no process can import mpi4py."""
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "mpi4py.py").write_text('raise ImportError("none is installed")\n')
    return {"PYTHONPATH": f"{folder}{os.pathsep}{os.getcwd()}"}


def began(job, generation, ranks):
    """Return rank → pid of a generation, once all its ranks have communicated."""
    pids = {}
    while len(pids) < ranks:
        line = rf"\[(\d)\] generation {generation} sums {ranks}.0 as (\d+)$"  # and no file in /dev/shm
        match = job.wait_for(line)
        pids[int(match[1])] = int(match[2])
    return pids


def test_auto_does_without_mpi_where_there_is_none_and_says_so_once(start, without_mpi):
    job = start(STEPS.format(last=0), "launch", "-n", "3", **without_mpi)

    code, out, err = job.end()

    assert code == 0
    assert len(re.findall(r"generation 0 sums 3.0", out)) == 3
    assert re.fullmatch(
        r"(\[0\] )?disttrain: communicating over shm, shared memory \(NumPy arrays between 3 processes; "
        r"there is no MPI library \(none is installed\).*\)\n",
        err,
    )


def test_mpi_asked_for_by_name_is_not_replaced(start, without_mpi):
    job = start(STEPS.format(last=0), "launch", "-n", "2", "--transport", "mpi", **without_mpi)

    code, _, err = job.end()

    assert code == 1
    assert "TransportUnavailable: there is no MPI library (none is installed); install one with `pip" in err


def test_killed_generations_are_followed_by_one_that_communicates(start):
    job = start(STEPS.format(last=2), "launch", "-n", "2", "--transport", "shm", "--max-restarts", "2")

    for generation in range(2):
        os.kill(began(job, generation, 2)[generation], signal.SIGKILL)
    code, _, err = job.end()

    assert code == 0
    assert err.count("was killed by SIGKILL") == 2
    assert "ended well after 2 restarts" in err


def test_a_process_that_fails_twice_is_left_out(start):
    script = STEPS.format(last=2) + '    assert os.environ["RANK"] != "1" or comm.size == 2\n'
    script = script.replace("generation < 2", "generation < 2 and comm.rank != 1")

    job = start(script, "launch", "-n", "2:3", "--transport", "shm", "--max-restarts", "2")
    code, out, _ = job.end()

    assert code == 0
    assert dict(re.findall(r"\[0\] generation (\d) sums (\d)", out)) == {"0": "3", "1": "3", "2": "2"}


def test_a_launcher_that_is_killed_leaves_nothing(start):
    job = start(STEPS.format(last=1), "launch", "-n", "2", "--transport", "shm")
    began(job, 0, 2)

    job.process.kill()
    job.process.communicate()

    job.assert_nothing_left(within=5.0)


def test_two_jobs_at_once_know_nothing_of_each_other(start):
    jobs = [start(STEPS.format(last=1), "launch", "-n", str(n), "--transport", "shm") for n in (2, 3)]
    pids = [began(job, 0, n) for job, n in zip(jobs, (2, 3), strict=True)]

    os.kill(pids[0][1], signal.SIGKILL)
    jobs[0].process.wait(20)
    os.kill(pids[1][2], signal.SIGTERM)

    for job, code in zip(jobs, (137, 143), strict=True):
        assert job.process.wait(20) == code


def test_a_child_of_a_rank_does_not_disturb_it(start):
    """It has memory of its own, and what it holds of the job's keeps nobody from ending."""
    script = """
        import os, signal
        import numpy as np
        from disttrain import collectives
        comm = collectives.connect()
        x = collectives.empty(1000)
        x[:] = 1
        child = os.fork()
        if child == 0:
            mine = collectives.empty(1000)  # nothing that others could read
            mine[:] = 7
            os._exit(int(mine.sum()) != 7000)
        group = comm.split(0)
        for _ in range(100):
            group.all_reduce(x, x, op="max")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        if os.fork() == 0:
            signal.pause()
        message = np.zeros(1 << 20)
        if comm.rank == 0:
            comm.send(message + 3, 1)
        else:
            comm.recv(message, 0)
        print("ends", x[0], message[-1])
        """
    job = start(script, "launch", "-n", "2", "--transport", "shm")

    code, out, err = job.end()

    assert code == 0
    assert sorted(out.splitlines()) == ["[0] ends 1.0 0.0", "[1] ends 1.0 3.0"]
    assert "ended 2 processes that the script had left" in err


def test_several_hosts_are_refused(start):
    job = start("pass", "launch", "--hosts", "here:1,there:1", "--transport", "shm")

    code, _, err = job.end()

    assert code == 2
    assert (
        "--transport shm connects processes of one host, and this job has 2; use --transport mpi, or auto"
        in err
    )
