"""Jobs of batch systems: the scripts, and a real Slurm."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm

from disttrain.launcher.batch import BatchJob, Submitted, parse_time, pbs_script, slurm_script
from disttrain.launcher.config import ConfigError

ROOT = Path(__file__).resolve().parents[2]
DISTTRAIN = (sys.executable, "-m", "disttrain")


def job(**changes: object) -> BatchJob:
    fields = {
        "nodes": 4,
        "seconds": 7200,
        "command": ("train.py", "--lr", "0.1"),
        "name": "train",
        "folder": "/home/me/my work",
    }
    return BatchJob(**fields | changes)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h", 7200),
        ("90m", 5400),
        ("1d12h", 129600),
        ("02:00:00", 7200),
        ("30:00", 1800),
        ("1-00:00:00", 86400),
    ],
)
def test_times_are_read(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "30s", "0h", "2 h", "-1h", "1:2:3:4"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ConfigError, match="--time must be a minute or more"):
        parse_time(text)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nodes": 0}, "--nodes must be at least 1, got 0"),
        ({"seconds": 100}, "--warning 120 is not before the end"),
        ({"name": "a b"}, "--name must begin with a letter"),
        ({"queue": "x\n#SBATCH --uid=0"}, "cannot have several lines"),
    ],
)
def test_what_cannot_be_is_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        job(**changes)


def test_the_script_for_slurm_asks_for_what_was_asked_for():
    script = slurm_script(job(gpus_per_node=8, queue="fast", account="us", options=("--constraint=a100",)))

    directives = re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)
    assert directives == [
        "--job-name=train",
        "--nodes=4",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--time=0-02:00:00",
        "--partition=fast",
        "--account=us",
        "--chdir='/home/me/my work'",
        "--output='/home/me/my work/train-%j.log'",
        "--open-mode=append",
        "--requeue",
        "--signal=B:USR1@120",
        "--constraint=a100",
    ]
    assert f"{sys.executable} -m disttrain launch train.py --lr 0.1 &\n" in script


def test_the_script_for_pbs_asks_for_what_was_asked_for():
    script = pbs_script(job(gpus_per_node=2, processes_per_node=4))

    directives = re.findall(r"^#PBS (.*)$", script, re.MULTILINE)
    assert directives == [
        "-N train",
        "-l select=4:ncpus=4:mpiprocs=4:ngpus=2",
        "-l place=scatter",
        "-l walltime=02:00:00",
        "-j oe",
        "-o '/home/me/my work/train.log'",
        "-k oed",
        "-r y",
    ]


def test_the_script_for_pbs_runs_the_job_and_submits_it_again_when_it_asks_for_that(tmp_path):
    (tmp_path / "train.py").write_text(
        "import sys\nprint('trained', sys.argv[1:])\nsys.exit(int(sys.argv[1]))\n"
    )
    (tmp_path / "nodes").write_text(f"{socket.gethostname()}\n")
    qsub = tmp_path / "bin" / "qsub"
    qsub.parent.mkdir()
    qsub.write_text(f'#!/bin/sh\necho "again: $*" >> {tmp_path}/submitted\n')
    qsub.chmod(0o755)
    environ = os.environ | {
        "PATH": f"{qsub.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_RUNTIME_DIR": str(tmp_path),
        "PBS_JOBID": "7.server",
        "PBS_NODEFILE": str(tmp_path / "nodes"),
    }

    def run(code: str) -> subprocess.CompletedProcess[str]:
        script = pbs_script(job(folder=str(tmp_path), command=("train.py", code)))
        return subprocess.run(["bash"], input=script, env=environ, capture_output=True, text=True, timeout=60)

    whole, again = run("0"), run("75")

    assert (whole.returncode, again.returncode) == (0, 75), again.stderr
    assert "found PBS job 7.server: 1 node" in whole.stderr
    assert "trained ['0']" in whole.stdout
    assert (tmp_path / "submitted").read_text() == f"again: {tmp_path}/train.pbs\n"


def test_only_numbers_of_jobs_submitted_here_are_known(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    Submitted("slurm", "17", "/x.log", "/x", ("train.py",)).save()

    assert Submitted.load("17") == Submitted("slurm", "17", "/x.log", "/x", ("train.py",))
    assert Submitted.load("18") is None
    assert Submitted.load("../submitted/17") is None


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Slurm]:
    if reason := slurm.why_not():
        pytest.skip(reason)
    with slurm.Slurm(2, tmp_path_factory.mktemp("slurm")) as cluster:
        cluster.env |= {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(cluster.folder)}
        yield cluster


def submit(batch: slurm.Slurm, script: str, *options: str) -> tuple[str, Path]:
    (batch.folder / "script.py").write_text(script)
    done = batch.run(*DISTTRAIN, "submit", "--on", "slurm", "--time", "10m", *options, "script.py")
    match = re.fullmatch(r"job (\d+), log in (.*)\n", done.stdout)
    assert match is not None, done.stderr
    return match[1], Path(match[2])


def test_a_dry_run_submits_nothing(batch):
    (batch.folder / "script.py").write_text("")

    done = batch.run(*DISTTRAIN, "submit", "--on", "slurm", "--time", "2h", "--dry-run", "script.py")

    assert done.stdout.startswith("#!/bin/bash\n#SBATCH --job-name=script\n")
    assert batch.run("squeue", "--noheader").stdout == ""


@pytest.mark.mpi
def test_a_job_runs_on_its_nodes_and_its_log_is_followed_to_the_end(batch):
    number, log = submit(
        batch,
        "import os, disttrain as dt\nfrom disttrain import distributed as dist\ndist.init_process_group()\n"
        "print('rank', dist.get_rank(), 'of', dist.get_world_size(), os.environ['SLURMD_NODENAME'])\n",
        *("--nodes", "2", "-n", "2"),
    )

    followed = batch.run(*DISTTRAIN, "logs", "-f", number)

    assert sorted(re.findall(r"rank \d of 4 n\d", followed.stdout)) == [
        f"rank {rank} of 4 n{rank // 2 + 1}" for rank in range(4)
    ], followed
    assert followed.stdout == log.read_text()
    said = batch.run(*DISTTRAIN, "status", number).stdout
    assert re.match(r"COMPLETED: .* on n\[1-2\], exit code 0\nscript.py", said), said


def test_a_job_is_cancelled(batch):
    number, _ = submit(batch, "import time\nprint('begun', flush=True)\ntime.sleep(300)\n")

    cancelled = batch.run(*DISTTRAIN, "cancel", number)

    assert (cancelled.returncode, cancelled.stdout) == (0, f"job {number} is cancelled\n"), cancelled.stderr
    batch.run(*DISTTRAIN, "logs", "-f", number)  # to its end
    assert batch.run(*DISTTRAIN, "status", number).stdout.startswith("CANCELLED")


@pytest.mark.slow
def test_a_job_that_asks_for_it_goes_back_into_the_queue(batch):
    number, log = submit(
        batch,
        "import os, sys\nagain = os.environ.get('SLURM_RESTART_COUNT', '0')\n"
        "print('run', again, flush=True)\nsys.exit(75 if again == '0' else 0)\n",
    )

    batch.run(*DISTTRAIN, "logs", "-f", number)
    said = batch.run(*DISTTRAIN, "status", number).stdout

    assert said.startswith("COMPLETED: "), log.read_text()
    assert "put back into the queue 1 times" in said
    assert re.findall(r"^run \d", log.read_text(), re.MULTILINE) == ["run 0", "run 1"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["warned", "preempted"])
def test_a_job_that_loses_its_nodes_saves_and_goes_on_later(batch, how):
    number, log = submit(
        batch,
        """
import os
import disttrain as dt
from disttrain import nn

if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
    print("going on", flush=True)
    raise SystemExit
model = nn.Linear(2, 2)
optimizer = dt.optim.SGD(model.parameters(), lr=0.1)
dt.on_save(lambda: print("saved", flush=True))
step = 0
while True:
    optimizer.zero_grad()
    model(dt.ones(1, 2)).sum().backward()
    optimizer.step()
    step += 1
    if step == 3:
        print("stepping", flush=True)
""",
        *("--nodes", "1"),
    )
    with subprocess.Popen(
        [*DISTTRAIN, "logs", "-f", number], env=os.environ | batch.env, stdout=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        for line in following.stdout:
            if line.startswith("stepping"):
                break
        if how == "warned":
            batch.run("scancel", "--batch", "--signal=USR1", number)
        else:
            batch.run("srun", "--partition=high", "-N2", "--exclusive", "true")
        following.stdout.read()

    said, text = batch.run(*DISTTRAIN, "status", number).stdout, log.read_text()
    assert said.startswith("COMPLETED: "), text
    assert "put back into the queue 1 times" in said
    assert re.findall(r"^(?:stepping|saved|going on)$", text, re.MULTILINE) == [
        "stepping",
        "saved",
        "going on",
    ]


def test_a_job_that_nobody_submitted_is_not_known(batch):
    unknown = batch.run(*DISTTRAIN, "status", "4711")

    assert unknown.returncode == 2
    assert "no job '4711' has been submitted from here" in unknown.stderr
