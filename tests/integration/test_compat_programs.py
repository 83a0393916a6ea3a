"""Programs that say `import torch`, run unmodified: they learn, and agree with PyTorch where it is installed."""

import importlib.util
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import disttrain as dt

PROGRAMS = Path(__file__).parent / "programs"
ENV = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore::UserWarning",
}
DISTTRAIN = [sys.executable, "-m", "disttrain"]
COMPAT = [*DISTTRAIN, "compat", "--run"]


@pytest.fixture
def run(tmp_path):
    def run(program, *args, start=COMPAT):
        done = subprocess.run(
            [*start, str(PROGRAMS / program), *args],
            cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=110, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return re.sub(r"(?m)^\[0\] ", "", done.stdout)

    return run


def numbers(pattern, text):
    return [float(x) for x in re.findall(rf"{pattern}: ([\d.]+)", text)]


def needs_torch():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("compares with torch, which is not installed")


def agree(mine, theirs, rel=1e-3):
    """Compare runs in float64; those in float32 drift apart within some steps, in any two libraries."""
    assert len(mine) == len(theirs) > 9
    assert mine == pytest.approx(theirs, rel=rel, abs=2e-6)  # 6 digits are printed


def write_digits(folder):
    """Write our handwritten digits, enlarged to 28 x 28, as MNIST's files."""
    folder.mkdir(parents=True)
    for part, train, count in (("train", True, 600), ("t10k", False, 200)):
        data = dt.data.datasets.Digits(train=train)
        samples = [data[i] for i in range(0, len(data), max(1, len(data) // count))]
        small = np.stack([image.numpy()[0] for image, _ in samples])
        images = np.zeros((len(small), 28, 28), np.uint8)
        images[:, 2:26, 2:26] = (np.kron(small, np.ones((3, 3))) * 255).astype(np.uint8)
        labels = np.array([int(label) for _, label in samples], np.uint8)
        for name, a in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, a.ndim]) + struct.pack(f">{a.ndim}I", *a.shape)
            (folder / f"{part}-{name}-ubyte").write_bytes(head + a.tobytes())


def test_digits(run, tmp_path):
    pytest.importorskip("PIL", reason="needs Pillow, which is not installed")
    write_digits(tmp_path / "data" / "MNIST" / "raw")

    out = run("digits.py")

    losses = numbers("loss", out)
    assert losses[0] > 2
    correct, total = map(int, re.findall(r"accuracy: (\d+)/(\d+)", out)[-1])
    assert correct > 0.8 * total
    assert "again the same: True" in out


@pytest.mark.parametrize("options", [["--tied"], ["--model", "Transformer", "--lr", "2"]])
def test_char_lm(run, options):
    out = run("char_lm.py", "--double", "--same-start", *options)

    losses = numbers("loss", out)
    assert np.mean(losses[-3:]) < 0.9 * losses[0]
    assert f"again the same: True tied: {'--tied' in options}" in out
    needs_torch()
    theirs = run("char_lm.py", "--double", "--same-start", *options, start=[sys.executable])
    agree(losses, numbers("loss", theirs))
    agree(numbers("norm", out), numbers("norm", theirs))


def test_gan(run, tmp_path):
    pytest.importorskip("PIL", reason="needs Pillow, which is not installed")
    out = run("gan.py", "--same-start", "--out", "fake.png")

    losses = numbers("loss", out)
    assert losses[-1] < losses[0]
    assert (tmp_path / "fake.png").read_bytes().startswith(b"\x89PNG")
    needs_torch()
    theirs = run("gan.py", "--same-start", start=[sys.executable])
    agree(losses, numbers("loss", theirs))
    agree(numbers("generator", out), numbers("generator", theirs))


def test_reinforce(run):
    steps = numbers("steps", run("reinforce.py"))

    assert np.mean(steps[-20:]) < 0.6 * np.mean(steps[:20])
    assert min(steps) == 5


def test_gpt(run):
    out = run("gpt.py", "--double", "--same-start", "--compile")
    more = run("gpt.py", "--double", "--resume")

    losses, later = numbers("loss", out), numbers("loss", more)
    assert losses[-1] < 0.8 * losses[0]
    assert later[-1] < losses[-1]
    assert len(re.findall(r"\d+", out.partition("text:")[2])) == 9
    needs_torch()
    theirs = run("gpt.py", "--double", "--same-start", start=[sys.executable])
    agree(losses, numbers("loss", theirs))
    agree(numbers("norm", out), numbers("norm", theirs))
    agree(later, numbers("loss", run("gpt.py", "--double", "--resume", start=[sys.executable])))


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(["launch", "-n", "2", "--compat"], marks=pytest.mark.mpi),
        ["debug", "-n", "2", "--compat"],
    ],
)
def test_gpt_on_two_ranks_is_gpt_on_one(run, start):
    alone = run("gpt.py", "--double", "--same-start")
    both = run("gpt.py", "--double", "--same-start", start=[*DISTTRAIN, *start])

    agree(numbers("loss", both), numbers("loss", alone))
    agree(numbers("norm", both), numbers("norm", alone))


@pytest.mark.parametrize(
    "program", [p.name for p in sorted(PROGRAMS.glob("*.py")) if "import torch" in p.read_text()]
)
def test_all_that_the_programs_use_is_here(run, program):
    out = run(program, start=[*DISTTRAIN, "compat"])

    used = re.search(r"1 script: (\d+) of (\d+) PyTorch names are here\n$", out)
    assert used is not None, out
    assert used[1] == used[2]
    assert int(used[1]) > 15
