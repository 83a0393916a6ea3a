"""Batch systems: the script of a job, and asking after it. The commands are in ``disttrain.launcher.submit``."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from disttrain.launcher.config import ConfigError

SYSTEMS: Final = ("slurm", "pbs")
REQUEUE: Final = 75
"""Exit code of a job that has saved and wants to go on later: ``EX_TEMPFAIL`` of sysexits(3)."""
_ENDED: Final = re.compile(
    r"BOOT_FAIL|CANCELLED|COMPLETED|DEADLINE|FAILED|NODE_FAIL|OUT_OF_MEMORY|REVOKED|TIMEOUT|finished"
)
_POLL: Final = 1.0  # seconds between two questions to the batch system
_TIME: Final = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_CLOCK: Final = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)")
_NAME: Final = re.compile(r"[A-Za-z][\w.+-]{0,63}")


def parse_time(text: str) -> int:
    """Return the seconds in ``2h``, ``1d12h``, ``90m``, ``30:00`` or ``1-12:00:00``.

    Raises:
        ConfigError: it is none of these, or no time at all.
    """
    match = _TIME.fullmatch(text) or _CLOCK.fullmatch(text)
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0, 0)
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total < 60:
        raise ConfigError(f"--time must be a minute or more, like 2h, 90m, 1d12h or 02:00:00; got {text!r}")
    return total


@dataclass(frozen=True)
class BatchJob:
    """What is to be submitted.

    Raises:
        ConfigError: an argument cannot be.
    """

    nodes: int
    seconds: int
    """Time limit."""
    command: tuple[str, ...]
    """What ``disttrain launch`` gets: options, program, arguments."""
    name: str
    folder: str
    """Where the job runs, and its log goes."""
    gpus_per_node: int = 0
    processes_per_node: int = 0
    """0 for one a GPU, or one."""
    queue: str = ""
    """Partition (Slurm) or queue (PBS); empty for the default one."""
    account: str = ""
    warning: int = 120
    """Seconds before its end at which the job is told, so that it can save."""
    options: tuple[str, ...] = ()
    """Further options of ``sbatch`` or ``qsub``, as they stand."""

    def __post_init__(self) -> None:
        for option, value, least in (
            ("--nodes", self.nodes, 1),
            ("--gpus-per-node", self.gpus_per_node, 0),
            ("-n", self.processes_per_node, 0),
            ("--warning", self.warning, 0),
        ):
            if value < least:
                raise ConfigError(f"{option} must be at least {least}, got {value}")
        if self.warning >= self.seconds:
            raise ConfigError(f"--warning {self.warning} is not before the end of a job of {self.seconds} s")
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"--name must begin with a letter and have no spaces, got {self.name!r}")
        for word in (self.queue, self.account, *self.options):
            if "\n" in word:  # it would end the line of the script that it stands in
                raise ConfigError(f"an option cannot have several lines: {word!r}")

    @property
    def processes(self) -> int:
        """Processes of each node."""
        return self.processes_per_node or self.gpus_per_node or 1


def slurm_script(job: BatchJob) -> str:
    """Return the script for ``sbatch``: comments say what each line is for."""
    minutes = -(-job.seconds // 60)
    lines = [
        ("--job-name", job.name, ""),
        ("--nodes", str(job.nodes), ""),
        ("--ntasks-per-node", str(job.processes), "processes of each node, read by disttrain launch"),
        *([("--gpus-per-node", str(job.gpus_per_node), "")] if job.gpus_per_node else []),
        (
            "--time",
            f"{minutes // 1440}-{minutes // 60 % 24:02}:{minutes % 60:02}:00",
            "days-hours:minutes:seconds",
        ),
        *([("--partition", job.queue, "")] if job.queue else []),
        *([("--account", job.account, "")] if job.account else []),
        ("--chdir", job.folder, ""),
        ("--output", f"{job.folder}/{job.name}-%j.log", "%j is the number of the job"),
        ("--open-mode", "append", "a job that is started again goes on in its log"),
        ("--requeue", "", "preempted or on a failed node, it goes back into the queue"),
        ("--signal", f"B:USR1@{job.warning}", "so many seconds before its end, this shell is told"),
    ]
    head = [
        _directive("#SBATCH", f"{name}={shlex.quote(value)}" if value else name, why)
        for name, value, why in lines
    ]
    head += [f"#SBATCH {option}" for option in job.options]
    again = 'scontrol requeue "$SLURM_JOB_ID"'
    return "\n".join(["#!/bin/bash", *head, "", *_body(job, again), ""])


def pbs_script(job: BatchJob) -> str:
    """Return the script for ``qsub`` (OpenPBS and PBS Professional)."""
    chunk = f"select={job.nodes}:ncpus={job.processes}:mpiprocs={job.processes}"
    if job.gpus_per_node:
        chunk += f":ngpus={job.gpus_per_node}"
    clock = f"{job.seconds // 3600:02}:{job.seconds // 60 % 60:02}:{job.seconds % 60:02}"
    lines = [
        (f"-N {job.name}", ""),
        (f"-l {chunk}", "nodes, and the processes of each"),
        ("-l place=scatter", "each chunk on a node of its own"),
        (f"-l walltime={clock}", ""),
        *([(f"-q {job.queue}", "")] if job.queue else []),
        *([(f"-A {job.account}", "")] if job.account else []),
        ("-j oe", "one log"),
        (f"-o {shlex.quote(f'{job.folder}/{job.name}.log')}", ""),
        ("-k oed", "written while the job runs"),
        ("-r y", "on a failed node, it goes back into the queue"),
    ]
    head = [_directive("#PBS", text, why) for text, why in lines]
    head += [f"#PBS {option}" for option in job.options]
    folder = shlex.quote(job.folder)
    # PBS tells nobody before the time is over: timeout(1) does. A job's owner may not requeue it, but submit it.
    early = f"timeout --preserve-status --signal=USR1 {job.seconds - job.warning} "
    again = f"qsub {shlex.quote(f'{job.folder}/{job.name}.pbs')}"
    return "\n".join(["#!/bin/bash", *head, "", f"cd {folder}", *_body(job, again, early), ""])


def _directive(mark: str, text: str, why: str) -> str:
    # What follows "#" on such a line is a comment for neither system; an own line is.
    return f"{mark} {text}" if not why else f"# {why}:\n{mark} {text}"


def _body(job: BatchJob, again: str, before: str = "") -> list[str]:
    launch = shlex.join([sys.executable, "-m", "disttrain", "launch", *job.command])
    return [
        f"{before}{launch} &",
        "launcher=$!",
        "trap 'kill -USR1 $launcher' USR1   # the end is near: save and stop",
        "trap 'kill -TERM $launcher' TERM",
        "while kill -0 $launcher 2>/dev/null; do wait $launcher; done   # a signal ends a wait",
        "wait $launcher",
        "code=$?",
        f"if [ $code = {REQUEUE} ]; then   # it has saved, and wants to go on",
        f"    {again}",
        "fi",
        "exit $code",
    ]


@dataclass(frozen=True)
class Submitted:
    """A job that was submitted here; a record of it is kept, so that its number is enough to ask after it."""

    system: str
    number: str
    log: str
    folder: str
    command: tuple[str, ...]

    def save(self) -> None:
        """Write the record."""
        folder = _records()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / f"{self.number}.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, number: str) -> "Submitted | None":
        """Return the record of a job; None if none was submitted here under this number."""
        path = _records() / f"{number}.json"
        if not re.fullmatch(r"[\w.\[\]-]+", number) or not path.exists():
            return None
        fields = json.loads(path.read_text())
        return cls(**fields | {"command": tuple(fields["command"])})


def _records() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "disttrain" / "submitted"


def submit(job: BatchJob, system: str) -> Submitted:
    """Submit ``job`` and return its record. For PBS the script stays in the job's folder, to be submitted again.

    Raises:
        ConfigError: the batch system is not there, or refuses.
    """
    if system == "slurm":
        said = _ask(["sbatch", "--parsable"], slurm_script(job))
        number = said.strip().partition(";")[0]
        log = f"{job.folder}/{job.name}-{number}.log"
    else:
        path = Path(job.folder) / f"{job.name}.pbs"
        path.write_text(pbs_script(job))
        number = _ask(["qsub", str(path)]).strip()
        log = f"{job.folder}/{job.name}.log"
    record = Submitted(system, number, log, job.folder, job.command)
    record.save()
    return record


@dataclass(frozen=True)
class Status:
    """How a job of a batch system stands."""

    state: str
    """As the batch system says it: ``RUNNING``."""
    words: str
    """More of it, for people."""

    @property
    def ended(self) -> bool:
        return _ENDED.fullmatch(self.state) is not None


def status(job: Submitted) -> Status:
    """Return how ``job`` stands.

    Raises:
        ConfigError: the batch system does not know it any more, or is not there.
    """
    return _slurm_status(job.number) if job.system == "slurm" else _pbs_status(job.number)


def _slurm_status(number: str) -> Status:
    told = _ask(["scontrol", "show", "job", "--oneliner", number])
    facts = dict(re.findall(r"(\S+?)=(\S*)", told))
    state = facts["JobState"]
    nodes = facts.get("NodeList", "(null)")
    parts = [f"{facts.get('RunTime', '?')} of {facts.get('TimeLimit', '?')}"]
    if nodes not in ("(null)", ""):
        parts.append(f"on {nodes}")
    if facts.get("Reason", "None") != "None":
        parts.append(f"because of {facts['Reason']}")
    if facts.get("Restarts", "0") != "0":
        parts.append(f"put back into the queue {facts['Restarts']} times")
    if _ENDED.fullmatch(state):
        parts.append(f"exit code {facts.get('ExitCode', '?').partition(':')[0]}")
    return Status(state, ", ".join(parts))


_PBS_STATES: Final = {
    "Q": "queued",
    "R": "running",
    "H": "held",
    "E": "ending",
    "F": "finished",
    "S": "suspended",
}


def _pbs_status(number: str) -> Status:
    told = json.loads(_ask(["qstat", "-x", "-f", "-F", "json", number]))
    facts = next(iter(told["Jobs"].values()))
    used = facts.get("resources_used", {}).get("walltime", "00:00:00")
    parts = [f"{used} of {facts.get('Resource_List', {}).get('walltime', '?')}"]
    if "exec_host" in facts:
        parts.append(f"on {facts['exec_host']}")
    if "comment" in facts:
        parts.append(str(facts["comment"]))
    if "Exit_status" in facts:
        parts.append(f"exit code {facts['Exit_status']}")
    letter = facts["job_state"]
    return Status(_PBS_STATES.get(letter, letter), ", ".join(parts))


def follow(job: Submitted, *, wait: bool) -> Iterator[bytes]:
    """Yield what is in the log of ``job``; with ``wait`` until the job has ended.

    Raises:
        ConfigError: the batch system cannot be asked whether it has.
    """
    position = 0
    while True:
        ended = not wait or status(job).ended  # before the last look
        if os.path.exists(job.log):
            with open(job.log, "rb") as file:
                file.seek(position)
                while data := file.read(1 << 16):
                    yield data
                position = file.tell()
        if ended:
            return
        time.sleep(_POLL)


def cancel(job: Submitted) -> None:
    """End ``job``, or take it out of the queue.

    Raises:
        ConfigError: the batch system refuses, or is not there.
    """
    _ask(["scancel" if job.system == "slurm" else "qdel", job.number])


def _ask(command: Sequence[str], stdin: str = "") -> str:
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=True)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no command {command[0]!r} here; is this machine part of the cluster?"
        ) from None
    except subprocess.CalledProcessError as e:
        raise ConfigError(f"{command[0]} failed: {(e.stderr or e.stdout).strip()}") from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{command[0]} has not answered within 60 s; try again later") from None
    return done.stdout
