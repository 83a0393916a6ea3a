"""The command ``disttrain``. A subcommand is imported when it is called, so that ``--help`` is quick."""

import importlib
from typing import Final

import click

from disttrain import __version__

_COMMANDS: Final = {
    "launch": ("disttrain.launcher.launch:launch", "Run a script on several processes."),
    "ps": ("disttrain.launcher.see:ps", "List your running jobs."),
    "top": ("disttrain.launcher.top:top", "Show what the ranks of a job do, as it goes on."),
    "stack": ("disttrain.launcher.see:stack", "Show where the ranks of a job are in their Python code."),
    "logs": (
        "disttrain.launcher.see:logs",
        "Print what a job has printed.",
    ),
    "ctl": ("disttrain.launcher.see:ctl", "Tell a job to save, stop, pause or resume after a step."),
    "kill": ("disttrain.launcher.see:kill", "End a job now."),
    "debug": (
        "disttrain.launcher.debug:debug",
        "Run all ranks of a script in one process, under a debugger.",
    ),
    "submit": ("disttrain.launcher.submit:submit", "Run a script as a job of Slurm or PBS."),
    "status": ("disttrain.launcher.submit:status", "Say how a submitted job stands."),
    "cancel": ("disttrain.launcher.submit:cancel", "End a submitted job."),
    "doctor": (
        "disttrain.launcher.doctor:doctor",
        "Say what is here, in what nodes differ, and how they talk.",
    ),
    "ckpt": ("disttrain.checkpoint.command:ckpt", "List, verify, compare, reshard and export checkpoints."),
    "audit": (
        "disttrain.launcher.audit:audit",
        "Prove that a script computes the same bits on any number of processes.",
    ),
    "warmup": (
        "disttrain.warmup:warmup",
        "Compile the CPU kernels of usual networks ahead of the first run.",
    ),
    "data": ("disttrain.data.command:data", "Pack, index and verify data sets of tar shards."),
    "compat": (
        "disttrain.compat.command:compat",
        "List what a PyTorch script uses that is not here, or run it unmodified.",
    ),
}
"""Name → where the command is, and its line in the list of commands."""


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="disttrain %(version)s")
def main() -> None:
    """Train neural networks on many GPUs with NumPy and CuPy arrays, NCCL and MPI."""
