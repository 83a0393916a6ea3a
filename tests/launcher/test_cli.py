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


def test_a_job_of_one_node_loads_nothing_for_others():
    """It would take longer than all else that the launcher does before its workers start."""
    code = "import sys, disttrain.launcher.launch, disttrain.launcher.agent; print(*sys.modules)"

    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()

    assert "disttrain.launcher.agent" in loaded
    assert {"disttrain.launcher.fleet", "disttrain.launcher.wire", "asyncio", "numpy"}.isdisjoint(loaded)
