"""``disttrain debug``: all ranks as threads of one process in the foreground: ``breakpoint()`` works."""

import faulthandler
import os
import pdb
import socket
import sys
import time
from typing import Any

import click

from disttrain.collectives.env import hosted_env
from disttrain.launcher.config import ConfigError, LaunchConfig, parse_env
from disttrain.launcher.report import Failure, RunReport, describe_end, order


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("-n", "--ranks", type=int, default=2, metavar="V", help="Ranks, a power of two. [2]")
@click.option(
    "--timeout", type=float, default=1800.0, metavar="S", help="Seconds a rank waits in a collective."
)
@click.option("--env", multiple=True, metavar="K=V", help="A variable; may be given several times.")
@click.option("-m", "--module", is_flag=True, help="PROGRAM is a module, as in python -m.")
@click.option("--compat", is_flag=True, help="PROGRAM is written for PyTorch: `import torch` is disttrain.")
@click.argument("program")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def debug(
    ranks: int,
    timeout: float,
    env: tuple[str, ...],
    module: bool,
    compat: bool,
    program: str,
    args: tuple[str, ...],
) -> None:
    """Run PROGRAM with ARGS on V ranks that are threads of this process, one running at a time.

    The order of the ranks is always the same, and so are the results: those of `disttrain launch --ranks V`.
    """
    try:
        config = LaunchConfig(
            program=program,
            args=args,
            is_module=module,
            compat=compat,
            ranks=ranks,
            transport="local",
            timeout=timeout,
            env=parse_env(env),
        )
    except ConfigError as e:
        raise click.UsageError(str(e)) from None
    sys.exit(run(config))


def run(config: LaunchConfig) -> int:
    """Run the job in this process and return its exit code; a failure has been explained on stderr."""
    started = time.monotonic()
    (place,) = config.placements(run_id="", control="")
    os.environ.update(config.thread_limits() | config.env | place.to_environ())
    faulthandler.enable()
    sys.breakpointhook = _breakpoint

    # These load arrays: after the thread counts are set.
    from disttrain.launcher.hosted import run_hosted
    from disttrain.launcher.program import run_for_torch

    if config.compat:
        run_for_torch()
    outcomes = run_hosted(place, config.program_argv, is_module=config.is_module)
    seconds = round(time.monotonic() - started, 3)
    failures = [
        Failure(
            ranks=(rank,),
            process=0,
            host=socket.gethostname(),
            pid=os.getpid(),
            seconds=seconds,
            what=describe_end(outcome.error, outcome.message, outcome.code),
            code=outcome.code,
            traceback=outcome.traceback,
            follower=outcome.follower,
        )
        for rank, outcome in outcomes.items()
        if outcome.code != 0
    ]
    report = RunReport(
        run_id="",
        generation=0,
        command=tuple(config.argv),
        world_size=config.world_size,
        seconds=seconds,
        code=failures[0].code if failures else 0,
        failures=order(failures),
    )
    if failures:
        print(report.text(), file=sys.stderr)
    return report.code


def _breakpoint(*args: Any, **kwargs: Any) -> Any:
    """Stop in the rank that called ``breakpoint()``, with its number in the prompt."""
    env = hosted_env()
    if env is None or "PYTHONBREAKPOINT" in os.environ or args or kwargs:
        return sys.__breakpointhook__(*args, **kwargs)
    debugger = pdb.Pdb()
    debugger.prompt = f"[{env.rank}] (Pdb) "
    debugger.set_trace(sys._getframe(1))
    return None
