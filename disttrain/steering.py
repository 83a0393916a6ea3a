"""What a script tells of its training while it runs, and what it does when its user asks from outside.

``disttrain ps`` and ``disttrain top`` show it; ``disttrain ctl JOB save|stop|pause|resume`` asks. A wish reaches a rank
through a word of memory that the launcher writes (``disttrain.collectives.meter``). The ranks vote on it with their
gradients, so that all act on it after the same step.
"""

from __future__ import annotations

import json
import logging
import math
import numbers
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from disttrain import context
from disttrain.collectives import signals
from disttrain.collectives.env import WorkerEnv, current_env
from disttrain.collectives.meter import Meter, Wish

if TYPE_CHECKING:
    from disttrain.collectives.communicator import Communicator

__all__ = ["Agreement", "Stopped", "log", "meter", "on_save", "stepped"]

_MAX_HISTORY: Final = 64 << 20
"""Bytes of history; what comes later is shown but not kept."""
_logger = logging.getLogger("disttrain")
_Callback = TypeVar("_Callback", bound=Callable[[], Any])


class Stopped(SystemExit):
    """The user has asked the job to stop; raised by ``optimizer.step()`` on all ranks after the same step.

    It ends the script with exit code 0, as ``sys.exit(0)`` does: ``finally`` blocks run, ``except Exception`` does not.
    """


def meter() -> Meter:
    """Return where the calling rank counts what it does."""
    rank = context.current()
    if rank.meter is None:
        rank.meter = Meter(current_env(), WorkerEnv.from_environ())
    return rank.meter


# ---------------------------------------------------------------------------------------------- telling


def log(*args: Any, **kwargs: Any) -> Any:
    """Tell numbers of the training by name: ``log(loss=loss, accuracy=0.9)``; or the logarithm, ``torch.log``.

    With a tensor, ``log(input, *, out=None)``, this is PyTorch's natural logarithm. With names only, the numbers go
    into the history of the run, ``history.jsonl`` in its run directory, with rank, step and time; ``loss`` is also what
    ``disttrain ps`` and ``disttrain top`` show of the rank. Any rank may call it, whenever it likes. Without a launcher
    there is no history, and nothing happens.

    Args:
        args: of the logarithm.
        kwargs: ``input`` and ``out`` of the logarithm, or numbers: Python's, NumPy's, or tensors with one element.

    Returns:
        The logarithm, else ``None``.

    Raises:
        TypeError: names and a tensor for the logarithm at once, nothing at all, or something that is no number.
    """
    if args or "input" in kwargs or "out" in kwargs:
        return _logarithm()(*args, **kwargs)
    if not kwargs:
        raise TypeError("log() needs a tensor for its logarithm, or numbers by name: log(loss=loss)")
    told = {name: _number(name, value) for name, value in kwargs.items()}
    counter = meter()
    if "loss" in told:
        counter.note_loss(told["loss"])
    env = counter.env
    if env.history:
        entry = {
            "time": round(time.time(), 3),
            "generation": env.generation,
            "rank": env.rank,
            "step": counter.steps,
            "log": {name: x if math.isfinite(x) else repr(x) for name, x in told.items()},
        }
        _append(env.history, json.dumps(entry, separators=(",", ":")))
    return None


@cache
def _logarithm() -> Callable[..., Any]:
    from disttrain.functions.elementwise import log as natural
    from disttrain.functions.out import with_out

    return with_out(natural)


def _number(name: str, value: Any) -> float:
    """Return a number that the script tells; reading a tensor on a GPU waits for it."""
    item = getattr(value, "item", None)
    if item is not None and getattr(value, "size", None) is not None:
        count = math.prod(value.shape)
        if count != 1:
            raise TypeError(
                f"log({name}=...) needs one number, got {count} in shape {list(value.shape)}; take its mean()"
            )
        value = item()
    if not isinstance(value, numbers.Real):
        raise TypeError(f"log({name}=...) needs a number, got {type(value).__name__}")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


class _History:
    """The open file of a run's history. One write appends one line, also where many processes do."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._given_up = False

    def append(self, line: str) -> None:
        if self._given_up:
            return
        try:
            if os.fstat(self._file).st_size < _MAX_HISTORY:
                os.write(self._file, f"{line}\n".encode())
                return
            why = f"it has {_MAX_HISTORY >> 20} MiB"
        except OSError as error:  # a full disk must not end the run
            why = str(error)
        self._given_up = True
        _logger.warning("no more history is written to %s: %s", self._path, why)


_histories: dict[str, _History] = {}


def _append(path: str, line: str) -> None:
    if path not in _histories:
        try:
            _histories[path] = _History(path)
        except OSError as error:
            _logger.warning("no history is written: %s", error)
            return
    _histories[path].append(line)


# ---------------------------------------------------------------------------------------------- being asked


def on_save(callback: _Callback) -> _Callback:
    """Say how to save: ``disttrain ctl JOB save`` has ``callback()`` called on all ranks after the same step.

    Every rank gives one. It is called at the end of ``optimizer.step()``, when parameters and optimizer are those
    after the step, and before what the script does next (a scheduler's step, say). It may make collective calls. An
    exception in it ends the job as any other. ``disttrain ctl JOB stop`` saves, too, before it stops. A later
    ``on_save`` takes the place of an earlier one.

    SIGTERM or SIGUSR1 to the launcher or to a rank, by which batch systems announce that they take the nodes away,
    then mean the same as ``stop``, and the job ends with exit code 75.

    Args:
        callback: is called without arguments.

    Returns:
        ``callback``, so that this can be a decorator.

    Raises:
        TypeError: ``callback`` cannot be called.
    """
    if not callable(callback):
        raise TypeError(f"on_save() needs a function without arguments, got {type(callback).__name__}")
    context.current().on_save = callback
    counter = meter()
    counter.can_save()
    if current_env().control and threading.current_thread() is threading.main_thread():
        signals.forward_sigterm(lambda: counter.ending)
    return callback


class Agreement:
    """What the ranks of one model have agreed to do after its next step."""

    def __init__(self) -> None:
        self._until = [0, 0, 0]
        """How often each wish is to have been done then."""

    def wishes(self) -> list[Wish]:
        """Return what this rank votes for: it has been asked, and has not done it."""
        return meter().due

    def hear(self, votes: Sequence[float]) -> None:
        """Take in the sum of all ranks' votes."""
        if not any(votes):
            return
        counter = meter()
        for wish, votes_for in zip(Wish, votes, strict=True):
            if votes_for:
                self._until[wish] = counter.done(wish) + 1

    def keep(self, comm: Communicator) -> None:
        """Do it, with the ranks of ``comm``.

        Raises:
            Stopped: they have agreed to.
        """
        if not any(self._until):
            return
        counter = meter()
        _act([wish for wish in Wish if self._until[wish] > counter.done(wish)], comm)


def stepped(steps: int, agreements: Iterable[tuple[Agreement, Communicator]]) -> None:
    """Note that an optimizer has made ``steps`` steps in all, and do what is wished.

    Args:
        steps: by this optimizer.
        agreements: of the models that it has stepped, with their ranks.

    Raises:
        Stopped: it is wished that the job ends.
    """
    counter = meter()
    counter.stepped(steps)
    if "cupy" in sys.modules:
        counter.note_gpu(sys.modules["cupy"].get_default_memory_pool().used_bytes())
    if counter.alone:
        _act(counter.due, None)
        return
    for agreement, comm in agreements:
        if comm.size == 1:
            wishes = agreement.wishes()
            agreement.hear([wish in wishes for wish in Wish])
        agreement.keep(comm)


def _act(wishes: list[Wish], comm: Communicator | None) -> None:
    """Do what all ranks of ``comm`` do now.

    Raises:
        Stopped: at the end, if that is one of the wishes.
    """
    if not wishes:
        return
    counter = meter()
    save = context.current().on_save
    if save is not None and not {Wish.SAVE, Wish.STOP}.isdisjoint(wishes):
        save()
    if Wish.SAVE in wishes:
        counter.do(Wish.SAVE)
    if Wish.STOP in wishes:
        counter.do(Wish.STOP)
        raise Stopped(0)
    if Wish.PAUSE in wishes:
        counter.do(Wish.PAUSE)
        if comm is not None:
            comm.barrier()  # ranks that share a process all come here before one of them holds it up
        counter.pause()
