"""The programs for a machine with a GPU, as far as one without can run them."""

import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import cuda_shim
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS, KERNELS = ROOT / "scripts", ROOT / "tests" / "kernels"


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


SANITIZER = """#!/bin/sh
# Runs what it is given, and finds what its variable says.
if [ "$1" = --version ]; then echo 'a stand-in for compute-sanitizer'; exit 0; fi
while [ "$1" != --log-file ]; do
    if [ "$1" = --tool ]; then tool=$2; fi
    shift
done
log=$2
shift 2
"$@" || exit
if [ "$tool" = "$FINDS" ]; then
    echo '========= Invalid __global__ write of size 4 bytes' >"$log"
    echo '========= ERROR SUMMARY: 1 error' >>"$log"
    exit 86
fi
echo '========= ERROR SUMMARY: 0 errors' >"$log"
"""


@pytest.fixture
def gpu_check(tmp_path):
    """``gpu_check(*words)`` runs it on the stand-in; returns the job and the text of the report."""
    if reason := cuda_shim.missing():
        pytest.skip(reason)
    sanitizer = tmp_path / "bin" / "compute-sanitizer"
    sanitizer.parent.mkdir()
    sanitizer.write_text(SANITIZER)
    sanitizer.chmod(0o755)

    def run(*words, **variables):
        out = tmp_path / "out"
        command = [sys.executable, SCRIPTS / "gpu_check", "--stand-in", "--out", out, *words]
        env = os.environ | variables | {"TMPDIR": str(tmp_path)}
        env["PATH"] = f"{sanitizer.parent}{os.pathsep}{env['PATH']}"
        job = subprocess.run(command, env=env, capture_output=True, text=True, timeout=170)
        reports = list(out.glob("*-stand-in.md"))
        assert len(reports) == 1, job.stdout + job.stderr
        return job, reports[0].read_text()

    return run


@pytest.mark.slow
def test_all_stages_run_and_are_written_down(gpu_check):
    job, report = gpu_check(
        *("--gpu-tests", KERNELS / "test_random_cuda.py", "--kernel-tests", KERNELS / "test_softmax_cuda.py"),
        *("--kernel-files", "softmax.cu", "--models", "MLP 784-128-10, batch 64, SGD"),
    )

    assert job.returncode == 0, job.stdout + job.stderr
    assert "**Nothing failed.**" in report
    assert "no number in it means anything" in report
    for stage in ("machine", "tests", "kernels", "memcheck", "racecheck", "synccheck", "bandwidth", "models"):
        assert f"| {stage} | passed |" in report
    assert "28 of 28 kernels, for each of their types." in report
    assert report.count("ERROR SUMMARY: 0 errors") == 3
    assert "| LayerNorm | " in report
    assert "| MLP 784-128-10, batch 64, SGD | " in report
    assert not list(Path(job.stdout.splitlines()[-1]).parent.parent.glob("gpu_check-*"))  # the logs are gone


@pytest.mark.slow
def test_a_kernel_that_is_wrong_is_named(gpu_check, tmp_path):
    folder = tmp_path / "kernels"
    folder.mkdir()
    shutil.copy(KERNELS / "test_softmax_cuda.py", folder)
    right, wrong = "dot += widen(gv[i]) * widen(yv[i])", "dot += widen(gv[i])"
    (folder / "conftest.py").write_text(
        (KERNELS / "conftest.py").read_text()
        + f"""
from disttrain.kernels import softmax
assert {right!r} in softmax._program.text
softmax._program.text = softmax._program.text.replace({right!r}, {wrong!r})
"""
    )

    job, report = gpu_check(
        *("--only", "kernels", "--kernel-files", "softmax.cu", "columns.cu", "--kernel-tests", folder)
    )

    assert job.returncode == 1
    assert "**Failed: kernels.**" in report
    assert "test_softmax[gpu-" in report
    assert "Not equal to tolerance" in report
    assert "test_cross_entropy" not in report
    assert "8 kernels were not compared:\ncolumns.cu merge bfloat16_t" in report
    assert "Left out by `--only`: compile, tests, memcheck" in report


@pytest.mark.slow
def test_a_test_that_hangs_or_ends_its_process_is_named_and_the_others_run(gpu_check, tmp_path):
    (tmp_path / "test_planted.py").write_text(
        """
import os, signal, subprocess, sys, threading, pytest
pytestmark = pytest.mark.gpu
FIRST = os.environ["FIRST"]

def test_one():
    open(FIRST, "w").write(str(os.getpid()))

def test_kills_its_process():
    os.kill(os.getpid(), signal.SIGKILL)

def test_loses_the_gpu():
    raise RuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

def test_needs_what_is_not_there():
    import cudnn

def test_runs_in_another_process():
    assert open(FIRST).read() != str(os.getpid())
    open(FIRST, "w").write("again")

def test_hangs():
    code = "import threading; threading.Event().wait()"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    open(FIRST + ".child", "w").write(str(child.pid))
    threading.Event().wait()

def test_after_that():
    pass
"""
    )
    (tmp_path / "test_broken.py").write_text("raise RuntimeError('not to be imported')")
    first = tmp_path / "first"

    job, report = gpu_check(
        *(
            "--only",
            "tests",
            "--limit",
            "tests=8",
            "--gpu-tests",
            tmp_path / "test_broken.py",
            tmp_path / "test_planted.py",
        ),
        FIRST=str(first),
    )

    assert job.returncode == 1
    assert "**Failed: tests.**" in report
    assert "not to be imported" in report
    assert "test_kills_its_process: the process was killed by SIGKILL in this test" in report
    assert "test_loses_the_gpu: RuntimeError: cudaErrorIllegalAddress" in report
    assert "test_hangs: the process was cut after 8 s in this test" in report
    assert "1 tests were not run any more" in report
    not_run = "* 1 tests: ModuleNotFoundError: No module named 'cudnn'" in report
    assert not_run == (importlib.util.find_spec("cudnn") is None)
    assert "test_needs_what_is_not_there" not in report
    assert first.read_text() == "again"
    assert not Path("/proc", (tmp_path / "first.child").read_text()).exists()


@pytest.mark.slow
def test_what_compute_sanitizer_finds_fails_its_stage(gpu_check):
    job, report = gpu_check(
        *("--only", "kernels", "memcheck", "racecheck", "--kernel-files", "softmax.cu"),
        *("--kernel-tests", KERNELS / "test_softmax_cuda.py"),
        FINDS="memcheck",
    )

    assert job.returncode == 1
    assert "**Failed: memcheck.**" in report
    assert "memcheck has found 1:\n========= Invalid __global__ write of size 4 bytes" in report
    assert "| racecheck | passed |" in report


def test_on_a_gpu_that_cupy_cannot_use_the_report_says_why(tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho A GPU\n")
    smi.chmod(0o755)

    job = subprocess.run(
        [sys.executable, SCRIPTS / "gpu_check", "--out", tmp_path],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    report = next(tmp_path.glob("*-a-gpu.md")).read_text()

    assert job.returncode == 1
    assert "**Failed: machine.**" in report
    assert "device: not known" in report
    assert "| kernels | not run |" in report


@pytest.mark.parametrize("name", ["gpu_check", "bench_kernels.py"])
def test_without_a_gpu_they_say_so(name, tmp_path):
    if shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, SCRIPTS / name], capture_output=True, text=True, timeout=100)

    assert done.returncode == 1
    assert "needs CuPy and a GPU" in done.stderr
