"""What becomes of operations that never come to their end."""

import gc
import threading
import weakref

import pytest

from disttrain.collectives.call import Call
from disttrain.collectives.errors import CollectiveTimeout
from disttrain.collectives.progress import Operation, Progress
from disttrain.collectives.scheduler import Baton


class Request:
    """A transfer that never completes; its buffers live as long as it does."""

    def __call__(self):
        return False


def waiting(call):
    request = Request()

    def steps():
        yield request, True

    operation = Operation("lane", [call], steps())
    return operation, weakref.ref(request)


@pytest.mark.timeout(20)
def test_buffers_of_an_operation_that_timed_out_are_kept_for_a_late_peer_to_write_into():
    progress = Progress()
    call = Call("barrier")
    operation, request = waiting(call)
    progress.submit(operation)
    (head,) = progress.heads()
    assert progress.abandon(head, head.since, CollectiveTimeout("too late"))
    progress.drive(lambda: call.finished)
    del head

    del operation
    gc.collect()

    assert isinstance(call.error, CollectiveTimeout)
    assert request() is not None
    progress.close()


@pytest.mark.timeout(20)
def test_an_operation_that_has_moved_on_in_the_meantime_is_not_abandoned():
    progress = Progress()
    call = Call("barrier")
    here = []

    def steps():
        yield lambda: bool(here), True

    progress.submit(Operation("lane", [call], steps()))
    (head,) = progress.heads()
    here.append("the other rank has come")

    assert not progress.abandon(head, head.since, CollectiveTimeout("too late"))

    progress.poll()
    assert call.finished
    assert call.error is None
    progress.close()


class Halting(dict):
    """Lanes that keep whoever adds one waiting in the middle of it."""

    def __init__(self):
        super().__init__()
        self.entered, self.go_on = threading.Event(), threading.Event()

    def setdefault(self, key, default):
        self.entered.set()
        self.go_on.wait(10)
        return super().setdefault(key, default)


@pytest.mark.timeout(20)
def test_an_operation_on_its_way_into_its_lane_is_in_flight():
    progress = Progress()
    progress._lanes = lanes = Halting()
    operation, _ = waiting(Call("barrier"))
    submitting = threading.Thread(target=progress.submit, args=(operation,))
    submitting.start()
    lanes.entered.wait(10)
    seen = []
    asking = threading.Thread(target=lambda: seen.append(progress.active))

    asking.start()
    asking.join(0.05)
    lanes.go_on.set()
    asking.join()
    submitting.join()

    assert seen == [True]


@pytest.mark.timeout(20)
def test_a_call_that_finishes_while_its_rank_asks_is_no_deadlock():
    call = Call("barrier")

    class Finishing:
        @property
        def active(self):
            call.finished = True
            return False

    baton = Baton(range(1), Finishing())
    baton.start()
    baton.enter(0)
    baton.wait(0, call)

    baton.check()
