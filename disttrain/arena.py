"""Fixed memory for the arrays that a replayed step makes: which of them may share it, and where each lies.

The first replay gets memory as ever, and notes when each array was made and when nobody held it any more. Arrays whose
times do not overlap share memory from then on. What lives on beyond the replay, a result or a gradient that somebody
keeps, is no part of it and is made anew each time.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from disttrain.kernels import buffers
from disttrain.kernels.arrays import Array

_ALIGNMENT = 64
"""Bytes: a line of the cache, and the widest vectors."""


class _Request(NamedTuple):
    """An array that a replay asked for, and the fixed memory that it gets; none if it lives on."""

    shape: tuple[int, ...]
    dtype: Any
    array: Array | None


_NOTHING = _Request((-1,), None, None)
"""What nobody asks for."""


class Arena:
    """Runs a step whose kernels find their memory where it was in the last replay.

    Args:
        step: takes the arrays of the arguments, and returns those of the results. Given arguments of the same shapes
            it asks :mod:`disttrain.kernels.buffers` for the same arrays in the same order.
    """

    def __init__(self, step: Callable[..., tuple[Array, ...]]) -> None:
        self._step = step
        self._requests: list[_Request] | None = None
        self.nbytes = 0
        """Of the fixed memory; 0 before the first replay."""

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        """Run the step."""
        if self._requests is None:
            return self._note(arrays)
        with buffers.taken_from(self._given(self._requests)):
            return self._step(*arrays)

    def _given(self, requests: Sequence[_Request]) -> buffers.Source:
        """Return a source of fixed memory, as long as it is asked for what the noted replay asked for."""
        following = itertools.chain(requests, itertools.repeat(_NOTHING)).__next__

        def give(shape: Any, dtype: Any) -> Array:
            nonlocal following
            known_shape, known_dtype, array = following()
            if known_shape == shape and known_dtype == dtype:
                return np.empty(shape, dtype) if array is None else array
            following = itertools.repeat(_NOTHING).__next__
            self._requests = None  # it computes in other parts than before, as after set_num_threads()
            return np.empty(shape, dtype)

        return give

    def _note(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        """Run the step with memory of the system, and lay out what it asked for."""
        noted = _Noted()
        with buffers.taken_from(noted):
            results = self._step(*arrays)
        offsets, self.nbytes = lay_out(noted.lives)
        _give_back_freed_memory()
        memory = np.empty(self.nbytes + _ALIGNMENT, np.uint8)
        begin = -memory.ctypes.data % _ALIGNMENT
        self._requests = [
            _Request(shape, dtype, None if at is None else _array(memory, begin + at, shape, dtype))
            for (shape, dtype), at in zip(noted.requests, offsets, strict=True)
        ]
        return results


class Life(NamedTuple):
    """How much memory an array takes, and between which requests it is held."""

    nbytes: int
    begin: int
    """The number of the request for it."""
    end: float
    """The number of the last request before nobody held it any more; infinity if it lived on."""


class _Noted:
    """Hands out memory of the system, and notes what is asked for and how long it is held."""

    def __init__(self) -> None:
        self.requests: list[tuple[Any, Any]] = []
        self._ends: dict[int, int] = {}
        self._sizes: list[int] = []
        self._references: list[weakref.ref[Any]] = []

    def __call__(self, shape: Any, dtype: Any) -> Array:
        number = len(self.requests)
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        memory = np.empty(size, np.uint8)
        self.requests.append((shape, dtype))
        self._sizes.append(size)

        def gone(_: object) -> None:
            self._ends[number] = len(self.requests) - 1

        self._references.append(weakref.ref(memory, gone))
        return _array(memory, 0, shape, dtype)

    @property
    def lives(self) -> list[Life]:
        """Of each array that was asked for."""
        return [Life(n, i, self._ends.get(i, np.inf)) for i, n in enumerate(self._sizes)]


def _array(memory: Array, begin: int, shape: Any, dtype: Any) -> Array:
    """Return an array in memory (bytes) from ``begin`` on."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return memory[begin : begin + size].view(dtype).reshape(shape)


def lay_out(lives: Sequence[Life]) -> tuple[list[int | None], int]:
    """Return where each array begins, ``None`` for those that live on, and how much memory they take together.

    The largest is placed first, each as low as those allow that are held at the same time (Pisarchyk and Lee 2020,
    "greedy by size").
    """
    offsets: list[int | None] = [None] * len(lives)
    order = sorted((i for i, x in enumerate(lives) if x.end != np.inf), key=lambda i: -lives[i].nbytes)
    begins, ends, lows, highs = (np.empty(len(order), np.int64) for _ in range(4))
    for placed, i in enumerate(order):
        size, begin, end = lives[i]
        met = np.flatnonzero((begins[:placed] <= end) & (ends[:placed] >= begin))
        low = 0
        for j in met[np.argsort(lows[met])]:
            if lows[j] >= low + size:
                break
            low = max(low, int(highs[j]))
        offsets[i] = low
        begins[placed], ends[placed] = begin, end
        lows[placed], highs[placed] = low, -(-(low + size) // _ALIGNMENT) * _ALIGNMENT
    return offsets, int(highs.max(initial=0))


@functools.cache
def _trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def _give_back_freed_memory() -> None:
    """Make glibc give what was freed back to the system, so that fixed memory takes its place and not one beside it."""
    trim = _trim()
    if trim is not None:
        trim(0)
