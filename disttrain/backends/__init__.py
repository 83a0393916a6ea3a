"""Switches of the libraries under PyTorch, which scripts set and ask. There is none of them here."""

from typing import TYPE_CHECKING

from disttrain import missing
from disttrain.backends import cuda, cudnn, mps

__all__ = ["cuda", "cudnn", "mps"]

if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
