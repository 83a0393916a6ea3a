"""What ``disttrain top`` makes of what the launcher says."""

import io
from typing import Any

import pytest
from rich.console import Console

from disttrain.launcher.jobs import JobError
from disttrain.launcher.top import Screen, slowest


def rank(number: int, **known: Any) -> dict[str, Any]:
    return {
        "rank": number,
        "host": "a",
        "pid": 100 + number,
        "steps": 12345,
        "loss": 0.125,
        "samples_per_second": 512.0,
        "seconds": 4.0,
        "data": 0.1,
        "compute": 0.8,
        "wait": 0.1,
        "rss": 64 << 20,
        "gpu_bytes": 0,
        "gpu": None,
        "cpu_seconds": 1.0,
        "state": "runs",
        "call": "",
    } | known


class Answers:
    """A job whose launcher says what it is given, then nothing."""

    id = "0123456789ab"

    def __init__(self, *ranks: dict[str, Any]) -> None:
        about = {
            "script": "/home/me/train.py", "world_size": len(ranks), "seconds": 3.0, "generation": 1,
            "nodes": 1, "pending": ["save"], "gpus": "",
        }  # fmt: skip
        self._left = [{"job": about, "ranks": list(ranks)}]

    def ask(self, kind: str) -> dict[str, Any]:
        if not self._left:
            raise JobError("the launcher of job 0123456789ab does not answer: timed out")
        return self._left.pop()


def shown(screen: Screen, width: int, height: int | None = None) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width)
    console.print(screen.render(width, height))
    return [line.rstrip() for line in out.getvalue().splitlines()]


CALL = "all_reduce(float32, shape (17,), op sum) at train.py:7 (call 3 of the world)"


def test_a_narrow_screen_cuts_the_call_and_nothing_else():
    screen = Screen(Answers(rank(0, state="waits 1.0 s", call=CALL), rank(1)))
    screen.look()

    wide, narrow = shown(screen, 200), shown(screen, 100)

    assert wide[0] == "job 0123456789ab  train.py  2 ranks  0:00:03  generation 1  1024 samples/s"
    assert " ".join(wide[1].split()) == "RANK STEP LOSS SAMPLES/S DATA COMPUTE WAIT CPU MEMORY STATE CALL"
    assert wide[2].split()[:9] == ["0", "12345", "0.125", "512", "10%", "80%", "10%", "-", "64"]
    assert wide[2].endswith(f"waits 1.0 s  {CALL}")
    assert narrow[1] == wide[1]
    assert narrow[2] == wide[2][:99] + "…"
    assert "after the next step: save" in narrow


def test_ranks_that_have_no_room_are_counted():
    screen = Screen(Answers(*(rank(i) for i in range(100))))
    screen.look()

    lines = shown(screen, 100, height=24)

    assert len(lines) <= 24
    assert "and 84 more ranks" in lines


def test_a_launcher_that_does_not_answer_leaves_the_last_numbers():
    screen = Screen(Answers(rank(0)))
    screen.look()
    screen.look()

    lines = shown(screen, 100)

    assert lines[2].split()[1] == "12345"
    assert lines[-1] == "the launcher of job 0123456789ab does not answer: timed out"


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ([rank(0, seconds=0.0)], "no rank has made a step"),
        ([rank(0), rank(1)], "no rank is behind the others; most of the time goes into compute (80%)"),
        (
            [rank(0, wait=0.5, compute=0.4), rank(1, wait=0.5, compute=0.4), rank(2, wait=0.0, compute=0.9)],
            "slowest: rank 2, 2 times as long as the others, by compute: 90% of its time, the others 40%; they "
            "wait 50% of theirs",
        ),
        (
            [rank(0, wait=0.6, compute=0.3), rank(1, wait=0.0, compute=0.3, data=0.7)],
            "slowest: rank 1, 2.5 times as long as the others, by data: 70% of its time, the others 10%; they "
            "wait 60% of theirs",
        ),
        (
            [rank(0, wait=0.9), rank(1, state="is stopped (SIGSTOP)")],
            "slowest: rank 1, which is stopped (SIGSTOP)",
        ),
    ],
)
def test_the_slowest_rank_and_why(ranks, words):
    assert slowest(ranks) == words
