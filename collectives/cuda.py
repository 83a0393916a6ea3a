"""What collectives ask of CuPy about one GPU: streams, events, pinned memory and copies. Nothing else asks for more.

Everything on a GPU is put into the order of a *stream* and is over some time later; an *event* is a place in that order
which another stream can wait for. Neither ever makes the CPU wait here.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from disttrain.collectives.transport import Request
from disttrain.kernels.arrays import Array, address, on_gpu

Stream = Any
"""``cupy.cuda.Stream``"""
Event = Any
"""``cupy.cuda.Event``"""


class Gpu:
    """One GPU, as CuPy sees it.

    Args:
        index: CuPy's number for it.
    """

    def __init__(self, index: int) -> None:
        import cupy

        self.index = index
        self.xp = cupy
        self._cuda = cupy.cuda

    def new_stream(self) -> Stream:
        """Return a stream that waits for no other, not even for the default one."""
        with self._cuda.Device(self.index):
            return self._cuda.Stream(non_blocking=True)

    def current_stream(self) -> Stream:
        """Return the stream into which the calling thread puts what it asks of this GPU."""
        with self._cuda.Device(self.index):
            return self._cuda.get_current_stream()

    def mark(self, stream: Stream | None = None) -> Event:
        """Return the event of having come to the present end of ``stream`` (by default the calling thread's)."""
        with self._cuda.Device(self.index):
            event = self._cuda.Event(disable_timing=True)
            event.record(self._cuda.get_current_stream() if stream is None else stream)
        return event

    def follow(self, event: Event) -> None:
        """Let what the calling thread asks of this GPU from now on wait for ``event``."""
        self.current_stream().wait_event(event)

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        """Within the block, what the calling thread asks goes to this GPU and into ``stream``."""
        with self._cuda.Device(self.index), stream:
            yield

    def pinned(self, nbytes: int) -> Array:
        """Return new bytes of host memory that copies reach without the CPU's help."""
        import cupyx

        return cupyx.empty_pinned(nbytes, "uint8")

    def copy_rows(self, x: Array, out: Array, stream: Stream) -> None:
        """Put a copy between host and GPU into ``stream``, of arrays of two axes whose rows are contiguous each."""
        runtime = self._cuda.runtime
        kind = runtime.memcpyDeviceToHost if on_gpu(x) else runtime.memcpyHostToDevice
        for row, target in zip(x, out, strict=True):
            runtime.memcpyAsync(address(target), address(row), row.nbytes, kind, stream.ptr)

    def identity(self) -> bytes:
        """Return 16 bytes that no other GPU (or part of one, under MIG) has."""
        runtime = self._cuda.runtime
        uuid = runtime.getDeviceProperties(self.index)["uuid"]
        try:
            with open("/proc/sys/kernel/random/boot_id") as file:
                machine = file.read()
        except OSError:
            machine = os.uname().nodename
        words = (machine.strip(), runtime.deviceGetPCIBusId(self.index), repr(uuid))
        return hashlib.sha256("\n".join(words).encode()).digest()[:16]


def over(event: Event) -> Request:
    """Return what asks whether the GPU has come to ``event``."""
    return lambda: bool(event.done)
