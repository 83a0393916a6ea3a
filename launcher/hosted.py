"""Several ranks of a script as threads of one process, each with its own ``__main__`` and environment."""

import io
import os
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import ModuleType
from typing import BinaryIO, TextIO

from disttrain.collectives.env import WorkerEnv, hosted_env
from disttrain.collectives.errors import RankFailed
from disttrain.collectives.local import run_ranks
from disttrain.launcher.belongings import SharedModules, own_variables, threads_of_ranks
from disttrain.launcher.program import Outcome, Program, describe, leave_fork


class RankStream(io.TextIOBase):
    """A text stream that puts ``[rank]`` before each line of a rank and never cuts lines into each other.

    An unfinished line waits until it is finished. On a terminal a flush lets it through, as for a prompt or a
    progress bar; if another rank writes next, that begins on a new line.
    """

    def __init__(self, target: TextIO) -> None:
        self._target = target
        self._pending: dict[tuple[int, int], str] = {}
        """Unfinished lines, by rank and thread."""
        self._lock = threading.RLock()  # the threads that a rank has started write whenever they like
        self._open: int | None = None  # the rank whose unfinished line is on the screen

    def write(self, text: str) -> int:
        env = hosted_env()
        if env is None:  # the process itself
            return self._target.write(text)
        who = env.rank, threading.get_ident()
        with self._lock:
            *lines, rest = (self._pending.pop(who, "") + text).split("\n")
            for line in lines:
                self._put(env.rank, line + "\n")
            if rest:
                self._pending[who] = rest
            if lines and self.line_buffering:
                self._target.flush()
        return len(text)

    def flush(self) -> None:
        env = hosted_env()
        with self._lock:
            rest = ""
            if env is not None and self._target.isatty():
                rest = self._pending.pop((env.rank, threading.get_ident()), "")
            if env is not None and rest:
                self._put(env.rank, rest)
            self._target.flush()

    def drain(self) -> None:
        """Write what is unfinished, of all ranks."""
        with self._lock:
            for (rank, _), rest in sorted(self._pending.items()):
                self._put(rank, rest + "\n")
            self._pending.clear()
            self.end_line()

    def end_line(self) -> None:
        """End the line that is on the screen, if a rank has left it open: something else follows."""
        with self._lock:
            if self._open is not None:
                self._target.write("\n")
                self._open = None
            self._target.flush()

    def asked(self, rank: int, prompt: str) -> str:
        """Return a prompt with the rank before it; what is typed then ends the line."""
        with self._lock:
            goes_on = self._open == rank
            if not goes_on:
                self.end_line()
            self._open = None
        return prompt if goes_on else f"[{rank}] {prompt}"

    def _put(self, rank: int, text: str) -> None:
        if self._open not in (None, rank):
            self._target.write("\n")
            self._open = None
        label = f"[{rank}] "
        if self._target.isatty():  # a carriage return goes back to the label, not over it
            text = text.replace("\r", f"\r{label}").replace(f"\r{label}\n", "\n")
        else:
            text = text.rstrip("\r\n").rpartition("\r")[2] + "\n"
        self._target.write(text if self._open == rank else label + text)
        self._open = None if text.endswith("\n") else rank

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
        return bool(self._target.line_buffering)

    @property
    def buffer(self) -> BinaryIO:
        """The bytes below; what is written there has no prefix."""
        return self._target.buffer


def run_hosted(
    env: WorkerEnv,
    argv: list[str],
    *,
    is_module: bool,
    on_turn: Callable[[int], None] | None = None,
    on_error: Callable[[int, BaseException], None] | None = None,
) -> dict[int, Outcome]:
    """Run the program once for each rank that ``env`` hosts; return how each one ended, the root cause first.

    While a rank runs, ``sys.modules["__main__"]`` and ``sys.argv`` are its own; ``os.environ`` always is, also in the
    threads that it starts. Other modules that the script imports are shared by all hosted ranks, which is said.

    Args:
        on_turn: called with the rank that is about to run, in its thread.
        on_error: called with the first rank that fails and its exception, in its thread, while the others wait.
    """
    outcomes: dict[int, Outcome] = {}
    mains: dict[int, ModuleType] = {}
    argvs: dict[int, list[str]] = {}
    running: int | None = None
    settled: set[int] = set()
    shared = SharedModules()
    pid = os.getpid()

    def on_switch(rank: int) -> None:
        nonlocal running
        if running is not None:
            argvs[running] = sys.argv
            if running not in settled:  # it has come to its first wait, or its end: the imports are done
                settled.add(running)
                name_shared()
        running = rank
        variables.show(rank)
        sys.argv = argvs.setdefault(rank, list(program.argv))
        if rank in mains:
            sys.modules["__main__"] = mains[rank]
        if on_turn is not None:
            on_turn(rank)

    def name_shared(*, at_the_end: bool = False) -> None:
        if (
            env.process == 0
            and len(settled) > 1
            and (names := shared.find(mains.values(), at_the_end=at_the_end))
        ):
            before[1].write(
                f"disttrain: ranks of one process share its modules and what these hold: {', '.join(names)}\n"
            )

    def body(rank: int) -> None:
        mains[rank] = program.new_main()
        try:
            program.run(mains[rank])
        except BaseException as e:
            outcomes[rank] = describe(e)
            if os.getpid() == pid:
                failed = [r for r, outcome in outcomes.items() if outcome.code]
                if on_error is not None and failed == [rank]:
                    on_error(rank, e)
                raise
        else:
            outcomes[rank] = Outcome()
        if os.getpid() != pid:  # a fork in the script has come to its end: not the rank's
            leave_fork(outcomes[rank])

    streams = RankStream(sys.stdout), RankStream(sys.stderr)
    before = sys.stdout, sys.stderr, sys.modules["__main__"]
    sys.stdout, sys.stderr = streams
    with ExitStack() as stack:
        ranks = range(env.rank, env.rank + env.hosted)
        own = {rank: env.of_rank(rank).torchrun_environ() for rank in ranks}
        variables = stack.enter_context(own_variables(own))
        stack.enter_context(threads_of_ranks())
        try:
            program = Program.load(argv, is_module=is_module)
            run_ranks(env, body, on_switch)
        except RankFailed as e:
            return {e.rank: outcomes.pop(e.rank, None) or describe(e.exception), **outcomes}
        except BaseException as e:  # Ctrl-C; or of no rank: the program or the transport cannot be loaded
            failed = next((rank for rank, outcome in outcomes.items() if outcome.code), None)
            return {env.rank: describe(e)} if failed is None else {failed: outcomes.pop(failed), **outcomes}
        finally:
            for stream in streams:
                stream.drain()
            settled.update(mains)
            name_shared(at_the_end=True)
            sys.stdout, sys.stderr, sys.modules["__main__"] = before
    return outcomes
