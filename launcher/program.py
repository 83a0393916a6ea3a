"""Running the user's program as Python itself would: as ``__main__``, with its own path and arguments."""

import importlib
import importlib.util
import io
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType, TracebackType
from typing import Final

import disttrain
from disttrain.collectives import control
from disttrain.collectives.ledger import relative

_LAUNCHER: Final = os.path.dirname(os.path.realpath(__file__)) + os.sep
_COLLECTIVES: Final = os.path.join(os.path.dirname(os.path.dirname(_LAUNCHER)), "collectives") + os.sep
_LIBRARY: Final = (os.path.realpath(disttrain.__path__[0]) + os.sep, _COLLECTIVES, _LAUNCHER)
_FOLLOWERS: Final = {"PeerFailed", "CollectiveTimeout"}
"""Exceptions that say that a peer failed, by name: the launcher's half must not load the library's."""


@dataclass(frozen=True)
class Program:
    """A script or module, compiled."""

    code: CodeType
    argv: tuple[str, ...]
    spec: ModuleSpec | None

    @classmethod
    def load(cls, argv: list[str], *, is_module: bool) -> "Program":
        """Read the program ``argv[0]`` and put its folder (a module: the current one) first on ``sys.path``.

        Raises:
            ImportError: no such module.
            SyntaxError: the program is not Python.
            OSError: the script cannot be read.
        """
        folder = os.getcwd() if is_module else os.path.dirname(os.path.realpath(argv[0]))
        if not sys.flags.safe_path:
            sys.path[0] = folder  # was the launcher's
        sys.argv = list(argv)
        if not is_module:
            with io.open_code(os.path.abspath(argv[0])) as f:
                code = compile(f.read(), argv[0], "exec", dont_inherit=True)
            return cls(code, tuple(argv), None)
        spec = importlib.util.find_spec(argv[0])
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{argv[0]}.__main__")
        get_code = getattr(spec.loader, "get_code", None) if spec is not None else None
        compiled = get_code(spec.name) if get_code is not None and spec is not None else None
        if spec is None or compiled is None:
            raise ImportError(
                f"there is no module {argv[0]!r} that can be run; check the name and PYTHONPATH"
            )
        sys.argv[0] = spec.origin or argv[0]
        return cls(compiled, tuple(sys.argv), spec)

    def new_main(self) -> ModuleType:
        """Return a fresh module to run the program in, made ``__main__``."""
        main = ModuleType("__main__")
        main.__dict__.update(__builtins__=__builtins__, __file__=self.argv[0], __spec__=self.spec)
        if self.spec is not None:
            main.__dict__.update(
                __file__=self.spec.origin,
                __package__=self.spec.parent,
                __loader__=self.spec.loader,
                __cached__=self.spec.cached,
            )
        sys.modules["__main__"] = main
        return main

    def run(self, main: ModuleType) -> None:
        """Run the program in the namespace of ``main``."""
        exec(self.code, main.__dict__)


def run_for_torch() -> None:
    """Let ``import torch`` mean disttrain in the program that is run next."""
    importlib.import_module("disttrain.compat.finder").install()


def runs_for_torch() -> bool:
    """Return whether ``import torch`` means disttrain in this process."""
    return any(type(finder).__module__ == "disttrain.compat.finder" for finder in sys.meta_path)


@dataclass(frozen=True)
class Outcome:
    """How a rank left its script."""

    code: int = 0
    error: str = ""
    """Class of the exception; empty for an end without one and for ``sys.exit(number)``."""
    message: str = ""
    traceback: str = ""
    follower: bool = False


def outcome_of(body: Callable[[], None]) -> Outcome:
    """Run ``body`` to its end, whatever that is."""
    try:
        body()
    except BaseException as e:  # KeyboardInterrupt too: the script's end is told, not decided, here
        return describe(e)
    return Outcome()


def leave_fork(outcome: Outcome) -> None:
    """End a fork of the script, which has come to its end: it says what Python would say, and is no rank."""
    say(outcome)
    control.leave(outcome.code)


def say(outcome: Outcome) -> None:
    """Print what Python would print at such an end."""
    if outcome.traceback:
        sys.stderr.write(outcome.traceback)
    elif outcome.message:
        sys.stderr.write(outcome.message + "\n")


def describe(e: BaseException) -> Outcome:
    """Return the outcome of a rank that ``e`` has ended, with the user's part of the traceback."""
    if isinstance(e, SystemExit):
        if e.code is None or isinstance(e.code, int):
            return Outcome((e.code or 0) & 0xFF)
        return Outcome(1, "SystemExit", str(e.code))
    if type(e).__qualname__ == "BdbQuit":  # only a debugger has loaded it
        return Outcome(1, "BdbQuit", _where_quit(e.__traceback__))
    told = traceback.TracebackException(type(e), e, user_frames(e.__traceback__))
    if any(c.__name__ == "CollectiveError" for c in type(e).__mro__):  # its text says the rest
        while len(told.stack) > 1 and os.path.realpath(told.stack[-1].filename).startswith(_LIBRARY):
            told.stack.pop()
    text = "".join(told.format())
    try:
        message = str(e)
    except Exception as broken:
        message = f"<its text cannot be made: {type(broken).__name__}>"
    name = type(e).__qualname__
    if type(e).__module__ not in ("builtins", "__main__"):
        name = f"{type(e).__module__}.{name}"
    follower = not _FOLLOWERS.isdisjoint(c.__name__ for c in type(e).__mro__)
    return Outcome(130 if isinstance(e, KeyboardInterrupt) else 1, name, message, text, follower)


def _where_quit(tb: TracebackType | None) -> str:
    frames = [f for f in traceback.extract_tb(tb) if os.path.basename(f.filename) not in ("bdb.py", "pdb.py")]
    place = f" at {relative(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    typed = sys.stdin is not None and sys.stdin.isatty()
    return f"quit in the debugger{place}" + (
        "" if typed else "; nobody could type: disttrain debug has a terminal"
    )


def user_frames(tb: TracebackType | None) -> TracebackType | None:
    """Return ``tb`` without our own frames at its beginning; None if the launcher itself raised."""
    first = tb
    while first is not None and _is_in(first, _LAUNCHER):
        first = first.tb_next
    user = first
    while user is not None and _is_in(
        user, _COLLECTIVES, _LAUNCHER
    ):  # the scheduler of ranks that are threads
        user = user.tb_next
    return user or first


def _is_in(tb: TracebackType, *folders: str) -> bool:
    file = tb.tb_frame.f_code.co_filename
    return file.startswith("<frozen") or os.path.realpath(file).startswith(folders)
