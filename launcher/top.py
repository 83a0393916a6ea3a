"""``disttrain top``: what every rank of a job does, as it goes on."""

import statistics
import time
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from disttrain.launcher.jobs import Job, JobError, find
from disttrain.launcher.see import NO_RANK, Command, duration, number, slowest_of, status_of

_BETWEEN: Final = 1.0
"""Seconds between two looks."""
_OTHER_LINES: Final = 8
_MIB: Final = 1 << 20


@click.command(cls=Command)
@click.argument("job", required=False)
@click.option("--once", is_flag=True, help="Print it once; so does output that goes to no terminal.")
def top(job: str | None, once: bool) -> None:
    """Show step, loss, speed, memory and state of all ranks of JOB until it ends; Ctrl-C leaves it."""
    found = find(job)
    console = Console()
    screen = Screen(found)
    if once or not console.is_terminal:
        screen.look()
        time.sleep(0.2)  # how busy a process is shows between two looks
        screen.look()
        console.print(screen.render(console.width, None))
        return
    with Live(screen.render(*console.size), console=console, screen=True, auto_refresh=False) as live:
        while found.running:
            screen.look()
            live.update(screen.render(*console.size), refresh=True)
            time.sleep(_BETWEEN)
    click.echo(f"job {found.id} has ended")


class Screen:
    """What is shown of a job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._about: dict[str, Any] = {}
        self._ranks: list[dict[str, Any]] = []
        self._trouble = ""
        self._busy: dict[int, float] = {}
        """Process → its share of a core between the last two looks."""
        self._before: dict[int, tuple[float, float]] = {}

    def look(self) -> None:
        """Ask the launcher."""
        try:
            status = status_of(self._job)
        except JobError as error:
            self._trouble = str(error)
            return
        self._trouble = ""
        self._about, self._ranks = status["job"], status["ranks"]
        now = time.monotonic()
        for rank in self._ranks:
            pid, used = rank["pid"], rank["cpu_seconds"]
            then, before = self._before.get(pid, (now, used))
            if now > then:
                self._busy[pid] = (used - before) / (now - then)
                self._before[pid] = (now, used)
            self._before.setdefault(pid, (now, used))

    def render(self, width: int, height: int | None) -> Group:
        """Return the screen of ``width`` columns, with as many ranks as ``height`` lines have room for."""
        about, ranks = self._about, self._ranks
        if not about:
            return Group(Text(self._trouble or f"job {self._job.id}"))
        rate = sum(r["samples_per_second"] for r in ranks)
        head = (
            f"job {self._job.id}  {Path(about['script']).name}  {about['world_size'] or '-'} ranks  "
            f"{duration(about['seconds'])}"
            + (f"  generation {about['generation']}" if about["generation"] else "")
            + (f"  {number(rate)} samples/s" if rate else "")
        )
        shown = ranks if height is None else ranks[: max(1, height - _OTHER_LINES)]
        lines: list[Any] = [Text(head, style="bold")]
        if shown:
            lines.append(self._table(shown, width))
        if len(shown) < len(ranks):
            lines.append(Text(f"and {len(ranks) - len(shown)} more ranks"))
        lines.append(Text(slowest(ranks)))
        if about["gpus"]:
            lines.append(Text(f"use and memory of GPUs are not known: {about['gpus']}"))
        if about["pending"]:
            lines.append(Text(f"after the next step: {', '.join(about['pending'])}"))
        if self._trouble:
            lines.append(Text(self._trouble, style="red"))
        return Group(*lines)

    def _table(self, ranks: list[dict[str, Any]], width: int) -> Table:
        table = Table(box=None, pad_edge=False)
        hosts = {r["host"] for r in ranks}
        on_gpu, in_pool = any(r["gpu"] for r in ranks), any(r["gpu_bytes"] for r in ranks)
        rows: list[list[str]] = []
        heads = ["RANK", *(["HOST"] if len(hosts) > 1 else []), "STEP", "LOSS", "SAMPLES/S"]
        heads += [
            "DATA",
            "COMPUTE",
            "WAIT",
            "CPU",
            "MEMORY",
            *(["GPU", "GPU USE", "GPU MEMORY"] if on_gpu else []),
        ]
        heads += ["CUPY POOL"] if in_pool else []
        for r in ranks:
            busy = self._busy.get(r["pid"])
            cells = [str(r["rank"]), *([r["host"]] if len(hosts) > 1 else []), str(r["steps"])]
            cells.append("-" if r["loss"] is None else number(r["loss"]))
            cells.append(number(r["samples_per_second"]) if r["samples_per_second"] else "-")
            cells += [f"{r[share]:.0%}" for share in ("data", "compute", "wait")]
            cells.append("-" if busy is None else f"{busy:.0%}")
            cells.append(f"{r['rss'] / _MIB:,.0f} MiB" if r["rss"] else "-")
            cells += _of_gpu(r["gpu"]) if on_gpu else []
            cells += [f"{r['gpu_bytes'] / _MIB:,.0f} MiB"] if in_pool else []
            rows.append([*cells, r["state"]])
        room = width
        for i, head in enumerate([*heads, "STATE"]):
            wide = max(len(head), *(len(row[i]) for row in rows))
            table.add_column(head, justify="left" if head == "STATE" else "right", no_wrap=True, width=wide)
            room -= wide + 2
        table.add_column("CALL", no_wrap=True)  # gets what the others leave
        for r, row in zip(ranks, rows, strict=True):
            style = "red" if r["state"].startswith(("is ", "has failed")) else None
            call = r["call"] if len(r["call"]) <= room else f"{r['call'][: max(room - 1, 0)]}…"
            table.add_row(*map(Text, [*row, call]), style=style)
        return table


def _of_gpu(gpu: dict[str, Any] | None) -> list[str]:
    """Return the name of a rank's GPU, how busy it is, and how much of its memory is used."""
    if gpu is None:
        return ["-", "-", "-"]
    busy = "-" if gpu["busy"] is None else f"{gpu['busy']:.0%}"
    return [gpu["name"], busy, f"{gpu['used'] / _MIB:,.0f} of {gpu['total'] / _MIB:,.0f} MiB"]


def slowest(ranks: list[dict[str, Any]]) -> str:
    """Return which rank the others wait for, and why; or what all of them do most of the time."""
    going = [r for r in ranks if r["seconds"] > 0]
    if not ranks:
        return NO_RANK
    if not going:
        return "no rank has made a step"
    for r in ranks:
        if r["state"].startswith("is "):
            return f"slowest: rank {r['rank']}, which {r['state']}"
    slow = slowest_of(ranks)
    if slow is not None:
        return f"slowest: rank {slow.rank}, {slow}"
    means = {share: statistics.fmean(r[share] for r in going) for share in ("data", "compute", "wait")}
    most = max(means, key=means.__getitem__)
    return f"no rank is behind the others; most of the time goes into {most} ({means[most]:.0%})"
