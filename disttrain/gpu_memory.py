"""Memory of a GPU: when there is none left, the error says who has it."""

from __future__ import annotations

from typing import Any

from disttrain.errors import OutOfMemoryError
from disttrain.kernels.arrays import on_gpu

_MOST_NAMED = 8
"""So many holders are named."""


def explain_want(cupy: Any) -> None:
    """Have CuPy's allocator raise :class:`OutOfMemoryError` in place of its own, unless the user has set another."""
    pool = cupy.get_default_memory_pool()
    if cupy.cuda.get_allocator() != pool.malloc:
        return

    def allocate(nbytes: int) -> Any:
        try:
            return pool.malloc(nbytes)
        except cupy.cuda.memory.OutOfMemoryError as error:
            raise OutOfMemoryError(want(cupy, nbytes)) from error

    cupy.cuda.set_allocator(allocate)


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
