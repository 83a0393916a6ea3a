"""What is compared between nodes before the first step."""

import subprocess
import sys

import pytest

from disttrain.launcher import preflight

HERE = {"host": "a", "numpy": "2.1", "GPUs": ["H100", "H100"], "free shared memory": 1 << 33, "clock": 1.0}


def test_equal_nodes_have_nothing_to_say():
    assert preflight.compare([HERE, HERE | {"host": "b", "clock": 1.5, "free shared memory": 1 << 32}]) == []


def test_a_difference_is_told_with_the_nodes_that_have_it():
    nodes = [
        HERE,
        HERE | {"host": "b"},
        HERE | {"host": "c", "numpy": "2.2", "GPUs": ["H100"], "$OMP_NUM_THREADS": "4"},
    ]

    assert preflight.compare(nodes) == [
        "numpy differs: 2.1 on a, b; 2.2 on c",
        "GPUs differs: 2 x H100 on a, b; 1 x H100 on c",
        "$OMP_NUM_THREADS differs: not set on a, b; 4 on c",
    ]


def test_many_nodes_are_counted():
    nodes = [HERE | {"host": f"n{i}"} for i in range(9)] + [HERE | {"host": "x", "numpy": "1"}]

    assert preflight.compare(nodes) == ["numpy differs: 2.1 on n0, n1, n2 and 6 more; 1 on x"]


def test_too_little_room_and_a_wrong_clock_are_told():
    nodes = [HERE, HERE | {"host": "b", "free shared memory": 1 << 20, "free disk": 5 << 20}]

    assert preflight.compare(nodes, [0.0, -7200.0]) == [
        "b has little free shared memory: 1 MiB",
        "b has little free disk: 5 MiB",
        "the clock of b is -7200.0 s off; run an NTP client there",
    ]


def test_facts_tell_versions_and_what_the_environment_sets(monkeypatch):
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("MY_SECRET", "x")

    facts = preflight.gather()

    assert facts["Python"] == sys.version.split()[0]
    assert facts["$NCCL_DEBUG"] == "INFO"
    assert "x" not in facts.values()
    assert preflight.compare([facts, facts]) == []


@pytest.mark.mpi
def test_the_doctor_tells_what_is_here_and_how_fast_it_is(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "disttrain", "doctor", "-n", "2"], capture_output=True, text=True, timeout=90
    )

    assert done.returncode == 0, done.stderr
    assert "\nPython: 3." in done.stdout
    assert "all-reduce over 2 ranks: 4 bytes in " in done.stdout
