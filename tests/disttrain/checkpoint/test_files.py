"""Files that are written in blocks past the page cache, where the file system has that way, and as usual where not."""

import errno
import fcntl
import os
import resource
import signal

import numpy as np
import pytest
from crash_states import PAGE, Recorder, direct

from disttrain.checkpoint import files

BLOCK = 4 * PAGE


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(files, "_BLOCK", BLOCK)


class Os(Recorder):
    """The module ``os``, which says how each write was made and may refuse some."""

    def __init__(self, refuse=lambda number, is_direct: None):
        super().__init__()
        self.writes = []
        self._refuse = refuse

    def write(self, file, data):
        self._refuse(len(self.writes), direct(file))
        self.writes.append((direct(file), len(data)))
        return super().write(file, data)


def chunks_of(*sizes):
    rng = np.random.default_rng(0)
    return [memoryview(rng.integers(0, 256, size, np.uint8)) for size in sizes]


def can_be_direct(path):
    file = os.open(path / "probe", os.O_CREAT | os.O_RDWR)
    try:
        return files.set_direct(file, True)
    finally:
        os.close(file)


@pytest.mark.parametrize(
    "sizes",
    [(), (0,), (5,), (BLOCK,), (BLOCK - 1, 1), (BLOCK, 1), (3 * BLOCK + 7, 0, 9), (1,) * 30 + (BLOCK,) * 3],
    ids=str,
)
def test_a_file_holds_what_was_written_one_after_the_other(tmp_path, monkeypatch, sizes):
    recorder = Os()
    monkeypatch.setattr(files, "os", recorder)
    chunks = chunks_of(*sizes)

    files.write_file(str(tmp_path / "file"), chunks)

    assert (tmp_path / "file").read_bytes() == b"".join(chunks)
    if can_be_direct(tmp_path):
        blocks = sum(sizes) // BLOCK
        assert any(is_direct for is_direct, _ in recorder.writes) == (blocks > 0)
        assert all(size < BLOCK for is_direct, size in recorder.writes if not is_direct)


def test_what_is_known_at_the_end_takes_the_place_of_the_beginning(tmp_path):
    chunks = chunks_of(100, 2 * BLOCK)
    done = []

    def content():
        yield from chunks
        done.append(True)

    files.write_file(str(tmp_path / "file"), content(), lambda: bytes(100) if done else b"")

    assert (tmp_path / "file").read_bytes() == bytes(100) + bytes(chunks[1])


def test_a_file_system_that_refuses_a_block_gets_it_as_usual(tmp_path, monkeypatch):
    def refuse(number, is_direct):
        if number >= 2 and is_direct:
            raise OSError(errno.EINVAL, "Invalid argument")

    recorder = Os(refuse)
    monkeypatch.setattr(files, "os", recorder)
    chunks = chunks_of(5 * BLOCK + 3)

    files.write_file(str(tmp_path / "file"), chunks)

    assert (tmp_path / "file").read_bytes() == bytes(chunks[0])
    assert not any(is_direct for is_direct, _ in recorder.writes[2:])


def test_a_file_system_without_that_way_is_written_as_usual(tmp_path, monkeypatch):
    change = fcntl.fcntl

    def refuse(file, command, *value):
        if command == fcntl.F_SETFL:
            raise OSError(errno.EINVAL, "Invalid argument")
        return change(file, command, *value)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    chunks = chunks_of(2 * BLOCK + 3)

    files.write_file(str(tmp_path / "file"), chunks)

    assert (tmp_path / "file").read_bytes() == bytes(chunks[0])


@pytest.mark.parametrize("limit", [BLOCK + PAGE, BLOCK + 100])
def test_a_file_that_becomes_too_large_is_told_as_that(tmp_path, limit):
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as refused:
            files.write_file(str(tmp_path / "file"), chunks_of(4 * BLOCK))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)

    assert refused.value.errno == errno.EFBIG


def test_what_goes_wrong_while_the_content_is_made_is_raised(tmp_path):
    def content():
        yield chunks_of(3 * BLOCK)[0]
        raise KeyError("the tensor")

    with pytest.raises(KeyError, match="the tensor"):
        files.write_file(str(tmp_path / "file"), content())
