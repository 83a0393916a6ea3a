"""PyTorch's places for what a script of ``torchrun`` imports, by its own names (``disttrain compat``)."""

import os
import re
import subprocess
import sys

import pytest

import disttrain as dt
import disttrain.distributed as dist
from disttrain.distributed.algorithms import Join, ddp_comm_hooks
from disttrain.distributed.elastic.multiprocessing.errors import record
from disttrain.nn.parallel import DistributedDataParallel
from disttrain.parallel import comm_hooks

SCRIPT = """
import torch
import torch.distributed as dist
from torch.distributed import init_device_mesh
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks as default
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel


@record
def main():
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    assert isinstance(mesh, DeviceMesh)
    model = DistributedDataParallel(torch.nn.Linear(1, 1, bias=False), device_mesh=mesh)
    assert default.bf16_compress_hook is bf16_compress_hook
    model.register_comm_hook(None, bf16_compress_hook)
    with Join([model]):
        for _ in range(1 + dist.get_rank()):
            model.zero_grad()
            model(torch.ones(1, 1)).sum().backward()
        print("gradient", model.module.weight.grad.item())


main()
"""


def test_a_script_that_imports_them_runs_as_it_is(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)

    done = subprocess.run(
        [sys.executable, "-m", "disttrain", "debug", "-n", "2", "--compat", str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(line.split("] ")[-1] for line in done.stdout.splitlines() if "gradient" in line) == [
        "gradient 0.5",  # the second step of rank 1 counts rank 0, which had ended
        "gradient 1.0",
    ]


@pytest.mark.parametrize(
    ("statement", "instead"),
    [
        ("from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook", "bf16_compress_hook"),
        ("import torch.distributed.checkpoint as dcp", r"disttrain.checkpoint.save\(\) and load\(\)"),
        ("from torch.distributed.launcher.api import elastic_launch", r"disttrain.launch\(fn"),
        ("from torch.distributed import TCPStore", "the launcher brings the ranks together"),
        ("from torch.distributed.tensor.parallel import parallelize_module", r"fully_shard\(\)"),
        ("import torch.distributed.rpc as rpc", r"send\(\) and recv\(\)"),
    ],
)
def test_what_is_not_here_says_what_is(tmp_path, statement, instead):
    script = tmp_path / "train.py"
    script.write_text(statement)

    done = subprocess.run(
        [sys.executable, "-m", "disttrain", "compat", "--run", str(script)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "ModuleNotFoundError" in last or "ImportError" in last
    assert "is PyTorch's, not in disttrain" in last
    assert re.search(instead, last)


def test_places_are_the_same_objects():
    assert ddp_comm_hooks.default_hooks is comm_hooks
    assert dist.DeviceMesh is dist.device_mesh.DeviceMesh


def test_record_leaves_a_function_as_it_is():
    def main():
        return 7

    assert record(main) is main
    with pytest.raises(NotImplementedError, match=r"report\.json"):
        record(main, error_handler=object())


def test_join_takes_one_model(world):
    def body(rank):
        model = DistributedDataParallel(dt.nn.Linear(1, 1))
        with pytest.raises(ValueError, match="needs a DistributedDataParallel, got none"):
            Join([])
        with pytest.raises(NotImplementedError, match=r"Join\(\[DistributedDataParallel, SGD\]\) is not in"):
            Join([model, dt.optim.SGD(model.parameters(), lr=0.1)])

    world(body, 2)
