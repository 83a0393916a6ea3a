"""Compiling ahead."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_after_a_warmup_a_usual_network_compiles_nothing(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def run(*command):
        done = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    first = run("-m", "disttrain", "warmup")
    again = run("-m", "disttrain", "warmup")
    code = """
import disttrain as dt
from disttrain import nn
from disttrain.kernels import jit

model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 10))
optimizer = dt.optim.AdamW(model.parameters())
nn.functional.cross_entropy(model(dt.rand(16, 1, 8, 8)), dt.randint(0, 10, (16,))).backward()
optimizer.step()
print(jit.compiled)
"""

    assert int(first[-1].split()[1]) > 20
    assert again[-1].startswith("compiled 0 kernels")
    assert run("-c", code) == ["[]"]
