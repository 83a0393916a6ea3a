"""Whether operations are recorded: ``no_grad``, ``enable_grad``, ``inference_mode`` and what stands behind them.

The mode of a thread is one value, ``context.grad_enabled``, because every operation reads it: ``True`` and ``False``
say all there is to say in nearly every program; a :class:`Recording` says more (inference, anomaly checks, hooks on
what is saved), and only then does an operation look further.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from contextvars import Token
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast

from disttrain.context import grad_enabled

if TYPE_CHECKING:
    from disttrain.nodes import Node
    from disttrain.tape import Tape

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Watch(Protocol):
    """Sees each recorded operation: anomaly mode, and the audit of a run."""

    def forward(self, node: Node, inputs: Sequence[Any], outs: Sequence[Any]) -> None:
        """Look at a new node, at the arrays that it was called with and at those that it made."""

    def visiting(self, visit: Callable[..., Sequence[Any]]) -> Callable[..., Sequence[Any]]:
        """Return ``visit(node, gradient, ...)``, which gives the gradients of its arguments, with a look at them."""


Hooks = tuple[Callable[[Any], Any], Callable[[Any], Any]]
"""How a saved tensor is packed, and unpacked again."""


class Recording(NamedTuple):
    """A mode that is more than on or off; true where operations are recorded."""

    grad: bool
    inference: bool = False
    watch: Watch | None = None
    """What looks at each operation."""
    hooks: tuple[Hooks, ...] = ()
    """Of ``saved_tensors_hooks``, the innermost last."""
    tape: Tape | None = None
    """What writes down a step that is being captured; see ``disttrain.capture``."""

    def __bool__(self) -> bool:
        return self.grad and not self.inference


Mode = bool | Recording


def changed(**what: Any) -> Mode:
    """Return the mode of this thread with some fields of :class:`Recording` replaced."""
    mode: Mode = grad_enabled.get()
    if isinstance(mode, bool) and [*what] == ["grad"]:  # nearly always: each backward pass begins with it
        return what["grad"]  # type: ignore[no-any-return]
    new = (Recording(mode) if isinstance(mode, bool) else mode)._replace(**what)
    return new.grad if new == Recording(new.grad) else new


def current_tape() -> Tape | None:
    """Return what captures the step that this thread is in, if it is being captured."""
    mode: Mode = grad_enabled.get()
    return None if mode is True or mode is False else mode.tape


def replayed(function: _Function) -> _Function:
    """Let a captured step call ``function`` again at each replay; use as a decorator.

    For what a step does beside arithmetic on arrays: to draw random numbers, to count, to change what Python holds.
    Inside nothing is captured, so that it may read values, and decide by them.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        tape = current_tape()
        return function(*args, **kwargs) if tape is None else tape.call(function, args, kwargs)

    return cast(_Function, call)


def reads_values(what: str) -> None:
    """Refuse to hand values of a tensor to Python where a step is being captured.

    Raises:
        CaptureError: one is; names the user's line.
    """
    tape = current_tape()
    if tape is not None:
        tape.refuse(
            f"{what} hands values of a tensor to Python, which would be those of this call at every replay; return "
            f"the tensor from the step and read it outside"
        )


class Counter(list[int]):
    """The version counter of the memory of inference tensors, which counts nothing and so marks them."""


class Lender(list[int]):
    """The version counter of a parameter whose memory is there only while it is needed, and of all views of it.

    What an operation saves of that memory for backward is not kept but asked for again.
    """

    def lend(self, array: Any) -> Any:
        """Return what to save in place of ``array``: itself, or something that is no array: a ``Lent``."""
        raise NotImplementedError


def new_counter() -> list[int]:
    """Return the version counter of new memory."""
    mode: Mode = grad_enabled.get()
    return Counter([0]) if mode is not True and mode is not False and mode.inference else [0]


class Switch:
    """A mode for the length of a ``with`` block or of each call of a decorated function.

    A decorated generator runs in the mode, and what uses it does not. Objects may be used again, and nest.
    """

    def __init__(self) -> None:
        self._tokens: list[Token[Any]] = []

    def _mode(self) -> Mode:
        raise NotImplementedError

    def _again(self) -> Switch:
        """Return another such object: calls of a decorated function may overlap in threads."""
        return type(self)()

    def __enter__(self) -> Any:
        self._tokens.append(grad_enabled.set(self._mode()))

    def __exit__(self, *exc: object) -> None:
        grad_enabled.reset(self._tokens.pop())

    def __call__(self, func: Any) -> Any:
        if inspect.isclass(func):
            type.__setattr__(func, "__init__", self(func.__init__))
            return func
        if inspect.isgeneratorfunction(func):
            return self._generator(func)

        @functools.wraps(func)
        def called(*args: Any, **kwargs: Any) -> Any:
            with self._again():
                return func(*args, **kwargs)

        return called

    def _generator(self, func: Any) -> Any:
        @functools.wraps(func)
        def called(*args: Any, **kwargs: Any) -> Any:
            with self._again():
                running = func(*args, **kwargs)
            step: Callable[[], Any] = functools.partial(next, running)
            while True:
                try:
                    with self._again():
                        item = step()
                except StopIteration as end:
                    return end.value
                try:
                    sent = yield item
                    step = functools.partial(running.send, sent)
                except GeneratorExit:
                    with self._again():
                        running.close()
                    raise
                except BaseException as e:
                    step = functools.partial(running.throw, e)

        return called


class Immediate(Switch):
    """A mode that begins when the object is made, and ends with the ``with`` block if there is one."""

    def __init__(self) -> None:
        super().__init__()
        self._tokens.append(grad_enabled.set(self._mode()))
        self._at_once = True

    def __enter__(self) -> Any:
        if not self._at_once:
            super().__enter__()
        self._at_once = False

    def __call__(self, func: Any) -> Any:
        if self._at_once:  # a decorator switches nothing yet
            self._at_once = False
            grad_enabled.reset(self._tokens.pop())
        return super().__call__(func)

    def _again(self) -> Switch:
        again = type(self).__new__(type(self))
        again.__dict__ = self.__dict__ | {"_tokens": [], "_at_once": False}
        return again


class set_grad_enabled(Immediate):
    """Switch recording on or off, at once and until the end of a ``with`` block, as ``torch.set_grad_enabled``.

    Raises:
        TypeError: ``mode`` is no bool.
    """

    def __init__(self, mode: bool) -> None:
        if not isinstance(mode, bool):
            raise TypeError(f"set_grad_enabled() needs True or False, got {mode!r}")
        self.mode = mode
        super().__init__()

    def _mode(self) -> Mode:
        return changed(grad=self.mode)


class _Set(Switch):
    mode: bool

    def _mode(self) -> Mode:
        return changed(grad=self.mode)

    def __new__(cls, func: Any = None) -> Any:
        return super().__new__(cls) if func is None else cls()(func)  # `@no_grad` without parentheses


class no_grad(_Set):
    """Record nothing in a ``with`` block or a decorated function, as ``torch.no_grad``."""

    mode = False


class enable_grad(_Set):
    """Record again inside :class:`no_grad`, as ``torch.enable_grad``."""

    mode = True


class inference_mode(Switch):
    """Record nothing, ever: what is made inside cannot take part in recording later, as ``torch.inference_mode``.

    The tensors made inside are inference tensors (``is_inference()``): they have no version counter, must not be
    changed in place outside, and an operation outside that would save one for backward raises ``RuntimeError``.
    ``inference_mode(False)`` inside ends it.
    """

    def __new__(cls, mode: Any = True) -> Any:
        if callable(mode):  # `@inference_mode` without parentheses
            return cls()(mode)
        return super().__new__(cls)

    def __init__(self, mode: bool = True) -> None:
        super().__init__()
        self.mode = mode

    def _mode(self) -> Mode:
        return changed(inference=self.mode, grad=not self.mode)

    def _again(self) -> Switch:
        again: Switch = inference_mode(self.mode)
        return again


def is_grad_enabled() -> bool:
    """Return whether operations are recorded in this thread."""
    mode: Mode = grad_enabled.get()
    return mode if isinstance(mode, bool) else mode.grad


def is_inference_mode_enabled() -> bool:
    """Return whether this thread is inside :class:`inference_mode`."""
    mode: Mode = grad_enabled.get()
    return not isinstance(mode, bool) and mode.inference
