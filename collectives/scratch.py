"""Memory that one operation after the other uses, so that no call allocates (and page-faults) its own."""

from typing import Any

import numpy

from disttrain.kernels.arrays import Array

_ALIGN = 64


class Scratch:
    """A buffer handed out piece by piece; :meth:`reset` takes all pieces back."""

    def __init__(self) -> None:
        self._memory = numpy.empty(0, numpy.uint8)
        self._used = 0

    def reset(self) -> None:
        """Take back everything; grow to what was needed since the last time."""
        if self._used > self._memory.size:
            self._memory = numpy.empty(self._used, numpy.uint8)
        self._used = 0

    def take(self, count: int, dtype: Any) -> Array:
        """Return an uninitialised flat array, valid until the next :meth:`reset`."""
        start, nbytes = self._used, count * dtype.itemsize
        self._used += -(-nbytes // _ALIGN) * _ALIGN
        if self._used > self._memory.size:
            return numpy.empty(count, dtype)
        return self._memory[start : start + nbytes].view(dtype)
