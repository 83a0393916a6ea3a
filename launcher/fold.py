"""Lines that several ranks print, told once: ``[0-3] epoch 1``."""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from typing import NamedTuple


class Line(NamedTuple):
    """What some ranks have printed."""

    ranks: tuple[int, ...]
    """None of them for what belongs to no rank."""
    to_stderr: bool
    text: bytes


def fold(lines: Iterable[Line]) -> list[Line]:
    """Return lines of single ranks, in the order in which they came, with the ones that are alike made one.

    The order of each rank's own lines stays. Of lines that ranks have in different orders some are told apart.
    """
    queues: dict[tuple[int, ...], deque[tuple[bool, bytes]]] = defaultdict(deque)
    told: Counter[tuple[int, ...]] = Counter()
    order = []
    for line in lines:
        order.append((line.ranks, len(queues[line.ranks])))
        queues[line.ranks].append((line.to_stderr, line.text))
    left = {ranks: Counter(queue) for ranks, queue in queues.items()}
    folded = []

    def tell(what: tuple[bool, bytes], who: list[tuple[int, ...]]) -> None:
        for ranks in who:
            queues[ranks].popleft()
            left[ranks][what] -= 1
            told[ranks] += 1
        folded.append(Line(tuple(sorted(rank for ranks in who for rank in ranks)), *what))

    def holders(what: tuple[bool, bytes]) -> list[tuple[int, ...]]:
        return [ranks for ranks in queues if ranks and left[ranks][what] > 0]

    for ranks, number in order:
        queue = queues[ranks]
        if number < told[ranks]:  # with another rank's
            continue
        if not ranks:
            tell(queue[0], [ranks])
            continue
        # Lines of other ranks that stand before the one that these share go first, if they are theirs alone.
        who = holders(queue[0])
        for other in who:
            while queues[other][0] != queue[0] and len(holders(queues[other][0])) == 1:
                tell(queues[other][0], [other])
        tell(queue[0], [other for other in who if queues[other] and queues[other][0] == queue[0]])
    return folded


def label(ranks: Iterable[int]) -> str:
    """Return ``[1]`` or ``[0-3,5]`` for ascending ranks."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and runs[-1][1] == rank - 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return f"[{','.join(f'{a}' if a == b else f'{a}-{b}' for a, b in runs)}]"
