"""An unknown name says whether it is PyTorch's, and what is near that is here."""

import copy
import importlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

import disttrain as dt
from disttrain import missing


@pytest.mark.parametrize(
    ("space", "name", "text"),
    [
        (dt, "fft", "disttrain.fft is PyTorch's, not in disttrain"),
        (dt, "smm", "disttrain.smm is PyTorch's, not in disttrain; nearest: "),
        (dt, "matmull", "disttrain has no 'matmull', and neither has PyTorch; nearest: disttrain.matmul"),
        (dt, "relu6", "disttrain has no 'relu6', and neither has PyTorch; nearest: disttrain.nn.functional.relu6"),
        (dt, "Linear", "and neither has PyTorch; nearest: disttrain.nn.Linear"),
        (dt, "cross_entropy", "nearest: disttrain.nn.functional.cross_entropy"),
        (dt, "xyzzy", "disttrain has no 'xyzzy', and neither has PyTorch"),
        (dt.nn, "qat", "disttrain.nn.qat is PyTorch's, not in disttrain"),
        (dt.nn.functional, "conv_tbc", "disttrain.nn.functional.conv_tbc is PyTorch's, not in disttrain"),
        (dt.nn.init, "kaiming", "nearest: disttrain.nn.init.kaiming_"),
        (dt.optim, "SparseAdam", "optim.SparseAdam is PyTorch's, not in disttrain; nearest: disttrain.optim."),
        (dt.cuda, "CUDAGraph", "disttrain.cuda.CUDAGraph is PyTorch's, not in disttrain"),
        (dt.Tensor, "histogram", "disttrain.Tensor.histogram is PyTorch's, not in disttrain"),
        (dt.ones(2), "to_sparse", "disttrain.Tensor.to_sparse is PyTorch's, not in disttrain"),
    ],
)  # fmt: skip
def test_what_is_said(space, name, text):
    with pytest.raises(AttributeError) as raised:
        getattr(space, name)

    assert text in str(raised.value)
    assert raised.value.name == name
    assert not hasattr(space, name)


MODULES = (
    "accelerator amp autograd autograd.function autograd.functional autograd.graph backends backends.cuda "
    "backends.cudnn backends.mps compiler cuda cuda.amp distributed distributions func hub jit linalg mps "
    "multiprocessing nn nn.attention nn.functional nn.init nn.modules nn.parallel nn.parameter nn.utils "
    "nn.utils.parametrizations nn.utils.parametrize nn.utils.rnn nn.utils.stateless onnx optim optim.lr_scheduler "
    "optim.swa_utils random serialization special utils utils.checkpoint utils.data xpu"
)


@pytest.mark.parametrize("name", MODULES.split())
def test_every_module_says_it(name):
    module = importlib.import_module(f"disttrain.{name}")

    assert name in missing.pytorch_names()
    with pytest.raises(AttributeError, match=f"disttrain.{name} has no 'xyzzy', and neither has PyTorch"):
        module.xyzzy


def test_a_probe_is_quick_and_reads_no_list():
    code = """
import sys, disttrain as dt
x = dt.ones(2)
assert not hasattr(dt, "fft") and not hasattr(dt, "bogus") and not hasattr(x, "to_sparse")
assert not hasattr(x, "__cuda_array_interface__")
from disttrain import missing
print(missing.pytorch_names.cache_info().currsize, "difflib" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout == "0 False\n"


def test_names_of_protocols_get_a_plain_no():
    with pytest.raises(AttributeError) as raised:
        _ = dt.__path_of_nothing__

    assert type(raised.value) is AttributeError


def test_tensors_are_copied_and_pickled_in_spite_of_it():
    x = dt.tensor([1.0, 2.0])

    assert copy.copy(x).tolist() == copy.deepcopy(x).tolist() == [1.0, 2.0]
    assert np.asarray(x).tolist() == [1.0, 2.0]


def test_a_missing_name_can_be_pickled():
    error = pickle.loads(pickle.dumps(missing.error("nn", "qat")))

    assert str(error) == str(missing.error("nn", "qat"))


def test_dir_of_a_tensor_shows_only_what_is_there():
    x = dt.ones(2)

    assert all(hasattr(type(x), name) or name in vars(x) for name in dir(x))
    assert {"sum", "view", "shape", "is_xpu"} <= set(dir(x))
    assert "to_sparse" not in dir(x)


def test_what_tensors_never_are():
    x = dt.ones(2)

    flags = [
        *(
            x.is_xpu,
            x.is_mps,
            x.is_sparse,
            x.is_sparse_csr,
            x.is_quantized,
            x.is_meta,
            x.is_nested,
            x.is_mkldnn,
        ),
        *(x.is_ipu, x.is_xla, x.is_mtia, x.is_maia, x.is_vulkan),
    ]
    assert flags == [False] * 13
    assert x.is_pinned() is False
    with pytest.raises(RuntimeError, match="needs a GPU"):
        x.pin_memory()


def test_the_list_of_names_is_that_of_pytorch():
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    names = missing.pytorch_names()

    assert {n for n in dir(torch.Tensor) if not n.startswith("_")} == names["Tensor"]
    homes = {"": torch, "nn": torch.nn, "nn.functional": torch.nn.functional, "optim": torch.optim}
    for where, module in homes.items():
        assert len(names[where]) >= len(getattr(module, "__all__", ())), where
        assert [n for n in names[where] if not hasattr(module, n) and n != "backends"] == [], where
    assert {"relu", "conv2d", "scaled_dot_product_attention"} <= names["nn.functional"]
    assert {"fft", "float32", "cat", "no_grad", "nn", "pi", "LongTensor"} <= names[""]


def test_modules_of_pytorch_that_are_elsewhere_here():
    assert dt.utils.data.sampler.SubsetRandomSampler is dt.utils.data.SubsetRandomSampler
    assert dt.utils.data.dataset.random_split is dt.utils.data.random_split
    assert dt.utils.data.dataloader.default_collate is dt.utils.data.default_collate
    assert dt.utils.data.distributed.DistributedSampler is dt.utils.data.DistributedSampler
    assert dt.nn.utils.clip_grad.clip_grad_norm_ is dt.nn.utils.clip_grad_norm_
    assert dt.nn.parallel.distributed.DistributedDataParallel is dt.nn.parallel.DistributedDataParallel
    assert dt.autograd.variable.Variable is dt.autograd.Variable
    assert dt.distributions.normal.Normal is dt.distributions.Normal
    for moved, home in missing.MOVED.items():
        module = importlib.import_module(home)
        known = missing.pytorch_names()
        above, _, name = moved.rpartition(".")
        assert moved in known or name in known.get(above, ()) or "_utils" in moved
        on_the_way = any(other.startswith(moved + ".") for other in missing.MOVED)
        assert on_the_way or any(hasattr(module, n) for n in known.get(moved, dir(module)))


def test_what_is_refused_says_why_when_it_is_called():
    with pytest.raises(
        NotImplementedError, match=r"disttrain\.jit\.script is not in disttrain: nothing is compiled"
    ):
        dt.jit.script(dt.nn.Linear(2, 2))
    with pytest.raises(NotImplementedError, match=r"onnx\.export is not in disttrain"):
        dt.onnx.export(None, (), "x.onnx")
    with pytest.raises(NotImplementedError, match="nothing is downloaded"):
        dt.hub.load_state_dict_from_url("https://example.org/x.pth")
