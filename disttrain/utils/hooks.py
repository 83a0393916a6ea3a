"""``torch.utils.hooks``: the handle that registering a hook returns."""

from typing import TYPE_CHECKING

from disttrain import missing
from disttrain.nodes import RemovableHandle

__all__ = ["RemovableHandle"]

if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
