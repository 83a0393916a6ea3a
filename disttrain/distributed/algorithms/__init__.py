"""PyTorch's place (``torch.distributed.algorithms``) for communication hooks and ``Join``."""

from typing import TYPE_CHECKING

from disttrain import missing
from disttrain.distributed.algorithms import ddp_comm_hooks, join
from disttrain.distributed.algorithms.join import Join

__all__ = ["Join", "ddp_comm_hooks", "join"]

if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
