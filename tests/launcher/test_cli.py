"""The command itself: what it lists is there, and what is not needed is not loaded."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

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


INTERRUPTED = """
import os, signal, sys
from importlib.abc import MetaPathFinder

class Finder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == sys.argv[-1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from disttrain.__main__ import main
main()
"""
"""Ctrl-C as a module begins to be imported, which the last argument names."""


@pytest.mark.parametrize(
    "module",
    ["click", "disttrain.launcher.launch", "disttrain.launcher.agent", "zmq", "disttrain.launcher.node"],
)
def test_ctrl_c_while_the_launcher_is_loaded_is_told_in_a_line(tmp_path, module):
    (tmp_path / "script.py").write_text("print('ran')")

    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "launch", "script.py", module],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout, done.stderr) == (130, "", "disttrain: stopped by SIGINT\n")
    assert not [p for p in tmp_path.rglob("*") if p.parent.name == "disttrain"]


def test_ctrl_c_that_is_ignored_stays_so(tmp_path):
    """As in a shell's background job."""
    (tmp_path / "script.py").write_text("print('ran')")

    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "launch", "script.py", "zmq"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True, text=True, timeout=30, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (0, "ran\n")


def test_ctrl_c_in_a_command_is_told_in_a_line(monkeypatch):
    def interrupted(**options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("disttrain.launcher.doctor.doctor.callback", interrupted)

    done = CliRunner().invoke(main, ["doctor"])

    assert (done.exit_code, done.output) == (130, "disttrain: stopped by SIGINT\n")


def test_a_job_of_one_node_loads_nothing_for_others():
    """It would take longer than all else that the launcher does before its workers start."""
    code = "import sys, disttrain.launcher.launch, disttrain.launcher.agent; print(*sys.modules)"

    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()

    assert "disttrain.launcher.agent" in loaded
    assert {"disttrain.launcher.fleet", "disttrain.launcher.wire", "asyncio", "numpy"}.isdisjoint(loaded)
