"""``torch.version``: whose names these are, and that no CUDA or ROCm was compiled in."""

from __future__ import annotations

import re
from typing import Any

from disttrain import __version__ as __version__

PYTORCH = "2.13.0"
"""The PyTorch whose names, signatures and results are followed."""
cuda: str | None = None
hip: str | None = None
xpu: str | None = None
debug = False


class Version(str):
    """A version that compares by its numbers, with texts and tuples, as ``torch.__version__``."""

    def _numbers(self) -> tuple[int, ...]:
        return tuple(map(int, re.findall(r"\d+", self.partition("+")[0])))

    def _of(self, other: Any) -> tuple[int, ...]:
        return Version(other)._numbers() if isinstance(other, str) else tuple(map(int, other))

    def __lt__(self, other: Any) -> bool:
        return self._numbers() < self._of(other)

    def __le__(self, other: Any) -> bool:
        return self._numbers() <= self._of(other)

    def __gt__(self, other: Any) -> bool:
        return self._numbers() > self._of(other)

    def __ge__(self, other: Any) -> bool:
        return self._numbers() >= self._of(other)
