"""The command ``disttrain``. A subcommand is imported when it is called, so that ``--help`` is quick."""

import importlib
from typing import Final

import click

from disttrain import __version__
from disttrain.launcher.interrupt import CODE, TEXT, ends_at_once

_SECTIONS: Final = {
    "Run a script": {
        "launch": ("disttrain.launcher.launch:launch", "Run it on several processes."),
        "debug": ("disttrain.launcher.debug:debug", "Run all ranks in one process, under a debugger."),
        "submit": ("disttrain.launcher.submit:submit", "Run it as a job of Slurm or PBS."),
    },
    "Look at a running job": {
        "ps": ("disttrain.launcher.see:ps", "List your running jobs."),
        "top": ("disttrain.launcher.top:top", "Show what each rank does, as it goes on."),
        "stack": ("disttrain.launcher.see:stack", "Show where each rank is in its Python code."),
        "logs": ("disttrain.launcher.see:logs", "Print what a job has printed, also after its end."),
        "status": ("disttrain.launcher.submit:status", "Say how a submitted job stands."),
    },
    "Tell it what to do": {
        "ctl": ("disttrain.launcher.see:ctl", "Save, stop, pause or resume after a step."),
        "kill": ("disttrain.launcher.see:kill", "End a job now."),
        "cancel": ("disttrain.launcher.submit:cancel", "End a submitted job."),
    },
    "Check and prepare": {
        "doctor": ("disttrain.launcher.doctor:doctor", "Say what is here, and how the nodes talk."),
        "audit": ("disttrain.launcher.audit:audit", "Prove that -n does not change a script's bits."),
        "compat": ("disttrain.compat.command:compat", "Say what a PyTorch script lacks here, or run it."),
        "warmup": ("disttrain.warmup:warmup", "Compile CPU kernels ahead of the first run."),
    },
    "Files": {
        "ckpt": ("disttrain.checkpoint.command:ckpt", "List, verify and convert checkpoints."),
        "data": ("disttrain.data.command:data", "Pack, index and verify data sets."),
    },
}
"""Heading → name → where the command is, and its line in the list of commands."""
_COMMANDS: Final = {name: found for section in _SECTIONS.values() for name, found in section.items()}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        with ends_at_once():
            command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, _COMMANDS))
        for heading, commands in _SECTIONS.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), line) for name, (_, line) in commands.items()])
        formatter.write_paragraph()
        formatter.write_text("disttrain COMMAND --help says more about each.")

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # click would say "Aborted!", and exit with 1
            click.echo(TEXT, err=True)
            ctx.exit(CODE)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="disttrain %(version)s")
def main() -> None:
    """Train neural networks on many GPUs with NumPy and CuPy arrays, NCCL and MPI."""
