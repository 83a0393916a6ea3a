"""Memory of a GPU: how much of it is in use, and was at most; when there is none left, the error says who has it."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from disttrain.errors import OutOfMemoryError
from disttrain.kernels.arrays import on_gpu

_MOST_NAMED = 8
"""So many holders are named."""


class Usage:
    """The bytes that are in use of one GPU, and the most that were, which CuPy's pools do not keep."""

    def __init__(self) -> None:
        self._used = self._peak = 0
        self._freed: deque[int] = deque()
        """What has come back since; whoever frees memory, in any thread and wherever it is, only adds to this."""
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """Bytes in use."""
        with self._lock:
            return self._settled()

    @property
    def peak(self) -> int:
        """The most bytes that were in use since the start, or since :meth:`reset_peak`."""
        return self._peak

    def reset_peak(self) -> None:
        """Let the peak be what is in use now."""
        with self._lock:
            self._peak = self._settled()

    def take(self, nbytes: int) -> None:
        """Count bytes that somebody uses from now on."""
        with self._lock:
            self._used = self._settled() + nbytes
            self._peak = max(self._peak, self._used)

    def give_back(self, nbytes: int) -> None:
        """Count bytes that nobody uses any more."""
        self._freed.append(nbytes)

    def _settled(self) -> int:
        while self._freed:
            self._used -= self._freed.popleft()
        return self._used


usage: defaultdict[int, Usage] = defaultdict(Usage)
"""By number of the GPU."""


class _Held:
    """Owns memory of a pool, and says so when nobody wants it any more."""

    __slots__ = ("_memory", "_usage")

    def __init__(self, memory: Any, usage: Usage) -> None:
        self._memory, self._usage = memory, usage
        usage.take(memory.size)

    def __del__(self) -> None:
        self._usage.give_back(self._memory.size)


def allocator(cupy: Any, pool: Any) -> Callable[[int], Any]:
    """Return what allocates from a pool of CuPy's, counts what is in use, and explains why there is no more.

    What it returns raises :class:`OutOfMemoryError`.
    """
    cuda = cupy.cuda

    def allocate(nbytes: int) -> Any:
        try:
            got = pool.malloc(nbytes)
        except cuda.memory.OutOfMemoryError as error:
            raise OutOfMemoryError(want(cupy, nbytes)) from error
        memory = got.mem
        held = _Held(memory, usage[memory.device_id])
        return cuda.MemoryPointer(cuda.UnownedMemory(got.ptr, memory.size, held, memory.device_id), 0)

    return allocate


def look_after(cupy: Any) -> None:
    """Have CuPy allocate by :func:`allocator`, unless the user has set another."""
    pool = cupy.get_default_memory_pool()
    if cupy.cuda.get_allocator() == pool.malloc:
        cupy.cuda.set_allocator(allocator(cupy, pool))


def want(cupy: Any, nbytes: int) -> str:
    """Return in words that there were not ``nbytes`` left on the current GPU, and who holds what."""
    from disttrain.memory import holders, in_units

    device, pool = cupy.cuda.Device(), cupy.get_default_memory_pool()
    free, total = device.mem_info
    used, reserved, limit = pool.used_bytes(), pool.total_bytes(), pool.get_limit()
    held = holders(lambda x: on_gpu(x) and x.device.id == device.id)
    rest = used - sum(held.values())
    if rest > 0:
        held["arrays of no tensor: states of optimizers, buckets, workspace"] = rest
    lines = [
        f"out of memory: {in_units(nbytes)} were asked for on cuda:{device.id}, which has {in_units(total)}, "
        f"{in_units(free)} of it free",
        f"  {in_units(used)} are in use by this process:",
    ]
    largest = sorted(held.items(), key=lambda item: -item[1])
    lines += [f"    {in_units(size):>12}  {who}" for who, size in largest[:_MOST_NAMED] if size]
    if limit:
        lines.append(f"  {in_units(limit)} is the limit of its pool")
    if reserved > used:
        lines.append(
            f"  {in_units(reserved - used)} are in its pool, in pieces that are too small or belong to other streams; "
            f"disttrain.cuda.empty_cache() gives them back"
        )
    if total - free > reserved:
        lines.append(
            f"  {in_units(total - free - reserved)} are others': CUDA itself, libraries, other processes"
        )
    return "\n".join(lines)
