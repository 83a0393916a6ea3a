"""What becomes of operations that never come to their end."""

import gc
import weakref

import pytest

from disttrain.collectives.call import Call
from disttrain.collectives.errors import CollectiveTimeout
from disttrain.collectives.progress import Operation, Progress


class Request:
    """A transfer that never completes; its buffers live as long as it does."""

    def __call__(self):
        return False


def waiting(call):
    request = Request()

    def steps():
        yield request, True

    operation = Operation("lane", [call], steps(), lambda *_: CollectiveTimeout("too late"))
    return operation, weakref.ref(request)


@pytest.mark.timeout(20)
def test_buffers_of_an_operation_that_timed_out_are_kept_for_a_late_peer_to_write_into():
    progress = Progress(timeout=0.01)
    call = Call("barrier")
    operation, request = waiting(call)
    progress.submit(operation)
    progress.drive(lambda: call.finished)

    del operation
    gc.collect()

    assert isinstance(call.error, CollectiveTimeout)
    assert request() is not None
    progress.close()
