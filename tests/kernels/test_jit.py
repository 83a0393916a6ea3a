"""What holds for all compiled kernels."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from disttrain.kernels import jit as jit_module
from disttrain.kernels.jit import exp, exp_down, jit, largest, sigmoid, total


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


@jit
def _exp(x, out):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        out[i] = exp(x[i])


@jit
def _exp_down(x, out):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        out[i] = exp_down(x[i])


@jit
def _sigmoid(x, out):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        out[i] = sigmoid(x[i])


@pytest.mark.parametrize(
    ("kernel", "highest", "function"),
    [
        (_exp, 88.7, np.exp),
        (_exp_down, 64, np.exp),
        (_sigmoid, 100, lambda x: 1 / (1 + np.exp(-x))),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exponentials_are_right_to_the_last_place(kernel, highest, function, dtype):
    x = np.append(np.linspace(-87, highest, 100_001), np.geomspace(1e-30, 1, 1000)).astype(dtype)
    y = np.empty_like(x)

    kernel(x, y)

    np.testing.assert_allclose(y, function(x.astype(np.float64)), 1.5e-7 if dtype == "float32" else 1e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exponentials_at_the_ends_of_their_range(dtype):
    x = np.array([-np.inf, -1000, -0.0, 0, 1000, np.inf, np.nan], dtype)
    e, down, share = np.empty_like(x), np.empty_like(x[:4]), np.empty_like(x)

    _exp(x, e)
    _exp_down(x[:4], down)
    _sigmoid(x, share)

    np.testing.assert_array_equal(e, [0, 0, 1, 1, np.inf, np.inf, np.nan])
    np.testing.assert_array_equal(down, [0, 0, 1, 1])
    np.testing.assert_array_equal(share, [0, 0, 0.5, 0.5, 1, 1, np.nan])


def test_exponentials_reach_the_smallest_float32():
    x = np.linspace(-103.9, -87.4, 1000, dtype=np.float32)
    e, down = np.empty_like(x), np.empty_like(x)

    _exp(x, e)
    _exp_down(x, down)

    np.testing.assert_allclose(e, np.exp(x.astype(np.float64)), 0, 1.5e-45)
    np.testing.assert_array_equal(down, e)


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


@pytest.fixture
def package(tmp_path):
    """Kernels in a copy of the package, and how to run a program with it: what it prints, and its files of code."""
    source = Path(jit_module.__file__).resolve().parents[1]
    shutil.copytree(source / "kernels", tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "disttrain").mkdir()
    (tmp_path / "disttrain" / "__init__.py").touch()
    (tmp_path / "disttrain" / "kernels").symlink_to("../kernels")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def start(code):
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(process):
        out, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
        return out.strip()

    return tmp_path, start, finish


HELPER = """
from disttrain.kernels.jit import helper

@helper
def factor(x):
    return x * {}
"""
KERNEL = """
from disttrain.kernels.jit import jit
from disttrain.kernels.part import factor

@jit
def scale(x, out):
    for i in range(x.size):
        out[i] = factor(x[i])
"""
RUN = """
import numpy as np
from disttrain.kernels import whole
x = np.ones(3)
whole.scale(x, x)
print(x[0], sum(whole.scale._dispatcher.stats.cache_misses.values()))
"""


def test_a_kernel_is_compiled_again_when_what_it_calls_has_changed(package):
    folder, start, finish = package
    (folder / "kernels" / "whole.py").write_text(KERNEL)
    (folder / "kernels" / "part.py").write_text(HELPER.format(2))

    first, again = finish(start(RUN)), finish(start(RUN))
    (folder / "kernels" / "part.py").write_text(HELPER.format(3))

    assert (first, again, finish(start(RUN))) == ("2.0 1", "2.0 0", "3.0 1")


def test_code_of_a_kernel_as_it_was_is_never_run(package):
    """A process that is killed as it keeps new code leaves an index that names code which is not there."""
    folder, start, finish = package
    whole = folder / "kernels" / "whole.py"
    whole.write_text(KERNEL)
    (folder / "kernels" / "part.py").write_text(HELPER.format(2))
    assert finish(start(RUN)) == "2.0 1"
    before = set((folder / "cache").rglob("whole*.nbc"))
    whole.write_text(KERNEL.replace("factor(x[i])", "factor(x[i]) + 1"))

    killed = start(
        "import os\n"
        "from disttrain.kernels import whole\n"
        "whole.scale._load()._cache._cache_file._save_data = lambda *_: os.kill(os.getpid(), 9)\n" + RUN
    )
    killed.communicate(timeout=100)

    assert killed.returncode == -9
    assert finish(start(RUN)) == "3.0 1"
    assert finish(start(RUN)) == "3.0 0"
    assert len(before) == 1
    assert not before & set((folder / "cache").rglob("whole*.nbc"))


def test_processes_that_begin_together_compile_once(package):
    folder, start, finish = package
    (folder / "kernels" / "whole.py").write_text(KERNEL)
    (folder / "kernels" / "part.py").write_text(HELPER.format(2))

    printed = [finish(process) for process in [start(RUN) for _ in range(4)]]

    assert sorted(printed) == ["2.0 0", "2.0 0", "2.0 0", "2.0 1"]


def test_a_process_that_ends_while_it_compiles_holds_nobody_up(package):
    folder, start, finish = package
    (folder / "kernels" / "whole.py").write_text(KERNEL)
    (folder / "kernels" / "part.py").write_text(HELPER.format(2))
    stuck = start(
        "import sys\n"
        "from disttrain.kernels import whole\n"
        "cache = whole.scale._load()._cache\n"
        "assert cache._acquire()\n"
        "print('holds it', flush=True)\n"
        "sys.stdin.read()"
    )
    assert stuck.stdout.readline() == "holds it\n"
    waiting = start(RUN)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(1)
    stuck.kill()
    stuck.communicate()

    assert finish(waiting) == "2.0 1"
