"""``disttrain.data`` under the name that it has in PyTorch, ``torch.utils.data``."""

from disttrain.data import *  # noqa: F403
from disttrain.data import __all__ as __all__
