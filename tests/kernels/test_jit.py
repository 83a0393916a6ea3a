"""What holds for all compiled kernels."""

import platform
import subprocess
import sys

import numpy as np
import pytest

from disttrain.kernels.jit import jit, largest, total


@jit
def _fold(row, out):  # type: ignore[no-untyped-def]
    out[0] = largest(row)
    out[1] = total(row)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 15, 16, 17, 1000])
def test_folds_of_a_row(size, dtype):
    row = np.random.default_rng(size).permutation(size).astype(dtype) - 500
    out = np.empty(2, dtype)

    _fold(row, out)

    assert out.tolist() == [size - 501, size * (size - 1) / 2 - 500 * size]


@pytest.mark.parametrize("place", [0, 3, 40])
def test_sum_of_a_row_with_nan_is_nan(place):
    row, out = np.zeros(41), np.empty(2)
    row[place] = np.nan

    _fold(row, out)

    assert np.isnan(out[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a property of glibc's malloc")
def test_memory_that_a_step_frees_is_kept_for_the_next():
    code = """
import resource
import numpy as np
from disttrain.kernels.relu import relu

relu(np.ones(1, np.float32))

def step():
    return [np.ones(100_000) for _ in range(20)]  # 16 MB, 3900 pages

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    faults = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    ).stdout

    assert int(faults) < 3900
