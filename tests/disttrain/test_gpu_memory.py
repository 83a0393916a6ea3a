"""The error of a GPU that is full, on a stand-in for CuPy's memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import cuda_shim
import pytest

import disttrain as dt
from disttrain import gpu_memory

GIB = 1 << 30


class Full(MemoryError):
    """In place of ``cupy.cuda.memory.OutOfMemoryError``."""


class Pool:
    """Has room for a GiB."""

    def malloc(self, nbytes: int) -> Any:
        if nbytes > GIB:
            raise Full(nbytes)
        size = -nbytes // 512 * -512
        return SimpleNamespace(ptr=4096, mem=SimpleNamespace(size=size, device_id=1))

    def used_bytes(self) -> int:
        return 60 * GIB

    def total_bytes(self) -> int:
        return 70 * GIB

    def get_limit(self) -> int:
        return 0


def stand_in() -> Any:
    pool = Pool()
    cuda = SimpleNamespace(
        allocator=pool.malloc,
        memory=SimpleNamespace(OutOfMemoryError=Full),
        UnownedMemory=lambda ptr, size, owner, device_id: SimpleNamespace(size=size, owner=owner),
        MemoryPointer=lambda mem, offset: SimpleNamespace(mem=mem, offset=offset),
        Device=lambda: SimpleNamespace(id=1, mem_info=(1 * GIB, 80 * GIB)),
    )
    cuda.get_allocator = lambda: cuda.allocator
    cuda.set_allocator = lambda allocator: setattr(cuda, "allocator", allocator)
    return SimpleNamespace(cuda=cuda, get_default_memory_pool=lambda: pool)


def test_the_error_says_what_was_asked_and_who_holds_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = stand_in()
    held = {"parameters": 10 * GIB, "saved for backward by conv2d": 40 * GIB}
    monkeypatch.setattr("disttrain.memory.holders", lambda counts: held)

    gpu_memory.look_after(cupy)
    gpu_memory.look_after(cupy)  # which is done at each use

    assert cupy.cuda.allocator(100).mem.size == 512
    with pytest.raises(dt.cuda.OutOfMemoryError) as raised:
        cupy.cuda.allocator(2 * GIB)
    assert isinstance(raised.value, RuntimeError)  # as PyTorch's
    assert isinstance(raised.value, MemoryError)  # as CuPy's
    assert str(raised.value).splitlines() == [
        "out of memory: 2.0 GiB were asked for on cuda:1, which has 80.0 GiB, 1.0 GiB of it free",
        "  60.0 GiB are in use by this process:",
        "        40.0 GiB  saved for backward by conv2d",
        "        10.0 GiB  parameters",
        "        10.0 GiB  arrays of no tensor: states of optimizers, buckets, workspace",
        "  10.0 GiB are in its pool, in pieces that are too small or belong to other streams; "
        "disttrain.cuda.empty_cache() gives them back",
        "  9.0 GiB are others': CUDA itself, libraries, other processes",
    ]


def test_an_allocator_of_the_users_stays() -> None:
    cupy = stand_in()
    mine = Pool().malloc
    cupy.cuda.set_allocator(mine)

    gpu_memory.look_after(cupy)

    assert cupy.cuda.allocator == mine


def test_the_most_that_was_in_use_is_known() -> None:
    cupy = stand_in()
    gpu_memory.look_after(cupy)
    counted = gpu_memory.usage[1]
    counted.reset_peak()
    before = counted.used

    first, second = cupy.cuda.allocator(100), cupy.cuda.allocator(1024)
    assert (counted.used - before, counted.peak - before) == (1536, 1536)
    del second
    third = cupy.cuda.allocator(512)
    assert (counted.used - before, counted.peak - before) == (1024, 1536)
    counted.reset_peak()
    assert counted.peak - before == 1024
    view = third.mem
    del first, third
    assert counted.used - before == 512  # a view keeps it
    del view
    assert counted.used == before


def test_what_threads_take_and_give_back_is_counted() -> None:
    counted = gpu_memory.Usage()

    def take_and_give(_: int) -> None:
        for _ in range(2000):
            counted.take(3)
            counted.give_back(3)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(take_and_give, range(4)))

    assert counted.used == 0
    assert 3 <= counted.peak <= 12


@pytest.mark.gpu
def test_the_most_that_was_in_use_of_a_gpu() -> None:
    if reason := cuda_shim.no_gpu():
        pytest.skip(reason)
    kept = dt.zeros(1 << 20, device="cuda")
    dt.cuda.reset_peak_memory_stats()
    before = dt.cuda.memory_allocated()

    dt.zeros(1 << 21, device="cuda")

    assert kept.nbytes <= dt.cuda.memory_allocated() == before <= dt.cuda.memory_reserved()
    assert dt.cuda.max_memory_allocated() - before >= 4 << 21
