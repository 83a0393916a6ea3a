"""A call that was started with ``async_op=True``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from disttrain.collectives.communicator import Work as Started
from disttrain.collectives.errors import CollectiveTimeout
from disttrain.distributed.groups import seconds
from disttrain.futures import Future
from disttrain.tensors import Tensor

_SPIN_S = 1e-3


class Work:
    """A call on its way. Its tensors must stay untouched until :meth:`wait` has returned.

    Args:
        calls: what was started.
        finish: writes what has come into the tensors.
        tensors: those that the call writes.
    """

    def __init__(
        self,
        calls: Sequence[Started],
        finish: Callable[[], None],
        tensors: Sequence[Tensor],
        source: int = -1,
    ) -> None:
        self._calls = calls
        self._finish: Callable[[], None] | None = finish
        self._tensors = list(tensors)
        self._source = source

    def wait(self, timeout: timedelta | float | None = None) -> bool:
        """Return True once the result is there.

        Args:
            timeout: how long to wait at most; by default the group's.

        Raises:
            CollectiveTimeout: it took longer.
        """
        if timeout is not None and not until(self.is_completed, limit := seconds(timeout)):
            late = next((call for call in self._calls if not call.done), self._calls[-1])
            raise CollectiveTimeout(f"{late.name} has not completed within {limit:g} s")
        for call in self._calls:
            call.wait()
        self._write()
        return True

    def _write(self) -> None:
        if self._finish is not None:
            self._finish()
            self._finish = None

    def synchronize(self) -> None:
        """Return once the result is there."""
        self.wait()

    def is_completed(self) -> bool:
        """Return whether the call has completed, or failed; its result is there then, without :meth:`wait`."""
        if not all(call.done for call in self._calls):
            return False
        if all(call.error is None for call in self._calls):
            self._write()
        return True

    def exception(self) -> BaseException | None:
        """Return what :meth:`wait` raises, ``None`` if it does not, or not yet."""
        return next((call.error for call in self._calls if call.done and call.error is not None), None)

    def is_success(self) -> bool:
        """Return whether the call has completed without an error."""
        return self.is_completed() and self.exception() is None

    def result(self) -> list[Tensor]:
        """Wait, and return the tensors that the call has written."""
        self.wait()
        return self._tensors

    def source_rank(self) -> int:
        """Return the rank of the world from which a received message came."""
        if self._source < 0:
            raise RuntimeError("source_rank() is for irecv()")
        return self._source

    def get_future(self) -> Future:
        """Return the future of :meth:`result`; it makes progress where somebody waits for it or asks it."""
        future = Future()

        def advance(wait: bool) -> None:
            if not wait and not self.is_completed():
                return
            try:
                result = self.result()
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        future._advance = advance
        return future


def until(ready: Callable[[], bool], limit: float) -> bool:
    """Wait for ``ready()``, for ``limit`` seconds at most; return whether it is."""
    start = time.monotonic()
    while not ready():
        waited = time.monotonic() - start
        if waited > limit:
            return False
        if waited < _SPIN_S:
            os.sched_yield()
        else:
            time.sleep(_SPIN_S)
    return True
