"""``torch.mps``: there are no Apple's GPUs here."""

from typing import TYPE_CHECKING

from disttrain import missing

__all__ = ["device_count", "empty_cache", "is_available", "manual_seed", "synchronize"]


def is_available() -> bool:
    """Return False."""
    return False


def device_count() -> int:
    """Return 0."""
    return 0


def manual_seed(seed: int) -> None:
    """Nothing: numbers for all devices come from the generator that ``disttrain.manual_seed`` seeds."""


def synchronize() -> None:
    """Nothing: there is nothing to wait for."""


def empty_cache() -> None:
    """Nothing: no memory of such a device is kept."""


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
