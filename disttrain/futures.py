"""Results that are not there yet, as ``torch.futures``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from disttrain import missing

__all__ = ["Future", "collect_all", "wait_all"]


class Future:
    """A result that will be there once :meth:`set_result` has been called, or what it comes from has completed.

    A future of communication (``Work.get_future()``), and those made from it by :meth:`then`, make progress where
    somebody waits for them or asks :meth:`done`.

    Args:
        devices: accepted as PyTorch's; nothing is ordered by it here.
    """

    def __init__(self, *, devices: Any = None) -> None:
        self._advance: Callable[[bool], None] | None = None
        """Completes the future if it can (true: waits until it can)."""
        self._lock = threading.Lock()
        self._completed = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Future], Any]] = []

    def done(self) -> bool:
        """Return whether the result, or an error, is there."""
        if not self._completed.is_set() and self._advance is not None:
            self._advance(False)
        return self._completed.is_set()

    def wait(self) -> Any:
        """Return the result once it is there, or raise the error in its place."""
        if not self._completed.is_set() and self._advance is not None:
            self._advance(True)
        self._completed.wait()
        return self.value()

    def value(self) -> Any:
        """Return the result, or raise the error in its place.

        Raises:
            RuntimeError: it is not there yet.
        """
        if not self._completed.is_set():
            raise RuntimeError("the result is not there yet; call wait()")
        if self._error is not None:
            raise self._error
        return self._value

    def then(self, callback: Callable[[Future], Any]) -> Future:
        """Return the future of ``callback(self)``, which is called once this one is there."""
        child = Future()
        child._advance = self._follow

        def complete(parent: Future) -> None:
            try:
                value = callback(parent)
            except Exception as error:
                child.set_exception(error)
            else:
                child.set_result(value)

        self.add_done_callback(complete)
        return child

    def _follow(self, wait: bool) -> None:
        if not self.done() and wait:
            if self._advance is not None:
                self._advance(True)
            self._completed.wait()

    def add_done_callback(self, callback: Callable[[Future], Any]) -> None:
        """Call ``callback(self)`` once the result is there; at once if it is."""
        with self._lock:
            if not self._completed.is_set():
                self._callbacks.append(callback)
                return
        callback(self)

    def set_result(self, result: Any) -> None:
        """Let ``result`` be there.

        Raises:
            RuntimeError: there is one already.
        """
        self._complete(result, None)

    def set_exception(self, result: BaseException) -> None:
        """Let :meth:`wait` raise ``result``.

        Raises:
            TypeError: it is no exception.
            RuntimeError: there is a result already.
        """
        if not isinstance(result, BaseException):
            raise TypeError(f"set_exception() takes an exception, got {type(result).__name__}")
        self._complete(None, result)

    def _complete(self, value: Any, error: BaseException | None) -> None:
        with self._lock:
            if self._completed.is_set():
                raise RuntimeError("the future has its result already")
            self._value, self._error = value, error
            self._completed.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)


def collect_all(futures: Iterable[Future]) -> Future:
    """Return a future of the list of ``futures``, there once all of them are."""
    parts = list(futures)
    whole = Future()

    def advance(wait: bool) -> None:
        for part in parts:
            part._follow(wait)

    def count(_: Future) -> None:
        if all(part._completed.is_set() for part in parts) and not whole._completed.is_set():
            whole.set_result(parts)

    whole._advance = advance
    if not parts:
        whole.set_result(parts)
    for part in parts:
        part.add_done_callback(count)
    return whole


def wait_all(futures: Iterable[Future]) -> list[Any]:
    """Return the results of all ``futures`` once they are there; raise the first error among them."""
    return [future.wait() for future in collect_all(futures).wait()]


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
