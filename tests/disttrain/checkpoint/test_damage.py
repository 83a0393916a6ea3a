"""Files that are not as they were written: none loads other numbers, crashes, or takes memory beyond its size."""

import hashlib
import json
import os
import random
import shutil
import struct
import tracemalloc
from pathlib import Path

import pytest
import xxhash

import disttrain as dt
from disttrain.checkpoint import manifest as manifests
from disttrain.checkpoint.reading import Reader
from disttrain.checkpoint.states import Wanted
from disttrain.collectives.env import WorkerEnv
from disttrain.collectives.local import run_ranks
from disttrain.errors import CheckpointMismatch, FileDamaged

PART = "part-00000.safetensors"


def world(size, body):
    return run_ranks(WorkerEnv(world_size=size, hosted=size, local_world_size=size, fixed_order=True), body)


def make(step=1):
    dt.manual_seed(step)
    return dt.nn.Sequential(dt.nn.Linear(4, 6), dt.nn.BatchNorm1d(6), dt.nn.Linear(6, 2, dtype=dt.bfloat16))


def write(folder, steps=(1, 2), ranks=2):
    def body(rank):
        for step in steps:
            model = dt.nn.parallel.DistributedDataParallel(make(step))
            dt.checkpoint.save(folder, step=step, model=model, mask=dt.tensor([True, False]), note="é")
        dt.checkpoint.close()

    world(ranks, body)
    return [folder / f"{i:05}-step-{step}" for i, step in enumerate(steps, 1)]


def load(path, model, **options):
    found = dt.checkpoint.load(path, model=model, **options)
    return found.step, found["mask"].tolist(), found["note"], numbers(model)


def numbers(model):
    return {n: t.numpy().tobytes() for n, t in model.state_dict().items()}


def damages(folder: Path, other: Path, count: int):
    """Yield what is done to a checkpoint, as a function of it."""
    rng = random.Random(0)
    names = sorted(p.name for p in folder.iterdir())

    def flip(path, at, bit):
        content = bytearray(path.read_bytes())
        content[at] ^= 1 << bit
        path.write_bytes(content)

    def cut(path, at):
        os.truncate(path, at)

    def zero(path, at):
        content = bytearray(path.read_bytes())
        content[at : at + 512] = bytes(len(content[at : at + 512]))
        path.write_bytes(content)

    def grow(path, extra):
        path.write_bytes(path.read_bytes() + extra)

    def move(path, at):
        content = path.read_bytes()
        path.write_bytes(content[at:] + content[:at])

    for name in names:
        size = (folder / name).stat().st_size
        for _ in range(count):
            at, bit = rng.randrange(size), rng.randrange(8)
            yield f"{name}: bit {bit} of byte {at} flipped", lambda f, n=name, a=at, b=bit: flip(f / n, a, b)
        for _ in range(count // 3):
            at = rng.randrange(1, size)
            yield f"{name}: cut at {at}", lambda f, n=name, a=at: cut(f / n, a)
            yield f"{name}: zeros at {at}", lambda f, n=name, a=at: zero(f / n, a)
            yield f"{name}: turned by {at}", lambda f, n=name, a=at: move(f / n, a)
        for extra in (b"\0", b" ", b"}", os.urandom(100)):
            yield f"{name}: {len(extra)} bytes more", lambda f, n=name, e=extra: grow(f / n, e)
        yield f"{name}: missing", lambda f, n=name: (f / n).unlink()
        yield f"{name}: empty", lambda f, n=name: (f / n).write_bytes(b"")
        yield f"{name}: a folder", lambda f, n=name: [(f / n).unlink(), (f / n).mkdir()]
        yield f"{name}: a pipe", lambda f, n=name: [(f / n).unlink(), os.mkfifo(f / n)]
        yield (
            f"{name}: a link to the right file",
            lambda f, n=name: [(f / n).unlink(), (f / n).symlink_to(folder / n)],
        )
        yield f"{name}: of another step", lambda f, n=name: shutil.copyfile(other / n, f / n)
    yield (
        "the parts swapped",
        lambda f: [
            os.rename(f / PART, f / "x"),
            os.rename(f / "part-00001.safetensors", f / PART),
            os.rename(f / "x", f / "part-00001.safetensors"),
        ],
    )


def test_no_damage_of_several_hundred_loads_other_numbers(tmp_path):
    other, folder = write(tmp_path / "run")
    expected = load(folder, make(9))
    model = make(9)
    before = numbers(model)
    seen = {"refused": 0, "harmless": 0}
    limit = 40 * sum(p.stat().st_size for p in folder.iterdir()) + (1 << 20)

    for what, damage in damages(folder, other, 70):
        hurt = shutil.copytree(folder, tmp_path / "hurt")
        damage(hurt)
        tracemalloc.start()
        try:
            found = load(hurt, model)
        except FileDamaged:
            assert numbers(model) == before, f"{what}: a refused load changed the model"
            seen["refused"] += 1
        else:
            assert found == expected, f"{what}: other numbers"
            seen["harmless"] += 1
            model = make(9)
        assert tracemalloc.get_traced_memory()[1] < limit, what
        tracemalloc.stop()
        shutil.rmtree(hurt)

    assert seen["refused"] > 350
    assert seen["harmless"] < 80  # what the headers of parts say a second time


def test_a_damaged_tensor_is_named_and_the_one_before_is_taken_only_if_asked(tmp_path, caplog):
    first, second = write(tmp_path / "run", ranks=1)
    path = second / PART
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(
        FileDamaged, match=r"file part-00000.safetensors of step 2 .*: checksum differs for tensor"
    ):
        load(tmp_path / "run", make(9))
    assert load(tmp_path / "run", make(9), fallback=True)[0] == 1

    assert "loading the checkpoint before it" in caplog.text
    shutil.rmtree(first)
    with pytest.raises(FileNotFoundError, match="has no checkpoint that is whole"):
        load(tmp_path / "run", make(9), fallback=True)


def test_damage_that_one_rank_sees_is_told_on_all(tmp_path):
    (folder,) = write(tmp_path / "run", steps=(1,))
    part = folder / "part-00001.safetensors"
    part.write_bytes(part.read_bytes()[:-1])

    def body(rank):
        with pytest.raises(FileDamaged, match="part-00001"):
            dt.checkpoint.load(tmp_path / "run", model=make(9))

    world(2, body)


def test_a_checkpoint_of_the_first_version_is_read_and_its_damage_seen(tmp_path):
    (folder,) = write(tmp_path / "run", steps=(1,))
    expected = load(folder, make(9))

    def older(content):
        with Reader(str(folder)) as reader:
            for name in reader.manifest.tensors:
                data = reader.read([Wanted(name)])[name].tobytes()
                said = content["tensors"][name]["pieces"]
                assert len(said) == 1
                assert said[0][3] == "xxh3:" + xxhash.xxh3_128(data).hexdigest()
                said[0][3] = hashlib.sha256(data).hexdigest()

    rewrite(folder, older, version=1)

    assert load(folder, make(9)) == expected
    path = folder / PART
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileDamaged, match="checksum differs for tensor"):
        load(folder, make(9))


# ------------------------------------------------------------------------------------------------- liars


def rewrite(folder, change, **head_too):
    """Change a manifest and make its checksum right: what a liar can write."""
    path = folder / manifests.NAME
    head = json.loads(path.read_text())
    change(head["content"])
    head["sha256"] = manifests._digest(head["content"])
    path.write_text(json.dumps(head | head_too))


def header_of(path, change):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    text = change(header)
    new = (json.dumps(header) if text is None else text).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + content[8 + length :])


def first(content):
    return next(t for n, t in sorted(content["tensors"].items()) if len(t["shape"]) == 2)


def set_file(name):
    def change(content):
        content["files"][name] = content["files"].pop(PART)
        for t in content["tensors"].values():
            for p in t["pieces"]:
                p[0] = name

    return change


LIES = {
    "a huge shape": lambda c: first(c).update(shape=[1 << 40, 1 << 20]),
    "a shape that overflows": lambda c: first(c).update(shape=[1 << 62, 1 << 62]),
    "a negative shape": lambda c: first(c).update(shape=[-4, -6]),
    "a shape of texts": lambda c: first(c).update(shape=["4", "6"]),
    "many axes": lambda c: first(c).update(shape=[1] * 100_000),
    "an unknown type": lambda c: first(c).update(dtype="object"),
    "another type": lambda c: first(c).update(dtype="int32"),
    "another shape": lambda c: first(c).update(shape=first(c)["shape"][::-1]),
    "no pieces": lambda c: first(c).update(pieces=[]),
    "a piece that is short": lambda c: first(c)["pieces"][0].__setitem__(2, 3),
    "a piece twice": lambda c: first(c)["pieces"].append(first(c)["pieces"][0]),
    "a piece before the tensor": lambda c: first(c)["pieces"][0].__setitem__(1, -1),
    "no checksum": lambda c: first(c)["pieces"][0].__setitem__(3, ""),
    "a checksum of no kind": lambda c: first(c)["pieces"][0].__setitem__(3, "crc:" + 32 * "0"),
    "a checksum that is short": lambda c: first(c)["pieces"][0].__setitem__(3, "xxh3:0"),
    "a path upwards": set_file("../part-00000.safetensors"),
    "an absolute path": set_file("/etc/passwd"),
    "another name": set_file("manifest.json"),
    "a size that is wrong": lambda c: c["files"].update({PART: 1 << 62}),
    "an alias of nothing": lambda c: c["aliases"].update(a="b"),
    "an alias of itself": lambda c: c["aliases"].update(a="a"),
    "no tensors": lambda c: c.update(tensors={}, parts=c["parts"] | {"note": {"kind": "value"}}),
    "tensors in a list": lambda c: c.update(tensors=[]),
    "no parts": lambda c: c.update(parts=[]),
    "a part of no kind": lambda c: c["parts"].update(model={}),
    "a part that is none": lambda c: c["parts"].update(model=None),
    "a value that is deep": lambda c: c["parts"]["note"].update(state=deep()),
    "a value of no kind": lambda c: c["parts"]["note"]["state"].update(root={"exec": "print"}),
    "a value that is a class": lambda c: c["parts"]["note"]["state"].update(
        root={"object": 0}, objects=[{"module": "os:system", "attributes": []}]
    ),
    "a value that is a function": lambda c: c["parts"]["note"]["state"].update(
        root={"function": "os:system"}
    ),
    "a value that holds itself": lambda c: c["parts"]["note"]["state"].update(
        root={"object": 0}, objects=[{"module": "disttrain.nn.linear:Linear", "attributes": [["x", 1, 2]]}]
    ),
    "a tensor that is not there": lambda c: c["parts"]["mask"]["state"].update(objects=[{"tensor": "x"}]),
    "a step that is a text": lambda c: c.update(step="1"),
    "random states of texts": lambda c: c.update(random=[["a"]]),
}


def deep():
    inner = []
    for _ in range(500):
        inner = [inner]
    return {"objects": [], "root": inner, "x": 1}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_lies_is_refused(tmp_path, lie):
    (folder,) = write(tmp_path / "run", steps=(1,), ranks=1)
    if lie == "a value that is deep":
        rewrite(folder, lambda c: None)
        path = folder / manifests.NAME
        path.write_text(
            path.read_text().replace('"root": "\\u00e9"', '"root": ' + "[" * 200_000 + "]" * 200_000)
        )
    else:
        rewrite(folder, LIES[lie])
    model = make(9)
    before = numbers(model)

    tracemalloc.start()
    with pytest.raises((FileDamaged, CheckpointMismatch, RuntimeError)) as refused:
        load(tmp_path / "run", model)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert type(refused.value) is not RuntimeError or "not imported" in str(refused.value)
    assert numbers(model) == before
    assert peak < 64 << 20


HEADERS = {
    "an overlap": lambda h: entries(h)[1].update(data_offsets=entries(h)[0]["data_offsets"]),
    "a hole": lambda h: entries(h)[-1].update(data_offsets=[o + 8 for o in entries(h)[-1]["data_offsets"]]),
    "offsets backwards": lambda h: entries(h)[0].update(data_offsets=entries(h)[0]["data_offsets"][::-1]),
    "offsets far away": lambda h: entries(h)[0].update(data_offsets=[1 << 62, 1 << 63]),
    "many tensors": lambda h: h.update(
        {f"x{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}
    ),
    "deep nesting": lambda h: '{"a":' * 100_000 + "1" + "}" * 100_000,
    "a name twice": lambda h: json.dumps(h)[:-1] + "," + json.dumps(h)[1:],
    "no object": lambda h: "[]",
    "no JSON": lambda h: "{" + "\0" * 100,
    "no UTF-8": lambda h: "{\udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
    "metadata of numbers": lambda h: h.update(__metadata__={"id": 1}),
}


def entries(header):
    return sorted(
        (e for n, e in header.items() if n != "__metadata__"), key=lambda e: (e["data_offsets"], e["shape"])
    )


@pytest.mark.parametrize("lie", HEADERS)
def test_a_header_that_lies_is_refused(tmp_path, lie):
    (folder,) = write(tmp_path / "run", steps=(1,), ranks=1)
    header_of(folder / PART, HEADERS[lie])
    rewrite(folder, lambda c: c["files"].update({PART: (folder / PART).stat().st_size}))

    with pytest.raises(FileDamaged, match="part-00000"):
        load(tmp_path / "run", make(9))


def test_a_header_that_claims_more_than_there_is_takes_no_memory(tmp_path):
    (folder,) = write(tmp_path / "run", steps=(1,), ranks=1)
    content = (folder / PART).read_bytes()
    (folder / PART).write_bytes(struct.pack("<Q", 1 << 62) + content[8:])

    tracemalloc.start()
    with pytest.raises(FileDamaged, match="no header that fits"):
        load(tmp_path / "run", make(9))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_pickles_under_our_names_are_not_run(tmp_path):
    (folder,) = write(tmp_path / "run", steps=(1,), ranks=1)
    canary = tmp_path / "canary"
    pickled = f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()
    for name in (PART, manifests.NAME):
        hurt = shutil.copytree(folder, tmp_path / f"hurt-{name}")
        (hurt / name).write_bytes(pickled)
        with pytest.raises(FileDamaged):
            load(hurt, make(9))
    assert not canary.exists()


def test_names_in_the_folder_that_are_no_checkpoints_are_left_alone(tmp_path):
    write(tmp_path / "run", steps=(1,), ranks=1)
    mine = [".tmp-mine", "00009-step-x", "notes", "00001-step-1.bak", ".old-00001-step-1"]
    for name in mine:
        (tmp_path / "run" / name).mkdir()
        (tmp_path / "run" / name / "keep").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "keep").write_text("x")
    (tmp_path / "run" / ".tmp-00001-step-1-0123abcd").symlink_to(tmp_path / "elsewhere")

    dt.checkpoint.save(tmp_path / "run", step=5, keep_last=1)
    dt.checkpoint.close()

    assert (tmp_path / "elsewhere" / "keep").exists()
    assert sorted(p.name for p in (tmp_path / "run").iterdir() if (p / "keep").exists()) == sorted(mine)
    assert [p.name for p in (tmp_path / "run").glob("0000?-step-[0-9]")] == ["00002-step-5"]
