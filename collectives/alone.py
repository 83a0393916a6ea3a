"""A channel of one process: whatever would go to other processes has nowhere to go."""

from collections.abc import Callable, Sequence

from disttrain.collectives.transport import Channel, Request
from disttrain.kernels.arrays import Array


class AloneChannel:
    """See :class:`.Channel`."""

    index = 0
    size = 1
    all_reduce = None

    def gather_headers(self, mine: bytes) -> tuple[Request, bytearray]:
        return _at_once, bytearray(mine)

    def exchange(
        self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]], lane: int = 0
    ) -> Request:
        return _at_once

    def narrow(self, processes: Sequence[int]) -> tuple[Request, Callable[[], Channel]]:
        return _at_once, AloneChannel

    def leave(self) -> Request:
        return _at_once

    def close(self) -> None:
        pass


def _at_once() -> bool:
    return True
