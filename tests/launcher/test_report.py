"""Whom the report blames, and how it says so."""

import os
import re

import pytest

from disttrain.collectives.call import Call
from disttrain.collectives.ledger import Ledger, ledger_file, read
from disttrain.launcher.report import (
    Failure,
    RunReport,
    describe_positions,
    describe_signal,
    locate,
    name_ranks,
    order,
)


def failure(rank: int, seconds: float, what: str = "raised ValueError: x", **more) -> Failure:
    return Failure((rank,), rank, "h", 100 + rank, seconds, what, 1, **more)


def test_a_follower_is_not_blamed_though_it_was_first():
    follower = failure(0, 1.0, "raised PeerFailed: rank 1", follower=True)
    cause = failure(1, 1.5)

    assert order([follower, cause]) == (cause, follower)


def test_the_first_is_blamed():
    late, early = failure(0, 2.0, "raised A"), failure(1, 1.0, "raised B")

    assert order([late, early]) == (early, late)


def test_ranks_that_failed_alike_are_one_failure_of_the_lowest():
    failures = order(
        [failure(3, 1.0), failure(2, 1.2, "was killed by SIGSEGV"), failure(0, 1.1), failure(1, 1.3)]
    )

    text = report(failures).text()

    assert text.splitlines() == [
        "disttrain: rank 0 (host h, pid 100) raised ValueError: x",
        "  the same on ranks 1, 3",
        "  rank 2 also was killed by SIGSEGV",
        "  exit code 1 after 2.5 s",
    ]


def test_ranks_of_one_process_are_spoken_of_as_several():
    failures = order([Failure((0, 1), 0, "h", 100, 1.0, "was killed by SIGKILL", 1), failure(2, 2.0)])

    assert report(failures).text().startswith("disttrain: ranks 0-1 (host h, pid 100) were killed by SIGKILL")


def report(failures) -> RunReport:
    return RunReport("id", 0, ("x.py",), 4, 2.5, 1, failures)


def test_followers_are_folded_into_one_line():
    lost = [failure(r, 1.0, f"raised PeerFailed: {r}", follower=True) for r in (0, 2, 3)]

    text = report(order([*lost, failure(1, 1.5, traceback="Traceback\n  frame\nValueError: x\n")])).text()

    assert text.splitlines() == [
        "disttrain: rank 1 (host h, pid 101) raised ValueError: x",
        "  Traceback",
        "    frame",
        "  ValueError: x",
        "  ranks 0, 2-3 could not go on without it",
        "  exit code 1 after 2.5 s",
    ]


def test_a_long_traceback_keeps_its_ends():
    trace = "\n".join(["Traceback", *(f"  frame {i}" for i in range(1000)), "RecursionError: deep"])

    lines = report((failure(0, 1.0, traceback=trace),)).text().splitlines()

    assert len(lines) < 70
    assert lines[-2] == "  RecursionError: deep"


@pytest.mark.parametrize(
    ("ranks", "text"), [([3], "rank 3"), ([0, 1], "ranks 0-1"), ([7, 0, 2, 3, 4], "ranks 0, 2-4, 7")]
)
def test_names_of_ranks(ranks, text):
    assert name_ranks(ranks) == text


def test_signals_without_a_name():
    assert describe_signal(9).startswith("was killed by SIGKILL (")
    assert describe_signal(40) == "was killed by signal 40"


def test_a_line_of_a_traceback_that_is_too_long_is_cut():
    text = report((failure(0, 1.0, traceback="Traceback\n  frame\nValueError: " + "x" * 60_000),)).text()

    assert max(map(len, text.splitlines())) < 2100
    assert text.splitlines()[3].endswith("xxx ...")


def test_ranks_in_the_same_call_are_one_place():
    files = [ledger_file(1) for _ in range(4)]
    standings = []
    for rank, descriptor in enumerate(files):
        tables = {"verbs": ["barrier"] * 20, "ops": [], "dtypes": [], "generation": 0}
        ledger = Ledger(range(rank, rank + 1), tables, descriptor)
        if rank != 2:
            call = Call("barrier")
            call.number = 7
            call.page = page = ledger.pages[rank]
            call.entry = page.enter(
                call.number, call.tag, call.source, ledger.text("the world"), call.form.noted
            )
            ledger.pages[rank].wait(call.entry)
        standings += read(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
        os.close(descriptor)

    heading, same, other = describe_positions(locate(standings))

    assert heading == "  where the ranks were:"
    assert re.fullmatch(
        r"    ranks 0-1, 3: for \d\.\d s in barrier\(\) at .*test_report.py:\d+ \(call 7 of the world\)", same
    )
    assert other == "    rank 2: has made no call"


def test_a_script_that_does_not_communicate_has_no_places():
    assert locate([]) == ()
    assert describe_positions(()) == []
