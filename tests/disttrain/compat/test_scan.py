"""`disttrain compat script.py`: which of PyTorch's names a script uses, by reading it."""

import textwrap

import pytest
from click.testing import CliRunner

from disttrain.cli import main
from disttrain.compat.scan import look_up, python_files, scan

SCRIPT = """
import os
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import optim as o
from torch.optim.lr_scheduler import StepLR
from torchvision import transforms as T, datasets

L = nn.Linear

class Net(nn.Module):
    def __init__(self):
        self.renorm = getattr(nn, "LSTM")(2, 2)

    def apply_(self):
        return 3

x = L(2, 2)(torch.ones(1, 2))
y = F.relu(x).unsqueeze(0).to_sparse().values()
np.fft.fft(y.numpy())
net = Net(); net.apply_(); "a b".split(); {}.values(); os.path.join("a")
torch.fft.fft(x); nn.qat(2); torch.jit.script(net); torch.bogus
o.SGD(net.parameters(), lr=T.ToTensor)
torch.float32.itemsize
y.max(1).indices; Solver().solve(y)
"""


@pytest.fixture
def found(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return {use.name: use for use in scan(str(path)).uses}


def test_what_is_used_and_where(found):
    assert found["torch.nn.Linear"].lines == [11, 20]
    assert found["torch.nn.functional.relu"].lines == [21]
    assert found["torch.nn.LSTM"].lines == [15]
    assert found["torch.Tensor.unsqueeze"].state == "here"
    assert {
        "torch.optim.SGD",
        "torchvision.transforms.ToTensor",
        "torch.ones",
        "torchvision.datasets",
    } <= set(found)
    assert not [n for n in found if n.startswith(("numpy", "np", "os"))]


def test_what_is_not_here(found):
    absent = {name: use.state for name, use in found.items() if use.state != "here"}

    assert absent == {
        "torch.Tensor.to_sparse": "not here",
        "torch.bogus": "not here",
        "torch.fft.fft": "not here",
        "torch.jit.script": "refused",
        "torch.nn.qat": "not here",
    }
    assert "nearest: " in found["torch.Tensor.to_sparse"].advice


def test_names_that_other_things_have_are_not_taken_for_those_of_tensors(found):
    assert not {"torch.Tensor.indices", "torch.Tensor.solve"} & set(found)


def test_a_star_import_is_followed(tmp_path):
    path = tmp_path / "star.py"
    path.write_text("from torch.nn import *\nLinear(2, 2)\nqat(3)\nprint(3)\n")

    uses = {u.name: u.state for u in scan(str(path)).uses}

    assert uses == {"torch.nn": "here", "torch.nn.Linear": "here", "torch.nn.qat": "not here"}


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("torch", "here"),
        ("torch.nn.modules.rnn.LSTM", "here"),
        ("torch.utils.data.DataLoader", "here"),
        ("torch.float32.is_signed", "here"),
        ("torch.backends.cudnn.benchmark", "here"),
        ("torch.fx", "not here"),
        ("torch.jit.annotations.List", "not here"),
        ("torch.utils.data.sampler.Sampler", "here"),
        ("torch.cuda.CUDAGraph", "not here"),
        ("torchvision.models.vgg16", "not here"),
        ("torch.hub.load", "refused"),
        ("torch.multiprocessing.spawn", "here"),
        ("torch.Tensor.backward", "here"),
    ],
)
def test_look_up(name, state):
    assert look_up(name)[0] == state


def run(*args):
    return CliRunner().invoke(main, ["compat", *map(str, args)])


def test_the_command_tells_by_its_exit_code(tmp_path):
    good, bad = tmp_path / "good.py", tmp_path / "sub" / "bad.py"
    good.write_text("import torch\ntorch.ones(2).sum()\n")
    bad.parent.mkdir()
    bad.write_text(textwrap.dedent(SCRIPT))

    done = run(good)
    assert done.exit_code == 0
    assert done.output.endswith("1 script: 2 of 2 PyTorch names are here\n")
    done = run(tmp_path)
    assert done.exit_code == 1
    assert "2 scripts: " in done.output
    assert "not here: torch.Tensor.to_sparse, torch.bogus, torch.fft.fft, torch.jit.script, torch.nn.qat" in (
        done.output
    )
    rows = [line.split() for line in done.output.splitlines() if line.startswith(" torch.nn.qat")]
    assert rows[0][:4] == ["torch.nn.qat", "24", "not", "here"]


def test_what_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "broken.py").write_text("def f(:\n")

    done = run(tmp_path / "broken.py")
    assert done.exit_code == 1
    assert "cannot be read" in done.output
    (tmp_path / "deep.py").write_text("x = " + " + ".join(["1"] * 20_000))
    assert "deep.py: cannot be read: " in run(tmp_path / "deep.py").output
    assert run(tmp_path / "none.py").exit_code == 1
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty").exit_code == 1
    assert "there is no script" in run("--run", tmp_path / "none.py").output
    assert "-m belongs to --run" in run("-m", "x").output


def test_folders_are_searched(tmp_path):
    for name in ("a.py", "b/c.py", "b/d.txt", ".git/e.py", "b/__pycache__/f.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")

    assert [p.removeprefix(str(tmp_path)) for p in python_files([str(tmp_path)])] == ["/a.py", "/b/c.py"]
