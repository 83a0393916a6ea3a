"""``disttrain audit``: prove that a script computes the same bits on any number of processes, or say where not."""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from disttrain.launcher.config import ConfigError, LaunchConfig
from disttrain.launcher.launch import run

_CAUSES: Final = {
    "input": (
        "the batches differ: the script gives no seed (call disttrain.manual_seed() first), or orders or draws its "
        "data by something that depends on the process, such as random, numpy.random, the time, or the order of a "
        "set; use disttrain's DataLoader and random numbers"
    ),
    "op": (
        "the batches were the same, and all that was computed before: first values without a seed (call "
        "disttrain.manual_seed() first), random numbers that are not disttrain's, something that depends on the "
        "process (its pid, the order of a set, what a module holds for all ranks of the process), or a number of "
        "threads that is not fixed"
    ),
    "backward": (
        "forward was the same: a hook, or a function with a backward of its own, depends on the process, or the number "
        "of threads is not fixed"
    ),
    "forward": (
        "from the same input the layer computed something else: first values without a seed (call "
        "disttrain.manual_seed() first), random numbers that are not disttrain's, something that depends on the "
        "process (its pid, the order of a set, what a module holds for all ranks of the process), or a number of "
        "threads that is not fixed"
    ),
    "gradient": (
        "forward was the same: something changes gradients in a way that depends on the process, or averages them in "
        "another order"
    ),
    "parameter": (
        "the gradients were the same: the optimizer's options (a learning rate, say) depend on the process, or the "
        "script changes parameters itself"
    ),
}
_CAUSES["part"] = _CAUSES["parameter"]
"""The likely cause, by the kind of the first event that differs."""


@dataclass(frozen=True)
class Event:
    """Something that a rank computed."""

    kind: str
    """``input``, ``op`` (an operation's result), ``forward`` (a layer's), ``backward``, ``gradient``, ``parameter``, or
    ``part``, of a sharded one: only that may differ between ranks."""
    step: int
    """How many steps were made before."""
    name: str
    what: str
    """The class of the layer."""
    digest: str

    def __str__(self) -> str:
        words = {
            "input": "the model's input",
            "op": f"the result of {self.name}",
            "forward": f"the output of {self.name} ({self.what})",
            "backward": f"the gradient made by {self.name}",
            "gradient": f"the gradient of {self.name}",
            "parameter": f"{self.name} after the step",
            "part": f"this rank's part of {self.name} after the step",
        }
        return f"{words[self.kind]} in step {self.step + 1}"


Record = dict[int, list[Event]]
"""The events of each rank, in order."""


def read(folder: Path, ranks: int) -> Record:
    """Return what the ranks of a run have written; of a rank that wrote nothing, nothing."""
    record: Record = {}
    for rank in range(ranks):
        path = folder / f"rank{rank}"
        lines = path.read_text().splitlines() if path.exists() else []
        record[rank] = [Event(*json.loads(line)) for line in lines]
    return record


def replicas(record: Record) -> str:
    """Return which rank's parameters first differ from the other ranks' in one run, "" if none do."""
    params = {rank: [e for e in events if e.kind == "parameter"] for rank, events in record.items()}
    for event, *others in zip(*params.values(), strict=False):
        by_digest: dict[str, list[int]] = {}
        for rank, other in enumerate([event, *others]):
            by_digest.setdefault(other.digest, []).append(rank)
        if len(by_digest) > 1:
            odd = min(by_digest.values(), key=len)
            return (
                f"{event} is not the same on all ranks: "
                + (f"rank {odd[0]} differs" if len(odd) == 1 else f"ranks {', '.join(map(str, odd))} differ")
                + " from the others"
            )
    return ""


def difference(a: Record, b: Record) -> tuple[int, Event | None, Event | None] | None:
    """Return the rank and the first events in which two runs differ: in the earliest step, then on the lowest rank."""
    found = []
    for rank in a:
        ours, theirs = a[rank], b[rank]
        for i in range(max(len(ours), len(theirs))):
            x, y = (events[i] if i < len(events) else None for events in (ours, theirs))
            if x != y:
                order = {"input": 0, "op": 1, "forward": 1, "backward": 2, "gradient": 3}
                known = x or y
                assert known is not None
                found.append(((known.step, order.get(known.kind, 4), i, rank), (rank, x, y)))
                break
    return min(found)[1] if found else None


def explain(rank: int, x: Event | None, y: Event | None, processes: tuple[int, int]) -> str:
    """Return in words how two runs differ, and the likely cause."""
    if x is not None and y is not None and (x.kind, x.step, x.name) == (y.kind, y.step, y.name):
        return (
            f"differ: on rank {rank}, {x} is not the same on {processes[0]} and on {_processes(processes[1])}\n"
            f"likely cause: {_CAUSES[x.kind]}"
        )
    return (
        f"differ: rank {rank} did other things: {x or 'nothing more'} on {_processes(processes[0])}, "
        f"{y or 'nothing more'} on {processes[1]}\n"
        f"likely cause: the script decides by something that depends on the process"
    )


def _processes(n: int) -> str:
    return f"{n} process{'es' * (n > 1)}"


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--steps", type=click.IntRange(1), default=3, metavar="K", help="Optimizer steps to compare. [3]"
)
@click.option(
    "--processes", default="1,2,4", metavar="N,N,...", help="Numbers of processes to compare. [1,2,4]"
)
@click.option("--ranks", type=int, metavar="V", help="Ranks, a power of two. [as many as processes, at most]")
@click.option("-m", "--module", is_flag=True, help="PROGRAM is a module, as in python -m.")
@click.option("--compat", is_flag=True, help="PROGRAM is written for PyTorch: `import torch` is disttrain.")
@click.argument("program")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def audit(
    steps: int,
    processes: str,
    ranks: int | None,
    module: bool,
    compat: bool,
    program: str,
    args: tuple[str, ...],
) -> None:
    """Run PROGRAM for some steps on several numbers of processes, and compare all that its ranks compute.

    The exit code is 0 if every batch, output of a layer, gradient and parameter has the same bits, else 1.
    """
    try:
        counts = [int(n) for n in processes.split(",")]
    except ValueError:
        raise click.UsageError(f"--processes must be numbers with commas, got {processes!r}") from None
    if len(counts) < 2 or min(counts) < 1:
        raise click.UsageError(f"--processes needs two positive numbers at least, got {processes!r}")
    world = ranks or 1 << (max(counts) - 1).bit_length()
    records: dict[int, Record] = {}
    with tempfile.TemporaryDirectory(prefix="disttrain-audit-") as folder:
        for n in counts:
            place = Path(folder, str(n))
            place.mkdir()
            click.echo(f"disttrain: {world} ranks on {_processes(n)}", err=True)
            try:
                config = LaunchConfig(
                    program=program, args=args, is_module=module, compat=compat, processes=n, ranks=world,
                    audit=str(place), audit_steps=steps,
                )  # fmt: skip
            except ConfigError as e:
                raise click.UsageError(str(e)) from None
            code = run(config)
            if code != 0:
                sys.exit(code)
            records[n] = read(place, world)
    sys.exit(compare(records, steps))


def compare(records: dict[int, Record], steps: int) -> int:
    """Print whether the runs, by number of processes, are equal; return the exit code."""
    first, *others = records
    if not any(e.kind in ("parameter", "part") for events in records[first].values() for e in events):
        click.echo(
            "nothing to compare: the script made no step of a model in DistributedDataParallel or "
            "FullyShardedDataParallel; wrap the model"
        )
        return 1
    for n, record in records.items():
        if odd := replicas(record):
            click.echo(
                f"differ: on {_processes(n)}, {odd}\n"
                f"likely cause: the script changes parameters, or gradients after backward, itself, or seeds or loads "
                f"them on some ranks only"
            )
            return 1
    for n in others:
        found = difference(records[first], records[n])
        if found is not None:
            click.echo(explain(*found, (first, n)))
            return 1
    made = 1 + max(e.step for e in records[first][0])
    click.echo(
        f"equal: {len(records[first])} ranks computed the same bits on {', '.join(map(str, records))} processes: "
        f"{len(records[first][0])} batches, results of operations and layers, gradients and parameters of each rank in "
        f"{min(made, steps)} steps"
    )
    return 0
