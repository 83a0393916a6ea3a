"""``disttrain.data`` under the name that it has in PyTorch, ``torch.utils.data``."""

from typing import TYPE_CHECKING

from disttrain import missing
from disttrain.data import *  # noqa: F403
from disttrain.data import __all__ as __all__
from disttrain.utils.data import _utils as _utils
from disttrain.utils.data import distributed as distributed

if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
