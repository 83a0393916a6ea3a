"""Running a script in several orders of its ranks: a result that depends on the order is a mistake."""

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from disttrain.launcher.audit import Record, difference, read
from disttrain.launcher.config import LaunchConfig


@dataclass(frozen=True)
class _Run:
    """What came out of one order."""

    code: int
    printed: dict[str, list[str]]
    """What each rank wrote on stdout, by its prefix."""
    errors: str
    """All that was written on stderr."""
    record: Record
    """What the ranks computed, if they have models in parallel wrappers."""


def try_schedules(config: LaunchConfig, seeds: Sequence[int]) -> int:
    """Run the job in the order of the ranks, and then in that of each seed until one fails or differs.

    Compared are what the ranks' models compute and what the ranks print. Returns the exit code: 0 if all orders give
    the same.
    """
    ranks = _run(config)
    for who, lines in ranks.printed.items():
        click.echo("\n".join(f"{who} {line}" for line in lines))
    click.echo(ranks.errors, nl=False, err=True)
    if ranks.code:
        return ranks.code
    for seed in seeds:
        drawn = _run(replace(config, schedule=seed))
        if drawn.code:
            click.echo(drawn.errors, nl=False, err=True)
            click.echo(
                f"fails: with --schedule-seed {seed}, and not in the order of the ranks\n{_again(config, seed)}"
            )
            return drawn.code
        if found := _difference(ranks, drawn):
            if again := _difference(ranks, _run(config)):
                click.echo(
                    f"cannot tell: the same order gives something else each time: {again}\n"
                    f"likely cause: no seed (call disttrain.manual_seed() first), or times that are printed"
                )
                return 1
            click.echo(
                f"differs: with --schedule-seed {seed} from the order of the ranks: {found}\n{_again(config, seed)}"
            )
            return 1
    click.echo(f"equal: the order of the ranks and {len(seeds)} drawn by a seed give the same")
    return 0


def _run(config: LaunchConfig) -> _Run:
    with tempfile.TemporaryDirectory(prefix="disttrain-schedules-") as folder:
        done = subprocess.run(
            [sys.executable, *_command(config, folder)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        record = read(Path(folder), config.world_size)
    printed: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        who, _, rest = line.partition(" ")
        printed.setdefault(who, []).append(rest)
    return _Run(done.returncode & 0xFF, dict(sorted(printed.items())), done.stderr, record)


def _command(config: LaunchConfig, record: str = "") -> list[str]:
    options = ["-n", str(config.world_size), "--timeout", f"{config.timeout:g}"]
    for name, value in config.env.items():
        options += ["--env", f"{name}={value}"]
    if config.schedule >= 0:
        options += ["--schedule-seed", str(config.schedule)]
    if record:
        options += ["--record", record]
    return ["-m", "disttrain", "debug", *options, *config.argv]


def _again(config: LaunchConfig, seed: int) -> str:
    command = ["disttrain", *_command(replace(config, schedule=seed))[2:]]
    return f"once more, with the debugger: {shlex.join([*command[:2], '--pdb', *command[2:]])}"


def _difference(a: _Run, b: _Run) -> str:
    """Return in words where two runs first differ, "" if nowhere."""
    if found := difference(a.record, b.record):
        rank, x, y = found
        if x is not None and y is not None and (x.kind, x.name, x.step) == (y.kind, y.name, y.step):
            return f"on rank {rank}, {x}"
        return f"rank {rank} computed {y or 'nothing more'}, and {x or 'nothing more'} before"
    for who in sorted(a.printed.keys() | b.printed.keys()):
        ours, theirs = a.printed.get(who, []), b.printed.get(who, [])
        for i in range(max(len(ours), len(theirs))):
            if ours[i : i + 1] != theirs[i : i + 1]:
                before, what = (repr(lines[i]) if i < len(lines) else "no more" for lines in (ours, theirs))
                return f"rank {who.strip('[]')} printed {what}, and {before} before"
    return ""
