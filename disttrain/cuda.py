"""What scripts ask of ``torch.cuda`` before they choose a device."""

from __future__ import annotations

from disttrain.devices import is_available, synchronize

__all__ = ["device_count", "is_available", "manual_seed", "manual_seed_all", "synchronize"]


def device_count() -> int:
    """Return the number of GPUs that can be used; 0 without CuPy."""
    if not is_available():
        return 0
    import cupy

    return int(cupy.cuda.runtime.getDeviceCount())


def manual_seed(seed: int) -> None:
    """Nothing: numbers for all devices come from the generator that ``disttrain.manual_seed`` seeds."""


manual_seed_all = manual_seed
