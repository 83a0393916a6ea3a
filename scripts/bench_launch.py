"""How long the launcher takes: to start, to restart, to end a job that has failed; and what it needs while it waits.

python scripts/bench_launch.py
"""

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

COMMAND = [sys.executable, "-m", "disttrain"]
FIRST_LINE = "import os, time; print('first', time.time(), os.getpid(), flush=True)\n"
WAITS = FIRST_LINE + "import os, signal; print('pid', os.getpid(), flush=True); signal.pause()\n"
TRAINS = """
import os, sys
import disttrain as dt
from disttrain import nn

data = dt.data.TensorDataset(dt.randn(960, 1, 8, 8), dt.randint(0, 5, (960,)))
loader = dt.data.DataLoader(data, batch_size=8, shuffle=True)
layers = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
model = nn.parallel.DistributedDataParallel(layers)
optimizer = dt.optim.AdamW(model.parameters())
run = {"model": model, "optimizer": optimizer, "loader": loader}
last = dt.checkpoint.load("run", **run)
step = begun = last.step if last else 0
while True:
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        step += 1
        if step == begun + 1:
            print("stepping", os.getpid(), flush=True)
        if step % 5 == 0:
            dt.checkpoint.save("run", step=step, **run)
        if step == begun + 12:  # two saves on, the first is on the disk
            print("saved", os.getpid(), flush=True)
"""
"""Goes on from its checkpoint."""
KILLS = 10
WATCHED = 10.0
"""Seconds for which the launcher of idle ranks is watched."""


class Job:
    """A job that runs ``text`` on ``ranks``."""

    def __init__(self, folder: Path, text: str, ranks: int, *options: str) -> None:
        script = folder / "script.py"
        script.write_text(text)
        self.began = time.time()
        self.process = subprocess.Popen(
            [*COMMAND, "launch", "-n", str(ranks), *options, str(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=folder,
        )

    def read(self, pattern: str, times: int) -> list[str]:
        """Return what ``pattern`` finds in the next lines that match, so many."""
        assert self.process.stdout is not None
        found: list[str] = []
        for line in self.process.stdout:
            if match := re.search(pattern, line):
                found.append(match[1])
                if len(found) == times:
                    return found
        raise RuntimeError(
            f"the job has ended with {self.process.wait()} and printed {pattern!r} {len(found)} times"
        )

    def end(self) -> float:
        """Return when the job has ended."""
        self.process.communicate(timeout=60)
        return time.time()


def times(measure: Callable[[], float], repeats: int = 5) -> str:
    found = sorted(measure() for _ in range(repeats))
    return f"{statistics.median(found):6.2f} s   ({found[0]:.2f} to {found[-1]:.2f})"


def help_page() -> float:
    began = time.time()
    subprocess.run([*COMMAND, "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.time() - began


def start(folder: Path, ranks: int) -> float:
    job = Job(folder, FIRST_LINE, ranks)
    last = max(map(float, job.read(r"first (\S+)", ranks)))
    job.end()
    return last - job.began


def restart(folder: Path) -> float:
    job = Job(folder, WAITS, 2, "--max-restarts", "1")
    pids = job.read(r"pid (\d+)", 2)
    killed = time.time()
    os.kill(int(pids[0]), signal.SIGKILL)
    last = max(map(float, job.read(r"first (\S+)", 2)))
    job.process.send_signal(signal.SIGINT)
    job.end()
    return last - killed


def recoveries(folder: Path) -> str:
    """Return how long it takes from the kill of a rank until all make steps again, each of so many times."""
    job = Job(folder, TRAINS, 2, "--max-restarts", str(KILLS))
    pids = job.read(r"stepping (\d+)", 2)
    found = []
    for kill in range(KILLS):
        job.read(r"saved (\d+)", 2)
        killed = time.time()
        os.kill(int(pids[kill % 2]), signal.SIGKILL)
        pids = job.read(r"stepping (\d+)", 2)
        found.append(time.time() - killed)
    job.process.send_signal(signal.SIGINT)
    job.end()
    return times(iter(found).__next__, KILLS)


def end_after(folder: Path, signal_of_rank: int | None, signal_of_launcher: int | None) -> float:
    job = Job(folder, WAITS, 2)
    pids = job.read(r"pid (\d+)", 2)
    began = time.time()
    if signal_of_rank is not None:
        os.kill(int(pids[1]), signal_of_rank)
    if signal_of_launcher is not None:
        job.process.send_signal(signal_of_launcher)
    job.end()
    while any(map(runs, pids)):  # a launcher that is killed waits for nobody
        os.sched_yield()
    return time.time() - began


def runs(pid: str) -> bool:
    """Return whether the process is there, and not only its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


def exception(folder: Path) -> float:
    job = Job(
        folder,
        FIRST_LINE + "import os, signal\nos.environ['RANK'] == '1' or signal.pause()\nraise KeyError\n",
        2,
    )
    last = max(map(float, job.read(r"first (\S+)", 2)))
    return job.end() - last


def idle(folder: Path, ranks: int) -> str:
    job = Job(folder, WAITS, ranks)
    job.read(r"pid (\d+)", ranks)
    before = cpu_seconds(job.process.pid)
    time.sleep(WATCHED)
    used = cpu_seconds(job.process.pid) - before
    job.process.send_signal(signal.SIGINT)
    job.end()
    return f"{100 * used / WATCHED:6.2f} % of a core"


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows: list[tuple[str, Callable[[], float]]] = [
            ("disttrain --help", help_page),
            ("from the command to the first line of 1 rank", lambda: start(folder, 1)),
            ("from the command to the first line of 4 ranks", lambda: start(folder, 4)),
            ("from kill -9 to the first line of the restart", lambda: restart(folder)),
            ("from kill -9 of a rank to the end", lambda: end_after(folder, signal.SIGKILL, None)),
            ("from an exception in a rank to the end", lambda: exception(folder)),
            ("from Ctrl-C to the end", lambda: end_after(folder, None, signal.SIGINT)),
            (
                "from kill -9 of the launcher to the last rank",
                lambda: end_after(folder, None, signal.SIGKILL),
            ),
        ]
        for what, measure in rows:
            print(f"{what:50}{times(measure)}", flush=True)
        with tempfile.TemporaryDirectory() as name:
            print(f"{'from kill -9 of a rank to steps from a checkpoint':50}{recoveries(Path(name))}")
        print(f"{'launcher of 64 ranks that sleep':50}{idle(folder, 64)}")


if __name__ == "__main__":
    main()
