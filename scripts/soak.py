#!/usr/bin/env python3
"""Injure a training job again and again, and see whether it ends as one that nobody touched.

    scripts/soak.py --minutes 20 --seed 0

A job of three ranks trains, saves every few steps, and is restarted by its launcher. Every 5 to 15 seconds something
happens to it, drawn from the seed: a rank is killed, ends by itself, is stopped for good or for a moment; the launcher
is killed, or told to save and stop, and started again; the latest checkpoint is damaged. Afterwards the same training
runs undisturbed. The last lines say what happened and what it cost; the exit code is 0 if the parameters are equal to
the last bit, each sample was used once in every epoch, and nothing is left of the job.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from disttrain import checkpoint
from disttrain.checkpoint import folder

ROOT = Path(__file__).resolve().parents[1]
RANKS = 3
_ENDS = (-signal.SIGKILL, -signal.SIGTERM, 143, 75)
"""How a launcher may end that was killed, told to stop before it had begun, before its script could save, and after.

One that was told to stop while a rank was stopped or killed ends as that rank does, with 128 and the signal's number.
"""
TRAIN = """
import hashlib, json, os, sys, time
import disttrain as dt
from disttrain import nn

folder, journal, steps, fallback = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "fallback"
dt.manual_seed(0)
data = dt.data.TensorDataset(dt.randn(301, 1, 8, 8), dt.randint(0, 5, (301,)))
loader = dt.data.DataLoader(data, batch_size=4, shuffle=True)
layers = nn.Sequential(
    nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(288, 5)
)
model = nn.parallel.DistributedDataParallel(layers)
optimizer = dt.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = dt.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
optimizer.register_step_post_hook(lambda *_: scheduler.step())  # part of the step: before a save that is asked for
run = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}
last = dt.checkpoint.load(folder, fallback=fallback, **run)
step = last.step if last else 0
first = dt.distributed.get_rank() == 0

def tell(**what):
    if first:
        with open(journal, "a") as file:
            file.write(json.dumps({"time": time.monotonic(), **what}) + "\\n")

def save():
    dt.checkpoint.save(folder, step=step, keep_last=4, **run)

tell(began=step)
dt.on_save(save)
while step < steps:
    for images, labels in loader:
        step += 1
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        time.sleep(0.01)  # a step takes a while
        if step % 20 == 0 or step == steps:
            save()
        tell(step=step)
        if step == steps:
            break
dt.checkpoint.wait()
if first:
    state = b"".join(v.numpy().tobytes() for v in model.state_dict().values())
    tell(digest=hashlib.sha256(state).hexdigest())
"""


class Job:
    """The job under test: a launcher that is started again when it has ended before its time.

    Args:
        top: a folder for its script, its checkpoints, and the journal of its steps.
        steps: that it makes.
        fallback: whether it may go on from the checkpoint before a damaged one.
    """

    def __init__(self, top: Path, steps: int, fallback: bool) -> None:
        top.mkdir()
        self.checkpoints = top / "run"
        self.journal = top / "journal"
        self.mark = f"DISTTRAIN_SOAK={uuid.uuid4().hex}"
        self.starts = 0
        self.damaged: set[str] = set()
        (top / "train.py").write_text(TRAIN)
        self._top = top
        self._args = [
            str(self.checkpoints),
            str(self.journal),
            str(steps),
            "fallback" if fallback else "strict",
        ]
        self._log = (top / "log").open("ab")
        self.start()

    def start(self) -> None:
        """Start its launcher, again."""
        self.starts += 1
        self.preempted = False
        name, value = self.mark.split("=")
        self.launcher = subprocess.Popen(
            [sys.executable, "-m", "disttrain", "launch", "-n", str(RANKS), "--max-restarts", "1000",
             str(self._top / "train.py"), *self._args],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", name: value},
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, cwd=self._top,
        )  # fmt: skip

    def told(self) -> list[dict[str, float]]:
        """Return what the first rank has told of itself; a line that a kill has cut is no line."""
        if not self.journal.exists():
            return []
        lines = self.journal.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def processes(self) -> dict[int, psutil.Process]:
        """Return all that runs with the job's mark."""
        found = {}
        for process in psutil.process_iter():
            try:
                if self.mark.encode() in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                    found[process.pid] = process
            except OSError:
                continue
        return found

    def ranks(self) -> list[int]:
        """Return the processes of its ranks."""
        found = []
        for pid, process in self.processes().items():
            try:
                if "disttrain.launcher.worker" in process.cmdline():
                    found.append(pid)
            except psutil.Error:
                continue
        return sorted(found)


def kill_rank(job: Job, rng: random.Random) -> None:
    _signal(rng.choice(job.ranks()), signal.SIGKILL)


def kill_all_ranks(job: Job, rng: random.Random) -> None:
    for pid in job.ranks():
        _signal(pid, signal.SIGKILL)


def crash_rank(job: Job, rng: random.Random) -> None:
    _signal(rng.choice(job.ranks()), signal.SIGSEGV)


def abort_rank(job: Job, rng: random.Random) -> None:
    _signal(rng.choice(job.ranks()), signal.SIGABRT)


def stop_rank(job: Job, rng: random.Random) -> None:
    _signal(rng.choice(job.ranks()), signal.SIGSTOP)


def pause_rank(job: Job, rng: random.Random) -> None:
    pid = rng.choice(job.ranks())
    _signal(pid, signal.SIGSTOP)
    time.sleep(2)
    _signal(pid, signal.SIGCONT)


def kill_launcher(job: Job, rng: random.Random) -> None:
    job.launcher.kill()


def preempt(job: Job, rng: random.Random) -> None:
    job.preempted = True
    job.launcher.terminate()


def damage_checkpoint(job: Job, rng: random.Random) -> None:
    """Flip a bit of the latest checkpoint, and kill the job, so that it is read."""
    known = folder.places(str(job.checkpoints))
    if len(known) < 3 or {p.path for p in known[:-1]} & job.damaged == {p.path for p in known[:-1]}:
        raise LookupError("too few checkpoints to damage one")
    path = Path(known[-1].path)
    file = rng.choice(sorted(path.glob("part-*")))
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content) // 2, len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    job.damaged.add(str(path))
    kill_all_ranks(job, rng)


FAULTS: dict[Callable[[Job, random.Random], None], int] = {
    kill_rank: 5,
    kill_all_ranks: 2,
    crash_rank: 2,
    abort_rank: 1,
    stop_rank: 1,
    pause_rank: 2,
    kill_launcher: 2,
    preempt: 2,
    damage_checkpoint: 2,
}
"""How often each is drawn, in proportion."""


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        raise LookupError("the rank has just ended") from None


def soak(job: Job, minutes: float, pause: list[float], rng: random.Random) -> Counter[str]:
    """Injure a job for so long, then let it end; return how often each fault was injected.

    Args:
        job: is running.
        minutes: for which faults are injected.
        pause: how many seconds there are at least and at most from one to the next.
        rng: what is drawn from.
    """
    done: Counter[str] = Counter()
    end = time.monotonic() + 60 * minutes
    next_fault = time.monotonic() + rng.uniform(*pause)
    while True:
        code = job.launcher.poll()
        if code == 0 and any("digest" in line for line in job.told()):
            return done
        if code is not None:
            told_in_vain = job.preempted and code > 128
            if not (code in _ENDS or told_in_vain) or time.monotonic() > end + 300:
                raise SystemExit(f"the job ended with exit code {code}; see {job.journal.parent}/log")
            while job.processes():  # they die with their launcher
                time.sleep(0.05)
            job.start()
        if next_fault < time.monotonic() < end:
            fault = rng.choices(list(FAULTS), list(FAULTS.values()))[0]
            try:
                fault(job, rng)
            except (LookupError, IndexError):  # between two generations there is nobody to hurt
                next_fault = time.monotonic() + 0.5
                continue
            name = fault.__name__.replace("_", " ")
            done[name] += 1
            print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
            next_fault = time.monotonic() + rng.uniform(*pause)
        time.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--pause", type=float, nargs=2, default=[5.0, 15.0], help="seconds from one fault to the next"
    )
    parser.add_argument("--steps", type=int, help="of the training; by default as many as fill the time")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    top = Path(tempfile.mkdtemp(prefix="disttrain-soak-"))
    steps = args.steps
    if steps is None:  # a calm run of a few says how long one takes
        probe = Job(top / "probe", 200, False)
        probe.launcher.wait()
        steps = max(400, int(0.6 * 60 * args.minutes / seconds_of_a_step(probe)))
    print(f"{steps} steps on {RANKS} ranks, seed {args.seed}", flush=True)

    job = Job(top / "hurt", steps, True)
    began = time.monotonic()
    done = soak(job, args.minutes, args.pause, rng)
    took = time.monotonic() - began
    left = job.processes()
    calm = Job(top / "calm", steps, False)
    if calm.launcher.wait() != 0:
        raise SystemExit(f"the undisturbed run failed; see {top}/calm/log")
    return report(job, calm, done, took, steps * seconds_of_a_step(calm), len(left))


def seconds_of_a_step(job: Job) -> float:
    """Return how long a step of a job takes that nobody disturbs; its first steps are not counted."""
    told = [line["time"] for line in job.told() if "step" in line][20:]
    return (told[-1] - told[0]) / (len(told) - 1)


def report(job: Job, calm: Job, done: Counter[str], took: float, needed: float, left: int) -> int:
    """Print what happened; return the exit code."""
    generations = lost = reached = 0
    for line in job.told():
        if "began" in line:
            generations += 1
            lost += int(max(0, reached - line["began"]))
        reached = int(line.get("began", line.get("step", reached)))
    digests = [{line["digest"] for line in run.told() if "digest" in line} for run in (job, calm)]
    equal = digests[0] == digests[1] and len(digests[0]) == 1
    print(f"faults: {sum(done.values())} ({', '.join(f'{n} {name}' for name, n in done.most_common())})")
    print(f"restarts: {generations - 1}, {job.starts - 1} of them of the launcher")
    print(f"steps: {reached}, {lost} made again; damaged checkpoints: {len(job.damaged)}")
    print(f"effective training time: {100 * needed / took:.1f} % of {took:.0f} s")
    print(f"processes left: {left}")
    samples = checkpoint.ledgers(job.checkpoints)["loader"]
    for line in samples.lines():
        print(f"samples: {line}")
    print(
        "parameters: "
        + ("equal to the undisturbed run's" if equal else "DIFFERENT from the undisturbed run's")
    )
    return 0 if equal and samples.whole and not left else 1


if __name__ == "__main__":
    sys.exit(main())
