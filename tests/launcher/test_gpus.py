"""What is known of GPUs, through the driver's library: a small one of our own, with the functions that are called."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import fake_nvml
import pytest

from disttrain.launcher import gpus
from disttrain.launcher.gpus import Gpu

ROOT = Path(__file__).resolve().parents[2]
WAITS = "import signal; print('ready', flush=True); signal.pause()"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return fake_nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def machine(tmp_path):
    """Make the files of four GPUs, the first two near NUMA node 1."""
    for i, node in enumerate([1, 1, 0, -1]):
        device = tmp_path / f"sys/bus/pci/devices/0000:{i + 1}a:00.0"
        device.mkdir(parents=True)
        (device / "numa_node").write_text(f"{node}\n")
    return tmp_path


def ask(code, environ):
    program = f"import json, os; from pathlib import Path; from disttrain.launcher import gpus; {code}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
        | {"PYTHONPATH": str(ROOT)}
        | environ,
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def seen(machine, environ):
    return ask(
        f"print(json.dumps([(g.name, g.numa, g.model) for g in gpus.visible(root=Path({str(machine)!r}))]))",
        environ,
    )


def used(environ):
    return ask(
        "uses = [gpus.use(g) for g in gpus.visible()]; "
        "print(json.dumps([u and (u.name, u.busy, u.used >> 30, u.free) for u in uses]))",
        environ,
    )


H100 = "NVIDIA H100"


def test_the_driver_tells_the_gpus_with_their_numa_nodes(library, machine):
    assert seen(machine, library | {"FAKE_GPUS": "4"}) == [
        ["0", 1, H100],
        ["1", 1, H100],
        ["2", 0, H100],
        ["3", -1, H100],
    ]
    assert seen(machine, library) == []


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("2, 0", [["2", 0, H100], ["0", 1, H100]]),
        ("3,GPU-1f1", [["3", -1, H100], ["GPU-1f1", 1, H100]]),
        ("2,7,3", [["2", 0, H100]]),  # CUDA looks no further either
        ("MIG-part,MIG-other", [["MIG-part", -1, H100]]),
        ("-1", []),
        ("", []),
    ],
)
def test_visible_devices_decide_which_ones(library, machine, visible, expected):
    assert seen(machine, library | {"FAKE_GPUS": "4", "CUDA_VISIBLE_DEVICES": visible}) == expected


def test_how_busy_they_are(library):
    assert used(library | {"FAKE_GPUS": "2", "CUDA_VISIBLE_DEVICES": "1,0,MIG-part"}) == [
        ["1", 0.2, 2, "78.0 of 80.0 GiB"],
        ["0", 0.1, 1, "79.0 of 80.0 GiB"],
        ["MIG-part", None, 2, "78.0 of 80.0 GiB"],
    ]


def test_one_that_has_fallen_off_the_bus_is_there_and_no_more(library, machine):
    environ = library | {"FAKE_GPUS": "3", "FAKE_LOST": "1"}

    assert [gpu[1:] for gpu in seen(machine, environ)] == [[1, H100], [-1, "unknown"], [0, H100]]
    assert [use and use[0] for use in used(environ)] == ["0", None, "2"]


def test_a_driver_that_does_not_answer_is_told(library):
    said = ask("print(json.dumps(gpus.trouble()))", library | {"FAKE_GPUS": "1", "FAKE_INIT": "18"})

    assert said == "the driver does not answer: RM has detected an NVML/RM version mismatch."


@pytest.fixture
def without_driver(monkeypatch):
    monkeypatch.setattr(gpus, "glob", lambda pattern: ["/dev/nvidia0", "/dev/nvidia1"])
    monkeypatch.setattr(gpus, "_nvml", lambda: "why not")


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["0", "1"]),
        ("1", ["1"]),
        ("0,2", ["0"]),
        ("GPU-1,GPU-2,GPU-3", ["GPU-1", "GPU-2"]),
        ("MIG-a,MIG-b,MIG-c", ["MIG-a", "MIG-b", "MIG-c"]),
    ],
)
@pytest.mark.usefixtures("without_driver")
def test_without_the_library_there_are_as_many_as_there_are_files(visible, names):
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}

    found = gpus.visible(environ)

    assert found == tuple(map(Gpu, names))
    assert [gpus.use(gpu) for gpu in found] == [None] * len(names)


def test_the_table_says_what_each_rank_gets(start, library):
    code, out, err = start(WAITS, "launch", "-n", "gpu", "--dry-run", **library, FAKE_GPUS="2").end()

    assert (code, err) == (0, "")
    _, heading, *lines = (re.split(r"  +", line) for line in out.splitlines())
    assert heading == ["rank", "process", "host", "GPU", "GPU free", "NUMA", "threads", "cores"]
    assert [line[3:5] for line in lines] == [["0", "79.0 of 80.0 GiB"], ["1", "78.0 of 80.0 GiB"]]


def test_ps_and_top_show_use_and_memory(start, tool, library):
    job = start(WAITS, "launch", "-n", "3", **library, FAKE_GPUS="2")
    for _ in range(3):
        job.wait_for("ready")

    table = [re.split(r"  +", line) for line in tool("ps")[1].splitlines()]
    screen = [re.split(r"  +", line.strip()) for line in tool("top")[1].splitlines()]

    about = dict(zip(*table, strict=True))
    assert (about["GPU USE"], about["GPU MEMORY"]) == ("15%", "3.0 GiB")
    columns = [dict(zip(screen[1], line, strict=False)) for line in screen[2:5]]
    assert [(c["GPU"], c["GPU USE"], c["GPU MEMORY"]) for c in columns] == [
        ("0", "10%", "1,024 of 81,920 MiB"),
        ("1", "20%", "2,048 of 81,920 MiB"),
        ("-", "-", "-"),
    ]
    tool("kill", about["JOB"])
    job.end()


def test_without_the_package_the_columns_are_left_out_and_that_is_said(start, tool, library, tmp_path):
    (tmp_path / "pynvml.py").write_text("raise ImportError('No module named pynvml')\n")
    environ = library | {"FAKE_GPUS": "1", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    job = start(WAITS, "launch", **environ)
    job.wait_for("ready")

    _, table, _ = tool("ps")
    _, screen, _ = tool("top")

    assert "GPU" not in table
    assert "GPU MEMORY" not in screen
    assert (
        'use and memory of GPUs are not known: nvidia-ml-py is not installed (pip install "disttrain[gpu]")'
        in screen
    )
    tool("kill", table.splitlines()[1].split()[0])
    job.end()
