"""``torch.xpu``: there are no Intel's GPUs here."""

from typing import TYPE_CHECKING

from disttrain import missing
from disttrain.mps import device_count, empty_cache, is_available, manual_seed, synchronize

__all__ = ["device_count", "empty_cache", "is_available", "manual_seed", "synchronize"]


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
