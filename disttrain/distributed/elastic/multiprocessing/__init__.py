"""PyTorch's place (``torch.distributed.elastic.multiprocessing``) for ``errors.record``."""

from typing import TYPE_CHECKING

from disttrain import missing

if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
