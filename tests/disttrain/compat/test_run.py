"""`disttrain compat --run`: `import torch` means disttrain, and a script runs as `python script.py` would run it."""

import os
import subprocess
import sys
import textwrap

import pytest

RUN = [sys.executable, "-m", "disttrain", "compat", "--run"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NO_COLOR": "1"}


@pytest.fixture
def run(tmp_path):
    def run(text, *args, start=RUN, expect=0, name="script.py"):
        (tmp_path / name).write_text(textwrap.dedent(text))
        done = subprocess.run(
            [*start, name, *args],
            cwd=tmp_path,
            env=ENV,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        lines = [line for line in done.stderr.splitlines(True) if "means disttrain in this run" not in line]
        return done.stdout, "".join(lines)

    return run


def test_the_modules_are_the_same_objects(run):
    out, err = run("""
        import torch, torchvision
        import torch.nn as nn, torch.nn.functional as F
        import torch.utils.data.distributed
        import torch.backends.cudnn as cudnn
        import torchvision.transforms as T
        import torchvision.transforms.functional as TF
        from torch import optim
        from torch.autograd import Variable
        from torch.autograd.variable import Variable as V
        from torch.cuda.amp import GradScaler, autocast
        from torch.nn.modules.rnn import LSTM
        from torch.nn.parallel import DistributedDataParallel
        from torch.nn.parallel.distributed import DistributedDataParallel as DDP
        from torch.optim.lr_scheduler import StepLR
        from torch.utils.data import DataLoader
        from torch.utils.data.dataset import Dataset
        from torch.utils.data.distributed import DistributedSampler
        from torchvision import datasets
        from torchvision.models import resnet18
        import disttrain as dt

        assert torch is dt and nn is dt.nn and F is dt.nn.functional and optim is dt.optim
        assert cudnn is dt.backends.cudnn
        assert torchvision is dt.vision and T is dt.vision.transforms and datasets is dt.vision.datasets
        assert LSTM is dt.nn.LSTM and DDP is DistributedDataParallel and V is Variable
        assert isinstance(dt.ones(2), torch.Tensor) and isinstance(nn.Linear(1, 1), dt.nn.Module)
        assert dt.nn.__spec__.name == "disttrain.nn" and dt.__name__ == "disttrain"
        print(torch.__version__ >= "2.0", torch.__version__)
    """)

    assert out.startswith("True 2.13.0+disttrain")
    assert err == ""


def test_functions_keep_their_names_beside_modules_of_the_same_name(run):
    out, err = run("""
        import torch
        import torch.multiprocessing as mp
        import torch.nn.utils.spectral_norm
        from torch.nn.utils.weight_norm import weight_norm
        from torch.nn.parallel.data_parallel import data_parallel
        from torch.autograd.gradcheck import gradcheck
        from torch.nn.utils.clip_grad import clip_grad_norm_

        utils, wrappers = torch.nn.utils, torch.nn.parallel
        assert weight_norm is utils.weight_norm and data_parallel is wrappers.data_parallel
        assert gradcheck is torch.autograd.gradcheck and callable(utils.spectral_norm) and callable(mp.spawn)
        print(utils.spectral_norm(torch.nn.Linear(2, 3))(torch.ones(1, 2)).shape == (1, 3))
    """)

    assert (out, err) == ("True\n", "")


def test_the_homes_of_names_that_scripts_import(run):
    out, err = run("""
        import torch, torch.utils.data
        from torch.amp.grad_scaler import GradScaler
        from torch.distributed.distributed_c10d import ReduceOp
        from torch.distributions.categorical import Categorical
        from torch.distributions.mixture_same_family import MixtureSameFamily
        from torch.distributions.multivariate_normal import MultivariateNormal
        from torch.distributions.normal import Normal
        from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli
        from torch.distributions.transformed_distribution import TransformedDistribution
        from torch.distributions.transforms import TanhTransform
        from torch.distributions.utils import broadcast_all
        from torch.nn.init import _calculate_correct_fan, _calculate_fan_in_and_fan_out
        from torch.nn.modules.batchnorm import _BatchNorm
        from torch.nn.modules.conv import _ConvNd
        from torch.nn.modules.loss import _Loss, _WeightedLoss
        from torch.nn.modules.utils import _ntuple, _pair
        from torch.utils.data._utils.collate import default_collate
        from torch.utils.hooks import RemovableHandle

        nn = torch.nn
        assert isinstance(nn.SyncBatchNorm(2), _BatchNorm) and isinstance(nn.ConvTranspose1d(1, 1, 1), _ConvNd)
        assert issubclass(nn.NLLLoss, _WeightedLoss) and issubclass(nn.MSELoss, _Loss)
        assert (_pair(3), _pair([1, 2]), _ntuple(4)("a")) == ((3, 3), (1, 2), ("a",))
        assert default_collate is torch.utils.data._utils.collate.default_collate
        assert _calculate_fan_in_and_fan_out(torch.ones(2, 3, 5, 7)) == (105, 70)
        assert _calculate_correct_fan(torch.ones(2, 3), "FAN_OUT") == 2
        handle = nn.Linear(1, 1).register_forward_hook(print)
        assert isinstance(handle, RemovableHandle) and isinstance(handle, torch.utils.hooks.RemovableHandle)
    """)

    assert (out, err) == ("", "")


def test_the_script_is_main(run):
    out, _ = run(
        """
        import sys, os, torch
        import helper
        print(__name__, sys.argv, __file__, os.path.samefile(sys.path[0], "."), __spec__, sys.modules["__main__"].x)
        """.replace("import helper", "x = 3"),
        "--lr",
        "0.1",
        "-m",
    )

    assert out == "__main__ ['script.py', '--lr', '0.1', '-m'] script.py True None 3\n"


def test_a_module_is_run_too(run, tmp_path):
    (tmp_path / "prog.py").write_text("import sys, torch\nprint(__name__, sys.argv[1:], torch.__name__)")
    command = [*RUN, "-m", "prog", "a"]

    done = subprocess.run(
        command, cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout == "__main__ ['a'] disttrain\n"


def test_errors_are_those_of_python(run):
    out, err = run(
        """
        import torch
        def f():
            raise KeyError("gone")
        f()
        """,
        expect=1,
    )

    assert (out, err) == (
        "",
        """Traceback (most recent call last):
  File "script.py", line 5, in <module>
    f()
  File "script.py", line 4, in f
    raise KeyError("gone")
KeyError: 'gone'
""",
    )
    assert run("import sys; sys.exit(3)", expect=3) == ("", "")
    assert run("import sys; sys.exit('bye')", expect=1) == ("", "bye\n")
    _, err = run("import torch\nx = = 3", expect=1)
    assert "SyntaxError" in err
    assert "disttrain/" not in err


def test_what_is_not_here_is_said_by_name(run):
    out, _ = run("""
        import torch
        lines = [
            "import torch.fx",
            "from torch import fft",
            "import torch.fft",
            "from torch.utils.tensorboard import SummaryWriter",
            "import torch.ops",
            "import torchvision.io",
            "import torch.launcher",
            "from torch.nn import qat",
            "from torch.distributed.tensor import DTensor",
            "from torch.distributed import rpc",
            "import torch._dynamo",
        ]
        for line in lines:
            try:
                exec(line)
            except ImportError as e:
                print(f"{line}: {e}")
    """)

    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert lines["import torch.fx"].startswith(
        "disttrain.fx is PyTorch's, not in disttrain; nothing is traced"
    )
    assert lines["from torch import fft"].startswith("disttrain.fft is PyTorch's, not in disttrain")
    assert lines["import torch.fft"] == lines["from torch import fft"]
    assert "utils.tensorboard" in lines["from torch.utils.tensorboard import SummaryWriter"]
    assert lines["import torchvision.io"] == "torchvision.io is not in disttrain.vision"
    assert lines["from torch.nn import qat"].startswith("disttrain.nn.qat is PyTorch's")
    assert lines["from torch.distributed.tensor import DTensor"].startswith(
        "disttrain.distributed.tensor is PyTorch's, not in disttrain"
    )
    assert lines["from torch.distributed import rpc"].startswith("disttrain.distributed.rpc is PyTorch's")
    assert "what begins with an underscore is PyTorch's own" in lines["import torch._dynamo"]
    assert {"import torch.ops", "import torch.launcher"} <= set(lines)


def test_an_installed_pytorch_is_not_used_and_not_hurt(run):
    pytest.importorskip("torch", reason="needs an installed PyTorch")
    done = subprocess.run(
        [*RUN, "-m", "timeit", "-n1", "-r1", "import torch"],
        env=ENV, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip

    assert done.stderr == (
        "disttrain: `import torch` means disttrain in this run; the one that is installed is not used\n"
    )
    code = """
        import sys
        import torch as real
        from disttrain.compat.finder import install
        install()
        install()
        import torch, disttrain
        assert torch is disttrain and real is not disttrain
        assert real.ones(2).sum() == 2 and sum(type(f).__name__ == "TorchFinder" for f in sys.meta_path) == 1
    """
    run(code, start=[sys.executable])


def test_whole_models_are_saved_and_loaded(run):
    out, _ = run("""
        import io, torch
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super(Net, self).__init__()
                self.block = nn.TransformerEncoderLayer(8, 2, 16)
                self.act = nn.functional.gelu
            def forward(self, x):
                return self.act(self.block(x))
        net = Net().eval()
        torch.save(net, "net.pt")
        with open("net.pt", "rb") as f, torch.serialization.safe_globals([Net, nn.modules.linear.Linear]):
            again = torch.load(f, map_location=lambda storage, place: storage, weights_only=False)
        x = torch.randn(3, 1, 8)
        print((again(x) == net(x)).all().item(), type(again) is Net, again.block.activation is net.block.activation)
        with open("bad.pt", "wb") as f:
            f.write(b"PK\\x03\\x04 a file of PyTorch's")
        try:
            torch.load("bad.pt")
        except ValueError as e:
            print(e)
    """)

    lines = out.splitlines()
    assert lines[0] == "True True True"
    assert "bad.pt is a pickle or a PyTorch file" in lines[1]
    assert "disttrain.checkpoint.read_foreign(path)" in lines[1]


DDP = """
    import os, torch
    import torch.distributed as dist
    import torch.nn as nn
    from torch.nn.parallel import DistributedDataParallel as DDP
    from torch.utils.data import DataLoader, TensorDataset
    from torch.utils.data.distributed import DistributedSampler

    dist.init_process_group(backend="gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    assert rank == int(os.environ["RANK"])
    torch.manual_seed(0)
    data = TensorDataset(torch.arange(8.0).view(8, 1), 3 * torch.arange(8.0).view(8, 1))
    sampler = DistributedSampler(data, num_replicas=size, rank=rank, shuffle=True)
    loader = DataLoader(data, batch_size=2, sampler=sampler)
    model = DDP(nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        model.module.weight.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for epoch in range(4):
        sampler.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
    total = torch.tensor(float(len(sampler)))
    dist.all_reduce(total)
    if rank == 0:
        print(round(model.module.weight.item(), 3), int(total.item()), __name__)
    dist.destroy_process_group()
"""


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(["launch", "-n", "2", "--compat"], marks=pytest.mark.mpi),
        pytest.param(["launch", "-n", "1", "--ranks", "2", "--compat"], marks=pytest.mark.mpi),
        ["debug", "-n", "2", "--compat"],
    ],
)
def test_ranks_run_a_script_for_torch(run, start):
    out, _ = run(DDP, start=[sys.executable, "-m", "disttrain", *start])

    weight, seen, name = out.removeprefix("[0] ").split()
    assert float(weight) == pytest.approx(3, abs=0.1)
    assert (seen, name) == ("8", "__main__")
