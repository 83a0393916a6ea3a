"""Several ranks of a script as threads of one process, each with its own ``__main__`` and environment."""

import io
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import IO

from disttrain.collectives.env import WorkerEnv, hosted_env
from disttrain.collectives.errors import RankFailed
from disttrain.collectives.local import run_ranks
from disttrain.launcher.program import Outcome, Program, describe, outcome_of


class RankStream(io.TextIOBase):
    """A text stream that puts ``[rank]`` before each line that a rank writes, and never cuts lines into each other.

    The unfinished line of a rank waits until it is finished; a flush lets it through, as for a prompt, but then the
    next rank begins on a new line.
    """

    def __init__(self, target: IO[str]) -> None:
        self._target = target
        self._pending: dict[int, str] = {}
        self._open: int | None = None  # the rank whose unfinished line is on the screen

    def write(self, text: str) -> int:
        env = hosted_env()
        if env is None:
            return self._target.write(text)
        *lines, rest = (self._pending.pop(env.rank, "") + text).split("\n")
        for line in lines:
            self._put(env.rank, line + "\n")
        if "\r" in rest:  # a progress bar: only its latest state is of interest
            head, _, last = rest.rpartition("\r")
            rest = last or head.rpartition("\r")[2]
        if rest:
            self._pending[env.rank] = rest
        if lines and self.line_buffering:
            self._target.flush()
        return len(text)

    def flush(self) -> None:
        env = hosted_env()
        if env is not None and self._target.isatty() and (rest := self._pending.pop(env.rank, "")):
            self._put(env.rank, rest)
        self._target.flush()

    def drain(self) -> None:
        """Write the unfinished lines of all ranks."""
        for rank, rest in sorted(self._pending.items()):
            self._put(rank, rest + "\n")
        self._pending.clear()
        if self._open is not None:
            self._target.write("\n")
            self._open = None
        self._target.flush()

    def _put(self, rank: int, text: str) -> None:
        if self._open is not None and self._open != rank:
            self._target.write("\n")
        prefix = "" if self._open == rank else f"[{rank}] "
        self._target.write(prefix + text)
        self._open = None if text.endswith("\n") else rank

    def prompted(self) -> None:
        """Somebody else ended the unfinished line: the user, who answered a prompt."""
        self._open = None

    def fileno(self) -> int:
        return self._target.fileno()

    def isatty(self) -> bool:
        return self._target.isatty()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._target.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._target.errors

    @property
    def line_buffering(self) -> bool:
        return bool(getattr(self._target, "line_buffering", False))

    @property
    def buffer(self) -> IO[bytes]:
        """The bytes below, without prefixes."""
        return self._target.buffer  # type: ignore[attr-defined, no-any-return]


def run_hosted(
    env: WorkerEnv, argv: list[str], *, is_module: bool, prepare: Callable[[], None] | None = None
) -> dict[int, Outcome]:
    """Run the program once for each rank that ``env`` hosts; return how each one ended, the first failure first.

    While a rank runs, ``sys.modules["__main__"]`` is its module and ``os.environ`` holds its ``RANK``. Modules that
    the script imports are shared by all hosted ranks.
    """
    loaded: list[Program] = []
    loading = outcome_of(lambda: loaded.append(Program.load(argv, is_module=is_module)))
    if loading.code != 0:
        return {env.rank: loading}
    (program,) = loaded
    mains: dict[int, ModuleType] = {}
    outcomes: dict[int, Outcome] = {}

    def on_switch(rank: int) -> None:
        os.environ.update(env.of_rank(rank).torchrun_environ())
        if rank in mains:
            sys.modules["__main__"] = mains[rank]

    def body(rank: int) -> None:
        mains[rank] = program.new_main()
        try:
            program.run(mains[rank])
        except BaseException as e:
            outcomes[rank] = outcome_of(lambda: _raise(e))
            raise
        outcomes[rank] = Outcome()

    streams = RankStream(sys.stdout), RankStream(sys.stderr)
    before = sys.stdout, sys.stderr, sys.modules["__main__"]
    sys.stdout, sys.stderr = streams
    try:
        if prepare is not None:
            prepare()
        run_ranks(env, body, on_switch)
    except RankFailed as e:
        first = outcomes.pop(e.rank, None) or describe(e.exception)
        return {e.rank: first, **outcomes}
    except KeyboardInterrupt as e:
        return {env.rank: describe(e)}
    except (
        Exception
    ) as e:  # the transport could not be opened or closed: no rank's failure, but the process's
        return {env.rank: describe(e)}
    finally:
        for stream in streams:
            stream.drain()
        sys.stdout, sys.stderr, sys.modules["__main__"] = before
    return outcomes


def _raise(e: BaseException) -> None:
    raise e
