"""``disttrain debug``: all ranks as threads of one process in the foreground: ``breakpoint()`` works."""

import bdb
import faulthandler
import os
import socket
import sys
import time

import click

from disttrain.collectives.env import hosted_rank
from disttrain.collectives.ledger import read
from disttrain.launcher.config import ConfigError, LaunchConfig, parse_env
from disttrain.launcher.report import Failure, Position, RunReport, describe_end, locate, order


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("-n", "--ranks", type=int, default=2, metavar="V", help="Ranks, a power of two. [2]")
@click.option(
    "--timeout", type=float, default=1800.0, metavar="S", help="Seconds a rank waits in a collective."
)
@click.option(
    "--schedule-seed", type=click.IntRange(0), metavar="S", help="Draws the order of the ranks. [rank order]"
)
@click.option(
    "--schedules",
    type=click.IntRange(1),
    metavar="K",
    help="Try the orders of K seeds, and compare what comes out.",
)
@click.option("--pdb", "post_mortem", is_flag=True, help="Stop in the debugger where the first rank fails.")
@click.option("--record", default="", hidden=True, help="Folder for what the ranks compute.")
@click.option("--env", multiple=True, metavar="K=V", help="A variable; may be given several times.")
@click.option("-m", "--module", is_flag=True, help="PROGRAM is a module, as in python -m.")
@click.option("--compat", is_flag=True, help="PROGRAM is written for PyTorch: `import torch` is disttrain.")
@click.argument("program")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def debug(
    ranks: int,
    timeout: float,
    schedule_seed: int | None,
    schedules: int | None,
    post_mortem: bool,
    record: str,
    env: tuple[str, ...],
    module: bool,
    compat: bool,
    program: str,
    args: tuple[str, ...],
) -> None:
    """Run PROGRAM with ARGS on V ranks that are threads of this process, one running at a time.

    The order of the ranks is always the same, and so are the results: those of `disttrain launch --ranks V`. A seed
    gives another order, to find what depends on it.
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
            schedule=-1 if schedule_seed is None or schedules else schedule_seed,
            audit=record,
            audit_steps=1 << 30 if record else 0,
            env=parse_env(env),
        )
    except ConfigError as e:
        raise click.UsageError(str(e)) from None
    if schedules is None:
        sys.exit(run(config, post_mortem=post_mortem))
    if post_mortem:
        raise click.UsageError(
            "--pdb and --schedules exclude each other; use --pdb with the seed that is found"
        )
    from disttrain.launcher.schedules import try_schedules

    first = schedule_seed or 0
    sys.exit(try_schedules(config, range(first, first + schedules)))


def run(config: LaunchConfig, *, post_mortem: bool = False) -> int:
    """Run the job in this process and return its exit code; a failure has been explained on stderr.

    Args:
        post_mortem: whether to stop in the debugger where the first rank fails.
    """
    started = time.monotonic()
    (place,) = config.placements(run_id="", control="")
    os.environ.update(config.thread_limits() | config.env | place.to_environ())
    faulthandler.enable()

    # These load arrays: after the thread counts are set.
    from disttrain.launcher.debugger import Debugging
    from disttrain.launcher.hosted import run_hosted
    from disttrain.launcher.program import run_for_torch

    if config.compat:
        run_for_torch()
    debugging = Debugging(range(config.world_size), sys.stdout)
    positions: tuple[Position, ...] = ()

    def on_error(rank: int, error: BaseException) -> None:
        nonlocal positions
        hosted = hosted_rank()
        assert hosted is not None
        positions = locate(read(bytes(hosted.host.ledger.memory)))
        if post_mortem and not isinstance(error, (SystemExit, bdb.BdbQuit)):
            debugging.post_mortem(rank, error)

    with debugging.installed():
        outcomes = run_hosted(
            place,
            config.program_argv,
            is_module=config.is_module,
            on_turn=debugging.take_turn,
            on_error=on_error,
        )
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
        positions=positions,
    )
    if failures:
        print(report.text(), file=sys.stderr)
    return report.code
