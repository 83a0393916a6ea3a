"""Files of tensors are read in blocks, past the page cache where that is asked for and can be."""

import errno
import os

import numpy as np
import pytest
from crash_states import PAGE, direct

import disttrain as dt
from disttrain import nn
from disttrain.checkpoint import tensorfile
from disttrain.checkpoint.checksums import Checksum
from disttrain.checkpoint.files import set_direct
from disttrain.checkpoint.tensorfile import TensorFile, Window, encode
from disttrain.errors import FileDamaged

BLOCK = 2 * PAGE


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(tensorfile, "BLOCK", BLOCK)


def write(path, **sizes):
    """Write a file of tensors of so many bytes to the disk, and forget its pages; return the tensors."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 256, size, np.uint8) for name, size in sizes.items()}
    with open(path, "wb") as file:
        file.writelines(encode(arrays, {}))
        file.flush()
        os.fsync(file.fileno())
    forget(path)
    return arrays


def forget(path):
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def cached(path, at):
    file = os.open(path, os.O_RDONLY)
    try:
        return tensorfile._is_cached(file, at)
    finally:
        os.close(file)


def sum_of(array):
    found = Checksum()
    found.update(array.data)
    return found.text


def needs_direct(path):
    file = os.open(path / "probe", os.O_CREAT | os.O_RDWR)
    try:
        if not set_direct(file, True):
            pytest.skip("the file system has one way to read only")
    finally:
        os.close(file)


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
@pytest.mark.parametrize(
    "sizes", [(1, 2, 3), (BLOCK - 1, 1, BLOCK + 1), (0, 5 * BLOCK + 7, 0, PAGE, 9)], ids=str
)
def test_tensors_and_their_elements_wherever_blocks_end(tmp_path, small_blocks, sizes, direct):
    arrays = write(tmp_path / "file", **{f"t{i}": size for i, size in enumerate(sizes)})

    with TensorFile(str(tmp_path / "file")) as file:
        if direct:
            file.go_past_cache()
        window = Window(file.size)
        for name, array in arrays.items():
            found = file.read(name, sum_of(array), window=window)
            part = file.read(name, sum_of(array), array.size // 3, array.size // 2)

            np.testing.assert_array_equal(found, array)
            np.testing.assert_array_equal(part, array[array.size // 3 : array.size // 2])


def test_small_tensors_side_by_side_are_one_read(tmp_path, monkeypatch):
    arrays = write(tmp_path / "file", **{f"t{i}": 100 for i in range(50)})
    reads = []

    with TensorFile(str(tmp_path / "file")) as file:
        window = Window(file.size)
        read_block = file.read_block
        monkeypatch.setattr(file, "read_block", lambda *args: reads.append(args) or read_block(*args))
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.read(name, None, window=window), array)

    assert len(reads) == 1


def test_past_the_page_cache_no_page_of_the_file_is_kept(tmp_path):
    needs_direct(tmp_path)
    size = 32 << 20
    arrays = write(tmp_path / "file", t=size)

    with TensorFile(str(tmp_path / "file")) as file:
        file.go_past_cache()
        found = file.read("t", None)

    np.testing.assert_array_equal(found, arrays["t"])
    assert not cached(tmp_path / "file", size - size // 8)
    with TensorFile(str(tmp_path / "file")) as file:
        file.read("t", None)
    assert cached(tmp_path / "file", size - size // 8)


def test_a_file_in_the_page_cache_is_read_from_there(tmp_path):
    needs_direct(tmp_path)
    write(tmp_path / "file", t=8 << 20)
    (tmp_path / "file").read_bytes()

    with TensorFile(str(tmp_path / "file")) as file:
        file.go_past_cache()

        assert not file._direct


def test_a_file_system_that_refuses_a_block_is_read_as_usual(tmp_path, small_blocks, monkeypatch):
    needs_direct(tmp_path)
    arrays = write(tmp_path / "file", t=5 * BLOCK)
    refused = []

    class Os:
        def __getattr__(self, name):
            return getattr(os, name)

        def preadv(self, file, buffers, offset, flags=0):
            if direct(file):
                refused.append(offset)
                raise OSError(errno.EINVAL, "Invalid argument")
            return os.preadv(file, buffers, offset, flags)

    with TensorFile(str(tmp_path / "file")) as file:
        file.go_past_cache()
        assert file._direct
        monkeypatch.setattr(tensorfile, "os", Os())
        found = file.read("t", sum_of(arrays["t"]))

    np.testing.assert_array_equal(found, arrays["t"])
    assert refused == [0]


@pytest.mark.parametrize("at", [0, 100, 3 * BLOCK, 3 * BLOCK + 1])
def test_a_file_that_is_cut_while_it_is_read(tmp_path, small_blocks, at):
    write(tmp_path / "file", t=9 * BLOCK)

    with TensorFile(str(tmp_path / "file")) as file:
        file.go_past_cache()
        os.truncate(tmp_path / "file", file.entries["t"].begin + at)

        with pytest.raises(
            FileDamaged, match=f"was cut at byte {file.entries['t'].begin + at} of {file.size}"
        ):
            file.read("t", None)


def test_a_load_of_a_run_leaves_the_page_cache_to_others(tmp_path):
    needs_direct(tmp_path)
    model = nn.Linear(3000, 1500)
    dt.checkpoint.save(tmp_path, step=1, model=model, background=False)
    (part,) = tmp_path.glob("0*/part*")
    forget(part)
    expected = model.weight.detach().clone()
    with dt.no_grad():
        model.weight.zero_()

    dt.checkpoint.load(tmp_path, model=model)

    assert (model.weight == expected).all()
    assert not cached(part, part.stat().st_size * 7 // 8)
