"""Sharded training on processes: one model, trained in several parallel ways, has the same bits in all of them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = str(Path(__file__).parent / "programs" / "sharded.py")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def digests(*command):
    """Return what the program printed, by the way in which it trained."""
    done = subprocess.run(
        [sys.executable, "-m", "disttrain", *command, PROGRAM],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = dict(re.findall(r"(\w[\w ]*) ([0-9a-f]{64})$", done.stdout, re.MULTILINE))
    assert len(found) == 7
    return found


@pytest.mark.mpi
def test_any_number_of_processes_and_any_way_give_the_same_bits():
    pytest.importorskip("mpi4py")
    expected = digests("debug", "-n", "4")

    assert len(set(expected.values())) == 1
    for n in (2, 3, 4):
        assert digests("launch", "--ranks", "4", "-n", str(n)) == expected


@pytest.mark.mpi
@pytest.mark.parametrize("n", [2, 3])
def test_one_rank_in_each_process(n):
    pytest.importorskip("mpi4py")
    assert len(set(digests("launch", "-n", str(n)).values())) == 1
