"""Telling a process that the kernel has killed for want of memory from one that somebody has killed."""

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from disttrain.launcher.memory import MemoryWatch

PID = 4711


def machine(root: Path, cgroup: str, counters: dict[str, str], *, system: int = 0) -> Path:
    """Write the kernel's files for a process ``PID`` and for this one."""
    for pid in (PID, os.getpid()):
        (root / f"proc/{pid}").mkdir(parents=True, exist_ok=True)
        (root / f"proc/{pid}/cgroup").write_text(cgroup)
    (root / "proc/vmstat").write_text(f"nr_free_pages 1\noom_kill {system}\n")
    for name, text in counters.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


V1 = "9:name=systemd:/\n4:memory:/job\n0::/\n"
V2 = "0::/job.slice\n"


@pytest.mark.parametrize(
    ("cgroup", "counter", "limit"),
    [
        (V1, "memory/job/memory.oom_control", "memory/job/memory.limit_in_bytes"),
        (V2, "job.slice/memory.events", "job.slice/memory.max"),
    ],
)
def test_a_counter_of_the_control_group_tells(tmp_path, cgroup, counter, limit):
    machine(tmp_path, cgroup, {counter: "under_oom 0\noom_kill 2\n", limit: f"{300 << 20}\n"})
    watch = MemoryWatch(tmp_path)
    watch.note(PID)
    before = watch.explain(PID)

    machine(tmp_path, cgroup, {counter: "under_oom 0\noom_kill 3\n"})

    assert before == ""
    assert watch.explain(PID) == (
        "out of memory: the kernel counts a process killed for the limit of its control group, 300 MiB"
    )


def test_without_a_limit_the_machine_is_full(tmp_path):
    machine(tmp_path, V2, {"job.slice/memory.events": "oom_kill 0\n", "job.slice/memory.max": "max\n"})
    watch = MemoryWatch(tmp_path)

    machine(tmp_path, V2, {"job.slice/memory.events": "oom_kill 1\n"})

    assert watch.explain(PID).endswith("for the limit of the machine")


def test_where_there_is_no_control_group_the_machines_counter_is_a_hint(tmp_path):
    watch = MemoryWatch(machine(tmp_path, "", {}, system=5))
    assert watch.explain(PID) == ""

    machine(tmp_path, "", {}, system=6)

    assert watch.explain(PID).startswith("probably out of memory")


def test_the_kernels_log_names_the_process(tmp_path):
    machine(tmp_path, "", {})
    (tmp_path / "dev").mkdir()
    log = tmp_path / "dev/kmsg"
    log.write_text("3,1,1,-;Memory cgroup out of memory: Killed process 1 (python) anon-rss:1kB\n")
    watch = MemoryWatch(tmp_path)
    with log.open("a") as f:
        f.write(
            f"3,2,2,-;Memory cgroup out of memory: Killed process {PID} (python) total-vm:9kB, anon-rss:204800kB\n"
        )

    assert watch.explain(1) == ""  # before our time
    assert watch.explain(PID) == "out of memory: the kernel killed it at 200 MiB, the limit of the machine"
    watch.close()


@pytest.fixture
def small_group():
    """A control group (version 1) with 150 MiB, where the superuser may make one."""
    line = next((x for x in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in x), None)
    if line is None or os.geteuid() != 0:
        pytest.skip("needs the memory controller of cgroup version 1, and to be root")
    folder = Path("/sys/fs/cgroup/memory" + line.split(":")[2]) / f"disttrain-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text(str(150 << 20))
    yield folder
    folder.rmdir()


def test_a_rank_that_the_kernel_kills_for_memory_is_told_as_such(small_group, tmp_path, runtime):
    (tmp_path / "script.py").write_text(
        "import os, signal\nkept = []\n"
        "while os.environ['RANK'] == '1':\n    kept.append(bytearray(10 << 20))\n"
        "signal.pause()\n"
    )
    command = [sys.executable, "-m", "disttrain", "launch", "-n", "2", "script.py"]
    job = subprocess.run(
        ["sh", "-c", f'echo $$ > {small_group}/cgroup.procs; exec "$@"', "sh", *command],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "XDG_RUNTIME_DIR": str(runtime)},
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert job.returncode == 128 + signal.SIGKILL
    assert "disttrain: rank 1 (host " in job.stderr
    assert "was killed by SIGKILL (out of memory: the kernel " in job.stderr
    assert "the limit of its control group, 150 MiB)" in job.stderr
