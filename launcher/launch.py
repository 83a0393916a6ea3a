"""``disttrain launch``: run a script on several processes, and say what went wrong first."""

import os
import shlex
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from disttrain.collectives.env import WorkerEnv
from disttrain.launcher.config import (
    TRANSPORTS,
    ConfigError,
    LaunchConfig,
    count_gpus,
    parse_env,
    parse_nproc,
)
from disttrain.launcher.interrupt import ends_at_once

if TYPE_CHECKING:
    from disttrain.launcher.hosts import Cluster, Host

_BATCH = {"SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID"}


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "-n",
    "--nproc",
    metavar="N|MIN:MAX",
    help="Processes of each node: a number, auto (GPUs, else cores), cpu or gpu. [1]",
)
@click.option("--nnodes", metavar="N|MIN:MAX", help="Nodes: so many of --hosts or of the allocation. [all]")
@click.option("--hosts", metavar="A:4,B:4", help="Nodes with their numbers of processes, reached over ssh.")
@click.option("--hostfile", metavar="FILE", help="The same, a host a line.")
@click.option("--ssh", metavar="COMMAND", help="How to reach them, instead of ssh.")
@click.option(
    "--ranks", type=int, metavar="V", help="Ranks, a power of two: results are then the same for every N."
)
@click.option(
    "--transport", type=click.Choice(TRANSPORTS), default="auto", help="How ranks exchange arrays. [auto]"
)
@click.option(
    "--timeout", type=float, default=1800.0, metavar="S", help="Seconds a rank waits in a collective. [1800]"
)
@click.option(
    "--max-restarts",
    type=int,
    default=0,
    metavar="K",
    help="Start all ranks again after a failure, K times at most. [0]",
)
@click.option(
    "--chaos", default="", metavar="LIST", help="Faults to suffer: kill:1@step=20,stop:0@30,slow:1x2,nan:0@7."
)
@click.option(
    "--chaos-seed", type=int, default=0, metavar="S", help="Draws the ranks and steps of kill:*@10-30. [0]"
)
@click.option(
    "--env", multiple=True, metavar="K=V", help="A variable for the workers; may be given several times."
)
@click.option("--no-rehearsal", is_flag=True, help="On several nodes, skip the second of all-reduces before.")
@click.option("--dry-run", is_flag=True, help="Show what would run where, and start nothing.")
@click.option("-m", "--module", is_flag=True, help="PROGRAM is a module, as in python -m.")
@click.option("--compat", is_flag=True, help="PROGRAM is written for PyTorch: `import torch` is disttrain.")
@click.argument("program")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def launch(
    nproc: str | None,
    nnodes: str | None,
    hosts: str | None,
    hostfile: str | None,
    ssh: str | None,
    ranks: int | None,
    transport: str,
    timeout: float,
    max_restarts: int,
    chaos: str,
    chaos_seed: int,
    env: tuple[str, ...],
    no_rehearsal: bool,
    dry_run: bool,
    module: bool,
    compat: bool,
    program: str,
    args: tuple[str, ...],
) -> None:
    """Run PROGRAM, a script, with ARGS on N processes.

    Options of disttrain go before PROGRAM; all that follows it belongs to the program.
    """
    try:
        mine = rank_of_mpi()
        if mine is not None:
            where_said = (
                nproc or nnodes or hosts or hostfile or ssh or ranks or max_restarts or chaos or dry_run
            )
            be_rank(mine, where_said, transport, timeout, parse_env(env), module, compat, (program, *args))
            return
        cluster = find_cluster(nproc=nproc, nnodes=nnodes, hosts=hosts, hostfile=hostfile, ssh=ssh)
        if transport == "shm" and cluster is not None and len(cluster.hosts) > 1:
            raise ConfigError(
                f"--transport shm connects processes of one host, and this job has {len(cluster.hosts)}; "
                f"use --transport mpi, or auto"
            )
        config = LaunchConfig(
            program=program,
            args=args,
            is_module=module,
            compat=compat,
            processes=parse_nproc(nproc or "1") if cluster is None else 1,
            ranks=ranks,
            transport=transport,
            timeout=timeout,
            max_restarts=max_restarts,
            chaos=chaos,
            chaos_seed=chaos_seed,
            env=parse_env(env),
            rehearse=not no_rehearsal,
        )
        if dry_run:
            show(config, cluster)
            return
    except ConfigError as e:
        raise click.UsageError(str(e)) from None
    sys.exit(run(config, cluster))


def rank_of_mpi() -> WorkerEnv | None:
    """Return the contract of this process if ``mpiexec`` or ``srun`` has started it as one of several; else None."""
    env = WorkerEnv.from_environ()
    return env if env.processes > 1 and not env.run_id else None


def be_rank(
    mine: WorkerEnv,
    extra: object,
    transport: str,
    timeout: float,
    env: Mapping[str, str],
    module: bool,
    compat: bool,
    program: tuple[str, ...],
) -> None:
    """Run the program in this process, which is a rank already.

    Raises:
        ConfigError: options say (``extra``) what only a launcher can do.
    """
    if extra:
        raise ConfigError(
            f"this process is one of {mine.processes} that mpiexec or srun has started as ranks; leave out "
            f"the options that start some, or leave out mpiexec"
        )
    from disttrain.launcher.program import Program, run_for_torch

    if mine.rank == 0:
        click.echo(
            f"disttrain: found an MPI world of {mine.processes} processes: they are the ranks", err=True
        )
    os.environ.update(env)
    os.environ.update(replace(mine, transport=transport, timeout=timeout).to_environ())
    if compat:
        run_for_torch()
    loaded = Program.load(list(program), is_module=module)
    loaded.run(loaded.new_main())


def find_cluster(
    *, nproc: str | None, nnodes: str | None, hosts: str | None, hostfile: str | None, ssh: str | None
) -> "Cluster | None":
    """Return the nodes that the options name, else those of the batch job around; None for this machine alone.

    Raises:
        ConfigError: the options contradict each other, or name nodes that are not there.
    """
    alone = not (nnodes or hosts or hostfile or ssh) and not _BATCH.intersection(os.environ)
    if alone and ":" not in (nproc or ""):
        return None
    from disttrain.launcher import hosts as known

    if alone:
        return known.this_node(str(nproc))
    from disttrain.launcher.fleet import SSH

    if nproc is not None and nproc not in ("auto", "cpu", "gpu") and ":" not in nproc:
        parse_nproc(nproc)
    if hosts and hostfile:
        raise ConfigError("--hosts and --hostfile both name the nodes; keep one of them")
    count = known.parse_nnodes(nnodes) if nnodes is not None else None
    if hosts is not None or hostfile is not None:
        named = known.parse_hosts(hosts) if hosts is not None else known.read_hostfile(str(hostfile))
        where = "--hosts" if hosts is not None else "--hostfile"
        return known.make_cluster(hosts=named, where=where, nnodes=count, nproc=nproc, ssh=ssh or SSH)
    found = known.find_allocation()
    if found is None:
        what = "--nnodes" if nnodes is not None else "--ssh"
        raise ConfigError(
            f"{what} needs nodes: name them with --hosts or --hostfile, or run inside a batch job"
        )
    click.echo(f"disttrain: found {found}", err=True)
    return known.make_cluster(
        hosts=found.hosts if nproc is None else tuple(replace(h, slots=None) for h in found.hosts),
        where=found.system,
        nnodes=count,
        nproc=nproc,
        ssh=ssh or SSH,
        srun=found.srun and ssh is None,
        here=found.here,
    )


def show(config: LaunchConfig, cluster: "Cluster | None" = None) -> None:
    """Print what would run where.

    Raises:
        ConfigError: the nodes have more processes than ``--ranks``.
    """
    from disttrain.launcher.placement import UNKNOWN, Machine, table

    names = {0: socket.gethostname()}
    counts: dict[int, int | None] = {}
    if cluster is not None:
        names |= {index: host.name for index, host in cluster.numbered if index > 0}
        counts = {index: _processes(cluster, index, host) for index, host in cluster.numbered}
    known = tuple((index, count) for index, count in counts.items() if count is not None)
    told = len(known) == len(counts)
    if cluster is not None and told:
        config = replace(config, processes=sum(count for _, count in known), nodes=known)
    ranks = f"{config.world_size} rank{'s' * (config.world_size > 1)}, " if told else ""
    click.echo(f"{ranks}transport {config.transport}, would run: {shlex.join(config.program_argv)}")
    if told:
        machine = Machine.look()
        environ, limits = {**os.environ, **config.env}, config.thread_limits()
        envs = config.placements(run_id="", control="")
        places = [(env.node, machine.place(env, environ, limits)) for env in envs]
        rows = [(names[n], place.words if n == 0 else place.words[:2] + UNKNOWN) for n, place in places]
        click.echo("\n".join(table(rows)))
    if cluster is not None:
        for line in _joining(cluster, counts):
            click.echo(line)
    for fault in config.faults([name for index, name in names.items() if index > 0]):
        click.echo(f"chaos: {fault}")


def _processes(cluster: "Cluster", index: int, host: "Host") -> int | None:
    """Return the number of processes of a node; None if that depends on what another host has."""
    if host.slots:
        return host.slots
    if index == 0:
        return cluster.each(count_gpus(), len(os.sched_getaffinity(0)), host.name)
    return int(cluster.nproc) if cluster.nproc is not None and cluster.nproc.isdecimal() else None


def _joining(cluster: "Cluster", counts: Mapping[int, int | None]) -> Iterator[str]:
    """Say how the nodes are reached, and what the job cannot do without."""
    others = [(host, counts[index]) for index, host in cluster.numbered if index > 0]
    if others:
        names = ", ".join(host.name for host, _ in others)
        yield f"reached through {'srun' if cluster.srun else cluster.ssh}: {names}; they decide where it says ?"
    for host, count in others:
        if count is None:
            yield f"{host.name}: " + (f"-n {cluster.nproc}" if cluster.nproc else "a process a GPU, or one")
    if cluster.least < len(cluster.hosts):
        yield f"at least {cluster.least} of {len(cluster.hosts)} nodes"
    if cluster.fewest:
        yield f"at least {cluster.fewest} process{'es' * (cluster.fewest > 1)} on each node"


def run(config: LaunchConfig, cluster: "Cluster | None" = None) -> int:
    """Run the job and return its exit code; a failure has been explained on stderr."""
    with ends_at_once():
        from disttrain.launcher.agent import Agent

    try:
        report = Agent(config, cluster).run()
    except ConfigError as e:
        raise click.UsageError(str(e)) from None
    except RuntimeError as e:
        raise click.ClickException(str(e)) from e
    return report.code
