"""Batches on their way to a GPU: through pinned memory, on a stream of their own, one batch ahead.

The memory on the GPU is taken in the order of the stream that will use the batch, so that it may be given up there; the
copies wait for that point, and the user's stream waits for the copies before the batch is handed out. The CPU waits for
neither, but at the end of an epoch for copies that are still on their way.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from disttrain.collectives.cuda import Gpu, Stream
from disttrain.data.collate import map_containers
from disttrain.devices import pin
from disttrain.kernels.arrays import Array
from disttrain.tensors import Tensor


def pinned(batch: Any) -> Any:
    """Return a batch with the tensors of the host in pinned memory, as PyTorch's ``pin_memory=True`` does."""
    if isinstance(batch, Tensor):
        return Tensor._of(pin(batch._array)) if isinstance(batch._array, np.ndarray) else batch
    if callable(getattr(batch, "pin_memory", None)):
        return batch.pin_memory()
    return map_containers(pinned, batch)


class Pinned:
    """An iterator of (batch, number of samples), the batches in pinned memory."""

    def __init__(self, batches: Iterator[tuple[Any, int]]) -> None:
        self._batches = batches

    def __iter__(self) -> Pinned:
        return self

    def __next__(self) -> tuple[Any, int]:
        batch, samples = next(self._batches)
        return pinned(batch), samples


class Staged:
    """An iterator of (batch, number of samples), the batches on a GPU.

    While one is used the next is read and on its way. An error of reading is raised where its batch is asked for.

    Args:
        batches: on the host.
        index: CuPy's number for the GPU.
    """

    def __init__(self, batches: Iterator[tuple[Any, int]], index: int) -> None:
        self._batches = batches
        self._gpu = Gpu(index)
        self._stream = self._gpu.new_stream()
        self._next: tuple[Any, int, Any] | Exception | None = None
        self._flights: deque[tuple[Any, list[Array]]] = deque()
        """Copies that may not be over: the event of their end, and the memory that they are made from."""
        # No __del__, before which the garbage collection may have ended the stream.
        weakref.finalize(self, _drain, os.getpid(), self._stream, self._flights).atexit = False

    def __iter__(self) -> Staged:
        return self

    def __next__(self) -> tuple[Any, int]:
        now = self._read() if self._next is None else self._next
        # After the last batch, and after an error, the one that follows is asked for only when the loop goes on.
        self._next = None
        if isinstance(now, Exception):
            raise now
        self._next = self._read()
        batch, samples, arrived = now
        self._gpu.follow(arrived)
        return batch, samples

    def _read(self) -> tuple[Any, int, Any] | Exception:
        """Read a batch and send it on its way."""
        try:
            batch, samples = next(self._batches)
        except Exception as error:
            return error
        while self._flights and self._flights[0][0].done:
            self._flights.popleft()
        sources: list[Array] = []
        targets: list[Array] = []
        moved = self._moved(batch, sources, targets)
        ready = self._gpu.mark()
        with self._gpu.on(self._stream):
            self._gpu.follow(ready)
        for source, target in zip(sources, targets, strict=True):
            self._gpu.copy_rows(source.reshape(1, -1), target.reshape(1, -1), self._stream)
        arrived = self._gpu.mark(self._stream)
        self._flights.append((arrived, sources))
        return moved, samples, arrived

    def _moved(self, batch: Any, sources: list[Array], targets: list[Array]) -> Any:
        """Return the batch in new memory of the GPU, and note what is to be copied there."""
        if not isinstance(batch, Tensor):
            return map_containers(lambda part: self._moved(part, sources, targets), batch)
        if not isinstance(batch._array, np.ndarray):
            return batch
        with self._gpu.on(self._gpu.current_stream()):
            target = self._gpu.xp.empty(batch._array.shape, batch._array.dtype)
        if target.size:
            sources.append(pin(np.ascontiguousarray(batch._array)))
            targets.append(target)
        return Tensor._of(target)


def _drain(process: int, stream: Stream, flights: deque[tuple[Any, list[Array]]]) -> None:
    """Return when the copies are over: before that, none of their memory may be given up.

    A process that is forked meanwhile, as a loader's worker is, has the memory but nothing of the GPU: there, nobody
    would ever answer.
    """
    if os.getpid() != process:
        return
    stream.synchronize()
    flights.clear()
