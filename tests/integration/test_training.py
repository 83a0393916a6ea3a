"""The example programs, started as their users start them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
DISTTRAIN = [sys.executable, "-m", "disttrain"]


def run(command, expect=0):
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "start",
    [
        [sys.executable],
        [*DISTTRAIN, "debug", "-n", "2"],
        pytest.param([*DISTTRAIN, "launch", "-n", "2"], marks=pytest.mark.mpi),
    ],
)
def test_the_line_is_found(start):
    out = run([*start, str(SCRIPTS / "train_linear.py")])

    slope, offset = map(float, re.search(r"y = (\S+) x \+ (\S+)", out).groups())
    assert slope == pytest.approx(3, abs=0.05)
    assert offset == pytest.approx(2, abs=0.05)


@pytest.mark.mpi
def test_the_cnn_reads_98_percent_of_held_out_digits_on_2_ranks():
    out = run([*DISTTRAIN, "launch", "-n", "2", str(SCRIPTS / "train_digits.py")])

    assert float(re.search(r"held-out digits: (\S+)%", out)[1]) >= 98


def test_the_mlp_learns_alone():
    out = run([sys.executable, str(SCRIPTS / "train_digits.py"), "--model", "mlp", "--epochs", "5"])

    assert float(re.search(r"held-out digits: (\S+)%", out)[1]) >= 90


@pytest.mark.mpi
def test_loader_workers_deal_the_same_samples():
    program = [*DISTTRAIN, "launch", "-n", "2", str(SCRIPTS / "train_digits.py"), "--epochs", "1", "--losses"]

    assert re.findall("0x.*", run(program)) == re.findall("0x.*", run([*program, "--workers", "2"]))


UNWRAPPED = """
import disttrain as dt
layer = dt.nn.Linear(2, 2)
optimizer = dt.optim.SGD(layer.parameters(), lr=0.1)
layer(dt.ones(1, 2)).sum().backward()
optimizer.step()
"""


@pytest.mark.mpi
def test_training_an_unwrapped_model_on_two_ranks_is_refused(tmp_path):
    script = tmp_path / "unwrapped.py"
    script.write_text(UNWRAPPED)

    assert run([sys.executable, str(script)]) == ""
    out = run([*DISTTRAIN, "launch", "-n", "2", str(script)], expect=1)
    assert "UnwrappedModel" in out
    assert "model = disttrain.nn.parallel.DistributedDataParallel(model)" in out
    assert str(script) in out


@pytest.mark.slow
def test_the_benchmark_agrees_with_pytorch():
    pytest.importorskip("torch")

    out = run(
        [
            sys.executable,
            str(SCRIPTS / "bench_training.py"),
            "--against",
            "torch",
            "--models",
            "MLP",
            "LSTM",
            "regression",
            "--ranks",
            "1",
            "--steps",
            "2",
            "--turns",
            "2",
        ]
    )

    assert "ERROR" not in out
    assert out.count(" ms") == 3 * 4  # two MLPs


@pytest.mark.slow
def test_the_benchmark_of_operations_agrees_with_pytorch():
    pytest.importorskip("torch")

    out = run([sys.executable, str(SCRIPTS / "bench_ops.py"), "--against", "torch", "--repeats", "1"])

    assert "ERROR" not in out
    assert "Adam" in out


@pytest.mark.slow
def test_the_benchmark_of_the_control_plane_loses_no_agent():
    found = json.loads(
        run([sys.executable, str(SCRIPTS / "bench_control_plane.py"), "--agents", "40", "--seconds", "2"])
    )

    assert (found["agents"], found["lost"]) == (40, 0)
    assert found["beats"] >= 40


@pytest.mark.slow
def test_the_benchmark_of_the_overhead_prints_both_sides():
    pytest.importorskip("torch", reason="compares with torch")

    out = run([sys.executable, str(SCRIPTS / "bench_overhead.py"), "--against", "torch"])

    assert out.count("ratio") == 4
    assert out.count("µs") == 6


SPREAD = """
import numpy as np
import disttrain as dt
from disttrain.nn.parallel import DistributedDataParallel
from disttrain.parallel.zero import ZeroOptimizer

rank = dt.distributed.get_rank()
x = dt.tensor(np.random.default_rng(rank).standard_normal((32, 300)).astype(np.float32))
found = []
for make in (dt.optim.Adam, lambda params: ZeroOptimizer(params, dt.optim.Adam)):
    dt.manual_seed(0)
    model = DistributedDataParallel(dt.nn.Sequential(dt.nn.Linear(300, 500), dt.nn.ReLU(), dt.nn.Linear(500, 9)))
    optimizer = make(model.parameters())
    for _ in range(5):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    found.append([p.detach().numpy() for p in model.parameters()])
assert all((a == b).all() for a, b in zip(*found))
optimizer.consolidate_state_dict()
if rank == 0:
    print("state of", len(optimizer.state_dict()["state"]), "parameters, here", len(optimizer.optim.state))
"""


@pytest.mark.mpi
def test_a_spread_optimizer_steps_as_the_plain_one_on_processes(tmp_path):
    (tmp_path / "spread.py").write_text(SPREAD)

    out = run([*DISTTRAIN, "launch", "-n", "2", str(tmp_path / "spread.py")])

    assert re.search(r"state of 4 parameters, here [123]\n", out)


UNSEEDED = """
import disttrain as dt

loader = dt.data.DataLoader(dt.data.TensorDataset(dt.arange(64)), batch_size=4, shuffle=True)
model = dt.nn.parallel.DistributedDataParallel(dt.nn.Linear(2, 2))
for epoch in range(2):
    print("samples", epoch, *[i for (batch,) in loader for i in batch.tolist()])
"""


@pytest.mark.mpi
def test_without_a_seed_processes_still_deal_every_sample_once_and_not_as_the_last_time(tmp_path):
    (tmp_path / "unseeded.py").write_text(UNSEEDED)

    runs = [run([*DISTTRAIN, "launch", "-n", "2", str(tmp_path / "unseeded.py")]) for _ in range(2)]

    orders = set()
    for out in runs:
        for epoch in "01":
            dealt = re.findall(rf"\[(\d)\] samples {epoch} (.*)", out)
            assert len(dealt) == 2, out
            assert sorted(int(i) for _, indices in dealt for i in indices.split()) == list(range(64)), out
            orders.add(tuple(sorted(dealt)))
    assert len(orders) == 4


@pytest.mark.mpi
def test_the_script_in_the_readme_computes_the_same_bits_on_any_number_of_processes(tmp_path):
    readme = (SCRIPTS.parent / "README.md").read_text()
    (tmp_path / "train.py").write_text(re.search(r"```python\n(.*?)```", readme, re.S)[1])

    out = run([*DISTTRAIN, "audit", "--processes", "1,2", str(tmp_path / "train.py")])

    assert "equal: 2 ranks computed the same bits on 1, 2 processes" in out


@pytest.mark.slow
@pytest.mark.mpi
def test_the_benchmark_of_collectives_prints_all_sides():
    pytest.importorskip("torch", reason="compares with torch")

    out = run([sys.executable, str(SCRIPTS / "bench_collectives.py"), "--against", "gloo", "--turns", "1"])

    assert len(re.findall(r"^ +\d+ +(?:[\d.]+ us +){5}(?:[\d.]+ *){4}$", out, re.M)) == 8
