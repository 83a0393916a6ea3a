"""Tar shards: packed, indexed, read in any order; damaged in every way."""

import io
import json
import logging
import random
import tarfile

import numpy as np
import pytest
from click.testing import CliRunner

import disttrain as dt
from disttrain.cli import main
from disttrain.data import DataLoader, TarDataset
from disttrain.data.shards import INDEX, Index, build_index, pack, split_name
from disttrain.errors import FileDamaged, SampleDamaged

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def folders(tmp_path):
    """A folder of arrays and captions in three classes."""
    source = tmp_path / "source"
    for c, name in enumerate(CLASSES):
        (source / name).mkdir(parents=True)
        for i in range(5):
            np.save(source / name / f"{i}.npy", np.full(100, 10 * c + i))
            (source / name / f"{i}.txt").write_text(f"{name} {i} ü", encoding="utf-8")
    return source


@pytest.fixture
def shards(folders, tmp_path):
    pack(folders, tmp_path / "shards", shard_bytes=4000)
    return tmp_path / "shards"


def run(*args):
    return CliRunner().invoke(main, ["data", *map(str, args)])


def test_what_was_packed_is_read(shards):
    data = TarDataset(shards)

    assert len(data) == 15
    assert len(list(shards.glob("*.tar"))) > 2
    assert json.loads((shards / "classes.json").read_text()) == list(CLASSES)
    for c, name in enumerate(CLASSES):
        for i in range(5):
            sample = data[5 * c + i]
            assert sample.pop("__key__") == f"{name}/{i}" == data.key(5 * c + i)
            assert sample.pop("npy").tolist() == [10 * c + i] * 100
            assert sample == {"txt": f"{name} {i} ü", "cls": c}


def test_shards_are_those_of_webdataset(shards):
    """The layout: members of a sample side by side, named key.field."""
    with tarfile.open(shards / "000000.tar") as tar:
        names = tar.getnames()

    assert names[:4] == ["ant/0.npy", "ant/0.txt", "ant/0.cls", "ant/1.npy"]
    assert split_name("a.b/c.d.e") == ("a.b/c", "d.e")
    assert split_name(".hidden") == ("", "")


@pytest.mark.parametrize("workers", [0, 2])
def test_fields_make_tuples_and_the_loader_reads_them_in_any_order(shards, workers):
    data = TarDataset(shards, ("jpg;npy", "cls"), transform=lambda x: x[:2], target_transform=lambda c: c + 1)

    seen = {}
    for x, y in DataLoader(data, 4, shuffle=True, seed=1, num_workers=workers):
        seen |= dict(zip(x[:, 0].tolist(), y.tolist(), strict=True))

    assert seen == {10 * c + i: c + 1 for c in range(3) for i in range(5)}


def test_packing_is_reproducible_and_shuffled_by_a_seed(folders, tmp_path):
    def keys(name, **options):
        return pack(folders, tmp_path / name, **options).keys

    plain, a, b = keys("0"), keys("1", shuffle=3), keys("2", shuffle=3)

    assert a == b
    assert a != plain == sorted(a)
    assert (tmp_path / "1" / "000000.tar").read_bytes() == (tmp_path / "2" / "000000.tar").read_bytes()


def test_an_index_of_shards_that_there_are(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, text in (
            ("s1.json", '{"a": 1}'),
            ("s1.cls", "4"),
            ("README", ""),
            ("s2.json", "[]"),
            ("s3.raw", "z"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))

    index = build_index(tmp_path)
    data = TarDataset(tmp_path)

    assert index.fields == ["cls", "json", "raw"]
    assert [data[i] for i in range(3)] == [
        {"__key__": "s1", "json": {"a": 1}, "cls": 4},
        {"__key__": "s2", "json": []},
        {"__key__": "s3", "raw": b"z"},
    ]
    with pytest.raises(ValueError, match=r"sample 's2' of .* has no field 'cls'; it has json"):
        TarDataset(tmp_path, ("json;raw", "cls"))


def test_images(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "in").mkdir()
    image.new("L", (4, 3), 7).save(tmp_path / "in" / "a.png")
    pack(tmp_path / "in", tmp_path / "out")

    (pixels,) = TarDataset(tmp_path / "out", ["png"])[0]

    assert (pixels.mode, pixels.size, pixels.getpixel((0, 0))) == ("RGB", (4, 3), (7, 7, 7))


def test_a_flipped_byte_is_named_with_shard_offset_sample_and_rank(shards):
    index = Index.load(shards)
    column = index.fields.index("npy")
    path = shards / index.shards[index.shard[7]]
    data = bytearray(path.read_bytes())
    data[index.offsets[7, column] + 300] ^= 4
    path.write_bytes(data)

    offset = index.offsets[7, column]
    with pytest.raises(
        SampleDamaged,
        match=rf"{path.name} is damaged in field 'npy' of 'bee/2' \(sample 7, offset {offset}, rank 0\)",
    ):
        TarDataset(shards)[7]
    with pytest.raises(SampleDamaged, match="bee/2"):
        list(DataLoader(TarDataset(shards, ["npy"]), 4, num_workers=1))
    assert run("verify", shards).exit_code == 1
    assert "'bee/2'" in run("verify", shards).output


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_samples_are_left_out_if_that_is_wanted(shards, workers, caplog):
    index = Index.load(shards)
    path = shards / index.shards[index.shard[7]]
    data = bytearray(path.read_bytes())
    data[index.offsets[7, index.fields.index("cls")]] ^= 1
    path.write_bytes(data)
    samples = TarDataset(shards, ["npy", "cls"], skip_damaged=True)

    counts, seen = [], []
    with caplog.at_level(logging.WARNING, "disttrain"):
        for x, _ in DataLoader(samples, 5, num_workers=workers):
            counts.append(dt.data.loader.context.current().dealt.samples)
            seen += x[:, 0].tolist()

    assert counts == [5, 4, 5]
    assert seen == [v for v in range(25) if v % 10 < 5 and v != 12]
    if not workers:
        assert "a sample is left out of its batch" in caplog.text
    with pytest.raises(SampleDamaged):
        list(DataLoader(samples, 1))  # no batch without a sample


def test_missing_short_and_changed_shards_are_named(shards):
    path = shards / "000001.tar"
    whole = path.read_bytes()
    data = TarDataset(shards)
    inside = int((data._index.shard == 1).argmax())
    data[inside]
    path.write_bytes(whole[:-600])
    with pytest.raises(SampleDamaged, match=r"000001\.tar was changed while it was in use"):
        data[inside]
    with pytest.raises(FileDamaged, match=r"000001\.tar has \d+ bytes, and had"):
        TarDataset(shards)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"000001\.tar is missing"):
        TarDataset(shards)
    skipping = TarDataset(shards, ["cls"], skip_damaged=True)
    with pytest.raises(SampleDamaged, match="is missing") as caught:
        skipping[inside]
    assert caught.value.skipped


def test_damages_of_the_index_never_read_anything_else(shards):
    whole = (shards / INDEX).read_bytes()
    expected = [TarDataset(shards)[i]["txt"] for i in range(15)]
    rng = random.Random(0)
    refused = 0
    for trial in range(300):
        damaged = bytearray(whole)
        kind = trial % 3
        if kind == 0:
            damaged = damaged[: rng.randrange(len(damaged))]
        elif kind == 1:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        else:
            begin = rng.randrange(len(damaged))
            damaged[begin : begin + 16] = rng.randbytes(16)
        (shards / INDEX).write_bytes(damaged)
        try:
            data = TarDataset(shards)
            found = [data[i]["txt"] for i in range(len(data))]
        except (FileDamaged, FileNotFoundError):
            refused += 1
            continue
        assert found == expected  # it was in what nobody reads
    assert refused > 200


def test_an_index_that_points_elsewhere_is_refused(shards):
    index = Index.load(shards)

    def with_(**parts):
        Index(**{**vars(index), **parts}).save(shards)
        with pytest.raises(FileDamaged, match="damaged") as caught:
            TarDataset(shards)
        return str(caught.value)

    assert "no name of a file" in with_(shards=["../000000.tar", *index.shards[1:]])
    assert "over the end" in with_(sizes=index.sizes + 10**6)
    assert "over the end" in with_(offsets=index.offsets + 2**62)
    assert "negative" in with_(offsets=index.offsets - 10**9)
    assert "not named" in with_(shard=index.shard + 99)
    assert "different lengths" in with_(shard=index.shard[:-1])


def test_pickles_are_not_run(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    np.save(tmp_path / "in" / "b.npy", np.array([{}], object))
    pack(tmp_path / "in", tmp_path / "out")

    data = TarDataset(tmp_path / "out")

    assert data[0]["pkl"].startswith(b"cos")
    with pytest.raises(SampleDamaged, match="cannot be decoded"):
        data[1]


def test_the_commands(folders, tmp_path):
    target = tmp_path / "t"

    packed = run("pack", folders, target)
    again = run("pack", folders, target)
    (target / INDEX).unlink()
    missing = run("verify", target)
    indexed = run("index", target)

    assert packed.output.startswith("15 samples (cls, npy, txt) in 1 shards")
    assert (again.exit_code, missing.exit_code) == (1, 1)
    assert "is not empty" in again.output
    assert f"disttrain data index {target}" in missing.output
    assert indexed.output == packed.output
    assert run("verify", target).output == "15 samples, all as they were indexed\n"


def test_what_cannot_be_packed_or_indexed_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no file with a name like"):
        pack(tmp_path / "empty", tmp_path / "t1")
    with pytest.raises(FileNotFoundError, match=r"no \.tar file"):
        build_index(tmp_path / "empty")
    (tmp_path / "classes" / "a").mkdir(parents=True)
    (tmp_path / "classes" / "a" / "1.cls").write_text("0")
    with pytest.raises(ValueError, match="field 'cls' of 'a/1' a second time"):
        pack(tmp_path / "classes", tmp_path / "t2")
    (tmp_path / "empty" / "x.tar").write_bytes(b"no tar" * 300)
    with pytest.raises(FileDamaged, match=r"x\.tar is no whole tar file"):
        build_index(tmp_path / "empty")
