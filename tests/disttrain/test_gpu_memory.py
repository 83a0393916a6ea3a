"""The error of a GPU that is full, on a stand-in for CuPy's memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import disttrain as dt
from disttrain import gpu_memory

GIB = 1 << 30


class Full(MemoryError):
    """In place of ``cupy.cuda.memory.OutOfMemoryError``."""


class Pool:
    """Has room for a GiB."""

    def malloc(self, nbytes: int) -> str:
        if nbytes > GIB:
            raise Full(nbytes)
        return f"{nbytes} bytes"

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
        Device=lambda: SimpleNamespace(id=1, mem_info=(1 * GIB, 80 * GIB)),
    )
    cuda.get_allocator = lambda: cuda.allocator
    cuda.set_allocator = lambda allocator: setattr(cuda, "allocator", allocator)
    return SimpleNamespace(cuda=cuda, get_default_memory_pool=lambda: pool)


def test_the_error_says_what_was_asked_and_who_holds_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = stand_in()
    held = {"parameters": 10 * GIB, "saved for backward by conv2d": 40 * GIB}
    monkeypatch.setattr("disttrain.memory.holders", lambda counts: held)

    gpu_memory.explain_want(cupy)
    gpu_memory.explain_want(cupy)  # which is done at each use

    assert cupy.cuda.allocator(100) == "100 bytes"
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

    gpu_memory.explain_want(cupy)

    assert cupy.cuda.allocator == mine
