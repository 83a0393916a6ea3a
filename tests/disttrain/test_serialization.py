import errno
import io
import json
import math
import os
import random
import re
import stat
import struct
import sys
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import disttrain as dt
from disttrain import dtypes
from disttrain.errors import FileDamaged
from disttrain.nn.module import Module
from disttrain.nn.parameter import Buffer, Parameter
from disttrain.serialization import load, save


class Tied(Module):
    """Two names of one parameter, a buffer, a child that knows its parent, and plain attributes."""

    def __init__(self):
        super().__init__()
        self.size = (3, 2)
        self.rates = {"lr": 0.1, 7: [None, True]}
        self.encoder = Parameter(dt.arange(6.0).reshape(3, 2))
        self.decoder = self.encoder
        self.steps = Buffer(dt.tensor([4]))
        self.child = Child()


class Child(Module):
    def __init__(self):
        super().__init__()
        self.weight = Parameter(dt.ones(2, dtype=dt.bfloat16), requires_grad=False)


def roundtrip(obj, **options):
    buffer = io.BytesIO()
    save(obj, buffer)
    buffer.seek(0)
    return load(buffer, **options)


def rewritten(content: bytes, change) -> bytes:
    """Return the file with its description changed and the checksum made right: what a liar can write."""
    import hashlib

    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    description = json.loads(header["__metadata__"]["description"])
    change(description, header)
    text = json.dumps(description)
    header["__metadata__"]["description"] = text
    header["__metadata__"]["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    new = json.dumps(header).encode()
    new += b" " * (-len(new) % 8)
    return struct.pack("<Q", len(new)) + new + content[8 + length :]


def saved(obj) -> bytes:
    buffer = io.BytesIO()
    save(obj, buffer)
    return buffer.getvalue()


def test_containers_and_numbers_come_back_as_they_were():
    obj = {
        "none": None,
        "yes": True,
        "int": -3,
        "huge": -(2**200),
        "float": 0.1,
        "inf": math.inf,
        "minus": -math.inf,
        "text": "é\n\ud800",
        "bytes": b"\x00\xff",
        3: [1, (2, [])],
        (1, "a"): {},
        2.5: bytearray(b"x"),
        None: {1, 2},
        "frozen": frozenset("ab"),
        "order": OrderedDict([("b", 1), ("a", 2)]),
        "dtype": dt.bfloat16,
        "size": dt.Size((2, 3)),
        "device": dt.device("cuda:1"),
        b"k": -0.0,
    }

    back = roundtrip(obj)

    assert back == obj
    assert list(back) == list(obj)
    assert [type(v) for v in back.values()] == [type(v) for v in obj.values()]
    assert list(back["order"]) == ["b", "a"]
    assert back["dtype"] is dt.bfloat16
    assert math.copysign(1, back[b"k"]) == -1
    assert back["yes"] is True


def test_nan_comes_back():
    assert math.isnan(roundtrip([math.nan])[0])


@pytest.mark.parametrize("name", [d.name for d in dtypes.ALL])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3)])
def test_tensors_come_back_bit_for_bit(name, shape):
    bits = np.random.default_rng(0).integers(0, 2, (*shape, 8), np.uint8)
    kind = getattr(dt, name)
    array = (bits[..., 0] if name == "bool" else bits.sum(-1) - 3.5).astype(kind.numpy)

    back = roundtrip(dt.tensor(array))

    assert back.dtype is kind
    assert back.shape == shape
    assert back._array.tobytes() == array.tobytes()
    assert back._array.flags.writeable


def test_nan_payloads_and_signs_of_a_tensor_survive():
    array = np.array([0x7FC12345, 0xFF800000, 0x80000000], np.uint32).view(np.float32)

    assert roundtrip(dt.from_numpy(array))._array.tobytes() == array.tobytes()


def test_transposed_and_strided_tensors_keep_their_values():
    x = dt.arange(24.0).reshape(4, 6)

    back = roundtrip([x.t(), x[::2, 1::3]])

    np.testing.assert_array_equal(back[0].numpy(), x.numpy().T)
    np.testing.assert_array_equal(back[1].numpy(), x.numpy()[::2, 1::3])


def test_numpy_arrays_and_scalars_come_back():
    back = roundtrip({"a": np.arange(3), "s": np.float32(1.5)})

    assert isinstance(back["a"], np.ndarray)
    assert isinstance(back["s"], np.float32)
    assert back["s"] == 1.5


def test_requires_grad_is_kept():
    back = roundtrip([dt.ones(2, requires_grad=True), dt.ones(2)])

    assert [t.requires_grad for t in back] == [True, False]


def test_shared_tensors_are_stored_once_and_shared_again():
    x = dt.zeros(1000)

    content = saved({"a": x, "b": x, "c": x.detach(), "d": x.clone()})
    back = load(io.BytesIO(content))

    assert len(content) < 2 * x.nbytes + 3000
    assert back["a"] is back["b"]
    assert back["c"] is not back["a"]
    back["a"][0] = 5.0
    assert back["c"][0].item() == 5.0
    assert back["d"][0].item() == 0.0


def test_other_programs_can_read_the_tensors():
    content = saved(OrderedDict([("fc.weight", dt.ones(2, 3)), ("fc.bias", dt.zeros(2))]))

    tensors = safetensors.numpy.load(content)

    assert set(tensors) == {"fc.weight", "fc.bias"}
    np.testing.assert_array_equal(tensors["fc.weight"], np.ones((2, 3)))


def test_a_module_comes_back_with_ties_attributes_and_buffers():
    model = Tied().eval()
    model.child.parent = [model]

    back = roundtrip(model)

    assert type(back) is Tied
    assert back.encoder is back.decoder
    assert isinstance(back.encoder, Parameter)
    assert back.encoder.requires_grad
    assert not back.child.weight.requires_grad
    assert back.child.weight.dtype is dt.bfloat16
    assert back.child.parent[0] is back
    assert (back.size, back.rates, back.training) == ((3, 2), {"lr": 0.1, 7: [None, True]}, False)
    ours, theirs = model.state_dict(), back.state_dict()
    assert list(ours) == list(theirs)
    assert all((ours[k] == theirs[k]).all() for k in ours)


def test_a_class_that_is_not_imported_is_named(monkeypatch):
    content = saved(Child())
    monkeypatch.delattr(sys.modules[Child.__module__], "Child")

    with pytest.raises(
        RuntimeError, match=r"class Child, which is not imported; import \S*test_serialization"
    ):
        load(io.BytesIO(content))


@pytest.mark.parametrize(
    "name", ["subprocess:Popen", "builtins:eval", "os:system", "disttrain.tensors:Tensor"]
)
def test_only_classes_of_modules_are_built(name):
    def change(description, header):
        for described in description["objects"]:
            if "module" in described:
                described["module"] = name

    import subprocess  # noqa: F401  it must be there to be refused

    with pytest.raises(FileDamaged, match="is no class of modules"):
        load(io.BytesIO(rewritten(saved(Child()), change)))


def test_looking_for_a_class_imports_nothing():
    def change(description, header):
        for described in description["objects"]:
            if "module" in described:
                described["module"] = "disttrain:distributed.canary"

    with pytest.raises(RuntimeError, match="not imported"):
        load(io.BytesIO(rewritten(saved(Child()), change)))


@pytest.mark.parametrize(
    ("obj", "where"),
    [
        ({"hook": lambda x: x}, r"obj\['hook'\]: it is a function"),
        ({"a": [1, (2, object())]}, r"obj\['a'\]\[1\]\[1\]: it is of type object"),
        ([threading.Lock()], r"obj\[0\]: it is of type lock"),
        (1j, "obj: it is of type complex"),
        (np.zeros(2, np.complex64), "obj: it is an array of complex64"),
        (np.array(["a"]), "obj: it is an array of <U1"),
        ({object(): 1}, "obj: it has the key or element"),
    ],
)
def test_what_cannot_be_saved_is_named_with_its_place(obj, where):
    with pytest.raises(TypeError, match="cannot save " + where):
        save(obj, io.BytesIO())


def test_a_hook_in_a_module_is_named():
    model = Child()
    model.act = len

    with pytest.raises(TypeError, match=r"cannot save obj\.act: "):
        save(model, io.BytesIO())


def test_a_local_class_is_refused_when_saving():
    class Local(Module):
        pass

    with pytest.raises(TypeError, match="defined inside a function"):
        save(Local(), io.BytesIO())


def test_cycles_and_depth_are_refused():
    cycle = []
    cycle.append(cycle)
    deep = []
    for _ in range(200):
        deep = [deep]

    with pytest.raises(ValueError, match="contains itself"):
        save(cycle, io.BytesIO())
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        save(deep, io.BytesIO())


def test_map_location():
    content = saved({"x": dt.ones(2)})

    for where in (
        "cpu",
        dt.device("cpu"),
        {"cpu": "cpu"},
        lambda tensor, saved: tensor,
        lambda tensor, saved: None,
    ):
        assert load(io.BytesIO(content), map_location=where)["x"].device.type == "cpu"
    assert load(io.BytesIO(content), weights_only=True)["x"].shape == (2,)
    with pytest.raises(TypeError, match="map_location must be"):
        load(io.BytesIO(content), map_location=3.5)


# ------------------------------------------------------------------------------------------ writing


def test_saving_replaces_the_file_and_leaves_nothing_else(tmp_path: Path):
    path = tmp_path / "model.dt"
    save([1], path)
    path.chmod(0o640)

    save([2], str(path))

    assert load(path) == [2]
    assert [p.name for p in tmp_path.iterdir()] == ["model.dt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_new_file_follows_the_umask(tmp_path: Path):
    old = os.umask(0o027)
    try:
        save([1], tmp_path / "a")
    finally:
        os.umask(old)

    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_link_stays_a_link(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "real")

    save([1], tmp_path / "link")

    assert (tmp_path / "link").is_symlink()
    assert load(tmp_path / "real") == [1]


def test_a_device_file_is_not_replaced():
    save([1], "/dev/null")

    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_keeps_the_old_file_and_removes_the_new(tmp_path: Path, monkeypatch, call):
    path = tmp_path / "model.dt"
    save({"x": dt.ones(3)}, path)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        save({"x": dt.zeros(3)}, path)

    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.dt"]


def test_a_full_disk_keeps_the_old_file(tmp_path: Path):
    resource = pytest.importorskip("resource")
    import signal

    path = tmp_path / "model.dt"
    save([1], path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with pytest.raises(OSError, match="File too large"):
            save(dt.zeros(100_000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)

    assert load(path) == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["model.dt"]


def test_file_and_folder_are_on_the_disk_before_save_returns(tmp_path: Path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(stat.S_IFMT(os.fstat(fd).st_mode)), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))

    save([1], tmp_path / "a")

    assert calls == [stat.S_IFREG, "replace", stat.S_IFDIR]


# ------------------------------------------------------------------------------------------ damage and lies


def small() -> dict:
    return {"fc.weight": dt.arange(12.0).reshape(3, 4), "fc.bias": dt.ones(3, dtype=dt.bfloat16), "step": 7}


def same(a, b) -> bool:
    return (
        set(a) == set(b)
        and a["step"] == b["step"]
        and type(a["step"]) is type(b["step"])
        and all(
            a[k].dtype is b[k].dtype
            and a[k].shape == b[k].shape
            and a[k]._array.tobytes() == b[k]._array.tobytes()
            for k in ("fc.weight", "fc.bias")
        )
    )


def test_no_damaged_byte_loads_other_numbers():
    content = saved(small())
    rng = random.Random(0)
    refused = 0

    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << rng.randrange(8) if position % 2 else rng.randrange(1, 256)
        try:
            back = load(io.BytesIO(bytes(damaged)))
        except FileDamaged:
            refused += 1
        else:
            assert same(back, small()), position
    assert len(content) > 500
    assert refused > 0.98 * len(content)


def test_no_cut_or_lengthened_file_loads():
    content = saved(small())

    for length in range(len(content)):
        with pytest.raises(FileDamaged):
            load(io.BytesIO(content[:length]))
    for more in (b"\0", content):
        with pytest.raises(FileDamaged):
            load(io.BytesIO(content + more))


def test_random_bytes_are_refused():
    rng = random.Random(1)

    for length in [*range(40), *[rng.randrange(3000) for _ in range(200)]]:
        with pytest.raises(FileDamaged):
            load(io.BytesIO(rng.randbytes(length)))


def test_a_damaged_tensor_is_named(tmp_path: Path):
    path = tmp_path / "model.dt"
    save(small(), path)
    content = bytearray(path.read_bytes())
    content[content.index(np.float32(11).tobytes())] ^= 1  # the last number of the weight
    path.write_bytes(content)

    with pytest.raises(
        FileDamaged, match=r"model\.dt is damaged: the checksum of tensor 'fc.weight' differs"
    ):
        load(path)


def test_a_damaged_description_is_named():
    content = saved(small()).replace(b"step", b"stop", 1)

    with pytest.raises(FileDamaged, match="the checksum of the description differs"):
        load(io.BytesIO(content))


def test_pickles_and_foreign_files_are_refused_and_never_run(tmp_path: Path):
    import pickle

    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(canary),)

    for protocol in range(2, 6):
        with pytest.raises(FileDamaged, match="is a pickle"):
            load(io.BytesIO(pickle.dumps(Evil(), protocol)))
    for protocol in range(2):
        with pytest.raises(FileDamaged, match="not a file of disttrain"):
            load(io.BytesIO(pickle.dumps(Evil(), protocol)))
    with pytest.raises(FileDamaged, match="was not written by"):
        load(io.BytesIO(safetensors.numpy.save({"a": np.ones(2)})))
    assert not canary.exists()


def test_a_file_of_pytorch_is_refused():
    torch = pytest.importorskip("torch")
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer)
    buffer.seek(0)

    with pytest.raises(FileDamaged, match="a pickle or a PyTorch file"):
        load(buffer)


def test_lying_lengths_take_no_memory():
    import tracemalloc

    tracemalloc.start()
    try:
        for claimed in (2**62, 2**63 + 5, 10**8, 10**9):
            with pytest.raises(FileDamaged, match="no header that fits"):
                load(io.BytesIO(struct.pack("<Q", claimed) + b"{" + b" " * 100))
        content = saved({"a": dt.ones(4)})

        def lie(description, header):
            header["a"]["shape"] = [2**40]
            header["a"]["data_offsets"] = [0, 2**42]
            description["tensors"]["a"]["shape"] = [2**40]

        with pytest.raises(FileDamaged, match="the lengths in it are wrong"):
            load(io.BytesIO(rewritten(content, lie)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000


def test_nested_bombs_are_refused():
    deep = b"[" * 100_000
    with pytest.raises(FileDamaged):
        load(io.BytesIO(struct.pack("<Q", len(deep) + 6) + b'{"a": ' + deep))

    def nest(description, header):
        description["root"] = "BOMB"

    content = rewritten(saved([1]), nest)
    assert load(io.BytesIO(content)) == "BOMB"

    def nest_deep(description, header):
        root = 0
        for _ in range(400):
            root = [root]
        for _ in range(500):
            root = {"tuple": [root]} if _ < 100 else root
        description["root"] = root

    with pytest.raises(FileDamaged, match="nested too deep"):
        load(io.BytesIO(rewritten(saved([1]), nest_deep)))


@pytest.mark.parametrize(
    "root",
    [
        {"object": 5},
        {"object": -1},
        {"object": True},
        {"object": "0"},
        {"object": []},
        {"dict": 3},
        {"dict": [[1]]},
        {"dict": [[[], 1]]},
        {"tuple": 4},
        {"int": "zz"},
        {"int": 4},
        {"float": "x"},
        {"float": [1]},
        {"bytes": "%"},
        {"dtype": "complex"},
        {"dtype": []},
        {"device": "gpu"},
        {"Size": 3},
        {"eval": "1"},
        {},
        {"a": 1, "b": 2},
        {"array": "missing"},
        {"array": []},
        {"set": [{"set": []}]},
    ],
    ids=str,
)
def test_nonsense_with_a_right_checksum_is_refused(root):
    def change(description, header):
        description["root"] = root

    with pytest.raises(FileDamaged, match="the description makes no sense"):
        load(io.BytesIO(rewritten(saved([dt.ones(2)]), change)))


def test_objects_that_lie_are_refused():
    lies = (
        {"tensor": "x"},
        {"tensor": []},
        {"module": 3},
        {"module": "a:b", "attributes": 4},
        [],
        3,
        {"x": 1},
        {"tensor": "0", "class": "Tensor"},
        {"tensor": "0", "device": 7.5},
        {"tensor": "0", "requires_grad": True},
    )
    for lie in lies:

        def change(description, header, lie=lie):
            description["objects"][0] = lie

        with pytest.raises((FileDamaged, RuntimeError), match=r"makes no sense|not imported"):
            load(io.BytesIO(rewritten(saved([dt.ones(2).long()]), change)))


def test_a_folder_a_pipe_and_a_text_file_are_refused(tmp_path: Path):
    with pytest.raises(FileDamaged, match="not a regular file"):
        load("/dev/zero")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)
    with pytest.raises(IsADirectoryError):
        save([1], tmp_path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")
    with pytest.raises(TypeError, match="binary mode"):
        load(io.StringIO("{}"))


def test_a_file_that_cannot_be_written_is_named_as_the_caller_named_it(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(FileNotFoundError, match=re.escape(f"'{tmp_path / 'nowhere' / 'a.dt'}'")):
        dt.save(1, tmp_path / "nowhere" / "a.dt")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{tmp_path / 'a.dt'}'")):
        dt.save(1, tmp_path / "a.dt")
    assert list(tmp_path.iterdir()) == []


def test_functions_of_tensors_are_saved_by_name():
    buffer = io.BytesIO()
    dt.save({"act": dt.nn.functional.gelu, "other": dt.relu}, buffer)
    buffer.seek(0)

    loaded = dt.load(buffer)

    assert loaded["act"](dt.tensor([-1.0])).item() == dt.nn.functional.gelu(dt.tensor([-1.0])).item()
    assert loaded["other"](dt.tensor([-1.0])).item() == 0


@pytest.mark.parametrize("function", [dt.save, dt.manual_seed, os.system, lambda x: x])
def test_no_other_function_is_saved(function):
    with pytest.raises(TypeError, match=r"it is a function|of type builtin"):
        dt.save({"f": function}, io.BytesIO())


@pytest.mark.parametrize(
    "name",
    [
        "disttrain.serialization:save",
        "disttrain.functions.elementwise:np",
        "disttrain.functions.elementwise:apply",
        "disttrain.functions.nothing:relu",
        "os:system",
        "posix:system",
    ],
)
def test_no_other_function_is_loaded(name):
    from disttrain import serialization

    with pytest.raises(ValueError, match="no function that a file may name"):
        serialization._function(name)
