"""The command itself: what it lists is there, and what is not needed is not loaded."""

import subprocess
import sys
from pathlib import Path

import click
import pytest

from disttrain.cli import main

ROOT = Path(__file__).resolve().parents[2]


def test_every_listed_command_is_there():
    context = click.Context(main)

    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert isinstance(command, click.Command)
        assert command.name == name


def test_an_unknown_command_is_refused():
    done = subprocess.run(
        [sys.executable, "-m", "disttrain", "lunch"],
        cwd=ROOT, capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip

    assert done.returncode == 2
    assert "No such command 'lunch'" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["launch", "--help"], ["debug", "--help"], ["compat", "--help"], ["audit", "--help"]],
)
def test_help_loads_no_arrays_and_no_sockets(arguments):
    program = (
        f"import sys; sys.argv[1:] = {arguments}\n"
        "from disttrain.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print('loaded', sorted({'numpy', 'numba', 'zmq', 'mpi4py'} & sys.modules.keys()))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ")
    assert done.stdout.endswith("loaded []\n")
