"""``torch.backends.cudnn``: whether GPUs use cuDNN, and whether its convolutions may round float32 to TF32."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING

from disttrain import devices, missing
from disttrain.kernels import cudnn

benchmark = False
"""Kept; nothing reads it: cuDNN's heuristics choose."""
benchmark_limit = 10
"""Kept; nothing reads it."""
deterministic = False
"""Kept; nothing reads it: engines whose sums have no fixed order are never used."""


class _Module(ModuleType):
    """This module, with the switches that are kept where the kernels are."""

    @property
    def enabled(self) -> bool:
        """Whether cuDNN may be used, where it is there."""
        return cudnn.settings.enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        cudnn.settings.enabled = bool(value)

    @property
    def allow_tf32(self) -> bool:
        """Whether convolutions of float32 may round their factors to TF32."""
        return cudnn.settings.tf32

    @allow_tf32.setter
    def allow_tf32(self, value: bool) -> None:
        cudnn.settings.tf32 = bool(value)


def is_available() -> bool:
    """Return whether there is a GPU, with cuDNN and its frontend."""
    return devices.is_available() and cudnn.is_there()


def version() -> int | None:
    """Return cuDNN's version, like 91900 for 9.19.0; ``None`` where it is not there."""
    return int(cudnn.load_library().backend_version()) if is_available() else None


@contextlib.contextmanager
def flags(
    enabled: bool = False,
    benchmark: bool = False,
    benchmark_limit: int = 10,
    deterministic: bool = False,
    allow_tf32: bool = True,
) -> Iterator[None]:
    """Set all switches within a block."""
    given = dict(locals())
    module = sys.modules[__name__]
    before = {name: getattr(module, name) for name in given}
    _set(given)
    try:
        yield
    finally:
        _set(before)


def _set(switches: dict[str, bool | int]) -> None:
    for name, value in switches.items():
        setattr(sys.modules[__name__], name, value)


sys.modules[__name__].__class__ = _Module

if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
