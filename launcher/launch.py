"""``disttrain launch``: run a script on several processes, and say what went wrong first."""

import sys

import click

from disttrain.launcher.config import TRANSPORTS, ConfigError, LaunchConfig, parse_env, parse_nproc


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "-n",
    "--nproc",
    default="1",
    metavar="N",
    help="Processes: a number, auto (GPUs, else cores), cpu or gpu. [1]",
)
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
    "--env", multiple=True, metavar="K=V", help="A variable for the workers; may be given several times."
)
@click.option("-m", "--module", is_flag=True, help="PROGRAM is a module, as in python -m.")
@click.option("--compat", is_flag=True, help="PROGRAM is written for PyTorch: `import torch` is disttrain.")
@click.argument("program")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def launch(
    nproc: str,
    ranks: int | None,
    transport: str,
    timeout: float,
    max_restarts: int,
    env: tuple[str, ...],
    module: bool,
    compat: bool,
    program: str,
    args: tuple[str, ...],
) -> None:
    """Run PROGRAM, a script, with ARGS on N processes.

    Options of disttrain go before PROGRAM; all that follows it belongs to the program.
    """
    try:
        config = LaunchConfig(
            program=program,
            args=args,
            is_module=module,
            compat=compat,
            processes=parse_nproc(nproc),
            ranks=ranks,
            transport=transport,
            timeout=timeout,
            max_restarts=max_restarts,
            env=parse_env(env),
        )
    except ConfigError as e:
        raise click.UsageError(str(e)) from None
    sys.exit(run(config))


def run(config: LaunchConfig) -> int:
    """Run the job and return its exit code; a failure has been explained on stderr."""
    from disttrain.launcher.agent import Agent

    try:
        report = Agent(config).run()
    except RuntimeError as e:
        raise click.ClickException(str(e)) from e
    return report.code
