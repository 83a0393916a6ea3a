"""Lines of several ranks, told once."""

import random

import pytest

from disttrain.launcher.fold import Line, fold, label


def told(*by_rank: str) -> list[str]:
    """Return what is shown if rank i has printed the letters ``by_rank[i]``, all ranks at the same pace."""
    lines = [
        Line((rank,), False, letters[i].encode())
        for i in range(max(map(len, by_rank)))
        for rank, letters in enumerate(by_rank)
        if i < len(letters)
    ]
    return [f"{label(line.ranks)}{line.text.decode()}" for line in fold(lines)]


@pytest.mark.parametrize(
    ("by_rank", "shown"),
    [
        (["ab", "ab", "ab"], ["[0-2]a", "[0-2]b"]),
        (["axb", "ayb"], ["[0-1]a", "[0]x", "[1]y", "[0-1]b"]),
        (["ab", "cab"], ["[1]c", "[0-1]a", "[0-1]b"]),
        (["aa", "a"], ["[0-1]a", "[0]a"]),
        (["a", "b", "a"], ["[0,2]a", "[1]b"]),
        (["ab", "ba"], ["[0]a", "[0-1]b", "[1]a"]),
        (["a"], ["[0]a"]),
    ],
)
def test_what_is_alike_is_told_once(by_rank, shown):
    assert told(*by_rank) == shown


def test_stdout_and_stderr_are_two_things():
    lines = [Line((0,), False, b"a"), Line((1,), True, b"a")]

    assert fold(lines) == lines


def test_what_belongs_to_no_rank_stays_as_it_is():
    lines = [Line((), False, b"a"), Line((0,), False, b"a"), Line((), False, b"a")]

    assert sorted(fold(lines)) == sorted(lines)


def test_every_line_is_told_and_each_ranks_lines_stay_in_order():
    generator = random.Random(5)
    for _ in range(300):
        lines = [
            Line((generator.randrange(4),), generator.random() < 0.2, generator.choice(b"abc").to_bytes())
            for _ in range(generator.randrange(30))
        ]

        folded = fold(lines)

        for rank in range(4):
            assert [line[1:] for line in folded if rank in line.ranks] == [
                line[1:] for line in lines if rank in line.ranks
            ]


@pytest.mark.parametrize(("ranks", "text"), [([1], "[1]"), ([0, 1, 2, 5, 7, 8], "[0-2,5,7-8]")])
def test_labels(ranks, text):
    assert label(ranks) == text
