"""Messages through shared memory: here two threads of one process, each with a mapping of its own."""

import gc
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from disttrain.collectives import direct, memory
from disttrain.collectives.errors import PeerFailed
from disttrain.collectives.memory import NodeMemory
from disttrain.collectives.pipes import DIRECT_BYTES, RING_BYTES
from disttrain.collectives.shared import open_shared

PART = 16 << 20


def channels():
    """Return both ends of a channel between two processes that are one."""
    told = [b"", b""]
    met = threading.Barrier(2, timeout=30)

    def join(index):
        def gather(mine):
            told[index] = mine
            met.wait()
            everyone = list(told)
            met.wait()
            return everyone

        shared = NodeMemory(index, gather, PART)
        return open_shared(shared, range(2), gather)

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(join, range(2)))


@pytest.fixture(params=["fetched", "copied"])
def pair(request, monkeypatch, caplog):
    """Two ends; large arrays are fetched, or go through the ring where the system forbids that."""

    def refuse(*_):
        raise OSError("Operation not permitted")

    if request.param == "copied":
        monkeypatch.setattr(memory, "read_process", refuse)
    with caplog.at_level("INFO", "disttrain"):
        ends = channels()
    said = "large messages between processes of a node are copied twice: the system lets no process read another's"
    assert [said in text for text in caplog.messages] == [True] * (request.param == "copied")
    assert [end.memory.readable for end in ends] == [request.param == "fetched"] * 2
    return ends


def run(*requests):
    """Advance requests in turn until all have completed."""
    left = list(requests)
    for _ in range(10_000):
        left = [request for request in left if not request()]
        if not left:
            return
    raise AssertionError(f"{len(left)} requests did not complete")


def some(seed, nbytes):
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


SIZES = (0, 1, 88, 3, RING_BYTES - 1, DIRECT_BYTES, 0, 5, 3 * RING_BYTES + 17, 88, DIRECT_BYTES - 1, 5 << 20)


def test_arrays_of_any_size_come_in_the_order_sent_both_ways_at_once(pair):
    sent = [[some([end, k], n) for k, n in enumerate(SIZES)] for end in range(2)]
    got = [[np.zeros(n, np.uint8) for n in SIZES] for _ in range(2)]

    run(
        *(
            pair[end].exchange([(1 - end, x) for x in sent[end]], [(1 - end, x) for x in got[end]])
            for end in range(2)
        )
    )

    for end in range(2):
        for x, y in zip(sent[end], got[1 - end], strict=True):
            np.testing.assert_array_equal(x, y)


def test_lanes_do_not_wait_for_each_other(pair):
    early, late = np.zeros(88, np.uint8), np.zeros(300_000, np.uint8)
    waits = pair[1].exchange([], [(0, late)], 7)
    assert not waits()

    run(pair[0].exchange([(1, some(1, 88))], [], 3), pair[1].exchange([], [(0, early)], 3))
    assert not waits()
    run(pair[0].exchange([(1, some(2, 300_000))], [], 7), waits)

    np.testing.assert_array_equal(early, some(1, 88))
    np.testing.assert_array_equal(late, some(2, 300_000))


def test_what_is_fetched_has_not_been_sent_before(pair):
    """The sender may write its array again once its request has completed, and no earlier."""
    sends = pair[0].exchange([(1, some(1, 1 << 20))], [])
    assert not sends()

    out = np.zeros(1 << 20, np.uint8)
    run(pair[1].exchange([], [(0, out)]), sends)

    np.testing.assert_array_equal(out, some(1, 1 << 20))


def narrowed(pair):
    """Return both ends of a new channel between the two."""
    (request, made), (theirs, made_there) = (end.narrow([0, 1]) for end in pair)
    run(request, theirs)
    return [made(), made_there()]


def free(end):
    gc.collect()
    end.memory._collect()
    return sum(nbytes for _, nbytes in end.memory._free)


def test_a_closed_channel_gives_back_its_memory(pair):
    def use():
        ends = narrowed(pair)
        both = [(i, end, some(i, 99), np.zeros(99, np.uint8)) for i, end in enumerate(ends)]
        run(*(end.exchange([(1 - i, x)], [(1 - i, y)]) for i, end, x, y in both))
        run(*[end.leave() for end in ends])
        for end in ends:
            end.close()

    use()  # the first time it makes rings between the two, which stay
    before = [free(end) for end in pair]
    use()

    assert [free(end) for end in pair] == before


def test_who_has_left_touches_the_memory_of_others_no_more(pair):
    ends = narrowed(pair)
    late = ends[1].exchange([], [(0, np.zeros(8, np.uint8))], 5)

    run(*[end.leave() for end in ends])
    ends[0].exchange([(1, some(1, 8))], [], 5)

    assert not late()


def test_a_sender_that_has_gone_is_a_peers_failure():
    here, there = channels()
    gone = subprocess.Popen(["true"])
    gone.wait()
    there.memory._pids[0] = gone.pid
    here.exchange([(1, some(1, DIRECT_BYTES))], [])

    with pytest.raises(PeerFailed, match=r"another process went away .* \(\[Errno 3\] the memory of process"):
        run(there.exchange([], [(0, np.zeros(DIRECT_BYTES, np.uint8))]))


def test_memory_that_may_not_be_read_is_an_error_with_the_reason():
    with pytest.raises(OSError, match=r"the memory of process \d+ cannot be read: Bad address"):
        direct.read_process(os.getpid(), 8, np.zeros(16, np.uint8))
