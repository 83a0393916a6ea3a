"""Files of PyTorch, Hugging Face and NumPy: what they hold comes back, and nothing in them is run."""

import io
import json
import pickle
import random
import struct
import tracemalloc
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest
import safetensors.numpy

import disttrain as dt
from disttrain.checkpoint import read_foreign
from disttrain.errors import FileDamaged

NAMES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="writes files with PyTorch, which is not installed")


def content(torch):
    base = torch.arange(24.0).reshape(4, 6)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return {
        "tensors": {name: torch.arange(6).reshape(2, 3).to(getattr(torch, name)) for name in NAMES},
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3.5),
        "view": base[1:3, ::2],
        "transposed": base.T,
        "base": base,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "counter": Counter({3: 2}),
        "plain": [1, -2, 2**70, 0.1, None, True, "é", b"\0\xff", (1, "a"), {1, 2}, OrderedDict(b=1, a=2)],
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        3: "three",
        (1, "x"): [],
    }


def assert_equal(ours, theirs, torch):
    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, dt.Tensor)
        assert ours.dtype.name == str(theirs.dtype).removeprefix("torch.")
        assert ours.shape == tuple(theirs.shape)
        np.testing.assert_array_equal(ours.numpy().astype(np.float64), theirs.detach().double().numpy())
    elif isinstance(theirs, torch.dtype | torch.device):
        assert str(ours).rpartition(".")[2] == str(theirs).rpartition(".")[2]
    elif isinstance(theirs, dict):
        assert type(ours).__name__ == type(theirs).__name__
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            assert_equal(ours[key], value, torch)
    elif isinstance(theirs, list | tuple):
        assert isinstance(ours, tuple if isinstance(theirs, tuple) else list)
        for a, b in zip(ours, theirs, strict=True):
            assert_equal(a, b, torch)
    else:
        assert ours == theirs
        assert type(ours) is type(theirs)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_comes_back(tmp_path, torch, zipped):
    expected = content(torch)
    torch.save(expected, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)

    found = read_foreign(tmp_path / "x.pt")

    assert_equal(found, expected, torch)
    with dt.no_grad():
        found["base"][1, 2] = -1
    assert found["view"][0, 1].item() == -1  # they share memory, as they did
    model = dt.nn.Sequential(dt.nn.Linear(3, 4), dt.nn.BatchNorm1d(4))
    model.load_state_dict(found["model"])


def test_whole_modules_and_other_objects_are_refused_by_name(tmp_path, torch):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pt")

    with pytest.raises(FileDamaged, match=r"names 'torch.nn.modules.linear.Linear', and only tensors"):
        read_foreign(tmp_path / "x.pt")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(tmp_path, torch, zipped):
    canary = tmp_path / "canary"
    torch.save(
        {"a": torch.ones(1), "b": Evil(str(canary))}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped
    )

    with pytest.raises(FileDamaged, match=r"names '(builtins|__builtin__|_?io).open'"):
        read_foreign(tmp_path / "x.pt")

    assert not canary.exists()


def test_a_tensor_that_repeats_its_memory_is_refused(tmp_path, torch):
    torch.save(torch.ones(1).expand(10**9), tmp_path / "x.pt")

    with pytest.raises(
        FileDamaged, match=r"repeats the 1 elements of its storage; save a contiguous\(\) copy"
    ):
        read_foreign(tmp_path / "x.pt")


def test_torchscript_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("x/constants.pkl", b"\x80\x02).")

    with pytest.raises(FileDamaged, match="is TorchScript, a program"):
        read_foreign(tmp_path / "x.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_of_torch_are_refused_or_read(tmp_path, torch, zipped):
    """Whatever is done to a file: an error of ours or a result, no crash, and little memory."""
    buffer = io.BytesIO()
    torch.save(
        {"w": torch.ones(20, 3), "s": {"lr": 0.1, "k": [1, "x"]}},
        buffer,
        _use_new_zipfile_serialization=zipped,
    )
    good = buffer.getvalue()
    rng = random.Random(1)
    path = tmp_path / "x.pt"
    refused = 0
    path.write_bytes(good)
    read_foreign(path)
    for _ in range(1500):
        bad = bytearray(good)
        for _ in range(rng.choice([1, 1, 2, 5])):
            bad[rng.randrange(len(bad))] = rng.choice([0, 255, rng.randrange(256)])
        if rng.random() < 0.1:
            del bad[rng.randrange(len(bad)) :]
        path.write_bytes(bad)
        tracemalloc.start()
        try:
            read_foreign(path)
        except FileDamaged:
            refused += 1
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 << 20
    assert refused > 500


PICKLES = {
    "an import": b"\x80\x02cos\nsystem\n.",
    "a call": b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.",
    "an import by the stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "an instance": b"(i__builtin__\neval\n.",
    "a constructor": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "an extension": b"\x80\x02\x82\x01.",
    "a text number": b"I123\n.",
    "no mark": b"\x80\x02t.",
    "nothing": b"\x80\x02.",
    "no end": b"\x80\x02]",
    "a memo that is not there": b"\x80\x02h\x07.",
    "a text longer than the file": b"\x80\x02X\xff\xff\xff\xffab.",
    "a negative length": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "a call of a list": b"\x80\x02])R.",
    "attributes of a list": b"\x80\x02]}b.",
    "a key that goes deep": b"\x80\x02}" + b")" + b"\x85" * 300_000 + b"NsN0.",
    "a set of lists": b"\x80\x04\x8f(]\x90.",
    "items of a list": b"\x80\x02](NNu.",
    "a reference": b"\x80\x02X\x01\0\0\0aQ.",
    "many copies": (
        b"\x80\x02](" + b"".join(b"K" + bytes([i % 256]) + b"\x85" for i in range(2000)) + b"eq\0"
        + b"0c__builtin__\nset\nh\0\x85R" * 2000 + b"."
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_do_what_none_of_torch_does_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", PICKLES[name])
        archive.writestr("x/version", b"3")

    tracemalloc.start()
    with pytest.raises(FileDamaged):
        read_foreign(tmp_path / "x.pt")
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_a_pickle_that_is_no_file_of_torch_is_refused(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": 1}, protocol=2))

    with pytest.raises(FileDamaged, match="is a pickle, but not of torch"):
        read_foreign(tmp_path / "x.pkl")


def test_a_compressed_storage_is_refused(tmp_path, torch):
    torch.save(torch.zeros(1000), tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as old,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))

    with pytest.raises(FileDamaged, match="is compressed, or longer than the file"):
        read_foreign(tmp_path / "y.pt")


# ------------------------------------------------------------------------------------------- safetensors, npz


def test_safetensors_of_others_come_back(tmp_path):
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([True]),
        "c": np.zeros((0, 2), np.int8),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors", {"format": "pt"})

    for path in (tmp_path / "model.safetensors", tmp_path):
        found = read_foreign(path)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name].numpy(), array)


def sharded(folder, weight_map=None):
    folder.mkdir()
    safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, folder / "model-1.safetensors")
    safetensors.numpy.save_file({"b": np.zeros(3, np.int64)}, folder / "model-2.safetensors")
    index = {
        "metadata": {},
        "weight_map": weight_map or {"a": "model-1.safetensors", "b": "model-2.safetensors"},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_a_model_in_several_files_comes_back(tmp_path):
    folder = sharded(tmp_path / "m")

    for path in (folder, folder / "model.safetensors.index.json"):
        found = read_foreign(path)
        assert sorted(found) == ["a", "b"]
        assert found["b"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "home", ["../m/model-1.safetensors", "/etc/passwd", "no.safetensors", 3, "model-2.safetensors"]
)
def test_an_index_that_lies_is_refused(tmp_path, home):
    with pytest.raises(FileDamaged):
        read_foreign(sharded(tmp_path / "m", {"a": home}))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_comes_back(tmp_path, save):
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "t": np.array(["x", "yz"]),
        "f": np.asfortranarray(np.ones((2, 3))),
    }
    save(tmp_path / "x.npz", **arrays)

    found = read_foreign(tmp_path / "x.npz")

    assert isinstance(found["a"], dt.Tensor)
    assert isinstance(found["t"], np.ndarray)
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(found[name]), array)


def test_objects_in_npz_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{}], dtype=object))

    with pytest.raises(FileDamaged, match="holds Python objects, which are pickles"):
        read_foreign(tmp_path / "x.npz")


def test_an_npy_that_claims_more_than_it_has_takes_no_memory(tmp_path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n" + bytes(80)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", npy)

    with pytest.raises(FileDamaged, match="has other bytes than its shape"):
        read_foreign(tmp_path / "x.npz")


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_damaged_files_are_refused_or_read(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "npz":
        np.savez(path, a=np.arange(20.0), b=np.ones(3, np.int8))
    else:
        safetensors.numpy.save_file({"a": np.arange(20.0), "b": np.ones(3, np.int8)}, path)
    good = path.read_bytes()
    rng = random.Random(2)
    for _ in range(600):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] = rng.randrange(256)
        path.write_bytes(bad[: rng.choice([len(bad)] * 9 + [rng.randrange(len(bad))])])
        try:
            read_foreign(path)
        except FileDamaged:
            continue


@pytest.mark.parametrize("data", [b"", b"x", b"PK", b"\x80\x02", b"{}", bytes(100)])
def test_other_files_are_refused(tmp_path, data):
    (tmp_path / "x").write_bytes(data)

    with pytest.raises(FileDamaged):
        read_foreign(tmp_path / "x")
