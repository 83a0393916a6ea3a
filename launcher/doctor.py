"""``disttrain doctor``: what a job would find on this machine, or on several nodes, and whether its ranks can talk."""

import sys

import click

from disttrain.launcher import preflight
from disttrain.launcher.config import REHEARSAL, ConfigError, LaunchConfig, parse_nproc
from disttrain.launcher.launch import find_cluster, run


@click.command()
@click.option(
    "-n", "--nproc", metavar="N|MIN:MAX", help="Processes of each node, as for disttrain launch. [2]"
)
@click.option("--nnodes", metavar="N|MIN:MAX", help="Nodes: so many of --hosts or of the allocation. [all]")
@click.option("--hosts", metavar="A:4,B:4", help="Nodes with their numbers of processes, reached over ssh.")
@click.option("--hostfile", metavar="FILE", help="The same, a host a line.")
@click.option("--ssh", metavar="COMMAND", help="How to reach them, instead of ssh.")
def doctor(
    nproc: str | None, nnodes: str | None, hosts: str | None, hostfile: str | None, ssh: str | None
) -> None:
    """Say what is here, in what the nodes differ, and how fast their ranks exchange arrays."""
    try:
        cluster = find_cluster(nproc=nproc, nnodes=nnodes, hosts=hosts, hostfile=hostfile, ssh=ssh)
        config = LaunchConfig(
            program=REHEARSAL,
            args=("report",),
            is_module=True,
            processes=parse_nproc(nproc or "2") if cluster is None else 1,
            timeout=60.0,
        )
    except ConfigError as e:
        raise click.UsageError(str(e)) from None
    facts = preflight.gather()
    for name, value in facts.items():
        if name != "clock":
            click.echo(f"{name}: {preflight.say(name, value)}")
    for line in preflight.compare([facts]):
        click.echo(f"warning: {line}")
    sys.stdout.flush()
    sys.exit(run(config, cluster))
