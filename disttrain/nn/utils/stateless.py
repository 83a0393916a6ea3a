"""Where older programs look for :func:`functional_call` (``torch.nn.utils.stateless``)."""

from typing import TYPE_CHECKING

from disttrain import missing
from disttrain.func import functional_call

__all__ = ["functional_call"]


if not TYPE_CHECKING:  # which would take every name for granted
    __getattr__ = missing.of(__name__)
