"""``torch.backends.mps``: there are no Apple GPUs here."""

from typing import TYPE_CHECKING

from disttrain import missing


def is_available() -> bool:
    """Return False."""
    return False


def is_built() -> bool:
    """Return False."""
    return False


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
