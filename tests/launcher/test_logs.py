"""Lines out of pipes: whole, in order, and the last state of what is redrawn."""

import os

import pytest

from disttrain.launcher import logs
from disttrain.launcher.logs import LogPump, _fit, _LogFile, _Stream


def feed(*chunks: bytes) -> list[list[bytes]]:
    stream = _Stream(0, 0, (0,), False)
    return [stream.feed(chunk) for chunk in chunks]


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"a\nb\n"], [[b"a", b"b"]]),
        ([b"a", b"b\nc", b""], [[], [b"ab"], [b"c"]]),
        ([b"\n", b""], [[b""], []]),
        ([b"windows\r\n"], [[b"windows"]]),
        ([b" 10%\r 50%", b"\r100%\n"], [[], [b"100%"]]),
        ([b" 10%\r", b" 50%\r", b"100%\r", b"\n"], [[], [], [], [b"100%"]]),
        ([b" 10%\r", b"done\n"], [[], [b"done"]]),
    ],
)
def test_lines(chunks, lines):
    assert feed(*chunks) == lines


def test_a_bar_that_is_redrawn_for_ever_needs_no_memory():
    stream = _Stream(0, 0, (0,), False)
    for i in range(10_000):
        assert stream.feed(b"\r" + b"=" * 100 + str(i).encode()) == []

    assert len(stream.rest) < 300


def test_a_line_without_end_is_let_through_in_pieces(monkeypatch):
    monkeypatch.setattr(logs, "_MAX_LINE", 10)

    assert feed(b"x" * 11, b"y\n") == [[b"x" * 11], [b"y"]]


def test_a_log_file_does_not_grow_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "_MAX_FILE", 100)
    file = _LogFile(tmp_path / "rank0.log")

    for i in range(1000):
        file.write([b"line %d" % i])
    file.close()

    kept = b"".join((tmp_path / name).read_bytes() for name in ("rank0.log.1", "rank0.log"))
    lines = kept.splitlines()
    assert lines == [b"line %d" % i for i in range(1000 - len(lines), 1000)]
    assert 100 <= len(kept) <= 220


def test_the_pump_labels_lines_and_keeps_files(tmp_path, monkeypatch):
    out, err = (open(tmp_path / name, "w+") for name in ("out", "err"))  # noqa: SIM115
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    pump = LogPump(tmp_path)
    ends = [pump.add(p, [p], to_stderr=e, labelled=True) for p in (0, 1) for e in (False, True)]
    pump.start()

    for number, end in enumerate(ends):
        os.write(end, b"pipe %d" % number)
        os.close(end)
    pump.finish()
    pump.notice("disttrain: bye")

    assert sorted((tmp_path / "out").read_text().splitlines()) == ["[0] pipe 0", "[1] pipe 2"]
    *lines, last = (tmp_path / "err").read_text().splitlines()
    assert sorted(lines) == ["[0] pipe 1", "[1] pipe 3"]
    assert last == "disttrain: bye"
    assert sorted((tmp_path / "rank0.log").read_text().splitlines()) == ["pipe 0", "pipe 1"]
    out.close()
    err.close()


def test_lines_of_several_ranks_are_folded_and_their_files_are_complete(tmp_path, monkeypatch):
    """Process 0 hosts ranks 0 and 1, process 1 rank 2."""
    with open(tmp_path / "out", "w+") as out:
        monkeypatch.setattr("sys.stdout", out)
        pump = LogPump(tmp_path)
        two = pump.add(0, [0, 1], to_stderr=False, labelled=True)
        one = pump.add(1, [2], to_stderr=False, labelled=True)
        os.write(two, b"[0] epoch 1\n[1] epoch 1\nfrom C\n[0] loss 3\n[1] loss 4\n[7] no rank of mine\n")
        os.write(one, b"epoch 1\n[1] no rank of mine\n")
        os.close(two)
        os.close(one)
        pump.start()
        pump.finish()

    lines = (tmp_path / "out").read_text().splitlines()
    assert lines[0] == "[0-2] epoch 1"
    assert sorted(lines[1:]) == [
        "[0] loss 3",
        "[1] loss 4",
        "[2] [1] no rank of mine",
        "[7] no rank of mine",
        "from C",
    ]
    files = {p.name: p.read_text() for p in tmp_path.glob("*.log")}
    assert files == {
        "rank0.log": "epoch 1\nloss 3\n",
        "rank1.log": "epoch 1\nloss 4\n",
        "rank2.log": "epoch 1\n[1] no rank of mine\n",
        "rank0-1.log": "from C\n[7] no rank of mine\n",
    }


def test_a_bar_is_cut_by_what_is_seen_of_it():
    bar = "\x1b[32m" + "█" * 20 + "\x1b[0m"

    assert _fit(bar.encode(), 20) == bar.encode()
    assert _fit(bar.encode(), 19) == ("█" * 19).encode()
