"""What happened: the failures of a job in the order of blame, as text for the user and as JSON."""

import json
import signal
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from disttrain.collectives.ledger import Standing, say

_MAX_HEADLINE: Final = 300
_MAX_TRACEBACK: Final = 60
_MAX_LINE: Final = 2000
_LOG_LINES: Final = 8
_MAX_POSITIONS: Final = 16
_OUR_FRAMES: Final = ("launcher/worker", "launcher/program", "launcher/hosted")

_SIGNAL_HINTS: Final = {
    signal.SIGKILL: "kill -9 or the kernel's out-of-memory killer",
    signal.SIGSEGV: "a crash in native code",
    signal.SIGBUS: "a crash in native code, or no space left in /dev/shm",
    signal.SIGABRT: "a failed check in native code",
    signal.SIGFPE: "a crash in native code",
    signal.SIGILL: "a crash in native code",
    signal.SIGXCPU: "the limit on processor time",
    signal.SIGTERM: "kill, or the batch system",
}


@dataclass(frozen=True)
class Failure:
    """How one rank failed (or one process, if it hosts several ranks and died as a whole)."""

    ranks: tuple[int, ...]
    process: int
    host: str
    pid: int
    seconds: float
    """Since the start of the job."""
    what: str
    """``raised ValueError: ...``, ``was killed by SIGKILL (...)``, ``left with code 0 before the end``."""
    code: int
    """The exit code that the job takes from it."""
    traceback: str = ""
    log: tuple[str, ...] = ()
    """The last lines that it printed, if there is no traceback."""
    follower: bool = False
    """It only says that a peer failed."""


@dataclass(frozen=True)
class Position:
    """Which call some ranks were in when the first rank failed."""

    ranks: tuple[int, ...]
    what: str
    """``for 3.1 s in all_reduce(...) at train.py:7 (call 3 of the world)``, or since when they were in none."""


@dataclass(frozen=True)
class Ordered:
    """A fault that ``--chaos`` ordered, as it happened."""

    fault: str
    rank: int
    generation: int
    seconds: float
    """Since the start of the job."""


@dataclass(frozen=True)
class Slow:
    """A rank that the others wait for, and why. Shares are of the time in which they were compared."""

    rank: int
    factor: float
    """How many times as long as the others it takes, by their median."""
    why: str
    """``data`` (it waits for its next batch) or ``compute``."""
    share: float
    """Of its time that goes there."""
    others: float
    """The same of theirs."""
    wait: float
    """Of their time that they wait for other ranks."""
    steps: int = 0
    """Over how many steps they were compared; 0 if that was a glance."""
    generation: int = 0

    def __str__(self) -> str:
        over = f" over {self.steps} steps" if self.steps else ""
        return (
            f"{self.factor:g} times as long as the others{over}, by {self.why}: {self.share:.0%} of its time, "
            f"the others {self.others:.0%}; they wait {self.wait:.0%} of theirs"
        )


@dataclass(frozen=True)
class Attempt:
    """How one generation failed."""

    generation: int
    seconds: float
    """From its start to its end."""
    failures: tuple[Failure, ...]
    """The root cause first."""
    stopped: tuple[int, ...] = ()
    """Ranks that the launcher ended because of it."""
    positions: tuple[Position, ...] = ()
    """Where all ranks were, unless none had made a call."""

    def explain(self, earlier: Iterable["Attempt"]) -> str:
        """Return what happened, in a line if one of the ``earlier`` generations failed alike: that has been said."""
        for attempt in earlier:
            if attempt.alike(self):
                return f"{self.headline()}, as in generation {attempt.generation}"
        return self.text()

    def alike(self, other: "Attempt") -> bool:
        """Return whether the same rank failed in the same way, so that nothing new is to be said."""
        mine, others = self.failures[0], other.failures[0]
        return (mine.ranks, mine.what, mine.traceback) == (others.ranks, others.what, others.traceback)

    def headline(self) -> str:
        """Return who failed, and how."""
        first = self.failures[0]
        where = f"(host {first.host}, pid {first.pid})"
        return f"disttrain: {name_ranks(first.ranks)} {where} {_headline(_agreeing(first))}"

    def text(self) -> str:
        """Return what the user reads: the root cause with its traceback, all else in a line each."""
        first, *others = self.failures
        lines = [self.headline()]
        if first.traceback:
            shown = _middle_out(first.traceback.rstrip().split("\n"), _MAX_TRACEBACK)
            lines += _indent(line if len(line) <= _MAX_LINE else f"{line[:_MAX_LINE]} ..." for line in shown)
        elif first.log:
            lines += [
                "  last lines that it printed:",
                *_indent(map(_headline, _telling(first.log)), "    "),
            ]
        same = [r for f in others if f.what == first.what for r in f.ranks]
        if same:
            lines.append(f"  the same on {name_ranks(same)}")
        for f in others:
            if f.what != first.what and not f.follower:
                lines.append(f"  {name_ranks(f.ranks)} also {_headline(_agreeing(f))}")
        followers = [r for f in others if f.what != first.what and f.follower for r in f.ranks]
        if followers:
            lines.append(f"  {name_ranks(followers)} could not go on without it")
        if self.stopped:
            lines.append(f"  {name_ranks(self.stopped)} stopped by the launcher")
        return "\n".join([*lines, *describe_positions(self.positions)])


@dataclass(frozen=True)
class RunReport:
    """How a job ended."""

    run_id: str
    generation: int
    command: tuple[str, ...]
    world_size: int
    seconds: float
    code: int
    failures: tuple[Failure, ...] = ()
    """The root cause first."""
    stopped: tuple[int, ...] = ()
    """Ranks that the launcher ended because of it."""
    positions: tuple[Position, ...] = ()
    """Where all ranks were, unless none had made a call."""
    stopped_at: int | None = None
    """After which step all ranks stopped, as asked by ``disttrain ctl stop``."""
    stopped_by: str = ""
    """The signal by which the user ended the job, ``SIGINT`` or another."""
    chaos: tuple[Ordered, ...] = ()
    """What ``--chaos`` has done."""
    slow: tuple[Slow, ...] = ()
    """Ranks that stayed behind the others while the job ran."""
    attempts: tuple[Attempt, ...] = ()
    """The generations before the last one, which failed too."""

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"version": 1, **asdict(self)}, indent=1) + "\n")
        temporary.replace(path)

    def text(self, directory: Path | None = None) -> str:
        """Return what the user reads at the end; nothing if all went well at once."""
        kept = f"; logs and report.json in {directory}" if directory else ""
        restarts = "1 restart" if self.generation == 1 else f"{self.generation} restarts"
        if not self.failures:
            if self.code or not (self.attempts or self.chaos):
                return ""
            after = f" after {restarts}" if self.attempts else ""
            return f"disttrain: ended well{after}{kept}"
        last = Attempt(self.generation, self.seconds, self.failures, self.stopped, self.positions)
        after = f", {restarts}" if self.attempts else ""
        return (
            f"{last.explain(self.attempts)}\n  exit code {self.code} after {self.seconds:.1f} s{after}{kept}"
        )


def locate(standings: Iterable[Standing]) -> tuple[Position, ...]:
    """Return where the ranks are by what their ledgers say; the ones in the same call together.

    Nothing where no rank has made a call: the script does not communicate, or has not begun to.
    """
    alike: dict[tuple[str, str], tuple[list[int], float]] = {}
    any_call = False
    for standing in standings:
        before, seconds, after = standing.words
        ranks, longest = alike.get((before, after), ([], 0.0))
        alike[before, after] = ([*ranks, standing.rank], max(longest, seconds))
        any_call |= bool(standing.entries)
    if not any_call:
        return ()
    return tuple(
        Position(tuple(ranks), say((before, seconds, after)))
        for (before, after), (ranks, seconds) in alike.items()
    )


def describe_positions(positions: Sequence[Position]) -> list[str]:
    """Return a line for each of the first positions, under a heading."""
    lines = [f"{name_ranks(p.ranks)}: {p.what}" for p in positions[:_MAX_POSITIONS]]
    if len(positions) > _MAX_POSITIONS:
        lines.append(f"and {len(positions) - _MAX_POSITIONS} more places, see report.json")
    return ["  where the ranks were:", *_indent(lines, "    ")] if lines else []


def order(failures: Iterable[Failure]) -> tuple[Failure, ...]:
    """Return ``failures`` by blame: those that only follow a peer's failure last, else by time.

    If several ranks failed alike, the lowest one speaks for them.
    """
    by_blame = sorted(failures, key=lambda f: (f.follower, f.seconds))
    alike = [f for f in by_blame if f.what == by_blame[0].what]
    return (*sorted(alike, key=lambda f: f.ranks), *(f for f in by_blame if f not in alike))


def describe_end(error: str, message: str, code: int) -> str:
    """Return how a rank left: ``raised ValueError: ...`` or ``left with exit code 3 (sys.exit)``."""
    if error == "BdbQuit":
        return f"was ended by {message}"
    if error == "SystemExit":
        return f"left with sys.exit({message!r})"
    if error:
        return f"raised {error}" + (f": {message}" if message else "")
    return f"left with exit code {code} (sys.exit)"


def _agreeing(failure: Failure) -> str:
    """Return what happened, for the number of ranks that it happened to."""
    what = failure.what
    return f"were {what.removeprefix('was ')}" if len(failure.ranks) > 1 and what.startswith("was ") else what


def describe_signal(number: int, why: str = "") -> str:
    """Return for example ``was killed by SIGKILL (kill -9 or ...)``; in the brackets ``why``, if it is known."""
    try:
        name = signal.Signals(number)
    except ValueError:
        return f"was killed by signal {number}"
    hint = why or _SIGNAL_HINTS.get(name)
    return f"was killed by {name.name}" + (f" ({hint})" if hint else "")


def name_ranks(ranks: Iterable[int]) -> str:
    """Return ``rank 1`` or ``ranks 0, 2-3``."""
    runs: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if runs and runs[-1][1] == rank - 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    several = len(runs) != 1 or runs[0][0] != runs[0][1]
    return ("ranks " if several else "rank ") + ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def _telling(log: Sequence[str]) -> Sequence[str]:
    """Return the last lines of a log; of faulthandler's dump of a crash, the user's innermost frames."""
    begin = next((i for i, line in enumerate(log) if line.startswith("Fatal Python error")), None)
    if begin is None:
        return log[-_LOG_LINES:]
    ours = (*(f'/{name}.py", line ' for name in _OUR_FRAMES), '"<frozen runpy>"')
    return [line for line in log[begin:] if line and not any(part in line for part in ours)][:_LOG_LINES]


def _headline(what: str) -> str:
    first = what.strip().split("\n")[0]
    return first if len(first) <= _MAX_HEADLINE else first[:_MAX_HEADLINE] + " ..."


def _indent(lines: Iterable[str], by: str = "  ") -> list[str]:
    return [by + line for line in lines]


def _middle_out(lines: Sequence[str], limit: int) -> list[str]:
    if len(lines) <= limit:
        return list(lines)
    head = limit // 3
    return [*lines[:head], f"... {len(lines) - limit} lines, see report.json ...", *lines[head - limit :]]
