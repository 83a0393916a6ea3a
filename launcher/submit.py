"""``disttrain submit``, ``status`` and ``cancel``: jobs of a batch system."""

import os
import sys
from pathlib import Path

import click

from disttrain.launcher import batch
from disttrain.launcher.batch import BatchJob, Submitted, parse_time
from disttrain.launcher.config import TRANSPORTS, ConfigError, check_program, parse_env


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--on", "system", type=click.Choice(batch.SYSTEMS), required=True, help="The batch system.")
@click.option("--nodes", type=int, default=1, metavar="N", help="Nodes. [1]")
@click.option("--gpus-per-node", type=int, default=0, metavar="N", help="GPUs of each. [0]")
@click.option("--time", "limit", required=True, metavar="2h", help="Time limit, like 2h, 90m or 02:00:00.")
@click.option(
    "-n", "--nproc", type=int, default=0, metavar="N", help="Processes of each node. [one a GPU, or one]"
)
@click.option("--name", metavar="NAME", help="Name of the job. [that of the script]")
@click.option("--queue", default="", metavar="NAME", help="Partition or queue.")
@click.option("--account", default="", metavar="NAME", help="Whom to charge.")
@click.option("--warning", type=int, default=120, metavar="S", help="Seconds before its end to save. [120]")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="TEXT",
    help="A further line for sbatch or qsub, as it stands.",
)
@click.option("--dry-run", is_flag=True, help="Show the script, and submit nothing.")
@click.option("--ranks", type=int, metavar="V", help="As for disttrain launch; so are the following.")
@click.option("--transport", type=click.Choice(TRANSPORTS))
@click.option("--max-restarts", type=int, metavar="K")
@click.option("--env", multiple=True, metavar="K=V")
@click.option("-m", "--module", is_flag=True)
@click.option("--compat", is_flag=True)
@click.argument("program")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def submit(
    system: str,
    nodes: int,
    gpus_per_node: int,
    limit: str,
    nproc: int,
    name: str | None,
    queue: str,
    account: str,
    warning: int,
    options: tuple[str, ...],
    dry_run: bool,
    ranks: int | None,
    transport: str | None,
    max_restarts: int | None,
    env: tuple[str, ...],
    module: bool,
    compat: bool,
    program: str,
    args: tuple[str, ...],
) -> None:
    """Run PROGRAM, a script, with ARGS as a job of a batch system, on all of its nodes.

    Shortly before its time is over, or when it is preempted, the job saves and goes back into the queue.
    """
    try:
        check_program(program, is_module=module)
        parse_env(env)
        command: list[str] = []
        for option, value in (
            ("--ranks", ranks),
            ("--transport", transport),
            ("--max-restarts", max_restarts),
        ):
            command += [option, str(value)] if value is not None else []
        for pair in env:
            command += ["--env", pair]
        command += ["--compat"] * compat + ["-m"] * module
        job = BatchJob(
            nodes=nodes,
            seconds=parse_time(limit),
            command=(*command, program, *args),
            name=name if name is not None else Path(program).stem.rpartition(".")[2] or "disttrain",
            folder=os.getcwd(),
            gpus_per_node=gpus_per_node,
            processes_per_node=nproc,
            queue=queue,
            account=account,
            warning=warning,
            options=options,
        )
        if dry_run:
            click.echo(batch.slurm_script(job) if system == "slurm" else batch.pbs_script(job), nl=False)
            return
        done = batch.submit(job, system)
    except ConfigError as e:
        raise click.UsageError(str(e)) from None
    click.echo(f"job {done.number}, log in {done.log}")


def _find(job: str) -> Submitted:
    found = Submitted.load(job)
    if found is None:
        raise click.UsageError(f"no job {job!r} has been submitted from here with disttrain submit")
    return found


@click.command()
@click.argument("job")
def status(job: str) -> None:
    """Say how JOB, a number that disttrain submit has given, stands in its batch system."""
    found = _find(job)
    try:
        now = batch.status(found)
    except ConfigError as e:
        raise click.ClickException(str(e)) from None
    click.echo(f"{now.state}: {now.words}")
    click.echo(f"{' '.join(found.command)}  (log in {found.log})")


@click.command()
@click.argument("job")
def cancel(job: str) -> None:
    """End JOB, a number that disttrain submit has given, or take it out of the queue."""
    found = _find(job)
    try:
        batch.cancel(found)
    except ConfigError as e:
        raise click.ClickException(str(e)) from None
    click.echo(f"job {found.number} is cancelled")


def show_log(job: Submitted, *, wait: bool) -> None:
    """Print the log of ``job``; with ``wait`` until it has ended."""
    try:
        for data in batch.follow(job, wait=wait):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    except ConfigError as e:
        raise click.ClickException(str(e)) from None
