"""The driver of operations in flight."""

import threading

from disttrain.collectives.progress import Operation, Progress


class LateEvent(threading.Event):
    """An event that somebody else sets just before it is cleared."""

    def __init__(self, between):
        super().__init__()
        self.between = between

    def clear(self):
        self.between()
        super().clear()


def test_closing_just_before_the_background_thread_goes_idle_ends_it():
    progress = Progress(timeout=10)
    came = threading.Event()

    def close_begins():
        progress._stop = True
        progress._wake.set()

    def steps():
        yield came.is_set, True

    progress._wake = LateEvent(close_begins)
    progress.submit(Operation("lane", [], steps(), lambda operation, waited: TimeoutError()))
    progress.background()
    thread = progress._thread
    came.set()

    thread.join(5)
    assert not thread.is_alive()
