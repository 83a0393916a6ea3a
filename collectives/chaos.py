"""Faults that a user orders, to see that a script recovers: what ``--chaos`` means.

Standard library only: the launcher reads the order, the workers carry it out (``disttrain.chaos``).
"""

import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

_ITEM: Final = re.compile(
    r"(?P<what>[a-z]+):(?P<rank>[0-9]+|\*)(?:x(?P<factor>[0-9]+(?:\.[0-9]+)?))?"
    r"(?:@(?:step=)?(?P<first>[0-9]+)(?:-(?P<last>[0-9]+))?)?"
)
_CUT: Final = re.compile(r"cut:(?P<host>[^\s,@]+)@(?:step=)?(?P<first>[0-9]+)(?:-(?P<last>[0-9]+))?")
KINDS: Final = {
    "kill": "kill:1@step=20 (SIGKILL for rank 1 after its 20th step)",
    "stop": "stop:1@step=20 (SIGSTOP for rank 1 after its 20th step)",
    "slow": "slow:1x2 (each step of rank 1 takes twice as long)",
    "nan": "nan:1@step=20 (the gradients of rank 1 in its 20th step are not numbers)",
    "cut": "cut:b@step=20 (the launcher hears no more of host b after the 20th step of rank 0)",
}
"""What can be ordered, each with an example."""


class BadChaos(ValueError):
    """An order that cannot be carried out: which item, and what to write instead."""


@dataclass(frozen=True)
class Fault:
    """One fault for one rank."""

    what: str
    """One of :data:`KINDS`."""
    rank: int
    step: int = 1
    """Optimizer step of the rank, counted from 1 in each process: the one after which (``nan``: in which) it happens.
    ``slow`` begins with it."""
    factor: float = 1.0
    """How many times as long a step of a ``slow`` rank takes."""
    host: str = ""
    """The one that is ``cut`` off; ``rank`` only counts the steps then."""

    def __str__(self) -> str:
        if self.what == "cut":
            return f"cut:{self.host}@step={self.step}"
        factor = f"x{self.factor:g}" if self.what == "slow" else ""
        return f"{self.what}:{self.rank}{factor}" + (
            "" if factor and self.step == 1 else f"@step={self.step}"
        )


def parse(
    text: str, world_size: int, seed: int = 0, hosts: Collection[str] | None = None
) -> tuple[Fault, ...]:
    """Return the faults that ``text`` orders: items with commas between them, as :data:`KINDS` shows.

    ``*`` in place of a rank and ``10-30`` in place of a step are drawn, by ``seed``.

    Args:
        hosts: those that can be cut off; None if that has been looked at.

    Raises:
        BadChaos: an item that is none, that no rank or step can meet, or that is there twice.
    """
    draw = random.Random(seed)
    faults: list[Fault] = []
    for item in filter(None, text.split(",")):
        fault = _parse_item(item.strip(), world_size, draw)
        if fault.host and hosts is not None and fault.host not in hosts:
            there = f"the others are {', '.join(hosts)}" if hosts else "the job runs on one host"
            raise BadChaos(f"--chaos {item}: there is no other host {fault.host!r} to cut off, {there}")
        if fault in faults:
            raise BadChaos(f"--chaos {item}: {fault} is ordered twice; leave one out")
        faults.append(fault)
    return tuple(faults)


def _parse_item(item: str, world_size: int, draw: random.Random) -> Fault:
    if (match := _CUT.fullmatch(item)) is not None:
        return Fault("cut", 0, _draw_step(item, match, draw), host=match["host"])
    match = _ITEM.fullmatch(item)
    if match is None or match["what"] not in KINDS:
        raise BadChaos(f"--chaos {item}: not an item; write {', '.join(KINDS.values())}")
    what = match["what"]
    if (what == "slow") != (match["factor"] is not None) or (what != "slow" and match["first"] is None):
        raise BadChaos(f"--chaos {item}: write {KINDS[what]}")
    rank = draw.randrange(world_size) if match["rank"] == "*" else int(match["rank"])
    if rank >= world_size:
        raise BadChaos(f"--chaos {item}: there is no rank {rank}, the ranks are 0 to {world_size - 1}")
    step = _draw_step(item, match, draw)
    factor = float(match["factor"] or 1.0)
    if factor < 1.0:
        raise BadChaos(
            f"--chaos {item}: a rank can be made slower only, by a factor of 1 or more; write {KINDS['slow']}"
        )
    return Fault(what, rank, step, factor)


def _draw_step(item: str, match: re.Match[str], draw: random.Random) -> int:
    first = int(match["first"] or 1)
    last = int(match["last"] or first)
    if not 1 <= first <= last:
        raise BadChaos(f"--chaos {item}: steps count from 1, and a range goes up, as in 10-30")
    return draw.randint(first, last)


def write(faults: Sequence[Fault]) -> str:
    """Return what :func:`parse` reads again."""
    return ",".join(map(str, faults))
