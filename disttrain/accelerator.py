"""``torch.accelerator``: the GPU, if there is one, without its maker's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from disttrain import cuda, missing
from disttrain.devices import device as Device
from disttrain.devices import is_available, synchronize

__all__ = [
    "current_accelerator",
    "current_device_index",
    "device_count",
    "empty_cache",
    "is_available",
    "set_device_index",
    "synchronize",
]

device_count = cuda.device_count
current_device_index = cuda.current_device
set_device_index = cuda.set_device
empty_cache = cuda.empty_cache


def current_accelerator(check_available: bool = False) -> Device | None:
    """Return ``device("cuda")``, or ``None`` where no GPU can be used."""
    return Device("cuda") if is_available() else None


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
