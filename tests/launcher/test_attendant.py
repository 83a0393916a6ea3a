"""A job that ``mpiexec`` has started is seen, told and explained as one of our launcher's."""

import json
import os
import re
import select
import shutil
import signal
import sys
from pathlib import Path

import fake_nvml
import pytest

pytestmark = pytest.mark.mpi

TRAIN = """
    import os
    import disttrain as dt
    from disttrain.nn.parallel import DistributedDataParallel

    dt.on_save(lambda: print(f"saved {optimizer._steps}\\n", end="", flush=True))
    model = DistributedDataParallel(dt.nn.Linear(4, 1))
    optimizer = dt.optim.SGD(model.parameters(), lr=1e-4)
    print(f"rank {dt.distributed.get_rank()} is {os.getpid()}\\n", end="", flush=True)
    while True:
        loss = model(dt.ones(4, 4)).square().mean()
        loss.backward()
        optimizer.step()
        dt.log(loss=loss)
        if dt.distributed.get_rank() == 1 and os.path.exists("raise"):
            raise ValueError("bad batch")
    """


@pytest.fixture
def under_mpiexec(start):
    """Start two ranks under ``mpiexec``, with these variables."""
    mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    if mpiexec is None:
        pytest.skip('no mpiexec beside the interpreter; pip install "disttrain[mpi]"')
    return lambda **environ: start(TRAIN, by=(mpiexec, "-n", "2", sys.executable), **environ)


@pytest.fixture
def bare(under_mpiexec):
    """A job of two ranks under ``mpiexec``."""
    return under_mpiexec()


def status(tool):
    """Return what ``ps`` knows of the only job, once its ranks have made steps."""
    while True:
        lines = tool("ps", "--json")[1].splitlines()
        found = json.loads(lines[0]) if lines else {}
        if found and len(found["ranks"]) == 2 and all(r["steps"] > 2 for r in found["ranks"]):
            return found


def ended(job):
    """Return exit code, stdout and stderr; what attends the job may end a moment after it."""
    out, err = job.process.communicate(timeout=20)
    job.assert_nothing_left(within=5.0)
    return job.process.returncode, job.out + out, err


def test_each_rank_has_the_gpu_of_its_place_on_the_node(under_mpiexec, tool, tmp_path):
    job = under_mpiexec(**fake_nvml.build(tmp_path), FAKE_GPUS="3", CUDA_VISIBLE_DEVICES="2,0")

    seen = status(tool)
    tool("kill", seen["id"])
    ended(job)

    assert [(r["gpu"]["name"], r["gpu"]["busy"]) for r in seen["ranks"]] == [("2", 0.3), ("0", 0.1)]


def test_it_is_seen_saves_pauses_and_stops(bare, tool):
    seen = status(tool)
    name = seen["id"]

    saved = re.fullmatch(r"save: done after step (\d+)\n", tool("ctl", name, "save")[1])
    paused = re.fullmatch(r"pause: done after step (\d+)\n", tool("ctl", name, "pause")[1])
    held = status(tool)["ranks"]
    stacks = tool("stack", name)[1]
    tool("ctl", name, "resume")
    stopped = re.fullmatch(r"stop: done after step (\d+)\n", tool("ctl", name, "stop")[1])
    code, out, err = ended(bare)

    assert [(r["rank"], r["loss"] is not None, r["rss"] > 1 << 20) for r in seen["ranks"]] == [
        (0, True, True),
        (1, True, True),
    ]
    assert (seen["job"]["world_size"], seen["job"]["script"]) == (2, "script.py")
    assert {(r["steps"], r["state"]) for r in held} == {(int(paused[1]), "paused")}
    assert stacks.count("/script.py:13 in <module>\n") == 2
    assert code == 0
    assert sorted(re.findall(r"saved (\d+)", out), key=int) == [saved[1], saved[1], stopped[1], stopped[1]]
    assert f"disttrain: paused after step {paused[1]}, as asked by `disttrain ctl pause`\n" in err


def test_an_exception_is_said_to_be_the_cause(bare, tool, tmp_path):
    status(tool)

    (tmp_path / "raise").touch()
    code, _, err = ended(bare)

    assert code == 1
    assert err.count("Traceback") == 1, err
    assert re.search(
        r"^disttrain: rank 1 \(host \S+, pid \d+\) raised ValueError: bad batch\n"
        r"  where the ranks were:\n"
        r"    rank 0: for \d\.\d s in all_reduce\(.*\) at script.py:12 .*\n",
        err,
        re.MULTILINE,
    ), err
    (directory,) = bare.run_directories()
    report = json.loads((directory / "report.json").read_text())
    assert [(f["ranks"], f["what"]) for f in report["failures"]] == [([1], "raised ValueError: bad batch")]


def test_a_rank_that_is_killed_is_named(bare, tool):
    seen = status(tool)

    os.kill(seen["ranks"][1]["pid"], signal.SIGKILL)
    code, _, err = ended(bare)

    assert code != 0
    assert names_rank_1(err, seen)


def names_rank_1(err, seen):
    """Return whether the report has it; on a busy machine beside rank 0, as nothing tells then who was the first."""
    alone = f"disttrain: rank 1 (host {os.uname().nodename}, pid {seen['ranks'][1]['pid']}) has ended without a word"
    return alone in err or "or rank 1 did, gone at the same moment" in err


def test_ranks_that_are_found_dead_at_one_time_are_all_named(bare, tool):
    seen = status(tool)
    attendant = next(
        int(p.name)
        for p in Path("/proc").iterdir()
        if p.name.isdecimal() and b"disttrain.launcher.attendant" in (p / "cmdline").read_bytes()
    )

    ends = [os.pidfd_open(rank["pid"]) for rank in seen["ranks"]]
    os.kill(attendant, signal.SIGSTOP)
    os.kill(seen["ranks"][1]["pid"], signal.SIGKILL)
    for end in ends:  # mpiexec kills the other one
        assert select.select([end], [], [], 10)[0]
        os.close(end)
    os.kill(attendant, signal.SIGCONT)
    _, _, err = ended(bare)

    assert names_rank_1(err, seen)


def test_it_is_ended(bare, tool):
    name = status(tool)["id"]

    said = tool("kill", name)[:2]
    code, _, err = ended(bare)

    assert said == (0, f"job {name} has ended\n")
    assert code != 0
    assert "disttrain: stopped by disttrain kill\n" in err
    assert "without a word" not in err
