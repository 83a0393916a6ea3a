"""The configuration of a job: which ranks live where, and what is refused."""

import os

import pytest

from disttrain.collectives.env import WorkerEnv
from disttrain.launcher import config, gpus
from disttrain.launcher.config import ConfigError, LaunchConfig, parse_nproc


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.touch()
    return str(path)


@pytest.mark.parametrize(
    ("processes", "ranks", "runs"),
    [
        (1, None, [(0, 1)]),
        (3, None, [(0, 1), (1, 1), (2, 1)]),
        (3, 4, [(0, 2), (2, 1), (3, 1)]),
        (1, 4, [(0, 4)]),
        (3, 8, [(0, 3), (3, 3), (6, 2)]),
    ],
)
def test_ranks_are_placed_in_consecutive_runs(script, processes, ranks, runs):
    job = LaunchConfig(script, processes=processes, ranks=ranks)

    places = job.placements(run_id="x", control="ipc://y")

    assert [(p.rank, p.hosted) for p in places] == runs
    assert [p.process for p in places] == list(range(processes))
    assert {(p.world_size, p.processes, p.fixed_order) for p in places} == {
        (ranks or processes, processes, ranks is not None)
    }


def test_the_contract_survives_the_environment(script):
    for place in LaunchConfig(script, processes=3, ranks=4, timeout=2.5).placements(
        run_id="x", control="ipc://y"
    ):
        assert WorkerEnv.from_environ(place.to_environ()) == place


def test_processes_that_share_cores_get_one_thread_unless_told_otherwise(script, monkeypatch):
    for name in config.THREAD_COUNTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")

    assert LaunchConfig(script).thread_limits() == {}
    limits = LaunchConfig(script, processes=2).thread_limits()
    assert limits == dict.fromkeys(set(config.THREAD_COUNTS) - {"OMP_NUM_THREADS"}, "1")
    assert LaunchConfig(script, ranks=2).thread_limits() == limits


def test_an_unreadable_script_is_refused(script, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, how: False)  # root may read everything

    with pytest.raises(ConfigError, match=r"train.py' cannot be read; check its permissions"):
        LaunchConfig(script)


def test_cpu_is_the_number_of_cores_this_process_may_use():
    assert parse_nproc("cpu") == len(os.sched_getaffinity(0))


def test_gpus_are_counted_as_the_workers_would_see_them(monkeypatch):
    monkeypatch.setattr(gpus, "glob", lambda pattern: ["/dev/nvidia0", "/dev/nvidia1", "/dev/nvidia2"])
    monkeypatch.setattr(gpus, "_nvml", lambda: "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert parse_nproc("gpu") == parse_nproc("auto") == 3

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert parse_nproc("gpu") == 2

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(
        ConfigError, match=r"-n gpu: no GPU is visible \(CUDA_VISIBLE_DEVICES=''\); use -n cpu"
    ):
        parse_nproc("gpu")
    assert parse_nproc("auto") == parse_nproc("cpu")


def test_the_worker_is_told_that_the_program_is_for_pytorch(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("")

    config = LaunchConfig(program=str(script), args=("--lr", "1"), compat=True)

    assert config.argv == ["--compat", str(script), "--lr", "1"]
    assert config.program_argv == [str(script), "--lr", "1"]


@pytest.mark.parametrize(
    ("visible", "processes", "said"), [("", 1, "no visible GPUs;"), ("1", 2, "1 visible GPU;")]
)
def test_nccl_needs_a_gpu_for_each_process(monkeypatch, script, visible, processes, said):
    monkeypatch.setattr(gpus, "glob", lambda pattern: ["/dev/nvidia0", "/dev/nvidia1"])
    monkeypatch.setattr(gpus, "_nvml", lambda: "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    with pytest.raises(ConfigError, match=f"needs a GPU for each process, got -n {processes} and {said}"):
        LaunchConfig(script, processes=processes, transport="nccl")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    LaunchConfig(script, processes=2, transport="nccl")
