"""``disttrain ps``, ``stack``, ``logs``, ``kill`` and ``ctl``: running jobs, seen and told from another terminal."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

import click

from disttrain.collectives import stacks
from disttrain.launcher.batch import Submitted
from disttrain.launcher.fold import label
from disttrain.launcher.jobs import Job, JobError, find, running_jobs
from disttrain.launcher.pace import Pace, find_slowest
from disttrain.launcher.report import Slow
from disttrain.launcher.submit import show_log

_LOG: Final = re.compile(r"rank(\d+)(?:-(\d+))?(?:-generation(\d+))?\.log")
_POLL: Final = 0.1
_ENDING: Final = 0.5
"""Seconds from when a launcher answers no more to the end of its job."""
_STACK_PATIENCE: Final = 3.0
"""Seconds that the agent of another node may take to find out where a rank is."""
_ON_SAVE_PATIENCE: Final = 3.0
"""Seconds that a script may take to say how to save, once its user wants it to."""
_HINT_AFTER: Final = 3.0
"""Seconds after which a command that waits says what for."""
_KILL_PATIENCE: Final = 10.0
"""Seconds that a launcher may take to end its job; it is killed then, and its guardian ends the job."""

NO_RANK: Final = "no rank runs now"
"""What is said of a job whose nodes have not joined yet, or that is about to start its ranks again."""
_GPU: Final = ("GPU USE", "GPU MEMORY")


class Command(click.Command):
    """A command whose JobError is a line for the user, and which Ctrl-C ends without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except JobError as error:
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            sys.exit(130)


# ---------------------------------------------------------------------------------------------- ps


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each job.")
def ps(as_json: bool) -> None:
    """List your running jobs on this machine."""
    rows = []
    for job in running_jobs():
        try:
            status = status_of(job)
        except JobError as error:
            if _wait(lambda job=job: not job.running, _ENDING):  # type: ignore[misc]
                continue
            status = {"job": {}, "ranks": [], "trouble": str(error)}
        if as_json:
            click.echo(json.dumps({"id": job.id, **status}))
        else:
            rows.append(_row(job, status))
    if not as_json:
        _print_table(
            ["JOB", "SCRIPT", "RANKS", "STEP", "LOSS", "SAMPLES/S", "MEMORY", *_GPU, "TIME", "STATE"], rows
        )


def status_of(job: Job) -> dict[str, Any]:
    """Return what the launcher knows: ``job`` and ``ranks``; of ranks of other nodes as of a moment ago.

    Raises:
        JobError: it does not answer.
    """
    status = job.ask("status")
    if status["job"]["nodes"] > 1:  # their ledgers are on the way now
        time.sleep(0.3)
        status = job.ask("status")
    return {"job": status["job"], "ranks": status["ranks"]}


def _row(job: Job, status: dict[str, Any]) -> list[str]:
    if "trouble" in status:
        return [job.id, "?", "", "", "", "", "", "", "", "", "the launcher does not answer"]
    about, ranks = status["job"], status["ranks"]
    losses = [r["loss"] for r in ranks if r["loss"] is not None]
    rate = sum(r["samples_per_second"] for r in ranks)
    slow = slowest_of(ranks)
    return [
        job.id,
        Path(about["script"]).name,
        str(about["world_size"] or "-"),
        str(max((r["steps"] for r in ranks), default=0)),
        number(sum(losses) / len(losses)) if losses else "-",
        number(rate) if rate else "-",
        gib(sum({(r["host"], r["pid"]): r["rss"] for r in ranks}.values())),
        *_gpus(ranks),
        duration(about["seconds"]),
        summary(ranks) + (f"; {slow.rank} is slow ({slow.why})" if slow is not None else ""),
    ]


def _gpus(ranks: list[dict[str, Any]]) -> tuple[str, str]:
    """Return how busy the GPUs of the ranks are on average, and how much of their memory is used; "" if unknown."""
    gpus = {(r["host"], r["gpu"]["name"]): r["gpu"] for r in ranks if r["gpu"]}.values()
    busy = [gpu["busy"] for gpu in gpus if gpu["busy"] is not None]
    use = f"{sum(busy) / len(busy):.0%}" if busy else ""
    return use, gib(sum(gpu["used"] for gpu in gpus)) if gpus else ""


def summary(ranks: list[dict[str, Any]]) -> str:
    """Return the states of all ranks in a few words: ``runs``, or ``0-2 wait, 3 is stopped (SIGSTOP)``."""
    if not ranks:
        return NO_RANK
    by_state: dict[str, list[int]] = {}
    for r in ranks:
        # For how long a rank waits is not the same on all.
        by_state.setdefault(re.sub(r" [\d.]+ s$", "", r["state"]), []).append(r["rank"])
    if len(by_state) == 1:
        return next(iter(by_state))
    return ", ".join(f"{label(who)} {state}" for state, who in by_state.items())


def slowest_of(ranks: list[dict[str, Any]]) -> Slow | None:
    """Return the rank that the others have waited for in the last few seconds; None if there is none."""
    return find_slowest([Pace(r["rank"], r["data"], r["wait"]) for r in ranks if r["seconds"] > 0])


def number(x: float) -> str:
    """Return a number in about four digits."""
    return f"{x:.4g}" if abs(x) < 1e4 else f"{x:,.0f}"


def gib(size: int) -> str:
    """Return a number of bytes as ``1.5 GiB``."""
    return f"{size / 2**30:.1f} GiB"


def duration(seconds: float) -> str:
    """Return ``0:03:07`` or ``2d 04:00:11``."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    return f"{days}d {h:02}:{m:02}:{s:02}" if days else f"{h}:{m:02}:{s:02}"


def _print_table(head: list[str], rows: list[list[str]]) -> None:
    """Print a table; a column about GPUs of which nothing is known in any row is left out."""
    kept = [i for i, name in enumerate(head) if name not in _GPU or any(row[i] for row in rows)]
    head, rows = [head[i] for i in kept], [[row[i] for i in kept] for row in rows]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        click.echo("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


# ---------------------------------------------------------------------------------------------- stack


@click.command(cls=Command)
@click.argument("job", required=False)
@click.argument("rank", required=False, type=int)
def stack(job: str | None, rank: int | None) -> None:
    """Show where RANK of JOB is in its Python code, or all ranks are, with the collective call that they are in.

    The job is not disturbed. A process that is stopped (SIGSTOP) is let run for some milliseconds to answer.
    """
    running = find(job)
    status = status_of(running)
    if not status["ranks"]:
        raise JobError(NO_RANK)
    ranks = [r for r in status["ranks"] if rank is None or r["rank"] == rank]
    if not ranks:
        raise JobError(f"there is no rank {rank}; the job has {status['job']['world_size']} ranks, from 0")
    for r in ranks:
        head = f"rank {r['rank']} (host {r['host']}, pid {r['pid']}) {r['state']}"
        click.echo(f"{head}, in {r['call']}" if r["call"] else head)
        seen = (
            _stack_of_another_node(running, r["rank"])
            if r["node"]
            else stacks.ask(r["pid"], r["stacks"], r["thread"], wake=True, most=64)
        )
        for line in seen or ["does not answer: it has ended, or has not begun"]:
            click.echo(f"  {line}")


def _stack_of_another_node(job: Job, rank: int) -> list[str]:
    """Return where a rank is in its Python code, as its node's agent says; nothing if it does not."""
    answer = job.ask("stack", rank=rank, again=False)
    deadline = time.monotonic() + _STACK_PATIENCE
    while not answer["done"] and time.monotonic() < deadline:
        time.sleep(_POLL / 2)
        answer = job.ask("stack", rank=rank, again=True)
    lines: list[str] = answer["lines"]
    return lines


# ---------------------------------------------------------------------------------------------- logs


@click.command(cls=Command)
@click.argument("job", required=False)
@click.argument("rank", required=False, type=int)
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
def logs(job: str | None, rank: int | None, follow: bool) -> None:
    """Print what RANK of JOB has printed, or what all ranks have; JOB may have ended if it has left logs.

    Of a job that disttrain submit has given a number, print the log.
    """
    if job is not None and rank is None and (submitted := Submitted.load(job)) is not None:
        show_log(submitted, wait=follow)
        return
    found = find(job, ended=True)
    seen = _Logs(found.path, rank)
    while True:
        running = found.running  # before the last look
        for line in seen.read():
            click.echo(line)
        if not (follow and running):
            break
        time.sleep(_POLL)
    if not seen.any:
        whose = f"rank {rank}" if rank is not None else "no rank"
        click.echo(f"{whose} has printed {'nothing' if rank is not None else 'anything'}", err=True)


class _Logs:
    """The log files of a job, read on from where they were left."""

    def __init__(self, folder: Path, rank: int | None) -> None:
        self._folder, self._rank = folder, rank
        self._files: dict[Path, IO[str]] = {}
        self.any = False
        """Whether there was a file."""

    def read(self) -> Iterator[str]:
        """Yield the lines that are new; with their rank in front, if they are not of one rank alone."""
        for path, who in self._paths():
            self.any = True
            if path not in self._files:
                older = path.with_name(f"{path.name}.1")
                if older.exists():
                    with open(older, errors="replace") as file:
                        yield from (who + line.rstrip("\n") for line in file)
                self._files[path] = open(path, errors="replace")  # noqa: SIM115
            yield from (who + line.rstrip("\n") for line in self._files[path])
            with suppress(OSError):
                if os.fstat(self._files[path].fileno()).st_ino != path.stat().st_ino:  # a new one was begun
                    self._files[path] = open(path, errors="replace")  # noqa: SIM115
                    yield from (who + line.rstrip("\n") for line in self._files[path])

    def _paths(self) -> list[tuple[Path, str]]:
        found = []
        for path in self._folder.glob("rank*.log"):
            match = _LOG.fullmatch(path.name)
            if match is None:
                continue
            first, last = int(match[1]), int(match[2] or match[1])
            if self._rank is None:
                found.append((int(match[3] or 0), first, path, f"{label(range(first, last + 1))} "))
            elif first == last == self._rank:
                found.append((int(match[3] or 0), first, path, ""))
        return [(path, who) for _, _, path, who in sorted(found)]


# ---------------------------------------------------------------------------------------------- kill


@click.command(cls=Command)
@click.argument("job")
def kill(job: str) -> None:
    """End JOB: its ranks get SIGTERM, and two seconds later SIGKILL. Nothing of it is left then."""
    found = find(job)
    pid = found.launcher()
    with suppress(JobError):  # it is made to end then
        found.ask("kill")
        _wait(lambda: not found.running, _KILL_PATIENCE)
    if found.running and pid is not None:
        click.echo(f"the launcher (pid {pid}) does not answer: it is killed, and its guardian ends the job")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if not _wait(lambda: not found.path.exists(), _KILL_PATIENCE):
            raise JobError(f"something of job {found.id} is left; `disttrain launch` of any job ends it")
    click.echo(f"job {found.id} has ended")


def _wait(done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (over := done()) and time.monotonic() < deadline:
        time.sleep(_POLL / 2)
    return over


# ---------------------------------------------------------------------------------------------- ctl


@click.command(cls=Command)
@click.argument("job")
@click.argument("command", type=click.Choice(["save", "stop", "pause", "resume"]))
@click.option("--no-wait", is_flag=True, help="Do not wait until it has been done.")
def ctl(job: str, command: str, no_wait: bool) -> None:
    """Tell JOB to save, stop, pause or resume: all ranks do it after the same optimizer step.

    \b
    save    calls what the script gave to dt.on_save()
    stop    saves, if the script says how, and ends the script on all ranks with exit code 0
    pause   lets all ranks wait after a step, until resume
    """
    found = find(job)
    if command == "save":
        _wait(lambda: _has_said_how_to_save(found), _ON_SAVE_PATIENCE)
    answer = found.ask("ctl", command=command)
    if not answer["done"]:
        raise JobError(f"{command} is refused: {answer['text']}")
    if no_wait:
        return
    began = time.monotonic()
    hinted = False
    while True:
        try:
            about = found.ask("status")
        except JobError:
            if not _wait(lambda: not found.running, _ENDING):
                raise
            break
        if command not in about["job"]["pending"]:
            break
        if not hinted and time.monotonic() - began > _HINT_AFTER:
            hinted = True
            step = max((r["steps"] for r in about["ranks"]), default=0)
            click.echo(
                f"waiting for the next optimizer step, after {step} (Ctrl-C: it will be done all the same)"
            )
        time.sleep(_POLL / 2)
    told = [e for e in history(found) if e.get("command") == command and e.get("what") != "asked"]
    if told and told[-1]["what"] == "done":
        click.echo(f"{command}: done" + (f" after step {told[-1]['step']}" if command != "resume" else ""))
    else:
        why = told[-1]["what"] if told else "the job has ended first"
        raise JobError(f"{command} has not been done: {why}")


def _has_said_how_to_save(job: Job) -> bool:
    """Return whether all ranks have given a function to ``dt.on_save``, or train without one.

    A script that has just been started may be about to, and from other nodes the news takes a moment.
    """
    ranks = job.ask("status")["ranks"]
    return bool(ranks) and all(r["can_save"] or r["steps"] for r in ranks)


def history(job: Job) -> list[dict[str, Any]]:
    """Return what has been noted of a job, what its script has logged left out."""
    try:
        lines = (job.path / "history.jsonl").read_text().splitlines()
    except OSError:
        return []
    return [json.loads(line) for line in lines if '"command":' in line]
