"""PyTorch's place (``torch.distributed.optim``) for what is in :mod:`disttrain.parallel.zero`."""

from typing import TYPE_CHECKING

from disttrain import missing
from disttrain.parallel.zero import ZeroRedundancyOptimizer

__all__ = ["ZeroRedundancyOptimizer"]

if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
