"""``ps``, ``top``, ``stack``, ``logs``, ``ctl`` and ``kill`` on real jobs."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from disttrain.launcher.see import ctl

TRAIN = """
    import sys, time
    import disttrain as dt
    from disttrain.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(dt.nn.Linear(4, 1))
    optimizer = dt.optim.SGD(model.parameters(), lr=1e-4)
    if "save" in sys.argv:
        dt.on_save(lambda: print("saved", optimizer._steps, flush=True))
    loader = dt.utils.data.DataLoader(dt.utils.data.TensorDataset(dt.ones(80, 4)), batch_size=4)
    print("ready", flush=True)
    while True:
        for (x,) in loader:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            dt.log(loss=loss)
    """


def ready(job, ranks: int = 2) -> None:
    for rank in range(ranks):
        if f"[{rank}] ready" not in job.unfolded:
            job.wait_for(rf"\[{rank}\] ready")


def status(tool) -> dict:
    code, out, _ = tool("ps", "--json")
    assert code == 0
    (line,) = out.splitlines()
    return json.loads(line)


def history(job) -> list[dict]:
    (directory,) = job.run_directories()
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


def commands(job) -> list[tuple[str, str]]:
    return [(e["command"], e["what"]) for e in history(job) if "command" in e]


@pytest.mark.parametrize("options", [("-n", "1"), ("-n", "2"), ("-n", "2", "--ranks", "4")])
def test_each_command_is_done_after_the_same_step_on_all_ranks(start, tool, options):
    ranks = int(options[-1])
    job = start(TRAIN, "launch", *options, args=("save",))
    job.wait_for("ready")
    while status(tool)["ranks"][-1]["steps"] == 0:
        pass
    name = status(tool)["id"]

    assert tool("ctl", name, "resume")[::2] == (1, "Error: resume is refused: the job is not paused\n")
    assert re.fullmatch(r"save: done after step \d+\n", tool("ctl", name, "save")[1])
    paused = int(re.fullmatch(r"pause: done after step (\d+)\n", tool("ctl", name, "pause")[1])[1])
    first, second = status(tool), status(tool)
    refused = tool("ctl", name, "save")
    assert tool("ctl", name, "resume")[1] == "resume: done\n"
    assert re.fullmatch(r"stop: done after step \d+\n", tool("ctl", name, "stop")[1])
    code, out, err = job.end()

    assert {r["steps"] for s in (first, second) for r in s["ranks"]} == {paused}
    assert {r["state"] for r in second["ranks"]} <= {"paused", "waits for its turn"}
    assert refused[::2] == (1, "Error: save is refused: the job is paused; resume it first\n")
    assert code == 0
    saved = re.findall(r"(?m)(?:^\[(\d)\] )?saved (\d+)$", out)
    steps = sorted({int(step) for _, step in saved})
    assert len(steps) == 2  # and at the stop
    assert sorted(saved) == sorted((str(r) if ranks > 1 else "", str(s)) for r in range(ranks) for s in steps)
    assert f"disttrain: stopped after step {steps[1]}, as asked by `disttrain ctl stop`\n" in err
    assert commands(job) == [
        ("resume", "refused: the job is not paused"),
        ("save", "asked"),
        ("save", "done"),
        ("pause", "asked"),
        ("pause", "done"),
        ("save", "refused: the job is paused; resume it first"),
        ("resume", "asked"),
        ("resume", "done"),
        ("stop", "asked"),
        ("stop", "done"),
    ]
    (directory,) = job.run_directories()
    report = json.loads((directory / "report.json").read_text())
    assert (report["code"], report["stopped_at"], report["failures"]) == (0, steps[1], [])


def test_a_script_that_does_not_say_how_to_save_is_not_asked_to(start, tool):
    job = start(TRAIN, "launch", "-n", "2")
    ready(job)
    name = status(tool)["id"]

    code, _, err = tool("ctl", name, "save")
    tool("ctl", name, "stop")

    why = "the script has not said how: no dt.on_save(callback) has been called on ranks 0-1"
    assert (code, err) == (1, f"Error: save is refused: {why}\n")
    assert job.end()[0] == 0
    assert commands(job)[0] == ("save", f"refused: {why}")


class Beginner:
    """A job whose ranks have said how to save when they are looked at for the third time."""

    running = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.looks = 0

    def ask(self, kind: str, **fields: str) -> dict:
        self.looks += kind == "status"
        can_save = self.looks >= 3
        if kind == "ctl":
            return {"done": can_save, "text": "the script has not said how"}
        ranks = [{"can_save": True, "steps": 0}, {"can_save": can_save, "steps": 0}]
        return {"job": {"pending": []}, "ranks": ranks}


def test_a_script_that_has_just_begun_may_take_a_moment_to_say_how_to_save(monkeypatch, tmp_path):
    (tmp_path / "history.jsonl").write_text('{"command":"save","what":"done","step":1}\n')
    monkeypatch.setattr("disttrain.launcher.see.find", lambda name: Beginner(tmp_path))

    done = CliRunner().invoke(ctl, ["a1b2", "save"])

    assert (done.exit_code, done.output) == (0, "save: done after step 1\n")


def test_ps_and_top_show_how_far_a_job_is(start, tool):
    job = start(TRAIN, "launch", "-n", "2")
    ready(job)
    while status(tool)["ranks"][1]["samples_per_second"] == 0:
        pass

    _, table, _ = tool("ps")
    _, screen, _ = tool("top")

    name = status(tool)["id"]
    head, row = table.splitlines()
    assert head.split() == ["JOB", "SCRIPT", "RANKS", "STEP", "LOSS", "SAMPLES/S", "MEMORY", "TIME", "STATE"]
    assert row.split()[:3] == [name, "script.py", "2"]
    assert int(row.split()[3]) > 0
    assert float(row.split()[4]) >= 0
    first, heads, zero, one, *rest = screen.splitlines()
    assert first.startswith(f"job {name}  script.py  2 ranks  0:00:")
    assert heads.split() == [
        *["RANK", "STEP", "LOSS", "SAMPLES/S", "DATA", "COMPUTE", "WAIT", "CPU", "MEMORY", "STATE", "CALL"]
    ]
    assert [line.split()[0] for line in (zero, one)] == ["0", "1"]
    assert "MiB" in zero
    assert rest[0].startswith(("slowest: rank ", "no rank is behind the others"))
    tool("kill", name)
    assert job.end()[0] == 143


def test_the_rank_that_reads_slowly_is_named_with_the_reason(start, tool):
    script = """
        import os, time
        import disttrain as dt
        from disttrain.nn.parallel import DistributedDataParallel

        class Data(dt.utils.data.Dataset):
            def __len__(self):
                return 80
            def __getitem__(self, i):
                time.sleep(0.05 * (os.environ["RANK"] == "1"))
                return dt.ones(4)

        model = DistributedDataParallel(dt.nn.Linear(4, 1))
        optimizer = dt.optim.SGD(model.parameters(), lr=1e-4)
        print("ready", flush=True)
        while True:
            for x in dt.utils.data.DataLoader(Data(), batch_size=2):
                model(x).sum().backward()
                optimizer.step()
        """
    job = start(script, "launch", "-n", "2")
    ready(job)
    while status(tool)["ranks"][0]["steps"] < 3:
        pass

    _, screen, _ = tool("top", "--once")

    assert re.search(r"slowest: rank 1, [\d.]+ times as long as the others, by data: ", screen)
    tool("kill", status(tool)["id"])
    job.end()


def test_stack_shows_python_also_of_a_stopped_process_and_of_one_in_native_code(start, tool):
    script = """
        import ctypes, os
        print("ready", os.getpid(), flush=True)
        def in_native_code():
            ctypes.PyDLL(None).sleep(60)  # holds the interpreter lock
        def in_python():
            while True:
                pass
        in_native_code() if os.environ["RANK"] == "0" else in_python()
        """
    job = start(script, "launch", "-n", "2")
    pid = int(job.wait_for(r"\[1\] ready (\d+)")[1])
    name = status(tool)["id"]
    os.kill(pid, signal.SIGSTOP)

    _, both, _ = tool("stack", name)
    code, _, err = tool("stack", name, "7")
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]

    native, stopped = both.split("rank 1 ")
    assert native.startswith("rank 0 (host ")
    assert re.search(r"script\.py:5 in in_native_code\n$", native)
    assert f"pid {pid}) is stopped (SIGSTOP)\n" in stopped
    assert re.search(r"script\.py:8 in in_python|script\.py:7 in in_python", stopped)
    assert state == "T"
    assert (code, err) == (1, "Error: there is no rank 7; the job has 2 ranks, from 0\n")
    tool("kill", name)
    job.end()


def test_stack_tells_ranks_of_one_process_apart(start, tool):
    script = """
        import os
        import numpy as np
        from disttrain import collectives
        comm = collectives.connect()
        def wait_here():
            comm.barrier()
        def compute_here():
            print("ready", flush=True)
            while True:
                pass
        wait_here() if comm.rank != 1 else compute_here()
        """
    job = start(script, "launch", "-n", "1", "--ranks", "2")
    job.wait_for("ready")

    _, out, _ = tool("stack")

    zero, one = out.split("rank 1 ")
    assert "in barrier() at script.py:7" in zero
    assert "in wait_here" in zero
    assert "in compute_here" in one
    tool("kill", status(tool)["id"])
    job.end()


def test_logs_print_one_rank_or_all_also_of_a_job_that_has_failed(start, tool):
    script = """
        import os
        print("both", flush=True)
        print("rank", os.environ["RANK"], flush=True)
        raise SystemExit(3)
        """
    job = start(script, "launch", "-n", "2")
    assert job.end()[0] == 3
    (directory,) = job.run_directories()

    assert tool("logs", directory.name, "1")[1] == "both\nrank 1\n"
    assert tool("logs", directory.name[:6])[1] == "[0] both\n[0] rank 0\n[1] both\n[1] rank 1\n"
    assert tool("logs", directory.name, "5")[1:] == ("", "rank 5 has printed nothing\n")


def test_logs_follow_a_job_to_its_end(start, tool, runtime):
    job = start(TRAIN, "launch", "-n", "2", args=("save",))
    ready(job)
    name = status(tool)["id"]
    reader = subprocess.Popen(
        [sys.executable, "-m", "disttrain", "logs", name, "0", "-f"],
        env=os.environ | {"XDG_RUNTIME_DIR": str(runtime)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None
    while reader.stdout.readline() != "ready\n":  # it has said first how its ranks communicate
        assert reader.poll() is None

    tool("ctl", name, "stop")

    assert re.fullmatch(r"saved \d+\n", reader.communicate(timeout=20)[0])
    assert job.end()[0] == 0


def test_kill_ends_a_job_whose_launcher_does_not_answer(start, tool):
    job = start(TRAIN, "launch", "-n", "2")
    ready(job)
    name = status(tool)["id"]
    job.process.send_signal(signal.SIGSTOP)

    code, out, _ = tool("kill", name)

    assert code == 0
    assert f"the launcher (pid {job.process.pid}) does not answer: it is killed" in out
    job.process.communicate(timeout=10)
    job.assert_nothing_left()
    assert tool("ps")[1].splitlines()[1:] == []


def test_kill_is_said_on_the_terminal_of_the_job(start, tool):
    job = start(TRAIN, "launch", "-n", "2")
    ready(job)

    code, out, _ = tool("kill", status(tool)["id"])

    assert (code, out.endswith("has ended\n")) == (0, True)
    code, _, err = job.end()
    assert code == 143
    assert "disttrain: stopped by disttrain kill" in err


def test_a_job_is_known_by_the_beginning_of_its_id_and_needs_none_if_it_is_the_only_one(start, tool):
    code, _, err = tool("stack")
    assert (code, err) == (1, "Error: no job runs here\n")
    script = "import threading; print('ready', flush=True); threading.Event().wait()"
    jobs = [start(script, "launch") for _ in range(2)]
    for job in jobs:
        job.wait_for("ready")
    names = [json.loads(line)["id"] for line in tool("ps", "--json")[1].splitlines()]

    code, _, err = tool("top")

    assert (code, "which job? There are " in err) == (1, True)
    unknown = tool("kill", "x")[2]
    assert unknown == f"Error: no job 'x' runs here; those that do: {', '.join(names)}\n"
    assert tool("kill", names[0][:8])[0] == 0
    assert [json.loads(line)["id"] for line in tool("ps", "--json")[1].splitlines()] == names[1:]
    assert "in <module>" in tool("stack")[1]
    tool("kill", names[1])
    for job in jobs:
        assert job.process.wait(10) == 143


def test_a_job_that_has_ended_is_named_to_who_looks_for_it(start, tool):
    job = start("raise SystemExit(3)", "launch")
    assert job.end()[0] == 3
    (directory,) = job.run_directories()
    name = directory.name

    said = [tool(*command)[2] for command in (["logs"], ["stack"], ["kill", name[:6]], ["kill", "x"])]

    assert said == [
        f"Error: no job runs here; ended, with logs: {name}\n",
        "Error: no job runs here\n",
        f"Error: no job {name[:6]!r} runs here; ended, with logs: {name}\n",
        "Error: no job 'x' runs here\n",
    ]


def test_a_job_whose_nodes_have_not_joined_is_seen_and_ended(start, tool, tmp_path):
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\necho trying >&2\nexec sleep 100\n")
    ssh.chmod(0o755)
    job = start("", "launch", "--hosts", "localhost:1,127.0.0.2:2", "--ssh", str(ssh))
    job.wait_for("trying", on_stderr=True)

    table, screen, stack = (tool(command) for command in ("ps", "top", "stack"))
    name = table[1].splitlines()[1].split()[0]
    saved = tool("ctl", name, "save")
    ended = tool("kill", name)

    assert re.fullmatch(rf"{name} +script.py +- +0 +.* no rank runs now", table[1].splitlines()[1])
    assert [line.strip() for line in screen[1].splitlines()][1:] == ["no rank runs now"]
    assert stack[::2] == (1, "Error: no rank runs now\n")
    assert saved[::2] == (1, "Error: save is refused: no rank runs now\n")
    assert ended[0] == 0
    assert job.end()[0] == 143


def test_a_history_has_what_each_rank_logs(start):
    script = """
        import os
        import disttrain as dt
        dt.log(loss=float(os.environ["RANK"]), note=7)
        """
    job = start(script, "launch", "-n", "2")

    code, _, err = job.end()

    assert code == 0
    entries = sorted(history(job), key=lambda e: e["rank"])
    assert [(e["rank"], e["step"], e["log"]) for e in entries] == [
        (0, 0, {"loss": 0.0, "note": 7}),
        (1, 0, {"loss": 1.0, "note": 7}),
    ]
    (directory,) = job.run_directories()
    assert err == f"disttrain: history of the run in {directory}\n"
