"""The launcher's output as if it told each rank's line on its own."""

import re

_LABEL = re.compile(r"(?m)^\[(\d[\d,-]*)\] (.*)\n?")


def unfold(text: str) -> str:
    """Return ``text`` with each line of several ranks, ``[0-2] x``, written once for each of them."""

    def each(match: re.Match[str]) -> str:
        runs = [run.partition("-") for run in match[1].split(",")]
        ranks = [rank for first, _, last in runs for rank in range(int(first), int(last or first) + 1)]
        return "".join(f"[{rank}] {match[2]}\n" for rank in ranks)

    return _LABEL.sub(each, text)
