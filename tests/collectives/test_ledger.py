"""What ranks note of their calls, and what another process reads of it."""

import os
import re

import numpy as np
import pytest

from disttrain.collectives.call import DTYPES, OPS, VERBS, Call
from disttrain.collectives.ledger import LENGTH, Ledger, Standing, ledger_file, read

TABLES = {"verbs": VERBS, "ops": OPS, "dtypes": [str(d) for d in DTYPES], "generation": 0}


@pytest.fixture
def descriptor():
    found = ledger_file(2)
    yield found
    os.close(found)


@pytest.fixture
def ledger(descriptor):
    return Ledger(range(2, 4), TABLES, descriptor)


def standings(descriptor: int) -> list[Standing]:
    return read(os.pread(descriptor, os.fstat(descriptor).st_size, 0))


def note(ledger: Ledger, rank: int, call: Call, number: int, group: str = "the world") -> Call:
    call.page = page = ledger.pages[rank]
    call.entry = page.enter(number, call.tag, call.source, ledger.text(group), call.form.noted)
    return call


def test_a_process_that_has_not_begun_has_noted_nothing(descriptor):
    assert standings(descriptor) == []


def test_each_rank_has_a_page(ledger, descriptor):
    note(ledger, 3, Call("barrier"), 0)

    two, three = standings(descriptor)

    assert (two.rank, str(two)) == (2, "has made no call")
    assert (three.rank, three.entries[0].group, three.entries[0].number) == (3, "the world", 0)


@pytest.mark.parametrize(
    "call",
    [
        Call("barrier"),
        Call("all_reduce", np.zeros((2, 3), np.float32), op="max", tag=(1, 2, 3)),
        Call("broadcast", np.zeros((), np.int8), root=3),
        Call("all_gather", np.zeros((1, 2, 3, 4, 5, 6))),
        Call("send/recv", np.zeros(7), root=1, pair=(0, 1)),
        Call("send/recv", None, np.zeros(7), like=np.zeros(7), root=1, pair=(0, 1)),
    ],
    ids=str,
)
def test_a_call_is_read_in_the_words_of_its_errors(ledger, descriptor, call):
    note(ledger, 2, call, 5, "group 1 of ranks 2-3")

    (entry,) = standings(descriptor)[0].entries

    assert entry.what == str(call)
    assert entry.place == call.place
    assert entry.pair == call.pair
    assert str(entry).endswith("(call 5 of group 1 of ranks 2-3)")


def test_where_a_rank_is(ledger, descriptor):
    page = ledger.pages[2]
    call = note(ledger, 2, Call("barrier"), 0)
    at = r"barrier\(\) at \S+test_ledger.py:\d+ \(call 0 of the world\)"

    assert re.fullmatch(rf"waits for no call; since 0.0 s in flight: {at}", str(standings(descriptor)[0]))
    page.wait(call.entry)
    assert re.fullmatch(rf"for 0.0 s in {at}", str(standings(descriptor)[0]))
    call.finish()
    assert re.fullmatch(
        rf"waits since 0.0 s for its turn in its process after {at}", str(standings(descriptor)[0])
    )
    page.wait(-1)
    assert re.fullmatch(rf"in no call; its last, {at}, ended 0.0 s ago", str(standings(descriptor)[0]))
    note(ledger, 2, Call("barrier"), 1).finish(ValueError("planted"))
    assert re.search(r"\(call 1 of the world\), failed 0.0 s ago", str(standings(descriptor)[0]))


def test_the_last_calls_are_kept(ledger, descriptor):
    first = note(ledger, 2, Call("barrier"), 0)
    for number in range(1, LENGTH + 1):
        note(ledger, 2, Call("barrier"), number)
    first.finish()  # its place is another call's by now

    (standing, _) = standings(descriptor)

    assert [e.number for e in standing.entries] == list(range(1, LENGTH + 1))
    assert all(e.ended is None for e in standing.entries)
    assert standing.has_made("the world", 0, None)
    assert standing.has_made("the world", LENGTH, None)
    assert not standing.has_made("the world", LENGTH + 1, None)
    assert not standing.has_made("group 0 of ranks 2-3", 0, None)
    assert not standing.has_made("the world", 0, (0, 1))


def test_more_places_than_there_is_room_for_are_unknown(ledger, descriptor):
    for i in range(100):
        ledger.text(f"{i}" * 1000)
    note(ledger, 2, Call("barrier"), 0, "a group too many")

    (entry,) = standings(descriptor)[0].entries

    assert entry.group == "?"
    assert entry.what == "barrier()"


def test_another_file_under_the_launchers_number_is_left_alone(tmp_path):
    with open(tmp_path / "data", "w+b") as other:
        other.write(b"precious")
        other.flush()

        ledger = Ledger(range(1), TABLES, other.fileno())

        assert ledger.descriptor != other.fileno()
    assert (tmp_path / "data").read_bytes() == b"precious"
