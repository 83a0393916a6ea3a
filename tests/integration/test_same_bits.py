"""With --ranks the number of processes changes nothing: the same losses and the same parameters to the last bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import disttrain as dt

PROGRAM = str(Path(__file__).parent / "programs" / "same_bits.py")
DIGITS = str(Path(__file__).parents[2] / "scripts" / "train_digits.py")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def train(command, options, path):
    """Return the printed losses and the saved state dict."""
    done = subprocess.run(
        [sys.executable, "-m", "disttrain", *command, DIGITS, "--losses", "--save", str(path), *options],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split("] ", 1)[-1] if line.startswith("[") else line for line in done.stdout.splitlines()]
    return [line for line in lines if "0x" in line or "accuracy" in line], dt.load(path)


@pytest.mark.mpi
@pytest.mark.parametrize("model", ["cnn", "mlp"])  # BatchNorm and Dropout; Dropout alone
def test_any_number_of_processes_gives_the_same_bits(model, tmp_path):
    pytest.importorskip("mpi4py")
    options = ["--model", model, "--epochs", "2"]
    runs = {
        "debug": train(["debug", "-n", "4"], options, tmp_path / "debug"),
        **{
            n: train(["launch", "--ranks", "4", "-n", str(n)], options, tmp_path / str(n))
            for n in (1, 2, 3, 4)
        },
    }

    losses, state = runs.pop("debug")
    assert len(losses) == 2 * 12 + 1  # 1,437 digits in steps of 4 x 32
    for n, (others, other_state) in runs.items():
        assert others == losses, n
        assert list(other_state) == list(state)
        for name in state:
            assert (other_state[name] == state[name]).all(), (n, name)
            assert other_state[name].dtype is state[name].dtype


def run(command, *options):
    """Return the lines that rank 0 of the program prints."""
    done = subprocess.run(
        [sys.executable, "-m", "disttrain", *command, PROGRAM, *map(str, options)],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line[line.index("=") :] for line in done.stdout.splitlines() if "=" in line]


def launch(processes, transport="auto"):
    return ["launch", "--ranks", "4", "-n", str(processes), "--transport", transport]


@pytest.fixture(scope="module")
def undisturbed():
    """The losses, norms and hashes of two epochs of four ranks in one process, one after the other."""
    return run(["debug", "-n", "4"])


@pytest.mark.mpi
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_a_cnn_a_transformer_and_an_lstm_are_the_same_bits(undisturbed, processes):
    pytest.importorskip("mpi4py")
    assert len(undisturbed) == 3 * (2 * 3 + 1)  # 75 samples in steps of 4 x 8
    assert run(launch(processes)) == undisturbed


def test_they_are_without_mpi_too(undisturbed):
    assert run(launch(3, "shm")) == undisturbed


@pytest.mark.mpi
def test_mixed_precision_is_the_same_bits(undisturbed):
    pytest.importorskip("mpi4py")
    expected = run(["debug", "-n", "4"], "--autocast")

    assert len(expected) == len(undisturbed)
    assert not set(expected) & set(undisturbed)
    for processes in (1, 2, 3):
        assert run(launch(processes), "--autocast") == expected


@pytest.mark.mpi
@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 3), (1, 4)])
def test_another_number_of_processes_in_mid_run_changes_nothing(undisturbed, before, after, tmp_path):
    pytest.importorskip("mpi4py")
    first = run(launch(before), "--epochs", 0, 1, "--save", tmp_path)
    second = run(launch(after), "--epochs", 1, 2, "--resume", tmp_path)

    assert [line for line in undisturbed if " 0 " in line] == [line for line in first if " 0 " in line]
    assert [line for line in undisturbed if " 0 " not in line] == second
