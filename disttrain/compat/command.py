"""``disttrain compat``: which of PyTorch's names a script uses and which are here; or run it as it is."""

from __future__ import annotations

import os
import sys

import click


@click.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False})
@click.option(
    "--run", "run_it", is_flag=True, help="Run SCRIPT with the ARGS behind it: `import torch` is disttrain."
)
@click.option("-m", "--module", is_flag=True, help="With --run: SCRIPT is a module, as in python -m.")
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def compat(run_it: bool, module: bool, script: str, args: tuple[str, ...]) -> None:
    """List the names of PyTorch that SCRIPT (scripts, folders) uses, and which of them are not here.

    The exit code is 0 if all are here, else 1. On several ranks: `disttrain launch --compat -n 2 SCRIPT ARGS`.
    """
    if run_it:
        from disttrain.compat.run import run

        if not module and not os.path.isfile(script):
            raise click.UsageError(f"there is no script {script!r} in {os.getcwd()}; check the path")
        run([script, *args], is_module=module)
        return
    if module:
        raise click.UsageError("-m belongs to --run; name the files or folders to read")
    from disttrain.compat.scan import report

    sys.exit(report([script, *args]))
