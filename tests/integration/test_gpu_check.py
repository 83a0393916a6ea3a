"""The programs for a machine with a GPU, as far as one without can run them."""

import importlib.util
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load(name):
    loader = SourceFileLoader(name.partition(".")[0], str(SCRIPTS / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # dataclasses look there
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


def test_every_case_of_the_benchmark_runs_and_counts_its_bytes():
    found = load("bench_kernels.py").cases(np.float32, lambda x: x, shrink=128)

    assert len(found) > 10
    for name, case in found.items():
        case.run(*case.arrays)
        assert 0 < case.nbytes <= 8 * sum(a.nbytes for a in case.arrays), name


def test_every_peer_of_the_benchmark_runs():
    torch = pytest.importorskip("torch", reason="needs torch")
    for case in load("bench_kernels.py").cases(np.float32, lambda x: x, shrink=128).values():
        if case.peer is not None:
            case.peer(torch, *map(torch.from_dlpack, case.arrays))


def test_the_report_says_what_passed():
    module = load("gpu_check")
    passed = module.check("Good", ["-c", "print('seen')"], {}, 60)
    failed = module.check("Bad", ["-c", "print('why'); raise SystemExit(3)"], {}, 60)
    hung = module.check("Slow", ["-c", "print('so far', flush=True); import time; time.sleep(100)"], {}, 3)

    text = module.report(
        {"name": "A GPU", "numpy": "2"}, [passed, failed, hung, ("Missing", None, "not installed")]
    )

    assert text.startswith("# A GPU\n")
    assert "## Good: passed\n\n```\nseen\n```" in text
    assert "## Bad: FAILED\n\n```\nwhy\n```" in text
    assert "## Slow: FAILED\n\n```\nso far\n\nnot done after 3 s\n```" in text
    assert "## Missing: not run" in text


@pytest.mark.parametrize("name", ["gpu_check", "bench_kernels.py"])
def test_without_a_gpu_they_say_so(name, tmp_path):
    (tmp_path / "cupy.py").write_text("def is_available(): return False\n")
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / name)],
        env={"PYTHONPATH": f"{tmp_path}:{SCRIPTS.parent}"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert done.returncode == 1
    assert "needs CuPy and a GPU" in done.stderr
