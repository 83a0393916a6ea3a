"""PyTorch's place (``torch.distributed.algorithms.ddp_comm_hooks``) for :mod:`disttrain.parallel.comm_hooks`."""

from typing import TYPE_CHECKING

from disttrain import missing
from disttrain.parallel import comm_hooks as default_hooks

__all__ = ["default_hooks"]

if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
