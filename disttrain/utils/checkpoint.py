"""Less memory for more work: what a function saves for backward is dropped, and computed again when it is needed.

As ``torch.utils.checkpoint`` in its non-reentrant form (Chen et al. 2016): the function runs as always, so its result
has its ordinary history, and only the values that it saved are missing. The first of them that backward asks for runs
the function once more, with the random numbers, the modes and the arguments of the first time.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from disttrain import autograd, missing, random
from disttrain.autograd.graph import saved_tensors_hooks
from disttrain.context import grad_enabled
from disttrain.errors import GradientError
from disttrain.modes import Mode, Recording, changed
from disttrain.nodes import PackedTensor
from disttrain.tensors import Tensor

__all__ = [
    "CheckpointError",
    "checkpoint",
    "checkpoint_sequential",
    "noop_context_fn",
    "set_checkpoint_debug_enabled",
    "set_checkpoint_early_stop",
]

_early_stop: ContextVar[bool | None] = ContextVar("checkpoint_early_stop", default=None)
"""What :func:`set_checkpoint_early_stop` says, over the argument of :func:`checkpoint`."""


@contextlib.contextmanager
def set_checkpoint_early_stop(enable: bool) -> Iterator[None]:
    """Let all calls of :func:`checkpoint` inside a ``with`` block have ``early_stop=enable``."""
    token = _early_stop.set(enable)
    try:
        yield
    finally:
        _early_stop.reset(token)


@contextlib.contextmanager
def set_checkpoint_debug_enabled(enabled: bool | None) -> Iterator[None]:
    """Do nothing: there for PyTorch's name; an error says what differed in any case."""
    yield


class CheckpointError(GradientError):
    """The function did something else when it was run again."""


def noop_context_fn() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return two contexts that do nothing: what ``context_fn`` is by default."""
    return contextlib.nullcontext(), contextlib.nullcontext()


class _Enough(BaseException):
    """All that was saved the first time has been computed again."""


class _Frame:
    """One call of a checkpointed function."""

    def __init__(self, again: Callable[[], Any], determinism_check: str, early_stop: bool) -> None:
        self.again = again
        self.early_stop = early_stop
        self.determinism_check = determinism_check
        self.context = contextvars.copy_context()
        """All modes of the first run."""
        self.kinds: list[tuple[tuple[int, ...], Any]] = []
        """Shape and type of each tensor that was saved."""
        self.values: dict[int, Tensor] = {}
        """What the last run has found and backward has not used yet."""

    def pack(self, t: Tensor) -> int:
        """Drop a saved tensor and return its number."""
        self.kinds.append((tuple(t.shape), t.dtype))
        return len(self.kinds) - 1

    def unpack(self, number: int) -> Tensor:
        """Return a saved tensor, computing again if need be."""
        if number not in self.values:
            found = self.context.copy().run(self._run_again)
            self._compare(found)
            self.values = dict(enumerate(found))
        return self.values.pop(number)

    def _run_again(self) -> list[Tensor]:
        found: list[Tensor] = []

        def keep(t: Tensor) -> Tensor:
            found.append(t)
            if self.early_stop and len(found) == len(self.kinds):
                raise _Enough
            return t

        grad_enabled.set(changed(watch=None))  # what anomaly mode says of the first run is enough
        with contextlib.suppress(_Enough), saved_tensors_hooks(keep, lambda t: t):
            self.again()
        return found

    def _compare(self, found: list[Tensor]) -> None:
        how = ""
        if len(found) < len(self.kinds) or (len(found) > len(self.kinds) and not self.early_stop):
            how = f"it saved {len(self.kinds)} tensors, and {len(found)} the second time"
        elif self.determinism_check != "none":
            for i, (t, (shape, dtype)) in enumerate(zip(found, self.kinds, strict=False)):
                if (tuple(t.shape), t.dtype) != (shape, dtype):
                    how = (
                        f"saved tensor {i} had shape {list(shape)} and {dtype}, and {list(t.shape)} and {t.dtype} the "
                        f"second time"
                    )
                    break
        if how:
            raise CheckpointError(
                f"checkpoint(): the function did something else when it was computed again: {how}. It must not depend "
                f"on what changes between forward and backward"
            )


def _held(args: Sequence[Any]) -> Callable[[], list[Any]]:
    """Return a function that returns ``args``; tensors go through the hooks of an enclosing checkpoint, if any."""
    mode: Mode = grad_enabled.get()
    hooks = mode.hooks[-1] if isinstance(mode, Recording) and mode and mode.hooks else None
    if hooks is None:
        return lambda: list(args)
    kept: list[Any] = []
    for a in args:
        if isinstance(a, Tensor):
            with autograd.no_grad():
                packed = PackedTensor(hooks, a.detach())
            kept.append((packed, bool(a.requires_grad)))
        else:
            kept.append((None, a))
    return lambda: [v if p is None else p.unpack_tensor().detach().requires_grad_(v) for p, v in kept]


def checkpoint(
    function: Callable[..., Any],
    *args: Any,
    use_reentrant: bool | None = None,
    context_fn: Callable[
        [], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]
    ] = noop_context_fn,
    determinism_check: str = "default",
    debug: bool = False,
    early_stop: bool = True,
    preserve_rng_state: bool = True,
    **kwargs: Any,
) -> Any:
    """Return ``function(*args, **kwargs)``, keeping nothing of what it saves for backward.

    Args:
        function: what to run; its result may be anything, and it may use parameters that are no arguments.
        args: its arguments.
        use_reentrant: there for PyTorch's signature; both values mean the same here.
        context_fn: returns two contexts, for the first run and for the second.
        determinism_check: ``"default"`` compares shapes and types of what both runs save, ``"none"`` only their number.
        debug: there for PyTorch's signature; an error says what differed in any case.
        early_stop: end the second run as soon as it has found all that the first one saved.
        preserve_rng_state: let the second run draw the random numbers of the first, and draw none beyond.
        kwargs: its keyword arguments.

    Raises:
        ValueError: ``determinism_check`` is unknown, or there are ``kwargs`` and ``use_reentrant=True``.
        CheckpointError: in backward, if the second run saves something else than the first.
    """
    if use_reentrant and kwargs:
        raise ValueError(
            f"checkpoint(): use_reentrant=True passes no keywords on, got {', '.join(kwargs)}; give "
            f"use_reentrant=False"
        )
    if determinism_check not in ("default", "none"):
        raise ValueError(f'determinism_check must be "default" or "none", got {determinism_check!r}')
    first, second = context_fn()
    state = random.get_rng_state() if preserve_rng_state else None
    held, names = _held((*args, *kwargs.values())), list(kwargs)
    n = len(args)  # `again` must not keep the arguments themselves

    def again() -> None:
        values = held()
        named = dict(zip(names, values[n:], strict=True))
        with random.fork_rng(enabled=state is not None), second:
            if state is not None:
                random.set_rng_state(state)
            function(*values[:n], **named)

    said = _early_stop.get()
    frame = _Frame(again, determinism_check, early_stop if said is None else said)
    with first, saved_tensors_hooks(frame.pack, frame.unpack):
        return function(*args, **kwargs)


def checkpoint_sequential(
    functions: Iterable[Callable[..., Any]],
    segments: int,
    input: Any,
    use_reentrant: bool | None = None,
    *,
    preserve_rng_state: bool = True,
    **kwargs: Any,
) -> Any:
    """Return ``functions`` applied one after the other, in ``segments`` of which all but the last are checkpointed.

    Args:
        functions: an ``nn.Sequential`` or a list.
        segments: into how many pieces of equal length to cut them.
        input: of the first function.
        use_reentrant: see :func:`checkpoint`.
        preserve_rng_state: see :func:`checkpoint`.
        kwargs: none.

    Raises:
        ValueError: there is an unknown keyword, or ``segments`` is not between 1 and the number of functions.
    """
    if kwargs:
        raise ValueError(f"checkpoint_sequential() does not know the keywords {', '.join(kwargs)}")
    parts = list(functions)
    if not 1 <= segments <= len(parts):
        raise ValueError(
            f"segments must be positive and at most the number of functions, {len(parts)}; got {segments}"
        )
    size = len(parts) // segments

    def run(part: list[Callable[..., Any]]) -> Callable[[Any], Any]:
        def through(x: Any) -> Any:
            for f in part:
                x = f(x)
            return x

        return through

    begin = 0
    for _ in range(segments - 1):
        part, begin = parts[begin : begin + size], begin + size
        input = checkpoint(
            run(part), input, use_reentrant=use_reentrant, preserve_rng_state=preserve_rng_state
        )
    return run(parts[begin:])(input)


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
