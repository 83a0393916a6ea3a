"""Memory that processes share, here one process alone with itself: who gets what, and when it is free again."""

import gc
import mmap
import os

import numpy as np
import pytest

from disttrain.collectives import memory
from disttrain.collectives.memory import NodeMemory, Unshared

PAGE = mmap.PAGESIZE


def alone(nbytes, spare=0):
    """The memory of one process, which tells itself what it tells all."""
    return NodeMemory(0, lambda mine: [mine], nbytes, spare)


@pytest.fixture
def shared():
    return alone(9 * PAGE)  # one page is taken


def test_arrays_lie_in_the_part_and_are_seen_by_their_offset(shared):
    x = shared.empty((3, 5), np.float32)
    x[...] = 7

    seen = shared.part(0, shared.offset_of(x), x.nbytes).view(np.float32)

    assert x.shape == (3, 5)
    assert x.flags.c_contiguous
    assert seen.tolist() == [7.0] * 15
    assert shared.offset_of(x[1]) == shared.offset_of(x) + 20
    assert shared.offset_of(np.ones(3)) == -1


def test_two_arrays_never_overlap_and_what_is_freed_is_used_again(shared):
    arrays = [shared.empty(PAGE * k, np.uint8) for k in (1, 2, 1, 3)]
    for i, x in enumerate(arrays):
        x[...] = i
    assert [set(x.tolist()) for x in arrays] == [{0}, {1}, {2}, {3}]
    assert shared.empty(PAGE * 2, np.uint8) is None
    first = shared.offset_of(arrays[0])

    del x, arrays[:3]
    gc.collect()

    again = shared.empty(PAGE * 4, np.uint8)  # the three are one again
    assert shared.offset_of(again) == first
    assert set(arrays[0].tolist()) == {3}


def test_a_view_keeps_the_memory(shared):
    x = shared.empty(PAGE * 8, np.uint8)
    view = x.reshape(2, -1)[1, 5:].view(np.int8)
    del x
    gc.collect()

    assert shared.empty(1, np.uint8) is None
    del view
    gc.collect()
    assert shared.empty(PAGE * 8, np.uint8) is not None


def test_arrays_outlive_the_memory_object():
    x = alone(2 * PAGE).empty(3, np.float64)
    gc.collect()

    x[...] = 5

    assert x.sum() == 15


def test_empty_arrays_have_a_place(shared):
    assert shared.empty(0, np.float32).shape == (0,)
    assert shared.empty((), np.float32).shape == ()


def test_a_forked_child_gets_nothing(shared):
    child = os.fork()
    if child == 0:
        os._exit(0 if shared.empty(1, np.uint8) is None else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_memory_of_a_stranger_is_not_mapped():
    descriptor = os.memfd_create("stranger")
    os.ftruncate(descriptor, PAGE)
    with pytest.raises(Unshared, match="not the memory of a process of this job"):
        memory._map(os.getpid(), descriptor, PAGE, b"x" * 16)
    os.close(descriptor)


def test_why_it_cannot_be_is_said(monkeypatch):
    monkeypatch.setattr(memory.platform, "machine", lambda: "aarch64")

    with pytest.raises(Unshared, match="order of stores of x86-64, and this is aarch64"):
        alone(PAGE)


def test_what_is_kept_is_not_free_before_it_is_released(shared):
    x = shared.empty(PAGE * 8, np.uint8)
    shared.keep(x)
    kept = id(x)
    del x
    gc.collect()
    assert shared.empty(1, np.uint8) is None

    shared.release(shared._kept[kept])
    gc.collect()

    assert shared.empty(PAGE * 8, np.uint8) is not None


def test_arrays_leave_what_is_spared_for_channels():
    shared = alone(9 * PAGE, spare=3 * PAGE)

    assert shared.empty(PAGE * 6, np.uint8) is None
    arrays = [shared.empty(PAGE * k, np.uint8) for k in (2, 3)]
    assert shared.empty(1, np.uint8) is None
    assert [x.size for x in arrays] == [PAGE * 2, PAGE * 3]
    taken = shared.take(PAGE * 3)
    assert shared.offset_of(taken) >= 0
    with pytest.raises(MemoryError, match="the memory that the processes of this node share is used up"):
        shared.take(1)


def test_others_than_its_user_cannot_open_the_memory():
    descriptor = memory._anonymous_file(PAGE)

    assert os.fstat(descriptor).st_mode & 0o777 == 0o600
    os.close(descriptor)
