"""The debugger of ranks that are threads of one process: one stops, the others wait and can be looked at."""

import builtins
import os
import pdb
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, FunctionType, TracebackType
from typing import Any, Final, TextIO

from disttrain.collectives.env import HostedRank, hosted_rank
from disttrain.collectives.ledger import read, relative
from disttrain.launcher.hosted import RankStream
from disttrain.launcher.program import Program, user_frames
from disttrain.launcher.report import name_ranks

_OURS: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_PRINTING: Final = {f.__code__ for f in vars(RankStream).values() if isinstance(f, FunctionType)}
Stack = list[tuple[FrameType, int]]


class Debugging:
    """The debuggers of all ranks: they share the terminal and the breakpoints.

    Args:
        ranks: of this process.
        terminal: where the debuggers write.
    """

    def __init__(self, ranks: range, terminal: TextIO) -> None:
        self.ranks = ranks
        self.terminal = terminal
        self.breaks: dict[str, list[int]] = {}
        """The lines of each file that have a breakpoint."""
        self.stops: dict[int, FrameType] = {}
        """Frames at whose next line a rank is to stop, as somebody wished who looked at it from another rank."""
        self.introduced = False
        self._debuggers: dict[int, Debugger] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Make ``breakpoint()`` and ``pdb.set_trace()`` stop here, and ``input()`` say which rank asks."""
        set_trace, ask = pdb.set_trace, builtins.input
        pdb.set_trace = self._set_trace
        builtins.input = lambda prompt="", /: self._input(ask, prompt)
        try:
            yield
        finally:
            pdb.set_trace, builtins.input = set_trace, ask

    def take_turn(self, rank: int) -> None:
        """Stop at the next line, or at breakpoints, of ``rank``, which goes on in this thread, as has been wished."""
        frame = self.stops.pop(rank, None)
        if frame is not None:
            self._debugger(rank).stop_in(frame)
        elif self.breaks and sys.gettrace() is None:
            self._debugger(rank).watch()

    def post_mortem(self, rank: int, error: BaseException) -> None:
        """Show where ``error`` was raised in ``rank``, whose thread the caller is, before it is told to the others."""
        debugger = self._debugger(rank)
        text = traceback.TracebackException(type(error), error, user_frames(error.__traceback__)).format()
        debugger.message(f"rank {rank} has failed:\n{''.join(text).rstrip()}")
        debugger.reset()
        debugger.interaction(None, error.__traceback__)

    def frames(self, rank: int) -> FrameType | None:
        """Return the innermost frame of a rank that is in its script, else None."""
        ident = _here().host.baton.threads.get(rank)
        frame = None if ident is None else sys._current_frames().get(ident)
        outer = frame
        while outer is not None and outer.f_code is not Program.run.__code__:
            outer = outer.f_back
        return None if outer is None else frame

    def place(self, rank: int) -> str:
        """Return where a rank is that has not stopped here."""
        host = _here().host
        if rank in host.baton.finished:
            return "has ended"
        innermost = self.frames(rank)
        if innermost is None:
            return "has not begun"
        frame = innermost
        while _is_ours(frame) and frame.f_back is not None:
            frame = frame.f_back
        standing = next(s for s in read(bytes(host.ledger.memory)) if s.rank == rank)
        return f"{_name(frame)}: {standing}"

    def _debugger(self, rank: int) -> "Debugger":
        if rank not in self._debuggers:
            self._debuggers[rank] = Debugger(self, rank)
        return self._debuggers[rank]

    def _set_trace(self, *, header: str | None = None) -> None:
        """What ``pdb.set_trace()`` is, and so ``breakpoint()``."""
        rank = hosted_rank()
        if rank is None:
            pdb.Pdb().set_trace(sys._getframe(1))
            return
        number = rank.env.rank
        own = threading.get_ident() == rank.host.baton.threads[number]
        debugger = self._debugger(number) if own else Debugger(self, number)
        if header is not None:
            debugger.message(header)
        debugger.set_trace(sys._getframe(1))

    def _input(self, ask: Any, prompt: object) -> str:
        rank = hosted_rank()
        if rank is None or rank.in_main_thread is None:
            return str(ask(prompt))
        sys.stdout.flush()
        if isinstance(sys.stdout, RankStream) and not isinstance(prompt, _Prompt):
            prompt = sys.stdout.asked(rank.env.rank, str(prompt))
        # There Ctrl-C interrupts it, as it would in a script of one rank.
        return str(rank.in_main_thread(lambda: ask(prompt)))


class _Prompt(str):
    """The debugger's, which says itself about which rank it is."""


class Debugger(pdb.Pdb):
    """``pdb`` in one rank, which can look at the other ranks too."""

    def __init__(self, debugging: Debugging, rank: int) -> None:
        super().__init__(nosigint=True)
        self.rank = rank
        self.breaks = debugging.breaks
        self.stdout = debugging.terminal
        self._debugging = debugging
        self._shown = rank
        self._own: tuple[Stack, int] = ([], 0)

    def stop_here(self, frame: FrameType) -> bool:
        """Do not stop in what prints for the ranks: without them that would be C, which is not stepped into."""
        return super().stop_here(frame) and not _prints(frame)

    def stop_in(self, frame: FrameType) -> None:
        """Stop at the next line of ``frame``, in this thread, or in the frame that it returns to."""
        self._prepare()
        self.set_next(frame)
        sys.settrace(self.trace_dispatch)

    def watch(self) -> None:
        """Stop at breakpoints that other ranks have set."""
        self._prepare()
        self.set_continue()
        sys.settrace(self.trace_dispatch)

    def _prepare(self) -> None:
        """Trace the frames of the user's that this thread is in."""
        self.reset()
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if not _is_ours(frame):
                frame.f_trace = self.trace_dispatch
            self.botframe = frame
            frame = frame.f_back

    # -- what pdb does ---------------------------------------------------------------------------------------

    def interaction(self, frame: FrameType | None, *args: Any) -> None:
        sys.stdout.flush()
        if isinstance(sys.stdout, RankStream):
            sys.stdout.end_line()
        if not self._debugging.introduced and len(self._debugging.ranks) > 1:
            self._debugging.introduced = True
            self.message(
                f"rank {self.rank} has stopped, and the others wait: `ranks` says where, `rank N` shows rank N"
            )
        self._show(self.rank)
        super().interaction(frame, *args)

    def setup(self, f: FrameType | None, tb: TracebackType | None) -> Any:
        result = super().setup(f, tb)
        self._own = self.stack, self.curindex
        return result

    def get_stack(self, f: FrameType | None, t: TracebackType | None) -> tuple[Stack, int]:
        stack, index = super().get_stack(f, t)
        outer = [k for k, (frame, _) in enumerate(stack) if frame.f_code is Program.run.__code__]
        first = outer[0] + 1 if outer and outer[0] + 1 < len(stack) else 0
        return stack[first:], max(0, index - first)

    def clear_all_breaks(self) -> Any:
        result = super().clear_all_breaks()
        self._debugging.breaks.clear()
        self.breaks = self._debugging.breaks  # super() has made a new one
        return result

    # -- commands --------------------------------------------------------------------------------------------

    def do_ranks(self, arg: str) -> None:
        """ranks
        Say where each rank is; the arrow is at the one whose frames are shown.
        """
        for rank in self._debugging.ranks:
            if rank == self.rank:
                place = f"{_name(self._own[0][self._own[1]][0])}: has stopped"
            else:
                place = self._debugging.place(rank)
            self.message(f"{'->' if rank == self._shown else '  '} rank {rank}  {place}")

    def do_rank(self, arg: str) -> None:
        """rank [N]
        Show the frames of rank N, by default of the one that has stopped.

        Then `p`, `where`, `up`, `down` and `list` are about them; `next` and `step` go on until rank N is
        at its next line, and `continue` goes on as ever.
        """
        try:
            rank = int(arg) if arg else self.rank
        except ValueError:
            rank = -1
        if rank not in self._debugging.ranks:
            self.error(f"there is no rank {arg}; there are {name_ranks(self._debugging.ranks)}")
            return
        stack, index = self._own
        if rank != self.rank:
            frame = self._debugging.frames(rank)
            if frame is None:
                self.error(f"rank {rank} {self._debugging.place(rank)}")
                return
            stack, index = self.get_stack(frame, None)
            while index > 0 and _is_ours(stack[index][0]):
                index -= 1
        self._show(rank)
        self.stack = stack
        self._select_frame(index)

    def do_next(self, arg: str) -> bool | None:
        return super().do_next(arg) if self._shown == self.rank else self._stop_in_shown()

    def do_step(self, arg: str) -> bool | None:
        return super().do_step(arg) if self._shown == self.rank else self._stop_in_shown()

    def do_return(self, arg: str) -> bool | None:
        return super().do_return(arg) if self._is_own("return") else None

    def do_until(self, arg: str) -> bool | None:
        return super().do_until(arg) if self._is_own("until") else None

    # The docstrings are pdb's help.
    do_next.__doc__, do_step.__doc__ = pdb.Pdb.do_next.__doc__, pdb.Pdb.do_step.__doc__
    do_return.__doc__, do_until.__doc__ = pdb.Pdb.do_return.__doc__, pdb.Pdb.do_until.__doc__
    do_n, do_s, do_r, do_unt = do_next, do_step, do_return, do_until

    def _stop_in_shown(self) -> bool:
        assert self.curframe is not None
        self._debugging.stops[self._shown] = self.curframe
        self.set_continue()
        return True

    def _is_own(self, command: str) -> bool:
        if self._shown != self.rank:
            self.error(
                f"{command} is for rank {self.rank}, which has stopped; use next, or `rank` to go back to it"
            )
        return self._shown == self.rank

    def _show(self, rank: int) -> None:
        self._shown = rank
        self.prompt = _Prompt(f"[{rank}] (Pdb) ")


def _here() -> HostedRank:
    rank = hosted_rank()
    assert rank is not None
    return rank


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_OURS)


def _prints(frame: FrameType | None) -> bool:
    """Return whether a rank is writing to its standard output or error."""
    while frame is not None and frame.f_code not in _PRINTING:
        frame = frame.f_back
    return frame is not None


def _name(frame: FrameType) -> str:
    return f"{relative(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}"
